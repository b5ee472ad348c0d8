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

from pipeline import files
from pipeline.records import Geometry, Prediction, UserError


def save(folder: Path, prediction: Prediction, extra: Mapping[str, Any]) -> None:
    """Write ``folder/ID.npy`` and ``folder/ID.json`` (geometry and ``extra``); the array last, so that it is never without its facts."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / f"{prediction.case_id}.json", {**extra, "geometry": asdict(prediction.geometry)})
    dtype = np.float32 if extra.get("task") == "image" else np.float16
    files.write(folder / f"{prediction.case_id}.npy", prediction.soft.astype(dtype))


def ids(folder: Path) -> list[str]:
    """Ids of the soft predictions in ``folder``, sorted."""
    return sorted(p.stem for p in folder.glob("*.npy") if not p.name.startswith("."))


def load(folder: Path, case_id: str) -> tuple[Prediction, dict[str, Any]]:
    """A memory-mapped soft prediction and its facts. Raises UserError for a missing or torn file."""
    path = folder / f"{case_id}.npy"
    try:
        facts = files.read_json(folder / f"{case_id}.json")
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable soft prediction ({error}). Run pipeline.predict --save-soft again for this case."
        ) from None
    return Prediction(case_id=case_id, soft=array, geometry=Geometry(**facts.pop("geometry"))), facts
