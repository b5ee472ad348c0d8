"""Losses that look at connection: values by hand, gradients, ignored voxels, and that each mends
what Dice alone leaves broken.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses.cldice import SoftclDiceLoss, soft_skel
from torch import Tensor

from pipeline.config import ConfigError, Data, Patch
from pipeline.data.derived import derive
from pipeline.losses import LOSSES, WeightedSum, reads
from pipeline.losses.topology import soft_skeleton
from pipeline.morphology import betti_numbers
from pipeline.records import LossTerm

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("cldice", {}),
    ("cldice", {"iterations": 1, "smooth": 1e-3}),
    ("skeleton_recall", {"radius": 0}),
    ("surface_recall", {}),
    ("surface_recall", {"fp_weight": 2, "radius": 1}),
    ("boundary", {}),
    ("boundary", {"reach": 2}),
    ("connectivity", {}),
    ("connectivity", {"reach": [1, 3]}),
]
EVERY = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[f"{n}{i}" for i, (n, _) in enumerate(VARIANTS)]
)
SHAPES = pytest.mark.parametrize("space", [(4, 5), (3, 4, 2)], ids=["2D", "3D"])
CHANNELS = pytest.mark.parametrize("channels", [1, 3])


def ones(x: Tensor) -> Tensor:
    return torch.ones_like(x[:, :1], dtype=torch.float32)


def maps(name: str, options: dict[str, Any], target: Tensor, channels: int = 1) -> list[Tensor]:
    """What the loader would hand to the loss beside ``target``: nothing, or its map."""
    wish = next(iter(reads([LossTerm(name=name, options=options)])), None)
    data = Data(classes=max(channels, 2), dims=2, patch=Patch(size=(8, 8)))
    return (
        []
        if wish is None
        else [torch.from_numpy(np.stack([derive(y.numpy(), wish, data) for y in target]))]
    )


@dataclass(frozen=True)
class Scene:
    """Random float64 logits, a target with every class, and a mask that ignores about a third."""

    name: str
    options: dict[str, Any]
    logits: Tensor
    target: Tensor
    valid: Tensor
    maps: list[Tensor]

    def loss(
        self,
        logits: Tensor | None = None,
        valid: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        new = (self.logits if logits is None else logits, self.target if target is None else target)
        return LOSSES[self.name].make(**self.options)(
            *new, self.valid if valid is None else valid, *self.maps
        )


def scene(name: str, options: dict[str, Any], channels: int, space: tuple[int, ...]) -> Scene:
    make = torch.Generator().manual_seed(0)
    logits = torch.randn(2, channels, *space, generator=make, dtype=torch.float64)
    valid = (torch.rand(2, 1, *space, generator=make) > 0.3).float()
    target = torch.randint(0, max(channels, 2), (2, 1, *space), generator=make)
    return Scene(name, options, logits, target, valid, maps(name, options, target, channels))


# ---------------------------------------------------------------- gradients and ignored voxels


@EVERY
@SHAPES
@CHANNELS
def test_gradient_is_that_of_finite_differences(
    name: str, options: dict[str, Any], space: tuple[int, ...], channels: int
) -> None:
    s = scene(name, options, channels, space)
    assert torch.autograd.gradcheck(lambda z: s.loss(z), s.logits.requires_grad_())


@EVERY
@CHANNELS
def test_ignored_voxels_change_neither_value_nor_gradient(
    name: str, options: dict[str, Any], channels: int
) -> None:
    s = scene(name, options, channels, (6, 7))
    out, results = s.valid == 0, []
    for fill, other in ((0.0, 0), (1e30, 1), (math.nan, 1), (-math.inf, 0)):
        z = s.logits.masked_fill(out, fill).requires_grad_()
        moved = Scene(
            name,
            options,
            z,
            s.target.masked_fill(out, other),
            s.valid,
            [m.masked_fill(out, other) for m in s.maps],
        )
        value = moved.loss()
        (gradient,) = torch.autograd.grad(value, z)
        assert not gradient[out.expand_as(gradient)].any()
        results.append((value.detach(), gradient))
    assert all(torch.equal(v, results[0][0]) and torch.equal(g, results[0][1]) for v, g in results)
    assert results[0][1].any()


@EVERY
@CHANNELS
def test_without_a_valid_voxel_the_value_and_gradient_are_zero(
    name: str, options: dict[str, Any], channels: int
) -> None:
    s = scene(name, options, channels, (4, 5))
    value = s.loss(s.logits.requires_grad_(), torch.zeros_like(s.valid))
    (gradient,) = torch.autograd.grad(value, s.logits)
    assert value == 0
    assert not gradient.any()


@EVERY
def test_a_sample_without_valid_voxels_does_not_dilute_the_rest(
    name: str, options: dict[str, Any]
) -> None:
    s = scene(name, options, 3, (4, 5))
    alone = Scene(name, options, s.logits[:1], s.target[:1], s.valid[:1], [m[:1] for m in s.maps])
    valid = s.valid.clone()
    valid[1] = 0
    assert float(s.loss(valid=valid)) == pytest.approx(float(alone.loss()), abs=1e-12)


@EVERY
@pytest.mark.parametrize("label", [0, 1], ids=["empty", "full"])
@pytest.mark.parametrize("logit", [-50.0, 0.0, 50.0])
@CHANNELS
def test_uniform_labels_and_saturated_logits_stay_finite(
    name: str, options: dict[str, Any], label: int, logit: float, channels: int
) -> None:
    x = torch.full((2, channels, 6, 6), logit)
    x[:, 1:] *= -1
    x[:, 2:] = -50
    y = torch.full((2, 1, 6, 6), label, dtype=torch.uint8)
    value = LOSSES[name].make(**options)(
        x.requires_grad_(), y, ones(x), *maps(name, options, y, channels)
    )
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    said = logit if channels == 1 else -logit
    if said and (said > 0) == (label > 0):
        assert value.detach().abs() < 1e-4
    elif said and name != "cldice" and (name, label) != ("skeleton_recall", 0):
        assert (
            value > 0.2
        )  # clDice: a full field has no soft skeleton; skeleton recall does not feel false answers


@EVERY
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_inputs_are_summed_in_single_precision(
    name: str, options: dict[str, Any], kind: torch.dtype
) -> None:
    """90,000 voxels near 1 overflow a float16 sum (65,504)."""
    x = torch.linspace(0.5, 4, 90_000).reshape(1, 1, 300, 300).to(kind).requires_grad_()
    y = torch.zeros(1, 1, 300, 300, dtype=torch.uint8)
    y[..., 10:290] = 1
    extra = maps(name, options, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = LOSSES[name].make(**options)(x, y, ones(x), *extra)
    assert value.dtype == torch.float32
    wide = LOSSES[name].make(**options)(x.detach().double(), y, ones(x), *extra)
    assert float(value.detach()) == pytest.approx(float(wide), rel=1e-3)
    assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()


@EVERY
@pytest.mark.parametrize("space", [(10, 12), (8, 9, 10)], ids=["2D", "3D"])
@CHANNELS
def test_perfect_answers_cost_nothing(
    name: str, options: dict[str, Any], space: tuple[int, ...], channels: int
) -> None:
    y = torch.zeros(1, 1, *space, dtype=torch.long)
    y[..., 2:5] = 1
    y[..., 6:9] = channels - 1 if channels > 1 else 1
    x = (
        torch.cat([(y == k) * 80.0 - 40 for k in range(channels)], 1)
        if channels > 1
        else y * 80.0 - 40
    )
    assert float(
        LOSSES[name].make(**options)(x, y, ones(x), *maps(name, options, y, channels))
    ) == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------- values


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 99), iterations=st.integers(0, 4), dims=st.sampled_from([2, 3]))
def test_cldice_is_monais_for_one_channel(seed: int, iterations: int, dims: int) -> None:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 1, *[7] * dims, generator=make, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 2, (2, 1, *[7] * dims), generator=make)
    theirs = SoftclDiceLoss(iter_=iterations, smooth=1e-12)(input=x.sigmoid(), target=y.double())
    ours = LOSSES["cldice"].make(iterations=iterations)(x, y, ones(x))
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-9)
    both = [
        torch.autograd.grad(f(x.sigmoid(), iterations).square().sum(), x)[0]
        for f in (soft_skel, soft_skeleton)
    ]
    torch.testing.assert_close(*both)


def test_recalls_by_hand() -> None:
    """A bar of 3 x 8 in 9 x 10 voxels, found with p = 0.25 in it and p = 0.5 elsewhere; the ignored
    rest would change both.
    """
    y = torch.zeros(1, 1, 9, 10, dtype=torch.long)
    y[..., 3:6, 1:9] = 1
    p = torch.where(y > 0, 0.25, 0.5)
    assert float(
        LOSSES["skeleton_recall"].make()(p.logit(), y, ones(p), *maps("skeleton_recall", {}, y))
    ) == pytest.approx(0.75)
    extra = maps("surface_recall", {}, y)
    assert float(
        LOSSES["surface_recall"].make(fp_weight=3)(p.logit(), y, ones(p), *extra)
    ) == pytest.approx(0.75 + 3 * 0.5)
    p[..., 5:, :] = 0.9
    valid = ones(p)
    valid[..., 5:, :] = 0
    assert float(
        LOSSES["surface_recall"].make(fp_weight=3)(p.logit(), y, valid, *extra)
    ) == pytest.approx(0.75 + 3 * 0.5)


def test_surface_recall_sees_a_hole_in_a_sheet_of_any_direction_and_skeleton_recall_may_not() -> (
    None
):
    costs = []
    for axis in range(3):
        y = torch.zeros(1, 1, 15, 15, 15, dtype=torch.long)
        y.movedim(2 + axis, 2)[:, :, 6:9] = 1
        x = y * 80.0 - 40
        x.movedim(2 + axis, 2)[:, :, :, 7, 3] = -40
        costs.append(
            [
                float(LOSSES[n].make()(x, y, ones(x), *maps(n, {}, y)))
                for n in ("surface_recall", "skeleton_recall")
            ]
        )
    surface, line = np.array(costs).T
    assert (surface > 0.9 / 15**2).all()  # the hole's share of the sheet
    assert surface.max() < 1.2 * surface.min()
    assert line.min() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_boundary_weighs_an_error_by_its_distance(shift: int) -> None:
    """A half-space answered `shift` voxels too far: layers at 0.5, 1.5, ... of 12, each at most the
    reach.
    """
    y = torch.zeros(1, 1, 12, 3, 4, dtype=torch.long)
    y[:, :, :5] = 1
    x = torch.full((1, 1, 12, 3, 4), -40.0)
    x[:, :, : 5 + shift] = 40
    wanted = sum(min(k + 0.5, 2) for k in range(shift)) / 12 / 2
    assert float(
        LOSSES["boundary"].make(reach=2)(x, y, ones(x), *maps("boundary", {"reach": 2}, y))
    ) == pytest.approx(wanted)


def test_boundary_has_the_gradient_of_the_published_loss() -> None:
    s = scene("boundary", {}, 1, (6, 7))
    x = s.logits.requires_grad_()
    published = (x.sigmoid() * s.maps[0] * s.valid).sum() / s.valid.sum() / 5
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (s.loss(), published)))


def line(*values: float) -> Tensor:
    return torch.tensor(values)[None, None, None].logit(1e-9)


def test_connectivity_by_hand() -> None:
    y, x = torch.ones(1, 1, 1, 4, dtype=torch.long), line(1, 1, 0.5, 1)
    loss = LOSSES["connectivity"].make(smooth=1e-12)
    assert float(loss(x, y, ones(x))) == pytest.approx(
        1 - 2 * 2 / (2 + 3), abs=1e-6
    )  # strengths 1, .5, .5 of three true links
    far = LOSSES["connectivity"].make(reach=[2], smooth=1e-12)
    assert float(far(x, y, ones(x))) == pytest.approx(1 - 2 * 1 / (1 + 2), abs=1e-6)
    valid = ones(x)
    valid[..., 2] = 0
    assert float(loss(x, y, valid)) == pytest.approx(0, abs=1e-6)  # only the first link is known
    y[..., 1] = 0
    assert float(loss(line(1, 1, 1, 1), y, ones(x))) == pytest.approx(
        1 - 2 * 1 / (3 + 1), abs=1e-6
    )  # two false links
    assert float(loss(line(1, 0, 1, 1), y, ones(x))) == pytest.approx(0, abs=1e-6)


def test_connectivity_hands_a_weak_voxel_the_gradient_of_its_links() -> None:
    y, x = torch.ones(1, 1, 5, 5, dtype=torch.long), torch.full((1, 1, 5, 5), 2.0)
    x[..., 2, 2] = 1.0
    gradients = {}
    for name in ("connectivity", "dice"):
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(LOSSES[name].make()(z, y, ones(z)), z)
        gradients[name] = float(g[0, 0, 2, 2] / g.sum())
    assert gradients["connectivity"] > 1.8 * gradients["dice"]


def test_axes_without_links_and_fields_without_any() -> None:
    x = torch.zeros(1, 1, 1, 1)
    assert (
        float(LOSSES["connectivity"].make()(x, torch.ones(1, 1, 1, 1, dtype=torch.long), ones(x)))
        == 0
    )


# ---------------------------------------------------------------- options and the weighted sum


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cldice", {"iterations": 1.5}, ["iterations", "1.5", "whole"]),
        ("cldice", {"smooth": 0}, ["smooth", "1e-12"]),
        ("skeleton_recall", {"radius": -1}, ["radius", "-1"]),
        ("surface_recall", {"fp_weight": "x"}, ["fp_weight", "'x'"]),
        ("surface_recall", {"radius": math.inf}, ["radius", "inf"]),
        ("boundary", {"reach": 0.5}, ["reach", "0.5", "from 1 to 1000"]),
        ("connectivity", {"reach": 1}, ["reach", "[1, 4]"]),
        ("connectivity", {"reach": [0]}, ["reach", "0", "whole"]),
        ("connectivity", {"reach": []}, ["reach", "[]"]),
        ("surface_recall", {"fp": 1}, ["fp", "fp_weight"]),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        WeightedSum([LossTerm(name=name, options=options)], {"label": "labels"})
    assert [word for word in words if word not in str(caught.value)] == []


def test_the_sum_hands_each_term_its_own_map() -> None:
    y = torch.zeros(1, 1, 12, 12, dtype=torch.uint8)
    y[..., 3:9, :] = 1
    y[..., 9:, :] = 2
    x = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    specs = [{}, {"radius": 0}]
    terms = [LossTerm(name="skeleton_recall", options=o) for o in specs] + [
        LossTerm(name="boundary", head="deep1"),
        LossTerm(name="dice"),
    ]
    clean, valid = y.masked_fill(y == 2, 0), (y != 2).float()
    found = [maps("skeleton_recall", o, clean)[0] for o in specs] + maps("boundary", {}, clean)
    total = WeightedSum(terms, {"label": "labels"}, ignore_label=2)
    batch = {"label": y} | dict(
        zip(("label:skeleton", "label:skeleton,radius=0", "label:distance"), found, strict=True)
    )
    _, values = total({"main": x, "deep1": -x}, batch)
    wanted = [
        LOSSES["skeleton_recall"].make(**o)(x, clean, valid, m)
        for o, m in zip(specs, found, strict=False)
    ]
    wanted += [
        LOSSES["boundary"].make()(-x, clean, valid, found[2]),
        LOSSES["dice"].make()(x, clean, valid),
    ]
    assert [float(v) for v in values.values()] == [float(w) for w in wanted]
    assert list(total({"main": x}, batch, training=False)[1]) == [
        "skeleton_recall",
        "skeleton_recall:label",
        "dice",
    ]
    del batch["label:skeleton,radius=0"]
    with pytest.raises(KeyError, match="map 'label:skeleton,radius=0', which the batch lacks"):
        total({"main": x, "deep1": x}, batch)


def test_maps_that_do_not_fit_are_refused() -> None:
    x, y = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="2 channels and logits of 1"):
        LOSSES["boundary"].make()(x, y, ones(x), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"map \(1, 1, 4, 5\)"):
        LOSSES["boundary"].make()(x, y, ones(x), torch.zeros(1, 1, 4, 5))


# ---------------------------------------------------------------- what each loss mends


@dataclass(frozen=True)
class Trap:
    """A label, and a prediction in which voxels that look alike share one logit: what a network
    cannot tell apart it answers alike.

    ``look`` numbers the kinds of voxels, ``start`` holds their logits before training. Plain
    gradient descent: Adam would scale a vanishing gradient up again, which is half of what is at
    stake here.
    """

    label: np.ndarray
    look: np.ndarray
    start: np.ndarray = field(default_factory=lambda: np.array([-3.0, 0.0, 3.0]))
    rate: float = 40.0

    def train(self, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[int, ...]:
        """Betti numbers of the answer after 100 steps."""
        logits, look = torch.tensor(self.start, requires_grad=True), torch.from_numpy(self.look)
        label = torch.from_numpy(self.label)[None, None].long()
        for _ in range(100):
            (gradient,) = torch.autograd.grad(loss(logits[look][None, None], label), logits)
            logits = (logits - self.rate * gradient).detach().requires_grad_()
        return betti_numbers(logits.detach()[look].numpy() > 0)


def _traps() -> dict[str, Trap]:
    """Kinds 0, 1, 2: background, doubtful, object.

    Of the doubtful voxels a majority by count is what Dice follows.

    ``cut``: a bar's missing column (3) looks like voxels on its side (4). ``beads``: the same,
    these lie apart. ``pinhole``: the same in a sheet. ``bridge``: voxels between two sheets look
    like a few more of a sheet's face. ``sure_...``: every voxel has its own logit, and those of the
    defect are wrong and certain of it.
    """
    bar = np.zeros((12, 32), np.uint8)
    bar[5:8, 3:29] = 1
    rod = np.zeros((9, 9, 24), np.uint8)
    rod[3:6, 3:6, 2:22] = 1
    sheet = np.zeros((9, 14, 14), np.uint8)
    sheet[3:6] = 1
    pair2, pair3 = np.zeros((16, 24), np.uint8), np.zeros((15, 12, 12), np.uint8)
    pair2[2:5] = pair2[11:14] = pair3[2:5] = pair3[10:13] = 1
    doubt: dict[str, tuple[np.ndarray, list[Any]]] = {
        "cut": (bar, [np.s_[5:8, 15], np.s_[4, 20:24]]),
        "beads": (bar, [np.s_[5:8, 15], np.s_[4, [6, 10, 20, 24]]]),
        "cut_3d": (rod, [np.s_[3:6, 3:6, 12], np.s_[2, 3:6, 5:9]]),
        "pinhole": (sheet, [np.s_[3:6, 7, 7], np.s_[2, 2:4, 2:4]]),
        "bridge": (pair2, [np.s_[5:11, 12], np.s_[2, 2:9]]),
        "bridge_3d": (pair3, [np.s_[5:10, 6, 6], np.s_[2, 1:3, 1:4]]),
    }
    traps = {}
    for name, (label, places) in doubt.items():
        look = 2 * label.astype(np.int64)
        for place in places:
            look[place] = 1
        traps[name] = Trap(label, look)
    for name, source in {"sure_pinhole": "pinhole", "sure_bridge": "bridge"}.items():
        label, (defect, _) = doubt[source]
        start = np.where(label, 4.0, -4.0)
        start[defect] = np.where(label[defect], -9.0, 9.0)
        traps[name] = Trap(label, np.arange(label.size).reshape(label.shape), start.ravel(), 500.0)
    return traps


TRAPS = _traps()

MENDS = [
    (
        "cldice",
        "cut",
        1.0,
        # the gap is a small share of the bar, a larger one of its skeleton; a wider bar keeps its
        # skeleton
    ),
    ("cldice", "pinhole", 1.0),
    ("cldice", "bridge", 1.0),  # all of the bridge is skeleton that lies outside the label
    ("skeleton_recall", "cut", 1.0),  # gaps in lines; false voxels beside them are not felt
    ("skeleton_recall", "cut_3d", 1.0),
    ("surface_recall", "cut", 1.0),
    ("surface_recall", "pinhole", 1.0),  # holes in sheets, where a 3D skeleton has no voxel
    (
        "boundary",
        "bridge",
        10.0,
    ),  # far from both surfaces; a mean over all voxels is small, hence the weight
    ("boundary", "bridge_3d", 10.0),
    (
        "connectivity",
        "beads",
        1.0,
    ),  # one weak voxel breaks links of all axes, a false bead makes one
    ("connectivity", "pinhole", 1.0),
    ("tversky", "cut", 1.0),  # a missed voxel costs more than a false one
    ("tversky", "pinhole", 1.0),
    (
        "ce",
        "sure_pinhole",
        1.0,
    ),  # Dice's gradient vanishes where p is 0 or 1, that of a logarithm does not
    ("ce", "sure_bridge", 1.0),
    ("focal", "sure_pinhole", 1.0),
    ("focal", "sure_bridge", 1.0),
]


@functools.cache
def control(trap: str, weight: float) -> tuple[int, ...]:
    return TRAPS[trap].train(added("dice", TRAPS[trap], weight))


def added(name: str, trap: Trap, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    extra = maps(name, {}, torch.from_numpy(trap.label)[None, None])
    dice, term = LOSSES["dice"].make(), LOSSES[name].make()
    return lambda x, y: dice(x, y, ones(x)) + weight * term(x, y, ones(x), *extra)


@pytest.mark.parametrize(("name", "trap", "weight"), MENDS, ids=[f"{n}-{t}" for n, t, _ in MENDS])
def test_each_loss_drives_an_answer_to_the_topology_that_dice_misses(
    name: str, trap: str, weight: float
) -> None:
    """Same start, steps and rate; the control has Dice in the term's place, so the same sum of
    weights.
    """
    truth = betti_numbers(TRAPS[trap].label)
    assert control(trap, weight) != truth
    assert TRAPS[trap].train(added(name, TRAPS[trap], weight)) == truth


def test_every_label_loss_that_can_mend_topology_is_shown_to() -> None:
    shown = {name for name, _, _ in MENDS}
    assert shown == {
        "cldice",
        "skeleton_recall",
        "surface_recall",
        "boundary",
        "connectivity",
        "tversky",
        "ce",
        "focal",
    }


@pytest.mark.parametrize(
    ("name", "trap"),
    [("skeleton_recall", "pinhole"), ("tversky", "sure_pinhole"), ("surface_recall", "bridge")],
)
def test_no_loss_mends_everything(name: str, trap: str) -> None:
    """The limits that the docstrings state: lines see no hole in a sheet, overlap no certain error,
    recall no bridge.
    """
    assert TRAPS[trap].train(added(name, TRAPS[trap], 1.0)) != betti_numbers(TRAPS[trap].label)
