"""Submissions as files: a flat zip of ``ID.tif``, or a table of run lengths.

Equal masks give equal bytes. A file takes its name only after everything in it was read back and
compared, so it is whole or absent.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import math
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from pipeline import files
from pipeline.progress import progress
from pipeline.records import UserError
from pipeline.stopping import stop

SUFFIX = {"tiff-zip": ".zip", "rle-csv": ".csv"}
"""Suffix of a submission by its format."""

TIME = (1980, 1, 1, 0, 0, 0)
"""Time of every member of a zip, so that its bytes depend on nothing else.

It also distinguishes a submission from a user's archive of images.
"""

READ_BACK = (
    "what was written reads back differently; no submission was kept. Check disk and memory of this"
    " machine, then run again."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One checked answer.

    Args:
        id: id of the case.
        path: its file.
        shape: shape ``(*S)`` of its mask.
        foreground: number of voxels that are 1.
        digest: SHA-256 of the mask's bytes, see :func:`digest_of`.
    """

    id: str
    path: Path
    shape: tuple[int, ...]
    foreground: int
    digest: str


def digest_of(mask: np.ndarray) -> str:
    """SHA-256 of a mask.

    Args:
        mask: uint8 array.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(mask.tobytes()).hexdigest()


def write(out: Path, answers: Sequence[Answer], format: str) -> None:  # noqa: A002 - the option's name
    """Write checked answers in one of the formats.

    Args:
        out: the submission's file.
        answers: what is written.
        format: ``tiff-zip`` (:func:`write_zip`) or ``rle-csv`` (:func:`write_rle`).

    Raises:
        UserError: an answer changed since it was checked, or the file reads back differently.
    """
    (write_zip if format == "tiff-zip" else write_rle)(out, answers)


def require_replaceable(out: Path) -> None:
    """Check that a file may be overwritten by a submission.

    Args:
        out: the file, which need not exist.

    Raises:
        UserError: it is there and no submission: a flat zip of ID.tif as they are written here, or
            a table id,rle.
    """
    special = os.path.exists(out) and not os.path.isfile(out)  # opening a pipe would block
    if special or (
        os.path.lexists(out)
        and not (_is_table(out) if out.suffix.lower() == ".csv" else _is_flat_zip(out))
    ):
        raise UserError(
            f"--out {out} is there and no submission, which could be replaced. Name another file,"
            " or move it away."
        )


def _is_flat_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile):
        return False
    flat = all(
        m.filename.endswith(".tif") and "/" not in m.filename and "\\" not in m.filename
        for m in members
    )
    return bool(members) and flat and all(m.date_time == TIME for m in members)


def _is_table(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.readline(16).strip() == b"id,rle"
    except OSError:
        return False


# --- the zip --------------------------------------------------------------------------------------


def write_zip(out: Path, answers: Sequence[Answer]) -> None:
    """Write a flat zip of ``ID.tif``, sorted by id, whole or not at all.

    Members are re-encoded from the masks and stored with one fixed time and mode, so that the bytes
    depend on nothing else. The file takes its name only after it has been read back.

    Args:
        out: the file.
        answers: what is written.

    Raises:
        UserError: an answer changed since it was checked, or the file reads back differently.
    """
    with files.whole(out) as temp:
        with zipfile.ZipFile(temp, "w") as archive:
            for answer, mask in _masks(answers, "packing"):
                archive.writestr(_member(answer.id), encode_tiff(mask))
        _verify_zip(temp, answers)


def _masks(answers: Sequence[Answer], what: str) -> Iterator[tuple[Answer, np.ndarray]]:
    """Each answer with its mask ``(*S)``, one in memory at a time.

    Raises UserError for a file that changed since the check.
    """
    for answer in progress(sorted(answers, key=lambda a: a.id), what, len(answers)):
        stop.raise_if_stopped()
        mask = files.read(answer.path, len(answer.shape), labels=True)[0][0]
        if mask.shape != answer.shape or digest_of(mask) != answer.digest:
            raise UserError(
                f"{answer.path} changed while the submission was written. Let the prediction"
                " finish, then run again."
            )
        yield answer, mask


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{name}.tif", date_time=TIME)
    # Unix, whatever this machine is: Windows would write other bytes.
    info.create_system = 3
    info.external_attr = 0o100644 << 16
    return info


def encode_tiff(mask: np.ndarray) -> bytes:
    """Encode a mask as TIFF, one LZW page per slice as in the competition's own masks.

    Args:
        mask: uint8 array ``(Z, Y, X)`` or ``(Y, X)``.

    Returns:
        Bytes of the file.
    """
    buffer = io.BytesIO()
    # Written page by page: as one array, three columns would be taken for colours.
    with tifffile.TiffWriter(buffer) as tif:
        for page in mask.reshape(-1, *mask.shape[-2:]):
            tif.write(
                page,
                photometric="minisblack",
                compression="lzw",
                rowsperstrip=page.shape[0],
                metadata=None,
                software=False,
            )
    return buffer.getvalue()


def decode_tiff(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Decode a mask that :func:`encode_tiff` encoded.

    Args:
        data: bytes of the file.
        shape: shape ``(*S)`` of the mask.

    Returns:
        The mask.

    Example:
        >>> import numpy as np
        >>> mask = np.eye(3, dtype=np.uint8)
        >>> (decode_tiff(encode_tiff(mask), (3, 3)) == mask).all().item()
        True
    """
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        return np.stack([page.asarray() for page in tif.pages]).reshape(shape)


