"""Scores of the fixed validation patches of a fold during training.

Voxels are counted over a whole epoch; other metrics are averaged over patches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline import postprocess
from pipeline.config import Config, Data
from pipeline.data import normalise
from pipeline.metrics import METRICS, evaluate, needing, of_images
from pipeline.metrics.context import MetricContext, several
from pipeline.metrics.counts import Counts, Pooling
from pipeline.metrics.frames import count_classes
from pipeline.metrics.overlap import mean_of
from pipeline.metrics.probability import Tally, tally_halves
from pipeline.metrics.regional import count_regions, within
from pipeline.records import NamedOptions
from pipeline.tasks import TASKS

ALL = 0
"""Key in place of a class for voxels of all classes: right ones as ``tp``, wrong ones as ``fn``."""


def validation_metrics(config: Config) -> tuple[NamedOptions, ...]:
    """Metrics of validation patches.

    Args:
        config: config of the run.

    Returns:
        Those of ``train.validate``, or the task's default.
    """
    return config.train.validate.metrics or (NamedOptions(name=TASKS[config.rules].default_metric),)


def classes_of(data: Data) -> tuple[int, ...]:
    """The foreground classes of a data set.

    Args:
        data: ``data`` of a config.

    Returns:
        All classes that it declares, but for an ignored one.
    """
    return tuple(c for c in range(1, data.classes) if c != data.ignore_label)


def labelled(config: Config, batch: Mapping[str, Any]) -> int:
    """Count the samples of a batch that are not wholly ignored.

    The others hold nothing to be learned or measured.

    Args:
        config: config of the run.
        batch: its targets ``(B, 1, *S)`` by name, and ``id``.

    Returns:
        Number of samples.
    """
    ignore = config.data.ignore_label
    targets = [n for n, kind in config.targets.items() if kind == "labels"]
    # An image beside the labels is never ignored.
    if ignore is None or len(targets) < len(config.targets):
        return len(batch["id"])
    known = torch.stack([(batch[name].long() != ignore).flatten(1).any(1) for name in targets])
    return int(known.any(0).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRules:
    """How patches are scored.

    Args:
        config: config of the run.
        version: metrics version.
        fail: called with the id of a case whose prediction is not finite; raises an error.
        spacings: millimetres between voxels along each axis by case; empty where distances are in
            voxels.
    """

    config: Config
    version: int
    fail: Callable[[str], None]
    spacings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def context(self, case_id: str) -> MetricContext:
        """What metrics get to know beside the arrays.

        Args:
            case_id: id of the case that a patch is from.

        Returns:
            Classes (not in version 1) or regions, and spacing.
        """
        regions = self.config.data.unions
        classes = classes_of(self.config.data) if self.version >= 2 and regions is None else None
        return MetricContext(
            classes=classes,
            regions=regions,
            spacing=self.spacings.get(case_id),
            version=self.version,
        )


def measure(rules: PatchRules, logits: torch.Tensor, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one batch for :class:`PatchScores`, as values that JSON can hold.

    Labels are decided by the task (of regions by the config); images are scored on the scale from 0
    to 1.

    Args:
        rules: how patches are scored.
        logits: of the main head, ``(B, K, *S)``.
        batch: its targets by name, and ``id``.

    Returns:
        ``scores``: the numbers of each patch, by the position of their metric in the config;
        ``counts``: voxels by class, as [tp, fp, fn, tn]; ``tally``: voxels by probability, where a
        metric ranks them.
    """
    config, task = rules.config, TASKS[rules.config.rules]
    soft = task.activate(logits).cpu().numpy()
    targets = batch[next(iter(config.targets))].numpy()
    out: dict[str, Any] = {"scores": [], "counts": {}, "tally": None}
    images = of_images(validation_metrics(config))
    for case_id, one, truth in zip(batch["id"], soft, targets, strict=True):
        if images:
            if not np.isfinite(one).all():
                rules.fail(case_id)
            found, real = (normalise.unit(config.data.normalise, a) for a in (one, truth))
            out["scores"].append(_scores(rules, (found, real, None), None, case_id))
            continue
        ignore = config.data.ignore_label
        valid = None if ignore is None else truth[0] != ignore
        label = truth[0] if valid is None else truth[0] * valid
        foreground = one[0] if len(one) == 1 else None
        answer = _decided(config, one)
        out["scores"].append(_scores(rules, (answer, label, valid), foreground, case_id))
        if rules.version >= 2:
            _count(out, rules, (answer, label, valid), foreground)
    return out


def _decided(config: Config, soft: np.ndarray) -> np.ndarray:
    """Labels ``(*S)`` of a patch: regions by the first step of the config, classes by the task."""
    if config.data.regions is None:
        return TASKS[config.rules].decide(soft)
    return np.asarray(postprocess.run(config.postprocess[:1], soft))


