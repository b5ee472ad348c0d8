"""Soft predictions on disk, ``soft/ID.npy`` and ``soft/ID.json``: the input of fusion and decision.

They separate what needs an accelerator from everything after it. ``ID.npy`` is the main head;
further heads lie beside it, ``soft/HEAD/ID.npy``. Probabilities are stored as float16: they keep
three decimals, and a 320³ volume takes 66 MB that can be memory-mapped slab by slab. Images are
stored as float32, from which 16-bit images come out to the last bit.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import documents, files
from pipeline.data.model_space import ModelSpace, from_record
from pipeline.data.scales import IntensityScale, from_json
from pipeline.files import LazyArray, Rows
from pipeline.grid import grid_of
from pipeline.records import Geometry, UserError
from pipeline.tasks import TASKS, Task

NUMBERS = (
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "bool",
)
"""Number types that an input, and so its answer, may have."""

TOLERANCE = 1e-3
"""How far a probability may lie outside 0..1: twice the rounding of float16 at 1."""

AGAIN = "Predict the case again"
"""Suggestion in messages about damaged files."""

SLAB = 2**22
"""Values that are checked at a time."""

MAIN = "main"
"""Name of the head that the answer is made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftMeta:
    """Metadata of a soft prediction, enough to write the answer without the input.

    Args:
        task: ``labels`` or ``image``.
        suffix: format of the input; None for cases predicted in training.
        scale: of images: how intensities were normalised.
        dtype: of images: number type of the input.
        channels: of the input.
        image: absolute paths of the input's files.
    """

    task: str = "labels"
    suffix: str | None = None
    scale: IntensityScale | None = None
    dtype: str | None = None
    channels: int | None = None
    image: tuple[str, ...] = ()

    @property
    def rules(self) -> Task:
        """The task's rules."""
        return TASKS[self.task]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftPrediction:
    """Prediction of one case before it is decided.

    Args:
        case_id: id of the case.
        heads: by head ``(K, *S)``, in memory or read as sliced: probabilities for labels,
            intensities for images.
        geometry: where the input's voxels lie.
        meta: what an answer is written with.
        space: the way from the input's grid to that of the heads.
    """

    case_id: str
    heads: Mapping[str, LazyArray]
    geometry: Geometry = field(default_factory=Geometry)
    meta: SoftMeta = field(default_factory=SoftMeta)
    space: ModelSpace = field(default_factory=ModelSpace)

    @property
    def main(self) -> LazyArray:
        """The head that the answer is made from, ``(K, *S)``."""
        return self.heads[MAIN]

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Millimetres between voxels along each space axis; None where the input says nothing."""
        return grid_of(self.geometry, len(self.main.shape) - 1).spacing

    @property
    def channels(self) -> dict[str, int]:
        """K of each head."""
        return {name: int(head.shape[0]) for name, head in self.heads.items()}

    def on_file_grid(self, work: Path | None = None) -> SoftPrediction:
        """The prediction on the grid of its input.

        Args:
            work: folder for scratch files of heads that are read as they are sliced.

        Returns:
            The prediction itself where it lies there already; else one whose heads are made as they
            are sliced, so that never all channels of a large grid are held.
        """
        if self.space.identity:
            return self
        heads = {
            name: self.space.to_file(head, work and work / f"{name}.npy", self._outside(name))
            for name, head in self.heads.items()
        }
        return replace(self, heads=heads, space=ModelSpace())

    def _outside(self, head: str) -> tuple[float, ...]:
        """What a head holds outside the box that the model saw."""
        count = self.channels[head]
        return self.meta.rules.outside(count, self.meta.scale) if head == MAIN else (0.0,) * count

    def foreground(self) -> np.ndarray | None:
        """Probabilities ``(1, *S)`` of foreground on the grid of the input.

        Returns:
            The main head in memory; None where it has several channels.
        """
        return np.asarray(self.on_file_grid().main[:]) if len(self.main) == 1 else None


def split(array: np.ndarray, channels: int | None, task: str) -> dict[str, np.ndarray]:
    """Split an array that was saved before heads had names.

    What lies behind the channels of the main head is the task's first further one.

    Args:
        array: ``(K, *S)``.
        channels: K of the main head; None: all are its.
        task: ``labels`` or ``image``.

    Returns:
        Arrays ``(K, *S)`` by head.

    Raises:
        ValueError: the array has neither that many channels nor one more.
    """
    further = TASKS[task].further
    if channels is None or not further or len(array) == channels:
        return {MAIN: array}
    if len(array) != channels + 1:
        raise ValueError(f"channels is {channels}, but the array has {len(array)}")
    return {MAIN: array[:channels], further[0]: array[channels:]}


def save(folder: Path, soft: SoftPrediction) -> None:
    """Write a soft prediction.

    ``folder/ID.json`` and further heads come first and the main head ``folder/ID.npy`` last, so
    that it is never without the others.

    Args:
        folder: the folder ``soft``; it is created.
        soft: the prediction.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = {name: value for name, value in asdict(soft.meta).items() if value not in (None, ())}
    given |= {} if soft.meta.scale is None else {"scale": soft.meta.scale.as_json()}
    record = {**given, "heads": list(soft.heads), "geometry": asdict(soft.geometry)}
    if not soft.space.identity:
        record["space"] = soft.space.record()
    files.write_json(folder / f"{soft.case_id}.json", record)
    dtype = np.dtype(soft.meta.rules.soft_type)
    for name in sorted(soft.heads, key=lambda name: name == MAIN):
        path = _new_path(folder, name, soft.case_id)
        path.parent.mkdir(exist_ok=True)
        files.write(path, _typed(soft.heads[name], dtype))


