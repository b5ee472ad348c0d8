"""Experiment trackers: MLflow and Weights & Biases get settings, metrics and the best model.

A tracker never stops the training: whatever it raises, at its start or hours later, is logged once,
and that tracker is dropped. A resumed fold continues the same entry of the tracker.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline import documents, files
from pipeline.records import FoldName
from pipeline.runs import FoldFolder

logger = logging.getLogger(__name__)

LONGEST = 500
"""Characters of a setting's value that every tracker takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """The fold that is tracked."""

    name: str
    """Name of the config."""
    run: Path
    """Run folder."""
    fold: FoldName
    """Number of the fold, or ``all``."""
    settings: Mapping[str, Any]
    """Every setting by its dotted key."""
    known: str | None
    """The tracker's own id of an earlier start; None: this is the first."""


class Tracker(Protocol):
    """One fold's entry in a tracker."""

    id: str
    """The tracker's own id of the entry."""

    def metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Log the values of an epoch.

        Args:
            values: finite numbers by name.
            epoch: counted from 1.
        """
        ...

    def model(self, path: Path) -> None:
        """Log a model file.

        Args:
            path: path of the file.
        """
        ...

    def close(self) -> None:
        """Mark the entry as finished."""
        ...


class MLflow:
    """A run of MLflow, in the experiment named as the config.

    It goes to ``MLFLOW_TRACKING_URI``, by default the folder ``mlruns`` where the command was
    started.

    Args:
        tracked: the fold.
    """

    def __init__(self, tracked: TrackedRun) -> None:
        # MLflow 3 refuses folders without this; a database would need its large package.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or (Path.cwd() / "mlruns").as_uri()
        )
        if tracked.known is not None:
            self.id = tracked.known
            self.client.update_run(self.id, status="RUNNING")
            return
        experiment = self.client.get_experiment_by_name(tracked.name)
        number = (
            experiment.experiment_id
            if experiment is not None
            else self.client.create_experiment(tracked.name)
        )
        self.id = self.client.create_run(
            number, run_name=f"{tracked.run.name} fold {tracked.fold}"
        ).info.run_id
        for key, value in tracked.settings.items():
            self.client.log_param(self.id, key, str(value)[:LONGEST])
        self.client.set_tag(self.id, "run_folder", str(tracked.run.resolve()))

    def metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Log the values of an epoch.

        Args:
            values: finite numbers by name.
            epoch: counted from 1.
        """
        for key, value in values.items():
            self.client.log_metric(self.id, key, value, step=epoch)

    def model(self, path: Path) -> None:
        """Log a model file.

        Args:
            path: path of the file.
        """
        self.client.log_artifact(self.id, str(path), "model")

    def close(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.id)


class WandB:
    """A run of Weights & Biases, in the project named as the config.

    ``WANDB_MODE=offline`` keeps it on disk, below the run's folder.

    Args:
        tracked: the fold.
    """

    def __init__(self, tracked: TrackedRun) -> None:
        import wandb  # pyright: ignore[reportMissingImports] - the extra "tracking"

        self.run = wandb.init(
            project=tracked.name,
            name=f"{tracked.run.name} fold {tracked.fold}",
            id=tracked.known,
            resume="allow",
            dir=str(tracked.run),
            config=dict(tracked.settings),
        )
        self.id = self.run.id

    def metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Log the values of an epoch.

        Args:
            values: finite numbers by name.
            epoch: counted from 1.
        """
        self.run.log({**values, "epoch": epoch}, step=epoch)

    def model(self, path: Path) -> None:
        """Log a model file.

        Args:
            path: path of the file.
        """
        self.run.log_model(str(path), name=f"model-{self.id}")

    def close(self) -> None:
        """Mark the run as finished."""
        self.run.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {"mlflow": MLflow, "wandb": WandB}
"""Trackers by the name that ``train.track`` uses."""


class Trackers:
    """All trackers of one fold.

    Their ids are kept in ``<fold>/tracking.json``, by which a resumed fold finds them again.

    Args:
        names: which of ``TRACKERS``.
        tracked: the fold; its ``known`` is replaced by each tracker's.
        folder: the fold's folder.
    """

    def __init__(self, names: Sequence[str], tracked: TrackedRun, folder: Path) -> None:
        self.active: dict[str, Tracker] = {}
        known = self._known(FoldFolder(folder).tracking_file)
        for name in names:
            entry = TrackedRun(
                name=tracked.name,
                run=tracked.run,
                fold=tracked.fold,
                settings=tracked.settings,
                known=known.get(name),
            )
            self._guarded(
                name,
                lambda name=name, entry=entry: self.active.__setitem__(name, TRACKERS[name](entry)),
            )
        if self.active:
            files.write_json(
                FoldFolder(folder).tracking_file,
                {**known, **{name: t.id for name, t in self.active.items()}},
            )

    def _known(self, path: Path) -> Mapping[str, str | None]:
        """Ids by tracker; none where the file cannot be read, which must not stop the training."""
        try:
            return (
                files.read_document(path, documents.TrackerIds, "New tracker runs are begun")
                if path.is_file()
                else {}
            )
        except files.FileError as error:
            logger.warning(str(error))
            return {}

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Log the finite numbers of an epoch's record.

        Args:
            record: values by name, with ``epoch``, counted from 0.
        """
        numbers = {
            k: float(v)
            for k, v in record.items()
            if k != "epoch" and isinstance(v, int | float) and math.isfinite(v)
        }
        self._each(lambda tracker: tracker.metrics(numbers, record["epoch"] + 1))

    def model(self, path: Path) -> None:
        """Log a model file, if there is one.

        Args:
            path: path of the file; it may be missing.
        """
        if path.is_file():
            self._each(lambda tracker: tracker.model(path))

    def close(self) -> None:
        """Close all trackers."""
        self._each(lambda tracker: tracker.close())

    def _each(self, work: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.active.items()):
            self._guarded(name, lambda tracker=tracker: work(tracker))

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """Do work of one tracker; where it raises, log a warning and drop the tracker."""
        try:
            work()
        except ImportError as error:
            self.active.pop(name, None)
            logger.warning(
                f"tracker {name} is not installed ({error}); in a clone: pip install"
                ' -e ".[tracking]"; or remove it from train.track'
            )
        except Exception as error:
            self.active.pop(name, None)
            logger.warning(
                f"tracker {name} failed and is dropped, training goes on: {type(error).__name__}:"
                f" {error}"
            )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings; lists stay values.

    Args:
        settings: settings by key, nested.
        prefix: put before all keys.

    Returns:
        Settings by dotted key.

    Example:
        >>> flat({"train": {"epochs": 3}, "name": "x"})
        {'train.epochs': 3, 'name': 'x'}
    """
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= (
            flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return out
