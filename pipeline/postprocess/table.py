"""The table of post-processing steps: what each is, what it sees, and what tuning tries of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.morphology.sizes import least_voxels, most_voxels
from pipeline.postprocess import steps
from pipeline.records import NamedOptions
from pipeline.registry import Alias, Registry

Options = Mapping[str, Any]
"""Options of a step by name."""

Sees = Literal["local", "components", "whole"]
"""What a step has to see of an array to change some of its rows.

``local``: each row along the first space axis by itself. ``components``: tables of components, so
it takes and gives a :class:`pipeline.morphology.SlabArray` as well as an array in memory, the
number type being the same for any values. ``whole``: the array in memory.
"""

Vary = Callable[[Any], Iterable[Any]]
"""From a number (or a list of them) to those near it that tuning tries in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSetting:
    """Which predictions a search is for.

    Args:
        channels: K of the probabilities.
        dims: their space axes.
        scale: factor of numbers of voxels.
        decided: whether the present post-processing begins with a deciding step.

    Example:
        >>> SearchSetting(channels=1, dims=3, scale=0.5, decided=False).voxels(1, 25, 100)
        [1, 12, 50]
    """

    channels: int
    dims: int
    scale: float
    decided: bool

    def voxels(self, *counts: float) -> list[int]:
        """Scale sizes of small components and holes.

        Args:
            *counts: numbers of voxels at scale 1.

        Returns:
            The sizes at this scale, to two digits, at least 1.
        """
        return [max(1, int(float(f"{n * self.scale:.2g}"))) for n in counts]


def _no_options(_: SearchSetting) -> Iterable[Options]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSearch:
    """What tuning tries of a step.

    Args:
        position: where it stands in a tuned list, in ascending order. Steps of one position are
            alternatives to each other; deciding steps have position 0.
        options: those of each alternative. A step that does not decide may also be left out.
        vary: of a deciding step, the numbers that are varied around the best.
        stays: a step of the present list is neither left out nor changed.

    Example:
        >>> search = StepSearch(position=2, options=lambda setting: [{"below": 20}, {"below": 100}])
        >>> search.stays
        False
    """

    position: float
    options: Callable[[SearchSetting], Iterable[Options]] = _no_options
    vary: Mapping[str, Vary] = field(default_factory=dict)
    stays: bool = False


@dataclass(frozen=True, slots=True)
class VolumeOption:
    """An option in voxels in whose place ``mm3`` may stand, the volume in cubic millimetres.

    Args:
        name: of the option in voxels.
        voxels: from the volume and the spacing to a number of voxels, rounded to the side that
            keeps what the option says: :func:`~pipeline.morphology.sizes.least_voxels` of the
            smallest component that stays, :func:`~pipeline.morphology.sizes.most_voxels` of the
            largest hole that is filled.

    Example:
        >>> VolumeOption("below", least_voxels).voxels(50, (5.0, 0.5, 0.5))
        40
    """

    name: str
    voxels: Callable[[float, Sequence[float]], int]


@dataclass(frozen=True, slots=True)
class PostprocessStep:
    """A post-processing step, as registered in ``POSTPROCESS``.

    Args:
        run: ``f(array, **options)``: labels ``(*S)``, or where it decides probabilities
            ``(K, *S)``, to labels ``(*S)``.
        decides: it takes probabilities, of one channel, of several or of any number; None: it takes
            labels.
        sees: what it has to see, or a function of its options that returns it. ``"local"``: it
            changes each row along the first space axis by itself, wherever it lies (a large array
            comes some rows at a time, and the step does not know which); ``"components"``: it also
            takes and gives a :class:`pipeline.morphology.SlabArray`; ``"whole"``: the array in
            memory.
        bytes_per_voxel: memory that it takes on a whole array, without the probabilities.
        search: what tuning tries; None: nothing, so that a tuned list leaves it out.
        volume: the option in whose place ``mm3`` may stand; None: there is none. ``run`` only ever
            gets voxels.

    Example:
        >>> def keep_label(array, label=1):
        ...     return array * (array == label)
        >>> step = PostprocessStep(run=keep_label, sees="local")
        >>> step.run(np.array([[0, 1, 2]]), label=2)
        array([[0, 0, 2]])
    """

    run: Callable[..., np.ndarray]
    _: KW_ONLY
    decides: Literal["one", "several", "any"] | None = None
    sees: Sees | Callable[[Options], Sees] = "whole"
    bytes_per_voxel: int = 20
    search: StepSearch | None = None
    volume: VolumeOption | None = None


REGION_CHANGES = (-0.3, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3)
"""By how much the thresholds of regions are varied in tuning."""


def _added(*changes: float) -> Vary:
    return lambda old: [old + change for change in changes]


def _each_added(*changes: float) -> Vary:
    """Of one number or a list of them: all changed together; those outside 0..1 are left out."""

    def vary(old: Any) -> list[Any]:
        if not isinstance(old, Sequence):
            return [old + change for change in changes]
        moved = [[round(x + change, 6) for x in old] for change in changes]
        single = [
            [round(x + change * (i == n), 6) for i, x in enumerate(old)]
            for n in range(len(old))
            for change in changes
        ]
        return [*moved, *single]

    return vary


def _multiplied(*factors: float) -> Vary:
    return lambda old: [old * factor for factor in factors]


def _each(option: str, values: Sequence[Any]) -> Callable[[SearchSetting], Iterable[Options]]:
    return lambda _: [{option: value} for value in values]


