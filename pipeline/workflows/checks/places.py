"""Check where a run would write: whether its name, folder and cache can be used.

Also whether they may be written, and who uses them already.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config, ConfigError, Problem
from pipeline.data import own_splits
from pipeline.files import lock, nearest, refused, require_text
from pipeline.inference.devices import kind, resolve
from pipeline.planning import precision
from pipeline.records import ALL, FoldName, UserError
from pipeline.runs import BESIDE, WRITTEN, FoldFolder, KeptPlan, RunFolder, present

LONGEST = 200
"""Bytes of a name: file names that are made of it need room for endings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a start would write, and on which folds and device it would work.

    Args:
        folder: the run folder.
        folds: numbers of folds, from 0, or ``all``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    folder: Path
    folds: Sequence[FoldName]
    device: str = "auto"
    fresh: bool = False
    """Whether an existing run is put aside first."""
    plan: KeptPlan | None = None
    """The plan that the config is, which the run keeps."""

    @property
    def run(self) -> RunFolder:
        """The run folder, as an object."""
        return RunFolder(self.folder)

    @property
    def continues(self) -> bool:
        """Whether an existing run would go on."""
        return not self.fresh and self.run.exists


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What training was asked for, beside its config.

    Args:
        source: what messages call the config: its file.
        data_dir: data set folder; None: ``data.root`` of the config.
        out: run folder; None: ``runs/NAME``.
        folds: which folds; None: those of the cross-validation; ``("all",)``: the one model of all
            cases.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        fresh: put an existing run aside and start over.
        plan: the plan of ``pipeline.plan`` that the config is, which the run keeps.
    """

    source: str = "config"
    data_dir: Path | None = None
    out: Path | None = None
    folds: tuple[FoldName, ...] | None = None
    device: str = "auto"
    fresh: bool = False
    plan: KeptPlan | None = None

    def on_data(self, config: Config) -> Config:
        """The config with the data set asked for.

        Args:
            config: the resolved config.

        Returns:
            The config, with ``data.root`` replaced where a folder was given.

        Raises:
            UserError: for a path that no config can hold.
        """
        if self.data_dir is None:
            return config
        require_text("--data-dir", self.data_dir)
        return dataclasses.replace(
            config, data=dataclasses.replace(config.data, root=str(self.data_dir))
        )

    def start(self, config: Config) -> Start:
        """Where training would write, and on which folds and device it would work.

        Args:
            config: the resolved config.

        Returns:
            The start.

        Raises:
            UserError: for a fold that does not exist.
        """
        count = config.data.folds.count
        if self.folds is not None and not self.folds:
            raise UserError("folds: none is named. Name some, or leave it out to train them all.")
        for fold in self.folds or ():
            if not isinstance(fold, str) and not 0 <= fold < count:
                raise UserError(
                    f"--fold {fold}: there are {count} folds, 0 to {count - 1}; -1 trains them all."
                )
        folds = range(count) if self.folds is None else self.folds
        return Start(
            folder=self.out or Path("runs") / config.name,
            folds=folds,
            device=self.device,
            fresh=self.fresh,
            plan=self.plan,
        )


def problems(config: Config, start: Start) -> Iterator[Problem]:
    """Check names that become folders, and paths that are files where folders are needed.

    Args:
        config: the resolved config.
        start: the run.

    Yields:
        Errors.
    """
    yield from _names(config)
    yield from _unmonitored(config, start)
    yield from _own_folds(config)
    for what, path in (("the run folder", start.folder), *_store(config)):
        if (file := _file_in_path(path)) is not None:
            advice = (
                "Choose another --out."
                if what == "the run folder"
                else "Set data.store to a folder, or to null."
            )
            yield Problem(
                f"{what} {path} cannot be made: {file} is a file. {advice}",
                ("data.store",) if what == "data.store" else (),
            )
    if not start.fresh:
        for path in (start.run.store, *start.run.fold_paths()):
            if path.exists() and not path.is_dir():
                yield Problem(
                    f"{path} is a file where the run needs a folder. Move it away, or choose"
                    " another --out."
                )
    if start.folder.is_dir():
        yield from _foreign_files(start, Path(config.data.root))


def _unmonitored(config: Config, start: Start) -> Iterator[Problem]:
    """A schedule that follows a monitored value, for the model of all cases, which has none."""
    if ALL in start.folds[:1] and config.train.schedule.name == "plateau":
        yield Problem(
            "--fold all holds no case out, so the schedule plateau has no value to follow. Set"
            " train.schedule to another one, such as poly or cosine, in a run of its own (--out).",
            ("train.schedule",),
        )


def _own_folds(config: Config) -> Iterator[Problem]:
    """A file of own folds that cannot be read, or holds another number of folds."""
    path = own_splits.path_of(config.data)
    try:
        if path is not None:
            own_splits.read(path, config.data.folds.count)
    except UserError as error:
        yield Problem(str(error), ("data.folds.file", "data.folds.count"))


def _foreign_files(start: Start, root: Path) -> Iterator[Problem]:
    """A folder that exists and is no run: its files are neither replaced nor put aside."""
    folder = start.folder
    ours = start.run.exists or start.run.environment_file.is_file()
    resolved, data = _real(folder), _real(root)
    if resolved == data and not start.continues:
        yield Problem(
            f"the run folder {folder} is the folder of the data set. Choose another --out, e.g."
            f" {Path('runs') / root.name}."
        )
    elif start.fresh and resolved in data.parents:
        yield Problem(
            f"--fresh would put aside {folder} with the data set {root} in it. Choose another"
            " --out."
        )
    elif not ours:
        names = sorted(p.name for p in folder.iterdir() if p.name not in BESIDE)
        replaced = [
            n
            for n in names
            if n in WRITTEN or (re.fullmatch(r"fold_(\d+|all)", n) and _holds_files(folder / n))
        ]
        if replaced:
            yield Problem(
                f"the run folder {folder} holds {replaced[0]}, which no run wrote. Choose another"
                " --out."
            )
        elif start.fresh and names:
            yield Problem(
                f"--fresh would put aside {folder}, which holds {', '.join(names[:5])} and no run."
                " Choose another --out."
            )


def _real(path: Path) -> Path:
    """The path with links resolved; itself where it cannot be a path."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a zero byte, as YAML can write it
        return path


