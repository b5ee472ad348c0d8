"""Patches: balanced, padded, cut without decoding; every sample a function of (seed, fold, epoch,
sample) alone.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import opened
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import files
from pipeline.config import Config, ConfigError, Patch, from_dict
from pipeline.data import cache, cases, loaders, properties
from pipeline.data.augment import AUGMENT, augmentations
from pipeline.data.cache import CachedCase, Volume
from pipeline.data.loaders import VALIDATION, EpochBatches, Key, Loader, PatchDataset
from pipeline.data.normalise import IntensityScale
from pipeline.data.sampling import (
    RandBalancedCropd,
    crop_scaled,
    foreground_share,
    grid_starts,
    seed_of,
)


def config(**data: object) -> Config:
    patch = {"size": [16, 16, 16], "foreground": [0.3, 0.7], "tries": 5, "batch": 2}
    return from_dict(
        {
            "name": "t",
            "data": {
                "layout": "competition",
                "ignore_label": 2,
                "patch": patch,
                "augment": list(AUGMENT)[:5],
                **data,
            },
            "network": "unet",
            "losses": ["dice"],
        }
    )


@pytest.fixture(scope="module")
def stored(surfaces: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    setting = config()
    found = cases.find(setting.data, setting.targets, surfaces).train
    facts = properties.examine(found, setting, None, write=False)
    return cache.build(found, facts, setting, tmp_path_factory.mktemp("store"))


def test_samples_depend_on_their_key_alone(stored: list[CachedCase]) -> None:
    one, other = (PatchDataset(stored, config(), 0, training=True) for _ in range(2))
    keys = [(0, 0, 1), (0, 1, 1), (1, 0, 1), (0, 0, 1)]
    first = [one[k] for k in keys]
    last = [other[k] for k in reversed(keys)][::-1]
    for a, b in zip(first, last, strict=True):
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=0)
        torch.testing.assert_close(a["label"], b["label"], rtol=0, atol=0)
    assert not torch.equal(first[0]["image"], first[1]["image"])
    assert not torch.equal(first[0]["image"], first[2]["image"])
    assert torch.equal(first[0]["image"], first[3]["image"])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(stored: list[CachedCase], workers: int) -> None:
    def batches(count: int) -> list[torch.Tensor]:
        loader = Loader(stored, config(workers=count), 0, training=True)
        return [b["image"] for epoch in (0, 1) for b in loader.epoch(epoch)]

    for a, b in zip(batches(0), batches(workers), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_worker_that_hangs_is_given_up_and_killed(
    stored: list[CachedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch gives up, the worker must be gone, too: a process waits for its workers when it
    ends.
    """
    original = PatchDataset.__getitem__

    def hang(dataset: PatchDataset, key: Key) -> dict[str, Any]:
        if key[1] == 2:
            time.sleep(3600)
        return original(dataset, key)

    monkeypatch.setattr(PatchDataset, "__getitem__", hang)
    monkeypatch.setattr(loaders, "TIMEOUT", 2.0)
    batches = Loader(stored, config(workers=1), 0, training=True).epoch(0)
    assert len(next(batches)["id"]) == 2
    (worker,) = set(multiprocessing.active_children())
    try:
        with pytest.raises(RuntimeError, match="timed out after 2"):
            next(batches)
        assert worker.exitcode == -signal.SIGKILL
    finally:
        worker.kill()


def test_without_workers_nothing_is_timed(stored: list[CachedCase]) -> None:
    assert Loader(stored, config(), 0, training=True).loader.timeout == 0
    assert Loader(stored, config(workers=1), 0, training=True).loader.timeout == loaders.TIMEOUT


def test_types_and_shapes(stored: list[CachedCase]) -> None:
    sample = PatchDataset(stored, config(), 0, training=True)[0, 0, 0]
    assert type(sample["image"]) is torch.Tensor  # not a MetaTensor
    assert sample["image"].dtype == torch.float32
    assert sample["image"].shape == sample["label"].shape == (1, 16, 16, 16)
    assert set(sample["label"].unique().tolist()) <= {0, 1, 2}
    assert 0 <= sample["foreground_share"] <= 1