def _threshold_pairs(_: SearchSetting) -> Iterable[Options]:
    pairs = itertools.product((0.5, 0.4, 0.3, 0.2), (0.9, 0.85, 0.75, 0.6))
    return [{"low": low, "high": high} for low, high in pairs]


def _hole_scope(options: Options) -> Sees:
    """Cavities are components of the background, holes of rows are seen in a row."""
    axis = options.get("per_slice")
    return "components" if axis is None else "local" if axis in (0, -3) else "whole"


POSTPROCESS: Registry[PostprocessStep] = Registry(
    "post-processing step",
    {
        "threshold": PostprocessStep(
            run=steps.threshold,
            decides="one",
            sees="local",
            search=StepSearch(
                position=0,
                options=_each("at", (0.5, 0.4, 0.3, 0.2, 0.6, 0.7)),
                vary={"at": _added(-0.05, -0.025, 0.025, 0.05)},
            ),
        ),
        "hysteresis": PostprocessStep(
            run=steps.hysteresis,
            decides="one",
            sees="components",
            search=StepSearch(
                position=0,
                options=_threshold_pairs,
                vary={"low": _added(-0.1, -0.05, 0.05, 0.1), "high": _added(-0.05, 0.05)},
            ),
        ),
        "walls": PostprocessStep(
            run=steps.walls,
            decides="one",
            bytes_per_voxel=45,
            volume=VolumeOption("least", least_voxels),
            search=StepSearch(
                position=0,
                vary={
                    "low": _multiplied(0.5, 2.0, 5.0),
                    "depth": _added(-0.5, 0.5),
                    "merge": _added(-0.2, -0.1, 0.1, 0.2),
                },
            ),
        ),
        "argmax": PostprocessStep(
            run=steps.argmax,
            decides="several",
            sees="local",
            search=StepSearch(position=0, options=lambda setting: () if setting.decided else ({},)),
        ),
        "regions": PostprocessStep(
            run=steps.regions,
            decides="any",
            sees="local",
            # Tried only where it is the present step, which knows the order.
            search=StepSearch(position=0, vary={"threshold": _each_added(*REGION_CHANGES)}),
        ),
        "opening": PostprocessStep(
            run=steps.opening, search=StepSearch(position=1, options=_each("radius", (1.0,)))
        ),
        "closing": PostprocessStep(
            run=steps.closing,
            search=StepSearch(position=3, options=_each("radius", (1.5, 2.5, 3.5))),
        ),
        "dust": PostprocessStep(
            run=steps.dust,
            sees="components",
            volume=VolumeOption("below", least_voxels),
            search=StepSearch(
                position=2,
                options=lambda setting: [{"below": n} for n in setting.voxels(20, 100, 500, 2000)],
            ),
        ),
        "largest_component": PostprocessStep(
            run=steps.largest_component,
            sees="components",
            search=StepSearch(position=2, options=lambda _: ({},)),
        ),
        "sheet_closing": PostprocessStep(
            run=steps.sheet_closing,
            bytes_per_voxel=30,
            search=StepSearch(position=3, options=_each("radius", (1.5, 2.5, 3.5))),
        ),
        "patch_sheets": PostprocessStep(
            run=steps.patch_sheets,
            bytes_per_voxel=30,
            search=StepSearch(
                position=5,
                options=lambda setting: [{"largest": n} for n in setting.voxels(100, 500)],
            ),
        ),
        "watertight": PostprocessStep(
            run=steps.watertight, search=StepSearch(position=4, options=lambda _: ({},))
        ),
        "fill_holes": PostprocessStep(
            run=steps.fill_holes,
            sees=_hole_scope,
            volume=VolumeOption("below", most_voxels),
            search=StepSearch(
                position=7,
                options=lambda setting: [{"below": n} for n in (*setting.voxels(50), None)],
            ),
        ),
        "thickness": PostprocessStep(
            run=steps.thickness,
            bytes_per_voxel=30,
            search=StepSearch(position=6, options=_each("target", (2.0, 3.0, 4.0))),
        ),
        "instances": PostprocessStep(
            run=steps.instances, bytes_per_voxel=60, search=StepSearch(position=8, stays=True)
        ),
    },
    aliases={
        "remove_small_components": Alias("dust", {"min_size": "below"}),
        "watershed_boundaries": Alias("walls"),
    },
    record=PostprocessStep,
)
"""Steps by name, in the order that is natural for them.

:func:`~pipeline.postprocess.adjust` inserts by it.
"""


def resolved(step: NamedOptions) -> NamedOptions:
    """Replace aliases of a step and its options by their own names.

    Args:
        step: name with options.

    Returns:
        The step under its own names; one of an unknown name is unchanged.

    Example:
        >>> resolved(NamedOptions(name="remove_small_components", options={"min_size": 9}))
        NamedOptions(name='dust', options={'below': 9})
    """
    name, options = POSTPROCESS.resolve(step.name, step.options)
    return NamedOptions(name=name, options=options)


def decides(step: NamedOptions) -> bool:
    """Check whether a step takes probabilities.

    Args:
        step: name with options.

    Returns:
        True for a deciding step; False for labels and for unknown names.
    """
    return step.name in POSTPROCESS and POSTPROCESS[step.name].decides is not None


def sees(step: NamedOptions) -> Sees:
    """Find what a step has to see, given its options.

    Args:
        step: name with options.

    Returns:
        ``local``, ``components`` or ``whole``.
    """
    of_options = POSTPROCESS[step.name].sees
    return of_options(resolved(step).options) if callable(of_options) else of_options
