"""What the search for post-processing may try: the built-in space, or that of a file."""

from __future__ import annotations

import itertools
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline import postprocess
from pipeline.config import Config, ConfigError, read_yaml, structure
from pipeline.inference import soft
from pipeline.records import NamedOptions, UserError
from pipeline.scoring.patches import classes_of
from pipeline.tuning import filters, search
from pipeline.tuning.search import SearchPlan
from pipeline.tuning.usual import usual_sizes
from pipeline.workflows.tune_study import Study

logger = logging.getLogger(__name__)

STEPS = {2: 8, 3: 4, 4: 3}
"""Into how many steps the weights of so many members are divided."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a ``--space`` file may hold."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic
    stages: tuple[tuple[tuple[NamedOptions, ...], ...], ...]
    """Alternatives, each a list of steps, by stage.

    A candidate takes one alternative from each stage, in this order; the deciding step belongs to
    the first.
    """


def make_search_plan(study: Study, file: Path | None) -> SearchPlan:
    """The search space, with the baselines and, for several runs, their weights and fusions.

    Args:
        study: cases, metric and runs.
        file: YAML file of ``--space``; None: the built-in space.

    Returns:
        What the search may try.

    Raises:
        UserError: for a file that cannot be used.
    """
    channels, *space = study.shape
    edge = math.prod(space) ** (1 / len(space))
    own = study.config.postprocess
    stages = (
        read_space(file, channels, len(space))
        if file
        else search.space(own, edge, channels, len(space))
    )
    if study.config.data.regions is not None:  # the step that writes their labels is always there
        stages = (tuple(_decided(s, own[:1]) for s in stages[0]), *stages[1:])
    if left := [
        s.name for s in own if postprocess.POSTPROCESS[s.name].search is None and file is None
    ]:
        logger.warning(
            f"{', '.join(left)}: no search knows this step, so what is tried leaves it out; see"
            " search in its PostprocessStep"
        )
    weights = tuple(1.0 for _ in study.sources)
    also = (
        {name: search.Candidate(steps=s, weights=weights) for name, s in search.BASELINES.items()}
        if channels == 1 and study.config.data.regions is None
        else {}
    )
    for n, source in enumerate(study.sources if len(weights) > 1 else ()):
        alone = tuple(float(i == n) for i in range(len(weights)))
        also[f"{Path(os.path.realpath(source.folder)).name} alone"] = search.Candidate(
            steps=own, weights=alone
        )
    return search.SearchPlan(
        start=search.Candidate(steps=own, weights=weights),
        stages=stages,
        mixtures=mixtures(len(weights)),
        also=also,
        filters={} if file else class_filters(study),
    )


def several_classes(config: Config) -> tuple[int, ...]:
    """Label values of the foreground that a system writes, where they are several.

    Args:
        config: its config.

    Returns:
        The values, ascending; none of a system with one foreground class.
    """
    order = config.data.regions_class_order
    values = classes_of(config.data) if order is None else tuple(sorted(set(order)))
    return values if len(values) > 1 else ()


def class_filters(study: Study) -> dict[int, tuple[NamedOptions, ...]]:
    """Filters of components that are tried for each class by itself.

    Their sizes are shares of a usual component of the class in the labels; in mm³ where the present
    list has its ``dust`` in mm³.

    Args:
        study: cases and runs.

    Returns:
        Filters by label value, the weakest first; none of a system with one foreground class.
    """
    values, own = several_classes(study.config), study.config.postprocess
    if not values:
        return {}
    in_mm3 = any(postprocess.resolved(s).name == "dust" and postprocess.in_mm3([s]) for s in own)
    spacings = (
        {
            c.id: spacing
            for c in study.cases
            if (spacing := soft.load(c.soft[0], c.id).spacing) is not None and len(spacing) == 3
        }
        if in_mm3
        else None
    )
    usual = usual_sizes(study.cases, study.config.data, values, spacings)
    logger.info(
        "usual component: "
        + ", ".join(f"class {v} {size:.3g}" for v, size in usual.items())
        + (" mm³" if in_mm3 else " voxels")
    )
    return {v: filters.class_filters(usual[v], "mm3" if in_mm3 else "below") for v in usual}


def _decided(
    steps: tuple[NamedOptions, ...], deciding: tuple[NamedOptions, ...]
) -> tuple[NamedOptions, ...]:
    """The steps, begun with ``deciding`` where none of them decides."""
    return steps if steps and postprocess.decides(steps[0]) else (*deciding, *steps)


def read_space(
    file: Path, channels: int, dims: int
) -> tuple[tuple[tuple[NamedOptions, ...], ...], ...]:
    """Read the stages of a ``--space`` file.

    Args:
        file: the YAML file.
        channels: K of the predictions.
        dims: space axes.

    Returns:
        Alternatives by stage, each a list of steps.

    Raises:
        UserError: where there is no such file.
        ConfigError: for structure, names, options, and deciding steps after the first stage.
    """
    if not os.path.isfile(file):
        raise UserError(f"--space {file}: no such file.")
    stages = structure(read_yaml(file), Space, str(file)).stages
    if not stages or not all(stages):
        raise ConfigError(
            f"{file}: stages: give at least one stage, and in each stage at least one alternative;"
            " [] is no step at all."
        )
    for i, stage in enumerate(stages):
        for steps in stage:
            postprocess.check(steps, channels, dims)
            if i and steps and postprocess.decides(steps[0]):
                raise ConfigError(
                    f"{file}: stage {i}: {steps[0].name!r} takes a soft prediction. Move it to the"
                    " first stage."
                )
    return stages


def require_spacings(study: Study, plan: SearchPlan) -> None:
    """Check that sizes in mm³ can be followed in every case.

    Args:
        study: the cases.
        plan: what the search may try.

    Raises:
        UserError: for cases whose images carry no unit of length.
    """
    tried = (plan.start.steps, *itertools.chain(*plan.stages))
    steps = [step for steps in tried for step in steps]
    if not postprocess.in_mm3(steps):
        return
    found = {
        c.id: problem
        for c in study.cases
        if (problem := postprocess.problem_of(steps, soft.load(c.soft[0], c.id).spacing))
    }
    if found:
        (problem, suggestion), names = next(iter(found.values())), ", ".join(list(found)[:10])
        raise UserError(
            f"the image of each of {len(found)} cases ({names}) {problem}. {suggestion}."
        )


def mixtures(members: int) -> tuple[tuple[tuple[float, ...], str], ...]:
    """Weights on a grid over the simplex with each fusion; equal weights first.

    Args:
        members: number of members; one alone needs no fusion.

    Returns:
        Pairs of weights, one per member, and fusion.

    Example:
        >>> mixtures(1)
        (((1.0,), 'mean'),)
        >>> len(mixtures(2))
        16
    """
    if members == 1:
        return (((1.0,), "mean"),)
    steps = STEPS.get(members, 2)
    grid = [w for w in itertools.product(range(steps + 1), repeat=members) if sum(w) == steps]
    equal = tuple(1.0 for _ in range(members))
    weights = [
        equal,
        *(w for w in (tuple(n / steps for n in row) for row in grid) if len(set(w)) > 1),
    ]
    several = [w for w in weights if sum(n > 0 for n in w) > 1]
    return (*((w, "mean") for w in weights), *((w, "logit") for w in several))
