"""Metrics by name with the interface of MONAI's metrics, for your own validation loops."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics.metric import CumulativeIterationMetric
from torch import Tensor

from pipeline.config import Change, ConfigError, nearest
from pipeline.data import change
from pipeline.data.label_tensors import class_numbers
from pipeline.metrics import METRICS, bound, evaluate
from pipeline.metrics.context import MetricContext
from pipeline.metrics.entry import GIVEN, MetricEntry
from pipeline.metrics.retouch import Retouched
from pipeline.records import NamedOptions

REDUCTIONS = ("mean", "mean_batch", "mean_channel", "none")
OF_RETOUCH = ("source", "mask", "predicted")
"""Keywords of each call of a metric of retouching, besides prediction and target."""

SUGGESTION = (
    "Decide first where these are probabilities: argmax(1, keepdim=True), or a threshold. Pass "
    "num_classes= for more classes, ignore_label= for a number that marks unlabelled voxels, or "
    "x > 0 for a mask of 0 and 255."
)

Items = Tensor | Sequence[Tensor]
"""Channel-first tensors: a list of them, or one batch-first tensor."""


class Metric(CumulativeIterationMetric):
    """A metric of the package with MONAI's interface: call it, then ``aggregate()``, ``reset()``.

    Every item of a batch is a case: its numbers are those that ``pipeline.evaluate`` gives for it.
    A metric may have several numbers (``surface_dice`` of three classes: the mean over the classes,
    then each class; ``voi``: the sum and its two parts); ``names`` lists them, the metric's own
    first. Computed on the CPU in float64.

    Labels are class numbers ``(B, 1, *S)`` or one-hot ``(B, K, *S)``. ``num_classes`` states what
    one channel holds: without it (or with 2) a mask, where 0 is background and 1 foreground; with
    more, class numbers from 0 (background) to ``num_classes - 1``. Other numbers are refused.
    Without it ``voi`` and ``adapted_rand`` take any number as a segment of its own, ``accuracy``
    any as a class, and ``competition``, ``components`` and ``betti_error`` any as foreground.

    Differs from MONAI's metrics on purpose: background is never a class of its own; where both
    masks are empty an overlap is 1, a distance 0, and one empty mask scores 0, or the diagonal of
    the array as a distance, so that no case drops out; a class that neither map holds, and an item
    without a voxel that counts, is NaN, and a mean over NaN alone is NaN, not 0; ``surface_dice``
    weighs surface elements by their area, as MONAI does with ``use_subvoxels=True`` only; ``psnr``
    is at most 100; probabilities where decisions are needed are refused.

    Args:
        name: entry of ``pipeline.metrics.METRICS``.
        num_classes: number of classes, background counted; of one-hot labels it is known.
        ignore_label: class number in ``y`` of voxels that do not count; of one-hot labels those
            where no channel is set. Metrics of labels only.
        spacing: millimetres between voxels along each space axis, or one number for all, for
            ``hd95``, ``assd`` and ``surface_dice`` with ``tolerance_mm``; None: voxels. Can be
            given at each call instead, then also as one sequence for each item.
        reduction: of ``aggregate``, see there.
        get_not_nans: whether ``aggregate`` returns ``(value, number of items that are not NaN)``.
        **options: those of the entry, e.g. ``tolerance`` of ``surface_dice``.

    Raises:
        ConfigError: for an unknown name or option, with the nearest right one.

    Source:
        Those of the entries, see ``help(pipeline.metrics.METRICS[name].compute)``. Calling
        convention: ``monai.metrics`` 1.6.

    Example:
        >>> import torch
        >>> metric = Metric("dice", num_classes=3)
        >>> prediction, label = torch.tensor([[[[0, 1, 1, 2]]]]), torch.tensor([[[[0, 1, 2, 2]]]])
        >>> metric(y_pred=prediction, y=label).shape
        torch.Size([1, 3])
        >>> round(metric.aggregate().item(), 4)
        0.6667
        >>> {name: round(value, 4) for name, value in metric.values().items()}
        {'dice': 0.6667, 'dice_1': 0.6667, 'dice_2': 0.6667}
        >>> metric.reset()
        >>> Metric("surface_dice", tolerence=2)
        Traceback (most recent call last):
            ...
        pipeline.config...ConfigError: Metric: ... Did you mean 'tolerance'? ...
    """

    def __init__(
        self,
        name: str,
        /,
        *,
        num_classes: int | None = None,
        ignore_label: int | None = None,
        spacing: float | Sequence[float] | None = None,
        reduction: str = "mean",
        get_not_nans: bool = False,
        **options: Any,
    ) -> None:
        _require_options(name, options)
        self.part = NamedOptions(name=name, options=options)
        bound(self.part, "Metric")
        _require_settings(name, num_classes, ignore_label, spacing)
        self.num_classes, self.ignore_label, self.spacing = num_classes, ignore_label, spacing
        self.reduction, self.get_not_nans = _known_reduction(reduction), get_not_nans
        super().__init__()

    @property
    def name(self) -> str:
        """The metric's name in ``METRICS``."""
        return self.part.name

    @property
    def _entry(self) -> MetricEntry:
        return METRICS[self.part.name]

    @property
    def _reads_probabilities(self) -> bool:
        """Whether it reads probabilities and not decisions."""
        return "probabilities" in self._entry.needs

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers of each item, by column; empty before the first call."""
        return self._names or ()

    def reset(self) -> None:
        """Forget all items."""
        super().reset()
        self._names: tuple[str, ...] | None = None

    def aggregate(self, reduction: str | None = None) -> Any:
        """Reduce the items so far, of all ranks where there are several; NaN is left out.

        Args:
            reduction: ``mean``: of the metric's own number, the first of ``names``, over the items,
                ``()``; ``mean_batch``: of every number, ``(V,)``; ``mean_channel``: the metric's
                own number of every item, ``(N,)``; ``none``: all, ``(N, V)``. None: as the metric
                was made.

        Returns:
            A float64 tensor; NaN where there is nothing but NaN. With ``get_not_nans`` a pair with
            the count of items, of one shape.

        Raises:
            ValueError: before the first call.
            ConfigError: for an unknown reduction.
        """
        table, how = self._table(), _known_reduction(reduction or self.reduction)
        table = table[:, 0] if how in ("mean", "mean_channel") else table
        known = ~table.isnan()
        if how in ("mean", "mean_batch"):
            table, known = table.nanmean(0), known.sum(0)
        return (table, known) if self.get_not_nans else table

    def values(self) -> dict[str, float]:
        """Average every number over the items so far; NaN is left out.

        Returns:
            Means by name, in the order of ``names``.

        Raises:
            ValueError: before the first call.
        """
        return dict(zip(self.names, self._table().nanmean(0).tolist(), strict=True))

    def _table(self) -> Tensor:
        """All numbers so far, of all ranks, ``(N, V)``."""
        table = self.get_buffer()
        if not isinstance(table, Tensor):
            raise ValueError(
                f"metric {self.name!r} has nothing to aggregate: call it with y_pred and y first."
            )
        return table

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Numbers of a batch ``(B, V)``.

        Args:
            y_pred: decisions ``(B, 1, *S)`` or ``(B, K, *S)``; for ``roc_auc`` and ``pr_auc``
                scores ``(B, 1, *S)`` of foreground, or ``(B, 2, *S)`` of both classes; for metrics
                of images ``(B, C, *S)`` on 0..peak.
            y: the truth, in the same way; of ``roc_auc`` and ``pr_auc`` a mask.
            **kwargs: ``spacing``; for ``retouch`` ``source`` ``(B, C, Y, X)``, the images before,
                ``mask`` ``(B, 1, Y, X)``, from 0.5 on what was to change (made from ``source`` and
                ``y`` unless given), and ``predicted`` ``(B, 1, Y, X)``, the mask's probability.
        """
        return self._compute_list(y_pred, y, **kwargs)

    def _compute_list(self, y_pred: Items, y: Items | None = None, **kwargs: Any) -> Tensor:
        """:meth:`_compute_tensor` of lists of channel-first tensors, which may differ in size."""
        if y is None or len(y_pred) != len(y):
            raise ValueError(
                f"metric {self.name!r} got {len(y_pred)} items of y_pred and"
                f" {0 if y is None else len(y)} of y; it needs as many of both."
            )
        further = self._per_item(kwargs, len(y_pred))
        items = zip(y_pred, y, further, strict=True)
        return torch.stack([self._row(_detached(p), _detached(t), **more) for p, t, more in items])

    def _per_item(self, kwargs: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
        """The keywords of a call, for each item."""
        known = ["spacing"] if "spacing" in self._entry.given else []
        known += OF_RETOUCH if "change" in self._entry.needs else ()
        for key in kwargs:
            if key not in known:
                suggestion = nearest(key, known) if known else "It takes no keyword."
                raise ValueError(f"metric {self.name!r} reads no {key!r}. {suggestion}")
        items: list[dict[str, Any]] = [{} for _ in range(count)]
        for key, value in kwargs.items():
            each = _spacings(value, count) if key == "spacing" else value
            if value is not None and len(each) != count:
                raise ValueError(
                    f"metric {self.name!r} got {len(each)} of {key} for {count} items."
                )
            for item, one in zip(items, each if value is not None else (), strict=False):
                item[key] = one
        return items

    def _row(self, y_pred: Tensor, y: Tensor, spacing: Any = None, **images: Tensor) -> Tensor:
        """Numbers ``(V,)`` of one item."""
        if y_pred.ndim < 2 or y_pred.shape[1:] != y.shape[1:]:
            raise ValueError(
                f"metric {self.name!r} got y_pred {tuple(y_pred.shape)} and y {tuple(y.shape)} of "
                "one item; both are channel-first with the same space axes: (K, *S) and (1, *S), "
                "as a batch (B, K, *S)."
            )
        if self._entry.task == "image":
            scores = self._of_images(y_pred, y, **images)
        else:
            scores = self._of_labels(y_pred, y, self.spacing if spacing is None else spacing)
        numbers = {key: value for key, value in scores.items() if not isinstance(value, Mapping)}
        names = self._names = self._names or tuple(numbers)
        if tuple(numbers) != names:
            raise ValueError(
                f"metric {self.name!r} gave {', '.join(numbers)} after {', '.join(names)}. Call"
                " reset() between data sets."
            )
        return torch.tensor(list(numbers.values()), dtype=torch.float64)

    def _of_images(self, y_pred: Tensor, y: Tensor, **images: Tensor) -> dict[str, Any]:
        answer, truth = _array(y_pred), _array(y)
        changed = _retouched(truth, **images) if "change" in self._entry.needs else None
        return evaluate([self.part], answer, truth, change=changed)

    def _of_labels(self, y_pred: Tensor, y: Tensor, spacing: Any) -> dict[str, Any]:
        classes = self._classes(y_pred, y)
        truth = _labels(y, "y", self._allowed(classes), self.ignore_label)
        valid = None if self.ignore_label is None else truth != self.ignore_label
        truth = truth if valid is None else np.where(valid, truth, 0)
        known = None if classes is None else tuple(range(1, classes))
        context = MetricContext(classes=known, spacing=_spacings(spacing, 1, y.ndim - 1)[0])
        answer = (
            truth
            if self._reads_probabilities
            else _labels(y_pred, "y_pred", self._allowed(classes))
        )
        soft = _foreground(y_pred) if self._reads_probabilities else None
        return evaluate([self.part], answer, _compact(truth), valid, soft, context=context)

    def _classes(self, y_pred: Tensor, y: Tensor) -> int | None:
        """Number of classes, as given or by the channels; None for a mask or segments."""
        channels = {len(x) for x in (y_pred, y) if len(x) > 1}
        found = channels if self.num_classes is None else channels | {self.num_classes}
        if len(found) > 1 or (self._reads_probabilities and found - {2}):
            stated = "" if self.num_classes is None else f", num_classes={self.num_classes}"
            limit = ", at most 2 for this metric" if self._reads_probabilities else ""
            raise ValueError(
                f"metric {self.name!r} got y_pred {tuple(y_pred.shape)} and y"
                f" {tuple(y.shape)}{stated}; channels are classes, as many in both{limit}, or one"
                " channel of class numbers."
            )
        return next(iter(found), None)

    def _allowed(self, classes: int | None) -> int | None:
        """Number of classes that labels may hold; None: any."""
        if classes is not None:
            return classes
        by_class = "classes" in self._entry.given and self._entry.compares_numbers
        return 2 if self._reads_probabilities or by_class else None


def _labels(
    x: Tensor, role: str, classes: int | None, ignore_label: int | None = None
) -> np.ndarray:
    """Class numbers ``(*S)`` of one item, checked."""
    numbers = class_numbers(x[None], classes, ignore_label, role, SUGGESTION)
    return _compact(numbers[0, 0].cpu().numpy())


def _compact(numbers: np.ndarray) -> np.ndarray:
    """Labels in the smallest type that the metrics count quickly."""
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    fitting = [kind for kind in (np.uint8, np.uint16) if low >= 0 and high <= np.iinfo(kind).max]
    return numbers.astype(fitting[0]) if fitting else numbers


def _foreground(x: Tensor) -> np.ndarray:
    """Scores of foreground ``(*S)``: the only channel, or the second of two."""
    scores = _array(x)[-1]
    if not np.isfinite(scores).all():
        raise ValueError("y_pred holds NaN or infinite scores, which have no rank.")
    return scores


def _retouched(
    target: np.ndarray,
    source: Tensor | None = None,
    mask: Tensor | None = None,
    predicted: Tensor | None = None,
) -> Retouched:
    """Images and masks of one item as arrays; the mask is made where none is given."""
    if source is None:
        raise ValueError(
            "metric 'retouch' needs the images before the change: metric(y_pred=..., y=...,"
            " source=images)."
        )
    before = _array(_detached(source))
    soft = (
        change.difference_mask(before, target, Change())[0]
        if mask is None
        else _array(_detached(mask))[0]
    )
    share = None if predicted is None else _array(_detached(predicted))[0]
    return Retouched(source=before, mask=soft >= change.LEVEL, predicted=share)


def _array(x: Tensor) -> np.ndarray:
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()


def _detached(x: Tensor) -> Tensor:
    """The tensor without MONAI's metadata and without a graph."""
    return x.detach().as_subclass(Tensor)


def _spacings(value: Any, count: int, axes: int | None = None) -> list[Any]:
    """Spacing of each of ``count`` items, from one number, one sequence, or one for each.

    Tuples of floats where the number of space ``axes`` is known.
    """
    if value is None:
        return [None] * count
    array = np.asarray(value, dtype=float)
    if array.ndim > 2 or not array.size or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(
            f"spacing is {value!r}; it holds millimetres between voxels along each space axis,"
            " which are above 0."
        )
    rows = list(array) if array.ndim == 2 else [array] * count
    if axes is None:
        return [row.tolist() for row in rows]
    wide = [np.broadcast_to(row, (axes,)) if row.size == 1 else row for row in rows]
    if any(len(row) != axes for row in wide):
        raise ValueError(
            f"spacing is {value!r}, but the images have {axes} space axes. Give one number for"
            " each, or one for all."
        )
    return [tuple(row.tolist()) for row in wide]


def _known_reduction(name: str) -> str:
    if name not in REDUCTIONS:
        known = nearest(str(name), REDUCTIONS)
        raise ConfigError(f"Metric: reduction {str(name)!r} is unknown. {known}")
    return REDUCTIONS[REDUCTIONS.index(name)]


def _require_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown option by the nearest of the entry's options and this class's own."""
    if name not in METRICS:
        return
    entry = METRICS[name]
    own = ["reduction", "get_not_nans"]
    own += [] if entry.task == "image" else ["num_classes", "ignore_label"]
    own += ["spacing"] if "spacing" in entry.given else []
    known = [n for n in inspect.signature(entry.compute).parameters if n not in GIVEN] + own
    for option in options:
        if option not in known:
            suggestion = nearest(option, known)
            raise ConfigError(f"Metric: {name!r} has no option {option!r}. {suggestion}")


def _require_settings(name: str, num_classes: Any, ignore_label: Any, spacing: Any) -> None:
    numbers = {"num_classes": num_classes, "ignore_label": ignore_label}
    least = {"num_classes": 2}
    rules = {
        "num_classes": "a whole number of at least 2, the background counted",
        "ignore_label": "a whole number, e.g. 255",
    }
    for key, value in numbers.items():
        if value is not None and (type(value) is not int or value < least.get(key, value)):
            raise ConfigError(f"Metric: {key} is {value!r}, must be {rules[key]}, or None.")
        if value is not None and METRICS[name].task == "image":
            raise ConfigError(
                f"Metric: {name!r} compares images, which have no classes. Leave {key} out."
            )
    if spacing is not None and "spacing" not in METRICS[name].given:
        raise ConfigError(
            f"Metric: {name!r} does not depend on how far voxels lie apart. Leave spacing out."
        )
