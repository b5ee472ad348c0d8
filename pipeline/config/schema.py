"""The config of a system as frozen dataclasses; the text under each field is the manual of its key.

Rules of one field stand beside it, rules of several in ``__post_init__``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.config import regions as region_rules
from pipeline.config.errors import require, require_at_least, shown
from pipeline.records import LossTerm, NamedOptions

STRICT = {"extra": "forbid"}

MOST_FOLDS = 1000
"""Most folds of a run.

Each is trained by itself, and every command that reads a run looks for all of them.
"""


DECIDING = ("regions", "threshold", "hysteresis", "walls", "watershed_boundaries", "argmax")
"""Steps of post-processing that take probabilities."""

LONGEST_PATTERN = 1000
"""Most characters of a regular expression."""


def _brackets(pattern: str) -> int:
    """Number of groups of a regular expression; -1 where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a nested set, for example, is no fault
            return re.compile(pattern).groups if len(pattern) <= LONGEST_PATTERN else -1
    except (re.error, OverflowError, RecursionError):
        return -1


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Section ``data.folds``: how cases are divided for cross-validation."""

    __pydantic_config__ = STRICT
    count: int = 5
    """Number of folds."""
    by: Literal["case", "group", "block"] = "case"
    """``case``: plain shuffled KFold over cases.

    ``group``: cases of one group (scroll, patient) stay on one side.
    ``block``: for one big stack or a few. Each is divided along one axis into ``count`` consecutive
    blocks, which are cases ``ID@0``, ``ID@1``, ... of their own; block k of every stack is held out
    in fold k. Groups then do not matter for the folds.
    """
    margin: int = 16
    """``by: block``: slices between neighbouring blocks that belong to no block.

    Neighbouring slices are near copies. Without a margin the network is trained on some that are
    as good as held out, and scores are too high.
    """
    axis: int | None = None
    """``by: block``: axis that stacks are divided along, in the order of their arrays.

    0 is Z of TIFF, Zarr and NumPy volumes, X of NIfTI, MetaImage, NRRD and DICOM, and Y of
    pictures. ``null``: the longest axis of each stack in voxels, the first of several.
    """
    file: str | None = None
    """Own folds instead: a JSON list of ``{"train": [ids], "val": [ids]}``, one for each fold.

    As nnU-Net's ``splits_final.json``. The path is below ``data.root`` unless absolute. ``count``
    must be its length; ``by`` and ``pattern`` then only say what may not be on both sides. Cases
    in no fold are not used; those of ``train`` alone are not scored.
    """
    pattern: str | None = None
    """Regular expression whose first capturing group finds the group in a case's id.

    For example ``'_(\\d+)[LR]$'``, of at most 1000 characters.
    ``null``: groups stand in ``train.csv``.
    """

    def __post_init__(self) -> None:
        require(
            self.pattern is None or _brackets(self.pattern) >= 1,
            f"data.folds.pattern is {shown(self.pattern)}, must be a regular expression with one"
            f" bracket, e.g. '_(\\d+)[LR]$', of at most {LONGEST_PATTERN} letters.",
            "data.folds.pattern",
        )
        require(
            self.count >= 2,
            f"data.folds.count is {self.count}, must be at least 2. For one split train"
            " --fold 0 of 5.",
            "data.folds.count",
        )
        require(
            self.count <= MOST_FOLDS,
            f"data.folds.count is {self.count}, must be at most {MOST_FOLDS}.",
            "data.folds.count",
        )
        require_at_least(0, "data.folds", margin=self.margin)
        require(
            self.file is None or self.by != "block",
            "data.folds.by is block, which makes the folds itself, and data.folds.file names"
            " others. Keep one.",
            "data.folds.by",
            "data.folds.file",
        )


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Section ``data.patch``: size and choice of training samples."""

    __pydantic_config__ = STRICT
    size: tuple[int, ...] = (128, 128, 128)
    """Voxels along each space axis of a training sample."""
    foreground: tuple[float, float] | None = (0.3, 0.7)
    """Wanted share of foreground among the labelled voxels of a patch, ``[low, high]``.

    ``null``: positions are drawn uniformly.
    """
    oversample: float | None = None
    """Share of each batch's samples that are centred on foreground, e.g. 0.33, as in nnU-Net.

    In these a class is drawn uniformly among those of the case (with ``data.regions`` a region),
    then one of its voxels; all other samples are drawn uniformly, with ``data.ignore_label`` around
    a labelled voxel. ``foreground`` and ``tries`` then have no effect. ``null``: not so.
    """
    tries: int = 10
    """Positions drawn before the one nearest to the wanted share is taken.

    Thin sheets may never reach 30 %; the share achieved is logged.
    """
    batch: int = 2
    """Samples per step."""
    per_case: int = 1
    """Patches drawn from each training case in an epoch."""
    steps: int | None = None
    """Batches of an epoch whose cases are drawn uniformly with replacement, e.g. 250 in nnU-Net.

    ``per_case`` then has no effect. ``null``: an epoch has ``per_case`` patches of every case.
    """
    grid: float | None = None
    """Overlap factor of a fixed grid, e.g. 0.25, instead of ``per_case`` random patches.

    An epoch then has every grid patch of every case once. Neighbours share this part of their edge;
    the last one ends at the border.
    """
    changed: float | None = None
    """With ``data.change``: least share of patches that hold some of its mask, e.g. 0.5.

    Random patches are then drawn around places of the mask; of a grid, grid patches without any are
    left out, other ones in each epoch. ``null``: patches are drawn regardless of the mask.
    """
    border: Literal["zero", "mirror"] = "zero"
    """What fills a patch where the image is smaller.

    ``zero``: 0 after normalisation (in labels the ignored value); ``mirror``: the image mirrored at
    its border.
    """

    def __post_init__(self) -> None:
        require(
            self.changed is None or 0 < self.changed <= 1,
            f"data.patch.changed is {self.changed}, must satisfy 0 < changed <= 1, or null.",
            "data.patch.changed",
        )
        require(
            self.grid is None or 0 <= self.grid < 1,
            f"data.patch.grid is {self.grid}, must satisfy 0 <= grid < 1, or null.",
            "data.patch.grid",
        )
        require(
            all(n >= 1 for n in self.size),
            f"data.patch.size is {list(self.size)}, every entry must be at least 1.",
            "data.patch.size",
        )
        require_at_least(
            1, "data.patch", tries=self.tries, batch=self.batch, per_case=self.per_case
        )
        require(
            self.oversample is None or 0 <= self.oversample <= 1,
            f"data.patch.oversample is {self.oversample}, must satisfy 0 <= oversample <= 1, or"
            " null.",
            "data.patch.oversample",
        )
        require(
            self.steps is None or self.steps >= 1,
            f"data.patch.steps is {self.steps}, must be at least 1, or null.",
            "data.patch.steps",
        )
        for name in ("oversample", "steps"):
            require(
                self.grid is None or getattr(self, name) is None,
                f"data.patch.{name} draws patches at random, and data.patch.grid takes those of a"
                " grid. Keep one.",
                f"data.patch.{name}",
                "data.patch.grid",
            )
        require(
            self.oversample is None or self.changed is None,
            "data.patch.oversample and data.patch.changed both say what patches are drawn around."
            " Keep one.",
            "data.patch.oversample",
            "data.patch.changed",
        )
        if self.foreground is not None:
            low, high = self.foreground
            require(
                0 <= low <= high <= 1,
                f"data.patch.foreground is [{low}, {high}], must satisfy 0 <= low <= high <= 1.",
                "data.patch.foreground",
            )


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Section ``data.frames``: parts of an image that metrics are computed on."""

    __pydantic_config__ = STRICT
    fov: str | None = None
    """Role (a folder of ``data.folders``) of masks of the field of view.

    Every metric of labels is then given twice: ``NAME_fov`` inside it, ``NAME_full`` over the whole
    image. It is no target, and training sees whole images.
    """
    padded: tuple[int, ...] | None = None
    """With ``fov``: also ``NAME_padded``, over the image with background added up to this size.

    Some published scores were computed so.
    """

    def __post_init__(self) -> None:
        require(
            self.padded is None or self.fov is not None,
            "data.frames.padded stands without fov; name the role of the masks.",
            "data.frames.padded",
        )
        require(
            self.padded is None or all(n >= 1 for n in self.padded),
            f"data.frames.padded is {self.padded}, every entry must be at least 1.",
            "data.frames.padded",
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """Section ``data.change``: how the mask of what differs between input and target is made."""

    __pydantic_config__ = STRICT
    by: Literal["value", "colour"] = "value"
    """What is compared, in levels of 0..255.

    ``value``: that of HSV (the greatest of R, G and B), which does not see a pure change of hue;
    ``colour``: the greatest difference of any channel.
    """
    magnifier: float = 1.0
    """Factor of the difference."""
    threshold: float = 3.0
    """A pixel has changed where the magnified difference is above this."""
    opening: int = 1
    """Radius in pixels of an opening that removes specks, such as those of JPEG. 0: none."""
    dilation: int = 3
    """Radius in pixels by which what is left then grows. 0: none."""
    blur: float = 2.0
    """Standard deviation in pixels of a Gaussian that softens the edge. 0: none."""

    def __post_init__(self) -> None:
        require(
            self.magnifier > 0,
            f"data.change.magnifier is {self.magnifier}, must be above 0.",
            "data.change.magnifier",
        )
        require_at_least(
            0,
            "data.change",
            threshold=self.threshold,
            opening=self.opening,
            dilation=self.dilation,
            blur=self.blur,
        )


@dataclass(frozen=True, kw_only=True)
class Resample:
    """Section ``data.resample``: how ``data.spacing`` is reached, and left again."""

    __pydantic_config__ = STRICT
    images: Literal[0, 1, 3] = 3
    """Order of the spline for images: 0 nearest, 1 linear, 3 cubic, clipped to the range."""
    labels: Literal[0, 1] = 1
    """Order for labels: 1 resamples each class as a mask and takes one class for each voxel."""
    rule: Literal["argmax", "half"] = "argmax"
    """Which class a voxel of a label map gets.

    ``argmax``: the one with the greatest share. ``half``: nnU-Net's, the last whose share is above
    one half, else background, which leaves holes where three classes meet.
    """
    probabilities: Literal[0, 1] = 1
    """Order for predicted probabilities on their way back to the grid of the file.

    Predicted images go back with the order of ``images``.
    """
    coarse: float | None = 3.0
    """Spacing of the coarsest axis over that of the finest from which slices are resampled apart.

    In the plane by the orders above, across it by the nearest slice. ``null``: never.
    """

    def __post_init__(self) -> None:
        require(
            self.coarse is None or self.coarse >= 1,
            f"data.resample.coarse is {self.coarse}, must be at least 1, or null.",
            "data.resample.coarse",
        )


CODES = "RL", "AP", "SI"
"""Letters of axis codes; each pair is one axis of the body."""


def is_orientation(codes: str) -> bool:
    """Whether a text is the axis codes of a volume, such as ``RAS``."""
    return len(codes) == 3 and all(any(c in pair for c in codes) for pair in CODES)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Section ``data``: the data set, its preprocessing and the training samples."""

    __pydantic_config__ = STRICT
    root: str = "data"
    """Folder of the data set; ``--data-dir`` replaces it."""
    layout: Literal["auto", "competition", "nnunet", "folders"] = "auto"
    """Layout of the data set's folder.

    ``competition``: ``train_images/ID.tif``, ``train_labels/ID.tif``, ``test_images/``,
    ``train.csv``. ``nnunet``: ``imagesTr/ID_0000.*``, ``labelsTr/ID.*``, ``imagesTs/``.
    ``folders``: the folders named below, files paired by equal stem; a ``split.json`` beside them,
    ``{"test": [ID, ...]}``, names images that are not trained on. ``auto``: whichever is there.
    A folder of the DICOM slices of one series counts as an image of its name, ``ID/`` or
    ``ID_0000/``.
    """
    folders: Mapping[str, str] = field(
        default_factory=lambda: {"image": "images", "label": "masks"}
    )
    """Layout ``folders`` only: role to folder.

    ``image`` is the input, every other role is a target of the same name.
    """
    test: str = "test_images"
    """Layout ``folders`` only: folder of images without targets; may be absent."""
    dims: Literal[2, 3] = 3
    """Space axes of a sample: 3 for volumes, 2 for images."""
    targets: Mapping[str, Literal["labels", "image"]] = field(default_factory=dict)
    """Kind of each target.

    Default: ``{label: labels}`` for task labels, ``{target: image}`` for task image.
    """
    classes: int = 2
    """Label values including background.

    2: one output channel and a sigmoid; more: one channel per class and a softmax; with
    ``regions``: one channel per region and a sigmoid for each.
    """
    class_names: Mapping[int, str] | None = None
    """Name of each label value, e.g. ``{1: Brainstem, 2: Parotid left}``.

    They stand in logs, tables, reports and JSON. ``null``: those of the data set's
    ``dataset.json``, where it has any.
    """
    channel_names: tuple[str, ...] | None = None
    """Name of each channel of the images, e.g. ``[CT, PET]``, for messages and model files.

    ``null``: those of the data set's ``dataset.json``, where it has any.
    """
    regions: Mapping[str, tuple[int, ...] | int] | None = None
    """Unions of label values that are trained, decided and scored as one, by name.

    ``{whole tumour: [1, 2, 3], core: [2, 3], enhancing: 3}``. Each has an output channel with a
    sigmoid, in this order; losses and metrics are those of each region and their mean. ``null``:
    classes are trained, also where ``dataset.json`` names regions (a warning says so).
    """
    regions_class_order: tuple[int, ...] | None = None
    """Label value that is written for each of ``regions``; later ones overwrite earlier ones.

    ``[1, 2, 3]`` of the example above. Every label that is in a region has to come back from its
    regions.
    """
    ignore_label: int | None = None
    """Label value that no loss and no metric counts."""
    binarise: float | None = None
    """Two classes only: label values above this are foreground, all others background.

    For masks kept as JPEG or resized with interpolation. ``null``: every value must be a class.
    """
    frames: Frames = field(default_factory=Frames)
    """Parts of an image that metrics are computed on."""
    change: Change | None = None
    """Pairs of images: make a mask of what differs between them.

    It is a soft target called ``mask`` for losses, metrics and the choice of patches. ``{}`` takes
    the usual settings; ``null``: no such mask.
    """
    folds: Folds = field(default_factory=Folds)
    orientation: str | None = None
    """Axis codes that volumes are brought to, such as ``RAS``; answers come back to their file's.

    Oblique scans count by their nearest codes and are not rotated. Files must say how they lie
    (NIfTI and other medical formats). ``null``: all files of a data set must lie alike.
    """
    axes: tuple[int, ...] | None = None
    """Order of the axes: ``axes[i]`` is the file's axis that becomes axis i, such as ``[2, 0, 1]``.

    As nnU-Net's ``transpose_forward``. With ``orientation`` write its letters in the wanted order
    instead. ``null``: as files have them.
    """
    crop: Literal["nonzero"] | None = None
    """``nonzero``: images are cut to the box outside of which all channels are 0.

    What lies outside is background in answers. ``null``: images are taken whole.
    """
    spacing: tuple[float | None, ...] | None = None
    """Millimetres between voxels along each axis, in the order of ``orientation`` or ``axes``.

    Images, labels and predictions are resampled to it and back. ``null`` for an axis keeps that of
    each file. ``null``: nothing is resampled, and a network sees voxels of any size.
    """
    resample: Resample = field(default_factory=Resample)
    """How ``spacing`` is reached; without effect where that is ``null``."""
    normalise: NamedOptions | tuple[NamedOptions, ...] = field(
        default_factory=lambda: NamedOptions(name="percentile", options={"low": 0.5, "high": 99.5})
    )
    """Entry of NORMALISE for all channels, or a list with one for each, in training and prediction.

    ``percentile``, ``range``, ``zscore`` (with ``mask: true`` of the non-zero part of the image,
    and 0 outside), ``ct``, ``rescale`` (each image's minimum and maximum), ``rgb`` (0..255 to 0..1)
    and ``none``. The numbers of ``ct`` (``low``, ``high``, ``mean``, ``std``) are found in the
    foreground of all training cases unless they are given, and stand in the run's config and its
    model files.
    """
    patch: Patch = field(default_factory=Patch)
    augment: tuple[NamedOptions, ...] = ()
    """Entries of AUGMENT, applied in this order.

    Each has its own probability (``p``, 0.5 unless stated). ``spatial`` has to be the first: it is
    drawn before a patch is read. nnU-Net's list: docs/nnunet.md.
    """
    store: str | None = None
    """Folder of the memory-mapped cache.

    Default: ``<root>/store`` where data_prep made one, else ``<run>/store``.
    """
    workers: int = 0
    """Loader processes. 0 loads in the main process. Results do not depend on it."""

    def __post_init__(self) -> None:
        require(
            len(self.patch.size) == self.dims,
            f"data.patch.size {list(self.patch.size)} has {len(self.patch.size)} axes, data.dims is"
            f" {self.dims}. Give one number per axis.",
            "data.patch.size",
        )
        require(
            self.classes >= 2,
            f"data.classes is {self.classes}; background counts, so it is at least 2.",
            "data.classes",
        )
        require(
            "image" in self.folders,
            "data.folders names no 'image' folder; add e.g. {image: images, label: masks}.",
            "data.folders",
        )
        require(
            self.binarise is None or self.classes == 2,
            f"data.binarise is {self.binarise}, which needs data.classes: 2, not {self.classes}.",
            "data.binarise",
        )
        require(
            isinstance(self.normalise, NamedOptions) or len(self.normalise) > 0,
            "data.normalise is an empty list. Give one entry for all channels, or one for each.",
            "data.normalise",
        )
        padded = self.frames.padded
        require(
            padded is None or len(padded) == self.dims,
            f"data.frames.padded {padded} needs {self.dims} numbers.",
            "data.frames.padded",
        )
        require_at_least(0, "data", workers=self.workers)
        axis = self.folds.axis
        require(
            axis is None or 0 <= axis < self.dims,
            f"data.folds.axis is {axis}, must be from 0 to {self.dims - 1} (data.dims is"
            f" {self.dims}), or null.",
            "data.folds.axis",
        )
        self._require_labels()
        self._check_space()

    def _require_labels(self) -> None:
        """The rules of names and regions."""
        named = region_rules.name_faults(self.class_names, self.classes, self.ignore_label)
        for text in named:
            require(False, text, "data.class_names")
        names = self.channel_names
        require(
            names is None or all(n.strip() and n.isprintable() for n in names),
            f"data.channel_names is {shown(names)}, every name needs printable letters.",
            "data.channel_names",
        )
        found = region_rules.faults(
            self.regions, self.regions_class_order, self.classes, self.ignore_label
        )
        for text in found:
            require(False, text, "data.regions", "data.regions_class_order")

    @property
    def unions(self) -> tuple[tuple[int, ...], ...] | None:
        """Label values of each region, in the order of the output channels; None: no regions."""
        return None if self.regions is None else region_rules.unions(self.regions)

    def _check_space(self) -> None:
        """Rules of the keys that say in which space a network sees images."""
        codes, axes = self.orientation, self.axes
        require(
            codes is None or (self.dims == 3 and is_orientation(codes)),
            f"data.orientation is {codes!r}, must be three letters, one of each of R/L, A/P and"
            " S/I, such as 'RAS', and data.dims 3.",
            "data.orientation",
        )
        require(
            axes is None or sorted(axes) == list(range(self.dims)),
            f"data.axes is {axes and list(axes)}, must hold each of"
            f" {', '.join(map(str, range(self.dims)))} once.",
            "data.axes",
        )
        if codes is not None and axes is not None:
            ordered = "".join(codes[a] for a in axes)
            require(
                False,
                f"data.axes {list(axes)} stands beside data.orientation {codes!r}, which says the"
                f" order of axes itself. Write data.orientation: {ordered} and leave axes out.",
                "data.axes",
                "data.orientation",
            )
        spacing = self.spacing
        given = ", ".join("null" if s is None else f"{s:g}" for s in spacing or ())
        require(
            spacing is None
            or (len(spacing) == self.dims and all(s is None or 0 < s < 1e9 for s in spacing)),
            f"data.spacing is [{given}], must hold {self.dims} positive numbers"
            " of millimetres (null for an axis that keeps its own).",
            "data.spacing",
        )

    @property
    def has_space(self) -> bool:
        """Whether images are seen otherwise than as their files hold them."""
        return not (self.axes is self.orientation is self.spacing is self.crop is None)


