"""Schemas of the documents that commands write for each other.

They are checked by :func:`pipeline.files.read_document`. Keys that are not named here may be
present and are kept. ``NotRequired`` keys were added after the oldest files that can be read, or
are present only in some of them. Numbers that were NaN are null in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict


@dataclass(frozen=True)
class Rule:
    """Condition on a value beside its type.

    Args:
        holds: whether a value meets it.
        words: how a message names it, after the type: ``a whole number`` ``from 0``.
    """

    holds: Callable[[Any], bool]
    words: str


Index = Annotated[int, Rule(lambda value: 0 <= value < 10**6, "from 0 to 999,999")]
"""Number of a fold."""
FoldName = Index | Literal["all"]
"""Number of a fold, or ``all``: the model of all cases."""

Channels = Annotated[int, Rule(lambda value: 1 <= value <= 2**16, "from 1 to 65,536")]
"""Number of channels."""
Size = Annotated[int, Rule(lambda value: 0 <= value < 2**40, "from 0 to 2^40")]
"""Count of voxels, bytes, steps or epochs."""
Name = Annotated[
    str,
    Rule(
        lambda value: 0 < len(value) <= 255 and "/" not in value and value not in (".", ".."),
        "that can be a file's name",
    ),
]
"""Name of a file or folder inside a known folder, never a path."""
Scores = dict[str, float | None]
"""Metrics by name; null where there was nothing to count."""
CaseScores = dict[str, float | dict[str, list[int]] | None]
"""Metrics of one case; ``counts`` of the competition's score maps a dimension to feature counts."""


# --- a run ----------------------------------------------------------------------------------------


class Result(TypedDict):
    """``fold_N/result.json``: fields of :class:`pipeline.records.FoldResult`, and scores.

    Scores are by model and case.
    """

    fold: FoldName
    status: Literal["completed", "failed", "stopped"]
    best_epoch: int
    score: float | None
    metrics: dict[str, Scores]
    checkpoint: str | None
    chosen: Literal["best", "swa", "last"]
    epochs: int
    seconds: float
    error: str | None
    cases: NotRequired[dict[str, dict[str, CaseScores]]]


class PlacedCase(TypedDict):
    """Paths and group of a case."""

    image: NotRequired[list[str]]
    targets: NotRequired[dict[str, str]]
    group: NotRequired[str | None]


class ListedCase(PlacedCase):
    """Paths and group of a case, and the hashes of what its files hold, by role."""

    content: dict[str, str | None]


Places = dict[str, PlacedCase]
"""The part of ``cases.json`` that a report reads."""

Listing = dict[str, ListedCase]
"""``cases.json``: paths, group and content hashes of each case of a run."""


class Sides(TypedDict):
    """Ids of the training cases and of the held-out cases of a fold."""

    train: list[str]
    val: list[str]


class Splits(TypedDict):
    """``splits.json``: the sides of each fold."""

    folds: list[Sides]
    file: NotRequired[str]
    """SHA-256 of the user's own file of folds; absent where there was none."""


OwnSplits = list[Sides] | Splits
"""File of ``data.folds.file``: nnU-Net's ``splits_final.json``, or ``splits.json`` of a run."""


class ReportedFolds(TypedDict):
    """The part of ``data.folds`` that a report reads."""

    count: NotRequired[Annotated[int, Rule(lambda value: 0 <= value <= 1000, "from 0 to 1,000")]]


class ReportedData(TypedDict):
    """The part of ``data`` that a report reads."""

    dims: NotRequired[Literal[2, 3]]
    classes: NotRequired[
        Annotated[int, Rule(lambda value: 0 <= value <= 2**16, "from 0 to 65,536")]
    ]
    ignore_label: NotRequired[int | None]
    binarise: NotRequired[float | None]
    folds: NotRequired[ReportedFolds]


class ReportedConfig(TypedDict):
    """The part of a run's ``config.yaml`` that a report reads."""

    data: NotRequired[ReportedData]


class FoldRow(TypedDict):
    """A fold in a run's ``summary.json``; a missing value is a gap in the report."""

    fold: Index
    status: str
    best_epoch: NotRequired[int]
    score: NotRequired[float | None]
    metrics: NotRequired[dict[str, Scores | None] | None]
    chosen: NotRequired[str]
    epochs: NotRequired[int | None]
    seconds: NotRequired[float | None]
    error: NotRequired[str | None]


