"""The table of losses by name, and the maps that they read."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.config import Config, OptionTypeError, bind
from pipeline.data import derived
from pipeline.losses.betti import betti_matching
from pipeline.losses.entry import Kind, LossEntry
from pipeline.losses.image import charbonnier, l1, ms_ssim, mse
from pipeline.losses.masked import Loss
from pipeline.losses.overlap import ce, dice, focal, tversky, variance
from pipeline.losses.perceptual import missing, perceptual, trial
from pipeline.losses.retouch import masked_l1, masked_laplacian, masked_sobel, total_variation
from pipeline.losses.topology import (
    boundary,
    cldice,
    connectivity,
    few,
    skeleton_recall,
    surface_recall,
)
from pipeline.records import LossTerm
from pipeline.registry import Registry

_LABELS: tuple[Kind, ...] = ("labels",)
_SOFT: tuple[Kind, ...] = ("labels", "soft")
_IMAGES: tuple[Kind, ...] = ("image",)

LOSSES: Registry[LossEntry] = Registry(
    "loss",
    {
        "dice": LossEntry(dice, _SOFT),
        "tversky": LossEntry(tversky, _SOFT),
        "ce": LossEntry(ce, _SOFT),
        "focal": LossEntry(focal, _LABELS),
        "variance": LossEntry(variance, _LABELS),
        "cldice": LossEntry(cldice, _LABELS, repeats={"iterations": 1000}, trial=few),
        "skeleton_recall": LossEntry(skeleton_recall, _LABELS, map="skeleton"),
        "surface_recall": LossEntry(surface_recall, _LABELS, map="medial_surface"),
        "boundary": LossEntry(boundary, _LABELS, map="distance"),
        "connectivity": LossEntry(connectivity, _LABELS),
        "betti_matching": LossEntry(betti_matching, _LABELS, slow=True),
        "l1": LossEntry(l1, _IMAGES),
        "mse": LossEntry(mse, _IMAGES),
        "charbonnier": LossEntry(charbonnier, _IMAGES),
        "ms_ssim": LossEntry(ms_ssim, _IMAGES, repeats={"levels": 16}),
        "perceptual": LossEntry(
            perceptual,
            _IMAGES,
            map=derived.MASK,
            map_if={"reduce": "mask"},
            trial=trial,
            warning=missing,
        ),
        "masked_l1": LossEntry(masked_l1, _IMAGES, map=derived.MASK),
        "masked_sobel": LossEntry(masked_sobel, _IMAGES, map=derived.MASK),
        "masked_laplacian": LossEntry(masked_laplacian, _IMAGES, map=derived.MASK),
        "total_variation": LossEntry(total_variation, _IMAGES),
    },
    record=LossEntry,
)


def for_target(kind: str) -> list[str]:
    """List the losses that read a kind of target.

    Args:
        kind: ``labels``, ``image`` or ``soft``.

    Returns:
        Their names.

    Example:
        >>> for_target("soft")
        ['dice', 'tversky', 'ce']
    """
    return [name for name, entry in LOSSES.items() if kind in entry.targets]


def reads(terms: Iterable[LossTerm]) -> list[derived.MapRequest]:
    """List the maps that loss terms read besides their targets.

    Args:
        terms: loss terms; unknown names read none.

    Returns:
        The maps, one for each term that reads one.
    """
    found = [_read_by(term) for term in terms]
    return [required for required in found if required is not None]


def maps(config: Config) -> dict[str, derived.MapRequest]:
    """Collect all maps that a config needs.

    Args:
        config: the config.

    Returns:
        The maps by their name in a sample, see :func:`pipeline.data.derived.wanted`.

    Raises:
        ConfigError: for ``data.change`` without an image target.
    """
    return derived.wanted(config, reads(config.losses))


def _read_by(term: LossTerm) -> derived.MapRequest | None:
    name = LOSSES[term.name].reads(term.options) if term.name in LOSSES else None
    return None if name is None else derived.of_term(name, term)


def make(term: LossTerm, where: str) -> Loss:
    """Make the loss of a term.

    Args:
        term: name and options of the loss.
        where: name of the term in the message.

    Returns:
        ``loss(head, target, valid)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for an unknown name, or an option that is unknown or has a wrong value.
    """
    try:
        factory = bind(LOSSES, term, where)
    except OptionTypeError as error:
        raise error.in_own_words(lambda: LOSSES[term.name].make(**term.options)) from None
    return factory()
