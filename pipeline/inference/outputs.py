"""Output folders of commands: no inputs overwritten, no foreign files, one command at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline import documents, files
from pipeline.data import listing
from pipeline.files import lock
from pipeline.records import UserError
from pipeline.tasks import TASKS, is_companion

logger = logging.getLogger(__name__)

SUMMARY = "summary.json"
"""Name of the file in an output folder that lists its answers."""

LINKS = 40
"""Links that are followed from one name, as Linux does."""

Identity = tuple[int, int]
"""Device and inode: equal for two paths of one folder, whatever links and mounts lie between."""

BELOW = ("soft", "masks", "blocks", "members")
"""Folders inside an output folder that commands write to."""


def require_apart(inputs: Iterable[Path], output: Path, below: Sequence[str] = BELOW) -> None:
    """Check that no input could be replaced by an output.

    An input is looked up under its name, at the file that a link leads to, and at every link
    between.

    Args:
        inputs: files and folders that are read.
        output: the output folder.
        below: its sub-folders that are written to.

    Raises:
        UserError: an input lies in one of these folders, or the output lies inside an input folder.
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
        for hop in _hops(path):
            if hop.parent not in chains:
                chains[hop.parent] = _chain(hop.parent)
            chain = chains[hop.parent]
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
    """Check that an output folder can be created and written.

    Args:
        output: the folder, which need not exist yet.

    Raises:
        UserError: it is a file or a broken link, may not be written, or holds a foreign file in
            place of the lock.
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
    """Find a file whose name the file system of an output folder cannot hold.

    Args:
        output: the folder, which need not exist yet.
        names: names of files relative to it.

    Returns:
        What is wrong with the first such name, for a message; None where all fit.
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


class ThrottledWriter:
    """Rewrites the file of a growing list, seldom enough to be cheap, and once at the end.

    Call it after each change, inside ``with``.

    Args:
        write: writes the whole list.
    """

    SHARE = 20
    """Pause after a write in durations of it: writing takes a twentieth of the time, not more."""

    def __init__(self, write: Callable[[], None]) -> None:
        self.write, self.next, self.pending = write, 0.0, False

    def __call__(self) -> None:
        """Note a change: write now, or leave it to a later call or the end."""
        began = time.monotonic()
        self.pending = began < self.next
        if not self.pending:
            self.write()
            now = time.monotonic()
            self.next = now + self.SHARE * (now - began)

    def __enter__(self) -> ThrottledWriter:
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
    """Identities of a folder and its parents, innermost first, as far as they exist."""
    real = Path(os.path.realpath(folder))
    return [i for p in (real, *real.parents) if (i := _identity(p)) is not None]


def _identity(path: Path) -> Identity | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def require_own(output: Path, names: Iterable[str]) -> None:
    """Check that no file is overwritten that this package did not write.

    Args:
        output: the output folder.
        names: names of files that will be written, relative to it.

    Raises:
        UserError: one of them is there, and the folder has no summary of a prediction or an
            ensemble.
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
    """Whether a folder holds the summary.json of a prediction or an ensemble.

    Args:
        folder: the folder, which need not exist.

    Returns:
        False also where that file cannot be read.
    """
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
    """Read the summary.json of a prediction folder.

    Args:
        folder: the folder.

    Returns:
        The document; empty where there is none.

    Raises:
        UserError: it is not a document that this package writes.
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
    """Find the answers in a prediction folder, without visualisations and overlays.

    Args:
        folder: the folder.

    Returns:
        Files by id, sorted.

    Raises:
        UserError: two files have one id.
    """
    found: dict[str, Path] = {}
    for path in sorted(listing.images(folder)):
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
    """Check that the answers in a folder are those of one prediction that has ended.

    Another command may be writing there; the last one may have been killed, or have failed for a
    case whose older answer is still there. Cases that it failed for, and answers that it did not
    write, are warned of. Folders without a summary of this package are accepted as they are.

    Args:
        folder: a prediction folder.
        ids: ids of the answers to be used.

    Raises:
        UserError: a command is writing there, the last one did not end, or an answer is older than
            it.
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
    """Files that the answer to a case may be written to.

    Args:
        case_id: id of the case.
        task: ``labels`` or ``image``.
        suffix: format of the input.
        save_soft: whether soft predictions are saved as well.

    Returns:
        Names relative to the output folder, the answer's first.
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
    """Hold the lock of an output folder, which is created.

    No lock file is left afterwards: it is removed while it is held, so a process that opened it
    meanwhile finds that its name is gone and creates a new one (see :mod:`pipeline.files.lock`). A
    new folder in which nothing was written is removed as well.

    Args:
        output: the folder.

    Yields:
        Nothing; write inside.

    Raises:
        lock.BusyError: another command has it; the message names it.
    """
    path, new = output / lock.NAME, not output.exists()
    with lock.held(path):
        mine = _identity(path)
        try:
            yield
        finally:
            # The folder may have been moved, and another one made in its place.
            if mine is not None and _identity(path) == mine:
                path.unlink()
            with contextlib.suppress(OSError):
                if new:
                    output.rmdir()  # where nothing was written