def _new_path(folder: Path, head: str, case_id: str) -> Path:
    """File of a head to be written."""
    return (folder if head == MAIN else folder / head) / f"{case_id}.npy"


def as_stored(soft: SoftPrediction) -> SoftPrediction:
    """The prediction with the precision that it has on disk.

    Args:
        soft: a prediction in memory.

    Returns:
        The same with heads rounded to the type that is saved, float32.
    """
    dtype = soft.meta.rules.soft_type
    heads = {n: np.asarray(h).astype(dtype).astype(np.float32) for n, h in soft.heads.items()}
    return replace(soft, heads=heads)


def _typed(array: LazyArray, dtype: np.dtype) -> np.ndarray | Rows:
    """The array in another number type, as it is sliced where the array is."""
    if isinstance(array, np.ndarray):
        return array.astype(dtype)
    return Rows(array.shape, dtype, lambda first, end: array[:, first:end].astype(dtype))


def remove(folder: Path, case_id: str) -> None:
    """Delete the arrays of a case, the main head first.

    Args:
        folder: the folder ``soft``.
        case_id: id of the case.
    """
    array_path(folder, case_id).unlink()
    for path in folder.glob(f"*/{glob.escape(files.case_id(Path(case_id + '.npy')))}.npy"):
        path.unlink()


def ids(folder: Path) -> list[str]:
    """Ids of the soft predictions in a folder.

    Args:
        folder: the folder ``soft``; it need not exist.

    Returns:
        Sorted ids.
    """
    return sorted({files.case_id(p) for p in _arrays(folder)})


def array_path(folder: Path, case_id: str) -> Path:
    """File of a case's main head.

    It is found also where its name was decomposed (Unicode) on the way through another file system.

    Args:
        folder: the folder ``soft``.
        case_id: id of the case.

    Returns:
        Its path, whether it is there or not.
    """
    path = folder / f"{case_id}.npy"
    if path.is_file():
        return path
    return next((p for p in _arrays(folder) if files.case_id(p) == files.case_id(path)), path)


def _arrays(folder: Path) -> list[Path]:
    return [p for p in folder.glob("*.npy") if not p.name.startswith(".")]


