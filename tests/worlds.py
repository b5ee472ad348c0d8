"""A data set whose files lie differently in the world, and a small system that brings them to one
model space.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage

from pipeline import config as configs
from pipeline.config import Config

CODES = ("RAS", "LPS", "PIR", "ASL", "RAS", "IAR", "LPI", "RSP")
SPACINGS = ((1.0, 1.0, 1.0), (0.8, 1.2, 1.0), (1.0, 1.0, 2.5), (1.3, 0.9, 1.1))
"""In the order R, A, S."""
SPACE: dict[str, Any] = {"orientation": "RAS", "crop": "nonzero", "spacing": [1.2, 1.2, 1.5]}
LATER = (1.0, 1.0, 4.0)
"""Thick slices: the coarse axis is resampled apart."""


def affine_of(spacing: tuple[float, ...], oblique: float = 0.0) -> np.ndarray:
    """RAS voxels of a size, turned by some radians about the last axis."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(oblique), -np.sin(oblique)], [np.sin(oblique), np.cos(oblique)]]
    affine = turn @ np.diag([*spacing, 1.0])
    affine[:3, 3] = 12, -7, 3
    return affine


def scan(seed: int, shape: tuple[int, ...] = (18, 20, 16)) -> tuple[np.ndarray, np.ndarray]:
    """An image of int16, 0 around a body, and its labels 0, 1, 2, in RAS."""
    rng = np.random.default_rng(seed)
    noise = [ndimage.gaussian_filter(rng.normal(size=shape), 2) for _ in range(2)]
    label = (noise[0] > noise[0].mean()).astype(np.uint8) + (noise[1] > noise[1].std())
    image = (400 + 500.0 * label + rng.normal(0, 40, shape)).astype(np.int16)
    body = np.zeros(shape, bool)
    body[tuple(slice(2 + seed % 2, -1 - axis) for axis in range(len(shape)))] = True
    return np.where(body, image, 0).astype(np.int16), np.where(body, label, 0).astype(np.uint8)


def save(path: Path, array: np.ndarray, affine: np.ndarray, codes: str = "RAS") -> Path:
    """Save an RAS array with its axes in the order and direction of ``codes``."""
    image = nibabel.Nifti1Image(array, affine)  # pyright: ignore[reportPrivateImportUsage]
    orientations = nibabel.orientations
    turn = orientations.ornt_transform(
        orientations.io_orientation(image.affine), orientations.axcodes2ornt(codes)
    )
    image = image.as_reoriented(turn)  # pyright: ignore[reportArgumentType]
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)  # pyright: ignore[reportPrivateImportUsage]
    return path


def data_set(root: Path, cases: int = 8) -> Path:
    """A folder in nnU-Net's layout of cases with mixed orientations and spacings."""
    for n in range(cases):
        image, label = scan(n)
        spacing = LATER if n == 3 else SPACINGS[n % len(SPACINGS)]
        affine = affine_of(spacing, 0.1 if n % 3 == 2 else 0.0)
        for folder, name, array in (
            ("imagesTr", f"c{n}_0000", image),
            ("labelsTr", f"c{n}", label),
        ):
            save(root / folder / f"{name}.nii.gz", array, affine, CODES[n % len(CODES)])
    return root


def system(space: Mapping[str, Any] = SPACE, **more: Any) -> Config:
    """A small system for three classes."""
    data = {
        "dims": 3,
        "classes": 3,
        "folds": {"count": 2},
        "patch": {"size": [8, 8, 8], "batch": 2, "per_case": 2},
        "normalise": "zscore",
        **space,
        **more.pop("data", {}),
    }
    return configs.from_dict(
        {
            "name": "worlds",
            "data": data,
            "network": {
                "name": "dynunet",
                "options": {"channels": [4, 6, 8], "block": 1, "norm": "instance"},
            },
            "losses": ["dice", "ce"],
            "metrics": ["dice", {"name": "surface_dice", "options": {"tolerance_mm": 1.0}}],
            "train": {
                "epochs": 1,
                "optimizer": {"name": "adam", "options": {"lr": 0.02}},
                "preview_every": 0,
            },
            "predict": {"overlap": 2},
            **more,
        }
    )
