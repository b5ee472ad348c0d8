"""Scores of candidates on out-of-fold predictions, computed once each: by all cores, kept in a file
that only grows.

A killed command loses what was being computed at that moment and nothing else.
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
from pipeline.files import FileError, checked, parse
from pipeline.inference import soft as softs
from pipeline.inference.fusion import fuse
from pipeline.metrics.frames import views
from pipeline.records import METRICS_VERSION, NamedOptions, UserError
from pipeline.scoring import memory
from pipeline.scoring.core import CaseArrays, Rules, score_in, truth_of
from pipeline.scoring.patches import classes_of
from pipeline.tuning.search import Candidate

Scores = dict[str, float]
LEAST = 4
"""Candidates that are worth loading a case for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFiles:
    """A case: folders with its soft prediction by each member, its label file and field of view,
    and the hash of what they hold.
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
    """How answers are scored: what the files of the labels mean, and the rules."""

    data: Data
    rules: Rules

    @classmethod
    def of(
        cls, data: Data, metrics: Sequence[NamedOptions], version: int = METRICS_VERSION
    ) -> Measure:
        """Labels of a data set."""
        rules = Rules(
            metrics=tuple(metrics),
            ignore=data.ignore_label,
            classes=classes_of(data),
            version=version,
        )
        return cls(data=data, rules=rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Candidates to score on one case."""

    case: CaseFiles
    measure: Measure
    candidates: tuple[Candidate, ...]


# --- one case -------------------------------------------------------------------------------------


def score_case(task: Task) -> Iterator[tuple[str, Scores]]:
    """Key and scores of each candidate, in alphabetical order of the keys; files are read once,
    common first steps done once.

    Where there is a field of view, only what lies inside it counts.
    """
    case, data, rules = task.case, task.measure.data, task.measure.rules
    label = read_labels(case.label, data)[0]
    fov = None if case.fov is None else read_mask(case.fov, data)[0]
    perfect = CaseArrays(answer=label, target=label, fov=fov, spacing=case.spacing)
    view = next(views(truth_of(perfect, rules)))
    members = [np.asarray(softs.load_sound(folder, case.id).main) for folder in case.soft]
    answers = _Answers(members, case.id)
    for candidate in sorted(task.candidates, key=lambda c: c.key):
        found = score_in(view, dataclasses.replace(perfect, answer=answers.of(candidate)), rules)
        yield candidate.key, {k: float(v) for k, v in found.items() if not isinstance(v, Mapping)}


class _Answers:
    """Answers of candidates that come in alphabetical order; the arrays along the latest one's
    chain of steps are kept.
    """

    def __init__(self, members: Sequence[np.ndarray], case_id: str) -> None:
        self.members, self.case_id = members, case_id
        self.chain: list[tuple[str, np.ndarray]] = []

    def of(self, candidate: Candidate) -> np.ndarray:
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
                        else postprocess.run((step,), self.chain[-1][1])
                    ),
                )
            )
        return self.chain[-1][1]

    def _fused(self, candidate: Candidate) -> np.ndarray:
        voices = [(m, w) for m, w in zip(self.members, candidate.weights, strict=True) if w > 0]
        return fuse([m for m, _ in voices], [w for _, w in voices], candidate.fusion, self.case_id)[
            :
        ]


# --- all cases ------------------------------------------------------------------------------------


