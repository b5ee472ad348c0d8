"""Predict one array: labels, probabilities by head, and the answer as NIfTI.

::

    python examples/predict_one_array.py                               # trains a small model first
    python examples/predict_one_array.py --model runs/NAME --image scan.nii.gz
    python examples/predict_one_array.py --model runs/NAME --image stack.npy --spacing 2 0.5 0.5
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from small_data import write_folder

import pipeline as pl

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict one array.")
    parser.add_argument("--model", type=Path, help="run, fold or model file")
    parser.add_argument("--image", type=Path, help=".nii.gz, .nii or .npy")
    parser.add_argument("--spacing", type=float, nargs=3, help="mm between voxels of a .npy")
    parser.add_argument("--out", type=Path, default=Path("runs/one_array"), help="where answers go")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.model is None) != (args.image is None):
        parser.error("give --model and --image, or none of them")
    if args.model is None:
        args.model, args.image = small_model(args.out)

    # Averages the folds of a run that are trained. Further options: flips=True, overlap=32, ...
    predictor = pl.Predictor.load(args.model)
    print(predictor)

    # An array comes as its file holds it: not normalised, not resampled, not turned. The answer is
    # on the same grid. A model that was trained on NIfTI has to know how the array lies: affine=.
    # One of images without orientation, such as TIFF stacks (Z, Y, X), takes spacing= and axes=.
    if args.image.suffix == ".npy":
        array, affine = np.load(args.image), None
        place: dict[str, Any] = {"spacing": args.spacing}
    else:
        image = nibabel.Nifti1Image.from_filename(args.image)
        array, affine = np.asanyarray(image.dataobj), image.affine
        place = {"affine": affine}
    labels = predictor.predict(array, **place)  # with the post-processing of the model's config
    print(f"labels {labels.shape} {labels.dtype}, voxels by class {np.bincount(labels.ravel())}")

    # The heads are probabilities (K, *S) before any decision: here for a map of uncertainty, the
    # entropy of a voxel's classes in bits.
    main_head = predictor.predict_heads(array, **place)["main"]
    several = main_head if len(main_head) > 1 else np.concatenate([1 - main_head, main_head])
    entropy = -(several * np.log2(several.clip(1e-12))).sum(0)
    print(f"head {main_head.shape} {main_head.dtype}, mean entropy {entropy.mean():.3f} bits")

    # Same shape, same affine: the answer lies over the image in any viewer.
    for name, answer in {"labels": labels, "entropy": entropy}.items():
        if affine is None:
            np.save(args.out / f"{name}.npy", answer)
        else:
            nibabel.save(nibabel.Nifti1Image(answer, affine), args.out / f"{name}.nii.gz")
    print("written:", *sorted(path.name for path in args.out.glob("*.n*")))


def small_model(out: Path) -> tuple[Path, Path]:
    """Train a small model; returns its run and a test image."""
    data = write_folder(out / "data")
    config = pl.load_config(HERE / "small.yaml")
    run = pl.train_folds(config, data, folds=[0], out=out / "run", progress=True)
    return run.path, data / "imagesTs/case6_0000.nii.gz"


if __name__ == "__main__":
    main()
