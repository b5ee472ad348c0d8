"""Planning: look at a data set once, decide, measure a step, and write a config with its reasons.

Data flow: arrangement -> look (fingerprint) -> decisions -> precision, cost, schedule -> YAML.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import re
import shlex
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from pipeline import files
from pipeline.config import Data, find_config
from pipeline.data import cases as case_finder
from pipeline.data.layouts import layout_of
from pipeline.files import require_text
from pipeline.inference import devices
from pipeline.invocation import called
from pipeline.planning import cost as costs
from pipeline.planning import decide, plan_file, precision, schedule, tables
from pipeline.planning.arrangement import arrange
from pipeline.planning.cost import Cost
from pipeline.planning.decide import DatasetPlan
from pipeline.planning.ground import PlanRequest
from pipeline.planning.kept import as_kept
from pipeline.planning.look import fingerprint_of
from pipeline.planning.presets import PRESETS
from pipeline.planning.sample import SampleCase
from pipeline.planning.schedule import Workload
from pipeline.progress import bars_shown, progress_callback
from pipeline.records import Case, UserError
from pipeline.runs import RunFolder
from pipeline.tasks import TASKS
from pipeline.workflows.checks import Request
from pipeline.workflows.locking import run_lock

logger = logging.getLogger(__name__)

BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(?:G|GB|GiB)?", re.IGNORECASE)
"""A number of gigabytes, with or without its unit."""

CLASSES = (80.0, 40.0, 24.0, 16.0, 8.0)
"""Memory in GiB that devices are sold with; one of 79.1 GiB counts as 80."""

SLACK = 0.9
"""Share of such a size that a device must report."""

SURFACE = "surface"
"""The competition's system, which is trained where no config and no other folder is named."""


class MinutesError(UserError):
    """The minutes that were asked for are too few.

    Args:
        message: what takes how long, and the ways out.
        plan: the plan that takes the least time.
    """

    def __init__(self, message: str, plan: DatasetPlan) -> None:
        super().__init__(message)
        self.plan = plan


def plan_dataset(
    root: Path | str,
    *,
    preset: str | None = None,
    budget: str | None = None,
    minutes: float | None = None,
    configuration: str | None = None,
    images: str | None = None,
    targets: str | None = None,
    name: str | None = None,
    device: str = "auto",
    progress: bool = False,
    on_facts: Callable[[str], object] | None = None,
) -> DatasetPlan:
    """Plan a system for a folder of images and labels.

    Every file is read once; then one training step is measured on the device at hand.

    Args:
        root: data set folder: nnU-Net's, the competition's, or folders of images and targets.
        preset: nnU-Net's rules: ``plain``, ``resenc-m``, ``resenc-l``, ``resenc-xl``; None: those
            that fit the budget, on a CPU our own.
        budget: ``cpu``, or memory such as ``24G``; None: that of the preset where one is given,
            else of the device at hand.
        minutes: wall time of training all folds; None: nnU-Net's length, on a CPU an hour.
        configuration: ``2d``, ``3d_fullres`` or ``3d_lowres``; None: chosen.
        images: folder of the images below ``root``, where names leave a choice; None: found.
        targets: folder of their labels or target images; None: found.
        name: of the system; None: that of the folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, to measure on.
        progress: show a bar on a terminal.
        on_facts: called with the page of facts before anything is measured.

    Returns:
        The plan: its ``config`` can be trained, ``write_plan`` makes a file of it.

    Raises:
        UserError: for a folder that holds no data set, and for what cannot be asked for.
        MinutesError: ``minutes`` are too few; its ``plan`` is the one that takes the least time.

    Example:
        >>> plan_dataset("nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        pipeline.records.UserError: nowhere ...
    """
    root, used = Path(root), devices.resolve(device)
    require_text("the data set's folder", root)
    gigabytes = _gigabytes(budget, preset, used)
    length = minutes
    if minutes is None and gigabytes is None and preset is None:
        length = decide.MINUTES
    request = PlanRequest(
        name=_name(name, root),
        preset=preset,
        gigabytes=gigabytes,
        minutes=length,
        configuration=configuration,
    )
    _require_possible(request, used)
    with bars_shown(progress):
        arrangement = arrange(root, images, targets)
        for note in arrangement.notes:
            logger.info(note)
        fingerprint = fingerprint_of(arrangement, progress_callback("looking at the data"))
        if preset is not None and fingerprint.task != "labels":
            raise UserError(
                f"--preset {preset}: nnU-Net's rules are for labels, and {root} holds pairs of"
                " images. Leave --preset out."
            )
        plan = decide.decide(fingerprint, request)
        if on_facts is not None:
            on_facts(tables.table(fingerprint))
        return _measured(plan, used, request, given=minutes is not None)


