"""What stands in the documents that commands leave for each other, as schemas of
:func:`pipeline.files.read_document`.

Keys that are not named here may be there and are kept. ``NotRequired`` keys came later than the
oldest files that are read, or stand only in some of them. Numbers that were NaN are null in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict


@dataclass(frozen=True)
class Rule:
    """What a value has to be beside its kind; ``words`` follow those of the kind: ``a whole number
    from 0``.
    """

    holds: Callable[[Any], bool]
    words: str


Index = Annotated[int, Rule(lambda value: 0 <= value < 10**6, "from 0 to 999,999")]
"""A number of a fold."""

Channels = Annotated[int, Rule(lambda value: 1 <= value <= 2**16, "from 1 to 65,536")]
Size = Annotated[int, Rule(lambda value: 0 <= value < 2**40, "from 0 to 2^40")]
Name = Annotated[
    str,
    Rule(
        lambda value: 0 < len(value) <= 255 and "/" not in value and value not in (".", ".."),
        "that can be a file's name",
    ),
]
Scores = dict[str, float | None]
CaseScores = dict[str, float | dict[str, list[int]] | None]
"""Of one case; ``counts`` of the competition's score maps a dimension to numbers of features."""


# --- a run ----------------------------------------------------------------------------------------


class Result(TypedDict):
    """``fold_N/result.json``: the fields of :class:`pipeline.records.FoldResult`, and the scores by
    model and case.
    """

    fold: Index
    status: Literal["completed", "failed", "stopped"]
    best_epoch: int
    score: float | None
    metrics: dict[str, Scores]
    checkpoint: str | None
    chosen: Literal["best", "swa"]
    epochs: int
    seconds: float
    error: str | None
    cases: NotRequired[dict[str, dict[str, CaseScores]]]


class PlacedCase(TypedDict):
    image: NotRequired[list[str]]
    targets: NotRequired[dict[str, str]]
    group: NotRequired[str | None]


class ListedCase(PlacedCase):
    content: dict[str, str | None]


Places = dict[str, PlacedCase]
"""What a report reads of ``cases.json``."""

Listing = dict[str, ListedCase]
"""``cases.json``: where each case of a run lies, its group, and the hash of what it holds."""


class Sides(TypedDict):
    train: list[str]
    val: list[str]


class Splits(TypedDict):
    folds: list[Sides]


class ReportedFolds(TypedDict):
    count: NotRequired[Annotated[int, Rule(lambda value: 0 <= value <= 1000, "from 0 to 1,000")]]


class ReportedData(TypedDict):
    dims: NotRequired[Literal[2, 3]]
    classes: NotRequired[
        Annotated[int, Rule(lambda value: 0 <= value <= 2**16, "from 0 to 65,536")]
    ]
    ignore_label: NotRequired[int | None]
    binarise: NotRequired[float | None]
    folds: NotRequired[ReportedFolds]


class ReportedConfig(TypedDict):
    """What a report reads of a run's ``config.yaml``."""

    data: NotRequired[ReportedData]


class FoldRow(TypedDict):
    """A fold in a run's summary.json; what is not there is a gap in a report."""

    fold: Index
    status: str
    best_epoch: NotRequired[int]
    score: NotRequired[float | None]
    metrics: NotRequired[dict[str, Scores | None] | None]
    chosen: NotRequired[str]
    epochs: NotRequired[int | None]
    seconds: NotRequired[float | None]
    error: NotRequired[str | None]


class ScoredCase(TypedDict):
    fold: NotRequired[Index]
    group: NotRequired[str | int | None]
    metrics: NotRequired[CaseScores]


class RunSummary(TypedDict):
    name: NotRequired[str]
    task: NotRequired[str]
    monitor: NotRequired[str]
    decision: NotRequired[str]
    folds: NotRequired[list[FoldRow]]
    out_of_fold: NotRequired[Scores]
    pooled: NotRequired[Scores]
    baselines: NotRequired[dict[str, Scores]]
    class_names: NotRequired[dict[str, str] | None]
    cases: NotRequired[dict[str, ScoredCase]]
    units: NotRequired[dict[str, str] | None]


Baselines = dict[str, Scores]
TrackerIds = dict[str, str | None]


class Gain(TypedDict):
    mean: float
    low: float
    high: float


class Choice(TypedDict):
    text: str


class TunedRow(TypedDict):
    name: str
    mean: Scores
    gains: dict[str, Gain]
    chosen: dict[str, Choice]


class NamedPart(TypedDict):
    name: str
    options: NotRequired[dict[str, Any]]


class Tuned(TypedDict):
    """``tuning/result.json``."""

    metric: NamedPart
    rows: list[TunedRow]


class KeptScores(TypedDict):
    """A line of ``tuning/scores.jsonl``."""

    key: str
    scores: CaseScores


class Epoch(TypedDict):
    """A line of ``log.jsonl``."""

    epoch: Size


# --- predictions ----------------------------------------------------------------------------------


class PredictedFile(TypedDict):
    id: str
    status: NotRequired[str]


class Predictions(TypedDict):
    """``summary.json`` of a prediction or an ensemble."""

    files: NotRequired[list[PredictedFile]]
    task: NotRequired[str]
    classes: NotRequired[int]
    class_names: NotRequired[dict[str, str] | None]
    ignore_label: NotRequired[int | None]
    postprocess: NotRequired[list[NamedPart]]
    inputs: NotRequired[Size]
    plugins: NotRequired[list[PluginRecord]]


class MadeFrom(TypedDict):
    """What a member of an ensemble was predicted from."""

    models: dict[str, str]
    predict: dict[str, Any]
    inputs: dict[str, list[list[Any]]]


