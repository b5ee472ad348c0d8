"""Records that modules pass to each other, and the words and shape letters of this package.

Shapes: ``B`` batch, ``C`` input channels, ``K`` output channels (classes), ``S`` the space axes:
``Z Y X`` for volumes, ``Y X`` for images. A spatial array without channels is ``(*S)``, with
channels ``(C, *S)``, in a batch ``(B, C, *S)``. NIfTI arrays keep the axis order of their file;
nothing in this package assumes an orientation; ``data.orientation`` asks for one.

Data:
    case: one sample of a data set: its image files, its targets and its id.
    group: cases that belong together (a scroll, a patient) and stay on one side of a split.
    block: consecutive slices of a stack that are a case of their own (``data.folds.by: block``).
    fold: one division of the cases into training and held-out cases, and the network trained on it.
    fold all: the one network that is trained on every case, from which none is held out.
    run: the folder that training writes: resolved config, splits, one folder for each fold.
    role: name of an array of a case: ``image``, a target, or the field of view.
    target: what a network learns to predict, by name (``label``, ``target``): a file of the case,
        or computed (``mask`` of ``data.change``).
    kind: what a role or a target holds: ``labels``, ``image``, ``mask`` or ``soft``.
    map: an array computed from a target for a loss, e.g. its skeleton or distances.
    change mask: soft mask in [0, 1] of what differs between an image and its target, ``mask``.
    valid: where a voxel counts: 1 (True); 0 (False) where it is ignored or outside.
    case properties: what one reading of a case's files found: shapes, intensities, label values.
    cached case: a case as arrays that are ready for training, memory-mapped from the cache.
    intensity scale: the linear map of a normalisation, kept so that predictions can be mapped back.
    grid (world grid): axis order, spacing and position of an array in the world, from its file.
    model space: the grid on which a network sees images: axes, box and spacing of the config.

Networks and losses:
    head: a named output of a network, ``(B, K, *S)``; ``main`` is the one that predictions use.
    loss term: one weighted loss between a head and a target.
    named options: an entry of a table by name, with the options to call it with.
    multiple: the total stride of a network along each axis; tiles start and end on multiples of it.

Prediction:
    tile: a box of voxels that goes through the network in one piece.
    origin: the first voxel of a tile.
    halo: voxels at inner tile faces that are computed, for context, and not used.
    slab: consecutive rows along the first space axis, the unit of work with bounded memory.
    soft prediction: float ``(K, *S)`` before a decision: probabilities, or intensities of images.
    decide: make labels (or an image in the input's type) from a soft prediction.
    answer: what was decided: a label map or an image, as it is written and scored.
    member: a run or a folder of soft predictions in an ensemble, with its weight.
    component: a connected component of a mask or label map, never a part of a network.

As nnU-Net uses them:
    region: a union of classes that is trained, decided and scored as one.
    plan (reserved): settings derived from the properties of a data set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch


DONE, FAILED, WRONG, PARTIAL, AGAIN = 0, 1, 2, 3, 75
"""Exit codes of every command.

Done; something failed; command, config or data wrong; some files failed; run me again.
"""


MILLIMETRES = {
    "m": 1000.0, "meter": 1000.0, "metre": 1000.0,
    "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0,
    "mm": 1.0, "millimeter": 1.0, "millimetre": 1.0,
    "um": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3, "micron": 1e-3, "microns": 1e-3,
    "micrometer": 1e-3, "micrometre": 1e-3,
    "nm": 1e-6, "nanometer": 1e-6, "nanometre": 1e-6,
    "angstrom": 1e-7, "\u00e5": 1e-7,
    "pm": 1e-9, "picometer": 1e-9, "picometre": 1e-9,
    "inch": 25.4, "in": 25.4,
}  # fmt: skip
"""Millimetres in a unit of length, by its names in OME-XML, OME-Zarr and ImageJ, in lower case."""

ALL: Literal["all"] = "all"
"""Fold of the one model that is trained on every case; nothing is held out from it."""

FoldName: TypeAlias = int | Literal["all"]
"""Number of a fold, or :data:`ALL`."""

METRICS_VERSION = 2
"""Raised when a score changes its meaning.

Runs, states and tuning journals carry theirs and finish by it; what has none is version 1.

2: validation pooled over the patches of an epoch, classes of the whole data set, nothing to count
is NaN, distances in millimetres where the files carry a unit, ``voi`` and ``adapted_rand`` of whole
labelings.
"""


_CONTROL = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
"""What must not reach a terminal or a log as it is.

