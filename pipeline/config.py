"""Every option that a system's YAML may hold, as frozen dataclasses with the manual under each field; load, override, dump.

The YAML is the user's interface and this file is its manual. Structure is checked before torch is imported; names from the
closed tables (networks, losses, ...) are checked by :func:`bind` as soon as the tables are.
"""

from __future__ import annotations

import collections.abc
import contextvars
import dataclasses
import difflib
import functools
import inspect
import json
import math
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.records import LossTerm, NamedOptions, UserError
from pipeline.registry import Registry, function_of

T = typing.TypeVar("T")

LARGEST_FILE = 2**18
"""Bytes of a YAML file: a hundred times a shipped config. Larger ones take a minute to read and are something else."""

DEEPEST = 32
"""Levels of a YAML file; a config has six."""

WIDEST = 10**100
"""Whole numbers below this, by amount, are read; what each key takes is said by key."""

OPTION = 2**63
"""Whole numbers below this, by amount, can be options of a table's entries: other libraries take no more."""

MOST_FOLDS = 1000
"""Folds of a run; each is trained by itself, and every command that reads a run looks for all of them."""

LONGEST_PATTERN = 1000
"""Letters of a regular expression."""

SHOWN = 200
"""Letters of a value, a key or a library's words that a message shows."""

MOST_SHOWN = 50
"""Faults of one file that are listed."""

STRICT = {"extra": "forbid"}


class ConfigError(UserError):
    """A YAML file, an override or an option of a table's entry that cannot be used. The message names key, value, rule and cure."""


class OptionTypeError(ConfigError):
    """An option of a table's entry whose value is not of the annotated type."""

    def in_own_words(self, call: Callable[[], object]) -> ConfigError:
        """What the entry itself says when it is called with that option, which names the rule better; else this error."""
        try:
            call()
        except ConfigError as own:
            return own
        except Exception:
            return self
        return self


def _brackets(pattern: str) -> int:
    """Groups of a regular expression, -1 where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a set in a set, say, which is no fault
            return re.compile(pattern).groups if len(pattern) <= LONGEST_PATTERN else -1
    except (re.error, OverflowError, RecursionError):
        return -1


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a config: the sentence to show, and the keys without which it would not be wrong."""

    text: str
    keys: tuple[str, ...] = ()
    severity: Literal["error", "warning"] = "error"


_found: contextvars.ContextVar[list[Problem] | None] = contextvars.ContextVar("_found", default=None)
"""Where the checks of a config's dataclasses put what they find while one is read; None where each raises at once."""


def _require(good: bool, message: str, *keys: str) -> None:
    """Raise ConfigError unless ``good``, or only take note while a whole config is read. ``keys`` would mend it if they were left out."""
    if good:
        return
    found = _found.get()
    if found is None:
        raise ConfigError(message)
    found.append(Problem(message, keys))


def _at_least(least: int, where: str, **values: float) -> None:
    for name, value in values.items():
        rule = "must not be negative" if least == 0 else f"must be at least {least}"
        _require(value >= least, f"{where}.{name} is {value}, {rule}.", f"{where}.{name}")


@dataclass(frozen=True, kw_only=True)
class Folds:
    __pydantic_config__ = STRICT
    count: int = 5
    """Number of folds."""
    by: Literal["case", "group"] = "case"
    """``case``: plain shuffled KFold over cases. ``group``: cases of one group (scroll, patient) stay on one side."""
    pattern: str | None = None
    """Regular expression whose first bracket finds the group in a case's id: ``'_(\\d+)[LR]$'``. ``null``: groups stand in ``train.csv``."""

    def __post_init__(self) -> None:
        _require(
            self.pattern is None or _brackets(self.pattern) >= 1,
            f"data.folds.pattern is {_shown(self.pattern)}, must be a regular expression with one bracket, e.g. '_(\\d+)[LR]$', "
            f"of at most {LONGEST_PATTERN} letters.",
            "data.folds.pattern",
        )
        _require(
            self.count >= 2,
            f"data.folds.count is {self.count}, must be at least 2. For one split train --fold 0 of 5.",
            "data.folds.count",
        )
        _require(
            self.count <= MOST_FOLDS,
            f"data.folds.count is {self.count}, must be at most {MOST_FOLDS}.",
            "data.folds.count",
        )


