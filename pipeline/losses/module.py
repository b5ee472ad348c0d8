"""A loss by name as a module that is called like MONAI's losses, for training loops of your own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from pipeline.config import Change, ConfigError, Data, nearest
from pipeline.data import change, derived
from pipeline.data.label_tensors import class_numbers
from pipeline.losses import LOSSES, for_target, make, reads
from pipeline.losses.image import unit
from pipeline.records import LossTerm

RANGE = (-1.0, 1.0)
"""Black and white of images unless the option ``range`` says otherwise."""

SUGGESTION = (
    "Name a number that marks unlabelled voxels as ignore_label=; for wanted probabilities of one"
    " channel pass soft=True."
)


class Loss(_Loss):
    """A loss of this package, called like MONAI's: ``loss(logits, target)`` gives a scalar.

    Value and gradient are those of the same term in a config. Logits and images of float16 or
    bfloat16 are computed in float32, with autocast off. The module has no weights and no state, so
    ``to(device)`` moves nothing: everything is computed where the logits are, ``betti_matching``
    and the maps below on the CPU.

    Some losses read a map besides the target: ``skeleton_recall`` a ``skeleton``,
    ``surface_recall`` a ``medial_surface``, ``boundary`` a ``distance``, and ``masked_l1``,
    ``masked_sobel``, ``masked_laplacian`` and ``perceptual`` with ``reduce="mask"`` the ``mask``
    of what was changed. A map that is not given is made from the target at every call, on the CPU:
    0.1 to 1 s for a patch of 128 x 128 x 128. It is then the map of the patch, which differs near
    the border from a patch of the whole volume's map; ``pipeline.data.derived`` makes the latter.

    Args:
        name: entry of ``pipeline.losses.LOSSES``.
        ignore_label: class number of voxels that do not count; any whole number, 255 and -1 too.
            Label losses only.
        soft: the target is a soft mask, the wanted probability 0..1 of one channel of logits.
            ``dice``, ``tversky`` and ``ce`` only.
        **options: those of the entry, e.g. ``iterations`` of ``cldice``. The three ``masked_``
            losses also take ``range``, the intensities of ``source`` and ``target`` that stand for
            black and white, [-1, 1] unless given.

    Raises:
        ConfigError: for an unknown name or option, with the nearest right one, and for a value
            that the loss cannot use.

    Source: those of the entries, see ``help(pipeline.losses.LOSSES[name].make)``. Calling
    convention: ``monai.losses`` 1.6.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[[2.0, -2.0, 2.0, -2.0]]]])  # (B, 1, Y, X): foreground
        >>> target = torch.tensor([[[[1.0, 0.0, 1.0, 2.0]]]])  # the 2 was not annotated
        >>> round(Loss("ce", ignore_label=2)(logits, target).item(), 4)
        0.1269
        >>> Loss("cldice", iterations=5, ignore_label=2)
        Loss('cldice', iterations=5, ignore_label=2)
        >>> Loss("cldcie")
        Traceback (most recent call last):
            ...
        pipeline.config.errors.ConfigError: Loss: 'cldcie' is unknown. Did you mean 'cldice'? ...
    """

    def __init__(
        self, name: str, /, *, ignore_label: int | None = None, soft: bool = False, **options: Any
    ) -> None:
        super().__init__()
        _require_settings(name, ignore_label, soft)
        _require_options(name, options)
        self.name, self.ignore_label, self.soft = name, ignore_label, soft
        self.options = options
        self._bind()

    def _bind(self) -> None:
        own = dict(self.options)
        span = own.pop("range", RANGE) if takes_range(self.name) else own.get("range", RANGE)
        term = LossTerm(name=self.name, options=own)
        self._compute = make(term, "Loss")
        self._required_map = next(iter(reads([term])), None)
        self._to_unit = unit(span, f"{self.name!r}: range")

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, target: Tensor, **maps: Tensor) -> Tensor: ...  # noqa: A002

    def forward(self, input: Tensor, target: Tensor, **maps: Tensor) -> Tensor:  # noqa: A002
        """Compute the loss of one batch.

        Args:
            input: logits ``(B, K, *S)`` of 2D or 3D; ``K = 1`` means a sigmoid and foreground
                against background, more a softmax over classes 0 (background) to K - 1. For image
                losses the image ``(B, C, *S)``.
            target: class numbers ``(B, 1, *S)`` of any integer or floating-point type, as MONAI's
                loaders give them; with ``K = 1`` every label above 0 is foreground. Or one-hot
                ``(B, K, *S)`` for ``K > 1``, where a voxel without a class counts as
                ``ignore_label``. For image losses the image ``(B, C, *S)``; ``total_variation``
                looks at its shape only.
            **maps: what the loss reads besides, see the class: ``skeleton``, ``medial_surface`` or
                ``distance`` ``(B, 1, *S)``, for more than two classes ``(B, K - 1, *S)``; or
                ``mask`` ``(B, 1, *S)`` in 0..1, or ``source`` ``(B, C, Y, X)``, the images before
                the change, from which the mask is made with the usual settings of ``data.change``.

        Returns:
            The mean loss, a tensor ``()`` of at least float32. 0 where no voxel counts.

        Raises:
            ValueError: for shapes that do not belong together, labels that are no class numbers,
                an unknown map, or a mask of change that is neither given nor can be made.
        """
        logits, target = _without_metadata(input), _without_metadata(target)
        _require_layout(self.name, logits, target)
        if self.soft:
            target, valid = _soft(target), _all_valid(logits)
        elif "labels" in LOSSES[self.name].targets:
            target, valid = self._labels(target, logits.shape[1])
        else:
            valid = _all_valid(logits)
        return self._compute(logits, target, valid, *self._maps(logits, target, maps))

    def _labels(self, target: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """Class numbers ``(B, 1, *S)``, 0 where ignored, and float32 1 where a voxel counts."""
        numbers = _numbers(target, channels, self.ignore_label)
        if self.ignore_label is None:
            return numbers, _all_valid(numbers)
        ignored = numbers == self.ignore_label
        return numbers.masked_fill(ignored, 0), (~ignored).float()

    def _maps(self, logits: Tensor, target: Tensor, given: Mapping[str, Tensor]) -> list[Tensor]:
        """The map that this loss reads, if any: passed by the caller, or made from the target."""
        known = self._known_maps()
        for name in given:
            if name not in known:
                suggestion = nearest(name, known) if known else "It reads none."
                raise ValueError(
                    f"loss {self.name!r} got a map {name!r}, which it does not read. {suggestion}"
                )
        required = self._required_map
        if required is None:
            return []
        ready = given.get("mask" if isinstance(required, derived.ChangeMask) else required.name)
        if ready is not None:
            return [_without_metadata(ready).to(logits.device)]
        if isinstance(required, derived.ChangeMask):
            return [self._change_mask(target, given).to(logits.device)]
        return [_derived(target, required, logits.shape[1]).to(logits.device)]

    def _known_maps(self) -> tuple[str, ...]:
        if self._required_map is None:
            return ()
        if isinstance(self._required_map, derived.ChangeMask):
            return ("mask", "source")
        return (self._required_map.name,)

    def _change_mask(self, target: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        if "source" not in given:
            raise ValueError(
                f"loss {self.name!r} reads the mask of what was changed. Pass mask= (B, 1, *S), or "
                "source= (B, C, Y, X), the images before the change, from which it is made."
            )
        images = (given["source"], target)
        pairs = (self._to_unit(_without_metadata(x).detach().float()).cpu().numpy() for x in images)
        masks = [change.difference_mask(a, b, Change()) for a, b in zip(*pairs, strict=True)]
        return torch.from_numpy(np.stack(masks))

    def extra_repr(self) -> str:
        """Describe the module for ``repr``.

        Returns:
            Its name and options.
        """
        shown = {**self.options, "ignore_label": self.ignore_label, "soft": self.soft or None}
        options = [f"{k}={v!r}" for k, v in shown.items() if v is not None]
        return ", ".join([repr(self.name), *options])

    def __getstate__(self) -> dict[str, Any]:
        """State for a copy in another process; the bound functions are made again there."""
        remade = ("_compute", "_required_map", "_to_unit")
        return {k: v for k, v in self.__dict__.items() if k not in remade}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()


def takes_range(name: str) -> bool:
    """Check whether the module adds an option ``range``.

    It does for losses that read the mask of change and have no such option themselves.

    Args:
        name: name of a loss, known or not.

    Returns:
        Whether it does.
    """
    entry = LOSSES.get(name)
    return (
        entry is not None
        and entry.reads({}) == derived.MASK
        and "range" not in inspect.signature(entry.make).parameters
    )


def _numbers(target: Tensor, channels: int, ignore_label: int | None) -> Tensor:
    """Class numbers int64 ``(B, 1, *S)`` of a target for logits of so many channels, checked."""
    if target.shape[1] not in (1, channels):
        one_hot = f", or one-hot (B, {channels}, *S)" if channels > 1 else ""
        raise ValueError(
            f"the target {tuple(target.shape)} must hold class numbers (B, 1, *S){one_hot}; the"
            f" logits have {channels} channels."
        )
    classes = channels if channels > 1 else None
    return class_numbers(target, classes, ignore_label, suggestion=SUGGESTION)


def _derived(target: Tensor, required: derived.Map, channels: int) -> Tensor:
    """The map of every label of a batch ``(B, 1, *S)``, in which ignored voxels are 0."""
    data = Data(classes=max(2, channels))
    maps = [derived.derive(label, required, data) for label in target.cpu().numpy()]
    return torch.from_numpy(np.stack(maps))


def _without_metadata(x: Tensor) -> Tensor:
    """The tensor without MONAI's metadata, in the same graph."""
    return x if type(x) is Tensor else x.as_subclass(Tensor)


