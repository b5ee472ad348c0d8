"""OME-Zarr: a folder of chunks, the format of image pyramids of microscopes and scanners.

The finest level is read unless the path names another, and of a series the time that it names:
``scan.ome.zarr#level=1,time=0``. Axes are found by their names; one level is written. Versions 0.4
(on Zarr format 2) and 0.5 (format 3) are read, as are plain arrays of either format. A prediction
is written in the version of its input, and as 0.4 where there is none: that is what Fiji, QuPath,
napari, neuroglancer and OMERO all open today, while only the newest releases of some read 0.5.
Specification: ngff.openmicroscopy.org.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.files.errors import FileError, silence, wrong_axes
from pipeline.files.limits import check_memory
from pipeline.files.names import BOX, split_selection
from pipeline.files.pixels import LazyArray, Rows, slabs
from pipeline.files.zarr_limits import Folder, check_array, check_metadata
from pipeline.records import Geometry

EDGE = 128
"""Longest edge of a chunk that is written, in voxels; 2D images have four times that."""

VERSION = "0.4"
"""Version that is written where the input has none."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is chosen of a Zarr.

    Args:
        level: number of the level, 0 for the first one that is described, the finest.
        time: index along the axis of time; None: that has one point at most.
    """

    level: int = 0
    time: int | None = None


def _selection(path: Path) -> tuple[Path, Selection]:
    """The folder of a Zarr, and what its path chooses."""
    folder, text = split_selection(path)
    found: dict[str, int] = {}
    for part in text[1:].split(",") if text else ():
        if part.startswith(BOX):  # of a link of such a name; it is cut by whoever reads
            continue
        key, _, value = part.partition("=")
        if key not in ("level", "time") or key in found or not _is_index(value):
            raise FileError(
                path,
                f"chooses {part[:40]!r}, which is neither level=N nor time=N",
                f"Name {folder.name.partition('#')[0]}#level=1, #time=0 or #level=1,time=0",
            )
        found[key] = int(value)
    return folder, Selection(**found)


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


@dataclass(frozen=True, slots=True)
class _Opened:
    """An array that was opened, and what is said of it."""

    array: Any
    entry: Mapping[str, Any]
    """Multiscale entry, whose only dataset is the chosen one; empty for a plain array."""
    version: str
    time: int | None


def _open(path: Path) -> _Opened:
    """The chosen level."""
    path, chosen = _selection(path)
    silence("zarr", "numcodecs")
    check_metadata(path)
    store = Folder(path, read_only=True)
    try:
        node: Any = zarr.open(store, mode="r")
    except FileError:
        raise
    except (ValueError, KeyError, TypeError, FileNotFoundError, RecursionError) as error:
        suggestion = "Name the folder that holds zarr.json, .zgroup or .zarray"
        raise FileError(
            path,
            f"is no Zarr that can be opened ({type(error).__name__}: {error})"[:300],
            suggestion,
        ) from None
    if isinstance(node, zarr.Array):
        if chosen != Selection():
            raise FileError(
                path, "is a plain array without levels and times", "Name it without a choice (#)"
            )
        check_array(path, node, store)
        return _Opened(node, {}, "", None)
    entry, version = _multiscale(path, dict(node.attrs), chosen.level)
    level_path = entry["datasets"][0]["path"]
    check_metadata(path, level_path)
    try:
        level = node[level_path]
    except (KeyError, ValueError, TypeError) as error:
        raise FileError(
            path, f"has no array at {level_path!r}, which its description names ({error})"[:300]
        ) from None
    if not isinstance(level, zarr.Array):
        raise FileError(
            path,
            f"has no array at {level_path!r}, which its description names as"
            f" {_called(chosen.level)}",
        )
    check_array(path, level, store)
    _check_transformations(path, entry, len(level.shape))
    return _Opened(level, entry, version, chosen.time)


def _called(level: int) -> str:
    """Name of a level, for messages."""
    return f"level {level}" if level else "the finest level"


def _multiscale(
    path: Path, attributes: Mapping[str, Any], level: int
) -> tuple[Mapping[str, Any], str]:
    """The first multiscale entry, of whose datasets the level is left, and the version.

    Its axes and that dataset were checked for the types of the specification.
    """
    inner = attributes.get("ome", attributes)
    scales = inner.get("multiscales") if isinstance(inner, Mapping) else None
    if not scales:
        raise FileError(
            path,
            "is a Zarr group without 'multiscales'",
            "Name the folder of one image: OME-Zarr 0.4 or 0.5, or a plain array",
        )
    entry = scales[0] if isinstance(scales, list) else None
    if not isinstance(entry, Mapping):
        raise FileError(path, "has 'multiscales' that are no list of objects", _SPEC_ADVICE)
    axes, datasets = entry.get("axes") or [None], entry.get("datasets")
    described = (
        [axis for axis in axes if isinstance(axis, Mapping)] if isinstance(axes, list) else []
    )
    if not described or len(described) < len(axes):
        raise FileError(
            path,
            "has no description of its axes, as OME-Zarr before 0.4",
            "Convert it to version 0.4 or 0.5",
        )
    if not all(
        isinstance(axis.get("name"), str) and isinstance(axis.get("unit") or "", str)
        for axis in described
    ):
        raise FileError(
            path, "has axes without a name, or with a unit that is no text", _SPEC_ADVICE
        )
    if not isinstance(datasets, list) or not datasets:
        raise FileError(path, "has 'datasets' that are no list of objects", _SPEC_ADVICE)
    if level >= len(datasets):
        raise FileError(
            path,
            f"has {len(datasets)} levels, of which level {level} is none",
            f"Choose one from level=0, the finest, to level={len(datasets) - 1}",
        )
    if not isinstance(datasets[level], Mapping):
        raise FileError(path, "has 'datasets' that are no list of objects", _SPEC_ADVICE)
    level_path = datasets[level].get("path")
    if (
        not isinstance(level_path, str)
        or level_path.startswith(("/", "\\"))
        or ".." in level_path.replace("\\", "/").split("/")
        or "\0" in level_path
    ):
        raise FileError(
            path,
            f"names {level_path!r}"[:100] + f" as {_called(level)}, which is no path inside it",
            _SPEC_ADVICE,
        )
    entry = {**entry, "datasets": [datasets[level]]}
    return entry, str(inner.get("version") or entry.get("version") or VERSION)


_SPEC_ADVICE = "Write it as OME-Zarr 0.4 or 0.5 describes (ngff.openmicroscopy.org)"


def _check_transformations(path: Path, entry: Mapping[str, Any], axes: int) -> None:
    """Raise FileError for invalid coordinate transformations.

    Scale and translation must be lists of one finite number for each axis.
    """
    for owner in (entry["datasets"][0], entry):
        steps = owner.get("coordinateTransformations", ())
        if not isinstance(steps, list | tuple) or not all(
            isinstance(step, Mapping) for step in steps
        ):
            raise FileError(
                path, "has coordinate transformations that are no list of objects", _SPEC_ADVICE
            )
        for values in (
            step[key] for step in steps for key in ("scale", "translation") if key in step
        ):
            if (
                not isinstance(values, list)
                or len(values) != axes
                or not all(_is_number(v) for v in values)
            ):
                raise FileError(
                    path,
                    f"has a scale or translation of {str(values)[:80]} where {axes} numbers are"
                    " needed",
                    _SPEC_ADVICE,
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _axis_name(axis: Mapping[str, Any]) -> str:
    """Name of an axis; one that is not known goes by its type."""
    name = str(axis["name"]).lower()
    known = name in ("t", "c", "z", "y", "x")
    return name if known else {"time": "t", "channel": "c"}.get(str(axis.get("type")), name)


def _layout(path: Path, found: _Opened, dims: int) -> tuple[list[int], tuple[int, ...], list[str]]:
    """Order of the stored axes for ``(rest, C, *S)``, the shape ``(C, *S)``, and axis names."""
    entry = found.entry
    shape = tuple(int(n) for n in found.array.shape)
    if not entry:
        if len(shape) not in (dims, dims + 1):
            raise wrong_axes(path, shape, dims)
        names = ["c", "z", "y", "x"][-len(shape) :] if dims == 3 else ["c", "y", "x"][-len(shape) :]
    else:
        names = [_axis_name(axis) for axis in entry["axes"]]
    shape = _at_time(path, found, names, shape)
    space = ["z", "y", "x"][-dims:]
    flat = [i for i, name in enumerate(names) if name not in (*space, "c")]
    if (
        len(names) != len(shape)
        or any(name not in names for name in space)
        or any(shape[i] != 1 for i in flat)
    ):
        raise wrong_axes(path, shape, dims)
    channel = [i for i, name in enumerate(names) if name == "c"]
    order = flat + channel + [names.index(name) for name in space]
    return (
        order,
        (math.prod(shape[i] for i in channel), *(shape[names.index(name)] for name in space)),
        names,
    )


def _at_time(
    path: Path, found: _Opened, names: Sequence[str], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape at the chosen time; raises FileError where none is chosen of several."""
    axes = [i for i, name in enumerate(names) if name == "t"]
    if len(names) != len(shape) or not axes:
        if found.time is not None:
            raise FileError(
                path,
                f"has no axis of time ({''.join(names)[:20]})",
                "Name it without time=N, or set the type of that axis to time",
            )
        return shape
    size = "x".join(map(str, shape))
    if len(axes) > 1:
        raise FileError(path, f"has {len(axes)} axes of time ({size})", _SPEC_ADVICE)
    count = shape[axes[0]]
    if count > 1 and found.time is None:
        raise FileError(
            path,
            f"is a series of {count} times ({size}, axes {''.join(names)}) where one is needed",
            f"Choose one: {path.name.partition('#')[0]}#time=0, up to time={count - 1}",
        )
    if (found.time or 0) >= count:
        raise FileError(
            path,
            f"has {count} times, of which time {found.time} is none",
            f"Choose one from time=0 to time={count - 1}",
        )
    return tuple(1 if i == axes[0] else n for i, n in enumerate(shape))


