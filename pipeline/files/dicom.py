"""DICOM, only read: a folder of the slices of one series, or one file of one or many frames.

Slices are sorted by their positions, not by their names or numbers, and must fill a block at equal
distances: what does not is refused. Pixels are decoded, and rescaled to the scanner's unit, by GDCM
(SimpleITK, the extra ``medical``). Nothing about patients is kept. Arrays are ``(C, X, Y, Z)`` with
an RAS+ affine, as those of NIfTI, so that one model takes both.
"""

from __future__ import annotations

import contextlib
import functools
import locale
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import frames
from pipeline.files.dicom_limits import check_elements
from pipeline.files.errors import AGAIN, FileError, check_kind, wrong_axes
from pipeline.files.frames import Frame
from pipeline.files.limits import check_memory, check_values
from pipeline.files.names import as_text, dicom_files
from pipeline.records import Geometry

TOLERANCE = 0.01
"""Share of the distance of slices by which their positions may differ from a straight, even row."""

ANGLE = 1e-3
"""Largest difference of directions that count as equal; 0.06 degrees."""

SHOWN = 6
"""Series that a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one file says of itself.

    Args:
        path: the file.
        series: UID of its series.
        described: description of its series, for messages.
        size: voxels along x, y and z; z is more than 1 for several frames.
        channels: values of a voxel.
        dtype: number type after rescaling.
        frame: where it lies, LPS; not placed where the file does not say it.
        inverted: whether low values are bright (MONOCHROME1).
    """

    path: Path
    series: str
    described: str
    size: tuple[int, int, int]
    channels: int
    dtype: str
    frame: Frame
    inverted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """Slices in the order of their positions, and where they lie together."""

    slices: tuple[Slice, ...]
    size: tuple[int, int, int]
    frame: Frame
    notes: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype:
        """The number type that holds the values of all slices."""
        return np.result_type(*(s.dtype for s in self.slices))


