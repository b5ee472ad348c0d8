"""What decisions stand on: the facts, what was asked for, and the configuration that was taken."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.config import Data, Folds, Patch
from pipeline.data import blocks
from pipeline.planning import coarse, names, nnunet, sides, small
from pipeline.planning.axes import PlanAxes, brought, plan_axes
from pipeline.planning.facts import Facts
from pipeline.planning.fingerprint import CaseFacts, Fingerprint
from pipeline.planning.names import Instances
from pipeline.planning.nnunet import Configuration, NnunetPlan
from pipeline.planning.presets import PRESETS
from pipeline.planning.sides import SidePair
from pipeline.planning.topology import PlanError, shape_text
from pipeline.records import UserError

LARGEST_FIRST = ("resenc-xl", "resenc-l", "resenc-m")
"""Presets that a budget chooses from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a plan was asked for.

    Args:
        name: of the system.
        preset: nnU-Net's rules to follow; None: those that fit the budget, our own on a CPU.
        gigabytes: memory of the device to plan for; None: a CPU.
        minutes: wall time of ``train --fold -1``; None: nnU-Net's length, on a CPU an hour.
        configuration: ``2d``, ``3d_fullres`` or ``3d_lowres``; None: chosen.
        share: of the memory that is planned for, where a measured step took more than there is.
    """

    name: str
    preset: str | None = None
    gigabytes: float | None = None
    minutes: float | None = None
    configuration: str | None = None
    share: float = 1.0

    @property
    def memory(self) -> float | None:
        """Gigabytes that nnU-Net's rules plan for; None: those of the preset."""
        return None if self.gigabytes is None else self.gigabytes * self.share


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A configuration that was looked at.

    Args:
        name: ``2d``, ``3d_fullres`` or ``3d_lowres``.
        planned: None where it does not exist.
        taken: whether it is the plan's.
        why: of being taken or not.
    """

    name: str
    planned: Configuration | None
    taken: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Facts and choices that all settings of a plan follow from."""

    fingerprint: Fingerprint
    request: PlanRequest
    axes: PlanAxes
    """Axes of the model."""
    rules: NnunetPlan
    configuration: Configuration
    flat: bool
    """Volumes are learned slice by slice."""
    rows: tuple[Row, ...]
    pairs: tuple[SidePair, ...] = ()
    instances: Instances | None = None
    preset: str | None = None
    """nnU-Net's rules; None: our own."""
    spacing: tuple[float, ...] | None = None
    """mm along each axis of the plan; None where files do not say."""
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Size of each case at the target spacing, by id; axes of the plan."""

    @property
    def small(self) -> bool:
        """Whether our own rules for small budgets hold."""
        return self.preset is None

    @property
    def patch(self) -> tuple[int, ...]:
        """Patch with an axis for each of the data."""
        return (1, *self.configuration.patch) if self.flat else self.configuration.patch

    @property
    def labels(self) -> bool:
        """Whether label maps are learned."""
        return self.fingerprint.task == "labels"

    @property
    def rare(self) -> float:
        """Share of all voxels that is foreground."""
        cases = self.fingerprint.cases
        inside = sum(n for c in cases for v, n in c.voxels.items() if self._counts(v))
        return inside / max(1, sum(n for c in cases for n in c.voxels.values()))

    def _counts(self, value: int) -> bool:
        return value > 0 and value != self.fingerprint.ignore_label


def ground(fingerprint: Fingerprint, request: PlanRequest) -> Ground:
    """Choose preset, axes and configuration.

    Args:
        fingerprint: of the data set.
        request: what was asked for.

    Returns:
        What the settings follow from.

    Raises:
        UserError: for a configuration that does not exist for these data.
    """
    found = _ground(fingerprint, request)
    if len(fingerprint.cases) != 1 or block_rules(found) is not None:
        return found
    for length in _lengths(fingerprint.cases[0]):
        try:
            shorter = _ground(fingerprint, request, length)
        except PlanError:
            break
        if block_rules(shorter) is not None:
            return dataclasses.replace(shorter, sizes=found.sizes)
    return found


def longest_axis(case: CaseFacts) -> int:
    """The axis along which a single image is divided into blocks.

    Args:
        case: facts of the image.

    Returns:
        An axis of its file.
    """
    return max(range(len(case.shape)), key=lambda axis: case.shape[axis])


def block_rules(found: Ground) -> Folds | None:
    """How a single image is divided for cross-validation.

    Args:
        found: the ground of a plan for one image.

    Returns:
        Folds of blocks that are as long as a patch; None where there are none.
    """
    case = found.fingerprint.cases[0]
    longest = longest_axis(case)
    patch = [1] * len(case.shape)
    patch[longest] = found.patch[found.axes.of(case).index(longest)]
    dims = found.fingerprint.dims
    data = Data(dims=dims, patch=Patch(size=tuple(patch)))  # pyright: ignore[reportArgumentType]
    rules = blocks.fitting([tuple(case.shape)], data)
    return None if rules is None else rules.folds


def _lengths(case: CaseFacts) -> Iterator[int]:
    """Lengths of an image that give it a patch which fits into half of it, the longest first."""
    half = (case.shape[longest_axis(case)] - blocks.MARGINS[-1]) // 2
    lengths = {half, *(half // step * step for step in (32, 16, 8, 4, 2))}
    yield from (n for n in sorted(lengths, reverse=True) if n > 0)


def _ground(fingerprint: Fingerprint, request: PlanRequest, length: int | None = None) -> Ground:
    """The ground of a plan; for a single image as if it had this length."""
    preset = request.preset or _preset_of(request.gigabytes)
    axes = plan_axes(fingerprint)
    facts = _facts(fingerprint, axes, length)
    rules = nnunet.plan(facts, preset or "plain", None if preset is None else request.memory)
    moved = axes.permuted(rules.transpose_forward)
    has_spacing = all(c.spacing is not None for c in fingerprint.cases)
    by = 1.0 if preset else coarse.factor(fingerprint, rules, moved)
    own = coarse.coarser(rules, by) if by > 1 else rules
    rows = _rows(rules, own, preset, request.configuration)
    row = next((r for r in rows if r.taken and r.planned is not None), None)
    if row is None or row.planned is None:
        there = [r.name for r in rows if r.planned is not None]
        why = next((r.why for r in rows if r.name == request.configuration), "no such name")
        raise UserError(
            f"--configuration {request.configuration}: there is none for these data ({why})."
            f" Take one of {', '.join(there)}."
        )
    pairs = sides.sides(fingerprint) if fingerprint.task == "labels" else ()
    shapes = dict(zip((c.id for c in fingerprint.cases), own.shapes, strict=True))
    return Ground(
        fingerprint=fingerprint,
        request=request,
        axes=moved,
        rules=rules,
        configuration=row.planned,
        flat=row.name == "2d" and fingerprint.dims == 3,
        rows=rows,
        pairs=pairs,
        instances=names.instances(fingerprint) if fingerprint.task == "labels" else None,
        preset=preset,
        spacing=row.planned.spacing if has_spacing else None,
        sizes=shapes,
    )


def _preset_of(gigabytes: float | None) -> str | None:
    """The largest preset that a device holds; None for a CPU and for less than any needs."""
    if gigabytes is None:
        return None
    fitting = (name for name in LARGEST_FIRST if PRESETS[name].gigabytes <= gigabytes)
    return next(fitting, None)


def _facts(fingerprint: Fingerprint, axes: PlanAxes, length: int | None) -> Facts:
    """What nnU-Net's rules ask for, on the axes of the plan."""

    def size(case: CaseFacts) -> tuple[int, ...]:
        longest = longest_axis(case)
        return tuple(
            n if length is None or a != longest else min(n, length) for a, n in enumerate(case.box)
        )

    cases = fingerprint.cases
    ones = (1.0,) * fingerprint.dims
    count = len(fingerprint.regions) + 1 if fingerprint.regions else fingerprint.classes
    return Facts(
        shapes=[tuple(map(int, brought(size(c), axes.of(c)))) for c in cases],
        spacings=[brought(c.spacing or ones, axes.of(c)) for c in cases],
        channels=channel_names(fingerprint),
        classes=count,
        relative_sizes=[math.prod(c.box) / math.prod(c.shape) for c in cases],
        ignore=fingerprint.ignore_label is not None,
        regions=bool(fingerprint.regions),
    )


