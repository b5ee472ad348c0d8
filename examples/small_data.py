"""A small data set for the examples: noisy volumes of curved vessels (1) and round nodules (2).

Its folders are those of nnU-Net, its files NIfTI with voxels of 0.8 x 0.8 x 1.5 mm::

    python examples/small_data.py DIR
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

SHAPE = (40, 40, 16)  # (X, Y, Z)
SPACING = (0.8, 0.8, 1.5)  # millimetres


def volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make one case.

    Args:
        seed: of the random numbers.

    Returns:
        Image ``(X, Y, Z)`` int16 and its label, uint8 of the same shape.
    """
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij")
    label = np.zeros(SHAPE, np.uint8)
    for _ in range(3):  # along X, through the whole volume
        path_y = rng.uniform(8, 40) + 5 * np.sin(x / 7 + rng.uniform(0, 6))
        path_z = rng.uniform(5, 19) + 3 * np.sin(x / 9 + rng.uniform(0, 6))
        label[np.hypot(y - path_y, z - path_z) < rng.uniform(1.5, 2.5)] = 1
    for _ in range(2):
        centre = rng.uniform((8, 8, 6), (40, 40, 18))
        away = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (2 * (z - centre[2])) ** 2)
        label[away < rng.uniform(4, 7)] = 2
    brightness = ndimage.gaussian_filter(np.choose(label, [0.0, 120.0, 80.0]), 0.7)
    return (brightness + rng.normal(100, 30, SHAPE)).astype(np.int16), label


def write_folder(folder: Path, train: int = 6, test: int = 2) -> Path:
    """Write a data set, unless it is there already.

    Args:
        folder: ``imagesTr``, ``labelsTr``, ``imagesTs``, ``labelsTs`` and ``dataset.json`` go here.
        train: number of training cases.
        test: number of test cases.

    Returns:
        The folder.
    """
    if (folder / "dataset.json").is_file():
        return folder
    affine = np.diag([*SPACING, 1.0])
    for n in range(train + test):
        part = "Tr" if n < train else "Ts"
        names = f"images{part}/case{n}_0000", f"labels{part}/case{n}"
        for array, name in zip(volume(n), names, strict=True):
            path = folder / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, affine), path)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "vessel": 1, "nodule": 2},
        "numTraining": train,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2))
    return folder


if __name__ == "__main__":
    print(write_folder(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/small_data")))