class AllCases(TypedDict):
    """The model of all cases in a run's ``summary.json``; no case is held out to score it."""

    status: str
    epochs: NotRequired[int | None]
    seconds: NotRequired[float | None]
    chosen: NotRequired[str]
    error: NotRequired[str | None]


class ScoredCase(TypedDict):
    """A held-out case in a run's ``summary.json``."""

    fold: NotRequired[Index]
    group: NotRequired[str | int | None]
    metrics: NotRequired[CaseScores]


class RunSummary(TypedDict):
    """``summary.json`` of a run."""

    name: NotRequired[str]
    task: NotRequired[str]
    monitor: NotRequired[str]
    decision: NotRequired[str]
    folds: NotRequired[list[FoldRow]]
    all_cases: NotRequired[AllCases]
    out_of_fold: NotRequired[Scores]
    pooled: NotRequired[Scores]
    baselines: NotRequired[dict[str, Scores]]
    class_names: NotRequired[dict[str, str] | None]
    regions: NotRequired[dict[str, list[int]] | None]
    regions_class_order: NotRequired[list[int] | None]
    cases: NotRequired[dict[str, ScoredCase]]
    units: NotRequired[dict[str, str] | None]


Baselines = dict[str, Scores]
"""``baselines.json``: scores by the name of a trivial prediction."""
TrackerIds = dict[str, str | None]
"""``tracking.json``: the run's id in each tracker."""


class Gain(TypedDict):
    """Mean gain of a metric with its confidence interval."""

    mean: float
    low: float
    high: float


class Choice(TypedDict):
    """A candidate that tuning chose, as text."""

    text: str


class TunedRow(TypedDict):
    """A row of the table of tuning: scores, gains and choices of one method."""

    name: str
    mean: Scores
    gains: dict[str, Gain]
    chosen: dict[str, Choice]


class NamedOptionsJson(TypedDict):
    """:class:`pipeline.records.NamedOptions` as JSON."""

    name: str
    options: NotRequired[dict[str, Any]]


class Tuned(TypedDict):
    """``tuning/result.json``."""

    metric: NamedOptionsJson
    rows: list[TunedRow]


class KeptScores(TypedDict):
    """A line of ``tuning/scores.jsonl``: the scores of a candidate on a case."""

    key: str
    scores: CaseScores


class Epoch(TypedDict):
    """A line of ``log.jsonl``."""

    epoch: Size


# --- predictions ----------------------------------------------------------------------------------


class PredictedFile(TypedDict):
    """A case in the summary of a prediction or an ensemble."""

    id: str
    status: NotRequired[str]


class Predictions(TypedDict):
    """``summary.json`` of a prediction or an ensemble."""

    files: NotRequired[list[PredictedFile]]
    task: NotRequired[str]
    classes: NotRequired[int]
    class_names: NotRequired[dict[str, str] | None]
    regions: NotRequired[dict[str, list[int]] | None]
    regions_class_order: NotRequired[list[int] | None]
    ignore_label: NotRequired[int | None]
    postprocess: NotRequired[list[NamedOptionsJson]]
    inputs: NotRequired[Size]
    plugins: NotRequired[list[PluginRecord]]


class MadeFrom(TypedDict):
    """Models, settings and inputs that a member of an ensemble was predicted from."""

    models: dict[str, str]
    predict: dict[str, Any]
    inputs: dict[str, list[list[Any]]]


class AlignmentJson(TypedDict):
    """:class:`pipeline.grid.Alignment` as JSON."""

    axes: list[Index]
    flips: list[Index]


class CropJson(TypedDict):
    """:class:`pipeline.data.model_space.Crop` as JSON."""

    start: list[Index]
    stop: list[Size]
    size: list[Size]


class ResamplingJson(TypedDict):
    """:class:`pipeline.data.model_space.Resampling` as JSON."""

    old: list[Size]
    new: list[Size]
    coarse: Index | None
    coarse_back: Index | None
    image: Index
    labels: Index
    back: Index
    rule: str


class Space(TypedDict):
    """:class:`pipeline.data.model_space.ModelSpace` as JSON."""

    alignment: AlignmentJson
    crop: CropJson | None
    resampling: ResamplingJson | None
    spacing: list[float] | None


