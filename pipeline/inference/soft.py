"""Soft predictions on disk, the seam between accelerators and everything after them: ``soft/ID.npy`` and ``soft/ID.json``.

Probabilities are stored as float16: they keep three decimals, and a 320³ volume takes 66 MB that can be memory-mapped slab by slab.
Images are stored as float32, from which 16-bit answers come out to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import documents, files
from pipeline.grid import grid_of
from pipeline.records import Geometry, Prediction, UserError
from pipeline.tasks import TASKS

NUMBERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")
"""Types of numbers that an input, and so its answer, may have."""

TOLERANCE = 1e-3
"""How far a probability may lie outside 0..1: twice the rounding of float16 at 1."""

AGAIN = "Predict the case again"

SLAB = 2**22
"""Numbers that are checked at a time."""


def save(folder: Path, prediction: Prediction, extra: Mapping[str, Any]) -> None:
    """Write ``folder/ID.npy`` and ``folder/ID.json`` (geometry and ``extra``); the array last, so that it is never without its facts."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / f"{prediction.case_id}.json", {**extra, "geometry": asdict(prediction.geometry)})
    dtype = np.float32 if extra.get("task") == "image" else np.float16
    files.write(folder / f"{prediction.case_id}.npy", prediction.soft.astype(dtype))


def ids(folder: Path) -> list[str]:
    """Ids of the soft predictions in ``folder``, sorted."""
    return sorted({files.case_id(p) for p in _arrays(folder)})


def array_path(folder: Path, case_id: str) -> Path:
    """The file of a case's array, also where its name was decomposed on the way through another file system."""
    path = folder / f"{case_id}.npy"
    if path.is_file():
        return path
    return next((p for p in _arrays(folder) if files.case_id(p) == files.case_id(path)), path)


def _arrays(folder: Path) -> list[Path]:
    return [p for p in folder.glob("*.npy") if not p.name.startswith(".")]


def load(folder: Path, case_id: str) -> tuple[Prediction, dict[str, Any]]:
    """A memory-mapped soft prediction and its facts. Raises UserError for files that are missing, torn or no soft prediction."""
    path = array_path(folder, case_id)
    beside = path.with_name(f"{path.name[:-4]}.json")
    try:
        facts = files.read_document(beside, documents.SoftFacts, AGAIN)
        array = files.guarded(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
        place = _placed(beside, facts.pop("geometry"), array.ndim - 1)
        if facts.get("task") == "image" and facts.get("scale") is not None:
            files.checked(beside, facts["scale"], documents.Scale, AGAIN)
        _require_usable(array, facts)
    except (ValueError, files.FileError) as error:
        words = str(error).rstrip(".") if isinstance(error, files.FileError) else f"{beside}: {error}"
        raise UserError(
            f"{path}: not a readable soft prediction ({words}). Run pipeline.predict --save-soft again for this case."
        ) from None
    return Prediction(case_id=case_id, soft=array, geometry=place), facts


def _placed(path: Path, found: Mapping[str, Any], dims: int) -> Geometry:
    """The geometry in a document. Raises FileError for one that no array could be written with."""
    meta = documents.PLACES.get(found["format"])
    if meta is not None:
        files.checked(path, {"geometry": {"meta": found["meta"]}}, meta, AGAIN)
    place = Geometry(format=found["format"], meta=found["meta"], notes=tuple(found.get("notes", ())))
    files.guarded(path, lambda: grid_of(place, dims))
    return place


def _require_usable(array: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Raise ValueError for an array or facts of which no answer could be written."""
    if not isinstance(array, np.ndarray):
        raise ValueError("several arrays in one file")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"shape {array.shape} where channels and 2 or 3 axes of space are needed")
    if facts.get("task", "labels") not in TASKS:
        raise ValueError(f"task {facts['task']!r} is none of {', '.join(TASKS)}")
    if facts.get("suffix", ".tif") not in files.SUFFIXES:
        raise ValueError(f"suffix {facts['suffix']!r} is none of {', '.join(files.SUFFIXES)}")
    if facts.get("dtype", "uint8") not in NUMBERS:
        raise ValueError(f"dtype {facts['dtype']!r} is none of {', '.join(NUMBERS)}")
    if facts.get("task") != "image":
        return
    channels, scale = facts.get("channels", len(array)), facts.get("scale")
    if not len(array) - 1 <= channels <= len(array):
        raise ValueError(f"channels is {channels}, but the array has {len(array)}")
    if scale is not None and not {len(scale["low"]), len(scale["high"])} <= {1, channels}:
        raise ValueError(f"scale has limits for {len(scale['low'])} and {len(scale['high'])} channels, not {channels}")


def require_sound(path_or_folder: Path, case_id: str) -> None:
    """Raise UserError unless a soft prediction holds finite numbers and, for labels, probabilities from 0 to 1.

    Args:
        path_or_folder: folder of soft predictions (``OUTPUT/soft``), or the ``ID.npy`` in one.
        case_id: id of the case.
    """
    folder = path_or_folder.parent if path_or_folder.suffix == ".npy" else path_or_folder
    prediction, facts = load(folder, case_id)
    problem = _unsound(prediction.soft, facts.get("task", "labels") == "labels")
    if problem is not None:
        raise UserError(
            f"{array_path(folder, case_id)}: {problem}. Predict this case again with pipeline.predict --save-soft; where the network "
            "itself gives such values, train it again or leave this member out."
        )


def _unsound(array: np.ndarray, probabilities: bool) -> str | None:
    """What is wrong with the values of ``(K, *S)``, read a slab at a time; None where they are sound."""
    if array.dtype.kind not in "uif":
        return f"holds values of type {array.dtype}, not numbers"
    low, high = (-TOLERANCE, 1 + TOLERANCE) if probabilities else (-np.inf, np.inf)
    wrong, example = 0, 0.0
    flat = array.reshape(-1)  # a view: soft files are written in one piece
    for start in range(0, flat.size, SLAB):
        part = flat[start : start + SLAB]
        if probabilities and _in_range(part):
            continue
        values = np.asarray(part, np.float32)
        bad = values[~(np.isfinite(values) & (values >= low) & (values <= high))]
        example = example if wrong or not bad.size else float(bad[0])
        wrong += bad.size
    if not wrong:
        return None
    rule = "no probabilities from 0 to 1" if probabilities else "NaN or infinite"
    return f"holds {wrong} values that are {rule}, the first is {example:g}"


def _in_range(part: np.ndarray) -> bool:
    """Whether all of a float16 array lies in 0..1, by its bits: those of NaN, infinity and negative numbers are greater."""
    return part.dtype == np.float16 and int(part.view(np.uint16).max(initial=0)) <= int(np.float16(1).view(np.uint16))
