"""The mask of change beside the store and in samples, and patches chosen by it: shares, places,
grids, mirrored borders.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import opened
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import files
from pipeline.config import Change, Config, ConfigError, Patch, from_dict
from pipeline.data import change, derived
from pipeline.data.cache import CachedCase, Volume
from pipeline.data.change import LEVEL, REDUCED
from pipeline.data.derived import BLOCKS, MASK, ChangeMask
from pipeline.data.loaders import VALIDATION, EpochBatches, Loader, PatchDataset
from pipeline.data.normalise import IntensityScale
from pipeline.data.sampling import RandBalancedCropd, crop_mirrored, grid_patch_starts, holds_change
from pipeline.losses import maps, reads
from pipeline.records import LossTerm, UserError

SIZES = {"a": (150, 200), "b": (130, 97), "c": (20, 300), "clean": (140, 140)}
SPOTS = {"a": [(120, 150), (5, 6)], "b": [(64, 40)], "c": [(10, 200)], "clean": []}


def config(losses: Sequence[Any] = (), **data: Any) -> Config:
    patch = {"size": [48, 48], "foreground": None, "batch": 3, **data.pop("patch", {})}
    return from_dict(
        {
            "name": "t",
            "task": "image",
            "data": {
                "dims": 2,
                "layout": "folders",
                "folders": {"image": "src", "target": "dst"},
                "normalise": {"name": "range", "options": {"low": 0, "high": None, "to": [0, 1]}},
                "change": {},
                "patch": patch,
                **data,
            },
            "network": "unet",
            "losses": [{"name": "l1", "target": "target"}, *losses],
        }
    )


def pair(
    size: tuple[int, int], spots: Sequence[tuple[int, int]], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image ``(3, Y, X)``, uint8, and the same with bright discs of radius 4."""
    image = np.random.default_rng(seed).integers(40, 160, (3, *size)).astype(np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    discs = np.zeros(size, bool)
    for row, column in spots:
        discs |= (y - row) ** 2 + (x - column) ** 2 <= 16
    return image, image + np.uint8(60) * discs


def write_pairs(root: Path) -> Path:
    for n, name in enumerate(SIZES):
        for folder, array in zip(("src", "dst"), pair(SIZES[name], SPOTS[name], n), strict=True):
            files.write(root / folder / f"{name}.png", array)
    return root


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    root = write_pairs(tmp_path_factory.mktemp("pictures"))
    folder = tmp_path_factory.mktemp("store")
    return derived.attach(opened(root, config(), folder), config(), folder)


def volume(path: Path, array: np.ndarray) -> Volume:
    np.save(path, array)
    return Volume(path=path, shape=array.shape, dtype=str(array.dtype))


class Held:
    """A handle like ``Volume`` of an array in memory."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape = array, array.shape


def sample_of(mask: np.ndarray) -> dict[str, Any]:
    """What the crop is given: an image of the numbers of its pixels, a mask ``(Y, X)`` and its
    index.
    """
    soft = mask[None].astype(np.float16)
    numbers = np.arange(mask.size, dtype=np.float32).reshape(1, *mask.shape)
    handles = {"image": Held(numbers), MASK: Held(soft), BLOCKS: Held(change.blocks(soft))}
    return {**handles, "scale": IntensityScale(low=(0.0,), high=(1.0,), to=(0.0, 1.0), clip=False)}


def cropper(**patch: Any) -> RandBalancedCropd:
    return RandBalancedCropd({}, Patch(foreground=None, **patch), None, {MASK: 0.0})


def cut(crop: RandBalancedCropd, data: dict[str, Any], seed: int) -> dict[str, Any]:
    crop.set_random_state(seed)
    return crop(data)


def first_place(sample: dict[str, Any], width: int) -> tuple[int, int]:
    """Row and column at which a patch of the image of pixel numbers starts."""
    return divmod(int(sample["image"].flat[0]), width)


class Spy:
    """An array that remembers which pixels of its space were read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.seen = array, array.shape, np.zeros(array.shape, bool)

    def __getitem__(self, box: Any) -> np.ndarray:
        self.seen[box] = True
        return self.array[box]


# ---------------------------------------------------------------- which masks


def test_losses_of_the_mask_read_it_and_no_others_do() -> None:
    for name in ("masked_l1", "masked_sobel", "masked_laplacian"):
        (wish,) = reads([LossTerm(name=name, target="target")])
        assert (wish.key, wish.fill, wish.is_mask) == ("mask", 0, False)
    found = {
        reduce: reads([LossTerm(name="perceptual", target="target", options={"reduce": reduce})])
        for reduce in ("mask", "half")
    }
    assert found == {"mask": [ChangeMask(target="target")], "half": []}
    assert reads([LossTerm(name="perceptual", target="target")]) == []
    assert reads([LossTerm(name="l1", target="target")]) == []


def test_the_mask_is_wanted_wherever_change_is_set_and_only_there() -> None:
    assert maps(config()) == {MASK: ChangeMask(target="target")}
    labels = from_dict(
        {
            "name": "t",
            "task": "image",
            "data": {
                "dims": 2,
                "patch": {"size": [8, 8]},
                "targets": {"target": "image", "mask": "labels"},
            },
            "network": "unet",
            "losses": [{"name": "masked_l1", "target": "target"}],
        }
    )
    assert maps(labels) == {}
    first = config(
        targets={"seg": "labels", "sharp": "image", "soft": "image"},
        folders={"image": "src", "sharp": "dst"},
    )
    assert maps(first) == {MASK: ChangeMask(target="sharp")}
    with pytest.raises(ConfigError, match="no target is one"):
        maps(config(targets={"seg": "labels"}))


# ---------------------------------------------------------------- kept beside the store


def test_the_kept_mask_and_its_index_are_those_of_the_pair(pairs: list[CachedCase]) -> None:
    for case in pairs:
        made = change.difference_mask(case.image.array, case.targets["target"].array, Change())
        kept = case.maps[MASK].array
        assert kept.dtype == np.float16
        np.testing.assert_array_equal(kept, made.astype(np.float16))
        np.testing.assert_array_equal(case.maps[BLOCKS].array, change.blocks(kept))
        assert (kept >= LEVEL).any() == bool(SPOTS[case.case.id])


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (folder / "maps").iterdir()}