Pair = Annotated[list[float], Rule(lambda value: len(value) == 2, "of two numbers")]
"""Two numbers, such as a numerator and a denominator."""


class ChannelRangeJson(TypedDict):
    """:class:`pipeline.data.scales.ChannelRange` as JSON."""

    to: Pair
    clip: bool
    window: NotRequired[Pair | None]


class Scale(TypedDict):
    """:class:`pipeline.data.scales.IntensityScale` as JSON."""

    low: list[float]
    high: list[float]
    to: Pair
    clip: bool
    ranges: NotRequired[list[ChannelRangeJson]]


class GeometryJson(TypedDict):
    """:class:`pipeline.records.Geometry` as JSON."""

    format: Literal["nifti", "tiff", "zarr", "itk", "image", "none"]
    meta: dict[str, Any]
    notes: NotRequired[list[str]]


Row = Annotated[list[float | None], Rule(lambda value: len(value) == 4, "of four numbers")]
"""Row of an affine."""


class NiftiMeta(TypedDict):
    """``meta`` of the geometry of a NIfTI file."""

    header: str
    endian: Literal["<", ">"]
    affine: Annotated[list[Row], Rule(lambda value: len(value) == 4, "of four rows")]
    shape: NotRequired[list[Size]]


Axis = Annotated[list[float], Rule(lambda value: len(value) in (2, 3), "of two or three numbers")]
"""Numbers for each space axis."""


class ItkMeta(TypedDict):
    """``meta`` of the geometry of a MetaImage, NRRD or DICOM file."""

    affine: Annotated[
        list[Annotated[list[float], Rule(lambda value: len(value) == 4, "of four numbers")]],
        Rule(lambda value: len(value) == 4, "of four rows"),
    ]
    spacing: Axis
    origin: Axis
    directions: Annotated[
        list[Axis], Rule(lambda value: len(value) in (2, 3), "of two or three rows")
    ]
    placed: bool
    unit: str
    dims: NotRequired[Literal[2, 3]]


class TiffMeta(TypedDict):
    """``meta`` of the geometry of a TIFF file."""

    dims: NotRequired[Literal[2, 3]]
    imagej: NotRequired[bool | str]
    spacing: NotRequired[float]
    unit: NotRequired[str | float | None]
    resolution: NotRequired[
        Annotated[list[Pair], Rule(lambda value: len(value) == 2, "of two pairs")]
    ]
    resolution_unit: NotRequired[int | None]


class ZarrMeta(TypedDict):
    """``meta`` of the geometry of a Zarr array."""

    dims: NotRequired[Literal[2, 3]]
    version: NotRequired[str | None]
    units: NotRequired[list[str | None] | None]
    scale: NotRequired[list[float] | None]
    translation: NotRequired[list[float]]


class PlainMeta(TypedDict):
    """``meta`` of the geometry of a picture or an array without one."""

    dims: NotRequired[Literal[2, 3]]


class NiftiGeometry(TypedDict):
    """A geometry whose ``meta`` is of NIfTI."""

    meta: NiftiMeta


class ItkGeometry(TypedDict):
    """A geometry whose ``meta`` is of MetaImage, NRRD or DICOM."""

    meta: ItkMeta


class TiffGeometry(TypedDict):
    """A geometry whose ``meta`` is of TIFF."""

    meta: TiffMeta


class ZarrGeometry(TypedDict):
    """A geometry whose ``meta`` is of Zarr."""

    meta: ZarrMeta


class PlainGeometry(TypedDict):
    """A geometry whose ``meta`` has no more than the number of axes."""

    meta: PlainMeta


class NiftiSoft(TypedDict):
    """A document with a NIfTI geometry."""

    geometry: NiftiGeometry


class ItkSoft(TypedDict):
    """A document with the geometry of MetaImage, NRRD or DICOM."""

    geometry: ItkGeometry


class TiffSoft(TypedDict):
    """A document with a TIFF geometry."""

    geometry: TiffGeometry


class ZarrSoft(TypedDict):
    """A document with a Zarr geometry."""

    geometry: ZarrGeometry


class PlainSoft(TypedDict):
    """A document with the geometry of a picture or of none."""

    geometry: PlainGeometry