def _holds_files(fold: Path) -> bool:
    """Whether a fold folder holds more than locks and temporary files of a killed writer."""
    return not fold.is_dir() or any(not p.name.startswith(".") for p in fold.iterdir())


def unwritable(config: Config, start: Start) -> Iterator[Problem]:
    """Check that the folders of a run can be written, by making files without a name in them.

    Nothing of those files stays. An existing cache may be complete, and is then only read.

    Args:
        config: the resolved config.
        start: the run.

    Yields:
        Errors.
    """
    for what, path in (("the run folder", start.folder), *_inside(start), *_store(config)):
        existing = nearest(path)
        if (
            _file_in_path(path) is None
            and (reason := refused(path))
            and not (what == "data.store" and existing == path)
        ):
            advice = (
                "Set data.store to another folder."
                if what == "data.store"
                else "Choose another --out."
            )
            yield Problem(f"{what} {path} may not be written ({existing}: {reason}). {advice}")


def _inside(start: Start) -> Iterator[tuple[str, Path]]:
    """Folders of a run that would go on which are written to."""
    names = [path.name for path in start.run.fold_paths()] if start.continues else []
    for number in present(start.folds, names):
        yield from (
            ("the folder", path) for path in start.run.fold(number).written if os.path.isdir(path)
        )