def test_masks_are_made_again_for_other_pixels_or_settings_and_for_nothing_else(
    tmp_path: Path,
) -> None:
    root, folder = write_pairs(tmp_path / "data"), tmp_path / "store"

    def attached(**data: Any) -> list[CachedCase]:
        return derived.attach(opened(root, config(**data), folder), config(**data), folder)

    attached()
    before = stamps(folder)
    assert len(before) == len(SIZES) * 3
    attached(patch={"size": [32, 32], "changed": 0.5, "border": "mirror"}, augment=["flip"])
    assert stamps(folder) == before
    wide = attached(change={"threshold": 90})[0].maps[MASK].array
    assert not wide.any()
    assert {
        k: v for k, v in stamps(folder).items() if k in before
    } == before  # a run with other settings may still read them
    assert len(stamps(folder)) == 2 * len(before)
    for moved, role in (("a", "src"), ("b", "dst")):
        path = root / role / f"{moved}.png"
        array, _ = files.read(path, 2)
        array[:, 70:90, 20:40] = 255
        files.write(path, array)
        old = stamps(folder)
        again = {case.case.id: case for case in attached()}
        assert again[moved].maps[MASK].array[0, 80, 30] == 1
        assert {k.split(".")[0] for k, v in stamps(folder).items() if old[k] != v} == {moved}


