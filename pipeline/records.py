"""What passes between the floors: frozen records, and the letters that every shape in this package
is written in.

Shapes: B batch, C input channels, K output channels (classes), S the space axes: ``Z Y X`` for
volumes, ``Y X`` for images. A spatial array without channels is ``(*S)``, with channels ``(C,
*S)``, in a batch ``(B, C, *S)``. NIfTI arrays keep the axis order of their file; nothing in this
package assumes an orientation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


DONE, FAILED, WRONG, PARTIAL, AGAIN = 0, 1, 2, 3, 75
"""Exit codes of every command: done; something failed; command, config or data wrong; some files
failed; run me again.
"""


MILLIMETRES = {
    "m": 1000.0, "meter": 1000.0, "metre": 1000.0,
    "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0,
    "mm": 1.0, "millimeter": 1.0, "millimetre": 1.0,
    "um": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3, "micrometre": 1e-3,
    "nm": 1e-6, "nanometer": 1e-6, "nanometre": 1e-6,
    "angstrom": 1e-7, "\u00e5": 1e-7,
    "pm": 1e-9, "picometer": 1e-9, "picometre": 1e-9,
    "inch": 25.4, "in": 25.4,
}  # fmt: skip
"""Millimetres in a unit of length, by its names in OME-XML, OME-Zarr and ImageJ, in lower case."""

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
"""What must not reach a terminal or a log as it is: control characters but tab and line feed, other
ends of a line, reversals of the direction of text, and bytes of a file name that are no text.
"""

MOST_NAMES = 10_000
"""Names with a line feed that are kept in mind: nobody makes more of them but to do harm."""

_two_lines: set[str] = set()


def remember(name: str) -> None:
    """Keep in mind a name from the disk or the command line that holds a line feed, so that
    :func:`printable` knows it again.
    """
    if "\n" in name and not name.isspace() and len(_two_lines) < MOST_NAMES:
        _two_lines.add(name)


def printable(text: str) -> str:
    """Text for a terminal or a log: no name in it can end a line, move the cursor or hide what
    follows.

    >>> printable("a\\x1b[2J\\udcff.tif")
    'a\\\\x1b[2J\\\\udcff.tif'
    """
    if "\n" in text:
        for name in sorted((n for n in _two_lines if n in text), key=len, reverse=True):
            text = text.replace(name, name.replace("\n", "\\n"))
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """Something that the user can mend: wrong command, config or data.

    Commands print it without a traceback and exit 2.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedOptions:
    """An entry of a closed table (NETWORKS, METRICS, ...) and the options to call it with."""

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
class Case:
    """One sample on disk: paths, never pixels.

    ``image`` holds one path per file of channels (nnU-Net ``_0000``, ``_0001``).
    """

    id: str
    image: tuple[Path, ...]
    targets: Mapping[str, Path] = field(default_factory=dict)
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One finding of the data check.

    ``suggestion`` says what to do; a warning does not stop a run.
    """

    path: Path
    problem: str
    suggestion: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {self.path}: {self.problem}. {self.suggestion}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where an array lies in the world, as far as its file says: enough to write another array in
    the same place.

    ``format`` is ``"nifti"``, ``"tiff"``, ``"image"`` (PNG, JPEG) or ``"none"``; ``meta`` is
    JSON-able and private to ``files``.
    """

    format: str = "none"
    meta: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What a reader of this file should be told: where its numbers may mean something else than
    they seem to.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldResult:
    """What one fold left behind.

    ``metrics`` holds the mean out-of-fold metrics of each model: ``{"best": {...}, "swa": {...}}``.
    """

    fold: int
    status: Literal["completed", "failed", "stopped"]
    best_epoch: int = -1
    score: float | None = None
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    checkpoint: str = ""
    chosen: str = "best"
    epochs: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One voice of an ensemble: a run directory (or a folder of soft predictions), the folds that
    speak, and its weight.
    """

    run: Path
    folds: tuple[int, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model file: the resolved config as nested dicts, and weights by name.

    It rebuilds its own network.
    """

    config: Mapping[str, Any]
    channels: tuple[int, int]
    """Input and output channels, which follow from the data and not from the config."""
    fold: int
    epoch: int
    score: float | None
    weights: Mapping[str, torch.Tensor]
    kind: str = "best"
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    """What the training data looked like, for the checks of prediction: ``layout``, ``family`` (of
    grids), ``codes``, ``spacing`` (median, mm), ``class_names``. Files of before version 2 have
    none of it.
    """
    plugins: tuple[Mapping[str, str], ...] = ()
    """``name`` and ``sha256`` of the plugins that the config needs."""