def channel_names(fingerprint: Fingerprint) -> tuple[str, ...]:
    """Names of the channels, empty where there is none.

    Args:
        fingerprint: of the data set.

    Returns:
        One for each channel.
    """
    return tuple(channel.name or "" for channel in fingerprint.channels)


def _rows(
    rules: NnunetPlan, own: NnunetPlan, preset: str | None, wanted: str | None
) -> tuple[Row, ...]:
    """All configurations, with the one that is taken; ``own`` is the plan at our own spacing."""
    chosen, why = _choice(rules, preset)
    if wanted is not None:
        chosen, why = wanted, "asked for with --configuration"
    found = []
    for name in ("3d_fullres", "3d_lowres", "2d"):
        planned = rules.configurations.get(name)
        if planned is not None and preset is None:
            planned = small.configuration(own, name)
        taken = name == chosen
        text = _dropped(rules, preset, name) if planned is None else ""
        text = text or (why if taken else _not_taken(name, chosen))
        found.append(Row(name=name, planned=planned, taken=taken, why=text))
    return tuple(found)


def _choice(rules: NnunetPlan, preset: str | None) -> tuple[str, str]:
    """The configuration that is taken, and why."""
    if "3d_fullres" not in rules.configurations:
        return "2d", rules.dropped["3d_fullres"]
    if preset is None:
        name, text = small.kind(rules)
        return name, text
    if "3d_lowres" in rules.configurations:
        return "3d_fullres", (
            "details need the full resolution; its patch holds less than a quarter of an image, so"
            " compare with --configuration 3d_lowres"
        )
    return "3d_fullres", "the patch holds enough of an image for the full resolution"