def test_a_case_without_a_target_has_no_mask(pairs: list[CachedCase], tmp_path: Path) -> None:
    bare = dataclasses.replace(pairs[0], targets={}, maps={})
    assert derived.attach([bare], config(), tmp_path)[0].maps == {}
    with pytest.raises(KeyError, match=r"case.* a lack the map mask"):
        PatchDataset([bare], config(), 0, training=True)


def test_a_pair_that_cannot_be_compared_is_named(pairs: list[CachedCase], tmp_path: Path) -> None:
    grey = volume(tmp_path / "grey.npy", np.asarray(pairs[0].targets["target"].array)[:1])
    with pytest.raises(UserError, match=r"dst/a\.png"):
        derived.attach(
            [dataclasses.replace(pairs[0], targets={"target": grey})], config(), tmp_path
        )


# ---------------------------------------------------------------- random patches


def test_the_share_is_reached() -> None:
    """A patch holds the mask where the coin says so, else by the chance that a uniform place has:
    counted over all places.
    """
    mask = np.zeros((90, 110))
    mask[50, 70] = mask[3, 100] = 1
    size, count = 20, 600
    data = sample_of(mask)
    held = [
        mask[y : y + size, x : x + size].any()
        for y in range(90 - size + 1)
        for x in range(110 - size + 1)
    ]
    for share in (0.3, 0.8):
        crop = cropper(size=(size, size), changed=share)
        found = [cut(crop, data, seed)["changed"] for seed in range(count)]
        expected = share + (1 - share) * np.mean(held)
        assert np.mean(found) == pytest.approx(
            expected, abs=4 * math.sqrt(expected * (1 - expected) / count)
        )