@dataclass(frozen=True, kw_only=True)
class Patch:
    __pydantic_config__ = STRICT
    size: tuple[int, ...] = (128, 128, 128)
    """Voxels along each space axis of a training sample."""
    foreground: tuple[float, float] | None = (0.3, 0.7)
    """Wanted share of foreground among the labelled voxels of a patch. ``null``: positions are drawn uniformly."""
    tries: int = 10
    """Positions drawn before the one nearest to the wanted share is taken. Thin sheets may never reach 30 %; the share achieved is logged."""
    batch: int = 2
    """Samples per step."""
    per_case: int = 1
    """Patches drawn from each training case in an epoch."""
    grid: float | None = None
    """Overlap factor of a fixed grid, e.g. 0.25: every slice of every case once an epoch instead of ``per_case`` random patches; neighbours share this part of their edge, the last one ends at the border."""
    changed: float | None = None
    """With ``data.change``: least share of patches that hold some of that difference_mask, e.g. 0.5. Random patches are then drawn around places of the difference_mask; of a grid, slices without any are left out of an epoch, others every time. ``null``: as it comes."""
    border: Literal["zero", "mirror"] = "zero"
    """What fills a patch where the image is smaller: 0 after normalisation (in labels the ignored value), or the image mirrored at its border."""

    def __post_init__(self) -> None:
        _require(
            self.changed is None or 0 < self.changed <= 1,
            f"data.patch.changed is {self.changed}, must satisfy 0 < changed <= 1, or null.",
            "data.patch.changed",
        )
        _require(
            self.grid is None or 0 <= self.grid < 1,
            f"data.patch.grid is {self.grid}, must satisfy 0 <= grid < 1, or null.",
            "data.patch.grid",
        )
        _require(
            all(n >= 1 for n in self.size), f"data.patch.size is {list(self.size)}, every entry must be at least 1.", "data.patch.size"
        )
        _at_least(1, "data.patch", tries=self.tries, batch=self.batch, per_case=self.per_case)
        if self.foreground is not None:
            low, high = self.foreground
            _require(
                0 <= low <= high <= 1,
                f"data.patch.foreground is [{low}, {high}], must satisfy 0 <= low <= high <= 1.",
                "data.patch.foreground",
            )