def load(folder: Path, case_id: str, channels: int | None = None) -> SoftPrediction:
    """Open a soft prediction, memory-mapped.

    Args:
        folder: the folder ``soft``.
        case_id: id of the case.
        channels: K of the main head, for files that were saved before heads had names and do not
            say it themselves.

    Returns:
        The prediction.

    Raises:
        UserError: files are missing, torn or not a soft prediction.
    """
    path = array_path(folder, case_id)
    beside = path.with_name(f"{path.name[:-4]}.json")
    try:
        found = files.read_document(beside, documents.SoftMetaJson, AGAIN)
        array = _mapped(path)
        place = _placed(beside, found["geometry"], array.ndim - 1)
        meta = _meta(beside, found)
        names = found.get("heads")
        if names is None:
            heads = split(array, channels if meta.channels is None else meta.channels, meta.task)
        else:
            heads = {
                MAIN: array,
                **{n: _mapped(array_path(folder / n, case_id)) for n in names if n != MAIN},
            }
        _require_usable(heads, meta)
        space = _space(beside, found, array.shape[1:])
    except (ValueError, files.FileError) as error:
        words = (
            str(error).rstrip(".") if isinstance(error, files.FileError) else f"{beside}: {error}"
        )
        raise UserError(
            f"{path}: not a readable soft prediction ({words}). Run pipeline.predict --save-soft"
            " again for this case."
        ) from None
    return SoftPrediction(case_id=case_id, heads=heads, geometry=place, meta=meta, space=space)


def _space(path: Path, found: Mapping[str, Any], size: tuple[int, ...]) -> ModelSpace:
    """The model space in a document. Raises ValueError or FileError where it cannot be used."""
    if found.get("space") is None:
        return ModelSpace()
    files.checked(path, found["space"], documents.Space, AGAIN)
    space = from_record(found["space"])
    if space.sizes is not None and space.sizes != size:
        raise ValueError(f"space is of {space.sizes} voxels, the array has {size}")
    if len(space.alignment.axes or size) != len(size):
        raise ValueError(f"space has {len(space.alignment.axes)} axes, the array {len(size)}")
    return space


