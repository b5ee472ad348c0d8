"""Errors of unusable files: what is wrong, and what the user can do about it."""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.files.names import is_dicom_folder, is_folder, split_selection
from pipeline.records import UserError

T = TypeVar("T")

AGAIN = "The file is incomplete or damaged: copy, download or export it again"
"""Suggestion for files that are incomplete or damaged."""


class FileError(UserError):
    """A file that cannot be used: the parts of a :class:`pipeline.records.Fault`.

    Args:
        path: the file.
        problem: what is wrong, as it follows the path in a message.
        suggestion: what the user can do about it.
    """

    def __init__(self, path: Path, problem: str, suggestion: str = AGAIN) -> None:
        super().__init__(f"{path}: {problem}. {suggestion}.")
        self.path, self.problem, self.suggestion = path, problem, suggestion

    def __reduce__(self) -> tuple:
        return FileError, (self.path, self.problem, self.suggestion)


def guarded(path: Path, action: Callable[[], T]) -> T:
    """Run a decoder and turn whatever it raises into a FileError: codecs raise anything for damage.

    What is no regular file is refused before it is opened: a pipe would block for ever, a device
    has no end.

    Args:
        path: file that the decoder reads.
        action: the decoder, called without arguments.

    Returns:
        What ``action`` returns.

    Raises:
        FileError: where ``path`` is no regular file, or ``action`` fails.
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
        raise FileError(path, f"cannot be decoded: {_describe(error)}") from None


_OTHER_KINDS = (
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_kind(path: Path) -> None:
    """Check that a path is a non-empty regular file, or a folder where its format is one.

    Args:
        path: image file or folder.

    Raises:
        FileError: for pipes, sockets, devices and empty files, and for a folder in place of a file
            or the reverse.
        OSError: where there is nothing at ``path``.
    """
    found = check_regular(path)
    if stat.S_ISDIR(found.st_mode):
        if not is_folder(path) and not is_dicom_folder(path):
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
    """Check that a path is neither a pipe, a socket nor a device.

    Args:
        path: file or folder.

    Returns:
        Its ``os.stat`` result.

    Raises:
        FileError: for pipes, sockets and devices.
        OSError: where there is nothing at ``path``.
    """
    found = split_selection(path)[0].stat()
    kind = next((name for test, name in _OTHER_KINDS if test(found.st_mode)), None)
    if kind is not None:
        raise FileError(
            path, f"is {kind}, no regular file", "Save it as a regular file, or remove it"
        )
    return found


def silence(*modules: str) -> None:
    """Suppress warnings of libraries: what is wrong with a file is raised, with its path.

    Args:
        *modules: names of the packages whose warnings are suppressed.
    """
    for module in modules:
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")


def _describe(error: Exception) -> str:
    """The message of a library's error in one printable line, with the error's own name.

    Names of Python's built-in errors appear only where there is no message.
    """
    name, text = type(error).__name__, _one_line(str(error))
    if isinstance(
        error, TypeError | AttributeError | LookupError | AssertionError | ArithmeticError
    ):
        return f"its header or description holds what does not belong there ({text or name})"
    return (text if type(error).__module__ == "builtins" else f"{name}: {text}") if text else name


def _one_line(text: str) -> str:
    """At most 300 printable characters of a text, line feeds as blanks."""
    text = "".join(c if c.isprintable() else " " for c in text[:1000])
    return re.sub(r" +", " ", text).strip()[:300]


def absence(path: Path) -> str:
    """Find out why a path cannot be accessed.

    Args:
        path: file or folder.

    Returns:
        The reason in words; empty where something is there.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    return ""


def _os_problem(path: Path, error: OSError) -> tuple[str, str]:
    """What is wrong, and what to do, for an OSError of reading ``path``."""
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
    return f"cannot be read to its end: {_one_line(str(error))}", AGAIN


def wrong_axes(path: Path, shape: tuple[int, ...], dims: int) -> FileError:
    """The error for a volume where an image is needed, or the reverse.

    Args:
        path: the file.
        shape: shape of its array.
        dims: space axes that are needed, 2 or 3.

    Returns:
        The error, to be raised by the caller.
    """
    found, wanted = ("an image", "a volume") if dims == 3 else ("a volume or a series", "an image")
    size = "x".join(map(str, shape))
    return FileError(
        path,
        f"is {found} ({size}) where {wanted} is needed",
        f"Set data.dims, or give {wanted} with {dims} space axes",
    )


def require_text(option: str, path: Path) -> None:
    """Check that a path is UTF-8 text, as it will be stored in a file that holds only text.

    Args:
        option: command line option that names the path, for the message; may be empty.
        path: file or folder.

    Raises:
        UserError: where a name in it is no UTF-8.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        shown = f"{option} {path}".strip()
        advice = "Rename that folder, or name a link to it"
        raise UserError(
            f"{shown}: this name is no UTF-8 text, and neither a config nor a model can hold it."
            f" {advice}."
        ) from None
