"""Scores of candidates on out-of-fold predictions, each computed once, in parallel.

They are kept in a file that only grows: a killed command loses what was being computed at that
moment and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import documents, files, postprocess, processes
from pipeline.config import Data
from pipeline.data.targets import read_labels, read_mask
from pipeline.files import FileError, LazyArray, Rows, checked, parse
from pipeline.inference import soft as softs
from pipeline.inference.fusion import fuse
from pipeline.inference.soft import SoftPrediction
from pipeline.metrics.frames import views
from pipeline.records import METRICS_VERSION, NamedOptions, UserError
from pipeline.scoring import memory
from pipeline.scoring.core import CaseArrays, Rules, score_in, truth_of
from pipeline.scoring.patches import classes_of
from pipeline.tuning.search import Candidate

Scores = dict[str, float]
LEAST = 4
"""Fewest candidates that are worth loading a case for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFiles:
    """The files of a case.

    Args:
        id: of the case.
        soft: one folder with its soft prediction per member.
        label: label file.
        content: hash or stamp of the contents of label and field of view.
        fov: mask of the field of view; None: everything counts.
    """

    id: str
    soft: tuple[Path, ...]
    label: Path
    content: str
    fov: Path | None = None
    spacing: tuple[float, ...] | None = None
    """Millimetres between voxels, where the metric measures lengths and all labels carry a unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How predictions are scored: what label files mean, and the scoring rules.

    Args:
        data: the ``data`` section of a config.
        rules: metrics, ignored label, classes and metrics version.
    """

    data: Data
    rules: Rules

    @classmethod
    def of(
        cls, data: Data, metrics: Sequence[NamedOptions], version: int = METRICS_VERSION
    ) -> Measure:
        """The measure of a data set.

        Args:
            data: the ``data`` section of a config.
            metrics: names and options.
            version: metrics version.

        Returns:
            The measure.
        """
        rules = Rules(
            metrics=tuple(metrics),
            ignore=data.ignore_label,
            classes=classes_of(data),
            regions=data.unions,
            version=version,
        )
        return cls(data=data, rules=rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTask:
    """Candidates to score on one case.

    Args:
        case: its files.
        measure: how predictions are scored.
        candidates: in any order.
    """

    case: CaseFiles
    measure: Measure
    candidates: tuple[Candidate, ...]


# --- one case -------------------------------------------------------------------------------------


def score_case(task: ScoringTask) -> Iterator[tuple[str, Scores]]:
    """Score candidates on one case.

    Files are read once, and common first steps are computed once. Where there is a field of view,
    only what lies inside it counts.

    Args:
        task: the case and the candidates.

    Yields:
        Key and scores of each candidate, in alphabetical order of the keys.
    """
    case, data, rules = task.case, task.measure.data, task.measure.rules
    label = read_labels(case.label, data)[0]
    fov = None if case.fov is None else read_mask(case.fov, data)[0]
    truth = CaseArrays(answer=label, target=label, fov=fov, spacing=case.spacing)
    view = next(views(truth_of(truth, rules)))
    members = [softs.load_sound(folder, case.id) for folder in case.soft]
    outputs = _Outputs(members, case.id, independent=data.regions is not None)
    for candidate in sorted(task.candidates, key=lambda c: c.key):
        found = score_in(view, dataclasses.replace(truth, answer=outputs.of(candidate)), rules)
        yield candidate.key, {k: float(v) for k, v in found.items() if not isinstance(v, Mapping)}


class _Outputs:
    """Outputs of candidates that come in alphabetical order.

    The arrays along the latest one's chain of steps are kept. Sizes in mm³ become voxels by the
    spacing of the first member's geometry.
    """

    def __init__(
        self, members: Sequence[SoftPrediction], case_id: str, independent: bool = False
    ) -> None:
        self.first, self.case_id, self.independent = members[0], case_id, independent
        self.alike = all(soft.space == members[0].space for soft in members)
        given = members if self.alike else [soft.on_file_grid() for soft in members]
        self.members = [soft.main for soft in given]
        self.chain: list[tuple[str, LazyArray]] = []

    def of(self, candidate: Candidate) -> np.ndarray:
        """Labels ``(*S)`` of a candidate."""
        steps = postprocess.decided(candidate.steps, len(self.members[0]))
        mixture = json.dumps([candidate.fusion, candidate.weights])
        links = [
            mixture,
            *(json.dumps([s.name, dict(s.options)], sort_keys=True, default=list) for s in steps),
        ]
        same = next(
            (i for i, (a, b) in enumerate(zip(links, self.chain, strict=False)) if a != b[0]),
            min(len(links), len(self.chain)),
        )
        del self.chain[same:]
        for link, step in list(zip(links, (None, *steps), strict=True))[same:]:
            self.chain.append(
                (
                    link,
                    (
                        self._fused(candidate)
                        if step is None
                        else _labels(step, self.chain[-1][1], self.first.spacing)
                    ),
                )
            )
        return np.asarray(self.chain[-1][1])

    def _fused(self, candidate: Candidate) -> LazyArray:
        """The fused members on the grid of the label."""
        used = [(m, w) for m, w in zip(self.members, candidate.weights, strict=True) if w > 0]
        arrays, weights = [m for m, _ in used], [w for _, w in used]
        fused = fuse(arrays, weights, candidate.fusion, self.case_id, self.independent)
        if not self.alike:
            return fused
        heads = {softs.MAIN: fused[:]}
        return dataclasses.replace(self.first, heads=heads).on_file_grid().main


def _labels(step: NamedOptions, array: LazyArray, spacing: Sequence[float] | None) -> np.ndarray:
    """Labels ``(*S)`` after a step."""
    found = postprocess.run((step,), array, spacing=spacing)
    return found[:][0] if isinstance(found, Rows) else np.asarray(found)


# --- all cases ------------------------------------------------------------------------------------


class Trials:
    """Scores by (case, candidate), read from a file where they are known, else computed.

    New scores are added to the file. Use it as a context manager.

    Args:
        cases: files of the cases.
        measure: how they are scored.
        kept: the file of scores, one line of JSON each.
        workers: processes; 1: none beside this one.
        progress: called with (done, total) at least every second; may raise to stop, and what is
            done by then is kept.
    """

    def __init__(
        self,
        cases: Sequence[CaseFiles],
        measure: Measure,
        kept: Path,
        workers: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self.cases = {case.id: case for case in cases}
        self.measure, self.workers, self.progress = measure, workers, progress
        self.kept = _Kept(kept)
        self.marks = {case.id: _mark(case, measure) for case in cases}
        self.computed = 0
        self._pool: ProcessPoolExecutor | None = None
        self._stop_event: Any = None

    def __enter__(self) -> Trials:
        self.kept.open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self.kept.close()

    def missing(self, wanted: Mapping[str, Sequence[Candidate]]) -> int:
        """Count the scores that are not known yet.

        Args:
            wanted: candidates by case id.

        Returns:
            Number of (case, candidate) pairs to compute.
        """
        return sum(len(task.candidates) for task in self._tasks(wanted))

    def scores(self, wanted: Mapping[str, Sequence[Candidate]]) -> dict[tuple[str, str], Scores]:
        """Scores of candidates, computed where they are not known.

        Args:
            wanted: candidates by case id.

        Returns:
            Scores by metric, by (case, key of the candidate).

        Raises:
            UserError: where a worker process died.
        """
        tasks = self._split(self._tasks(wanted))
        if tasks:
            (self._run_parallel if self.workers > 1 else self._run_serial)(tasks)
        return {
            (case, c.key): self.kept.values[self._name(case, c.key)]
            for case, candidates in wanted.items()
            for c in candidates
        }

    def _name(self, case_id: str, key: str) -> str:
        """Key of a score in the file."""
        return hashlib.sha256((self.marks[case_id] + key).encode()).hexdigest()[:32]

    def _tasks(self, wanted: Mapping[str, Sequence[Candidate]]) -> list[ScoringTask]:
        """What is not known yet, a task per case."""
        tasks = []
        for case_id, candidates in wanted.items():
            new = tuple(c for c in candidates if self._name(case_id, c.key) not in self.kept.values)
            tasks += (
                [ScoringTask(case=self.cases[case_id], measure=self.measure, candidates=new)]
                if new
                else []
            )
        return tasks

    def _split(self, tasks: Sequence[ScoringTask]) -> list[ScoringTask]:
        """Cut tasks so that every worker has some; alphabetical neighbours stay together."""
        pieces = -(-2 * self.workers // max(1, len(tasks))) if self.workers > 1 else 1
        out = []
        for task in tasks:
            ordered = sorted(task.candidates, key=lambda c: c.key)
            size = max(LEAST, -(-len(ordered) // pieces))
            out += [
                ScoringTask(
                    case=task.case, measure=task.measure, candidates=tuple(ordered[i : i + size])
                )
                for i in range(0, len(ordered), size)
            ]
        return out

    def _keep(self, case_id: str, key: str, scores: Scores) -> None:
        self.kept.add(self._name(case_id, key), case_id, scores)
        self.computed += 1

    def _run_serial(self, tasks: Sequence[ScoringTask]) -> None:
        """Score in this process."""
        done, total = 0, sum(len(t.candidates) for t in tasks)
        for task in tasks:
            for key, scores in score_case(task):
                self._keep(task.case.id, key, scores)
                done += 1
                self.progress(done, total)

    def _run_parallel(self, tasks: Sequence[ScoringTask]) -> None:
        """Score in worker processes; keep what is done when interrupted."""
        pool, total = self._processes(), sum(len(t.candidates) for t in tasks)
        running = {pool.submit(_score_task, task): task for task in tasks}
        done = 0
        try:
            while running:
                finished, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in finished:
                    done += self._collect(future, running.pop(future))
                self.progress(done, total)
        except (BrokenProcessPool, MemoryError):
            why = (
                f"a worker died, probably for want of memory ({self.workers} workers). Run again"
                " with a smaller --workers."
            )
            raise UserError(why) from None
        except BaseException:
            self._stop_event.set()  # a worker finishes its present candidate
            pool.shutdown(cancel_futures=True)
            for future, task in running.items():
                if not future.cancelled() and future.exception() is None:
                    self._collect(future, task)
            raise

    def _collect(self, future: Future, task: ScoringTask) -> int:
        """Keep the scores of a finished task; return their number."""
        found = future.result()
        for key, scores in found:
            self._keep(task.case.id, key, scores)
        return len(found)

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._stop_event = multiprocessing.get_context("spawn").Event()
            self._pool = processes.pool(self.workers, _set_stop_event, self._stop_event)
        return self._pool


def _mark(case: CaseFiles, measure: Measure) -> str:
    """Everything that the scores of a case depend on, besides the candidate."""
    rules, data = measure.rules, measure.data
    stats = [softs.array_path(folder, case.id).stat() for folder in case.soft]
    mark = [
        MEANING.get(rules.version, f"metrics version {rules.version}"),
        case.id,
        [[s.st_size, s.st_mtime_ns] for s in stats],
        case.content,
        [asdict(m) for m in rules.metrics],
        [data.ignore_label, data.classes, data.binarise, case.fov is not None],
    ]
    if case.spacing is not None:
        mark.append(case.spacing)
    if data.regions is not None:
        mark.append(["regions", data.unions])
    return json.dumps(mark, sort_keys=True, default=list)


MEANING = {1: "4fd375a1be8146b6311af374ec655371f69010363ae93ad44a779b4fb5974fdd"}
"""What scores mean, by metrics version.

Scores are not kept over a change of it: METRICS_VERSION is raised when a step, a fusion or a metric
gives another number. The entry of version 1 is what journals of its time hold: a hash of the
sources of steps and metrics.
"""


class _Kept:
    """Lines of JSON that are only ever appended; a torn or foreign line counts as absent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Scores] = {}
        self.stream: Any = None
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            with contextlib.suppress(ValueError, FileError):
                row = checked(path, parse(line.decode()), documents.KeptScores, "")
                self.values[row["key"]] = {
                    k: math.nan if v is None else float(v) for k, v in row["scores"].items()
                }

    def open(self) -> None:
        if os.path.lexists(self.path) and not os.path.isfile(self.path):
            raise UserError(f"{self.path} is no file; scores are kept there. Move it away.")
        with files.named(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
            self.stream = self.path.open("a", encoding="utf-8")
            if torn:
                self.stream.write("\n")

    def add(self, key: str, case_id: str, scores: Scores) -> None:
        self.values[key] = scores
        plain = {k: v if math.isfinite(v) else None for k, v in scores.items()}
        with files.named(self.path):
            self.stream.write(json.dumps({"key": key, "case": case_id, "scores": plain}) + "\n")
            self.stream.flush()

    def close(self) -> None:
        with files.named(self.path):
            self.stream.close()


# --- in a worker ----------------------------------------------------------------------------------

_stop_event: Any = None


def _set_stop_event(stop_event: Any) -> None:
    """Run first in each worker: the event that stops it."""
    global _stop_event
    _stop_event = stop_event


def _score_task(task: ScoringTask) -> list[tuple[str, Scores]]:
    """Score a task, until the event is set."""
    found = []
    for row in score_case(task):
        found.append(row)
        if _stop_event.is_set():
            break
    return found


def workers_for(
    metrics: Sequence[NamedOptions], shape: Sequence[int], members: int, asked: int | None = None
) -> int:
    """Number of worker processes: as many as asked, else one per core.

    Of the latter as many as memory allows, with a case of soft predictions in each.

    Args:
        metrics: names and options.
        shape: ``(K, *S)`` of the largest prediction.
        members: number of soft predictions per case.
        asked: number that was asked for; None: one per core.

    Returns:
        The number.
    """
    scoring = memory.case_bytes(metrics, (1, *shape[1:]))
    most = max(step.bytes_per_voxel for step in postprocess.POSTPROCESS.values())
    steps = math.prod(shape[1:]) * (most + 4 * members * shape[0])
    return memory.workers(max(scoring, steps), asked)