class Scale(TypedDict):
    low: list[float]
    high: list[float]
    to: Annotated[list[float], Rule(lambda value: len(value) == 2, "of two numbers")]
    clip: bool


class Place(TypedDict):
    format: Literal["nifti", "tiff", "zarr", "image", "none"]
    meta: dict[str, Any]
    notes: NotRequired[list[str]]


Pair = Annotated[list[float], Rule(lambda value: len(value) == 2, "of two numbers")]
Row = Annotated[list[float | None], Rule(lambda value: len(value) == 4, "of four numbers")]


class NiftiMeta(TypedDict):
    header: str
    endian: Literal["<", ">"]
    affine: Annotated[list[Row], Rule(lambda value: len(value) == 4, "of four rows")]
    shape: NotRequired[list[Size]]


class TiffMeta(TypedDict):
    dims: NotRequired[Literal[2, 3]]
    imagej: NotRequired[bool | str]
    spacing: NotRequired[float]
    unit: NotRequired[str | float | None]
    resolution: NotRequired[
        Annotated[list[Pair], Rule(lambda value: len(value) == 2, "of two pairs")]
    ]
    resolution_unit: NotRequired[int | None]


class ZarrMeta(TypedDict):
    dims: NotRequired[Literal[2, 3]]
    version: NotRequired[str | None]
    units: NotRequired[list[str | None] | None]
    scale: NotRequired[list[float] | None]
    translation: NotRequired[list[float]]


class PlainMeta(TypedDict):
    dims: NotRequired[Literal[2, 3]]


class NiftiPlace(TypedDict):
    meta: NiftiMeta


class TiffPlace(TypedDict):
    meta: TiffMeta


class ZarrPlace(TypedDict):
    meta: ZarrMeta


class PlainPlace(TypedDict):
    meta: PlainMeta


class NiftiSoft(TypedDict):
    geometry: NiftiPlace


class TiffSoft(TypedDict):
    geometry: TiffPlace


class ZarrSoft(TypedDict):
    geometry: ZarrPlace


class PlainSoft(TypedDict):
    geometry: PlainPlace


PLACES: dict[str, Any] = {
    "nifti": NiftiSoft,
    "tiff": TiffSoft,
    "zarr": ZarrSoft,
    "image": PlainSoft,
    "none": PlainSoft,
}
"""Where the array of a format lies, in a document that has it under ``geometry``."""


class SoftFacts(TypedDict):
    """``soft/ID.json``."""

    task: NotRequired[str]
    suffix: NotRequired[str]
    dtype: NotRequired[str]
    channels: NotRequired[Channels]
    scale: NotRequired[dict[str, Any] | None]
    image: NotRequired[list[str]]
    heads: NotRequired[list[Name]]
    geometry: Place


# --- models ---------------------------------------------------------------------------------------


Word = Annotated[str, Rule(lambda value: len(value) <= 100, "of at most 100 letters")]


class TrainedOn(TypedDict):
    layout: NotRequired[Word | None]
    family: NotRequired[Word | None]
    codes: NotRequired[Word | None]
    spacing: NotRequired[list[Annotated[float, Rule(lambda value: value > 0, "above 0")]] | None]
    class_names: NotRequired[dict[str, str] | None]


PLUGIN = re.compile(r"[^/\\\x00-\x1f\x7f]{1,252}\.py")
"""Names of plugins: they are written to runs and model files."""


class PluginRecord(TypedDict):
    """A plugin that something was made with: never a path, and never run."""

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
    """The header of a model file (:class:`pipeline.records.Checkpoint`)."""

    config: dict[str, Any]
    channels: Annotated[list[Channels], Rule(lambda value: len(value) == 2, "of two numbers")]
    fold: int
    epoch: int
    score: float | None
    kind: str
    trained_on: NotRequired[TrainedOn | None]
    plugins: NotRequired[Plugins]


Number = Annotated[Any, Rule(lambda value: type(value) in (int, float), "a number")]
"""Also NaN and infinity, which the headers of states hold as they are."""


class MeansSoFar(TypedDict):
    sums: dict[str, Number]
    counts: dict[str, Number]


class EpochRecord(TypedDict):
    epoch: Size
    seconds: float
    lr: float
    train_loss: Number


class OptimizerFacts(TypedDict):
    state: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]


class StateHeader(TypedDict):
    """The header of a state, from which a fold goes on."""

    epoch: Size
    best_score: float | None
    best_epoch: int
    stale: Size
    history: list[EpochRecord]
    step: NotRequired[Size]
    means: NotRequired[MeansSoFar]
    seconds: NotRequired[float]
    optimizer: OptimizerFacts
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    metrics_version: NotRequired[int]


# --- data sets and the store ----------------------------------------------------------------------


class DatasetJson(TypedDict):
    """What is read of an nnU-Net ``dataset.json``."""

    file_ending: NotRequired[str]
    channel_names: NotRequired[dict[str, Any] | list[Any]]
    modality: NotRequired[dict[str, Any] | list[Any]]


class TestSplit(TypedDict):
    """A ``split.json`` of which ``pipeline.evaluate`` reads the test side."""

    test: NotRequired[list[str]]


class StoredArray(TypedDict):
    path: Name
    bytes: Size
    shape: list[Size]
    dtype: str
    sum: NotRequired[str]


class Manifest(TypedDict):
    key: dict[str, Any]
    arrays: dict[str, StoredArray]


class StoredGrid(TypedDict):
    family: str
    codes: NotRequired[str | None]
    spacing: NotRequired[list[float] | None]


class CaseFacts(TypedDict):
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


class KnownFacts(TypedDict):
    key: dict[str, Any]
    facts: CaseFacts
