"""Folders that commands write answers into: never onto inputs, never over files of others, one
command at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline import documents, files
from pipeline.data import cases
from pipeline.files import lock
from pipeline.records import UserError
from pipeline.tasks import TASKS, is_companion

logger = logging.getLogger(__name__)

SUMMARY = "summary.json"

LINKS = 40
"""Links that are followed from one name, as Linux does."""

Identity = tuple[int, int]
"""Device and inode: what makes two paths one folder, whatever links and mounts lie between."""


BELOW = ("soft", "masks", "blocks", "members")
"""Folders inside an output folder that commands write to."""


def require_apart(inputs: Iterable[Path], output: Path, below: Sequence[str] = BELOW) -> None:
    """Raise UserError where an input could be replaced by what is written into ``output`` or
    anywhere in its sub-folders ``below``.

    An input lies where its name is, where the file is that a link leads to, and at every link on
    the way.
    """
    own, inner = (
        _identity(output),
        {i: output / name for name in below if (i := _identity(output / name)) is not None},
    )
    above = set(_chain(output))
    chains: dict[Path, list[Identity]] = {}
    for path in inputs:
        if os.path.isdir(path) and _identity(path) in above:
            raise UserError(
                f"--output {output} lies inside the input {path}, which would be changed. Choose"
                " another folder."
            )
        for place in _hops(path):
            if place.parent not in chains:
                chains[place.parent] = _chain(place.parent)
            chain = chains[place.parent]
            folder = (
                output
                if chain[:1] == [own]
                else next((inner[i] for i in chain if i in inner), None)
            )
            if folder is not None:
                raise UserError(
                    f"--output {output}: the input {path} lies in {folder}, which is written to: it"
                    " could be overwritten. Choose another folder."
                )


def require_folder(output: Path) -> None:
    """Raise UserError where ``output`` cannot be a folder with a lock in it, or nothing may be
    written in it or below it.
    """
    found = next((p for p in (output, *output.parents) if os.path.lexists(p)), None)
    if found is not None and not os.path.isdir(found):
        what = (
            "a link that leads nowhere"
            if os.path.islink(found) and not os.path.exists(found)
            else "a file"
        )
        raise UserError(f"--output {output}: {found} is {what}, no folder. Choose another folder.")
    if lock.is_foreign(output / lock.NAME):
        raise UserError(
            f"--output {output} holds a {lock.NAME} that no command of this package wrote: it would"
            " be removed. Choose another folder."
        )
    for folder in (output, *(output / name for name in BELOW if os.path.isdir(output / name))):
        files.require_writable("--output", folder)


def too_long(output: Path, names: Iterable[str]) -> str | None:
    """What is wrong with the first of the files ``names`` whose name the disk of ``output`` cannot
    hold; None where it can.
    """
    there = files.nearest(output)
    most, whole = os.pathconf(there, "PC_NAME_MAX"), os.pathconf(there, "PC_PATH_MAX")
    for name in names:
        own, path = (
            len(os.fsencode(Path(name).name)),
            len(os.fsencode(os.path.abspath(output / name))),
        )
        if own > most or path >= whole:
            size = (
                f"{own} bytes, and {most} are the most here"
                if own > most
                else f"{path} bytes of path, and {whole - 1} are the most"
            )
            return f"its answer would be called {name}, which has {size}"
    return None


class Kept:
    """Writing down a list that grows: often enough to be of use, seldom enough to take a small part
    of the time, and at the end.
    """

    SHARE = 20
    """Between two writes so many times the time of the last one goes by: a list of 100,000 is not
    written 100,000 times.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self.write, self.next, self.pending = write, 0.0, False

    def __call__(self) -> None:
        began = time.monotonic()
        self.pending = began < self.next
        if not self.pending:
            self.write()
            now = time.monotonic()
            self.next = now + self.SHARE * (now - began)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.pending:
            with contextlib.suppress(OSError) if kind is not None else contextlib.nullcontext():
                self.write()


def _hops(path: Path) -> Iterator[Path]:
    """The path, and what every link leads to in turn."""
    for _ in range(LINKS):
        yield path
        if not os.path.islink(path):
            return
        path = path.parent / os.readlink(path)


def _chain(folder: Path) -> list[Identity]:
    """A folder and all that it lies in, from the inside; of a folder that is not there yet, what is
    there of its path.
    """
    real = Path(os.path.realpath(folder))
    return [i for p in (real, *real.parents) if (i := _identity(p)) is not None]


def _identity(path: Path) -> Identity | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def require_own(output: Path, names: Iterable[str]) -> None:
    """Raise UserError where ``output`` holds one of the files ``names`` and no prediction or
    ensemble of this package wrote there.
    """
    if is_prediction(output):
        return
    found = next((name for name in (SUMMARY, *names) if os.path.lexists(output / name)), None)
    if found is not None:
        raise UserError(
            f"--output {output} holds {found}, which no prediction wrote (there is no {SUMMARY} of"
            " one): it would be overwritten. Choose another folder."
        )