def _all_valid(logits: Tensor) -> Tensor:
    return torch.ones_like(logits[:, :1], dtype=torch.float32)


def _soft(target: Tensor) -> Tensor:
    target = target if target.is_floating_point() else target.float()
    if not ((target >= 0) & (target <= 1)).all():
        raise ValueError(
            "a soft target holds wanted probabilities and must lie in 0..1; divide a mask of 0..255"
            " by 255."
        )
    return target


def _require_layout(name: str, logits: Tensor, target: Tensor) -> None:
    good = logits.ndim == target.ndim >= 3 and len(logits) == len(target)
    good = good and logits.shape[2:] == target.shape[2:]
    if not good:
        raise ValueError(
            f"loss {name!r} got input {tuple(logits.shape)} and target {tuple(target.shape)}; "
            "both need a batch, a channel and the same space axes: (B, K, *S) and (B, 1, *S). "
            "Add a missing channel with target[:, None]."
        )


def _require_settings(name: str, ignore_label: Any, soft: Any) -> None:
    if ignore_label is not None and type(ignore_label) is not int:
        raise ConfigError(
            f"Loss: ignore_label is {ignore_label!r}, must be a whole number, e.g. 255, or None."
        )
    if name not in LOSSES:
        return
    targets = LOSSES[name].targets
    if ignore_label is not None and "labels" not in targets:
        raise ConfigError(
            f"Loss: {name!r} compares images, which have no labels to ignore. Leave ignore_label"
            " out."
        )
    if soft and "soft" not in targets:
        fitting = ", ".join(sorted(for_target("soft")))
        raise ConfigError(f"Loss: {name!r} takes no soft target. Those that do: {fitting}.")
    if soft and ignore_label is not None:
        raise ConfigError(
            "Loss: a soft target has no label to ignore. Leave ignore_label out, or soft."
        )


def _require_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown option, with the nearest of the entry's and of this class's own."""
    if name not in LOSSES:
        return
    entry = LOSSES[name]
    own = ["ignore_label"] if "labels" in entry.targets else []
    own += ["soft"] if "soft" in entry.targets else []
    own += ["range"] if takes_range(name) else []
    known = [*inspect.signature(entry.make).parameters, *own]
    for option in options:
        if option not in known:
            suggestion = nearest(option, known) if known else "It takes none."
            raise ConfigError(f"Loss: {name!r} has no option {option!r}. {suggestion}")