PLACES: dict[str, Any] = {
    "nifti": NiftiSoft,
    "itk": ItkSoft,
    "tiff": TiffSoft,
    "zarr": ZarrSoft,
    "image": PlainSoft,
    "none": PlainSoft,
}
"""Schemas of a document with a ``geometry``, by the format of its array."""


class SoftMetaJson(TypedDict):
    """``soft/ID.json``: properties of a soft prediction."""

    task: NotRequired[str]
    suffix: NotRequired[str]
    dtype: NotRequired[str]
    channels: NotRequired[Channels]
    scale: NotRequired[dict[str, Any] | None]
    image: NotRequired[list[str]]
    heads: NotRequired[list[Name]]
    geometry: GeometryJson


# --- models ---------------------------------------------------------------------------------------


Word = Annotated[str, Rule(lambda value: len(value) <= 100, "of at most 100 letters")]
"""A short text."""


class TrainedOn(TypedDict):
    """Properties of the training data of a model (:class:`pipeline.records.Checkpoint`)."""

    layout: NotRequired[Word | None]
    family: NotRequired[Word | None]
    codes: NotRequired[Word | None]
    spacing: NotRequired[list[Annotated[float, Rule(lambda value: value > 0, "above 0")]] | None]
    class_names: NotRequired[dict[str, str] | None]
    channel_names: NotRequired[list[str] | None]


PLUGIN = re.compile(r"[^/\\\x00-\x1f\x7f]{1,252}\.py")
"""Names of plugins: they are written to runs and model files."""


class PluginRecord(TypedDict):
    """Name and hash of a plugin that something was made with: never a path, and never run."""

    name: Annotated[
        str, Rule(lambda value: PLUGIN.fullmatch(value) is not None, "that names a file NAME.py")
    ]
    sha256: Annotated[
        str,
        Rule(
            lambda value: re.fullmatch("[0-9a-f]{64}", value) is not None,
            "of 64 hexadecimal digits",
        ),
    ]


Plugins = list[PluginRecord]
"""``plugins/plugins.json`` of a run."""


class ModelHeader(TypedDict):
    """Header of a model file (:class:`pipeline.records.Checkpoint`)."""

    config: dict[str, Any]
    channels: Annotated[list[Channels], Rule(lambda value: len(value) == 2, "of two numbers")]
    fold: int | Literal["all"]
    epoch: int
    score: float | None
    kind: str
    trained_on: NotRequired[TrainedOn | None]
    plugins: NotRequired[Plugins]


Number = Annotated[Any, Rule(lambda value: type(value) in (int, float), "a number")]
"""A number; also NaN and infinity, which the headers of states hold as they are."""


class MeansSoFar(TypedDict):
    """Sums and counts of the losses of an epoch that has not ended."""

    sums: dict[str, Number]
    counts: dict[str, Number]


class EpochRecord(TypedDict):
    """One epoch in the history of a state."""

    epoch: Size
    seconds: float
    lr: float
    train_loss: Number


class OptimizerHeader(TypedDict):
    """State and parameter groups of an optimiser, without tensors."""

    state: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]


class StateHeader(TypedDict):
    """Header of a state, from which a fold is resumed."""

    epoch: Size
    best_score: float | None
    best_epoch: int
    stale: Size
    history: list[EpochRecord]
    step: NotRequired[Size]
    means: NotRequired[MeansSoFar]
    seconds: NotRequired[float]
    optimizer: OptimizerHeader
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    metrics_version: NotRequired[int]


# --- data sets and the cache ----------------------------------------------------------------------


class DatasetJson(TypedDict):
    """The part of an nnU-Net ``dataset.json`` that is read."""

    file_ending: NotRequired[str]
    channel_names: NotRequired[dict[str, Any] | list[Any]]
    modality: NotRequired[dict[str, Any] | list[Any]]


class TestSplit(TypedDict):
    """``split.json``, of which ``pipeline.evaluate`` reads the test side."""

    test: NotRequired[list[str]]


class StoredArray(TypedDict):
    """One array of a cached case."""

    path: Name
    bytes: Size
    shape: list[Size]
    dtype: str
    sum: NotRequired[str]


class Manifest(TypedDict):
    """The arrays of a cached case, and the key that they were made from."""

    key: dict[str, Any]
    arrays: dict[str, StoredArray]


