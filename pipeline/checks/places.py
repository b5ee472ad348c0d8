"""Where a run would write: its name, its folder and its store, whether they may be written, and whose they are."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config, ConfigError, Problem
from pipeline.files import lock, nearest, refused
from pipeline.records import UserError

LOCK = lock.NAME
"""File in the run folder and in each fold's by which processes keep apart; the data's store in the run folder is the run's."""

LONGEST = 200
"""Bytes of a name: what makes up file names has to leave room for endings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a start would write, and on which folds and device it would work."""

    folder: Path
    folds: Sequence[int]
    device: str = "auto"
    fresh: bool = False
    """Whether a run that is there is put aside first."""

    @property
    def continues(self) -> bool:
        """Whether a run is there that would go on."""
        return not self.fresh and (self.folder / "config.yaml").is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a training command was asked for, as it was typed."""

    path: Path
    overrides: Sequence[str] = ()
    data_dir: Path | None = None
    out: Path | None = None
    fold: int = -1
    device: str = "auto"
    fresh: bool = False

    def on_data(self, config: Config) -> Config:
        """The config with the data set of the command. Raises UserError for a path that no config can hold."""
        if self.data_dir is None:
            return config
        require_text("--data-dir", self.data_dir)
        return dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(self.data_dir)))

    def start(self, config: Config) -> Start:
        """Where and on what the command would work. Raises UserError for a fold that is not there."""
        count = config.data.folds.count
        if not -1 <= self.fold < count:
            raise UserError(f"--fold {self.fold}: there are {count} folds, 0 to {count - 1}; -1 trains them all.")
        folds = range(count) if self.fold == -1 else (self.fold,)
        return Start(folder=self.out or Path("runs") / config.name, folds=folds, device=self.device, fresh=self.fresh)


def require_text(option: str, path: Path) -> None:
    """Raise UserError for a path that is no text: it would stand in a file that holds nothing else."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        shown = f"{option} {path}".strip()
        advice = "Rename that folder, or name a link to it"
        raise UserError(f"{shown}: this name is no UTF-8 text, and neither a config nor a model can hold it. {advice}.") from None


def problems(config: Config, start: Start) -> Iterator[Problem]:
    """Names that are no folder below the run, and places that are something else than a folder."""
    yield from _names(config)
    for what, path in (("the run folder", start.folder), *_store(config)):
        if (file := _file_on_the_way(path)) is not None:
            advice = "Choose another --out." if what == "the run folder" else "Set data.store to a folder, or to null."
            yield Problem(f"{what} {path} cannot be made: {file} is a file. {advice}", ("data.store",) if what == "data.store" else ())
    if not start.fresh:
        for path in (start.folder / "store", *sorted(start.folder.glob("fold_*"))):
            if path.exists() and not path.is_dir():
                yield Problem(f"{path} is a file where the run needs a folder. Move it away, or choose another --out.")
    if start.folder.is_dir():
        yield from _of_others(start, Path(config.data.root))


WRITTEN = ("environment.json", "config.yaml", "cases.json", "splits.json", "summary.json", "baselines.json", "report.html")
"""Files that a run writes into its folder, beside those of its folds; the first two make a folder a run."""

BESIDE = (LOCK, "store", "slurm")
"""What may lie in a run folder before there is a run: a lock, a store, the logs of a scheduler."""


def _of_others(start: Start, root: Path) -> Iterator[Problem]:
    """A folder that is there and no run: what lies in it is somebody's, and is neither replaced nor put aside."""
    folder = start.folder
    ours = (folder / "config.yaml").is_file() or (folder / "environment.json").is_file()
    here, data = _real(folder), _real(root)
    if here == data and not start.continues:
        yield Problem(f"the run folder {folder} is the folder of the data set. Choose another --out, e.g. {Path('runs') / root.name}.")
    elif start.fresh and here in data.parents:
        yield Problem(f"--fresh would put aside {folder} with the data set {root} in it. Choose another --out.")
    elif not ours:
        names = sorted(p.name for p in folder.iterdir() if p.name not in BESIDE)
        replaced = [n for n in names if n in WRITTEN or (re.fullmatch(r"fold_\d+", n) and _holds_files(folder / n))]
        if replaced:
            yield Problem(f"the run folder {folder} holds {replaced[0]}, which no run wrote. Choose another --out.")
        elif start.fresh and names:
            yield Problem(f"--fresh would put aside {folder}, which holds {', '.join(names[:5])} and no run. Choose another --out.")