def _require_possible(request: PlanRequest, device: str) -> None:
    """Raise UserError for options that do not go together."""
    on_cpu = devices.kind(device) == "cpu"
    needs_gpu = request.preset is not None or request.gigabytes is not None
    if request.minutes is not None and not 0 < request.minutes < 1e6:
        raise UserError(f"--minutes is {request.minutes:g}, must be above 0 and below a million.")
    if request.minutes is not None and needs_gpu and on_cpu:
        raise UserError(
            f"--minutes {request.minutes:g} needs a measured step, and there is no CUDA device here"
            " to measure one for a GPU's plan. Plan on the machine that will train, take --budget"
            " cpu, or leave --minutes out."
        )


def _gigabytes(budget: str | None, preset: str | None, device: str) -> float | None:
    """Memory to plan for; None: a CPU, or that of the preset."""
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset is {preset!r}, must be one of {', '.join(PRESETS)}.")
    if budget is None:
        if preset is not None or devices.kind(device) == "cpu":
            return None
        free = torch.cuda.get_device_properties(device).total_memory / 2**30
        return next((size for size in CLASSES if free >= SLACK * size), round(free, 1))
    if budget.strip().lower() == "cpu":
        if preset is not None:
            raise UserError(
                f"--preset {preset} is sized for the memory of a GPU, --budget cpu is none. Leave"
                " one of them out: without --preset our own rules plan for the CPU."
            )
        return None
    given = BUDGET.fullmatch(budget.strip())
    if given is None or not 1 <= float(given[1]) <= 4096:
        raise UserError(
            f"--budget is {budget!r}, must be cpu or the memory of a GPU from 1G to 4096G, such as"
            " 8G, 24G or 80G."
        )
    return float(given[1])


def _name(name: str | None, root: Path) -> str:
    """A name that can be a folder's."""
    given = name or os.path.basename(os.path.realpath(root))  # resolve() raises for a loop of links
    made = re.sub(r"[^\w.-]+", "_", given).strip("._") or "plan"
    if name is not None and made != name:
        raise UserError(
            f"--name is {name!r}; it becomes a folder: use letters, digits, '.', '_' and '-'."
        )
    return made


def _measured(plan: DatasetPlan, device: str, request: PlanRequest, given: bool) -> DatasetPlan:
    """The plan with measured cost, and the schedule of its minutes.

    Raises MinutesError where they are given and too few.
    """
    for_cpu = plan.ground.preset is None and request.gigabytes is None
    on_cpu = devices.kind(device) == "cpu"
    if for_cpu != on_cpu:
        if for_cpu:
            device = "cpu"
        else:
            return plan
    config = plan.config
    sample = _sample(plan)
    if for_cpu:
        fastest = precision.fastest(config, sample.channels, sample.outputs, _tell)
        plan = decide.with_precision(plan, fastest)
        config = plan.config
    cost = _cost(plan, device)
    if not on_cpu:
        plan, cost = _corrected(plan, cost, device)
        config = plan.config
    work = _workload(plan)
    if not cost.fits:
        return dataclasses.replace(plan, cost=cost)
    if request.minutes is None:
        made = schedule.expected(config, cost, work)
        return dataclasses.replace(plan, cost=cost, schedule=made)
    try:
        return decide.with_schedule(plan, cost, schedule.schedule_for(request.minutes, cost, work))
    except schedule.TooShortError as error:
        text = (
            f"{request.minutes:g} minutes are too few here. This is the plan that takes the least"
            " time."
        )
        shortest = decide.with_schedule(plan, cost, error.shortest)
        shortest = dataclasses.replace(shortest, remarks=(*shortest.remarks, text))
        if given:
            raise MinutesError(str(error), shortest) from None
        return shortest


def _tell(text: str) -> None:
    logger.info(f"Measuring: {text}")


def _cost(plan: DatasetPlan, device: str) -> Cost:
    """Measure a plan on its median case."""
    return costs.measure(plan.config, _sample(plan), device, _tell)


HALF = 0.5
"""Share of the memory that is planned for where a step did not fit: nobody knows by how much."""

MARGIN = 0.95
"""Share of the memory that a second plan aims at."""


