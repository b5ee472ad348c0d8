"""Trained networks ready to predict: what the commands and the Python interface have in common.

An array takes this path: model space (``model_space``), its own intensity scale (``normalise``),
tiles of every network, flip and scale (``sliding_window``), back to its own axes, decision and
post-processing (``writing``).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch

from pipeline import limits, postprocess
from pipeline.config import Config
from pipeline.data import normalise, reading
from pipeline.data.model_space import ModelSpace
from pipeline.data.prepare import fitted
from pipeline.data.spaces import require_memory, space_of
from pipeline.files import FileError, LazyArray
from pipeline.geometry import Tiling
from pipeline.inference import backends, devices
from pipeline.inference.given import GivenImage, Placement, open_given
from pipeline.inference.models import find_models, load_header, load_models
from pipeline.inference.options import ModelOptions
from pipeline.inference.sliding_window import (
    Advance,
    Replicas,
    Source,
    TilePredictor,
    TileRun,
    network_ensemble,
    sliding_window,
    tiling,
    with_fixed_norms,
)
from pipeline.inference.soft import SoftMeta, SoftPrediction
from pipeline.inference.stitching import warning, with_halo
from pipeline.inference.writing import decided
from pipeline.progress import bars_shown, progress_steps
from pipeline.records import UserError
from pipeline.runs import FoldFolder, RunFolder, fold_names
from pipeline.tasks import TASKS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """Trained networks, ready to predict. Made by :meth:`load`.

    Args:
        config: that of the models, with the options of loading applied; ``config.predict`` says how
            tiles are made.
        predict_tile: the networks as one callable.
        models: the model files.
        device: where tiles are summed; the first of several devices.
        channels: input channels of the networks; 0: not known.
        trained_on: what the model file says of its training data
            (:class:`pipeline.records.Checkpoint`); empty for older ones.
        backend: what computes the networks.
        threads: threads of torch on the CPU during prediction; None: as they are.
        progress: whether a bar is shown on a terminal.
    """

    config: Config
    predict_tile: TilePredictor
    models: tuple[str, ...]
    device: str
    channels: int = 0
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "torch"
    threads: int | None = None
    progress: bool = False
    warned: set[str] = field(default_factory=set)
    """Warnings given so far: each is given once."""

    @classmethod
    def load(
        cls,
        path: Path | str | RunFolder | FoldFolder,
        *,
        folds: Sequence[int] | int | Literal["all"] | None = None,
        device: str | Sequence[str] = "auto",
        flips: bool | None = None,
        threads: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Predictor:
        """Load the models of a run, a fold or a file.

        Args:
            path: run folder, fold folder or model file.
            folds: which folds of a run; None: every finished one; ``"all"``: the one model trained
                on all cases.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``; several of them share the tiles of each
                volume, and the result has the bits of one of them where they compute alike.
            flips: average over all flips; None: as the model's config says.
            threads: threads of torch on the CPU during prediction; None: as they are.
            progress: show a bar on a terminal.
            **options: further fields of :class:`ModelOptions`, such as ``patch_size``, ``overlap``,
                ``threshold``, ``model``.

        Returns:
            A predictor with the networks on their devices.

        Raises:
            UserError: there is no such model, or an option is not valid for it.
            TypeError: an option is unknown.

        Example:
            >>> Predictor.load("nowhere")
            Traceback (most recent call last):
            ...
            pipeline.records.UserError: --checkpoint nowhere: ...
        """
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise UserError(f"threads is {threads}; at least 1 thread is needed, or None.")
        names = ",".join(map(str, device)) if isinstance(device, list | tuple) else str(device)
        if "tta" in options:
            raise TypeError(
                "Predictor.load takes flips, not tta: flips=True averages over all flips."
            )
        own = {"checkpoint", "device", "tta", "folds"}
        known = {f.name for f in dataclasses.fields(ModelOptions)} - own
        if unknown := sorted(set(options) - known):
            raise TypeError(
                f"Predictor.load takes no {', '.join(unknown)}; further options are"
                f" {', '.join(sorted(known))}."
            )
        wanted = ModelOptions(
            **{"allow_missing_folds": True, **options},
            checkpoint=path,
            folds=folds,
            device=names,
            tta=flips,
        )
        return dataclasses.replace(prepare(wanted), threads=threads, progress=progress)

    def __repr__(self) -> str:
        """Short, since notebooks show it."""
        numbers = ((len(self.models), "model"), (self.channels, "channel"))
        counts = ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in numbers)
        return f"Predictor({self.config.name!r}, {counts}, device {self.device!r})"

    # --- one array ---

    @overload
    def predict(
        self,
        volume: torch.Tensor,
        *,
        affine: Any = None,
        spacing: Sequence[float] | None = None,
        axes: str | None = None,
    ) -> torch.Tensor: ...

    @overload
    def predict(
        self,
        volume: Path | str | np.ndarray,
        *,
        affine: Any = None,
        spacing: Sequence[float] | None = None,
        axes: str | None = None,
    ) -> np.ndarray: ...

    def predict(
        self,
        volume: Any,
        *,
        affine: Any = None,
        spacing: Sequence[float] | None = None,
        axes: str | None = None,
    ) -> Any:
        """Predict one image or volume, with post-processing, on its own grid.

        Args:
            volume: path of an image file, or an array ``(*S)`` or ``(C, *S)`` of any number type,
                with the intensities of the files that the model was trained on (not normalised).
            affine: 4 x 4 from voxels to millimetres (RAS+), for arrays as nibabel gives them,
                ``(X, Y, Z)``.
            spacing: millimetres between voxels along each axis of the array, instead of an affine.
            axes: order of the array's space axes, ``zyx`` (the default) or another, such as
                ``xyz``.

        Returns:
            Labels ``(*S)`` of unsigned integers, the smallest type that holds them; of a system of
            images ``(C, *S)`` in the input's type and scale. A tensor where a tensor was given, on
            its device.

        Raises:
            UserError: the array cannot be an input of this model.
        """
        image = self._open(volume, Placement(affine=affine, spacing=spacing, axes=axes))
        if TASKS[self.config.rules].decides:  # before anything is predicted
            postprocess.require_spacing(image.name, self.config.postprocess, image.grid.spacing)
        soft = self._soft(image)
        result = decided(soft, self.config.postprocess, spacing=image.grid.spacing)[...]
        return image.as_given(image.restored(result))

    def predict_heads(
        self,
        volume: Any,
        *,
        affine: Any = None,
        spacing: Sequence[float] | None = None,
        axes: str | None = None,
    ) -> dict[str, Any]:
        """Predict the probabilities of one image or volume, by head, on its own grid.

        Of a system of images they are intensities on the scale of training.

        Args:
            volume: as for :meth:`predict`.
            affine: as for :meth:`predict`.
            spacing: as for :meth:`predict`.
            axes: as for :meth:`predict`.

        Returns:
            ``{"main": (K, *S)}`` float32, where K = 1 is the foreground (``pl.score`` takes
            ``heads["main"][0]``), and ``"mask"`` ``(1, *S)`` of networks with a mask head.

        Raises:
            UserError: as for :meth:`predict`.
        """
        image = self._open(volume, Placement(affine=affine, spacing=spacing, axes=axes))
        heads = self._soft(image).on_file_grid().heads
        return {name: image.as_given(image.restored(head[:])) for name, head in heads.items()}

    def _open(self, volume: Any, placement: Placement) -> GivenImage:
        dims = self.config.data.dims
        return open_given(volume, placement, dims, self.trained_on, self.warn_once)

    def _soft(self, image: GivenImage) -> SoftPrediction:
        """Soft prediction in model space, which knows the way back to the image's array."""
        self.require_channels(image.name, len(image.array))
        reading.require_finite(image.name, image.array)
        space = space_of(image.name, image.grid, image.array, self.config, self.trained_on)
        source, notes = self.source(image.name, image.array, space)
        for note in (*space.notes, *notes):
            self.warn_once(f"{image.name}: {note}.")
        count = self.tiles(source.array.shape[1:]).count()
        with (
            _threads(self.threads),
            bars_shown(self.progress),
            progress_steps("Predicting", count) as advance,
        ):
            heads = self.heads_of(source, advance)
        meta = SoftMeta(
            task=self.config.rules,
            scale=source.scale,
            dtype=str(image.array.dtype),
            channels=len(image.array),
        )
        return SoftPrediction(case_id=image.name.name, heads=heads, meta=meta, space=space)

    def source(
        self, name: Path, array: LazyArray, space: ModelSpace, scratch: Path | None = None
    ) -> tuple[Source, tuple[str, ...]]:
        """Bring an array to model space, with its own intensity scale.

        Args:
            name: what messages call it.
            array: ``(C, *S)`` on the grid of its file.
            space: the way to model space.
            scratch: as of :meth:`pipeline.data.model_space.ModelSpace.to_model`.

        Returns:
            The array in model space with its normalisation, masked where that needs it, and
            warnings about it.

        Raises:
            FileError: the normalisation would clip most of the image, or it does not fit into
                memory at ``data.spacing``.
        """
        options = self.config.data.normalise
        if isinstance(array, np.ndarray):  # else it is resampled as it is sliced
            heads = TASKS[self.config.rules].channels(self.config, max(1, self.channels))
            require_memory(name, space, len(array) + heads)
        native = space.to_native(array, scratch)
        if problem := normalise.problem_of(options, native):
            raise FileError(name, *problem)
        scale, notes, ready = fitted(options, native, clip=space.resampling is not None)
        if space.resampling is not None:
            ready = space.resampling.forward(ready)
        return Source(array=ready, scale=scale), notes

    def tiles(self, size: Sequence[int]) -> Tiling:
        """The tiling of a case.

        Args:
            size: voxels of the case along each axis.

        Returns:
            Tiles as ``config.predict`` sets them, on the stride of the networks.

        Raises:
            UserError: halos leave nothing of a tile.
        """
        return tiling(self.config, size, self.predict_tile)

    def heads_of(self, source: Source, advance: Advance | None = None) -> dict[str, np.ndarray]:
        """Predict a case in model space.

        Args:
            source: the case and its normalisation.
            advance: called with the number of tiles of each batch that is done.

        Returns:
            Probabilities ``(K, *S)`` float32 by head.

        Raises:
            UserError: the device runs out of memory, or the statistics of norms cannot be fixed.
        """
        tiles = self.tiles(source.array.shape[1:])
        self.warn_of_tiles(source, tiles)
        predict_tile = with_fixed_norms(self.predict_tile, source, tiles)
        run = TileRun(
            source=source,
            predict_tile=predict_tile,
            tiles=tiles,
            batch=self.config.predict.batch,
            device=self.device,
            advance=advance,
        )
        return sliding_window(run)

    # --- what an input has to be ---

    def require_channels(self, name: Path, have: int) -> None:
        """Check the number of channels of an image.

        Args:
            name: the image's file.
            have: its channels.

        Raises:
            FileError: the networks take another number.
        """
        wanted = self.channels
        if wanted and have != wanted:
            together = (
                "; of files ID_0000, ID_0001, ... give their folder, so that they are taken"
                " together"
                if wanted > have
                else ""
            )
            names = self.trained_on.get("channel_names")
            named = f" ({', '.join(names)})" if names else ""
            problem = f"has {have} channels, the model takes {wanted}{named}"
            raise FileError(name, problem, f"Give an image of {wanted} channels{together}")

    def warn_of_tiles(self, source: Source, tiles: Tiling) -> None:
        """Warn once if tiles of this network differ from the whole image: how much, and what to do.

        Args:
            source: the case, on a sample of which the difference is measured.
            tiles: its tiling.
        """
        predict_tile = (
            self.predict_tile.ensembles[0]
            if isinstance(self.predict_tile, Replicas)
            else self.predict_tile
        )
        if "norms" not in self.warned and (
            text := warning(predict_tile, source, tiles, self.backend)
        ):
            self.warned.add("norms")
            logger.warning(text)

    def warn_once(self, text: str) -> None:
        """Log a warning that was not given yet.

        Args:
            text: the warning.
        """
        if text not in self.warned:
            self.warned.add(text)
            logger.warning(text)