def test_validation_patches_are_fixed_and_plain(stored: list[CachedCase]) -> None:
    loader = Loader(stored, config(), 0, training=False)
    first, again = ([b["image"] for b in loader.epoch(VALIDATION)] for _ in range(2))
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert sum(len(a) for a in first) == len(stored)


def test_an_epoch_takes_every_case_equally_often() -> None:
    batches = EpochBatches([(case,) for _ in range(3) for case in range(5)], 4, (42, 0))
    seen = []
    for epoch in (0, 1):
        batches.epoch = epoch
        keys = [k for batch in batches for k in batch]
        assert sorted(k[2] for k in keys) == sorted(list(range(5)) * 3)
        assert [k[1] for k in keys] == list(range(15))
        assert keys == batches.keys(epoch)
        seen.append([k[2] for k in keys])
    assert seen[0] != seen[1]
    assert len(batches) == 4
    # The order is part of what a run is: a change of it would make continued runs differ.
    assert (
        seen[0]
        == np.random.default_rng(seed_of(42, 0, 0)).permutation(np.tile(np.arange(5), 3)).tolist()
    )


# --- slices of a grid -----------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(1, 60),
    size=st.integers(1, 20),
    overlap=st.sampled_from([0, 0.1, 0.25, 0.5, 0.9, 0.99]),
)
def test_a_grid_covers_an_axis_and_ends_at_its_border(
    length: int, size: int, overlap: float
) -> None:
    starts = grid_starts(length, size, overlap)
    stride = max(1, round(size * (1 - overlap)))
    if length <= size:
        assert starts == [-((size - length) // 2)]
        return
    assert (starts[0], starts[-1]) == (0, length - size)
    steps = np.diff(starts)
    assert (steps[:-1] == stride).all()
    assert 0 < steps[-1] <= stride
    assert stride <= size  # so nothing lies between two slices


def images_2d(**data: object) -> Config:
    patch = {"size": [8, 8], "foreground": None, "batch": 3, **data.pop("patch", {})}  # type: ignore[dict-item]
    return from_dict(
        {
            "name": "t",
            "task": "image",
            "data": {
                "dims": 2,
                "layout": "folders",
                "folders": {"image": "src", "target": "dst"},
                "normalise": {"name": "range", "options": {"low": 0, "high": None, "to": [-1, 1]}},
                "patch": patch,
                **data,
            },
            "network": "unet",
            "losses": [{"name": "l1", "target": "target"}],
        }
    )


SIZES = {"a": (20, 8), "b": (8, 23), "c": (5, 6)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of three sizes, one smaller than a slice, whose 16 bit values tell their place:
    channels y, x, case; the target is the same.
    """
    root = tmp_path_factory.mktemp("pictures")
    for n, (name, (height, width)) in enumerate(SIZES.items()):
        y, x = np.mgrid[:height, :width]
        for folder in ("src", "dst"):
            files.write(
                root / folder / f"{name}.png",
                np.stack([y + 1, x + 1, np.full_like(y, n + 1)]).astype(np.uint16) * 1000,
            )
    return root


@pytest.fixture(scope="module")
def pairs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    return opened(pictures, images_2d(), tmp_path_factory.mktemp("store"))


def places(batch: dict, n: int) -> tuple[int, int, int]:
    """Case and first row and column of a sample (padding counts as before the first)."""
    values = np.rint((batch["image"][n].double().numpy() + 1) / 2 * 65535 / 1000)
    inside = np.argwhere(values[2] != np.rint(65535 / 2000))[0]  # padding is 0 on [-1, 1]
    y, x = (int(values[axis, inside[0], inside[1]]) - 1 - int(inside[axis]) for axis in (0, 1))
    return int(values[2, inside[0], inside[1]]) - 1, y, x


GRID = {(0, 0, 0), (0, 6, 0), (0, 12, 0), (1, 0, 0), (1, 0, 6), (1, 0, 12), (1, 0, 15), (2, -1, -1)}


def test_an_epoch_of_a_grid_is_every_slice_of_every_image_once(pairs: list[CachedCase]) -> None:
    setting = images_2d(patch={"grid": 0.25})
    loader = Loader(pairs, setting, 0, training=True)
    orders = []
    for epoch in (0, 1):
        found = [places(b, n) for b in loader.epoch(epoch) for n in range(len(b["id"]))]
        assert set(found) == GRID
        assert len(found) == len(GRID)
        orders.append(found)
    assert orders[0] != orders[1]
    assert len(loader) == -(-len(GRID) // 3)
    other = Loader(pairs, setting, 1, training=True)
    assert [places(b, n) for b in other.epoch(0) for n in range(len(b["id"]))] != orders[0]


def test_slices_smaller_than_the_grid_are_padded_not_skipped(pairs: list[CachedCase]) -> None:
    dataset = PatchDataset(pairs, images_2d(patch={"grid": 0.0}), 0, training=True)
    sample = dataset[0, 0, 2, 0]
    assert sample["image"].shape == sample["target"].shape == (3, 8, 8)
    inside = np.zeros((8, 8), bool)
    inside[1:6, 1:7] = True
    assert ((sample["image"][2] != 0).numpy() == inside).all()


def test_validation_keeps_random_fixed_patches_with_a_grid(pairs: list[CachedCase]) -> None:
    with_grid, without = (
        Loader(pairs, images_2d(patch={"grid": grid}), 0, training=False) for grid in (0.25, None)
    )
    for a, b in zip(with_grid.epoch(VALIDATION), without.epoch(VALIDATION), strict=True):
        assert a["id"] == b["id"]
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=0)
    assert len(with_grid) == 1


def test_workers_change_no_slice(pairs: list[CachedCase]) -> None:
    def batches(count: int) -> list[torch.Tensor]:
        setting = images_2d(patch={"grid": 0.5}, workers=count, augment=["flip", "affine"])
        return [
            b[k]
            for b in Loader(pairs, setting, 0, training=True).epoch(3)
            for k in ("image", "target")
        ]

    for a, b in zip(batches(0), batches(2), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_random_patch_after_a_slice_is_random_again(pairs: list[CachedCase]) -> None:
    dataset = PatchDataset(pairs, images_2d(patch={"grid": 0.25}), 0, training=True)
    before = dataset[0, 7, 0]["image"]
    assert dataset[0, 7, 0, 2]["image"].shape == before.shape
    torch.testing.assert_close(dataset[0, 7, 0]["image"], before, rtol=0, atol=0)


def test_one_random_crop_of_each_image_moves_with_the_epoch(pairs: list[CachedCase]) -> None:
    loader = Loader(pairs, images_2d(patch={"per_case": 1}), 0, training=True)
    epochs = [
        sorted(places(b, n) for b in loader.epoch(epoch) for n in range(len(b["id"])))
        for epoch in range(6)
    ]
    assert all([case for case, *_ in found] == [0, 1, 2] for found in epochs)
    assert len({found[0] for found in epochs}) > 2
    assert len({found[1] for found in epochs}) > 2


def test_each_file_is_decoded_for_the_store_and_never_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = files.read, []

    def counting(path: Path, *arguments: Any, **options: Any) -> Any:
        seen.append(Path(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(files, "read", counting)
    setting = images_2d(patch={"grid": 0.75})
    stored = opened(pictures, setting, tmp_path)
    times = {seen.count(path) for path in seen}
    assert len(set(seen)) == 2 * len(SIZES)
    assert times <= {1, 2}  # once to be judged, once to be kept
    seen.clear()
    loader = Loader(stored, setting, 0, training=True)
    assert sum(len(b["id"]) for epoch in (0, 1) for b in loader.epoch(epoch)) > 20
    assert not seen


def test_the_first_samples_are_those_of_epoch_0_and_disturb_no_other(
    pairs: list[CachedCase],
) -> None:
    setting = images_2d(patch={"grid": 0.25}, augment=["flip", "rotate90"])
    loader = Loader(pairs, setting, 0, training=True)
    start = [b["image"] for b in loader.epoch(0)]
    plain = [b["image"] for b in loader.epoch(2)]
    disturbed = []
    for batch in loader.epoch(2):
        first = torch.stack([s["image"] for s in loader.first(4)])
        disturbed.append(batch["image"])
        torch.testing.assert_close(first, torch.cat(start)[:4], rtol=0, atol=0)
    for a, b in zip(disturbed, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert len(loader.first(1000)) == len(GRID)


GEOMETRY = (
    {"name": "flip", "options": {"axes": "each"}},
    "rotate90",
    "affine",
    {"name": "elastic", "options": {"spacing": 8, "magnitude": 2}},
)


@pytest.mark.parametrize(
    "augment",
    [*([g] for g in GEOMETRY), list(GEOMETRY)],
    ids=["flip", "rotate90", "affine", "elastic", "all"],
)
@pytest.mark.parametrize("grid", [None, 0.5])
def test_image_and_target_get_one_geometry(
    pairs: list[CachedCase], augment: list, grid: float | None
) -> None:
    """Coordinates in both roles stay equal to the bit, for they are moved by the same field and
    interpolated alike.
    """
    setting = images_2d(patch={"grid": grid}, augment=augment)
    dataset, plain = (
        PatchDataset(pairs, s, 0, training=True) for s in (setting, images_2d(patch={"grid": grid}))
    )
    end = () if grid is None else (1,)
    moved = 0
    for n in range(6):
        sample = dataset[0, n, 0, *end]
        torch.testing.assert_close(sample["image"], sample["target"], rtol=0, atol=0)
        moved += not torch.equal(sample["image"], plain[0, n, 0, *end]["image"])
    assert moved > 0


def volumes(folder: Path, label: np.ndarray) -> dict:
    out = {}
    for name, array in (("image", label.astype(np.float32) + 1), ("label", label)):
        path = folder / f"{name}.npy"
        np.save(path, array[None])
        out[name] = Volume(path=path, shape=(1, *label.shape), dtype=str(array.dtype))
    return out


def cropper(**patch: object) -> RandBalancedCropd:
    return RandBalancedCropd({"label": "labels"}, Patch(**patch), 2)  # type: ignore[arg-type]


def test_balanced_sampling_finds_the_rare_half(tmp_path: Path) -> None:
    """Foreground only in one corner: uniform positions rarely see it, ten tries mostly do, and the
    share is that of the patch.
    """
    label = np.zeros((40, 40, 40), np.uint8)
    label[:14, :, :] = 1
    data = {**volumes(tmp_path, label), "scale": IntensityScale(low=(0.0,), high=(2.0,))}
    hits = {}
    for tries in (1, 10):
        crop = cropper(size=(10, 10, 10), foreground=(0.3, 0.7), tries=tries)
        shares = []
        for n in range(60):
            crop.set_random_state(n)
            sample = crop(data)
            share = sample["foreground_share"]
            assert share == pytest.approx(float((sample["label"] == 1).mean()))
            shares.append(0.3 <= share <= 0.7)
        hits[tries] = np.mean(shares)
    assert hits[1] < 0.35
    assert hits[10] > 0.65


def test_unreachable_share_takes_the_nearest(tmp_path: Path) -> None:
    """A sheet of one voxel never fills 30 %: the best of the tries is the one that holds most of
    it.
    """
    label = np.zeros((40, 16, 16), np.uint8)
    label[20] = 1
    crop = cropper(size=(8, 16, 16), foreground=(0.3, 0.7), tries=50)
    crop.set_random_state(0)
    assert crop({**volumes(tmp_path, label), "scale": IntensityScale(low=(0.0,), high=(2.0,))})[
        "foreground_share"
    ] == pytest.approx(1 / 8)


@pytest.mark.parametrize("fill", [0, 1, 2])
def test_uniform_labels_do_not_hang(tmp_path: Path, fill: int) -> None:
    label = np.full((20, 20, 20), fill, np.uint8)
    crop = cropper(size=(8, 8, 8), foreground=(0.3, 0.7), tries=4)
    share = crop({**volumes(tmp_path, label), "scale": IntensityScale(low=(0.0,), high=(2.0,))})[
        "foreground_share"
    ]
    assert np.isnan(share) if fill == 2 else share == fill


def test_small_volumes_are_padded_with_zeros_and_ignored(tmp_path: Path) -> None:
    label = np.ones((4, 10, 30), np.uint8)
    crop = cropper(size=(8, 10, 16), foreground=None)
    sample = crop({**volumes(tmp_path, label), "scale": IntensityScale(low=(0.0,), high=(2.0,))})
    assert sample["image"].shape == sample["label"].shape == (1, 8, 10, 16)
    np.testing.assert_array_equal(sample["label"][0, :, 0, 0], [2, 2, 1, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(sample["image"][0, :, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0])


@settings(max_examples=50, deadline=None)
@given(start=st.integers(-6, 12), size=st.integers(1, 9))
def test_crop_scaled_is_scale_then_crop(start: int, size: int) -> None:
    array = np.arange(1, 11, dtype=np.uint8)[None]
    scale = IntensityScale(low=(0.0,), high=(10.0,))
    whole = np.pad(scale.apply(array), ((0, 0), (20, 30)))
    np.testing.assert_allclose(
        crop_scaled(array, [start], [size], scale), whole[:, 20 + start : 20 + start + size]
    )


@pytest.mark.parametrize(("label", "share"), [([0, 1, 2, 2], 0.5), ([1, 1, 1], 1.0), ([0, 0], 0.0)])
def test_foreground_share_counts_labelled_voxels(label: list[int], share: float) -> None:
    assert foreground_share(np.array(label), 2) == share


def test_seeds_differ_in_every_word() -> None:
    words = [
        (42, 0, 0, 0),
        (43, 0, 0, 0),
        (42, 1, 0, 0),
        (42, 0, 1, 0),
        (42, 0, 0, 1),
        (42, 0, -1, 0),
    ]
    assert len({seed_of(*w) for w in words}) == len(words)


def test_handles_travel_light(stored: list[CachedCase]) -> None:
    """What CacheDataset copies and what workers receive is a path, not a volume."""
    volume = stored[0].image
    assert copy.deepcopy(volume) is volume
    assert len(pickle.dumps(stored[0])) < 10_000


def test_augmentation_keeps_image_and_label_together(stored: list[CachedCase]) -> None:
    """Geometry hits both alike: with the label as image, the two stay equal under flips and
    rotations.
    """
    setting = config(augment=[{"name": "flip", "options": {"axes": "each"}}, "rotate90"])
    case = stored[0]
    twin = CachedCase(
        case=case.case,
        image=case.targets["label"],
        targets=case.targets,
        scale=IntensityScale(low=(0.0,), high=(2.0,)),
        properties=case.properties,
    )
    dataset = PatchDataset([twin], setting, 0, training=True)
    plain = PatchDataset([twin], config(augment=[]), 0, training=True)
    moved = 0
    for n in range(8):
        sample = dataset[0, n, 0]
        torch.testing.assert_close(sample["image"] * 2, sample["label"].float())
        moved += not torch.equal(sample["label"], plain[0, n, 0]["label"])
    assert moved > 0


def test_every_augmentation_runs_and_most_change_the_image(stored: list[CachedCase]) -> None:
    # RGB and 2D only: test_augment.py; before a patch is read: test_spatial.py
    for name in set(AUGMENT) - {"colour", "clahe", "spatial"}:
        dataset = PatchDataset(
            stored, config(augment=[{"name": name, "options": {"p": 1.0}}]), 0, training=True
        )
        plain = PatchDataset(stored, config(augment=[]), 0, training=True)
        changed = [
            not torch.equal(dataset[0, n, 0]["image"], plain[0, n, 0]["image"]) for n in range(4)
        ]
        assert any(changed), name


def test_noise_has_the_stated_deviation(stored: list[CachedCase]) -> None:
    noisy = PatchDataset(
        stored,
        config(augment=[{"name": "noise", "options": {"p": 1.0, "std": 0.01}}]),
        0,
        training=True,
    )
    plain = PatchDataset(stored, config(augment=[]), 0, training=True)
    difference = noisy[0, 0, 0]["image"] - plain[0, 0, 0]["image"]
    assert float(difference.std()) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("augment", "word"),
    [
        ("flop", "Did you mean 'flip'"),
        ({"name": "noise", "options": {"sd": 1}}, "no option 'sd'"),
        ({"name": "rotate90", "options": {"planes": []}}, "no plane"),
        ({"name": "flip", "options": {"axes": "all"}}, "random, each"),
    ],
)
def test_bad_augmentations_are_refused(augment: object, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        augmentations(config(augment=[augment]))
