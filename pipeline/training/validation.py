"""Validation of an epoch: losses and metrics over the fixed patches of the held-out cases."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.scoring.patches import PatchRules, PatchScores, labelled, measure
from pipeline.training.job import FoldJob, TrainingError
from pipeline.training.state import RunningMeans


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Values of one validation."""

    values: Mapping[str, float]
    """``val_loss``, ``val/<term>`` and ``val_<metric>``."""
    unlabelled: int
    """Patches that were left out because they hold no labelled voxel."""


@torch.no_grad()
def validate(job: FoldJob, network: torch.nn.Module) -> Validation:
    """Compute the loss, its terms and the metrics of ``train.validate``.

    Losses are means over the patches that hold a labelled voxel; metrics are those of
    :class:`~pipeline.scoring.patches.PatchScores`. The ranks share the patches.

    Args:
        job: its validation loader, which it must have, gives the patches.
        network: maps images ``(B, C, *S)`` to logits by head; left in evaluation mode.

    Returns:
        The values, equal on all ranks.

    Raises:
        TrainingError: on all ranks, where no patch holds a labelled voxel or an output is not
            finite.
    """
    assert job.val_loader is not None
    network.eval()
    rules = PatchRules(
        config=job.config, version=job.version, spacings=job.spacings, fail=_raise_not_finite
    )
    own = []
    for batch in job.val_loader.epoch(-1):
        # With several ranks it is a collective, and they may have different numbers of batches.
        if job.context.is_single:
            job.raise_if_stopped()
        with job.autocast():
            outputs = network(job.images(batch))
        loss, terms = job.losses(outputs, job.targets(batch), training=False)
        values = loss_values("val", loss, terms)
        scores = measure(rules, outputs["main"], batch)
        own.append([labelled_samples(job, batch), len(batch["id"]), values, scores])
    means, patches, unlabelled = RunningMeans(), PatchScores(rules), 0
    # In the order of the batches, which are dealt to the ranks in turn, so that sums have the same
    # bits for any number of ranks.
    for row in itertools.zip_longest(*job.context.all_gather(own)):
        for weight, count, values, scores in (batch for batch in row if batch is not None):
            means.add(weight, values)
            patches.add(scores)
            unlabelled += count - weight
    if not any(means.counts.values()):
        raise TrainingError(
            f"none of the {unlabelled} validation patches of fold {job.fold} holds a labelled"
            " voxel, so there is nothing to validate on. Raise train.validate.per_case or"
            " data.patch.size, or look at data.ignore_label."
        )
    return Validation(values={**means.result(), **patches.result()}, unlabelled=unlabelled)


def loss_values(
    prefix: str, loss: torch.Tensor, terms: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Copy the loss and its terms from the device in one transfer; waits for the device.

    Args:
        prefix: ``train`` or ``val``.
        loss: the total, a scalar.
        terms: the terms, unweighted scalars.

    Returns:
        ``{"train_loss": ..., "train/dice": ...}``.
    """
    names = [f"{prefix}_loss", *(f"{prefix}/{name}" for name in terms)]
    numbers = torch.stack([loss.detach().float(), *(term.float() for term in terms.values())])
    return dict(zip(names, numbers.tolist(), strict=True))


def labelled_samples(job: FoldJob, batch: Mapping[str, Any]) -> int:
    """Count the samples of a batch that enter means.

    Args:
        job: its config and metrics version.
        batch: a batch on the CPU.

    Returns:
        Number of samples with a labelled voxel; in metrics version 1 of all samples.
    """
    return len(batch["id"]) if job.version < 2 else labelled(job.config, batch)


def _raise_not_finite(case_id: str) -> None:
    raise TrainingError(
        f"the network's answer to a patch of {case_id} is not finite. Lower train.optimizer lr or"
        " set train.clip."
    )
