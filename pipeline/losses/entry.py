"""The entry of a loss in the table ``LOSSES``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pipeline.data import derived
from pipeline.losses.masked import Loss

Kind: TypeAlias = Literal["labels", "image", "soft"]
"""What a target holds: class numbers, intensities, or wanted probabilities of one channel."""

Options: TypeAlias = Mapping[str, Any]


def _unchanged(options: Options) -> Options:
    return options


def _no_warning(_options: Options) -> None:
    return None


@dataclass(frozen=True, slots=True)
class LossEntry:
    """A loss, and all that is known of it outside its own function.

    Args:
        make: factory: options in, ``loss(head, target, valid)`` out, with ``head`` ``(B, K, *S)``
            and ``target``, ``valid`` ``(B, 1, *S)``; see :data:`pipeline.losses.masked.Loss`.
        targets: kinds of target that it reads.
        map: a map that it reads as a fourth argument: an entry of
            ``pipeline.data.derived.DERIVED``, whose options of the same name are the loss's, or
            ``mask``, the mask of change.
        map_if: values that options must have for the loss to read the map.
        repeats: options that say how often something is repeated, with the largest value of each.
        trial: changes the options for the one computation before training that tries them: nothing
            is downloaded, nothing takes long.
        slow: whether one patch takes seconds; it is then tried on labels that do not count.
        warning: message about the options that is shown before training begins; None: no message.

    Raises:
        ValueError: for a kind or a map that does not exist.

    Example:
        >>> from pipeline.losses import LOSSES
        >>> LOSSES["perceptual"].reads({"reduce": "mask"})
        'mask'
    """

    make: Callable[..., Loss]
    targets: tuple[Kind, ...]
    map: str | None = None
    map_if: Options = field(default_factory=dict)
    repeats: Mapping[str, int] = field(default_factory=dict)
    trial: Callable[[Options], Options] = _unchanged
    slow: bool = False
    warning: Callable[[Options], str | None] = _no_warning

    def __post_init__(self) -> None:
        if not self.targets or not set(self.targets) <= {"labels", "image", "soft"}:
            raise ValueError(
                f"targets is {self.targets!r}, must be a tuple of 'labels', 'image', 'soft'."
            )
        if self.map not in (None, derived.MASK, *derived.DERIVED):
            known = ", ".join([*derived.DERIVED, derived.MASK])
            raise ValueError(f"map is {self.map!r}, must be one of {known}, or None.")

    def reads(self, options: Options) -> str | None:
        """Find the map that the loss reads under these options.

        Args:
            options: options of a term.

        Returns:
            Name of the map; None: none.
        """
        return self.map if all(options.get(k) == v for k, v in self.map_if.items()) else None