def _dropped(rules: NnunetPlan, preset: str | None, name: str) -> str:
    """Why there is no such configuration; empty where there is one."""
    text = rules.dropped.get(name, "")
    ours = preset is None and text.startswith("The patch")
    return text.replace("The patch", "The patch of nnU-Net's preset plain", 1) if ours else text


def _not_taken(name: str, chosen: str) -> str:
    texts = {
        "2d": "volumes show more than slices; compare with --configuration 2d",
        "3d_lowres": "would lose details; compare with --configuration 3d_lowres",
        "3d_fullres": f"{chosen} was taken; compare with --configuration 3d_fullres",
    }
    return texts[name]


def share_below_patch(found: Ground) -> str:
    """How many cases are smaller than the patch, in words.

    Args:
        found: the ground of a plan.

    Returns:
        A sentence for cohorts of mixed sizes; empty where sizes are alike.
    """
    sizes = sorted(found.sizes.values(), key=math.prod)
    if not sizes or math.prod(sizes[-1]) < 8 * math.prod(sizes[0]):
        return ""
    below = sum(
        any(
            n < p
            for n, p in zip(
                size[-len(found.configuration.patch) :], found.configuration.patch, strict=True
            )
        )
        for size in sizes
    )
    text = f"Sizes are mixed: from {shape_text(sizes[0])} to {shape_text(sizes[-1])} voxels"
    if not below:
        return f"{text}; no case is smaller than the patch, which follows the median case."
    return (
        f"{text}; {below} of {len(sizes)} cases are smaller than the patch"
        f" {shape_text(found.configuration.patch)} along some axis, and the patch follows the"
        " median case. Two systems, one for each kind, may serve them better."
    )
