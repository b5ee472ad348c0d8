"""Layout of a run on disk: every path of a run and every read of its JSON is here.

::

    RUN/
      environment.json  config.yaml  cases.json  splits.json  summary.json  baselines.json
      plan.yaml  fingerprint.json    where pipeline.plan wrote the config
      report.html  store/  tuning/
      fold_N/
        best_model.safetensors (train.keep: last: last_model)  swa_model.safetensors
        checkpoint_latest/  result.json  error.txt  log.jsonl
        oof/ID.tif  oof/soft/ID.npy  oof/work/
      fold_all/                      the one model of all cases: as fold_N, without oof/
        last_model.safetensors  swa_model.safetensors
      plugins/
        plugins.json  NAME.py
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import operator
import os
import platform
import re
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
from pipeline import documents, files, plugins
from pipeline.config import (
    Config,
    Problem,
    difference,
    dump,
    find_config,
    load,
    numbers,
    read_yaml,
    to_dict,
)
from pipeline.files import lock
from pipeline.plugins import Plugin
from pipeline.records import ALL, METRICS_VERSION, FoldName, FoldResult, UserError

HARMLESS = (
    "data.root",
    "data.store",
    "data.workers",
    "train.preview_every",
    "train.save_steps",
    "train.timeout",
    "predict.batch",
)
"""Keys that may change between a run and its continuation.

They change where things lie or how fast they go, not the result.
"""

WRITTEN = (
    "environment.json",
    "config.yaml",
    "cases.json",
    "splits.json",
    "summary.json",
    "baselines.json",
    "report.html",
    "plugins",
)
"""What a run writes into its folder, beside its folds; the first two make a folder a run."""

PLANNED = ("plan.yaml", "fingerprint.json")
"""Files of a run's plan, which may lie in its folder before there is a run."""

BESIDE = (lock.NAME, "store", "slurm", *PLANNED)
"""What a folder may hold before there is a run: a lock, a cache, a scheduler's logs, a plan."""

MODELS = {
    "best": "best_model.safetensors",
    "last": "last_model.safetensors",
    "swa": "swa_model.safetensors",
}
"""Model files of a fold by the kind of their weights."""

PACKAGES = (
    "torch",
    "monai",
    "numpy",
    "scipy",
    "scikit-learn",
    "tifffile",
    "nibabel",
    "safetensors",
)
"""Packages whose versions are kept with a run, beside that of this one."""

