"""Decisions about samples, network, losses and training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.planning.ground import Ground
from pipeline.planning.settings import Setting

RARE = 0.01
"""Share of foreground below which our own rules centre two of three samples on it."""

STEPS, EPOCHS = 250, 1000
"""Steps of an epoch and epochs of a training, as in nnU-Net."""

MIRRORED_FROM = 5000
"""Steps of a fold from which our own rules mirror samples."""

SHORT = 10_000
"""Steps of a fold below which our own rules take AdamW and a cosine."""


def settings(ground: Ground, steps: int | None) -> Iterator[Setting]:
    """Settings of samples, network, losses, training, prediction and post-processing.

    Args:
        ground: facts and choices.
        steps: steps of a fold, where they are known already; None: nnU-Net's 250,000.

    Yields:
        Settings in the order of the file. The schedule (``data.patch.steps``, ``train.epochs``) is
        nnU-Net's; :func:`scheduled` replaces it.
    """
    total = STEPS * EPOCHS if steps is None else steps
    yield from _samples(ground)
    yield Setting("data.augment", _augment(ground, total), _augment_reason(ground, total))
    if not ground.small:
        yield Setting("data.workers", 8, "results do not depend on it")
    yield from _network(ground)
    yield from _losses(ground)
    yield from _train(ground, total)
    yield from _predict(ground)


def scheduled(found: list[Setting], steps: int, epochs: int, reason: str) -> list[Setting]:
    """The settings with another schedule.

    Args:
        found: settings.
        steps: of an epoch.
        epochs: of a fold.
        reason: why.

    Returns:
        New settings in the same order.
    """
    new = {
        "data.patch.steps": Setting("data.patch.steps", steps, "batches of an epoch"),
        "train.epochs": Setting("train.epochs", epochs, reason),
        "train.validate.every": Setting(
            "train.validate.every", max(1, epochs // 4), "the last weights are kept: to watch only"
        ),
    }
    return [new.get(s.key, s) for s in found]


def _samples(ground: Ground) -> Iterator[Setting]:
    made = ground.configuration
    flat = "one slice: " if ground.flat else ""
    yield Setting("data.patch.size", list(ground.patch), flat + made.reasons["patch"])
    yield Setting("data.patch.batch", made.batch, made.reasons["batch"])
    yield Setting("data.patch.steps", STEPS, "batches of an epoch")
    if ground.labels:
        share, reason = 0.33, "a third of the samples around foreground, as in nnU-Net"
        if ground.small and ground.rare < RARE:
            share, reason = (
                0.67,
                f"{ground.rare:.2%} of the voxels are foreground, below {RARE:.0%}",
            )
        yield Setting("data.patch.oversample", share, reason)
    else:
        yield Setting("data.patch.foreground", None, "positions are drawn uniformly")


def mirrored(ground: Ground) -> tuple[list[int], str]:
    """Axes along which samples may be mirrored.

    Args:
        ground: facts and choices.

    Returns:
        Axes of the patch, and why some are left out.
    """
    axes = list(range(len(ground.patch)))
    if ground.flat:
        axes.remove(0)
    lateral = {_axis_of(ground, pair.axis) for pair in ground.pairs}
    if not ground.pairs:
        return axes, "all axes"
    if None in lateral:
        return [], f"{ground.pairs[0].text}; which axis runs between them is not known: none"
    return [a for a in axes if a not in lateral], f"not left and right: {ground.pairs[0].text}"


def _axis_of(ground: Ground, axis: str | int | None) -> int | None:
    """The axis of the model of a pair of sides."""
    if axis == "LR":
        return ground.axes.lateral()
    return ground.axes.order.index(axis) if isinstance(axis, int) else None


def _augment(ground: Ground, steps: int) -> list[Any]:
    """nnU-Net's chain; for images what does not change colours."""
    axes, _ = mirrored(ground)
    flip = {"name": "flip", "options": {"p": 0.5, "axes": axes}}
    if not ground.labels:
        return [flip] if axes else []
    chain: list[Any] = [
        "spatial",
        _entry("noise", p=0.1, std=[0.0, 0.1]),
        _entry("blur", p=0.2, sigma=[0.5, 1.0], per_channel=0.5),
        _entry("brightness", p=0.15, range=[0.75, 1.25], balanced=True, per_channel=True),
        _entry(
            "contrast",
            p=0.15,
            range=[0.75, 1.25],
            balanced=True,
            per_channel=True,
            preserve_range=True,
        ),
        _entry("low_resolution", p=0.25, scale=[0.5, 1.0], per_channel=0.5),
        _gamma(p=0.1, invert=True),
        _gamma(p=0.3),
    ]
    return [*chain, flip] if axes and (not ground.small or steps >= MIRRORED_FROM) else chain


def _entry(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "options": options}


def _gamma(**options: Any) -> dict[str, Any]:
    shared = {"range": [0.7, 1.5], "balanced": True, "per_channel": True, "retain_stats": True}
    return _entry("gamma", **options, **shared)


def _augment_reason(ground: Ground, steps: int) -> str:
    axes, why = mirrored(ground)
    if not ground.labels:
        return f"mirrors ({why})"
    if not axes:
        return f"nnU-Net's list without mirrors: {why}"
    if ground.small and steps < MIRRORED_FROM:
        return (
            f"nnU-Net's list without mirrors: {steps} steps learn less with them"
            " (hippocampus, 600 steps: Dice 0.819 with, 0.863 without)"
        )
    return f"nnU-Net's list; mirrors: {why}"