def is_prediction(folder: Path) -> bool:
    """Whether a folder holds the summary.json of a prediction or an ensemble."""
    try:
        summary: Any = files.read_json(folder / SUMMARY)
    except files.FileError:
        return False
    return (
        isinstance(summary, dict)
        and isinstance(summary.get("files"), list)
        and bool({"models", "members"} & set(summary))
    )


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a prediction folder, or nothing.

    Raises UserError for one that no command of this package writes.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return {}
    suggestion = "Predict again, or take it away: then --spec names the post-processing"
    try:
        found = files.read_document(path, documents.Predictions, suggestion)
    except files.FileError as error:
        raise files.FileError(
            path, f"is no summary of predictions ({error.problem})", suggestion
        ) from None
    for n, step in enumerate(found.get("postprocess", ())):
        if unknown := sorted(set(step) - {"name", "options"}):
            problem = f"postprocess.{n} has the key {files.shown(unknown[0])}"
            raise files.FileError(
                path,
                f"is no summary of predictions ({problem}, which means nothing here)",
                suggestion,
            )
    return found


def answer_files(folder: Path) -> dict[str, Path]:
    """Answers in a prediction folder by id, visualisations and overlays left out.

    Raises UserError where two have one id.
    """
    found: dict[str, Path] = {}
    for path in sorted(cases.images(folder)):
        name = files.case_id(path)
        if is_companion(name):
            continue
        if name in found:
            raise UserError(
                f"{folder}: {found[name].name} and {path.name} are both called {name}. Keep one"
                " file per id."
            )
        found[name] = path
    return found


def require_finished(folder: Path, ids: Collection[str]) -> None:
    """Raise UserError where the answers ``ids`` in ``folder`` are not those of one prediction that
    has ended.

    Another command may be writing there, the last one may have been killed, or have failed for a
    case whose older answer is still there. Cases that it failed for, and answers that it did not
    write, are said. Folders without a summary of ours are taken as they are.
    """
    owner = lock.owner(folder / lock.NAME)
    if owner is not None:
        raise UserError(f"{folder} is being written by {owner}. Wait until that is done.")
    if not is_prediction(folder):
        return
    suggestion = "Predict again, or take it away if what lies there is complete"
    summary = files.read_document(folder / SUMMARY, documents.Predictions, suggestion)
    rows = {row["id"]: row.get("status") for row in summary["files"]}
    wanted = summary.get("inputs")
    if isinstance(wanted, int) and len(rows) < wanted:
        raise UserError(
            f"{folder}: the last command that wrote there ended after {len(rows)} of {wanted} cases"
            f" ({SUMMARY}), so that answers of two may lie there. Run that command again."
        )
    failed = [i for i, status in rows.items() if status == "failed"]
    stale = [i for i in failed if i in ids]
    if stale:
        raise UserError(
            f"{folder}: {_listed(stale)} could not be predicted the last time ({SUMMARY} says why);"
            " what lies there is older. Predict them again, or remove what is there of them."
        )
    if failed:
        logger.warning(
            f"{folder} lacks cases that could not be predicted ({SUMMARY} says why):"
            f" {_listed(failed)}"
        )
    unlisted = [i for i in ids if i not in rows]
    if unlisted:
        logger.warning(
            f"{folder} holds answers that its last prediction did not write ({SUMMARY}):"
            f" {_listed(unlisted)}"
        )


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")


def names(case_id: str, task: str, suffix: str, save_soft: bool) -> list[str]:
    """Files, relative to the output folder, that the answer to a case may be written to; ``suffix``
    is that of its input.
    """
    rules = TASKS[task]
    soft = [
        f"soft/{case_id}.npy",
        f"soft/{case_id}.json",
        *(f"soft/{head}/{case_id}.npy" for head in rules.further),
    ]
    return rules.names(case_id, suffix) + (soft if save_soft else [])


@contextlib.contextmanager
def owned(output: Path) -> Iterator[None]:
    """Hold the lock of an output folder, which is made.

    Raises lock.BusyError, which names the owner, where another command has it.

    Nothing is left of it afterwards: the file is taken away while it is held, so whoever opened it
    meanwhile finds that its name is gone and makes a new one (see :mod:`pipeline.files.lock`).
    """
    path, new = output / lock.NAME, not output.exists()
    with lock.held(path):
        mine = _identity(path)
        try:
            yield
        finally:
            if (
                mine is not None and _identity(path) == mine
            ):  # the folder may have been moved, and another made in its place
                path.unlink()
            with contextlib.suppress(OSError):
                if new:
                    output.rmdir()  # where nothing was written