Maps = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""A prediction, its target, and the voxels that count (None: all)."""


def _scores(
    rules: PatchRules, maps: Maps, soft: np.ndarray | None, case_id: str
) -> dict[str, dict[str, float]]:
    context = rules.context(case_id)
    numbers = {}
    for n, part in _averaged(rules):
        found = evaluate([part], *maps, soft, context=context)
        numbers[str(n)] = {k: v for k, v in found.items() if not isinstance(v, Mapping)}
    return numbers


def _averaged(rules: PatchRules) -> Iterator[tuple[int, NamedOptions]]:
    """Metrics that are means over patches, with their positions: in version 1 all of them."""
    for n, part in enumerate(validation_metrics(rules.config)):
        if rules.version < 2 or METRICS[part.name].pooled is None:
            yield n, part


def _count(out: dict[str, Any], rules: PatchRules, maps: Maps, soft: np.ndarray | None) -> None:
    """Add a patch's voxels to ``out``."""
    answer, label, valid = maps
    right = (answer == label)[... if valid is None else valid]
    regions = rules.config.data.unions
    if regions is None:
        counts = count_classes(answer, label, valid, classes_of(rules.config.data))
    else:
        counts = count_regions(answer, label, valid, regions)
    counts[ALL] = Counts(tp=int(np.count_nonzero(right)), fn=int(np.count_nonzero(~right)))
    for c, found in counts.items():
        old = out["counts"].get(str(c), [0, 0, 0, 0])
        out["counts"][str(c)] = [
            a + b for a, b in zip(old, (found.tp, found.fp, found.fn, found.tn), strict=True)
        ]
    if soft is not None and needing(validation_metrics(rules.config), "probabilities"):
        tally = tally_halves(soft, label if regions is None else within(label, regions), valid)
        old = out["tally"] or [0, 0]
        out["tally"] = [
            (a + np.asarray(b)).tolist()
            for a, b in zip((tally.background, tally.foreground), old, strict=True)
        ]


class PatchScores:
    """Sums of what :func:`measure` found in an epoch, and the scores that follow.

    Args:
        rules: how patches are scored.
    """

    def __init__(self, rules: PatchRules) -> None:
        self.rules = rules
        self.counts: dict[int, Counts] = {}
        self.tally: Tally | None = None
        self.values: dict[int, dict[str, list[float]]] = {}

    def add(self, found: Mapping[str, Any]) -> None:
        """Add a batch.

        Batches must come in a fixed order, so that sums have the same bits whichever process
        computed them.

        Args:
            found: what :func:`measure` returned.
        """
        for patch in found["scores"]:
            for n, numbers in patch.items():
                columns = self.values.setdefault(int(n), {})
                for key, value in numbers.items():
                    columns.setdefault(key, []).append(value)
        for c, (tp, fp, fn, tn) in found["counts"].items():
            counts = Counts(tp=tp, fp=fp, fn=fn, tn=tn)
            self.counts[int(c)] = self.counts[int(c)] + counts if int(c) in self.counts else counts
        if found["tally"] is not None:
            tally = Tally(*(np.asarray(side) for side in found["tally"]))
            self.tally = tally if self.tally is None else self.tally + tally

    def result(self) -> dict[str, float]:
        """The scores of the epoch.

        Returns:
            ``val_<name>`` of every metric in the config's order, of several classes also
            ``val_dice_1`` and so on: the same keys in every epoch, NaN where there was nothing to
            count.
        """
        out: dict[str, float] = {}
        for n, part in enumerate(validation_metrics(self.rules.config)):
            if n in self.values:
                out |= {f"val_{k}": _mean(v, self.rules.version) for k, v in self.values[n].items()}
            elif self.counts and (pooled := METRICS[part.name].pooled) is not None:
                out |= {f"val_{k}": v for k, v in self._pooled(part.name, pooled).items()}
        return out

    def _pooled(self, name: str, pooled: Pooling) -> dict[str, float]:
        classes = [c for c in sorted(self.counts) if c != ALL]
        if pooled.any_class and self.rules.config.data.regions is None:
            return {name: pooled.known(self.counts[ALL])}
        if needing([NamedOptions(name=name)], "probabilities"):
            return {
                name: pooled.known(dataclasses.replace(self.counts[classes[0]], tally=self.tally))
            }
        each = {c: pooled.known(self.counts[c]) for c in classes}
        if not several(classes):
            return {name: each[classes[0]]}
        return {name: mean_of(each.values()), **{f"{name}_{c}": v for c, v in each.items()}}


def _mean(values: Sequence[float], version: int) -> float:
    """Mean over patches without those that have no value; in version 1 one of them makes it NaN."""
    known = [v for v in values if version < 2 or math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan
