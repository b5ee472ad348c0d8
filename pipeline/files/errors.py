"""What can be wrong with a file, in words that a user can act on."""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.files.names import is_folder
from pipeline.records import UserError

T = TypeVar("T")

AGAIN = "The file is incomplete or damaged: copy, download or export it again"


class FileError(UserError):
    """A file that cannot be used, with what is wrong and what to do: the parts of a
    :class:`pipeline.records.Fault`.
    """

    def __init__(self, path: Path, problem: str, suggestion: str = AGAIN) -> None:
        super().__init__(f"{path}: {problem}. {suggestion}.")
        self.path, self.problem, self.suggestion = path, problem, suggestion

    def __reduce__(self) -> tuple:
        return FileError, (self.path, self.problem, self.suggestion)


def guarded(path: Path, action: Callable[[], T]) -> T:
    """Run a decoder; whatever it raises becomes a FileError, because codecs raise anything for a
    damaged file.

    What is no regular file is refused before it is opened: a pipe would block for ever, a device
    has no end.
    """
    try:
        check_kind(path)
        return action()
    except FileError:
        raise
    except MemoryError:
        raise FileError(
            path,
            "announces more pixels than fit into memory",
            "Check its header, or cut it into smaller pieces",
        ) from None
    except RecursionError:
        raise FileError(path, "cannot be decoded: its description is nested too deeply") from None
    except OSError as error:
        raise FileError(path, *_os_problem(path, error)) from None
    except Exception as error:
        raise FileError(path, f"cannot be decoded: {_words(error)}") from None


_OTHER_KINDS = (
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_kind(path: Path) -> None:
    """Raise FileError for pipes, sockets, devices, empty files, and a folder where a file belongs
    or the reverse.

    Raises OSError where there is nothing at ``path``.
    """
    found = check_regular(path)
    if stat.S_ISDIR(found.st_mode):
        if not is_folder(path):
            raise FileError(path, "is a folder", "Name a file")
    elif is_folder(path):
        raise FileError(
            path,
            "is a file, where a Zarr is a folder",
            "Unpack it, or name the folder that holds zarr.json, .zgroup or .zarray",
        )
    elif found.st_size == 0:
        raise FileError(path, "is empty (0 bytes)")


def check_regular(path: Path) -> os.stat_result:
    """What is at ``path``.

    Raises FileError for pipes, sockets and devices, OSError where there is nothing.
    """
    found = path.stat()
    kind = next((name for test, name in _OTHER_KINDS if test(found.st_mode)), None)
    if kind is not None:
        raise FileError(
            path, f"is {kind}, no regular file", "Save it as a regular file, or remove it"
        )
    return found


def silence(*modules: str) -> None:
    """Keep warnings of libraries off the terminal: what is wrong with a file is raised, with its
    path.
    """
    for module in modules:
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")


def _words(error: Exception) -> str:
    """What a library says, in one printable line, with its own name for the fault; Python's names
    only where nothing else is said.
    """
    name, text = type(error).__name__, _line(str(error))
    if isinstance(
        error, TypeError | AttributeError | LookupError | AssertionError | ArithmeticError
    ):
        return f"its header or description holds what does not belong there ({text or name})"
    return (text if type(error).__module__ == "builtins" else f"{name}: {text}") if text else name


def _line(text: str) -> str:
    text = "".join(c if c.isprintable() else " " for c in text[:1000])
    return re.sub(r" +", " ", text).strip()[:300]


def absence(path: Path) -> str:
    """Why there is nothing at ``path`` that can be asked about; empty where something is."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    return ""


def _os_problem(path: Path, error: OSError) -> tuple[str, str]:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return (
            f"is a symbolic link to {os.readlink(path)}, which does not exist",
            "Mend or remove the link",
        )
    if isinstance(error, FileNotFoundError):
        return "does not exist", "Check the path"
    if error.errno == errno.ELOOP:
        return "is a symbolic link that leads back to itself", "Mend or remove the link"
    if isinstance(error, PermissionError):
        return "may not be read", "Give this user the right to read it"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return (
            "cannot be opened: too many files are open at a time",
            "Raise that limit, e.g. with ulimit -n 4096",
        )
    if isinstance(error, IsADirectoryError):
        return "is a folder", "Name a file"
    return f"cannot be read to its end: {_line(str(error))}", AGAIN


def wrong_axes(path: Path, shape: tuple[int, ...], dims: int) -> FileError:
    found, wanted = ("an image", "a volume") if dims == 3 else ("a volume or a series", "an image")
    size = "x".join(map(str, shape))
    return FileError(
        path,
        f"is {found} ({size}) where {wanted} is needed",
        f"Set data.dims, or give {wanted} with {dims} space axes",
    )


def require_text(option: str, path: Path) -> None:
    """Raise UserError for a path that is no text: it would stand in a file that holds nothing else."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        shown = f"{option} {path}".strip()
        advice = "Rename that folder, or name a link to it"
        raise UserError(
            f"{shown}: this name is no UTF-8 text, and neither a config nor a model can hold it."
            f" {advice}."
        ) from None