def taken(start: Start) -> Iterator[Problem]:
    """Check for folds that another process trains.

    They are errors where nothing would be left for this start, else warnings.

    Args:
        start: the run.

    Yields:
        Errors and warnings.
    """
    locks = sorted(start.folder.glob(f"fold_*/{lock.NAME}"))
    wanted = [start.run.fold(n) for n in present(start.folds, (path.parent.name for path in locks))]
    wanted = [FoldFolder(path.parent) for path in locks] if start.fresh else wanted
    busy = {fold.path: owner for fold in wanted if (owner := lock.owner(fold.lock)) is not None}
    barred = start.fresh or len(busy) == len(start.folds)
    for fold, owner in busy.items():
        advice = (
            "Wait until it is done, or stop it first."
            if barred
            else "That fold would be left to it."
        )
        yield Problem(
            f"{fold} belongs to {owner}. {advice}", severity="error" if barred else "warning"
        )
    owner = lock.owner(start.run.lock)
    if owner is not None:
        yield Problem(
            f"{start.folder} is being prepared or summed up by {owner}; a start would wait for it.",
            severity="warning",
        )


def _names(config: Config) -> Iterator[Problem]:
    """Names in a config that become part of a path: the run's and those of the targets.

    Those of the targets name files of the cache.
    """
    rule = "must hold something else than dots, and at most 200 bytes"
    if not config.name.strip(".") or len(config.name.encode()) > LONGEST:
        yield Problem(
            f"name is {config.name!r}; it becomes a folder and {rule}. Choose another, e.g."
            " surface.",
            ("name",),
        )
    for key, value in (
        ("name", config.name),
        ("data.root", config.data.root),
        ("data.store", config.data.store or ""),
    ):
        if "\0" in value:
            yield Problem(f"{key} is {value!r}: no path holds a zero byte. Choose another.", (key,))
    for role in config.roles:
        good = re.fullmatch(r"\w[\w.-]*", role) is not None and len(role.encode()) <= LONGEST // 2
        if not good or role == "image":
            taken = (
                "image is the input" if role == "image" else "use letters, digits, '.', '_' and '-'"
            )
            yield Problem(
                f"data: the target {role!r} cannot be called that, for its name becomes part of"
                f" file names: {taken}."
            )


def _store(config: Config) -> Iterator[tuple[str, Path]]:
    """``data.store`` and its folder, where the config names one."""
    if config.data.store is not None:
        yield "data.store", Path(config.data.store)


def _file_in_path(path: Path) -> Path | None:
    """The file that stands where a folder of the path is needed, if any."""
    existing = nearest(path)
    return None if os.path.isdir(existing) else existing


def device(name: str) -> Iterator[Problem]:
    """Check that a device exists.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Yields:
        At most one error.
    """
    try:
        resolve(name)
    except UserError as error:
        yield Problem(str(error))


def broken_types(config: Config, name: str) -> Iterator[Problem]:
    """Check for bfloat16 where torch breaks memory with it: on a CPU, few and large slices.

    Args:
        config: the resolved config.
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Yields:
        At most one error.
    """
    size = config.data.patch.size
    if config.train.amp != "bf16" or len(size) == 2 or precision.is_safe(size):
        return
    try:
        on_cpu = kind(resolve(name)) == "cpu"
    except UserError:
        return  # reported by device()
    if on_cpu:
        yield Problem(
            f"train.amp is bf16 and data.patch.size {list(size)}: on a CPU torch writes beyond its"
            " memory in 3D convolutions of so few and large slices, and the process dies. Set"
            " train.amp=none.",
            ("train.amp", "data.patch.size"),
        )


def another_config(config: Config, start: Start) -> Iterator[Problem]:
    """Check that an existing run was begun with this config.

    Args:
        config: the resolved config.
        start: the run.

    Yields:
        At most one error, which lists the differences.
    """
    if not start.continues:
        return
    try:
        changes = start.run.changed_settings(config)
    except ConfigError as error:
        yield Problem(str(error))
        return
    if changes:
        yield Problem(start.run.refusal(changes))