MOST_CHANGES = 20
"""Most changes that a message lists; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPlan:
    """A plan of ``pipeline.plan`` as it stands in its files.

    Args:
        text: the YAML, maybe edited since.
        fingerprint: the JSON beside it; None where there is none.
    """

    text: str
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class FoldFolder:
    """``RUN/fold_N`` or ``RUN/fold_all``: the files of one fold, read when they are needed."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def exists(self) -> bool:
        """Whether training of the fold has begun."""
        return self.path.is_dir()

    @property
    def lock(self) -> Path:
        """Lock file, held by the process that trains the fold."""
        return self.path / lock.NAME

    @property
    def states(self) -> Path:
        """Folder of the resumable states."""
        return self.path / "checkpoint_latest"

    @property
    def error_file(self) -> Path:
        """Traceback of a fold that failed."""
        return self.path / "error.txt"

    @property
    def log_file(self) -> Path:
        """Log with a JSON line for each epoch."""
        return self.path / "log.jsonl"

    @property
    def text_log(self) -> Path:
        """Log with a line for each epoch, for people."""
        return self.path / "training_log.txt"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def previews(self) -> Path:
        """Pictures of a held-out patch by epoch, and of a training batch."""
        return self.path / "previews"

    @property
    def tracking_file(self) -> Path:
        """Ids of this fold in trackers, so that a resumed fold continues its entries."""
        return self.path / "tracking.json"

    def model_file(self, kind: str) -> Path:
        """Path of a model file, whether it exists or not.

        Args:
            kind: ``best``, ``last`` or ``swa``.

        Returns:
            The path.
        """
        return self.path / MODELS[kind]

    def epoch_model(self, epochs: int) -> Path:
        """Path of the model file that ``train.keep_every`` leaves.

        Args:
            epochs: number of epochs after which it is written.

        Returns:
            The path.
        """
        return self.path / f"epoch_{epochs:04d}.safetensors"

    @property
    def answers(self) -> Path:
        """Out-of-fold predictions: those of the cases that the fold was not trained on."""
        return self.path / "oof"

    @property
    def soft(self) -> Path:
        """The probabilities or intensities behind :attr:`answers`."""
        return self.answers / "soft"

    @property
    def work(self) -> Path:
        """Held-out predictions in progress, a folder for each kind of weights."""
        return self.answers / "work"

    @property
    def written(self) -> tuple[Path, ...]:
        """Folders in which files are written while the fold trains."""
        return (self.path, self.states, self.tensorboard, self.previews, self.answers)

    def model_files(self) -> dict[str, Path]:
        """Model files that exist.

        Returns:
            Paths by kind: ``{"best": ..., "swa": ...}``.
        """
        return {
            kind: self.path / name for kind, name in MODELS.items() if (self.path / name).is_file()
        }

    def model(self, kind: str = "auto") -> Path:
        """The model file that represents the fold.

        Args:
            kind: ``best``, ``last``, ``swa``, or ``auto``: the one that was better on the held-out
                cases.

        Returns:
            An existing path.

        Raises:
            UserError: where there is none of that kind.
        """
        present = self.model_files()
        if not present:
            raise UserError(
                f"{self.path}: holds neither {' nor '.join(MODELS.values())}. Is this a fold folder"
                " of a run?"
            )
        result = self.result() if kind == "auto" else None
        kept = "last" if "last" in present else "best"
        done = result is not None and result.status == "completed"
        wanted = kind if kind != "auto" else (result.chosen if result and done else kept)
        if wanted not in present:
            have = ", ".join(present)
            raise UserError(
                f"{self.path}: has no {wanted} weights, only {have}."
                f" Use --model {next(iter(present))}."
            )
        return present[wanted]

    def result(self) -> FoldResult | None:
        """Read the outcome of the fold.

        Returns:
            The result; None where there is none yet.

        Raises:
            FileError: where the file is no result of this fold.
        """
        data = self._result()
        return (
            None
            if data is None
            else FoldResult(**{f.name: data[f.name] for f in dataclasses.fields(FoldResult)})
        )

    def scores(self) -> dict[str, Any]:
        """Read the scores of the held-out cases.

        Returns:
            Metrics by model and case; empty where there are none.

        Raises:
            FileError: as :meth:`result`.
        """
        return (self._result() or {}).get("cases", {})

    def epochs(self) -> tuple[list[dict[str, Any]], int]:
        """Read the log of epochs.

        Returns:
            Its lines by epoch (of two for one epoch the later), and the number of lines that cannot
            be read: a kill cuts the last.
        """
        found: dict[int, dict[str, Any]] = {}
        unreadable = 0
        if not self.log_file.is_file():
            return [], 0
        for line in self.log_file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = files.checked(self.log_file, files.parse(line), documents.Epoch, "")
                found[record["epoch"]] = record
            except (ValueError, UserError):
                unreadable += 1
        return [found[n] for n in sorted(found)], unreadable

    @property
    def completed(self) -> bool:
        """Whether the fold was trained to its end. Raises FileError as :meth:`result`."""
        result = self.result()
        return result is not None and result.status == "completed"

    def write_result(self, result: FoldResult, scores: Mapping[str, Any]) -> None:
        """Write the outcome of the fold.

        Args:
            result: the outcome.
            scores: metrics of the held-out cases by model and case.
        """
        files.write_json(self.path / "result.json", {**dataclasses.asdict(result), "cases": scores})

    def _result(self) -> dict[str, Any] | None:
        """Content of ``result.json``, checked; None where there is none."""
        path = self.path / "result.json"
        if not path.is_file():
            return None
        data = files.read_document(
            path,
            documents.Result,
            "Remove it: the fold goes on from its last state",
            "is no result of a fold",
        )
        number = self.path.name.removeprefix("fold_")
        named = number == ALL or (number.isdecimal() and number.isascii())
        if named and self.path.name != f"fold_{data['fold']}":
            problem = f"fold is {data['fold']}, but it lies in {self.path.name}"
            raise files.FileError(
                path,
                problem,
                "Put it back where it was, or remove it: the fold goes on from its last state",
            )
        return data


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run: the folder that training writes.

    Files are read when they are needed, and everything read is checked.

    Args:
        path: the folder, whether it exists or not.

    Example:
        >>> run = RunFolder(Path("runs/surface"))
        >>> run.fold(0).answers.as_posix()
        'runs/surface/fold_0/oof'
        >>> run.exists
        False
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    # --- paths ---

    @property
    def lock(self) -> Path:
        """Lock file, held by the process that prepares the run or sums it up."""
        return self.path / lock.NAME

    @property
    def config_file(self) -> Path:
        """The resolved config; it makes the folder a run."""
        return self.path / "config.yaml"

    @property
    def cases_file(self) -> Path:
        """Cases of the run, see :meth:`listing`."""
        return self.path / "cases.json"

    @property
    def splits_file(self) -> Path:
        """Cases of each fold, see :meth:`splits`."""
        return self.path / "splits.json"

    @property
    def environment_file(self) -> Path:
        """Package versions, machine and metrics version."""
        return self.path / "environment.json"

    @property
    def summary_file(self) -> Path:
        """Scores of the run, see :meth:`summary`."""
        return self.path / "summary.json"

    @property
    def baselines_file(self) -> Path:
        """Scores of trivial predictions, see :meth:`baselines`."""
        return self.path / "baselines.json"

    @property
    def report_file(self) -> Path:
        """The page that :func:`pipeline.write_report` writes."""
        return self.path / "report.html"

    @property
    def store(self) -> Path:
        """Cache of the cases as memory-mapped arrays, unless the config names another folder."""
        return self.path / "store"

    @property
    def tuning(self) -> Path:
        """Folder of :mod:`pipeline.tune`: its journal and its result."""
        return self.path / "tuning"

    @property
    def tuning_file(self) -> Path:
        """Result of tuning, with all rows of its table."""
        return self.tuning / "result.json"

    @property
    def tuning_journal(self) -> Path:
        """Scores of candidates, by case."""
        return self.tuning / "scores.jsonl"

    @property
    def plan_file(self) -> Path:
        """The plan of ``pipeline.plan`` that the run was trained by, with its reasons."""
        return self.path / PLANNED[0]

    @property
    def fingerprint_file(self) -> Path:
        """What planning found in the data."""
        return self.path / PLANNED[1]

    @property
    def plugins(self) -> Path:
        """Copies of the plugins that the run was made with, to be read by people, and hashes."""
        return self.path / "plugins"

    @property
    def plugins_file(self) -> Path:
        """Names and hashes of the plugins that the run was made with; absent if it has none."""
        return self.plugins / "plugins.json"

    def fold_paths(self) -> list[Path]:
        """Paths called ``fold_*``, folders or not.

        Returns:
            Sorted paths.
        """
        return sorted(self.path.glob("fold_*"))

    def fold(self, number: FoldName) -> FoldFolder:
        """The folder of a fold, whether it exists or not.

        Args:
            number: of the fold, from 0; ``"all"``: that of the one model of all cases.

        Returns:
            The folder.
        """
        return FoldFolder(self.path / f"fold_{number}")

    def fold_folders(self) -> list[FoldFolder]:
        """Existing folders ``fold_*``, by number; those without a number come first.

        Returns:
            The folders, ``fold_all`` not among them: it is no part of the cross-validation.
        """

        def number(path: Path) -> tuple[int, str]:
            text = path.name.removeprefix("fold_")
            return (
                int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else -1
            ), path.name

        return [
            FoldFolder(p)
            for p in sorted((p for p in self.path.glob("fold_*") if os.path.isdir(p)), key=number)
            if p.name != f"fold_{ALL}"
        ]

    # --- contents ---

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self.config_file.is_file()

    @property
    def holds_models(self) -> bool:
        """Whether model files lie in it or in its folds: it is a run, or a fold of one."""
        return any(self.path.glob("*_model.safetensors")) or any(
            self.path.glob("fold_*/*_model.safetensors")
        )

    def config(self) -> Config:
        """Read the config, with the defaults of keys that are newer than the run.

        Returns:
            The config.

        Raises:
            ConfigError: where it cannot be read.
        """
        return load(self.config_file)

    def require_plugins(self) -> None:
        """Check that the plugins of the run are loaded, with the same bytes.

        The copies in the run are never run.

        Raises:
            UserError: where one is missing or was changed, or the list of plugins cannot be read.
        """
        if self.plugins_file.is_file():
            records = files.read_document(
                self.plugins_file,
                documents.Plugins,
                "Restore it, or start over with pipeline.train --fresh",
            )
            plugins.require(records, self.path, self.plugins)

    def fold_count(self) -> int:
        """Number of folds that the run is divided into.

        Returns:
            The number; 0 where there is no config.
        """
        return self.config().data.folds.count if self.exists else 0

    def metrics_version(self) -> int:
        """Metrics version that the run began with.

        Returns:
            1 for a run from before there were versions; the present one for a new run.

        Raises:
            FileError: for a version that this package does not know.
        """
        if not self.exists:
            return METRICS_VERSION
        path = self.environment_file
        if not path.is_file():
            return 1
        known = files.read_json(path)
        version = known.get("metrics_version", 1) if isinstance(known, dict) else known
        if type(version) is not int or not 1 <= version <= METRICS_VERSION:
            problem = (
                f"holds the metrics version {files.shown(version)}; this package knows 1 to"
                f" {METRICS_VERSION}"
            )
            advice = (
                "Continue with the version of the package that made the run, restore the file, or"
                " use --fresh"
            )
            raise files.FileError(path, problem, advice)
        return version

    def completed(self) -> list[int]:
        """Folds that were trained to their end.

        Returns:
            Their numbers.
        """
        return [n for n in range(self.fold_count()) if self.fold(n).completed]

    def listing(self) -> dict[str, Any]:
        """Read ``cases.json``.

        Returns:
            ``{id: {"image": [paths], "targets": {name: path}, "group": ..., "content": hashes}}``.

        Raises:
            FileError: where the file is no list of a run's cases.
        """
        suggestion = "Restore it, or start over with pipeline.train --fresh"
        return files.read_document(
            self.cases_file, documents.Listing, suggestion, "is no list of a run's cases"
        )

    def splits(self) -> list[dict[str, list[str]]]:
        """Read the division of the cases.

        Returns:
            For each fold the ids under ``train`` and ``val``.

        Raises:
            FileError: where the file is none.
        """
        suggestion = "Restore it: it names the cases of each fold"
        return files.read_document(self.splits_file, documents.Splits, suggestion)["folds"]

    def baselines(self) -> dict[str, dict[str, float]]:
        """Read the scores that any network has to beat.

        Returns:
            Metrics by baseline, e.g. ``{"empty answer": {"dice": 0.0}}``.

        Raises:
            FileError: where the file is none.
        """
        return files.read_document(
            self.baselines_file, documents.Baselines, "Remove it: it is made again"
        )

    def summary(self) -> dict[str, Any]:
        """Read the scores of the folds and of all held-out cases.

        Returns:
            Content of ``summary.json`` (:class:`pipeline.documents.RunSummary`).

        Raises:
            FileError: where the file is none.
        """
        suggestion = (
            "Run the command that trained it again: a finished fold is not trained twice, and the"
            " file is made anew"
        )
        return files.read_document(self.summary_file, documents.RunSummary, suggestion)

    def reported_config(self) -> dict[str, Any]:
        """Read the config as its file has it, without defaults, checked as far as a report goes.

        Returns:
            Nested dicts.

        Raises:
            UserError: where it is missing, no YAML, or holds other kinds of values.
            OSError: where it cannot be read.
        """
        return files.checked(
            self.config_file, read_yaml(self.config_file), documents.ReportedConfig, ""
        )

    def places(self) -> dict[str, Any]:
        """Read ``cases.json`` as far as a report needs it.

        Returns:
            Paths and group of each case, by id.

        Raises:
            FileError: where the file is none.
        """
        return files.read_document(self.cases_file, documents.Places, "")

    def tuned(self) -> dict[str, Any] | None:
        """Read the result of :mod:`pipeline.tune`.

        Returns:
            Content of its file; None where there is none.

        Raises:
            FileError: where the file is none.
        """
        if not self.tuning_file.is_file():
            return None
        return files.read_document(self.tuning_file, documents.Tuned, "Run pipeline.tune again")

    def damaged(self) -> Iterator[Problem]:
        """Find unreadable files that the run needs to be continued or summed up.

        Yields:
            A problem for each.
        """
        folds = sorted(p.parent for p in self.path.glob("fold_*/result.json"))
        for read in (
            self.metrics_version,
            *(functools.partial(FoldFolder.result, FoldFolder(fold)) for fold in folds),
        ):
            try:
                read()
            except UserError as error:
                yield Problem(str(error))

    # --- continuing ---

    def changed_settings(self, config: Config) -> list[str]:
        """Compare a config with that of the run.

        Numbers that the run found in its data count as equal where the config leaves them out.

        Args:
            config: the config to continue with.

        Returns:
            Lines ``key: old -> new`` for what changes the result; empty where there is no run.
        """
        if not self.exists:
            return []
        stored = self.config()
        changes = difference(to_dict(stored), to_dict(numbers.filled(config, stored)))
        return [c for c in changes if c.partition(":")[0] not in HARMLESS]

    def changed_cases(self, listing: Mapping[str, Any]) -> list[str]:
        """Compare a data set with that of the run.

        Args:
            listing: content for ``cases.json``, as :meth:`listing`.

        Returns:
            Lines for cases that were removed, added or changed; empty where there is no run.
        """
        if not self.exists or not self.cases_file.is_file():
            return []
        before = self.listing()
        return [
            *(f"case {i}: removed" for i in before if i not in listing),
            *(f"case {i}: added" for i in listing if i not in before),
            *(
                f"case {i}: content changed"
                for i in listing
                if i in before and before[i]["content"] != listing[i]["content"]
            ),
        ]

    def refusal(self, changes: Sequence[str]) -> str:
        """Message for a user who would continue the run under other conditions.

        Args:
            changes: lines of :meth:`changed_settings` and :meth:`changed_cases`.

        Returns:
            The message.
        """
        more = f"\n  ... {len(changes) - MOST_CHANGES} more" if len(changes) > MOST_CHANGES else ""
        plan = f"\nIts own plan is {self.plan_file}." if self.plan_file.is_file() else ""
        return (
            f"{self.path} holds a run with another config or other data:\n  "
            + "\n  ".join(changes[:MOST_CHANGES])
            + more
            + plan
            + "\nUndo the change, choose another --out, or start over with --fresh (the old run is"
            " kept)."
        )

    def begin(self, config: Config, listing: Mapping[str, Any]) -> None:
        """Write, or update, what makes the folder a run of this config and these cases.

        Args:
            config: the resolved config.
            listing: content for ``cases.json``, as :meth:`listing`.
        """
        about = {**environment(), "metrics_version": self.metrics_version()}
        files.remove_stale_temps(self.path)
        # Before the config, which makes the folder a run.
        files.write_json(self.environment_file, about)
        self._keep_plugins(plugins.used_by(config))
        files.write_text(self.config_file, dump(config))
        files.write_json(self.cases_file, listing)

    def keep_plan(self, plan: KeptPlan) -> None:
        """Keep a plan and its fingerprint; the folder is created.

        Args:
            plan: their texts.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if plan.fingerprint is not None:
            files.write_text(self.fingerprint_file, plan.fingerprint)
        files.write_text(self.plan_file, plan.text)  # last: without it there is no plan

    def _keep_plugins(self, used: Sequence[Plugin]) -> None:
        """Keep copies of plugins, and their hashes."""
        for plugin in used:
            self.plugins.mkdir(exist_ok=True)
            files.write_bytes(self.plugins / plugin.name, plugin.source)
        if used:
            files.write_json(self.plugins_file, [plugin.record for plugin in used])

    def set_aside(self) -> Path:
        """Rename the folder, so that a new run can take its place.

        Returns:
            The new path, ``NAME.old-N``.
        """
        n = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{n}")).exists():
            n += 1
        return self.path.rename(aside)


def load_config(path: Path | str, overrides: Sequence[str] | str = ()) -> Config:
    """Read a system's YAML and load the plugins that it names.

    Args:
        path: the YAML, the user's own; or the name of a config that comes with the package, such as
            ``surface``.
        overrides: ``KEY=VALUE`` laid over it, one or several, with dotted keys and YAML values.

    Returns:
        The config.

    Raises:
        UserError: with every fault of the config, and for plugins that cannot be loaded.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "demo.yaml"
        ...     _ = path.write_text("{name: demo, network: unet, losses: [dice]}")
        ...     config = load_config(path, "train.epochs=10")
        >>> config.train.epochs, config.data.folds.count
        (10, 5)
    """
    path = find_config(path)
    config = load(path, overrides)
    load_named_plugins(path, config)
    return config


def load_named_plugins(path: Path, config: Config) -> None:
    """Load the plugins of a config.

    Args:
        path: the file that it was read from.
        config: the config.

    Raises:
        UserError: where the file lies in a run and names plugins, and for those that cannot be
            loaded.
    """
    run = RunFolder(path.parent)
    in_a_run = any(
        os.path.lexists(p)
        for p in (run.environment_file, run.cases_file, run.splits_file, *run.fold_paths())
    )
    if config.plugins and in_a_run:
        raise UserError(
            f"{path}: plugins: a path that stands in a run is never run. Take it away, and name the"
            " files with --plugin FILE or pipeline.load_plugins(FILE); or copy the config out of"
            " the run."
        )
    plugins.load_plugins(config.plugins)


def fold_of(answers: Path) -> tuple[RunFolder, int] | None:
    """Find the run and the fold that a folder of predictions belongs to.

    Args:
        answers: a folder.

    Returns:
        The run and the number of the fold, where the folder is ``RUN/fold_N/oof``; else None.

    Raises:
        FileError: where the splits of that run cannot be read.
    """
    folder = Path(os.path.realpath(answers))
    number, run = folder.parent.name.removeprefix("fold_"), RunFolder(folder.parent.parent)
    if folder.name != "oof" or not number.isdecimal() or not os.path.isfile(run.splits_file):
        return None
    count = len(run.splits())
    known = len(number) <= len(str(count)) and int(number) < count
    return (run, int(number)) if known else None


def present(folds: Container[FoldName], names: Iterable[str]) -> list[FoldName]:
    """Find the folds that have a folder.

    Args:
        folds: numbers, or ``all``; a mistyped count may ask for millions, which are not visited one
            by one.
        names: names of folders, of which ``fold_N`` and ``fold_all`` count.

    Returns:
        Sorted numbers, then ``all``.

    Example:
        >>> present(range(10**9), ["fold_2", "fold_x", "fold_10", "fold_02"])
        [2, 10]
    """
    names = set(names)
    numbers = {int(name[5:]) for name in names if re.fullmatch(r"fold_(0|[1-9][0-9]{0,8})", name)}
    # A range would compare its numbers with the text one by one.
    every = f"fold_{ALL}" in names and not isinstance(folds, range) and ALL in folds
    return [*sorted(n for n in numbers if n in folds), *((ALL,) if every else ())]


def whole_numbers(given: Any, what: str) -> tuple[int, ...]:
    """Convert one whole number or several, NumPy's among them, to a tuple.

    Args:
        given: a number or an iterable of numbers.
        what: name of the argument, for the message.

    Returns:
        The numbers in their order.

    Raises:
        UserError: for anything else, and for a number that is named twice.

    Example:
        >>> whole_numbers(3, "folds"), whole_numbers([0, 2], "folds")
        ((3,), (0, 2))
    """
    try:
        several: Any = (
            given if hasattr(given, "__iter__") and not isinstance(given, str) else [given]
        )
        if any(isinstance(n, bool) for n in several):
            raise TypeError
        found = tuple(operator.index(n) for n in several)
    except TypeError:
        raise UserError(f"{what} is {given!r}; give whole numbers, such as [0, 1].") from None
    if len(set(found)) < len(found):
        raise UserError(f"{what} is {list(found)}; name each once.")
    return found


def fold_names(given: Any, what: str = "folds") -> tuple[FoldName, ...] | None:
    """Convert what a user asked for to folds.

    Args:
        given: numbers, one number, ``"all"`` or ``["all"]``: the one model of all cases; None.
        what: name of the argument, for messages.

    Returns:
        Numbers in their order, or ``("all",)``; None for None.

    Raises:
        UserError: for anything else, and where none is named.

    Example:
        >>> fold_names([0, 2]), fold_names("all"), fold_names(None)
        ((0, 2), ('all',), None)
    """
    if given is None:
        return None
    if isinstance(given, str) and given == ALL:
        return (ALL,)
    if isinstance(given, list | tuple) and any(isinstance(n, str) and n == ALL for n in given):
        if len(given) > 1:
            shown = " ".join(map(str, given))
            raise UserError(
                f"{what} is {shown}; all, the one model of all cases, stands alone. Name it, or"
                " numbers; an ensemble file takes both, as two members (docs/nnunet.md)."
            )
        return (ALL,)
    if isinstance(given, str):
        raise UserError(f"{what} is {given!r}; give whole numbers, such as [0, 1], or {ALL!r}.")
    found = whole_numbers(given, what)
    if not found:
        raise UserError(f"{what}: none is named. Name some, or leave it out to take them all.")
    return found


def environment() -> dict[str, object]:
    """Describe versions and machine for ``environment.json``.

    Returns:
        A JSON-able dict.
    """
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": {
            "pipeline": pipeline.__version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "command": sys.argv,
    }
