"""Small DICOM series, written by ITK."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813


def write_series(
    folder: Path,
    volume: np.ndarray,
    *,
    spacing: tuple[float, float, float] = (0.7, 0.8, 2.5),
    origin: tuple[float, float, float] = (-10.0, -20.0, 30.0),
    directions: np.ndarray | None = None,
    step: np.ndarray | None = None,
    uid: str = "1.2.826.0.1.3680043.2.1125.7",
    tags: dict[str, str] | None = None,
    codec: str | None = None,
) -> list[Path]:
    """One file for each slice of ``(X, Y, Z)``, in the order of Z; names run the other way.

    Rows of ``directions`` are axes in LPS; ``step`` is the vector between slices, the normal times
    the spacing unless it is given.
    """
    axes = np.eye(3) if directions is None else np.asarray(directions, float)
    step = axes[2] * spacing[2] if step is None else step
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    if codec is not None:
        writer.SetUseCompression(True)
        writer.SetCompressor(codec)
    made = []
    for k in range(volume.shape[2]):
        image = sitk.GetImageFromArray(np.ascontiguousarray(volume[:, :, k].T[None]))
        place = np.array(origin) + step * k
        image.SetSpacing(spacing)
        image.SetOrigin(place.tolist())
        image.SetDirection(axes.T.ravel().tolist())
        for tag, text in {
            "0008|0060": "CT",
            "0008|103e": "thin slices",
            "0010|0010": "Secret^Name",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{k + 1}",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{v:.9g}" for v in place),
            "0020|0037": "\\".join(f"{v:.9g}" for v in axes[:2].ravel()),
            **(tags or {}),
        }.items():
            image.SetMetaData(tag, text)
        made.append(folder / f"im{volume.shape[2] - k:03d}.dcm")
        writer.SetFileName(os.fspath(made[-1]))
        writer.Execute(image)
    return made