def _mapped(path: Path) -> np.ndarray:
    array = files.guarded(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    if not isinstance(array, np.ndarray):
        raise ValueError("several arrays in one file")
    return array


def _meta(path: Path, found: Mapping[str, Any]) -> SoftMeta:
    """The metadata in a document. Raises ValueError or FileError for invalid values."""
    task = found.get("task", "labels")
    if task not in TASKS:
        raise ValueError(f"task {task!r} is none of {', '.join(TASKS)}")
    if "scale" in TASKS[task].needed and found.get("scale") is not None:
        files.checked(path, found["scale"], documents.Scale, AGAIN)
    given = found.get("scale") or {}
    scale = None
    if set(given) >= {"low", "high", "to", "clip"}:  # of labels it is not needed, and not checked
        if "ranges" in given:
            files.checked(path, given, documents.Scale, AGAIN)
        scale = from_json(given)
    known = {key: found[key] for key in ("task", "suffix", "dtype", "channels") if key in found}
    return SoftMeta(**known, scale=scale, image=tuple(found.get("image", ())))


def _placed(path: Path, found: Mapping[str, Any], dims: int) -> Geometry:
    """The geometry in a document. Raises FileError for one that no array could be written with."""
    meta = documents.PLACES.get(found["format"])
    if meta is not None:
        files.checked(path, {"geometry": {"meta": found["meta"]}}, meta, AGAIN)
    place = Geometry(
        format=found["format"], meta=found["meta"], notes=tuple(found.get("notes", ()))
    )
    files.guarded(path, lambda: grid_of(place, dims))
    return place


def _require_usable(heads: Mapping[str, np.ndarray], meta: SoftMeta) -> None:
    """Raise ValueError for arrays or metadata of which no answer could be written."""
    array = heads[MAIN]
    for head in heads.values():
        if head.ndim not in (3, 4) or 0 in head.shape:
            raise ValueError(
                f"shape {head.shape} where channels and 2 or 3 axes of space are needed"
            )
        if head.shape[1:] != array.shape[1:]:
            raise ValueError(f"heads of {head.shape[1:]} and {array.shape[1:]} voxels")
    if meta.suffix is not None and meta.suffix not in files.SUFFIXES:
        raise ValueError(f"suffix {meta.suffix!r} is none of {', '.join(files.SUFFIXES)}")
    if meta.dtype is not None and meta.dtype not in NUMBERS:
        raise ValueError(f"dtype {meta.dtype!r} is none of {', '.join(NUMBERS)}")
    if unknown := sorted(set(heads) - {MAIN, *meta.rules.further}):
        raise ValueError(f"head {unknown[0]!r} is none of {', '.join((MAIN, *meta.rules.further))}")
    if not meta.rules.needed:
        return
    channels, scale = len(array), meta.scale
    if meta.channels not in (None, channels):
        raise ValueError(f"channels is {meta.channels}, but the array has {channels}")
    if scale is not None:
        _require_scale(scale, channels)


def _require_scale(scale: IntensityScale, channels: int) -> None:
    """Raise ValueError for a scale of another number of channels."""
    if not {len(scale.low), len(scale.high)} <= {1, channels}:
        raise ValueError(
            f"scale has limits for {len(scale.low)} and {len(scale.high)} channels, not {channels}"
        )
    if len(scale.ranges) not in (0, channels):
        raise ValueError(f"scale has ranges for {len(scale.ranges)} channels, not {channels}")


def load_sound(folder: Path, case_id: str) -> SoftPrediction:
    """Open a soft prediction and check every value.

    Args:
        folder: the folder ``soft``.
        case_id: id of the case.

    Returns:
        The prediction, memory-mapped.

    Raises:
        UserError: as :func:`load`; also for values that are not finite and, of labels, no
            probabilities from 0 to 1.
    """
    soft = load(folder, case_id)
    found = (
        _unsound(np.asarray(head), soft.meta.rules.decides or name != MAIN)
        for name, head in soft.heads.items()
    )
    problem = next((p for p in found if p is not None), None)
    if problem is not None:
        raise UserError(
            f"{array_path(folder, case_id)}: {problem}. Predict this case again with"
            " pipeline.predict --save-soft; where the network itself gives such values, train it"
            " again or leave this member out."
        )
    return soft


def _unsound(array: np.ndarray, probabilities: bool) -> str | None:
    """What is wrong with the values of ``(K, *S)``, read a slab at a time; None: nothing."""
    if array.dtype.kind not in "uif":
        return f"holds values of type {array.dtype}, not numbers"
    low, high = (-TOLERANCE, 1 + TOLERANCE) if probabilities else (-np.inf, np.inf)
    wrong, example = 0, 0.0
    flat = array.reshape(-1)  # a view: the files are contiguous
    for start in range(0, flat.size, SLAB):
        part = flat[start : start + SLAB]
        if probabilities and _in_range(part):
            continue
        values = np.asarray(part, np.float32)
        bad = values[~(np.isfinite(values) & (values >= low) & (values <= high))]
        example = example if wrong or not bad.size else float(bad[0])
        wrong += bad.size
    if not wrong:
        return None
    rule = "no probabilities from 0 to 1" if probabilities else "NaN or infinite"
    return f"holds {wrong} values that are {rule}, the first is {example:g}"


def _in_range(part: np.ndarray) -> bool:
    """Whether all values of a float16 array lie in 0..1, tested on its bits.

    The bits of NaN, infinity and negative numbers are greater than those of 1.
    """
    return part.dtype == np.float16 and int(part.view(np.uint16).max(initial=0)) <= int(
        np.float16(1).view(np.uint16)
    )