def probe(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Check the headers of a series or a file.

    Args:
        path: folder of one series, or a ``.dcm`` file.
        dims: number of space axes, 2 or 3.

    Returns:
        Shape ``(C, *S)`` and name of the dtype after rescaling.

    Raises:
        FileError: for several series, slices that make no even block, damage, or other axes.
    """
    volume = _volume(path)
    return _shape(path, volume, dims), volume.dtype.name


def geometry(path: Path, dims: int) -> Geometry:
    """Read where a series or a file lies.

    Args:
        path: folder of one series, or a ``.dcm`` file.
        dims: number of space axes, 2 or 3.

    Returns:
        Geometry of format ``itk``.

    Raises:
        FileError: as :func:`probe`.
    """
    volume = _volume(path)
    _shape(path, volume, dims)
    return _geometry(volume, dims)


def read(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Read all slices.

    Args:
        path: folder of one series, or a ``.dcm`` file.
        dims: number of space axes, 2 or 3.
        labels: not used; other formats read label maps differently.

    Returns:
        Array ``(C, X, Y, Z)`` or ``(C, X, Y)``, rescaled, and its geometry.

    Raises:
        FileError: as :func:`probe`, and where a slice cannot be decoded or memory does not suffice.
    """
    volume = _volume(path)
    shape = _shape(path, volume, dims)
    check_memory(path, shape, volume.dtype)
    array = np.empty((shape[0], *volume.size), volume.dtype)
    first = 0
    for part in volume.slices:
        end = first + part.size[2]
        array[..., first:end] = _pixels(path, part)
        first = end
    return array.reshape(shape), _geometry(volume, dims)


def _geometry(volume: Volume, dims: int) -> Geometry:
    return replace(frames.geometry_of(volume.frame, dims), notes=volume.notes)


def _shape(path: Path, volume: Volume, dims: int) -> tuple[int, ...]:
    """Shape ``(C, *S)``; raises FileError for other axes."""
    shape = (volume.slices[0].channels, *volume.size)
    check_values(path, shape, volume.dtype)
    if dims == 2 and volume.size[2] != 1:
        raise wrong_axes(path, volume.size, dims)
    return shape[: dims + 1]


# --- files ----------------------------------------------------------------------------------------


def _volume(path: Path) -> Volume:
    """The series of a folder, or the image of a file."""
    if not os.path.isdir(path):
        return _stamped(path, (path,), _stamp((path,)))
    found = tuple(dicom_files(path))
    return _stamped(path, found, _stamp(found))


def _stamp(found: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    """Size and time of change of each file."""
    return tuple((s.st_size, s.st_mtime_ns) for s in (p.stat() for p in found))


@functools.lru_cache(maxsize=8)
def _stamped(path: Path, found: tuple[Path, ...], stamp: tuple[tuple[int, int], ...]) -> Volume:
    """The volume; kept, because a case is probed, placed and read one after the other."""
    if not found:
        raise FileError(path, "holds no DICOM file", "Name the folder of the slices of one series")
    slices = [_slice(p) for p in found]
    _require_one_series(path, slices)
    if len(slices) == 1:
        return _single(slices[0])
    return _stacked(path, slices)


def _toolkit(path: Path) -> Any:
    """SimpleITK, without the warnings that it prints."""
    try:
        import SimpleITK
    except ImportError as error:
        raise FileError(
            path,
            f"is DICOM, which needs the package SimpleITK ({error})",
            'in a clone pip install -e ".[medical]", or convert it to .nii.gz',
        ) from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


@contextlib.contextmanager
def _kept_locale() -> Iterator[None]:
    """Restore the locale: GDCM may leave another one, in which text files are ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        if locale.setlocale(locale.LC_ALL) != before:
            locale.setlocale(locale.LC_ALL, before)


def _reader(sitk: Any, text: str) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(text)
    return reader


def _slice(path: Path) -> Slice:
    """The header of one file."""
    check_kind(path)
    check_elements(path)
    sitk = _toolkit(path)
    with as_text(path) as text, _kept_locale():
        reader = _reader(sitk, text)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise FileError(path, f"is no DICOM image that can be read ({_last(error)})") from None
    size, count = tuple(int(n) for n in reader.GetSize()), reader.GetNumberOfComponents()
    if len(size) != 3 or min(size) < 1 or count < 1:
        raise FileError(path, f"has the shape {size}, which is no image", AGAIN)
    return Slice(
        path=path,
        series=_tag(reader, "0020|000e"),
        described=_tag(reader, "0008|103e"),
        size=size,
        channels=count,
        dtype=_dtype(path, sitk.GetPixelIDValueAsString(reader.GetPixelID())),
        frame=_frame(path, reader),
        inverted=_tag(reader, "0028|0004") == "MONOCHROME1",
    )


def _last(error: RuntimeError) -> str:
    """The last line of an error of ITK; those before name its own source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "".join(c for c in lines[-1] if c.isprintable())[:150] if lines else "no reason"


def _tag(reader: Any, key: str) -> str:
    """Text of a tag; empty where the file has none."""
    text = reader.GetMetaData(key) if reader.HasMetaDataKey(key) else ""
    text = text.encode(errors="replace").decode(errors="replace")
    return "".join(c for c in text if c.isprintable()).strip()


def _dtype(path: Path, name: str) -> str:
    """Number type by SimpleITK's name, such as ``vector of 8-bit unsigned integer``."""
    plain = name.removeprefix("vector of ")
    for bits in ("8", "16", "32", "64"):
        for text, kind in ((f"{bits}-bit signed integer", "int"), (f"{bits}-bit float", "float")):
            if plain == text:
                return kind + bits
        if plain == f"{bits}-bit unsigned integer":
            return f"uint{bits}"
    raise FileError(path, f"holds {name[:60]} values", "Convert it to an integer or real type")


def _frame(path: Path, reader: Any) -> Frame:
    """Where one file lies, by its position, orientation and spacing."""
    several = reader.GetSize()[2] > 1
    position = _numbers(_tag(reader, "0020|0032"), 3)
    orientation = _numbers(_tag(reader, "0020|0037"), 6)
    x, y, z = (float(s) for s in reader.GetSpacing())
    if several:  # functional groups, which GDCM reads
        directions = np.array(reader.GetDirection(), float).reshape(3, 3).T
        origin, placed = tuple(float(v) for v in reader.GetOrigin()), True
    else:
        thickness = [_numbers(_tag(reader, key), 1) for key in ("0018|0088", "0018|0050")]
        z = next((abs(t[0]) for t in thickness if t and t[0]), 1.0)
        placed = position is not None and orientation is not None
        origin = tuple(position) if placed and position else (0.0, 0.0, 0.0)
        two = np.array(orientation if placed else (1, 0, 0, 0, 1, 0), float).reshape(2, 3)
        directions = np.array([*two, np.cross(two[0], two[1])])
    if abs(directions @ directions.T - np.eye(3)).max() > ANGLE:
        raise FileError(path, "has directions of rows and columns that are not at right angles")
    frame = Frame(
        spacing=(x, y, z),
        origin=origin,
        directions=tuple(map(tuple, directions.tolist())),
        placed=placed,
    )
    if not all(math.isfinite(s) for s in (x, y, z)):
        raise FileError(path, f"has a spacing of {x} x {y} x {z}")
    return frames.check_frame(path, frame)


def _numbers(text: str, count: int) -> list[float] | None:
    """Finite numbers between backslashes; None where there are none, or others."""
    try:
        values = [float(part) for part in text.split("\\")]
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def _pixels(path: Path, part: Slice) -> np.ndarray:
    """Pixels ``(C, X, Y, Z)`` of one file."""
    sitk = _toolkit(path)
    with as_text(part.path) as text, _kept_locale():
        try:
            image = _reader(sitk, text).Execute()
        except RuntimeError as error:
            raise FileError(
                path, f"has a slice {part.path.name} that cannot be decoded ({_last(error)})"
            ) from None
    array = sitk.GetArrayFromImage(image)  # (Z, Y, X) or (Z, Y, X, C)
    array = array[..., None] if array.ndim == 3 else array
    if array.shape != (*part.size[::-1], part.channels):
        raise FileError(path, f"has a slice {part.path.name} whose pixels are not as announced")
    return array.transpose(3, 2, 1, 0)


# --- series ---------------------------------------------------------------------------------------


def _require_one_series(path: Path, slices: Sequence[Slice]) -> None:
    """Raise FileError for slices of several series."""
    series: dict[str, list[Slice]] = defaultdict(list)
    for part in slices:
        series[part.series].append(part)
    if len(series) == 1:
        return
    shown = "; ".join(
        f"{uid or 'no UID'} {parts[0].described!r} of {len(parts)} slices"
        for uid, parts in list(series.items())[:SHOWN]
    )
    more = f"; and {len(series) - SHOWN} more" if len(series) > SHOWN else ""
    raise FileError(
        path,
        f"holds {len(series)} series where one is needed: {shown}{more}",
        "Move each series to a folder of its own, and name that",
    )


def _single(part: Slice) -> Volume:
    """The volume of one file."""
    notes = _notes(part)
    if part.size[2] > 1:
        notes.append(
            "is one file of many frames, whose distances are taken from the first ones and were not"
            " compared"
        )
    return Volume(slices=(part,), size=part.size, frame=part.frame, notes=tuple(notes))


def _notes(part: Slice) -> list[str]:
    return ["holds low values for bright pixels (MONOCHROME1), as stored"] if part.inverted else []


def _stacked(path: Path, slices: Sequence[Slice]) -> Volume:
    """The volume of many slices."""
    _require_alike(path, slices)
    directions = np.array(slices[0].frame.directions)
    positions = np.array([s.frame.origin for s in slices])
    order = np.argsort(positions @ directions[2], kind="stable")
    ordered = [slices[n] for n in order]
    step = _step(path, ordered, positions[order], directions[2])
    first = ordered[0]
    frame = replace(first.frame, spacing=(*first.frame.spacing[:2], step))
    size = (*first.size[:2], len(slices))
    return Volume(slices=tuple(ordered), size=size, frame=frame, notes=tuple(_notes(first)))


def _require_alike(path: Path, slices: Sequence[Slice]) -> None:
    """Raise FileError for slices that differ in what they must share."""
    first = slices[0]
    for name, found in {
        "sizes": [f"{s.size[0]}x{s.size[1]}x{s.size[2]}" for s in slices],
        "numbers of channels": [str(s.channels) for s in slices],
        "photometric interpretations": ["inverted" if s.inverted else "plain" for s in slices],
    }.items():
        if len(counts := Counter(found)) > 1:
            shown = ", ".join(f"{n} of {value}" for value, n in counts.most_common(SHOWN))
            raise FileError(path, f"has slices of several {name}: {shown}", APART)
    if first.size[2] != 1:
        raise FileError(
            path,
            f"holds {len(slices)} files of {first.size[2]} frames each where one is needed",
            "Name one of the files, or move each to a folder of its own",
        )
    without = [s.path.name for s in slices if not s.frame.placed]
    if without:
        raise FileError(
            path,
            f"has {len(without)} slices without position or orientation, such as {without[0]}",
            "Nothing says in which order they lie: convert them with the program that made them",
        )
    for part in slices[1:]:
        tilt = np.abs(np.subtract(part.frame.directions, first.frame.directions)).max()
        if tilt > ANGLE:
            raise FileError(
                path,
                f"has slices of several orientations: {first.path.name} and {part.path.name} differ"
                f" by {tilt:.3g} (ImageOrientationPatient)",
                APART,
            )
        if not np.allclose(part.frame.spacing[:2], first.frame.spacing[:2], rtol=1e-3):
            raise FileError(
                path,
                f"has slices of several pixel spacings: {first.frame.spacing[:2]} and"
                f" {part.frame.spacing[:2]} mm",
                APART,
            )


APART = "Move slices that do not belong to the volume, such as localisers, to another folder"
"""Suggestion for slices that differ."""


def _step(path: Path, slices: Sequence[Slice], positions: np.ndarray, normal: np.ndarray) -> float:
    """Distance of neighbouring slices; raises FileError where they make no even, straight row."""
    heights = positions @ normal
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    if not usual > 0 or gaps.min() < TOLERANCE * usual:
        n = int(gaps.argmin())
        raise FileError(
            path,
            f"has several slices at one position, such as {slices[n].path.name} and"
            f" {slices[n + 1].path.name} at {heights[n]:.6g} mm",
            "Move each time point, echo or phase to a folder of its own",
        )
    wrong = np.abs(gaps - usual)
    n = int(wrong.argmax())
    if wrong[n] > TOLERANCE * usual:
        kind = (
            "lacks slices" if abs(gaps[n] / usual - round(gaps[n] / usual)) < 0.05 else "is uneven"
        )
        raise FileError(
            path,
            f"{kind}: from {slices[n].path.name} to {slices[n + 1].path.name} there are"
            f" {gaps[n]:.5g} mm, between the others {usual:.5g} mm;"
            f" {TOLERANCE:.0%} may they differ",
            "Copy the series again, or resample it to even slices",
        )
    aside = np.diff(positions - heights[:, None] * normal, axis=0)
    shift = float(np.sqrt((aside**2).sum(1)).max())
    if shift > TOLERANCE * usual:
        angle = math.degrees(math.atan2(shift, usual))
        raise FileError(
            path,
            f"is sheared (gantry tilt): its slices are shifted by {shift:.4g} mm each, {angle:.3g}"
            f" degrees; {TOLERANCE:.0%} of their distance of {usual:.5g} mm is the most",
            "Resample it to a straight grid, as 3D Slicer and dcm2niix do",
        )
    return float((heights[-1] - heights[0]) / (len(slices) - 1))