def _corrected(plan: DatasetPlan, cost: Cost, device: str) -> tuple[DatasetPlan, Cost]:
    """The plan, once more where a measured step takes more memory than was planned for.

    Rules that were asked for by name stay as they are, which a remark then says.
    """
    request, preset = plan.ground.request, plan.ground.preset
    given = request.gigabytes or (PRESETS[preset].gigabytes if preset is not None else 0.0)
    taken = max(cost.memory, cost.reserved) / 2**30
    if preset is None or (cost.fits and taken <= given):
        return plan, cost
    found = f"takes {taken:.1f} GB" if cost.fits else "does not fit into the device"
    if request.preset is not None or request.gigabytes is None:
        text = (
            f"A step {found}, planned were {given:g} GB. --preset keeps nnU-Net's rules; --budget"
            " alone plans what fits."
        )
        return dataclasses.replace(plan, remarks=(*plan.remarks, text)), cost
    share = MARGIN * given / taken if cost.fits else HALF
    logger.info(f"A step {found}, planned were {given:g} GB: planning again for {share:.0%} of it")
    again = decide.decide(plan.fingerprint, dataclasses.replace(request, share=share))
    text = (
        f"A step of the first plan {found}: this one was planned for {share:.0%} of {given:g} GB."
    )
    again = dataclasses.replace(again, remarks=(*again.remarks, text))
    return again, _cost(again, device)


def _workload(plan: DatasetPlan) -> Workload:
    """What all folds of a plan are; blocks of a stack are its cases."""
    folds = plan.config.data.folds
    cases = folds.count if folds.by == "block" else len(plan.fingerprint.cases)
    return schedule.workload(cases, folds.count, plan.config)