def _real(path: Path) -> Path:
    """Where a path leads; itself where it is none."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a zero byte, as YAML can write it
        return path


def _holds_files(fold: Path) -> bool:
    """Whether there is more in it than locks and what a killed writer left."""
    return not fold.is_dir() or any(not p.name.startswith(".") for p in fold.iterdir())


def unwritable(config: Config, start: Start) -> Iterator[Problem]:
    """Folders in which nothing can be made; found by making a file without a name, of which nothing stays.

    A store that is there may be complete, and is then only read.
    """
    for what, path in (("the run folder", start.folder), *_inside(start), *_store(config)):
        there = nearest(path)
        if _file_on_the_way(path) is None and (reason := refused(path)) and not (what == "data.store" and there == path):
            advice = "Set data.store to another folder." if what == "data.store" else "Choose another --out."
            yield Problem(f"{what} {path} may not be written ({there}: {reason}). {advice}")


def present(folds: Container[int], names: Iterable[str]) -> list[int]:
    """Those of ``folds`` (of which a mistyped count may ask for millions) that have a folder ``fold_N`` among ``names``.

    >>> present(range(10**9), ["fold_2", "fold_x", "fold_10", "fold_02"])
    [2, 10]
    """
    numbers = {int(name[5:]) for name in names if re.fullmatch(r"fold_(0|[1-9][0-9]{0,8})", name)}
    return sorted(n for n in numbers if n in folds)


def _inside(start: Start) -> Iterator[tuple[str, Path]]:
    """Folders of a run that would go on, below which is written."""
    names = [path.name for path in start.folder.glob("fold_*")] if start.continues else []
    for fold in (start.folder / f"fold_{number}" for number in present(start.folds, names)):
        inside = (fold, *(fold / part for part in ("checkpoint_latest", "tensorboard", "previews", "oof")))
        yield from (("the folder", path) for path in inside if os.path.isdir(path))


def taken(start: Start) -> Iterator[Problem]:
    """Folds that another process trains, as far as they stand in the way of this start."""
    asked = present(start.folds, (path.parent.name for path in start.folder.glob(f"fold_*/{LOCK}")))
    busy = {fold: owner for fold in asked if (owner := lock.owner(start.folder / f"fold_{fold}" / LOCK)) is not None}
    if start.fresh:
        busy = {path.parent.name: owner for path in sorted(start.folder.glob(f"fold_*/{LOCK}")) if (owner := lock.owner(path))}
    barred = start.fresh or len(busy) == len(start.folds)
    for fold, owner in busy.items():
        advice = "Wait until it is done, or stop it first." if barred else "That fold would be left to it."
        name = fold if isinstance(fold, str) else f"fold_{fold}"
        yield Problem(f"{start.folder / name} belongs to {owner}. {advice}", severity="error" if barred else "warning")
    owner = lock.owner(start.folder / LOCK)
    if owner is not None:
        yield Problem(f"{start.folder} is being prepared or summed up by {owner}; a start would wait for it.", severity="warning")


def _names(config: Config) -> Iterator[Problem]:
    """The names in a config that become part of a path: the run's, and those of the targets, which name files of the store."""
    rule = "must hold something else than dots, and at most 200 bytes"
    if not config.name.strip(".") or len(config.name.encode()) > LONGEST:
        yield Problem(f"name is {config.name!r}; it becomes a folder and {rule}. Choose another, e.g. surface.", ("name",))
    for key, value in (("name", config.name), ("data.root", config.data.root), ("data.store", config.data.store or "")):
        if "\0" in value:
            yield Problem(f"{key} is {value!r}: no path holds a zero byte. Choose another.", (key,))
    for role in config.roles:
        good = re.fullmatch(r"\w[\w.-]*", role) is not None and len(role.encode()) <= LONGEST // 2
        if not good or role == "image":
            taken = "image is the input" if role == "image" else "use letters, digits, '.', '_' and '-'"
            yield Problem(f"data: the target {role!r} cannot be called that, for its name becomes part of file names: {taken}.")


def _store(config: Config) -> Iterator[tuple[str, Path]]:
    if config.data.store is not None:
        yield "data.store", Path(config.data.store)


def _file_on_the_way(path: Path) -> Path | None:
    there = nearest(path)
    return None if os.path.isdir(there) else there


def device(name: str) -> Iterator[Problem]:
    """A device that is not there."""
    from pipeline import cli

    try:
        cli.device(name)
    except UserError as error:
        yield Problem(str(error))


def another_config(config: Config, start: Start) -> Iterator[Problem]:
    """How a run that is there differs from this config."""
    from pipeline.checks import runs

    if not start.continues:
        return
    try:
        changes = runs.changed_settings(start.folder, config)
    except ConfigError as error:
        yield Problem(str(error))
        return
    if changes:
        yield Problem(runs.refusal(start.folder, changes))
