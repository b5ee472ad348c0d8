"""What one look at each file of a data set found: the facts that planning starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FORMAT = 1
"""Increased when meaning or fields change; kept fingerprints of another format are refused."""

MOST = 256
"""Label values of one case whose voxels, components, centres and extents are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFacts:
    """One training case. Axes are those of the file."""

    id: str
    shape: tuple[int, ...]
    """``(*S)`` of the image."""
    box: tuple[int, ...]
    """Size of the box outside of which every channel is 0."""
    dtype: str
    """Number type of the image's first file."""
    spacing: tuple[float, ...] | None
    """Millimetres between voxels; None where the file does not say."""
    codes: str | None
    """Axis codes such as ``LPS``; None where the file has none."""
    family: str
    """Family of its grid (:class:`pipeline.grid.Grid`)."""
    voxels: Mapping[int, int] = field(default_factory=dict)
    """Voxels of each value of the first target of labels, background included."""
    components: Mapping[int, int] = field(default_factory=dict)
    """Connected components (corners touch) of each value above 0."""
    centres: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    """Centre of mass of each value above 0 along each axis, as a share (0 to 1) of its length."""
    extents: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Size in voxels of the bounding box of each value above 0."""
    values: int = 0
    """Distinct values above 0 of the first target of labels; of more than :data:`MOST` the
    mappings hold the first.
    """
    seconds: float = 0.0
    """Time that reading and looking took, on one thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFacts:
    """Intensities of one image channel in the foreground of all cases (all voxels without labels).

    Cases weigh by their foreground.
    """

    name: str | None
    """As ``dataset.json`` calls it."""
    minimum: float
    maximum: float
    mean: float
    std: float
    median: float
    low: float
    """0.5 percentile."""
    high: float
    """99.5 percentile."""
    spread: float
    """Standard deviation of the cases' means over ``std``: small where all cases share a scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddity:
    """Something that a person should know of."""

    case: str
    """Id of the case; empty for the data set as a whole."""
    text: str
    """What is odd, with the value, and what to do about it."""
    path: str = ""
    """The file or folder; empty where it is none."""
    severity: str = "warning"
    """``error``: training refuses the data until it is mended; ``warning``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Facts of a data set."""

    root: str
    layout: str
    """``competition``, ``nnunet`` or ``folders``."""
    folders: Mapping[str, str]
    """Folder by role, of the layout ``folders``."""
    dims: int
    task: str
    """``labels`` or ``image``."""
    cases: tuple[CaseFacts, ...]
    channels: tuple[ChannelFacts, ...]
    class_names: Mapping[int, str] = field(default_factory=dict)
    regions: Mapping[str, tuple[int, ...]] | None = None
    """Unions of label values by name, as ``dataset.json`` has them."""
    regions_class_order: tuple[int, ...] | None = None
    ignore_label: int | None = None
    classes: int = 2
    """Label values from 0 to the largest class, background included; without the ignored label."""
    binarise: float | None = None
    """``data.binarise``: label values above it are class 1, which the facts of cases count so."""
    test: str = ""
    """Folder of images to predict, of the layout ``folders``; empty: the usual one, or none."""
    tests: int = 0
    """Images to predict that lie in the folder."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Group by id, where ``train.csv`` says them."""
    oddities: tuple[Oddity, ...] = ()