@settings(deadline=None, max_examples=25)
@given(
    space=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
def test_every_aimed_patch_holds_the_mask_and_stays_inside(
    space: tuple[int, int], size: tuple[int, int], corner: tuple[float, float], seed: int
) -> None:
    """Even of a single pixel in a corner of a block, next to a smear below the level that is no
    change.
    """
    mask = np.full(space, 0.49)
    mask[tuple(round(c * (n - 1)) for c, n in zip(corner, space, strict=True))] = LEVEL
    data = sample_of(mask)
    crop = cropper(size=size, changed=1.0)
    sample = cut(crop, data, seed)
    assert sample["changed"] == 1
    assert (sample[MASK] >= LEVEL).sum() == 1
    start, _ = crop.randomize(data)
    for s, n, t in zip(start, space, size, strict=True):
        assert (s >= 0 and s + t <= n) or (n < t and s == -((t - n) // 2))


@pytest.mark.parametrize(
    ("pixel", "places"), [((20, 30), 9), ((0, 30), 3), ((63, 0), 1), ((62, 1), 4)]
)
def test_all_places_around_a_pixel_are_equally_likely(pixel: tuple[int, int], places: int) -> None:
    mask = np.zeros((64, 64))
    mask[pixel] = 1
    each = 60
    crop, data = cropper(size=(3, 3), changed=1.0), sample_of(mask)
    found = Counter(first_place(cut(crop, data, seed), 64) for seed in range(each * places))
    assert len(found) == places
    assert max(abs(n - each) for n in found.values()) <= 4 * math.sqrt(each)


def test_blocks_are_equally_likely_however_much_they_hold() -> None:
    mask = np.zeros((64, 64))
    mask[:32, :32] = 1
    mask[63, 63] = 1
    crop, data = cropper(size=(1, 1), changed=1.0), sample_of(mask)
    found = [cut(crop, data, seed)["image"].flat[0] == 64 * 64 - 1 for seed in range(300)]
    assert np.mean(found) == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 300))


def test_clean_cases_are_cut_where_they_were_and_use_up_the_same_numbers() -> None:
    mask = np.zeros((70, 80))
    clean = sample_of(mask)
    mask[40, 50] = 1
    spot = sample_of(mask)
    plain = {k: v for k, v in clean.items() if k != BLOCKS}
    before, crop, aimed = (
        cropper(size=(16, 16)),
        cropper(size=(16, 16), changed=0.5),
        cropper(size=(16, 16), changed=0.5),
    )
    moved = 0
    for seed in range(40):
        old = cut(before, plain, seed)
        new = cut(crop, clean, seed)
        other = cut(aimed, spot, seed)
        np.testing.assert_array_equal(old["image"], new["image"])
        assert old["changed"] == new["changed"] == 0
        assert crop.R.random_sample() == aimed.R.random_sample()
        moved += not np.array_equal(new["image"], other["image"])
        if not np.array_equal(new["image"], other["image"]):
            assert other["changed"] == 1
    assert 8 <= moved <= 32


def test_only_the_patch_and_one_block_are_read() -> None:
    """The map of a photograph of 24 megapixels is 48 MB; a sample touches a block of it and its own
    place.
    """
    mask = np.zeros((400, 500))
    mask[333, 444] = 1
    spy = Spy(mask[None])
    data = {**sample_of(mask), MASK: Held(spy)}
    assert cut(cropper(size=(24, 24), changed=1.0), data, 1)["changed"] == 1
    assert REDUCED**2 < spy.seen.sum() <= REDUCED**2 + 24**2


# ---------------------------------------------------------------- in samples and batches


def test_batches_hold_the_soft_mask_at_full_resolution(pairs: list[CachedCase]) -> None:
    loader = Loader(
        pairs,
        config(patch={"changed": 0.5, "per_case": 2}, augment=["flip", "noise"]),
        0,
        training=True,
    )
    seen = list(loader.epoch(0))
    for batch in seen:
        assert batch[MASK].dtype == torch.float32
        assert batch[MASK].shape == (len(batch["id"]), 1, 48, 48)
        assert 0 <= batch[MASK].min() <= batch[MASK].max() <= 1
        torch.testing.assert_close(
            batch["changed"], (batch[MASK].amax((1, 2, 3)) >= LEVEL).double()
        )
        assert set(batch) == {"image", "target", MASK, "id", "foreground_share", "changed"}
    assert sum(float(b["changed"].sum()) for b in seen) >= 1


def test_without_change_there_is_no_mask(pairs: list[CachedCase]) -> None:
    setting = dataclasses.replace(config(), data=dataclasses.replace(config().data, change=None))
    sample = PatchDataset(
        [dataclasses.replace(c, maps={}) for c in pairs], setting, 0, training=True
    )[0, 0, 0]
    assert MASK not in sample
    assert math.isnan(sample["changed"])


def test_a_cut_of_the_mask_is_the_mask_of_the_pair_there(pairs: list[CachedCase]) -> None:
    """The third case is smaller than the patch: nothing has changed outside it."""
    dataset = PatchDataset(pairs, config(patch={"grid": 0.25}), 0, training=True)
    for case, number in dataset.samples(1):
        stored = pairs[case]
        whole = change.difference_mask(
            stored.image.array, stored.targets["target"].array, Change()
        )[0]
        y, x = grid_patch_starts(whole.shape, (48, 48), 0.25)
        top, left = y[number // len(x)], x[number % len(x)]
        expected = np.pad(whole, 48)[top + 48 : top + 96, left + 48 : left + 96]
        np.testing.assert_allclose(
            dataset[0, 0, case, number][MASK][0].numpy(), expected, atol=5e-4
        )


def test_a_flip_flips_the_mask_and_intensities_leave_it(pairs: list[CachedCase]) -> None:
    flip = [{"name": "flip", "options": {"p": 1.0, "axes": [1]}}]
    loud = [
        {"name": n, "options": {"p": 1.0}}
        for n in ("noise", "brightness", "contrast", "shift", "gamma", "blur", "colour")
    ]
    plain, flipped, noisy = (
        PatchDataset(pairs, config(patch={"changed": 1.0}, augment=augment), 0, training=True)
        for augment in ([], flip, loud)
    )
    for case in range(3):
        before = plain[0, case, case]
        assert before["changed"] == 1
        for key in ("image", "target", MASK):
            torch.testing.assert_close(
                flipped[0, case, case][key], before[key].flip(2), rtol=0, atol=0
            )
        torch.testing.assert_close(noisy[0, case, case][MASK], before[MASK], rtol=0, atol=0)
        assert not torch.equal(noisy[0, case, case]["image"], before["image"])


def test_the_mask_is_moved_like_an_image_and_stays_in_its_range(pairs: list[CachedCase]) -> None:
    """With the mask as image and target, the three stay equal under every geometry, and never leave
    [0, 1].
    """
    twins = [
        dataclasses.replace(
            c,
            image=c.maps[MASK],
            targets={"target": c.maps[MASK]},
            scale=IntensityScale(low=(0.0,), high=(1.0,), to=(0.0, 1.0)),
        )
        for c in pairs
    ]
    names = (
        "flip",
        "rotate90",
        "affine",
        "rotate",
        {"name": "elastic", "options": {"spacing": 16, "magnitude": 4}},
    )
    augment = [{"name": n, "options": {"p": 1.0}} if isinstance(n, str) else n for n in names]
    dataset = PatchDataset(twins, config(patch={"changed": 1.0}, augment=augment), 0, training=True)
    between = 0
    for n in range(9):
        sample = dataset[0, n, n % 3]
        torch.testing.assert_close(sample[MASK], sample["image"], rtol=0, atol=0)
        torch.testing.assert_close(sample[MASK], sample["target"], rtol=0, atol=0)
        assert 0 <= sample[MASK].min() <= sample[MASK].max() <= 1
        between += int(((sample[MASK] > 0.05) & (sample[MASK] < 0.95)).sum())
    assert between > 100


def test_samples_depend_on_their_key_alone_not_on_workers(pairs: list[CachedCase]) -> None:
    def setting(**patch: Any) -> Config:
        return config(patch={"changed": 0.5, **patch}, augment=["flip", "affine"])

    one, other = (PatchDataset(pairs, setting(), 0, training=True) for _ in range(2))
    keys = [(e, n, n % 4) for e in (0, 5) for n in range(6)]
    first, again = [one[k] for k in keys], [other[k] for k in reversed(keys)][::-1]
    for a, b in zip(first, again, strict=True):
        for key in ("image", MASK):
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)
    grid = dataclasses.replace(
        setting(grid=0.5), data=dataclasses.replace(setting(grid=0.5).data, workers=2)
    )
    for a, b in zip(
        Loader(pairs, setting(grid=0.5), 0, True).epoch(3),
        Loader(pairs, grid, 0, True).epoch(3),
        strict=True,
    ):
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=0)
        torch.testing.assert_close(a[MASK], b[MASK], rtol=0, atol=0)