class Trials:
    """Scores by (case, candidate), from the file where they are known, else computed and added to
    it. Use it as a context.

    ``progress`` is called with (done, total) at least every second and may raise to stop; what is
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
        self._halt: Any = None

    def __enter__(self) -> Trials:
        self.kept.open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self.kept.close()

    def missing(self, wanted: Mapping[str, Sequence[Candidate]]) -> int:
        """How many of the wanted scores are not known yet."""
        return sum(len(task.candidates) for task in self._tasks(wanted))

    def scores(self, wanted: Mapping[str, Sequence[Candidate]]) -> dict[tuple[str, str], Scores]:
        """All numbers of the wanted candidates by (case, key of the candidate)."""
        tasks = self._split(self._tasks(wanted))
        if tasks:
            (self._in_processes if self.workers > 1 else self._here)(tasks)
        return {
            (case, c.key): self.kept.values[self._name(case, c.key)]
            for case, candidates in wanted.items()
            for c in candidates
        }

    def _name(self, case_id: str, key: str) -> str:
        return hashlib.sha256((self.marks[case_id] + key).encode()).hexdigest()[:32]

    def _tasks(self, wanted: Mapping[str, Sequence[Candidate]]) -> list[Task]:
        tasks = []
        for case_id, candidates in wanted.items():
            new = tuple(c for c in candidates if self._name(case_id, c.key) not in self.kept.values)
            tasks += (
                [Task(case=self.cases[case_id], measure=self.measure, candidates=new)]
                if new
                else []
            )
        return tasks

    def _split(self, tasks: Sequence[Task]) -> list[Task]:
        """Tasks cut so that every worker has some, neighbours in alphabetical order together."""
        pieces = -(-2 * self.workers // max(1, len(tasks))) if self.workers > 1 else 1
        out = []
        for task in tasks:
            ordered = sorted(task.candidates, key=lambda c: c.key)
            size = max(LEAST, -(-len(ordered) // pieces))
            out += [
                Task(case=task.case, measure=task.measure, candidates=tuple(ordered[i : i + size]))
                for i in range(0, len(ordered), size)
            ]
        return out

    def _keep(self, case_id: str, key: str, scores: Scores) -> None:
        self.kept.add(self._name(case_id, key), case_id, scores)
        self.computed += 1

    def _here(self, tasks: Sequence[Task]) -> None:
        done, total = 0, sum(len(t.candidates) for t in tasks)
        for task in tasks:
            for key, scores in score_case(task):
                self._keep(task.case.id, key, scores)
                done += 1
                self.progress(done, total)

    def _in_processes(self, tasks: Sequence[Task]) -> None:
        pool, total = self._processes(), sum(len(t.candidates) for t in tasks)
        running = {pool.submit(_work, task): task for task in tasks}
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
            self._halt.set()  # a worker finishes the candidate it is at
            pool.shutdown(cancel_futures=True)
            for future, task in running.items():
                if not future.cancelled() and future.exception() is None:
                    self._collect(future, task)
            raise

    def _collect(self, future: Future, task: Task) -> int:
        found = future.result()
        for key, scores in found:
            self._keep(task.case.id, key, scores)
        return len(found)

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._halt = multiprocessing.get_context("spawn").Event()
            self._pool = processes.pool(self.workers, _listen, self._halt)
        return self._pool


def _mark(case: CaseFiles, measure: Measure) -> str:
    """All that the scores of a case depend on, besides the candidate."""
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
    return json.dumps(mark, sort_keys=True, default=list)


MEANING = {1: "4fd375a1be8146b6311af374ec655371f69010363ae93ad44a779b4fb5974fdd"}
"""What scores mean, by metrics version.

Scores are not kept over a change of it: METRICS_VERSION is raised when a step, a fusion or a metric
gives another number. That of version 1 is what journals of its time hold: a hash of the sources of
steps and metrics.
"""


class _Kept:
    """Lines of JSON, only ever added to; a torn or foreign line counts as absent."""

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

_halt: Any = None


def _listen(halt: Any) -> None:
    global _halt
    _halt = halt


def _work(task: Task) -> list[tuple[str, Scores]]:
    found = []
    for row in score_case(task):
        found.append(row)
        if _halt.is_set():
            break
    return found


def workers_for(
    metrics: Sequence[NamedOptions], shape: Sequence[int], members: int, asked: int | None = None
) -> int:
    """Worker processes: as many as asked, else one a core, as far as memory holds a case of soft
    predictions ``(K, *S)`` in each.
    """
    scoring = memory.case_bytes(metrics, (1, *shape[1:]))
    most = max(step.bytes_per_voxel for step in postprocess.POSTPROCESS.values())
    steps = math.prod(shape[1:]) * (most + 4 * members * shape[0])
    return memory.workers(max(scoring, steps), asked)