def _network(ground: Ground) -> Iterator[Setting]:
    made = ground.configuration
    if not ground.labels and ground.fingerprint.dims == 2:
        base = 16 if ground.small else 64
        value = {"name": "image_unet", "options": {"base": base, "align_corners": False}}
        yield Setting("network", value, "the U-Net of configs/image_to_image.yaml")
        return
    options = {k: v for k, v in _options(ground).items() if v is not None}
    yield Setting("network", {"name": made.network, "options": options}, made.reasons["strides"])


def _options(ground: Ground) -> dict[str, Any]:
    """Options of the network; what its defaults say is left out."""
    made, dims = ground.configuration, len(ground.configuration.patch)
    kernels = [[1, *k] if ground.flat else list(k) for k in made.kernels]
    strides = [[1, *s] if ground.flat else list(s) for s in made.strides]
    usual = [[1] * dims] + [[2] * dims] * (len(strides) - 1)
    residual = made.network == "resenc_unet"
    blocks = list(made.blocks)
    plain = {2} == {*made.blocks, *made.decoder}
    return {
        "channels": list(made.widths),
        "kernel": None if all({3} == set(k) for k in kernels) else kernels,
        "strides": None if strides == usual else strides,
        "blocks": blocks if residual else None,
        "convs": None if residual or plain else blocks,
        "decoder_convs": None if plain else list(made.decoder),
    }


def _losses(ground: Ground) -> Iterator[Setting]:
    if not ground.labels:
        yield Setting("losses", [{"name": "l1", "target": "target"}])
        yield Setting(
            "metrics", ["psnr", "ssim", "mae"], "of whole held-out images, as they are saved"
        )
        return
    made = ground.configuration
    dice = {"name": "dice", "options": {"batch": True}} if made.batch_dice else {"name": "dice"}
    reason = f"as in nnU-Net; the batch as one image: {made.reasons['batch_dice']}"
    yield Setting("losses", [dice, {"name": "ce"}], reason)
    metrics: list[Any] = ["dice"]
    if ground.instances is None:
        tolerance = _tolerance(ground)
        metrics.append({"name": "surface_dice", "options": tolerance})
    yield Setting("metrics", metrics, "of whole held-out cases, on the grids of their files")


def _tolerance(ground: Ground) -> dict[str, float]:
    """Tolerance of a surface: the coarsest voxel of the plane."""
    if ground.spacing is None:
        return {"tolerance": 2}
    plane = ground.spacing if ground.flat else sorted(ground.spacing)[:2]
    return {"tolerance_mm": float(f"{max(plane):.2g}")}


def _train(ground: Ground, steps: int) -> Iterator[Setting]:
    yield Setting("train.epochs", EPOCHS, "as in nnU-Net")
    if ground.small and steps < SHORT:
        rate = 3e-3 if ground.labels else 1e-3
        yield Setting(
            "train.optimizer",
            {"name": "adamw", "options": {"lr": rate}},
            f"{steps} steps (hippocampus, 600 steps: Dice 0.881, nnU-Net's SGD 0.863)"
            if ground.labels
            else f"{steps} steps",
        )
        yield Setting("train.schedule", {"name": "cosine", "options": {"warmup": 2}})
    elif ground.labels:
        yield Setting("train.optimizer", {"name": "sgd"}, "0.01, Nesterov 0.99, decay 3e-5")
        yield Setting("train.schedule", {"name": "poly"}, "as in nnU-Net")
    else:
        yield Setting("train.optimizer", {"name": "adamw", "options": {"lr": 1e-4}})
        yield Setting("train.schedule", {"name": "cosine", "options": {"warmup": 2}})
    yield Setting("train.keep", "last", "the best epoch by a few patches is mostly noise")
    yield Setting("train.stop.patience", None, "all epochs")
    yield Setting("train.validate.every", 50, "the last weights are kept: to watch only")
    yield Setting("train.validate.per_case", 1)
    yield Setting("train.clip", 12 if ground.labels else 1.0, "largest norm of the gradient")
    if not ground.small:
        yield Setting("train.amp", "fp16", "on CUDA only")
    yield Setting("train.preview_every", 0)


def _predict(ground: Ground) -> Iterator[Setting]:
    patch = ground.configuration.patch
    if ground.small:
        overlap, reason = max(patch) // 4, "a quarter of a tile"
    else:
        overlap, reason = max(patch) // 2, "half a tile, as in nnU-Net"
    yield Setting("predict.overlap", overlap, reason)
    if ground.flat:
        yield Setting("predict.batch", 4, "slices at a time")
    axes, _ = mirrored(ground)
    if not ground.small and ground.labels:
        every = len(axes) == len(ground.patch)
        why = "mean of all mirrored images" if every else "not along every axis may be mirrored"
        yield Setting("predict.flips", every, why)
    if ground.labels and not ground.fingerprint.regions:
        yield from _decision(ground)


def _decision(ground: Ground) -> Iterator[Setting]:
    if ground.instances is not None:
        steps: list[Any] = [{"name": "threshold", "options": {"at": 0.5}}, "instances"]
        yield Setting("postprocess", steps, "touching objects are cut at their necks")
    elif ground.fingerprint.classes == 2:
        yield Setting("postprocess", [{"name": "threshold", "options": {"at": 0.5}}])
    else:
        reason = "pipeline.tune chooses filters of components for each class"
        yield Setting("postprocess", ["argmax"], reason)
