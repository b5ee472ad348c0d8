"""Pictures of a fixed patch while a fold trains, which show what the network has learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipeline import colours, files, postprocess
from pipeline.config import Config
from pipeline.tasks import TASKS
from pipeline.training import freezing
from pipeline.training.job import FoldJob

ROWS = 4
"""Samples in a picture of an image task, a row each."""


def preview_batch(job: FoldJob, network: torch.nn.Module, done: int) -> None:
    """Write ``previews/training_preview.jpg`` of a fixed training batch, for image tasks.

    A row is input, output and target. Training is not affected: neither gradients nor random
    numbers are used.

    Args:
        job: what is trained.
        network: as it is after ``done`` steps.
        done: steps over all epochs; a picture is due every ``train.preview_steps``.
    """
    every = job.config.train.preview_steps
    if not every or done % every or TASKS[job.config.rules].decides:
        return
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        batch = _fixed_batch(job)
        network.eval()
        outputs = network(job.images(batch))["main"].float().cpu().numpy()
        freezing.train_mode(network, job.config.train.freeze)
    targets = batch[next(iter(job.config.targets))].numpy()
    rows = [
        np.concatenate(
            [colours.rgb(_on_scale(_middle(panel), image)) for panel in (image, *others)], axis=1
        )
        for image, *others in zip(batch["image"].numpy(), outputs, targets, strict=True)
    ]
    picture = colours.to_bytes(np.concatenate(rows, axis=0))
    files.write(job.files.previews / "training_preview.jpg", np.moveaxis(picture, -1, 0))


def _fixed_batch(job: FoldJob) -> Mapping[str, Any]:
    """The first training samples of epoch 0, whatever the epoch is now."""
    samples = job.train_loader.first(ROWS)
    return {k: torch.stack([s[k] for s in samples]) for k in ("image", *job.config.targets)}


@torch.no_grad()
def preview_panels(job: FoldJob, network: torch.nn.Module) -> list[np.ndarray]:
    """Draw the first validation patch; of a volume its middle plane.

    Args:
        job: what is trained, with held-out cases.
        network: left in evaluation mode.

    Returns:
        Pictures ``(Y, X, 3)`` in [0, 1]. Images: input, target, output; where there is a mask of
        change, of up to four patches the input, output, target, mask and predicted mask. Labels:
        image, target, probabilities (of several classes the likeliest), and errors in colours.
    """
    assert job.val_loader is not None
    batch = next(iter(job.val_loader.epoch(-1)))
    network.eval()
    task = TASKS[job.config.rules]
    outputs = task.heads(network(job.images(batch)))
    heads = {name: head.cpu().numpy() for name, head in outputs.items()}
    target = batch[next(iter(job.config.targets))].numpy()
    image = batch["image"].numpy()
    if not task.decides and "mask" in batch:
        count = min(ROWS, len(image))
        rows = [_with_masks(batch, n, heads, target[n]) for n in range(count)]
        return [np.concatenate(column, axis=0) for column in zip(*rows, strict=True)]
    plane, truth, prediction = (_middle(a[0]) for a in (image, target, heads["main"]))
    if not task.decides:
        return [colours.rgb(_on_scale(panel, plane)) for panel in (plane, truth, prediction)]
    ignore = job.config.data.ignore_label
    predicted = _decided(job.config, prediction)
    shown = prediction if len(prediction) == 1 else None
    picture = colours.rgb(_on_scale(plane, plane))
    return _label_panels(picture, truth[0], (predicted, shown), ignore)


def _decided(config: Config, probabilities: np.ndarray) -> np.ndarray:
    """Labels ``(Y, X)`` of probabilities ``(K, Y, X)``."""
    if config.data.regions is None:
        return TASKS[config.rules].decide(probabilities)
    order = config.data.regions_class_order or ()
    return postprocess.regions(probabilities, order)


def _with_masks(
    batch: Mapping[str, Any], n: int, heads: Mapping[str, np.ndarray], target: np.ndarray
) -> list[np.ndarray]:
    """Input, output, target, mask and, where the network has that head, predicted mask."""
    image, mask = batch["image"][n].numpy(), batch["mask"][n].numpy()
    masks = [mask > 0 if mask.dtype.kind in "iu" else mask]
    masks += [heads["mask"][n]] if "mask" in heads else []
    pictures = [colours.rgb(_on_scale(a, image)) for a in (image, heads["main"][n], target)]
    grey = [np.clip(m[0], 0, 1)[..., None].astype(np.float64) for m in masks]
    return pictures + [np.repeat(m, 3, axis=2) for m in grey]


def _label_panels(
    image: np.ndarray,
    target: np.ndarray,
    answer: tuple[np.ndarray, np.ndarray | None],
    ignore: int | None,
) -> list[np.ndarray]:
    """Image, target, probabilities or labels, and errors; ignored voxels are grey.

    ``answer``: labels, and probabilities ``(1, Y, X)`` where there is one channel.
    """
    ignored = np.zeros(target.shape, bool) if ignore is None else target == ignore
    truth = np.where(ignored, 0, target)
    predicted, probabilities = answer
    black = np.zeros(image.shape)
    if probabilities is not None:
        real, found = colours.tint(black, truth > 0, colours.WHITE, 1), colours.rgb(probabilities)
    else:
        real, found = (colours.classes(black, a, strength=1) for a in (truth, predicted))
    errors = colours.errors(image, truth, np.where(ignored, 0, predicted))
    grey = [colours.tint(panel, ignored, colours.GREY, 1) for panel in (real, errors)]
    return [image, grey[0], found, grey[1]]


def _middle(array: np.ndarray) -> np.ndarray:
    """Middle plane ``(C, Y, X)`` of ``(C, *S)``."""
    return array if array.ndim == 3 else array[:, array.shape[1] // 2]


def _on_scale(panel: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Scale ``panel`` so that the range of ``image`` becomes [0, 1]."""
    low, high = float(image.min()), float(image.max())
    return (panel - low) / max(high - low, 1e-6)