@dataclass(frozen=True, kw_only=True)
class Frames:
    __pydantic_config__ = STRICT
    fov: str | None = None
    """Role (a folder of ``data.folders``) of masks of the field of view. Every metric of labels is then given twice: ``NAME_fov`` inside it, ``NAME_full`` over the whole image; it is no target, and training sees whole images."""
    padded: tuple[int, ...] | None = None
    """With ``fov``: also ``NAME_padded``, over the image with background added up to this size, as some published scores were counted."""

    def __post_init__(self) -> None:
        _require(
            self.padded is None or self.fov is not None,
            "data.frames.padded stands without fov; name the role of the masks.",
            "data.frames.padded",
        )
        _require(
            self.padded is None or all(n >= 1 for n in self.padded),
            f"data.frames.padded is {self.padded}, every entry must be at least 1.",
            "data.frames.padded",
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    __pydantic_config__ = STRICT
    by: Literal["value", "colour"] = "value"
    """What is compared, in levels of 0..255: ``value`` of HSV (the greatest of R, G and B), which does not see a pure change of hue; ``colour``: the greatest difference of any channel."""
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
        _require(self.magnifier > 0, f"data.change.magnifier is {self.magnifier}, must be above 0.", "data.change.magnifier")
        _at_least(0, "data.change", threshold=self.threshold, opening=self.opening, dilation=self.dilation, blur=self.blur)


@dataclass(frozen=True, kw_only=True)
class Data:
    __pydantic_config__ = STRICT
    root: str = "data"
    """Folder of the data set; ``--data-dir`` replaces it."""
    layout: Literal["auto", "competition", "nnunet", "folders"] = "auto"
    """``competition``: ``train_images/ID.tif``, ``train_labels/ID.tif``, ``test_images/``, ``train.csv``. ``nnunet``: ``imagesTr/ID_0000.*``, ``labelsTr/ID.*``, ``imagesTs/``. ``folders``: the folders named below, files paired by equal stem; a ``split.json`` beside them, ``{"test": [ID, ...]}``, names images that are not trained on. ``auto``: whichever is there."""
    folders: Mapping[str, str] = field(default_factory=lambda: {"image": "images", "label": "masks"})
    """Layout ``folders`` only: role to folder. ``image`` is the input, every other role is a target of the same name."""
    test: str = "test_images"
    """Layout ``folders`` only: folder of images without targets; may be absent."""
    dims: Literal[2, 3] = 3
    """Space axes of a sample: 3 for volumes, 2 for images."""
    targets: Mapping[str, Literal["labels", "image"]] = field(default_factory=dict)
    """What each target is. Default: ``{label: labels}`` for task labels, ``{target: image}`` for task image."""
    classes: int = 2
    """Label values including background. 2: one output channel and a sigmoid; more: one channel per class and a softmax."""
    ignore_label: int | None = None
    """Label value that no loss and no metric counts."""
    binarise: float | None = None
    """Two classes only: label values above this are foreground, all others background; for masks kept as JPEG or resized with interpolation. ``null``: every value must be a class."""
    frames: Frames = field(default_factory=Frames)
    """Parts of an image that metrics count in."""
    change: Change | None = None
    """Pairs of images: make a mask of what differs between them, a soft target called ``mask`` for losses, metrics and the choice of patches. ``{}`` takes the usual settings; ``null``: no such mask."""
    folds: Folds = field(default_factory=Folds)
    normalise: NamedOptions = field(default_factory=lambda: NamedOptions(name="percentile", options={"low": 0.5, "high": 99.5}))
    """Entry of NORMALISE, the same in training and prediction."""
    patch: Patch = field(default_factory=Patch)
    augment: tuple[NamedOptions, ...] = ()
    """Entries of AUGMENT, applied in this order, each with its own probability (``p``, 0.5 unless stated)."""
    store: str | None = None
    """Folder of the memory-mapped store. Default: ``<root>/store`` where data_prep made one, else ``<run>/store``."""
    workers: int = 0
    """Loader processes. 0 loads in the main process. Results do not depend on it."""

    def __post_init__(self) -> None:
        _require(
            len(self.patch.size) == self.dims,
            f"data.patch.size {list(self.patch.size)} has {len(self.patch.size)} axes, data.dims is {self.dims}. Give one number per axis.",
            "data.patch.size",
        )
        _require(self.classes >= 2, f"data.classes is {self.classes}; background counts, so it is at least 2.", "data.classes")
        _require("image" in self.folders, "data.folders names no 'image' folder; add e.g. {image: images, label: masks}.", "data.folders")
        _require(
            self.binarise is None or self.classes == 2,
            f"data.binarise is {self.binarise}, which needs data.classes: 2, not {self.classes}.",
            "data.binarise",
        )
        padded = self.frames.padded
        _require(
            padded is None or len(padded) == self.dims, f"data.frames.padded {padded} needs {self.dims} numbers.", "data.frames.padded"
        )
        _at_least(0, "data", workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class Average:
    __pydantic_config__ = STRICT
    start: int = 40
    """First epoch (counted from 0) whose weights enter the average."""
    lr: float | None = 5e-5
    """Constant learning rate from that epoch on; ``null`` keeps the schedule."""
    decay: float | None = 0.9
    """Running average ``avg = decay * avg + (1 - decay) * weights`` after each epoch; ``null``: equal average of all epochs."""

    def __post_init__(self) -> None:
        _at_least(0, "train.average", start=self.start)
        _require(
            self.decay is None or 0 <= self.decay < 1,
            f"train.average.decay is {self.decay}, must be in [0, 1) or null.",
            "train.average.decay",
        )


@dataclass(frozen=True, kw_only=True)
class Stop:
    __pydantic_config__ = STRICT
    monitor: str = "val_loss"
    """Value that chooses the best epoch and ends training: ``val_loss`` or ``val_<metric>`` for any metric of ``train.validate``."""
    patience: int = 50
    """Epochs without improvement before the fold ends."""

    def __post_init__(self) -> None:
        _at_least(1, "train.stop", patience=self.patience)


@dataclass(frozen=True, kw_only=True)
class Validate:
    __pydantic_config__ = STRICT
    every: int = 1
    """Epochs between validations on fixed patches of the held-out cases. The last epoch is always validated."""
    per_case: int = 1
    """Fixed patches per held-out case."""
    metrics: tuple[NamedOptions, ...] = ()
    """Metrics of these patches, pooled, as ``val_<name>``; default ``dice`` for labels, ``psnr`` for images."""

    def __post_init__(self) -> None:
        _at_least(1, "train.validate", every=self.every, per_case=self.per_case)


@dataclass(frozen=True, kw_only=True)
class InitFrom:
    __pydantic_config__ = STRICT
    path: str
    """Model file (safetensors of this package) to start from."""
    allow_missing: bool = False
    """Accept weights of this network that the file lacks; they stay fresh."""
    allow_unused: bool = False
    """Accept weights of the file that this network lacks; they are skipped."""
    allow_shape: bool = False
    """Accept weights of another shape; they stay fresh."""


@dataclass(frozen=True, kw_only=True)
class Train:
    __pydantic_config__ = STRICT
    epochs: int = 300
    optimizer: NamedOptions = field(default_factory=lambda: NamedOptions(name="adam", options={"lr": 1e-4}))
    """Entry of OPTIMIZERS: adam, adamw, sgd, with the options of torch.optim."""
    schedule: NamedOptions = field(default_factory=lambda: NamedOptions(name="constant"))
    """Entry of SCHEDULES, stepped once an epoch: cosine_restarts, cosine, step, plateau, poly, one_cycle, constant."""
    average: Average | None = None
    """Stochastic weight averaging; ``null`` switches it off."""
    stop: Stop = field(default_factory=Stop)
    validate: Validate = field(default_factory=Validate)
    accumulate: int = 1
    """Batches whose gradients are summed before one optimiser step."""
    clip: float | None = None
    """Largest norm of the gradient; ``null``: not clipped."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Automatic mixed precision on CUDA; on CPU only ``bf16`` has an effect, and it is slower on most machines."""
    compile: bool = False
    """``torch.compile`` the network."""
    channels_last: bool = False
    """Channels-last memory format. Faster on CUDA; slower for 3D on CPU."""
    init_from: InitFrom | None = None
    preview_every: int = 10
    """Epochs between TensorBoard pictures of a fixed held-out case; 0: none."""
    preview_steps: int = 0
    """Steps between ``training_preview.jpg`` of a fixed training batch (source, prediction, target), task image; 0: none."""
    keep_every: int = 0
    """Epochs between model files ``epoch_NNNN.safetensors`` that stay beside the best; 0: none."""
    sync_batchnorm: bool = False
    """With several CUDA ranks: batch norm over the samples of all of them."""
    timeout: float = 1800.0
    """Seconds after which a rank that does not answer is given up, and the job with it."""
    save_steps: int = 0
    """Steps after which the state is saved within an epoch, too; 0: only at its end."""
    track: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Trackers that also get parameters, metrics and the model (extra ``tracking``). One that fails is dropped with a warning."""

    def __post_init__(self) -> None:
        _at_least(1, "train", epochs=self.epochs, accumulate=self.accumulate)
        _at_least(
            0,
            "train",
            preview_every=self.preview_every,
            preview_steps=self.preview_steps,
            keep_every=self.keep_every,
            save_steps=self.save_steps,
        )
        _require(self.timeout > 0, f"train.timeout is {self.timeout}, must be above 0 seconds.", "train.timeout")
        _require(self.clip is None or self.clip > 0, f"train.clip is {self.clip}, must be positive or null.", "train.clip")
        if self.average is not None and self.epochs >= 1:
            _require(
                self.average.start < self.epochs,
                f"train.average.start is {self.average.start} but train.epochs is {self.epochs}: averaging would never start. "
                "Lower start or set average: null.",
                "train.average",
            )


@dataclass(frozen=True, kw_only=True)
class Predict:
    __pydantic_config__ = STRICT
    patch: tuple[int, ...] | Literal["whole"] | None = None
    """Tile size; ``whole``: each image in one piece; ``null``: the training patch size."""
    overlap: int = 32
    """Voxels that neighbouring tiles share along each axis; tiles shorter than twice this share half."""
    window: Literal["gaussian", "hann", "feather", "constant"] = "gaussian"
    """Blending weight inside a tile. All are positive up to the last voxel."""
    one_sided: bool = True
    """Do not taper the window towards a border of the volume, where no other tile takes over."""
    halo: int = 0
    """Voxels at inner tile faces that are computed and thrown away."""
    norms: Literal["tile", "frozen", "exact"] = "tile"
    """Statistics of layers that depend on the whole tile (group and instance norm). ``tile``: of each tile by itself, with a warning that measures the difference; ``frozen``: of one pass over the whole image, reduced where it is large; ``exact``: of the whole image, found tile by tile, one pass for each such layer."""
    batch: int = 1
    """Tiles per forward pass."""
    flips: bool = False
    """Average over all axis flips (8 passes in 3D, 4 in 2D)."""
    scales: tuple[float, ...] = (1.0,)
    """Average over each tile enlarged or reduced by these factors."""

    def __post_init__(self) -> None:
        _at_least(0, "predict", overlap=self.overlap, halo=self.halo)
        _at_least(1, "predict", batch=self.batch)
        _require(
            len(self.scales) > 0 and all(0.1 <= s <= 10 for s in self.scales),
            f"predict.scales is {list(self.scales)}, must hold numbers from 0.1 to 10.",
            "predict.scales",
        )
        if isinstance(self.patch, tuple):
            _require(
                all(n > 2 * self.halo for n in self.patch),
                f"predict.patch {list(self.patch)} leaves nothing between two halos of {self.halo}. Enlarge the patch.",
                "predict.patch",
                "predict.halo",
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    __pydantic_config__ = STRICT
    name: str
    """Name of the system; results go to ``runs/<name>`` unless ``--out`` says otherwise."""
    task: Literal["labels", "image"] = "labels"
    """Kind of answer: a label for each voxel, or an image."""
    seed: int = 42
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
    """Steps from soft prediction to answer, in this order. Without a deciding step (threshold, hysteresis, argmax) the task decides."""
    plugins: tuple[str, ...] = ()
    """Files of Python that add entries to the tables, below the working folder unless absolute (docs/extending.md). They run because this
    file is the user's own; a run and a model file keep names and hashes instead of paths, and nothing that stands there is run."""

    def __post_init__(self) -> None:
        _require(
            re.fullmatch(r"[\w.-]+", self.name) is not None,
            f"name is {self.name!r}; it becomes a folder: use letters, digits, '.', '_' and '-'.",
            "name",
        )
        _require(len(self.losses) > 0, "losses is empty; add at least one term, e.g. - {name: dice}.", "losses")
        fov = self.data.frames.fov
        _require(
            fov not in self.targets,
            f"data.frames.fov is {fov!r}, which is a target; give the masks a role of their own.",
            "data.frames",
        )
        _require(
            fov is None or self.task == "labels",
            f"data.frames.fov is {fov!r}, but frames are for task labels; this is {self.task!r}.",
            "data.frames",
        )
        if self.data.change is not None:
            _require(
                self.task == "image",
                f"data.change compares pairs of images; this system's task is {self.task!r}. Take it away.",
                "data.change",
            )
            _require(self.data.dims == 2, "data.change compares photographs: data.dims must be 2.", "data.change")
            _require(
                "mask" not in self.targets,
                "data.change makes a target called 'mask', and data.targets names files of it, too. Keep one.",
                "data.change",
            )
        _require(
            self.data.patch.changed is None or self.data.change is not None,
            "data.patch.changed chooses patches by the mask of data.change, which is not set. Add data.change: {}.",
            "data.patch.changed",
        )
        size = self.predict.patch
        _require(
            not isinstance(size, tuple) or len(size) == self.data.dims,
            f"predict.patch {size} needs {self.data.dims} numbers.",
            "predict.patch",
        )

    @property
    def targets(self) -> Mapping[str, str]:
        """Kind of each target, with the task's default."""
        return self.data.targets or ({"label": "labels"} if self.task == "labels" else {"target": "image"})

    @property
    def kinds(self) -> Mapping[str, str]:
        """Kind of everything that a loss may be measured against: the targets, and ``soft`` for the difference_mask of ``data.change``."""
        return self.targets if self.data.change is None else {**self.targets, "mask": "soft"}

    @property
    def roles(self) -> Mapping[str, str]:
        """Kind of every file of a case beside its image: the targets, and ``mask`` for the field of view."""
        fov = self.data.frames.fov
        return self.targets if fov is None else {**self.targets, fov: "mask"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What reading a config found. Where there are problems, ``config`` has the keys in ``replaced`` at their defaults.

    It is None where even that gives no config.
    """

    config: Any
    problems: tuple[Problem, ...] = ()
    replaced: tuple[str, ...] = ()

    def relies_on(self, key: str) -> bool:
        """Whether a key, or one that holds it, was replaced: what is said about it would not be about the user's file."""
        return any(key == r or key.startswith(f"{r}.") for r in self.replaced)


def load(path: Path | str, overrides: typing.Sequence[str] | str = ()) -> Config:
    """Read a system's YAML, apply ``KEY=VALUE`` overrides (dotted keys, YAML values) and check everything.

    Raises ConfigError listing every fault found.
    """
    if isinstance(overrides, str):
        overrides = [overrides]
    problems: list[Problem] = []
    data = _read_with(Path(path), overrides, problems)
    if problems:
        raise ConfigError(_listed(problems))
    return from_dict(data, where=str(path))


def examine(path: Path, overrides: typing.Sequence[str] = ()) -> Reading:
    """As :func:`load`, but with the problems in a list, so that what else there is can be checked, too.

    Raises ConfigError only where the file is missing or no YAML.
    """
    problems: list[Problem] = []
    reading = _read(_read_with(path, overrides, problems), Config)
    return dataclasses.replace(reading, problems=(*problems, *reading.problems))


def _read_with(path: Path, overrides: typing.Sequence[str], problems: list[Problem]) -> dict[str, Any]:
    """The YAML file with the overrides; those that cannot be applied are left out and become problems."""
    if not path.is_file():
        have = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(
            f"{path}: no such config file. " + (f"There are: {', '.join(have)}." if have else f"{path.parent} holds no YAML file.")
        )
    data = read_yaml(path)
    for text in overrides:
        try:
            override(data, text)
        except ConfigError as error:
            problems.append(Problem(str(error)))
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping as plain dicts; duplicate keys, tags and anything but plain data are refused."""
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST_FILE else None
        text = None if content is None else content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Check the path and its rights.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not readable as YAML: it is no UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    if text is None:
        raise ConfigError(f"{path}: has {path.stat().st_size:,} bytes; a YAML file here has at most {LARGEST_FILE:,}. Is it another file?")
    try:
        data = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(data, dict):
        holds = "nothing" if data is None else type(data).__name__
        raise ConfigError(f"{path}: must hold 'key: value' lines, holds {holds}. See configs/surface.yaml.")
    return data


def parse_yaml(text: str) -> Any:
    """YAML as plain data: text, numbers, true and false, null, lists, and mappings from text. Raises ConfigError for all else."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except (ConfigError, RecursionError) as error:
        raise ConfigError(str(error) if isinstance(error, ConfigError) else "it is nested too deep") from None
    except Exception as error:  # yaml lets pass what int(), chr() and others raise
        raise ConfigError(f"{error}"[:SHOWN] if isinstance(error, yaml.YAMLError) else f"{type(error).__name__}: {error}"[:SHOWN]) from None


PLAIN_TAGS = {None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge"))}
"""Tags that say no more than what a value looks like."""


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError("anchors and aliases (&, *) are not accepted; write the value out.")
            _require_plain(event, self.depth)
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            if not isinstance(node, yaml.ScalarNode):
                return super().construct_object(node, deep)
            where, text = f"line {node.start_mark.line + 1}", node.value[:SHOWN]
            try:
                value = super().construct_object(node, deep)
            except (ValueError, LookupError, OverflowError):
                raise ConfigError(f"{where}: {text!r} is no value of the kind {node.tag.rpartition(':')[2]}.") from None
            _require_usual(where, text, value, quoted=node.style is not None)
            return value

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            _require_keys([key for key, _ in node.value])
            return {key if isinstance(key, str) else str(key): value for key, value in super().construct_mapping(node, deep).items()}

    # PyYAML follows YAML 1.1, where 1e-4 is text; everybody who writes it means the number.
    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    # A date is a text here: no key takes a date.
    resolvers: Any = Loader.yaml_implicit_resolvers
    Loader.yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in found if tag != "tag:yaml.org,2002:timestamp"] for first, found in resolvers.items()
    }
    return Loader


def _require_plain(event: Any, depth: int) -> None:
    where = f"line {event.start_mark.line + 1}"
    if getattr(event, "tag", None) not in PLAIN_TAGS:
        raise ConfigError(f"{where}: the tag {event.tag[:SHOWN]} is not accepted; write plain values.")
    if depth >= DEEPEST:
        raise ConfigError(f"{where}: more than {DEEPEST} levels; a config has six.")


def _require_keys(keys: typing.Sequence[Any]) -> None:
    """Raise ConfigError for a key that is no text, and for one that stands twice."""
    seen = set()
    for key in keys:
        where = f"line {key.start_mark.line + 1}"
        if not isinstance(key.value, str):
            raise ConfigError(f"{where}: a key is a list or a mapping; keys are texts.")
        if key.value in seen:
            raise ConfigError(f"key {key.value[:SHOWN]!r} stands twice, again in {where}. Remove one.")
        seen.add(key.value)
        if key.tag.rpartition(":")[2] in ("null", "bool", "float"):
            raise ConfigError(f"{where}: the key {key.value[:SHOWN]!r} is no text to YAML; put it in quotes.")


def _require_usual(where: str, text: str, value: Any, quoted: bool) -> None:
    """Raise ConfigError for a scalar that no key takes, and for one that YAML 1.1 reads as another number than people do."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise ConfigError(f"{where}: the text {text!r} holds a character that no file name and no message can hold.")
        return
    if type(value) is int and abs(value) >= WIDEST:
        raise ConfigError(f"{where}: {text[:40]}{'...' if len(text) > 40 else ''} is a number that no key takes.")
    if type(value) in (int, float) and ":" in text:
        raise ConfigError(f"{where}: {text} is {value} to YAML, a number to base 60. Write that, or put it in quotes.")
    if type(value) is int and not quoted and re.fullmatch(r"[-+]?0[0-7_]+", text) and value:
        raise ConfigError(f"{where}: {text} is {value} to YAML, a number to base 8. Write it without the leading 0.")


def override(data: dict[str, Any], text: str) -> None:
    """Apply one ``a.b.c=value`` to nested dicts in place; the value is read as YAML, ``a.0.b`` reaches into lists."""
    key, equals, value = text.partition("=")
    option = f"--set {text[:SHOWN]!r}"
    *parents, last = key.strip().split(".")
    if not equals or not all((*parents, last)):
        raise ConfigError(f"{option} is not KEY=VALUE; e.g. --set train.epochs=10.")
    if len(parents) > DEEPEST:
        raise ConfigError(f"{option} names more than {DEEPEST} levels; a config has six.")
    try:
        new = parse_yaml(value)
    except ConfigError as error:
        raise ConfigError(f"{option}: not readable as YAML: {error}") from None
    node: Any = data
    for name in parents:
        node = node[_index(node, name, option)] if isinstance(node, list) else node.setdefault(name, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"{option}: {name[:SHOWN]!r} holds {_shown(node)}, which has no keys.")
    place: Any = _index(node, last, option) if isinstance(node, list) else last
    node[place] = new


def _index(node: list, name: str, option: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", name) or int(name) >= len(node):
        raise ConfigError(f"{option}: {name[:SHOWN]!r} is no position in a list of {len(node)}; count from 0.")
    return int(name)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def from_dict(data: Mapping[str, Any], where: str = "config") -> Config:
    """Config from nested dicts (a YAML file, the header of a model file). Raises ConfigError with every structural fault."""
    return structure(data, Config, where)


def structure(data: Mapping[str, Any], kind: type[T], where: str) -> T:
    """Nested dicts as the frozen dataclass ``kind``. Raises ConfigError with every structural fault."""
    reading = _read(data, kind)
    if reading.problems:
        raise ConfigError(f"{where}:\n  " + _listed(reading.problems))
    return reading.config


def _listed(problems: typing.Sequence[Problem]) -> str:
    more = [f"... {len(problems) - MOST_SHOWN} more"] if len(problems) > MOST_SHOWN else []
    return "\n  ".join([*(p.text for p in problems[:MOST_SHOWN]), *more])


ROUNDS = 50
"""Times that a config is read, each time without the keys that were wrong before; a file has no more faults in a row than that."""


def _read(data: Mapping[str, Any], kind: type[Any]) -> Reading:
    """Read ``kind`` from nested dicts; what stands behind a fault is found by reading again with the faulty key at its default."""
    unknown: list[str] = []
    full = _expand(dict(data), kind, "", unknown)
    problems, replaced = [Problem(text) for text in unknown], list[str]()
    for key in list(_not_numbers(full)):
        problems.append(Problem(f"{key} is nan (not a number), which no key takes.", (key,)))
        replaced += [taken] if (taken := _take_away(full, key)) is not None else []
    value = None
    for _ in range(ROUNDS):
        value, found = _build(full, kind)
        told = Reading(config=None, replaced=tuple(replaced))
        problems += [p for p in found if not any(told.relies_on(key) for key in p.keys)]
        if not found:
            break
        value = None
        taken = [_take_away(full, key) for key in dict.fromkeys(key for p in found for key in p.keys)]
        replaced += [key for key in taken if key is not None]
        if not any(taken):
            break
    return Reading(config=value, problems=tuple(dict.fromkeys(problems)), replaced=tuple(dict.fromkeys(replaced)))


def _not_numbers(value: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of NaN, which any rule of the form "not below" lets pass; options of entries are looked at by :func:`bind`."""
    if isinstance(value, float) and math.isnan(value):
        yield key.removeprefix(".")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        if name != "options":
            yield from _not_numbers(item, f"{key}.{name}")


def _build(full: Any, kind: type[Any]) -> tuple[Any, list[Problem]]:
    """``kind`` made of spelled-out nested dicts, and everything that is wrong with them."""
    from pydantic import ValidationError

    found: list[Problem] = []
    token = _found.set(found)
    try:
        return _adapter(kind).validate_json(json.dumps(full), strict=True), found
    except ValidationError as error:
        return None, [*found, *(_fault(item) for item in error.errors(include_url=False))]
    finally:
        _found.reset(token)


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _fault(item: Mapping[str, Any]) -> Problem:
    key = ".".join(str(x) for x in item["loc"] if not str(x).startswith("function-"))
    if item["type"] == "missing":
        text = f"{key}: missing, has no default"
    else:
        text = f"{key}: {str(item['msg'])[:SHOWN]} (got {_shown(item.get('input'))})"
    return Problem(text, (key,))


STAND_INS = {
    r"name": "unnamed",
    r"network": {"name": "unet"},
    r"losses": [{"name": "dice"}],
    r"losses\.\d+": {"name": "dice"},
    r"(metrics|train\.validate\.metrics)\.\d+": {"name": "dice"},
    r"postprocess\.\d+": {"name": "fill_holes"},
    r"data\.augment\.\d+": {"name": "flip"},
    r"data\.folders\.image": "images",
}
"""What stands where a faulty key has no default, so that the others can be checked; nothing is said about these themselves."""


def _take_away(full: Any, key: str) -> str | None:
    """Remove the entry at a dotted key, or the nearest one around it, so that its default counts; returns which, None for none."""
    parts = key.split(".")
    while parts:
        where, at = ".".join(parts), _at(full, parts[:-1])
        stand_in = _stand_in(full, where)
        if isinstance(at, dict) and (parts[-1] in at or stand_in is not None):
            at.pop(parts[-1], None)
            at |= {} if stand_in is None else {parts[-1]: stand_in}
            return where
        if isinstance(at, list) and stand_in is not None and parts[-1].isdigit() and int(parts[-1]) < len(at):
            at[int(parts[-1])] = stand_in
            return where
        parts.pop()
    return None


def _stand_in(full: Any, key: str) -> Any:
    """What to put at a faulty key; None: nothing, so that its default counts."""
    if key in ("data.patch", "data.patch.size"):  # the default is for volumes, and larger than many
        dims = _at(full, ["data", "dims"])
        size = [32] * (dims if dims in (2, 3) else 3)
        return size if key.endswith("size") else {"size": size}
    return next((value for pattern, value in STAND_INS.items() if re.fullmatch(pattern, key)), None)


def _at(full: Any, parts: typing.Sequence[str]) -> Any:
    for part in parts:
        if isinstance(full, dict):
            full = full.get(part)
        else:
            full = full[int(part)] if isinstance(full, list) and part.isdigit() and int(part) < len(full) else None
    return full


def _expand(value: Any, kind: Any, key: str, faults: list[str]) -> Any:
    """Spell out the shorthand ``flip`` -> ``{name: flip}`` and collect unknown keys with the nearest right one."""
    kind = next((k for k in typing.get_args(kind) if k is not type(None)), kind) if isinstance(kind, types.UnionType) else kind
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return [_expand(v, typing.get_args(kind)[0], f"{key}.{i}", faults) for i, v in enumerate(value)]
    if not dataclasses.is_dataclass(kind):
        return value
    if isinstance(value, str) and "name" in {f.name for f in dataclasses.fields(kind)}:
        value = {"name": value}
    if value is None or not isinstance(value, dict):
        return value
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for unknown in [k for k in value if k not in names]:
        faults.append(f"{key + '.' if key else ''}{str(unknown)[:SHOWN]}: unknown key. {nearest(str(unknown), names)}")
    return {k: _expand(v, hints[k], f"{key}.{k}" if key else k, faults) for k, v in value.items() if k in names}


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """``Did you mean 'x'? Known: ...`` for messages."""
    known, word = sorted(known), word[:SHOWN]
    close = difflib.get_close_matches(word, known, n=1)
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {', '.join(known)}."


def bind(table: Mapping[str, Any], part: NamedOptions | LossTerm, where: str, given: typing.Sequence[str] = ()) -> Callable[..., Any]:
    """``table[part.name]`` (of a record its :func:`pipeline.registry.function_of`) with the part's options bound as keywords.

    ``given`` names the arguments that the caller will add; options may not name those. Raises ConfigError for an unknown
    name, an unknown option, a value that is not what the function's annotation says, or an argument that neither the options nor
    the caller provide.
    """
    if part.name not in table:
        raise ConfigError(f"{where}: {part.name[:SHOWN]!r} is unknown. {nearest(part.name, table)}")
    if isinstance(table, Registry):
        name, options = table.resolve(part.name, part.options)
        part = dataclasses.replace(part, name=name, options=options)
    entry: Any = table[part.name]
    factory = function_of(entry) if dataclasses.is_dataclass(entry) else entry
    signature = inspect.signature(factory)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    allowed = [n for n, p in signature.parameters.items() if n not in given and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for option in part.options:
        if option not in allowed and not open_ended:
            raise ConfigError(
                f"{where}: {part.name!r} has no option {option[:SHOWN]!r}. {nearest(option, allowed) if allowed else 'It takes no options.'}"
            )
    wrong = [
        f"option {n} is {_shown(value)}, must be {_in_words(kind)}."
        for n, value in part.options.items()
        if (kind := _annotations(factory).get(n, Any)) is not Any and not _fits(value, kind)
    ]
    if wrong:
        raise OptionTypeError(f"{where}: {part.name!r}: {' '.join(wrong)}")
    try:
        signature.bind(**dict.fromkeys(given), **part.options)
    except TypeError as error:
        raise ConfigError(f"{where}: {part.name!r}: {error}. Its options: {', '.join(allowed) or 'none'}.") from None
    return functools.partial(factory, **part.options)


@functools.cache
def _annotations(factory: Callable[..., Any]) -> Mapping[str, Any]:
    """Types of a function's arguments; none where they cannot be looked up."""
    try:
        return typing.get_type_hints(factory)
    except (NameError, TypeError):
        return {}


def _fits(value: Any, kind: Any) -> bool:
    """Whether an option from YAML is of an annotated type. A list is a sequence, a whole number is also a float; NaN is no number."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, k) for k in arguments)
    if origin is Literal:
        return any(type(value) is type(a) and value == a for a in arguments)
    if _is_list(kind):
        return isinstance(value, list | tuple) and _items_fit(value, kind)
    if origin in (dict, collections.abc.Mapping) or kind in (dict, collections.abc.Mapping):
        items = value.items() if isinstance(value, Mapping) else ()
        return isinstance(value, Mapping) and (not arguments or all(_fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in items))
    return _is_plain(value, kind)


def _is_plain(value: Any, kind: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value  # not NaN
    if number and isinstance(value, int) and abs(value) >= OPTION:
        return False
    if kind is float:
        return number
    if kind is int:  # 3.0 means 3, as it always did
        return number and math.isfinite(value) and value == int(value)
    if kind in (None, types.NoneType):
        return value is None
    return isinstance(value, kind) if kind in (bool, str) else True


def _is_list(kind: Any) -> bool:
    return (typing.get_origin(kind) or kind) in (list, tuple, collections.abc.Sequence, collections.abc.Iterable)


def _items_fit(values: typing.Sequence[Any], kind: Any) -> bool:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and arguments[-1:] != (...,):
        return len(values) == len(arguments) and all(_fits(v, k) for v, k in zip(values, arguments, strict=True))
    return not arguments or all(_fits(v, arguments[0]) for v in values)


def _in_words(kind: Any) -> str:
    """An annotation as a user says it: ``a number``, ``a list of 2 numbers or null``."""
    plain = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", types.NoneType: "null", Any: "anything"}
    if kind in plain:
        return plain[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_in_words(k) for k in arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if _is_list(kind):
        fixed = origin is tuple and arguments[-1:] != (...,)
        count = {0: "", 2: "two ", 3: "three "}.get(len(arguments) if fixed else 0, f"{len(arguments)} ")
        many = {float: "numbers", int: "whole numbers", str: "texts"}.get(arguments[0] if arguments else None, "values")
        return f"a list of {count}{many}"
    return "a mapping" if origin in (dict, collections.abc.Mapping) else f"{getattr(kind, '__name__', kind)}"


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dicts, complete: every default written out. Paths of plugins are no part of what a run or a model file keeps."""
    settings = plain(config)
    del settings["plugins"]
    return settings


def plain(record: Any) -> dict[str, Any]:
    """A dataclass of this module as nested plain dicts, as they are read back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(record), default=list))


def dump(config: Config) -> str:
    """The resolved config as YAML; ``load`` gives the same Config back."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines ``key: old -> new`` for every leaf in which two nested dicts differ."""
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
