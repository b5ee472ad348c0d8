"""Do our plans equal those of nnU-Net's own planners? Random data sets, all presets.

    pip install --target NNUNET --no-deps nnunetv2==2.8.1 dynamic-network-architectures==0.4.4 \\
        batchgenerators batchgeneratorsv2 acvl-utils pandas python-dateutil six
    python tests/benchmarks/planner_parity.py --nnunet NNUNET [--count 100] [--seed 0]

Of each data set only what planners read is written, dataset.json and dataset_fingerprint.json, and
networks are built without weights. Compared are axis order, normalisation, masks and cascade, and
of each configuration spacing, median shape, patch, batch, strides, kernels, widths, blocks and
batch_dice. What nnU-Net plans with a network of a single level is left out: it cannot train that,
and here there is no such plan. Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.planning.nnunet import Facts, NnunetPlan, plan
from pipeline.planning.topology import PlanError

PLANNERS = {
    "plain": ("default_experiment_planner", "ExperimentPlanner"),
    "resenc-m": ("residual_unets.residual_encoder_unet_planners", "nnUNetPlannerResEncM"),
    "resenc-l": ("residual_unets.residual_encoder_unet_planners", "nnUNetPlannerResEncL"),
    "resenc-xl": ("residual_unets.residual_encoder_unet_planners", "nnUNetPlannerResEncXL"),
}
NAMES = ("CT", "MRI", "T2", "noNorm", "zscore", "rescale_to_0_1", "rgb_to_0_1", "R")
SCHEMES = {
    "CTNormalization": "ct",
    "NoNormalization": "nonorm",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}
KINDS = ("isotropic", "anisotropic", "thin", "mixed", "tiny", "huge", "pictures")
FAR = 999
"""How many times the longest side of a pixel nnU-Net's readers take pictures to be thick."""


def main() -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    p.add_argument("--nnunet", type=Path, help="folder that nnU-Net was installed into")
    p.add_argument("--count", type=int, default=100, help="data sets")
    p.add_argument("--seed", type=int, default=0)
    given = p.parse_args()
    if given.nnunet is not None:
        sys.path.append(str(given.nnunet.resolve()))
    random, equal, differing, refused = np.random.default_rng(given.seed), 0, 0, 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planner_parity_") as folder:
        for name in ("raw", "preprocessed", "results"):  # before nnU-Net is imported
            os.environ[f"nnUNet_{name}"] = str(Path(folder) / name)
        for n in range(given.count):
            facts, preset, gigabytes = drawn(random)
            try:
                theirs = nnunet(Path(folder), facts, preset, gigabytes)
            except Exception as error:
                print(f"{n}: nnU-Net ends with {type(error).__name__}: {error}")
                refused += 1
                continue
            wrong, count = differences(theirs, ours(facts, preset, gigabytes))
            equal, differing = equal + count - len(wrong), differing + len(wrong)
            for line in wrong:
                print(f"{n}: {preset}, {gigabytes} GB, {facts}\n  {line}")
    print(
        f"{given.count} data sets, {refused} refused by nnU-Net: {equal} of {equal + differing}"
        f" configurations equal, {time.monotonic() - began:.0f} s"
    )
    return int(differing > 0)