def test_validation_is_aimed_too_and_fixed(pairs: list[CachedCase]) -> None:
    loader = Loader(pairs, config(patch={"changed": 1.0, "grid": 0.5}), 0, training=False)
    first, again = (list(loader.epoch(VALIDATION)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a[MASK], b[MASK], rtol=0, atol=0)
    assert [v for b in first for v in b["changed"].tolist()] == [1, 1, 1, 0]


# ---------------------------------------------------------------- slices of a grid


@settings(deadline=None, max_examples=60)
@example(space=(62, 47), start=(-12, -19), size=(75, 17), seed=0)
@example(space=(62, 47), start=(-70, 3), size=(9, 17), seed=0)
@example(space=(62, 47), start=(62, 47), size=(9, 9), seed=0)
@example(space=(200, 47), start=(3, -100), size=(75, 68), seed=0)
@given(
    space=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    start=st.tuples(st.integers(-60, 130), st.integers(-60, 130)),
    size=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    seed=st.integers(0, 999),
)
def test_whether_a_slice_holds_change_is_exact(
    space: tuple[int, int], start: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((1, *space)) * 0.49
    for _ in range(3):
        mask[0, random.integers(space[0]), random.integers(space[1])] = LEVEL
    box = tuple(slice(max(s, 0), max(s + t, 0)) for s, t in zip(start, size, strict=True))
    spy = Spy(mask)
    assert holds_change(spy, change.blocks(mask), start, size) == (mask[(0, *box)] >= LEVEL).any()  # type: ignore[arg-type]
    assert not np.delete(spy.seen[0], np.arange(space[0])[box[0]], axis=0).any()
    assert spy.seen.sum() <= 3 * REDUCED**2


def keys_of(loader: Loader, epoch: int) -> list[tuple[int, ...]]:
    return [key[2:] for key in loader.batches.keys(epoch)]


def holding(
    pairs: list[CachedCase], ends: Sequence[tuple[int, ...]], overlap: float
) -> set[tuple[int, ...]]:
    """Those of ``ends`` whose slice of the whole mask has a pixel of at least LEVEL."""
    found = set()
    for case, number in ends:
        mask = pairs[case].maps[MASK].array[0]
        y, x = grid_patch_starts(mask.shape, (48, 48), overlap)
        top, left = y[number // len(x)], x[number % len(x)]
        if (mask[max(top, 0) : top + 48, max(left, 0) : left + 48] >= LEVEL).any():
            found.add((case, number))
    return found


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_an_epoch_holds_every_changed_slice_and_as_many_others_as_keep_the_share(
    pairs: list[CachedCase], share: float
) -> None:
    loader = Loader(pairs, config(patch={"grid": 0.25, "changed": share}), 0, training=True)
    every = loader.dataset.samples(1)
    changed = holding(pairs, every, 0.25)
    others = round(len(changed) * (1 - share) / share)
    assert 0 < others + len(changed) < len(every)
    epochs = [keys_of(loader, epoch) for epoch in range(4)]
    for ends in epochs:
        assert len(ends) == len(set(ends)) == len(changed) + others
        assert changed <= set(ends) <= set(every)
        assert len(loader) == -(-len(ends) // 3)
    assert len({frozenset(ends) for ends in epochs}) == (4 if others else 1)
    assert epochs[0] != epochs[1]
    assert (
        keys_of(Loader(pairs, config(patch={"grid": 0.25, "changed": share}), 0, training=True), 2)
        == epochs[2]
    )
    flags = [v for batch in loader.epoch(1) for v in batch["changed"].tolist()]
    assert flags == [end in changed for end in epochs[1]]
    assert sum(flags) == len(changed)


def test_all_others_come_in_time(pairs: list[CachedCase]) -> None:
    loader = Loader(pairs, config(patch={"grid": 0.25, "changed": 0.5}), 0, training=True)
    assert {end for epoch in range(60) for end in keys_of(loader, epoch)} == set(
        loader.dataset.samples(1)
    )


def test_a_small_share_takes_all_slices(pairs: list[CachedCase]) -> None:
    loader = Loader(pairs, config(patch={"grid": 0.25, "changed": 0.01}), 0, training=True)
    assert sorted(keys_of(loader, 0)) == loader.dataset.samples(1)


def test_clean_cases_alone_give_all_slices_in_the_usual_order(pairs: list[CachedCase]) -> None:
    clean = pairs[3:]
    with_share, without = (
        Loader(clean, config(patch={"grid": 0.25, **patch}), 0, training=True)
        for patch in ({"changed": 0.5}, {})
    )
    assert keys_of(with_share, 7) == keys_of(without, 7)
    assert len(keys_of(with_share, 7)) > 4


def test_others_are_drawn_without_disturbing_plain_epochs() -> None:
    samples, others = [(0, n) for n in range(6)], [(1, n) for n in range(50)]
    plain = EpochBatches(samples, 2, (42, 0)).keys(3)
    assert [key[2:] for key in plain] == [
        samples[n] for n in np.random.default_rng(change_seed(3)).permutation(6)
    ]
    keys = EpochBatches(samples, 2, (42, 0), others, 4).keys(3)
    assert [key[1] for key in keys] == list(range(10))
    assert keys != EpochBatches(samples, 2, (42, 1), others, 4).keys(3)


def change_seed(epoch: int) -> int:
    """The seed of an epoch's order as every run so far has used it."""
    return int(np.random.SeedSequence([43, 1, epoch + 1]).generate_state(1)[0])


# ---------------------------------------------------------------- mirrored borders


@settings(deadline=None, max_examples=80)
@given(
    space=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    start=st.tuples(st.integers(-30, 30), st.integers(-30, 30)),
    size=st.tuples(st.integers(1, 25), st.integers(1, 25)),
)
def test_mirrored_is_symmetric_padding_and_reads_what_it_needs(
    space: tuple[int, int], start: tuple[int, int], size: tuple[int, int]
) -> None:
    array = np.arange(2 * math.prod(space)).reshape(2, *space)
    spy = Spy(array)
    found = crop_mirrored(spy, start, size)  # type: ignore[arg-type]
    wide = np.pad(array, ((0, 0), (60, 60), (60, 60)), mode="symmetric")
    expected = wide[
        :, 60 + start[0] : 60 + start[0] + size[0], 60 + start[1] : 60 + start[1] + size[1]
    ]
    np.testing.assert_array_equal(found, expected)
    assert found.flags.writeable
    for axis in (1, 2):
        used = np.argwhere(np.isin(array, expected))[:, axis]
        read = np.argwhere(spy.seen)[:, axis]
        assert (read.min(), read.max()) == (used.min(), used.max())


def test_image_targets_labels_and_maps_are_mirrored() -> None:
    random = np.random.default_rng(0)
    arrays = {
        "image": random.integers(0, 255, (3, 10, 50)).astype(np.uint8),
        "target": random.integers(0, 255, (3, 10, 50)).astype(np.uint8),
        "label": random.integers(0, 3, (1, 10, 50)).astype(np.uint8),
        MASK: random.random((1, 10, 50)).astype(np.float16),
    }
    data = {
        **{name: Held(array) for name, array in arrays.items()},
        "scale": IntensityScale(low=(0.0,), high=(255.0,), to=(-1.0, 1.0)),
    }
    targets = {"target": "image", "label": "labels"}
    crop = RandBalancedCropd(
        targets, Patch(size=(32, 50), foreground=None, border="mirror"), 2, {MASK: 0.0}
    )
    sample = crop(data)
    for name, array in arrays.items():
        wide = np.pad(array.astype(np.float32), ((0, 0), (11, 11), (0, 0)), mode="symmetric")
        expected = wide / 127.5 - 1 if name in ("image", "target") else wide
        np.testing.assert_allclose(sample[name], expected, atol=1e-5)
    assert sample["image"].dtype == sample[MASK].dtype == np.float32
    assert sample["label"].dtype == np.uint8


def test_a_patch_inside_an_image_is_the_same_with_either_border(pairs: list[CachedCase]) -> None:
    zero, mirror = (
        PatchDataset(pairs, config(patch={"border": border}), 0, training=True)
        for border in ("zero", "mirror")
    )
    for n in range(4):
        for key in ("image", "target", MASK):
            torch.testing.assert_close(zero[0, n, 0][key], mirror[0, n, 0][key], rtol=0, atol=0)
    narrow = [dataset[0, 0, 2]["image"] for dataset in (zero, mirror)]
    assert (narrow[0][:, :14] == 0).all()
    torch.testing.assert_close(narrow[1][:, :14], narrow[0][:, 14:28].flip(1), rtol=0, atol=0)
