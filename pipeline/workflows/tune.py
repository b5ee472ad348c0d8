"""Choose post-processing on out-of-fold predictions, and estimate its gain by nested validation.

Data flow: runs and their out-of-fold predictions (tune_study) -> what may be tried (tune_space) ->
tuning.search (candidates) -> tuning.trials (scores by case) -> paired gains ->
RUN/tuning/result.json and an ensemble's YAML.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, plugins, postprocess
from pipeline.config import dump_yaml
from pipeline.files import lock
from pipeline.progress import progress_callback
from pipeline.records import NamedOptions, UserError, printable
from pipeline.reporting import tables
from pipeline.runs import RunFolder
from pipeline.scoring.bootstrap import UNIT_DRAWS
from pipeline.training.summary import class_names, named_regions
from pipeline.tuning import filters, search
from pipeline.tuning.nnunet_rule import nnunet_rule
from pipeline.tuning.search import Candidate, Gain, SearchPlan
from pipeline.tuning.trials import Measure, Trials, workers_for
from pipeline.workflows.tune_space import make_search_plan, require_spacings, several_classes
from pipeline.workflows.tune_study import Study, prepare

logger = logging.getLogger(__name__)

ENOUGH_GROUPS = 5
"""Number of groups from which on the bootstrap resamples groups instead of cases."""
OWN, NESTED, OPTIMISTIC = tables.OWN, "tuned (nested)", "tuned on all (optimistic)"
NNUNET = "nnU-Net's rule (nested)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table: the scores of each case, and the candidates that gave them.

    Args:
        name: title of the line.
        candidates: by the part that was held out; under ``""`` the one for all cases.
        cases: scores by case id and metric.
    """

    name: str
    candidates: Mapping[str, Candidate]
    cases: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The ensemble that was written, and what it gains.

    Args:
        spec: the ensemble's YAML.
        chosen: the candidate that was chosen on all cases.
        gains: paired gains by row and reference.
        plugins: the options of a command that uses the ensemble, ``--plugin FILE``, where it
            needs any.
    """

    spec: Path
    chosen: Candidate
    gains: Mapping[str, Mapping[str, Gain]]
    plugins: Sequence[str] = ()


def tune_postprocessing(
    runs: Sequence[Path | str | RunFolder] | Path | str | RunFolder,
    *,
    metric: str | None = None,
    space: Path | str | None = None,
    by: str | None = None,
    out: Path | str | None = None,
    force: bool = False,
    workers: int | None = 1,
    data_dir: Path | str | None = None,
) -> Tuned:
    """Choose post-processing, and of several runs their weights and fusion.

    Args:
        runs: a run folder with out-of-fold predictions, or several of the same cases.
        metric: what is to be improved; None: competition for binary volumes, else the
            config's first.
        space: YAML file with the search space; None: built in.
        by: what is held out from each choice, ``group`` or ``fold``; None: group where there are
            two or more.
        out: ensemble to write; None: ``ensembles/<run>_tuned.yaml``.
        force: replace ``out`` although it was written or changed by something else.
        workers: processes. More than 1 needs ``if __name__ == "__main__":`` in a script; None: one
            per core, as far as memory holds the cases.
        data_dir: data set folder, where the labels have moved since training.

    Returns:
        The ensemble file, the steps that were chosen, and what they gain.

    Raises:
        UserError: for runs that cannot be tuned, and a path that cannot be written.

    Example:
        >>> tune_postprocessing([])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        pipeline.records.UserError: runs: no run folder is named. ...
    """
    given = [runs] if isinstance(runs, str | Path | RunFolder) else runs
    folders = [r.path if isinstance(r, RunFolder) else Path(r) for r in given]
    if not folders:
        raise UserError("runs: no run folder is named. Name one that pipeline.train wrote.")
    if by not in (None, "group", "fold"):
        raise UserError(f"by is {by!r}, must be group or fold.")
    for folder in folders:
        files.require_text("", folder)  # the ensemble's YAML will hold it
    if folders and os.path.isdir(folders[0]):
        files.require_writable("", RunFolder(folders[0]).tuning)
    study = prepare(folders, metric, workers, None if data_dir is None else Path(data_dir))
    spec = Path(out) if out is not None else Path("ensembles") / f"{study.name}_tuned.yaml"
    files.require_replaceable(spec, "an ensemble", MARK, force)
    plan = make_search_plan(study, None if space is None else Path(space))
    require_spacings(study, plan)
    with lock.held(study.folder / lock.NAME), make_trials(study, workers) as trials:
        study = usable(study, trials, plan)
        parts = make_parts(study, by)
        held = ", ".join(f"{name} ({len(ids)})" for name, ids in parts.items())
        logger.info(f"{len(study.cases)} cases; held out in turn: {held}")
        rows, chosen = compare(study, plan, parts, trials)
    gains = compute_gains(study, rows)
    averages = {r.name: means(r) for r in rows}
    logger.info(tables.of_tuning(study.metric.name, study.units, averages, gains, drawn_by(study)))
    for name, candidate in chosen.items():
        logger.info(f"chosen {f'without {name}' if name else 'on all cases'}: {candidate}")
    for row in rows:
        if row.name == NNUNET:
            logger.info(f"{NNUNET}: {'; '.join(sorted({str(c) for c in row.candidates.values()}))}")
    keep_result(study, rows, gains, parts)
    write_spec(spec, study, chosen[""], gains)
    return Tuned(spec=spec, chosen=chosen[""], gains=gains, plugins=plugins.words(study.config))


def make_trials(study: Study, workers: int | None) -> Trials:
    """Open the scores of a study, which are kept in ``RUN/tuning/scores.jsonl``.

    Args:
        study: cases, metric and runs.
        workers: processes; None: one per core, as far as memory allows.

    Returns:
        The scores, to be used as a context manager.
    """
    metrics = (study.metric, *([] if study.metric.name == "dice" else [NamedOptions(name="dice")]))
    number = workers_for(metrics, study.shape, len(study.sources), workers)
    inside = ", inside the field of view" if study.config.data.frames.fov else ""
    logger.info(
        f"metric {study.metric.name} ({'higher' if study.sign > 0 else 'lower'} is better{inside}),"
        f" {number} worker{'s' if number > 1 else ''}"
    )
    return Trials(
        study.cases,
        Measure.of(study.config.data, metrics, study.version),
        study.sources[0].run.tuning_journal,
        number,
        progress_callback("scores"),
    )


def usable(study: Study, trials: Trials, plan: SearchPlan) -> Study:
    """Leave out cases whose score under the present post-processing is not finite.

    No difference could be computed there.

    Args:
        study: all cases.
        trials: scores, opened.
        plan: its ``start`` is the present post-processing.

    Returns:
        The study with the remaining cases.

    Raises:
        UserError: where fewer than 2 cases remain.
    """
    found = trials.scores({case.id: [plan.start] for case in study.cases})
    good = [
        c
        for c in study.cases
        if math.isfinite(found[c.id, plan.start.key].get(study.metric.name, math.nan))
    ]
    if len(good) < len(study.cases):
        missing = sorted({c.id for c in study.cases} - {c.id for c in good})
        logger.warning(
            f"{study.metric.name} has no value for {len(missing)} cases, which are left out:"
            f" {', '.join(missing[:10])}"
        )
    if len(good) < 2:
        raise UserError(
            f"{study.metric.name} has a value for {len(good)} cases; at least 2 are needed. Choose"
            " another --metric."
        )
    return dataclasses.replace(study, cases=tuple(good))


def make_parts(study: Study, by: str | None) -> dict[str, list[str]]:
    """Divide the cases into parts that are held out in turn.

    Args:
        study: the cases, with their groups and folds.
        by: ``group`` or ``fold``; None: group where every case has one and there are at least two.

    Returns:
        Case ids by the part's name.

    Raises:
        UserError: where there are fewer than two parts.
    """
    ids = [c.id for c in study.cases]
    groups = {i: study.groups[i] for i in ids}
    whole = all(g is not None for g in groups.values())
    enough = whole and len(set(groups.values())) >= 2
    kind = by or ("group" if enough else "fold")
    if kind == "group" and not enough:
        problem = (
            f"there is only the group {next(iter(groups.values()))}"
            if whole
            else "some cases have no group"
        )
        raise UserError(f"--by group: {problem}. Use --by fold.")
    by_case = {
        i: str(groups[i]) if kind == "group" else f"fold {study.sources[0].fold_of[i]}" for i in ids
    }
    if len(set(by_case.values())) < 2:
        raise UserError(
            "only one fold is finished and there are no two groups, so nothing can be held out."
            " Train another fold first."
        )
    return search.deal(by_case)


# --- gains ----------------------------------------------------------------------------------------


def compare(
    study: Study, plan: SearchPlan, parts: Mapping[str, Sequence[str]], trials: Trials
) -> tuple[list[Row], dict[str, Candidate]]:
    """Search with each part held out in turn and on all cases, and score what was chosen.

    Args:
        study: cases, metric and runs.
        plan: what the search may try.
        parts: case ids by part.
        trials: scores, opened.

    Returns:
        The rows of the table, and the choices: under ``""`` the one on all cases, under a part's
        name the one made without that part.
    """
    rounds = itertools.count(1)

    def evaluate(wanted: Mapping[str, Sequence[Candidate]]) -> dict[tuple[str, str], float]:
        new = trials.missing(wanted)
        logger.info(
            f"round {next(rounds)}: {max(map(len, wanted.values()))} candidates, {new} scores to"
            " compute"
        )
        found = trials.scores(wanted)
        return {
            pair: study.sign * scores.get(study.metric.name, math.nan)
            for pair, scores in found.items()
        }

    chosen = search.nested(plan, parts, evaluate, filters.search)
    rule = by_nnunet(study, plan.start, parts, trials)
    fixed = {OWN: plan.start, **plan.also}
    part_of = {case: part for part, cases in parts.items() for case in cases}
    wanted = {
        c.id: [
            *fixed.values(),
            *([rule[part_of[c.id]]] if rule else []),
            chosen[part_of[c.id]],
            chosen[search.ALL],
        ]
        for c in study.cases
    }
    found = trials.scores(wanted)
    lines = [
        (name, {search.ALL: c}, dict.fromkeys(part_of, c))
        for name, c in {**fixed, OPTIMISTIC: chosen[search.ALL]}.items()
    ]
    for name, choices in ((NNUNET, rule), (NESTED, chosen)):
        if choices:
            by_part = {part: c for part, c in choices.items() if part != search.ALL}
            lines.insert(-1, (name, by_part, {i: choices[part] for i, part in part_of.items()}))
    rows = [
        Row(
            name=name,
            candidates=candidates,
            cases={c.id: found[c.id, used[c.id].key] for c in study.cases},
        )
        for name, candidates, used in lines
    ]
    return rows, chosen


def by_nnunet(
    study: Study, present: Candidate, parts: Mapping[str, Sequence[str]], trials: Trials
) -> dict[str, Candidate]:
    """Choose largest components by nnU-Net's rule, see :mod:`pipeline.tuning.nnunet_rule`.

    Args:
        study: cases and runs.
        present: of its steps only the deciding one is used.
        parts: case ids by part.
        trials: scores, opened.

    Returns:
        Choices as those of the search; none of a system with one foreground class.
    """
    values, data = several_classes(study.config), study.config.data
    if not values:
        return {}
    objects = data.unions or tuple((v,) for v in values)
    names = [f"dice_{n}" for n in (range(1, len(objects) + 1) if data.unions else values)]
    deciding = tuple(step for step in present.steps[:1] if postprocess.decides(step))

    def dices(candidates: Sequence[Candidate]) -> dict[tuple[str, str], list[float]]:
        found = trials.scores({c.id: candidates for c in study.cases})
        return {
            pair: [scores.get(name, math.nan) for name in names] for pair, scores in found.items()
        }

    return nnunet_rule(dataclasses.replace(present, steps=deciding), objects, parts, dices)


def compute_gains(study: Study, rows: Sequence[Row]) -> dict[str, dict[str, Gain]]:
    """Paired gains of every row over the present post-processing and over the first baseline.

    Args:
        study: cases and metric.
        rows: the rows of the table.

    Returns:
        Gains by row and reference.
    """
    ids = [c.id for c in study.cases]
    values = {
        r.name: np.array([study.sign * r.cases[i].get(study.metric.name, math.nan) for i in ids])
        for r in rows
    }
    units = bootstrap_units(study)
    references = [name for name in (OWN, next(iter(search.BASELINES))) if name in values]
    return {
        row.name: {
            name: search.gain(values[row.name] - values[name], units, seed=study.config.seed)
            for name in references
        }
        for row in rows
    }


def bootstrap_units(study: Study) -> list[str]:
    """What the bootstrap resamples as a whole: groups where there are enough, else cases.

    Args:
        study: cases and their groups.

    Returns:
        The unit of each case, in the order of the cases.
    """
    groups = [study.groups[c.id] for c in study.cases]
    enough = None not in groups and len(set(groups)) >= ENOUGH_GROUPS
    return [str(g) for g in groups] if enough else [c.id for c in study.cases]


def drawn_by(study: Study) -> str:
    """Name what the bootstrap resamples.

    Args:
        study: cases and their groups.

    Returns:
        ``groups`` or ``cases``.
    """
    return "groups" if len(set(bootstrap_units(study))) < len(study.cases) else "cases"


def means(row: Row) -> dict[str, float]:
    """Mean of every metric over the cases in which it is finite.

    Args:
        row: scores by case.

    Returns:
        Means by metric, NaN where no case has a finite value.
    """
    names = dict.fromkeys(k for scores in row.cases.values() for k in scores)
    out = {}
    for name in names:
        values = [v for s in row.cases.values() if math.isfinite(v := s.get(name, math.nan))]
        out[name] = sum(values) / len(values) if values else math.nan
    return out


# --- output ---------------------------------------------------------------------------------------


def keep_result(
    study: Study,
    rows: Sequence[Row],
    gains: Mapping[str, Mapping[str, Gain]],
    parts: Mapping[str, Sequence[str]],
) -> None:
    """Write all rows, scores by case, gains, and choices by part as JSON.

    The file is ``RUN/tuning/result.json``, for several runs ``result_A+B.json``.

    Args:
        study: cases, metric and runs.
        rows: the rows of the table.
        gains: paired gains by row and reference.
        parts: case ids by part.
    """
    name = "result.json" if len(study.sources) == 1 else f"result_{study.name}.json"
    files.write_json(
        study.folder / name,
        {
            "runs": [str(s.folder) for s in study.sources],
            "metric": study.metric,
            "better": "higher" if study.sign > 0 else "lower",
            "units": study.units,
            "class_names": class_names(study.config),
            **named_regions(study.config),
            "parts": parts,
            "bootstrap": {"resamples": UNIT_DRAWS, "unit": drawn_by(study)[:-1]},
            "rows": [
                {
                    "name": row.name,
                    "chosen": {
                        part or "all": {"text": str(c), **dataclasses.asdict(c)}
                        for part, c in row.candidates.items()
                    },
                    "mean": means(row),
                    "gains": gains[row.name],
                    "cases": row.cases,
                }
                for row in rows
            ],
        },
    )


MARK = "# Written by pipeline.tune, checksum "


def spec_text(study: Study, chosen: Candidate, gains: Mapping[str, Mapping[str, Gain]]) -> str:
    """The ensemble as YAML, below a comment with its origin and what it gains.

    Args:
        study: cases, metric and runs.
        chosen: the candidate that was chosen on all cases.
        gains: paired gains by row and reference.

    Returns:
        The text; its first line holds a checksum of the rest, see :mod:`pipeline.files.generated`.
    """
    members = [
        {"run": str(s.folder), "folds": list(s.folds), "weight": w}
        for s, w in zip(study.sources, chosen.weights, strict=True)
        if w > 0
    ]
    content = {
        "members": members,
        "fusion": chosen.fusion,
        "postprocess": json.loads(json.dumps([_as_yaml(s) for s in chosen.steps])),
    }
    nested = gains[NESTED]
    lines = [
        f"{time.strftime('%Y-%m-%d')}   {command(study)}",
        (
            f"Chosen on {len(study.cases)} cases by {study.metric.name}. Honest gain (each case"
            " under the choice made without its part), 95 %:"
        ),
        *(
            f"  {found} over {reference}; better in {found.better}, worse in {found.worse} cases"
            for reference, found in nested.items()
        ),
    ]
    # A name with a line feed must not end the comment.
    lines = [printable(line).replace("\n", "\\n") for line in lines]
    body = "".join(f"# {line}\n" for line in lines) + dump_yaml(
        content, default_flow_style=None, width=120
    )
    return files.with_checksum(MARK, body)


def command(study: Study) -> str:
    """The command line, quoted for a shell.

    Args:
        study: its runs stand for the arguments where Python, not the command, was called.

    Returns:
        One line.
    """
    words = (
        sys.argv[1:] if Path(sys.argv[0]).stem == "tune" else [str(s.folder) for s in study.sources]
    )
    return shlex.join(["python", "-m", "pipeline.tune", *words])


def _as_yaml(step: NamedOptions) -> dict[str, Any] | str:
    return {"name": step.name, "options": dict(step.options)} if step.options else step.name


def write_spec(
    out: Path, study: Study, chosen: Candidate, gains: Mapping[str, Mapping[str, Gain]]
) -> None:
    """Write the ensemble, whole or not at all.

    Args:
        out: the YAML file.
        study: cases, metric and runs.
        chosen: the candidate that was chosen on all cases.
        gains: paired gains by row and reference.
    """
    files.write_text(out, spec_text(study, chosen, gains))