class StoredGrid(TypedDict):
    """:class:`pipeline.grid.Grid` as JSON, without its affine."""

    family: str
    codes: NotRequired[str | None]
    spacing: NotRequired[list[float] | None]


class IntensitiesJson(TypedDict):
    """:class:`pipeline.data.intensities.Intensities` as JSON."""

    count: Size
    mean: float
    squares: float
    start: float
    step: float
    counts: list[Size]


class CasePropertiesJson(TypedDict):
    """:class:`pipeline.data.properties.CaseProperties` as JSON."""

    id: str
    files: dict[str, list[dict[str, Any]]]
    shapes: dict[str, list[Size]]
    dtypes: dict[str, str]
    affines: dict[str, list[list[float | None]]]
    problems: list[Annotated[list[str], Rule(lambda value: len(value) == 3, "of three texts")]]
    nonfinite: dict[str, int]
    nonfinite_files: dict[str, int]
    constant: bool
    label_values: dict[str, dict[str, int]]
    content: str
    target_contents: dict[str, str]
    scale: Scale | None
    notes: dict[str, list[str]]
    scale_notes: list[str]
    outside: dict[str, Annotated[list[str], Rule(lambda value: len(value) == 2, "of two texts")]]
    grids: dict[str, StoredGrid | dict[str, Any]]
    space: NotRequired[Space | None]
    intensities: NotRequired[list[IntensitiesJson]]


class KnownProperties(TypedDict):
    """Properties of a case, and the key of the files that they belong to."""

    key: dict[str, Any]
    facts: CasePropertiesJson


# --- planning -------------------------------------------------------------------------------------


Text = Annotated[str, Rule(lambda value: len(value) <= 10_000, "of at most 10,000 letters")]
"""A text for people."""

Share = Annotated[float, Rule(lambda value: 0 <= value <= 1, "from 0 to 1")]
"""A part of a whole."""

LabelValue = Annotated[int, Rule(lambda value: abs(value) < 2**53, "below 2^53")]
"""Value of a label."""

Sizes = Annotated[list[Size], Rule(lambda value: len(value) in (2, 3), "of two or three numbers")]
"""Voxels along each space axis."""

Spacings = Annotated[
    list[Annotated[float, Rule(lambda value: value > 0, "above 0")]],
    Rule(lambda value: len(value) in (2, 3), "of two or three numbers"),
]
"""Millimetres along each space axis."""


class CaseFactsJson(TypedDict):
    """:class:`pipeline.planning.fingerprint.CaseFacts` as JSON, with label values as text."""

    id: Name
    shape: Sizes
    box: Sizes
    dtype: Word
    spacing: Spacings | None
    codes: Word | None
    family: Literal["nifti", "array"]
    voxels: dict[str, Size]
    components: dict[str, Size]
    centres: dict[str, list[Share]]
    extents: dict[str, Sizes]
    values: Size
    seconds: float


class ChannelFactsJson(TypedDict):
    """:class:`pipeline.planning.fingerprint.ChannelFacts` as JSON."""

    name: Text | None
    minimum: float
    maximum: float
    mean: float
    std: float
    median: float
    low: float
    high: float
    spread: float


class OddityJson(TypedDict):
    """:class:`pipeline.planning.fingerprint.Oddity` as JSON."""

    case: Text
    text: Text
    path: Text
    severity: Literal["error", "warning"]


class Fingerprint(TypedDict):
    """:class:`pipeline.planning.fingerprint.Fingerprint` as JSON, with label values as text."""

    format: int
    root: Text
    layout: Literal["competition", "nnunet", "folders"]
    folders: dict[str, str]
    dims: Literal[2, 3]
    task: Literal["labels", "image"]
    cases: list[CaseFactsJson]
    channels: list[ChannelFactsJson]
    class_names: dict[str, Text]
    regions: dict[str, list[LabelValue]] | None
    regions_class_order: list[LabelValue] | None
    ignore_label: LabelValue | None
    classes: Annotated[int, Rule(lambda value: 2 <= value <= 2**16, "from 2 to 65,536")]
    binarise: float | None
    test: str
    tests: Size
    groups: dict[str, Text]
    oddities: list[OddityJson]