def _verify_zip(path: Path, answers: Sequence[Answer]) -> None:
    """Read everything back: names and order, checksums, and every mask to the last voxel."""
    with zipfile.ZipFile(path) as archive:
        names = [f"{a.id}.tif" for a in answers]
        good = archive.namelist() == names
        for answer in answers if good else ():
            stop.raise_if_stopped()
            # Reading a member compares its CRC.
            good = (
                good
                and digest_of(decode_tiff(archive.read(f"{answer.id}.tif"), answer.shape))
                == answer.digest
            )
    if not good:
        raise UserError(READ_BACK)


# --- run lengths ----------------------------------------------------------------------------------


def encode_rle(mask: np.ndarray) -> str:
    """Encode a mask as ``start length`` pairs of the runs of non-zero voxels.

    Voxels are counted from 1 through the flat array in C order: the last axis (X) runs fastest,
    then Y, then Z. Runs are ascending and as long as possible.

    Args:
        mask: array ``(*S)``.

    Returns:
        Numbers separated by single spaces; an empty mask is an empty string.

    Example:
        >>> import numpy as np
        >>> encode_rle(np.array([[0, 1, 1], [1, 0, 1]]))
        '2 3 6 1'
    """
    flat = np.concatenate([[False], mask.ravel() != 0, [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    starts, ends = edges[::2], edges[1::2]
    return " ".join(map(str, np.stack([starts + 1, ends - starts], axis=1).ravel().tolist()))


def decode_rle(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """Decode a mask that :func:`encode_rle` encoded.

    Args:
        text: pairs of numbers.
        shape: shape ``(*S)`` of the mask.

    Returns:
        The mask, uint8.

    Raises:
        UserError: the text is no such list, or its runs do not fit the shape.

    Example:
        >>> decode_rle("2 3 6 1", (2, 3)).tolist()
        [[0, 1, 1], [1, 0, 1]]
    """
    words = text.split()
    if len(words) % 2 or not all(
        word.isascii() and word.isdigit() and len(word) < 19 for word in words
    ):
        raise UserError(f"run lengths {text[:40]!r} are not pairs of whole numbers 'start length'.")
    starts, lengths = np.array([int(word) for word in words], np.int64).reshape(-1, 2).T
    ends = starts + lengths
    size = math.prod(shape)
    if len(starts) and (
        starts[0] < 1 or lengths.min() < 1 or ends[-1] > size + 1 or (starts[1:] <= ends[:-1]).any()
    ):
        raise UserError(
            f"run lengths {text[:40]!r} overlap, are not ascending, or leave the {size} voxels of"
            f" shape {shape}."
        )
    steps = np.zeros(size + 1, np.int8)
    steps[starts - 1] += 1
    steps[ends - 1] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).astype(np.uint8).reshape(shape)


def write_rle(out: Path, answers: Sequence[Answer]) -> None:
    """Write a table ``id,rle`` sorted by id, see :func:`encode_rle`, whole or not at all.

    The file takes its name only after it has been read back.

    Args:
        out: the file.
        answers: what is written.

    Raises:
        UserError: an answer changed since it was checked, or the file reads back differently.
    """
    with files.whole(out) as temp:
        with temp.open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["id", "rle"])
            for answer, mask in _masks(answers, "packing"):
                table.writerow([answer.id, encode_rle(mask)])
        _verify_rle(temp, answers)


def _verify_rle(path: Path, answers: Sequence[Answer]) -> None:
    with _long_fields(), path.open(newline="", encoding="utf-8") as stream:
        table = csv.reader(stream)
        good = next(table) == ["id", "rle"]
        for answer, row in zip(answers, table, strict=True):
            stop.raise_if_stopped()
            good = (
                good
                and row[0] == answer.id
                and digest_of(decode_rle(row[1], answer.shape)) == answer.digest
            )
    if not good:
        raise UserError(READ_BACK)


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read fields of any length; a volume's run lengths take megabytes."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