def probe(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Check the metadata of a Zarr.

    Chunks that were never written are background, so missing ones cannot be detected.

    Args:
        path: Zarr folder.
        dims: number of space axes, 2 or 3.

    Returns:
        Shape ``(C, *S)`` of the chosen level, and name of the dtype.

    Raises:
        FileError: where the metadata are damaged, declare too much or have other axes.
    """
    found = _open(path)
    return _layout(path, found, dims)[1], found.array.dtype.name


def geometry(path: Path, dims: int) -> Geometry:
    """Read axes, scale, translation and units.

    Args:
        path: Zarr folder.
        dims: number of space axes, 2 or 3.

    Returns:
        Geometry of format ``zarr``.

    Raises:
        FileError: as :func:`probe`.
    """
    found = _open(path)
    return _geometry(found, _layout(path, found, dims)[2], dims)


def read(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Read the chosen level of a Zarr.

    Args:
        path: Zarr folder.
        dims: number of space axes, 2 or 3.
        labels: not used; other formats read label maps differently.

    Returns:
        Array ``(C, *S)`` and its geometry.

    Raises:
        FileError: as :func:`probe`, and where the array does not fit into memory.
    """
    pixels, geometry = view(path, dims)
    check_memory(path, pixels.shape, pixels.dtype)
    return pixels[:], geometry


def view(path: Path, dims: int) -> tuple[LazyArray, Geometry]:
    """Open the chosen level of a Zarr for reading slab by slab.

    Args:
        path: Zarr folder.
        dims: number of space axes, 2 or 3.

    Returns:
        The array ``(C, *S)``, of which rows are read as they are sliced, and its geometry.

    Raises:
        FileError: as :func:`probe`, and from a slice that does not fit into memory.
    """
    found = _open(path)
    array = found.array
    order, shape, names = _layout(path, found, dims)
    axis = names.index("zyx"[3 - dims])
    now = found.time or 0
    around = [slice(now, now + 1) if name == "t" else slice(None) for name in names]

    def make(first: int, end: int) -> np.ndarray:
        check_memory(path, (shape[0], end - first, *shape[2:]), array.dtype, "rows")
        part = np.asarray(array[(*around[:axis], slice(first, end), *around[axis + 1 :])])
        return part.transpose(order).reshape(shape[0], end - first, *shape[2:])

    return Rows(shape, array.dtype.newbyteorder("="), make), _geometry(found, names, dims)


def _geometry(found: _Opened, names: Sequence[str], dims: int) -> Geometry:
    """Scale and translation of the space axes, of level and whole pyramid combined."""
    entry = found.entry
    meta: dict[str, Any] = {"dims": dims}
    if not entry:
        return Geometry(format="zarr", meta=meta)
    where = [i for i, name in enumerate(names) if name in "zyx"[3 - dims :]]
    scale, shift = [1.0] * len(names), [0.0] * len(names)
    for step in [
        *entry["datasets"][0].get("coordinateTransformations", ()),
        *entry.get("coordinateTransformations", ()),
    ]:
        if "scale" in step:
            scale = [a * b for a, b in zip(scale, step["scale"], strict=True)]
            shift = [a * b for a, b in zip(shift, step["scale"], strict=True)]
        if "translation" in step:
            shift = [a + b for a, b in zip(shift, step["translation"], strict=True)]
    space = {names[i]: i for i in where}
    ordered = [space[name] for name in "zyx"[3 - dims :]]
    meta |= {
        "version": found.version,
        "scale": [scale[i] for i in ordered],
        "units": [entry["axes"][i].get("unit") for i in ordered],
    }
    return Geometry(
        format="zarr",
        meta=meta | ({"translation": [shift[i] for i in ordered]} if any(shift) else {}),
    )


def write(path: Path, array: LazyArray, geometry: Geometry) -> None:
    """Write one level of an OME-Zarr, slab by slab.

    Args:
        path: new folder.
        array: ``(C, *S)``.
        geometry: version, scale, translation and units of a Zarr; of another format: version 0.4
            and scale 1.
    """
    meta = geometry.meta if geometry.format == "zarr" else {}
    version, dims = meta.get("version") or VERSION, len(array.shape) - 1
    new = version.startswith("0.5")
    multichannel = array.shape[0] > 1
    shape = tuple(array.shape) if multichannel else tuple(array.shape[1:])
    chunk = [min(n, EDGE * (4 if dims == 2 else 1)) for n in array.shape[1:]]
    group = zarr.open_group(path, mode="w", zarr_format=3 if new else 2)
    level: Any = group.create_array(
        "0",
        shape=shape,
        chunks=(1, *chunk) if multichannel else tuple(chunk),
        dtype=np.dtype(array.dtype),
        chunk_key_encoding={"name": "default" if new else "v2", "separator": "/"},
        dimension_names=[*("c" if multichannel else ""), *"zyx"[3 - dims :]] if new else None,
    )
    for first, end in slabs(array, chunk[0]):
        part = array[:, first:end]
        level[(slice(None), slice(first, end)) if multichannel else slice(first, end)] = (
            part if multichannel else part[0]
        )
    entry = _multiscale_entry(meta, version, dims, multichannel, path)
    group.attrs.update(
        {"ome": {"version": version, "multiscales": [entry]}}
        if new
        else {"multiscales": [entry | {"version": version}]}
    )


def _multiscale_entry(
    meta: Mapping[str, Any], version: str, dims: int, multichannel: bool, path: Path
) -> dict[str, Any]:
    """The multiscales entry of one level."""
    units = meta.get("units") or [None] * dims
    axes = [{"name": "c", "type": "channel"}] if multichannel else []
    axes += [
        {"name": n, "type": "space", **({"unit": u} if u else {})}
        for n, u in zip("zyx"[3 - dims :], units, strict=True)
    ]
    lead = [1.0] if multichannel else []
    steps: list[dict[str, Any]] = [
        {"type": "scale", "scale": lead + list(meta.get("scale") or [1.0] * dims)}
    ]
    if "translation" in meta:
        steps.append(
            {
                "type": "translation",
                "translation": ([0.0] if multichannel else []) + list(meta["translation"]),
            }
        )
    return {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