def drawn(random: np.random.Generator) -> tuple[Facts, str, float | None]:
    """Facts of a data set, a preset, and gigabytes; None: those of the preset."""
    kind, cases = KINDS[random.integers(len(KINDS))], int(random.integers(1, 12))
    low, high = {"tiny": (12, 40), "huge": (400, 1100)}.get(kind, (40, 420))
    shape = random.integers(low, high, 2 if kind == "pictures" else 3)
    spacing = np.full(shape.shape, round(float(random.uniform(0.3, 2)), 3))
    if kind in ("anisotropic", "thin"):
        axis = random.integers(3)
        spacing[axis] *= round(float(random.uniform(2, 9)), 2)
        shape[axis] = random.integers(4, 24) if kind == "thin" else max(8, shape[axis] // 4)
    spread = 0.4 if kind == "mixed" else 0.1
    change = random.uniform(1 - spread, 1 + spread, (cases, len(shape)))
    wide = random.uniform(1 - spread, 1 + spread, (cases, len(shape))) if kind == "mixed" else 1.0
    presets = list(PLANNERS)
    return (
        Facts(
            shapes=np.maximum(4, np.round(shape * change)).astype(int).tolist(),
            spacings=np.round(spacing * np.broadcast_to(wide, (cases, len(shape))), 4).tolist(),
            channels=random.choice(NAMES, random.integers(1, 4)).tolist(),
            classes=int(random.integers(2, 31)),
            relative_sizes=[round(float(random.uniform(0.3, 1)), 4)],
            ignore=bool(random.random() < 0.2),
            training=int(random.integers(1, 400)),
        ),
        presets[random.integers(len(presets))],
        None if random.random() < 0.5 else round(float(np.exp(random.uniform(0.7, 5))), 1),
    )


def nnunet(folder: Path, facts: Facts, preset: str, gigabytes: float | None) -> dict[str, Any]:
    """What the planner of nnU-Net plans."""
    from importlib import import_module

    where, name = PLANNERS[preset]
    planner = getattr(
        import_module(f"nnunetv2.experiment_planning.experiment_planners.{where}"), name
    )
    shapes, spacings = [list(s) for s in facts.shapes], [list(s) for s in facts.spacings]
    if len(shapes[0]) == 2:
        shapes = [[1, *s] for s in shapes]
        spacings = [[FAR * max(s), *s] for s in spacings]
    labels: dict[str, Any] = {f"label {n}": n for n in range(facts.classes)}
    labels = {("background" if v == 0 else k): v for k, v in labels.items()}
    if facts.ignore:
        labels["ignore"] = facts.classes
    channels = {str(n): name for n, name in enumerate(facts.channels)}
    document = {
        "channel_names": channels,
        "labels": labels,
        "numTraining": facts.cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {"a": {"images": ["a.nii.gz"], "label": "a.nii.gz"}},
    }
    numbers = dict.fromkeys(
        ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0
    )
    fingerprint = {
        "spacings": spacings,
        "shapes_after_crop": shapes,
        "median_relative_size_after_cropping": facts.left,
        "foreground_intensity_properties_per_channel": dict.fromkeys(channels, numbers),
    }
    for part, file, text in (
        ("raw", "dataset.json", document),
        ("preprocessed", "dataset_fingerprint.json", fingerprint),
    ):
        path = folder / part / "Dataset001_parity" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(text), encoding="utf-8")
    for kept in (folder / "preprocessed").rglob("*Plans*.json"):
        kept.unlink()
    options = {} if gigabytes is None else {"gpu_memory_target_in_gb": gigabytes}
    with (
        open(os.devnull, "w") as quiet,
        contextlib.redirect_stdout(quiet),
        warnings.catch_warnings(action="ignore"),  # of every memory but the preset's
        torch.device("meta"),
    ):
        return planner(1, **options).plan_experiment()


def ours(facts: Facts, preset: str, gigabytes: float | None) -> NnunetPlan | None:
    """Our plan; None where there is none."""
    with contextlib.suppress(PlanError):
        return plan(facts, preset, gigabytes)
    return None


def differences(theirs: Mapping[str, Any], made: NnunetPlan | None) -> tuple[list[str], int]:
    """A line for each configuration that differs, and how many were compared."""
    every = {k: v for k, v in theirs["configurations"].items() if "architecture" in v}
    wanted = {k: v for k, v in every.items() if _kwargs(v)["n_stages"] > 1}
    known = {} if made is None else made.configurations
    wrong = []
    for name in sorted({*wanted, *known}):
        if name not in wanted or name not in known:
            wrong.append(f"{name}: planned by {'nnU-Net' if name in wanted else 'us'} alone")
            continue
        assert made is not None
        left, right = _theirs(theirs, wanted[name]), _ours(made, name)
        wrong += [
            f"{name}: {key} is {right[key]}, nnU-Net's {value}"
            for key, value in left.items()
            if not _same(value, right[key])
        ][:1]
    return wrong, len({*wanted, *known})


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, list | tuple) and all(isinstance(v, float | int) for v in left):
        return len(left) == len(right) and bool(np.allclose(left, right, rtol=1e-12, atol=0))
    return left == right


def _kwargs(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    return configuration["architecture"]["arch_kwargs"]


def _theirs(theirs: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    made = _kwargs(configuration)
    blocks = made.get("n_conv_per_stage") or made.get("n_blocks_per_stage")
    dims = len(configuration["patch_size"])
    return {
        "patch": tuple(configuration["patch_size"]),
        "batch": configuration["batch_size"],
        "batch_dice": configuration["batch_dice"],
        "spacing": tuple(map(float, configuration["spacing"])),
        "median_shape": tuple(map(float, configuration["median_image_size_in_voxels"])),
        "strides": tuple(tuple(s) for s in made["strides"]),
        "kernels": tuple(tuple(k) for k in made["kernel_sizes"]),
        "widths": tuple(made["features_per_stage"]),
        "blocks": tuple(blocks),
        "decoder": tuple(made["n_conv_per_stage_decoder"]),
        "normalisation": tuple(SCHEMES[s] for s in configuration["normalization_schemes"]),
        "masked": tuple(map(bool, configuration["use_mask_for_norm"])),
        "order": tuple(theirs["transpose_forward"]) if dims == 3 else None,
        "cascade": "3d_cascade_fullres" in theirs["configurations"],
    }


def _ours(made: NnunetPlan, name: str) -> dict[str, Any]:
    found = made.configurations[name]
    keys = ("patch", "batch", "batch_dice", "spacing", "median_shape")
    keys += ("strides", "kernels", "widths", "blocks", "decoder")
    return {
        **{key: getattr(found, key) for key in keys},
        "normalisation": made.normalisation,
        "masked": made.masked,
        "order": made.transpose_forward if len(found.patch) == 3 else None,
        "cascade": made.cascade,
    }


if __name__ == "__main__":
    raise SystemExit(main())
