"""Betti-matching loss: values by hand, gradients by finite differences, blocks, ignored voxels, and
gaps that it mends.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import ConfigError
from pipeline.losses.betti import betti_matching
from pipeline.morphology import betti_numbers

RING = torch.tensor(
    [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
)


def value(p: Tensor, label: Tensor, valid: Tensor | None = None, **options: Any) -> float:
    """Of one image of probabilities ``(*S)``."""
    ones = torch.ones(label.shape) if valid is None else valid
    return float(
        betti_matching(**options)(
            p.double().logit()[None, None], label[None, None], ones[None, None]
        )
    )


def paint(label: Tensor, inside: float, outside: float = 0.1) -> Tensor:
    return torch.where(label > 0, inside, outside)


def plate() -> Tensor:
    label = torch.zeros(3, 4, 5, dtype=torch.long)
    label[1] = 1
    return label


def blobs() -> Tensor:
    return torch.tensor([[1, 1, 0, 1, 1], [1, 1, 0, 1, 1]])


def scene(*space: int, channels: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    make = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, channels, *space, generator=make, dtype=torch.float64)
    target = torch.randint(0, max(2, channels), (2, 1, *space), generator=make)
    return logits, target, (torch.rand(2, 1, *space, generator=make) > 0.2).float()


# ---------------------------------------------------------------- values by hand


def test_a_gap_in_a_ring() -> None:
    p = paint(RING, 0.9)
    p[1, 2] = 0.4
    # The component reaches 0.9, the hole lives from 0.4 to 0.1 and should from 1 to 0.
    assert value(p, RING) == pytest.approx(0.1**2 + 0.6**2 + 0.1**2)
    assert value(p, RING, dims=[0]) == pytest.approx(0.1**2)
    assert value(p, RING, dims=[1], unmatched=7) == pytest.approx(0.6**2 + 0.1**2)


def test_a_gap_down_to_the_background_lacks_the_hole() -> None:
    p = paint(RING, 0.9)
    p[1, 2] = 0.1
    assert value(p, RING, dims=[1]) == pytest.approx(1)
    assert value(p, RING, dims=[1], unmatched=0.5) == pytest.approx(0.5)


def test_a_pinhole_in_a_plate() -> None:
    p = paint(plate(), 0.8)
    p[1, 2, 2] = 0.3
    assert value(p, plate(), dims=(1,)) == pytest.approx(0.5**2)
    assert value(p, plate(), unmatched=0.5) == pytest.approx(0.2**2 + 0.5 * 0.5**2)


def test_a_bridge_between_blobs() -> None:
    p = paint(blobs(), 0.9)
    p[:, 3:], p[0, 2] = 0.7, 0.6
    assert value(p, blobs()) == pytest.approx(0.1**2 + 0.3**2 + 0.6**2)


def test_a_cavity() -> None:
    label = torch.ones(3, 3, 3, dtype=torch.long)
    label[1, 1, 1] = 0
    assert value(paint(label, 0.9, 0.2), label, dims=[2]) == pytest.approx(0.1**2 + 0.2**2)
    assert value(paint(label, 0.9, 0.2), torch.ones_like(label), dims=[2]) == pytest.approx(0.7**2)


@pytest.mark.parametrize(
    "label", [RING, plate(), blobs(), torch.zeros_like(RING), torch.ones_like(RING)]
)
def test_the_label_itself_costs_nothing_and_its_opposite_much(label: Tensor) -> None:
    assert value(label.float(), label) == 0
    assert value(1 - label.float(), label) >= 1


def test_equal_topology_in_another_place_costs() -> None:
    """Barcodes alone would be content."""
    label = functional.pad(RING, (0, 5))
    assert value(functional.pad(RING, (5, 0)).double(), label, dims=[1]) == 2


# ---------------------------------------------------------------- classes, samples, blocks, ignored


def test_two_classes_are_one_channel() -> None:
    logits, target, valid = scene(6, 7)
    loss = betti_matching()
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    assert float(loss(both, target, valid)) == pytest.approx(float(loss(logits, target, valid)))


def test_each_class_is_matched_on_its_own() -> None:
    logits, target, valid = scene(6, 7, channels=3)
    p = logits.softmax(1)
    loss = betti_matching()
    alone = [loss(p[:, k : k + 1].logit(), target == k, valid) for k in (1, 2)]
    assert float(loss(logits, target, valid)) == pytest.approx(float(sum(alone)) / 2)


def test_mean_over_samples_with_a_valid_voxel() -> None:
    logits, target, valid = scene(6, 7)
    loss = betti_matching()
    alone = [float(loss(logits[i : i + 1], target[i : i + 1], valid[i : i + 1])) for i in range(2)]
    assert float(loss(logits, target, valid)) == pytest.approx(sum(alone) / 2)
    valid[1] = 0
    assert float(loss(logits, target, valid)) == pytest.approx(alone[0])


def test_mean_over_blocks() -> None:
    logits, target, valid = scene(5, 8, 7)
    blocks = [
        (slice(z, z + 4), slice(y, y + 4), slice(x, x + 4))
        for z in (0, 4)
        for y in (0, 4)
        for x in (0, 4)
    ]
    whole = betti_matching(patch=None)
    alone = [
        float(whole(*(t[(slice(None), slice(None), *b)] for t in (logits, target, valid))))
        for b in blocks
    ]
    assert float(betti_matching(patch=4)(logits, target, valid)) == pytest.approx(np.mean(alone))
    assert float(betti_matching(patch=8)(logits, target, valid)) == float(
        whole(logits, target, valid)
    )


def test_threads_change_nothing() -> None:
    logits, target, valid = scene(9, 8)
    loss = betti_matching(patch=4)
    one = loss(logits, target, valid)
    torch.set_num_threads(2)
    two = loss(logits, target, valid)
    torch.set_num_threads(1)
    assert torch.equal(one, two)


def test_ignored_voxels_are_background_and_cannot_be_felt() -> None:
    logits, target, valid = scene(6, 7)
    out = valid == 0
    loss = betti_matching()
    background = float(
        loss(logits.masked_fill(out, -800), target.masked_fill(out, 0), torch.ones_like(valid))
    )
    logits = logits.masked_fill(out, torch.nan).requires_grad_()
    ours = loss(logits, target, valid)
    assert ours.item() == pytest.approx(background)
    (gradient,) = torch.autograd.grad(ours, logits)
    assert not gradient[out].any()
    assert gradient.isfinite().all()
    assert gradient[~out].any()


def test_without_a_valid_voxel_the_value_is_0() -> None:
    logits, target, valid = scene(4, 5)
    ours = betti_matching()(logits.requires_grad_(), target, torch.zeros_like(valid))
    assert ours.item() == 0
    assert not torch.autograd.grad(ours, logits)[0].any()


def test_a_nan_is_not_hidden() -> None:
    logits, target, valid = scene(4, 5)
    logits[0, 0, 2, 2], valid[0, 0, 2, 2] = torch.nan, 1
    assert betti_matching()(logits, target, valid).isnan()


# ---------------------------------------------------------------- gradients and types


@pytest.mark.parametrize("space", [(4, 5), (2, 4, 3)], ids=["2D", "3D"])
@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_gradients(space: tuple[int, ...], channels: int) -> None:
    """Random logits have no ties: within a small step nothing is matched anew, and the loss is
    smooth.
    """
    logits, target, valid = scene(*space, channels=channels)
    loss = betti_matching(patch=3, unmatched=0.7)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, valid), logits.requires_grad_())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind: torch.dtype) -> None:
    logits, target, valid = (x.float() for x in scene(6, 7))
    half = logits.to(kind).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = betti_matching()(half, target, valid)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, betti_matching()(half.float(), target, valid))
    assert torch.autograd.grad(ours, half)[0].dtype == kind


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    logits, target, valid = scene(6, 7, 5)
    ours = [
        torch.autograd.grad(betti_matching()(x, target.to(x.device), valid.to(x.device)), x)[0]
        for x in (logits.requires_grad_(), logits.detach().cuda().requires_grad_())
    ]
    torch.testing.assert_close(ours[0], ours[1].cpu())


@pytest.mark.parametrize(
    "options",
    [
        {"dims": []},
        {"dims": [3]},
        {"dims": [1, 1]},
        {"dims": 1},
        {"dims": [True]},
        {"patch": 1},
        {"patch": 8.0},
        {"unmatched": -1},
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"'betti_matching': {next(iter(options))} is"):
        betti_matching(**options)


def test_an_image_has_no_cavities() -> None:
    with pytest.raises(
        ConfigError, match=r"dims is \[0, 2\], but an image of 2 axes has only dimensions 0 and 1"
    ):
        betti_matching(dims=[0, 2])(*scene(4, 5))


# ---------------------------------------------------------------- it drives an answer to the right


def broken_ring() -> tuple[Tensor, Tensor]:
    """A ring as label, and evidence for it that is weak in a gap of two voxels' width: 0.8 inside,
    0.15 outside, 0.35 in the gap.
    """
    y, x = torch.meshgrid(*[torch.arange(16) - 7.5] * 2, indexing="ij")
    radius = torch.hypot(y, x)
    label = ((radius > 3.5) & (radius < 6)).long()
    evidence = paint(label, 0.8, 0.15)
    evidence[:7, 7:9] = paint(label[:7, 7:9], 0.35, 0.15)
    return evidence, label


def pierced_plate() -> tuple[Tensor, Tensor]:
    """A plate of three voxels as label, and evidence for it that falls to 0.3 in a hole of 2 x 2
    voxels right through.
    """
    label = torch.zeros(9, 12, 12, dtype=torch.long)
    label[3:6] = 1
    evidence = paint(label, 0.8, 0.15)
    evidence[3:6, 5:7, 5:7] = 0.3
    return evidence, label


def train(evidence: Tensor, label: Tensor, weight: float) -> tuple[int, ...]:
    """Betti numbers of the logits that fit the evidence (cross-entropy) and, by ``weight``, the
    topology of the label.

    The evidence stands for what a network can see. It is the minimum of its own term, so that alone
    leaves the fault for ever.
    """
    noise = 0.02 * torch.rand(evidence.shape, generator=torch.Generator().manual_seed(0))
    seen, target = (evidence + noise)[None, None], label[None, None]
    logits = seen.logit().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    loss = betti_matching()
    for _ in range(60):
        optimizer.zero_grad()
        topology = loss(logits, target, torch.ones_like(seen))
        (functional.binary_cross_entropy_with_logits(logits, seen) + weight * topology).backward()
        optimizer.step()
    return betti_numbers((logits[0, 0] > 0).numpy())


@pytest.mark.parametrize(
    ("make", "numbers", "broken"),
    [(broken_ring, (1, 1), (1, 0)), (pierced_plate, (1, 0, 0), (1, 1, 0))],
)
def test_it_mends_what_the_evidence_leaves_broken(
    make: Any, numbers: tuple[int, ...], broken: tuple[int, ...]
) -> None:
    evidence, label = make()
    assert betti_numbers(label.numpy()) == numbers
    assert train(evidence, label, weight=0) == broken
    assert train(evidence, label, weight=0.2) == numbers