Control characters but tab and line feed, other line separators, bidirectional overrides, and
surrogates: bytes of a file name that are no text.
"""

MOST_NAMES = 10_000
"""Names with a line feed that are remembered; more than this come only from hostile input."""

_two_lines: set[str] = set()


def remember(name: str) -> None:
    """Remember a name with a line feed, so that :func:`printable` escapes it.

    Other names are ignored, and so is everything beyond ``MOST_NAMES``.

    Args:
        name: a name from the disk or the command line.
    """
    if "\n" in name and not name.isspace() and len(_two_lines) < MOST_NAMES:
        _two_lines.add(name)


def printable(text: str) -> str:
    """Escape a text for a terminal or a log.

    No name in the result can end a line, move the cursor or hide what follows.

    Args:
        text: a message, with line feeds of its own or without.

    Returns:
        The text with control characters, and line feeds of remembered names, as backslash escapes.

    Example:
        >>> printable("a\\x1b[2J\\udcff.tif")
        'a\\\\x1b[2J\\\\udcff.tif'
    """
    if "\n" in text:
        for name in sorted((n for n in _two_lines if n in text), key=len, reverse=True):
            text = text.replace(name, name.replace("\n", "\\n"))
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def seed_number(fold: FoldName) -> int:
    """The number of a fold in seeds.

    Args:
        fold: its number, or ``all``.

    Returns:
        The number; -1 for ``all``, which no fold has.

    Example:
        >>> seed_number(3), seed_number("all")
        (3, -1)
    """
    return -1 if isinstance(fold, str) else fold


class UserError(Exception):
    """Something that the user can correct: wrong command, config or data.

    Commands print it without a traceback and exit with code 2.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedOptions:
    """An entry of a table (NETWORKS, METRICS, ...) by name, and the options to call it with."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerm:
    """One weighted loss: ``weight * LOSSES[name](outputs[head], batch[target])``."""

    name: str
    target: str = "label"
    head: str = "main"
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepHead:
    """How a network's deep-supervision head is trained unless loss terms name it."""

    weight: float
    """Factor of the losses of head ``main`` in the sum; those of all heads sum to 1.

    0: not trained.
    """
    stride: tuple[int, ...]
    """Voxels of the input along each axis that a voxel of the head stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One sample on disk: paths, never voxels."""

    id: str
    image: tuple[Path, ...]
    """One path for each file of channels (nnU-Net ``_0000``, ``_0001``)."""
    targets: Mapping[str, Path] = field(default_factory=dict)
    """Path of each target, by the target's name."""
    group: str | None = None
    """Cases of one group stay on one side of a split; None: the case has no group."""
    block: int | None = None
    """Number of the block that the case is of its stack; None: it is a whole stack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One finding of the data check."""

    path: Path
    problem: str
    suggestion: str
    """What to do about it."""
    severity: Literal["error", "warning"] = "error"
    """A warning does not stop a run."""

    def __str__(self) -> str:
        return f"{self.severity}: {self.path}: {self.problem}. {self.suggestion}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where an array lies in the world, as far as its file says.

    Enough to write another array in the same place.
    """

    format: str = "none"
    """``nifti``, ``itk`` (MetaImage, NRRD, DICOM), ``tiff``, ``zarr``, ``image`` (PNG, JPEG) or
    ``none``.
    """
    meta: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able, and private to ``files``."""
    notes: tuple[str, ...] = ()
    """What a user of this file should know: where its numbers may not mean what they seem to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldResult:
    """Outcome of training one fold."""

    fold: FoldName
    status: Literal["completed", "failed", "stopped"]
    best_epoch: int = -1
    """Epoch of the best monitored value, counted from 0; -1: none."""
    score: float | None = None
    """The monitored value of that epoch; None: there is none."""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Mean out-of-fold metrics of each model: ``{"best": {...}, "swa": {...}}``.

    ``last`` in place of ``best`` with ``train.keep: last``; empty for fold ``all``.
    """
    checkpoint: str = ""
    chosen: str = "best"
    """Kind of the model that is better on the held-out cases: ``best`` (or ``last``) or ``swa``.

    Of fold ``all``, which has none, ``swa`` where weights were averaged, else ``last``.
    """
    epochs: int = 0
    """Epochs that were trained."""
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of an ensemble."""

    run: Path
    """A run folder, or a folder of soft predictions."""
    folds: tuple[int, ...] | Literal["all"] = ()
    """Numbers of the ``fold_N`` that take part; empty: all of a run, or the folder itself.

    ``all``: ``fold_all``, the one model that was trained on every case.
    """
    weight: float = 1.0

    @property
    def fold_names(self) -> tuple[FoldName, ...]:
        """The folds that are named; ``("all",)`` where ``folds`` is ``all``."""
        return (self.folds,) if isinstance(self.folds, str) else self.folds


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Content of a model file: resolved config and weights, enough to rebuild the network."""

    config: Mapping[str, Any]
    """The resolved config as nested dicts."""
    channels: tuple[int, int]
    """Input and output channels, which follow from the data and not from the config."""
    fold: FoldName
    epoch: int
    score: float | None
    weights: Mapping[str, torch.Tensor]
    """Weights by name."""
    kind: str = "best"
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    """Properties of the training data, for the checks of prediction.

    Keys: ``layout``, ``family`` (of grids), ``codes``, ``spacing`` (median, mm), ``class_names``,
    ``channel_names``.
    Files from before version 2 have none of them.
    """
    plugins: tuple[Mapping[str, str], ...] = ()
    """``name`` and ``sha256`` of the plugins that the config needs."""