def _sample(plan: DatasetPlan) -> SampleCase:
    """The case of median size, to measure on; of a stack that is divided, a block."""
    ground, config = plan.ground, plan.config
    facts = sorted(plan.fingerprint.cases, key=lambda c: math.prod(c.shape))
    case = facts[len(facts) // 2]
    folds, channels = config.data.folds, len(plan.fingerprint.channels)
    parts = folds.count if folds.by == "block" else 1
    return SampleCase(
        shape=_part(ground.sizes[case.id], parts),
        native=_part(case.shape, parts),
        channels=channels,
        outputs=TASKS[config.rules].channels(config, channels),
        classes=config.data.classes,
        spacing=case.spacing,
        codes=case.codes,
        dtype=case.dtype,
        shapes=tuple(_part(size, parts) for size in ground.sizes.values()),
        case=_case(plan, case.id),
    )


def _part(shape: Sequence[int], parts: int) -> tuple[int, ...]:
    """A shape with its longest axis divided."""
    longest = max(range(len(shape)), key=lambda axis: shape[axis])
    return tuple(max(1, n // parts) if axis == longest else n for axis, n in enumerate(shape))


def _case(plan: DatasetPlan, name: str) -> Case | None:
    """The files of a case."""
    config = plan.config
    found = case_finder.find(config.data, config.roles, Path(config.data.root))
    return next((case for case in found.train if case.id == name), None)


# --- files and words ------------------------------------------------------------------------------


def write_plan(plan: DatasetPlan, out: Path, force: bool = False) -> Path:
    """Write a plan as YAML, and its fingerprint beside it.

    Args:
        plan: the plan.
        out: the YAML file.
        force: replace a file although somebody has changed it, or made it otherwise.

    Returns:
        The file of the fingerprint.

    Raises:
        UserError: where ``out`` may not be written, or holds what this would lose.
    """
    guard(out, force)
    fingerprint = plan_file.fingerprint_path(out)
    kept = as_kept(plan)
    files.write_text(fingerprint, kept.fingerprint or "")
    files.write_text(out, kept.text)
    return fingerprint


def default_out(name: str | None, root: Path) -> Path:
    """The file that a plan is written to where no other is named.

    Args:
        name: of the system; None: that of the folder.
        root: data set folder.

    Returns:
        ``NAME.yaml``.

    Raises:
        UserError: for a name that can be no folder's.
    """
    return Path(f"{_name(name, root)}.yaml")


def guard(out: Path, force: bool) -> None:
    """Check that a plan can be written without loss.

    Args:
        out: the YAML file.
        force: replace what is there.

    Raises:
        UserError: where it cannot.
    """
    run = RunFolder(out.parent)
    if out.name == run.plan_file.name and run.exists:
        raise UserError(
            f"{out} is the plan of the run {run.path}, which goes on with it. Choose another --out."
        )
    files.require_replaceable(out, "a plan", plan_file.MARK, force)
    beside = plan_file.fingerprint_path(out)
    if not force and not os.path.lexists(out) and os.path.lexists(beside):
        raise UserError(
            f"{beside} is there, and {out} is not, whose fingerprint it would be. Choose another"
            " --out, or replace it with --force."
        )


def other_run(plan: DatasetPlan) -> str:
    """What to say where a run of the plan's name is there, which goes on with its own plan only.

    Args:
        plan: the plan.

    Returns:
        A sentence; empty where there is none, or it has this very config.
    """
    run = RunFolder(Path("runs") / plan.config.name)
    try:
        if not run.changed_settings(plan.config):
            return ""
    except UserError:  # training will say what is wrong with it
        return ""
    own = f" (--config {run.plan_file})" if run.plan_file.is_file() else ""
    return (
        f"{run.path} holds a run of another plan, which goes on with its own only{own}. To train"
        " this one, choose another --out or --name, or start over with --fresh."
    )


def described(plan: DatasetPlan) -> str:
    """What a plan says besides its facts, for people: configurations, decisions, costs.

    Args:
        plan: the plan.

    Returns:
        Lines of text.
    """
    lines = ["", "Configurations"]
    lines += decide.configurations(plan)
    lines += ["", "Decisions"]
    lines += decide.decisions(plan)
    lines.append("")
    notes = [*plan.remarks, *filter(None, [other_run(plan)])]
    for text in (*decide.costs(plan), *(f"Note: {text}" for text in notes)):
        lines += textwrap.wrap(text, tables.WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


@contextlib.contextmanager
def config_for(config: Path | None, request: Request, dry_run: bool = False) -> Iterator[Path]:
    """The config of a training: the one that was named, or the one that its data ask for.

    The latter is that of the competition for its data, and where no folder is named; the plan of
    the run where it has one; else a new plan. Several processes that start on one run plan it once.

    Args:
        config: the file that was named, or the name of one that comes with the package; None: none.
        request: folders and device that training was asked for.
        dry_run: nothing is kept.

    Yields:
        A file; a new plan lies in the run folder, one that is not to be kept yet elsewhere.

    Raises:
        UserError: as :func:`plan_dataset`; and of several ranks without a plan.
    """
    root = request.data_dir
    if config is not None:
        yield find_config(config)
        return
    if root is None or layout_of(Data(layout="competition"), root) is not None:
        if root is None:
            logger.info(
                "No --config and no --data-dir: training the surface competition's system. For your"
                f" own images: {called('train')} --data-dir DIR; {called('list')} configs names"
                " other systems"
            )
        yield find_config(SURFACE)
        return
    run = RunFolder(request.out or Path("runs") / _name(None, root))
    if run.plan_file.is_file() and not request.fresh:
        logger.info(f"No --config: training goes on with the plan of this run, {run.plan_file}")
        yield run.plan_file
        return
    _require_plannable(run, root, request)
    logger.info(
        f"No --config: planning {root} first. To choose time, memory or rules yourself:"
        f" {called('plan')} {shlex.quote(str(root))}"
    )
    if dry_run or request.fresh:  # an old run keeps its own plan
        with tempfile.TemporaryDirectory(prefix="pipeline_plan_") as folder:
            elsewhere = RunFolder(Path(folder))
            _plan_into(elsewhere, root, request.device)
            yield elsewhere.plan_file
        return
    with run_lock(run):
        if not run.plan_file.is_file():
            _plan_into(run, root, request.device)
    yield run.plan_file


def _require_plannable(run: RunFolder, root: Path, request: Request) -> None:
    """Raise UserError where there is nothing to plan, and where a plan would not fit the run."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "several ranks train together, and none may plan for the others. Plan first:"
            f" {called('plan')} {shlex.quote(str(root))}; then name the plan with --config."
        )
    if run.exists and not request.fresh:
        raise UserError(
            f"{run.path} holds a run that was not planned. Name its config with --config, choose"
            " another --out, or start over with --fresh."
        )
    arrange(root)  # a folder that holds no data set leaves no run folder behind


def _plan_into(run: RunFolder, root: Path, device: str) -> None:
    """Plan a data set into a run folder, and say it."""
    plan = plan_dataset(root, device=device, on_facts=logger.info)
    run.keep_plan(as_kept(plan))
    logger.info(described(plan))