def prepare(options: ModelOptions, paths: Sequence[Path] | None = None) -> Predictor:
    """Load networks as the options say.

    Args:
        options: which networks, and how they predict.
        paths: model files instead of those of ``options.checkpoint``.

    Returns:
        A predictor with the networks on their devices.

    Raises:
        UserError: there is no such model, or an option is not valid for it.
    """
    names = "cpu" if options.backend != "torch" and options.device == "auto" else options.device
    device_names = [devices.resolve(name.strip()) for name in names.split(",")]
    backends.check(options.backend, device_names[0])
    if paths is None:
        checkpoint = Path(options.checkpoint)  # type: ignore[arg-type] - made one when it was set
        folds = fold_names(options.folds)
        paths = find_models(checkpoint, options.model, options.allow_missing_folds, folds)
    networks, config = load_models(paths)
    header = load_header(paths[0])
    config = options.over(config)
    limits.of_prediction(config, paths[0])
    backends.check(options.backend, device_names[0], config.predict.norms)
    if TASKS[config.rules].decides:
        postprocess.check(config.postprocess)
    if options.halo == "auto":
        config, text = with_halo(config, networks[0], header.channels[0])
        logger.info(text)
    networks = [
        backends.accelerate(n.to(device_names[0]), p, options.backend)
        for n, p in zip(networks, paths, strict=True)
    ]
    ensembles = [network_ensemble(networks, config, device_names[0])]
    ensembles += [
        network_ensemble([copy.deepcopy(n).to(name) for n in networks], config, name)
        for name in device_names[1:]
    ]
    return Predictor(
        config=config,
        predict_tile=ensembles[0] if len(ensembles) == 1 else Replicas(ensembles),
        models=tuple(str(p) for p in paths),
        device=device_names[0],
        channels=header.channels[0],
        trained_on=header.trained_on,
        backend=options.backend,
    )


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let torch compute with this number of threads inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