@dataclass(frozen=True, kw_only=True)
class Average:
    """Section ``train.average``: stochastic weight averaging."""

    __pydantic_config__ = STRICT
    start: int = 40
    """First epoch (counted from 0) whose weights enter the average."""
    lr: float | None = 5e-5
    """Constant learning rate from that epoch on; ``null`` keeps the schedule."""
    decay: float | None = 0.9
    """Running average ``avg = decay * avg + (1 - decay) * weights`` after each epoch.

    ``null``: equal average of all epochs.
    """
    by: Literal["epoch", "step"] = "epoch"
    """``step``: the average is updated after every optimiser step, as an EMA with decay 0.999."""

    def __post_init__(self) -> None:
        require_at_least(0, "train.average", start=self.start)
        require(
            self.decay is None or 0 <= self.decay < 1,
            f"train.average.decay is {self.decay}, must be in [0, 1) or null.",
            "train.average.decay",
        )


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Section ``train.stop``: choice of the best epoch, and early stopping."""

    __pydantic_config__ = STRICT
    monitor: str = "val_loss"
    """Value that chooses the best epoch and ends training.

    ``val_loss``, or ``val_<metric>`` for any metric of ``train.validate``.
    """
    patience: int | None = 50
    """Epochs without improvement before the fold ends; ``null``: all epochs are trained."""

    def __post_init__(self) -> None:
        if self.patience is not None:
            require_at_least(1, "train.stop", patience=self.patience)


@dataclass(frozen=True, kw_only=True)
class Validate:
    """Section ``train.validate``: validation during training."""

    __pydantic_config__ = STRICT
    every: int = 1
    """Epochs between validations on fixed patches of the held-out cases.

    The last epoch is always validated.
    """
    per_case: int = 1
    """Fixed patches per held-out case."""
    metrics: tuple[NamedOptions, ...] = ()
    """Metrics of these patches, pooled, as ``val_<name>``.

    Default: ``dice`` for labels, ``psnr`` for images.
    """

    def __post_init__(self) -> None:
        require_at_least(1, "train.validate", every=self.every, per_case=self.per_case)


@dataclass(frozen=True, kw_only=True)
class InitFrom:
    """Section ``train.init_from``: weights to start from."""

    __pydantic_config__ = STRICT
    path: str
    """Model file (safetensors of this package) to start from."""
    allow_missing: bool = False
    """Accept weights of this network that the file lacks; they stay fresh."""
    allow_unused: bool = False
    """Accept weights of the file that this network lacks; they are skipped."""
    allow_shape: bool = False
    """Accept weights of another shape; they stay fresh."""
    fresh_heads: bool = False
    """Leave the output layers fresh whatever the file holds, as new classes need it.

    Another number of deep-supervision heads is then no mismatch either.
    """


@dataclass(frozen=True, kw_only=True)
class Train:
    """Section ``train``: optimisation, validation and what a fold keeps."""

    __pydantic_config__ = STRICT
    epochs: int = 300
    """Number of epochs, unless ``train.stop`` ends the fold before."""
    optimizer: NamedOptions = field(
        default_factory=lambda: NamedOptions(name="adam", options={"lr": 1e-4})
    )
    """Entry of OPTIMIZERS: adam, adamw, sgd, with the options of torch.optim."""
    schedule: NamedOptions = field(default_factory=lambda: NamedOptions(name="constant"))
    """Entry of SCHEDULES, stepped once an epoch.

    One of cosine_restarts, cosine, step, plateau, poly, one_cycle, constant.
    """
    keep: Literal["best", "last"] = "best"
    """Weights that a fold keeps: the last ones, or those of the best epoch by ``stop.monitor``.

    ``last``, as nnU-Net does: the best epoch by a few validation patches is mostly noise.
    """
    average: Average | None = None
    """Stochastic weight averaging; ``null`` switches it off."""
    stop: Stop = field(default_factory=Stop)
    validate: Validate = field(default_factory=Validate)
    accumulate: int = 1
    """Batches whose gradients are summed before one optimiser step."""
    clip: float | None = None
    """Largest norm of the gradient; ``null``: not clipped."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Automatic mixed precision on CUDA.

    On CPU only ``bf16`` has an effect, and it is slower on most machines.
    """
    compile: bool = False
    """``torch.compile`` the network."""
    channels_last: bool = False
    """Channels-last memory format. Faster on CUDA; slower for 3D on CPU."""
    init_from: InitFrom | None = None
    """Weights of a model file to start from; ``null``: fresh weights."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that are not trained, such as ``[encoder]``.

    Names of modules or the beginning of such names up to a dot, as in the weights of a model file.
    Their batch norms keep the statistics of ``init_from``; dropout goes on.
    """
    layer_decay: float | None = None
    """Factor of the learning rate from each level of the network to the one before it, e.g. 0.8.

    Output layers have the rate of the optimiser, the first layers the smallest one. All rates that
    a schedule or ``average`` names are those of the output layers. ``null``: one rate.
    """
    preview_every: int = 10
    """Epochs between TensorBoard pictures of a fixed held-out case; 0: none."""
    preview_steps: int = 0
    """Steps between ``training_preview.jpg`` of a fixed training batch, for task image; 0: none.

    The picture shows source, prediction and target.
    """
    keep_every: int = 0
    """Epochs between model files ``epoch_NNNN.safetensors`` that stay beside the best; 0: none."""
    sync_batchnorm: bool = False
    """With several CUDA ranks: batch norm over the samples of all of them."""
    timeout: float = 1800.0
    """Seconds after which a rank that does not answer is given up, and the job with it."""
    save_steps: int = 0
    """Steps after which the state is saved within an epoch, too; 0: only at its end."""
    track: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Trackers that also get parameters, metrics and the model (extra ``tracking``).

    One that fails is dropped with a warning.
    """

    def __post_init__(self) -> None:
        require_at_least(1, "train", epochs=self.epochs, accumulate=self.accumulate)
        require_at_least(
            0,
            "train",
            preview_every=self.preview_every,
            preview_steps=self.preview_steps,
            keep_every=self.keep_every,
            save_steps=self.save_steps,
        )
        require(
            self.timeout > 0,
            f"train.timeout is {self.timeout}, must be above 0 seconds.",
            "train.timeout",
        )
        require(
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            f"train.layer_decay is {self.layer_decay}, must satisfy 0 < layer_decay <= 1, or null.",
            "train.layer_decay",
        )
        require(
            self.clip is None or self.clip > 0,
            f"train.clip is {self.clip}, must be positive or null.",
            "train.clip",
        )
        if self.average is not None and self.epochs >= 1:
            require(
                self.average.start < self.epochs,
                f"train.average.start is {self.average.start} but train.epochs is {self.epochs}:"
                " averaging would never start. Lower start or set average: null.",
                "train.average",
            )


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Section ``predict``: tiling and averaging in prediction."""

    __pydantic_config__ = STRICT
    patch: tuple[int, ...] | Literal["whole"] | None = None
    """Tile size; ``whole``: each image in one piece; ``null``: the training patch size."""
    overlap: int = 32
    """Voxels that neighbouring tiles share along each axis.

    Tiles shorter than twice this share half.
    """
    window: Literal["gaussian", "hann", "feather", "constant"] = "gaussian"
    """Blending weight inside a tile; all are positive up to the last voxel."""
    one_sided: bool = True
    """Do not taper the window towards a border of the volume, where no other tile takes over."""
    halo: int = 0
    """Voxels at inner tile faces that are computed and thrown away."""
    norms: Literal["tile", "frozen", "exact"] = "tile"
    """Statistics of layers that depend on the whole tile (group and instance norm).

    ``tile``: of each tile by itself, with a warning that measures the difference; ``frozen``: of
    one pass over the whole image, reduced where it is large; ``exact``: of the whole image, found
    tile by tile, one pass for each such layer.
    """
    batch: int = 1
    """Tiles per forward pass."""
    flips: bool = False
    """Average over all axis flips (8 passes in 3D, 4 in 2D)."""
    scales: tuple[float, ...] = (1.0,)
    """Average over each tile enlarged or reduced by these factors."""

    def __post_init__(self) -> None:
        require_at_least(0, "predict", overlap=self.overlap, halo=self.halo)
        require_at_least(1, "predict", batch=self.batch)
        require(
            len(self.scales) > 0 and all(0.1 <= s <= 10 for s in self.scales),
            f"predict.scales is {list(self.scales)}, must hold numbers from 0.1 to 10.",
            "predict.scales",
        )
        if isinstance(self.patch, tuple):
            require(
                all(n > 2 * self.halo for n in self.patch),
                f"predict.patch {list(self.patch)} leaves nothing between two halos of {self.halo}."
                " Enlarge the patch.",
                "predict.patch",
                "predict.halo",
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The config of a system.

    Example:
        >>> config = Config(
        ...     name="demo",
        ...     network=NamedOptions(name="unet"),
        ...     losses=(LossTerm(name="dice"),),
        ... )
        >>> config.data.patch.size, config.targets
        ((128, 128, 128), {'label': 'labels'})
    """

    __pydantic_config__ = STRICT
    name: str
    """Name of the system; results go to ``runs/<name>`` unless ``--out`` says otherwise."""
    task: Literal["labels", "image"] = "labels"
    """Kind of prediction: a label for each voxel, or an image."""
    seed: int = 42
    """Seed of all random choices: folds, initial weights, patches, augmentation, dropout."""
    data: Data = field(default_factory=Data)
    network: NamedOptions
    """Entry of NETWORKS. Input and output channels follow from the data."""
    losses: tuple[LossTerm, ...]
    """Weighted terms; each names its head and its target."""
    metrics: tuple[NamedOptions, ...] = ()
    """Metrics of whole held-out cases after training."""
    train: Train = field(default_factory=Train)
    predict: Predict = field(default_factory=Predict)
    postprocess: tuple[NamedOptions, ...] = ()
    """Steps from soft prediction to labels, in this order.

    Without a deciding step (threshold, hysteresis, argmax) the task decides; ``data.regions`` are
    decided by the step ``regions`` (above 0.5 unless it says otherwise), which is put in front.
    Sizes of components and holes are in voxels (``dust: {below: 100}``), or in mm³ in their place
    (``dust: {mm3: 50}``) where the images carry a unit of length. ``dust`` and
    ``largest_component`` take ``classes``: ``each`` by itself, the ``foreground`` as one, or label
    values such as ``[1, 3]``.
    """
    plugins: tuple[str, ...] = ()
    """Files of Python that add entries to the tables (docs/extending.md).

    Paths are below the working folder unless absolute. They run because this file is the user's
    own; a run and a model file keep names and hashes instead of paths, and nothing stored there is
    run.
    """

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[\w.-]+", self.name) is not None,
            f"name is {self.name!r}; it becomes a folder: use letters, digits, '.', '_' and '-'.",
            "name",
        )
        require(
            len(self.losses) > 0,
            "losses is empty; add at least one term, e.g. - {name: dice}.",
            "losses",
        )
        fov = self.data.frames.fov
        require(
            fov not in self.targets,
            f"data.frames.fov is {fov!r}, which is a target; give the masks a role of their own.",
            "data.frames",
        )
        require(
            fov is None or self.task == "labels",
            f"data.frames.fov is {fov!r}, but frames are for task labels; this is {self.task!r}.",
            "data.frames",
        )
        if self.data.change is not None:
            require(
                self.task == "image",
                f"data.change compares pairs of images; this system's task is {self.task!r}. Take"
                " it away.",
                "data.change",
            )
            require(
                self.data.dims == 2,
                "data.change compares photographs: data.dims must be 2.",
                "data.change",
            )
            require(
                "mask" not in self.targets,
                "data.change makes a target called 'mask', and data.targets names files of it, too."
                " Keep one.",
                "data.change",
            )
        require(
            self.data.patch.changed is None or self.data.change is not None,
            "data.patch.changed chooses patches by the mask of data.change, which is not set. Add"
            " data.change: {}.",
            "data.patch.changed",
        )
        require(
            self.data.patch.oversample is None or "labels" in self.targets.values(),
            "data.patch.oversample centres patches on classes, but no target holds labels:"
            f" {dict(self.targets)}. Take it away.",
            "data.patch.oversample",
        )
        size = self.predict.patch
        require(
            not isinstance(size, tuple) or len(size) == self.data.dims,
            f"predict.patch {size} needs {self.data.dims} numbers.",
            "predict.patch",
        )
        self._require_regions()

    def _require_regions(self) -> None:
        """Regions go with labels, and begin post-processing with the step that decides them."""
        if self.data.regions is None or self.data.regions_class_order is None:
            return
        first = next(iter(self.targets.values()))
        require(
            self.task == "labels" and first == "labels",
            f"data.regions are unions of labels; this system's task is {self.task!r}. Take them"
            " away.",
            "data.regions",
        )
        order = list(self.data.regions_class_order)
        step = self.postprocess[0] if self.postprocess else None
        given = step.options.get("order", order) if step is not None else order
        if step is None or step.name not in DECIDING:
            steps = (NamedOptions(name="regions", options={"order": order}), *self.postprocess)
        elif step.name == "regions":
            new = NamedOptions(name="regions", options={**step.options, "order": order})
            steps = (new, *self.postprocess[1:])
        else:
            steps = self.postprocess
        require(
            step is None
            or step.name not in DECIDING[1:]
            or (order == [1] and step.name != "argmax"),
            f"postprocess.0: {step and step.name!r} does not write the labels of regions, {order}."
            " Use regions, with its option threshold, or leave it out.",
            "postprocess.0",
        )
        require(
            not isinstance(given, list | tuple) or list(given) == order,
            f"postprocess.0: 'regions' has order {shown(given)}, data.regions_class_order is"
            f" {order}. Leave order out of the step.",
            "postprocess.0",
        )
        # Here and nowhere else, so that every command, document and model file names the step.
        object.__setattr__(self, "postprocess", steps)

    @property
    def rules(self) -> str:
        """Name of the rules of predictions (``pipeline.tasks.TASKS``).

        ``regions`` where ``data.regions`` are set, else the task.
        """
        return self.task if self.data.regions is None else "regions"

    @property
    def targets(self) -> Mapping[str, str]:
        """Kind of each target, with the task's default."""
        return self.data.targets or (
            {"label": "labels"} if self.task == "labels" else {"target": "image"}
        )

    @property
    def kinds(self) -> Mapping[str, str]:
        """Kind of everything that a loss may be measured against.

        The targets, and ``mask`` (kind ``soft``) with ``data.change``.
        """
        return self.targets if self.data.change is None else {**self.targets, "mask": "soft"}

    @property
    def roles(self) -> Mapping[str, str]:
        """Kind of every file of a case beside its image.

        The targets, and the role named by ``data.frames.fov`` (kind ``mask``).
        """
        fov = self.data.frames.fov
        return self.targets if fov is None else {**self.targets, fov: "mask"}
