"""Model files of small networks with random weights, images for them, and commands on both.

What commands do with files needs no training.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import tifffile
import torch

from pipeline import config as configs
from pipeline import evaluate, files, networks, predict
from pipeline.inference.models import save_model
from pipeline.records import Checkpoint


def model_file(
    folder: Path,
    dims: int = 3,
    channels: int = 1,
    trained_on: Mapping[str, Any] | None = None,
    **more: Any,
) -> Path:
    """``folder/best_model.safetensors`` of a network for images of ``channels``; ``more`` are keys
    of its config.
    """
    task = more.get("task", "labels")
    config = configs.from_dict(
        {
            "name": "small",
            "task": task,
            "data": {"dims": dims, "patch": {"size": [16] * dims}, "normalise": "percentile"},
            "network": {
                "name": "dynunet",
                "options": {"channels": [2, 4, 4], "block": 2, "norm": "batch"},
            },
            "losses": [{"name": "l1", "target": "target"}] if task == "image" else ["dice"],
            "predict": {"overlap": 4},
            "postprocess": []
            if task == "image"
            else [{"name": "threshold", "options": {"at": 0.5}}],
            **more,
        }
    )
    torch.manual_seed(1)
    outputs = channels if task == "image" else 1
    weights = networks.build(config.network, channels, outputs, dims).state_dict()
    path = folder / "best_model.safetensors"
    model = Checkpoint(
        config=configs.to_dict(config),
        channels=(channels, outputs),
        fold=0,
        epoch=0,
        score=None,
        weights=weights,
        trained_on=trained_on or {},
    )
    save_model(path, model)
    return path


def model_from_yaml(folder: Path, text: str, inputs: int) -> Path:
    """``folder/best_model.safetensors`` of the config ``text``, for images of ``inputs`` channels;
    an image network has as many outputs, another one.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    config = configs.load(folder / "config.yaml")
    channels = (inputs, inputs if config.task == "image" else 1)
    torch.manual_seed(1)
    weights = networks.build(config.network, *channels, config.data.dims).state_dict()
    path = folder / "best_model.safetensors"
    model = Checkpoint(
        config=configs.to_dict(config),
        channels=channels,
        fold=0,
        epoch=1,
        score=None,
        weights=weights,
    )
    save_model(path, model)
    return path


def run_predict(checkpoint: Path, data: Path, out: Path, *more: str) -> int:
    return predict.main(
        ["--checkpoint", str(checkpoint), "--input", str(data), "--output", str(out), *more]
    )


def run_evaluate(root: Path, *more: object) -> int:
    """Scores of ``root/answers`` by ``root/dst``, into ``root/out.json``."""
    words = ("--predictions", root / "answers", "--labels", root / "dst")
    words = (*words, "--out", root / "out.json", "--workers", 1, *more)
    return evaluate.main([str(word) for word in words])


def zip_contents(path: Path) -> dict[str, np.ndarray]:
    """Masks of a submission, by their names in it."""
    with zipfile.ZipFile(path) as archive:
        return {
            name: tifffile.imread(io.BytesIO(archive.read(name))) for name in archive.namelist()
        }


def rows(out: Path) -> list[dict[str, Any]]:
    """Rows of a prediction's summary, one a file."""
    return json.loads((out / "summary.json").read_text())["files"]


def nifti(
    path: Path, array: np.ndarray, affine: np.ndarray | None = None, codes: str = "RAS"
) -> Path:
    """Save ``(X, Y, Z)``, which lies as ``affine`` says, with its axes in the order and direction
    of ``codes``.
    """
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    wanted = nibabel.orientations.axcodes2ornt(codes)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted)
    image = image.as_reoriented(turn)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def in_codes(path: Path, codes: str = "RAS") -> np.ndarray:
    """Array of a NIfTI with its axes in the order and direction of ``codes``."""
    image = nibabel.load(path)
    wanted = nibabel.orientations.axcodes2ornt(codes)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted)
    return np.asarray(image.as_reoriented(turn).dataobj)


def picture(path: Path, array: np.ndarray | None = None) -> Path:
    """A grey image of 16 x 16 pixels, or ``array``, as a file."""
    files.write(path, noise((16, 16)) if array is None else array, dims=2)
    return path


def noise(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)
