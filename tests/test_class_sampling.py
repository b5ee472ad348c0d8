"""Patches drawn by class as in nnU-Net: the index of voxels, where patches are cut, which samples
of a batch are centred on foreground, and epochs of a fixed number of steps.
"""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from conftest import competition_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import limits, train
from pipeline.config import Config, ConfigError, Data, Patch, from_dict
from pipeline.data import cache, cases, derived, locations, properties
from pipeline.data.cache import CachedCase, Volume
from pipeline.data.loaders import VALIDATION, EpochBatches, Loader, PatchDataset
from pipeline.data.locations import LOCATIONS, class_locations, draw_voxel, is_forced, ranges
from pipeline.data.normalise import IntensityScale
from pipeline.data.sampling import RandBalancedCropd
from pipeline.data.targets import label_dtype

SCALE = IntensityScale(low=(0.0,), high=(2.0,))


def config(patch: dict[str, Any] | None = None, **data: object) -> Config:
    return from_dict(
        {
            "name": "t",
            "data": {
                "layout": "competition",
                "ignore_label": 2,
                "patch": {"size": [8, 12, 16], "batch": 2, "oversample": 0.33, **(patch or {})},
                **data,
            },
            "network": "unet",
            "losses": ["dice"],
            "train": {"validate": {"per_case": 3}},
        }
    )


def attached(root: Path, folder: Path, setting: Config) -> list[CachedCase]:
    found = cases.find(setting.data, setting.targets, root).train
    stored = cache.build(found, properties.examine(found, setting, folder), setting, folder)
    return derived.attach(stored, setting, folder)


@pytest.fixture(scope="module")
def stored(surfaces: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    return attached(surfaces, tmp_path_factory.mktemp("store"), config())


# --- the index ------------------------------------------------------------------------------------

DATA = [
    Data(classes=2),
    Data(classes=4),
    Data(classes=4, ignore_label=255),
    Data(classes=3, ignore_label=-1),
    Data(classes=3, ignore_label=3),
    Data(classes=3, regions={"all": (1, 2), "two": 2}, regions_class_order=(1, 2)),
    Data(
        classes=4,
        ignore_label=9,
        regions={"a": (1, 2, 3), "b": (2, 3), "c": 3},
        regions_class_order=(1, 2, 3),
    ),
]


def meant(label: np.ndarray, data: Data) -> dict[int, np.ndarray]:
    """The mask of each key, by the manual of ``data.patch.oversample``."""
    if data.regions is not None:
        found = {k: np.isin(label, v) for k, v in enumerate(data.regions.values(), 1)}
    else:
        found = {k: label == k for k in range(1, data.classes)}
    if data.ignore_label is not None:
        found[0] = label != data.ignore_label
    return found


@settings(max_examples=80, deadline=None)
@given(
    space=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    seed=st.integers(0, 999),
    data=st.sampled_from(DATA),
    slab=st.integers(1, 400),
    least=st.sampled_from([0, 20, 10_000]),
)
def test_the_index_holds_so_many_voxels_of_each_class(
    space: list[int], seed: int, data: Data, slab: int, least: int
) -> None:
    rng = np.random.default_rng(seed)
    values = [*range(data.classes), *([] if data.ignore_label is None else [data.ignore_label])]
    label = rng.choice(values[: rng.integers(1, len(values) + 1)], space).astype(label_dtype(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locations, "LEAST", least)
        one = class_locations(label[None], data)
        patch.setattr(locations, "SLAB", slab)
        index = class_locations(label[None], data)
    np.testing.assert_array_equal(one, index)  # whatever a slab is
    assert index.dtype == np.int32
    assert index.shape[1] == 1 + len(space)
    masks = meant(label, data)
    assert set(ranges(index)) == {k for k, m in masks.items() if m.any()}
    np.testing.assert_array_equal(index, index[np.lexsort(index.T[::-1])])  # sorted, by key first
    assert len(np.unique(index, axis=0)) == len(index)
    for key, (first, stop) in ranges(index).items():
        count = int(masks[key].sum())
        assert stop - first == min(count, max(least, math.ceil(count * 0.01)))
        assert (index[first:stop, 0] == key).all()
        assert masks[key][tuple(index[first:stop, 1:].T)].all()


def test_a_type_without_room_for_one_more_number_is_no_hindrance() -> None:
    """128 classes and -1 just fit into int8."""
    data = Data(classes=128, ignore_label=-1)
    label = np.array([[[0, -1, 127]]]).astype(label_dtype(data))
    assert label.dtype == np.int8
    assert class_locations(label, data).tolist() == [[0, 0, 0], [0, 0, 2], [127, 0, 2]]


def test_kept_voxels_lie_anywhere_in_their_class() -> None:
    """The ranks of 1 % of 3 million voxels, and of 10,000 of 400,000, are uniform; those of two
    classes are not the same.
    """
    label = np.ones((150, 160, 160), np.uint8)
    label[:, :, :20] = 2
    index = class_locations(label[None], Data(classes=3))
    counts = {1: 150 * 160 * 140, 2: 150 * 160 * 20}
    shares = {}
    for key, (first, stop) in ranges(index).items():
        assert stop - first == max(10_000, math.ceil(counts[key] / 100))
        order = np.cumsum(label == key) - 1
        rank = order[np.ravel_multi_index(tuple(index[first:stop, 1:].T), label.shape)]
        shares[key] = rank / counts[key]
        assert scipy.stats.kstest(shares[key], scipy.stats.uniform.cdf).pvalue > 0.01
    assert not np.allclose(shares[1][:50], shares[2][:50], atol=1e-3)
    np.testing.assert_array_equal(index, class_locations(label[None], Data(classes=3)))


def test_memory_grows_with_a_slab_and_not_with_the_label(tmp_path: Path) -> None:
    peaks = []
    for rows in (64, 512):
        path = tmp_path / f"{rows}.npy"
        label = np.lib.format.open_memmap(path, "w+", np.uint8, (1, rows, 256, 256))
        label[:, ::3] = 1
        label.flush()
        del label
        tracemalloc.start()
        class_locations(np.load(path, mmap_mode="r"), Data(classes=2, ignore_label=255))
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 40  # 1 % of 33 million voxels, and 8 times as many in the label
    assert peaks[1] < 160  # of 256 MiB that np.argwhere of a third of them takes


def test_the_index_is_made_once_and_again_where_it_must(tmp_path: Path) -> None:
    root, folder = competition_folder(tmp_path / "data", cases=2), tmp_path / "store"
    first = attached(root, folder, config())
    label = first[0].targets["label"].array
    np.testing.assert_array_equal(
        first[0].maps[LOCATIONS].array, class_locations(label, config().data)
    )
    stamps = {p.name: p.stat().st_mtime_ns for p in (folder / "maps").iterdir()}
    names = [f"{i}.label.locations.{kind}" for i in (100, 101) for kind in ("json", "npy")]
    assert sorted(stamps) == names
    assert attached(root, folder, config()) == first
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "maps").iterdir()} == stamps
    path = folder / "maps" / "100.label.locations.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\x07")
    assert attached(root, folder, config()) == first
    assert path.read_bytes() == whole
    other = attached(root, folder, config(ignore_label=None, classes=3))
    assert set(ranges(other[0].maps[LOCATIONS].array)) == {1, 2}


def test_without_oversample_there_is_no_index(tmp_path: Path) -> None:
    root = competition_folder(tmp_path / "data", cases=1)
    setting = config({"oversample": None})
    case = attached(root, tmp_path / "store", setting)[0]
    assert case.maps == {}
    assert not (tmp_path / "store" / "maps").exists()
    with pytest.raises(KeyError, match=r"label:locations.*derived\.attach"):
        PatchDataset([case], config(), 0, training=True)


def test_an_index_is_of_the_arrays_in_model_space(tmp_path: Path) -> None:
    root, folder = competition_folder(tmp_path / "data", cases=1), tmp_path / "store"
    case = attached(root, folder, config(axes=[2, 0, 1]))[0]
    assert case.maps[LOCATIONS].path.parent.name.startswith("space_")
    label, index = case.targets["label"].array[0], case.maps[LOCATIONS].array
    first, stop = ranges(index)[1]
    assert (label[tuple(index[first:stop, 1:].T)] == 1).all()
    assert label.shape == (24, 20, 24)


# --- drawing --------------------------------------------------------------------------------------


def test_classes_are_drawn_alike_and_then_their_voxels() -> None:
    label = np.zeros((1, 4, 30, 30), np.uint8)
    label[0, 0, 0, :3], label[0, 1:] = 3, 1  # 3 voxels and 2700; class 2 is missing
    index = class_locations(label, Data(classes=4))
    rng = np.random.RandomState(0)
    found = [draw_voxel(index, True, rng.random_sample(2)) for _ in range(6000)]
    keys = Counter(f[0] for f in found if f)
    assert set(keys) == {1, 3}
    assert scipy.stats.binomtest(keys[3], 6000, 0.5).pvalue > 0.01
    rare = Counter(f[1] for f in found if f and f[0] == 3)
    assert scipy.stats.chisquare(list(rare.values())).pvalue > 0.01
    assert set(rare) == {(0, 0, n) for n in range(3)}
    assert all(label[(0, *f[1])] == f[0] for f in found if f)
    often = np.array([f[1][0] for f in found if f and f[0] == 1])
    assert scipy.stats.chisquare(np.bincount(often)[1:]).pvalue > 0.01


@pytest.mark.parametrize(
    ("values", "ignore", "forced", "key"),
    [
        ([0, 1], None, True, 1),
        ([0, 1], None, False, None),
        ([0, 0], None, True, None),
        ([0, 1, 9], 9, True, 1),
        ([0, 1, 9], 9, False, 0),
        ([0, 9, 9], 9, True, 0),
        ([9, 9, 9], 9, True, None),
        ([9, 9, 9], 9, False, None),
    ],
)
def test_without_foreground_a_labelled_voxel_else_any(
    values: list[int], ignore: int | None, forced: bool, key: int | None
) -> None:
    index = class_locations(np.array([values], np.uint8), Data(classes=2, ignore_label=ignore))
    found = draw_voxel(index, forced, (0.999, 0.5))
    assert (found and found[0]) == key


@pytest.mark.parametrize(
    ("wide", "share", "count"),
    [(2, 0.33, 1), (9, 0.33, 3), (4, 0.33, 1), (1, 0.33, 0), (1, 0.6, 1), (5, 1, 5), (5, 0, 0)],
)
def test_the_last_samples_of_a_batch_are_forced(wide: int, share: float, count: int) -> None:
    flags = [is_forced(n, wide, share) for n in range(3 * wide)]
    assert flags == ([False] * (wide - count) + [True] * count) * 3


def sample_of(folder: Path, label: np.ndarray, data: Data) -> dict[str, Any]:
    """An image whose values tell where they are, with label and index."""
    out: dict[str, Any] = {"scale": IntensityScale(low=(0.0,), high=(1.0,))}
    places = np.arange(label.size, dtype=np.float32).reshape(label.shape) + 1
    for name, array in (
        ("image", places[None]),
        ("label", label[None]),
        (LOCATIONS, class_locations(label[None], data)),
    ):
        path = folder / f"{name.replace(':', '.')}.npy"
        np.save(path, array)
        out[name] = Volume(path=path, shape=array.shape, dtype=str(array.dtype))
    return out


def cropper(size: tuple[int, ...], ignore: int | None, **patch: Any) -> RandBalancedCropd:
    patch = {"size": size, "oversample": 0.33, **patch}
    return RandBalancedCropd({"label": "labels"}, Patch(**patch), ignore)


@pytest.mark.parametrize("size", [(4, 6, 10), (7, 5, 30), (20, 20, 20)])
@pytest.mark.parametrize("ignore", [None, 9])
def test_patches_lie_where_nnunet_puts_them(
    tmp_path: Path, size: tuple[int, ...], ignore: int | None
) -> None:
    """Centred on their voxel, begun no earlier than the volume (or its half padding), and beyond
    its end where that falls so.
    """
    rng = np.random.default_rng(3)
    label = np.full((12, 16, 20), 0 if ignore is None else ignore, np.uint8)
    label[2:11, 3:15, 5:] = 0
    label[rng.random(label.shape) < 0.02] = 1
    data = sample_of(tmp_path, label, Data(classes=2, ignore_label=ignore))
    crop = cropper(size, ignore)
    over = 0
    for seed in range(150):
        crop.forced = seed % 2 == 0
        crop.set_random_state(seed)
        draws = np.random.RandomState(seed).random_sample(5)
        drawn = draw_voxel(data[LOCATIONS].array, crop.forced, draws[:2].tolist())
        start, share = crop.randomize(data)
        for axis, (n, t) in enumerate(zip(label.shape, size, strict=True)):
            missing = max(t - n, 0)
            least, most = -(missing // 2), n + missing // 2 + missing % 2 - t
            if drawn is None:
                assert least <= start[axis] <= most
            else:
                assert start[axis] == max(least, drawn[1][axis] - t // 2)
                over += start[axis] > most
        assert (drawn is None) == (ignore is None and not crop.forced)
        crop.set_random_state(seed)
        out = crop(data)
        assert out["foreground_share"] == pytest.approx(share, nan_ok=True)
        assert out["image"].shape == out["label"].shape == (1, *size)
        assert LOCATIONS not in out
        box = [slice(max(s, 0), s + t) for s, t in zip(start, size, strict=True)]
        where = [slice(b.start - s, None) for b, s in zip(box, start, strict=True)]
        inner = label[tuple(box)]
        cut = tuple(slice(w.start, w.start + n) for w, n in zip(where, inner.shape, strict=True))
        np.testing.assert_array_equal(out["label"][(0, *cut)], inner)
        outside = np.ones(size, bool)
        outside[cut] = False
        assert (out["label"][0][outside] == (ignore or 0)).all()
        assert (out["image"][0][outside] == 0).all()
        if crop.forced:
            assert (out["label"] == 1).any()
    assert over > 0


def test_free_patches_have_every_position_alike(tmp_path: Path) -> None:
    label = np.zeros((9, 12), np.uint8)
    label[0, 0] = 1
    data = sample_of(tmp_path, label, Data(classes=2))
    crop = cropper((6, 9), None)
    crop.set_random_state(0)
    starts = Counter(tuple(crop.randomize(data)[0]) for _ in range(1500))
    assert set(starts) == {(y, x) for y in range(4) for x in range(4)}
    assert scipy.stats.chisquare(list(starts.values())).pvalue > 0.01


def test_a_patch_beyond_the_end_may_be_mirrored(tmp_path: Path) -> None:
    label = np.zeros((8, 8), np.uint8)
    label[7, 7] = 1
    data = sample_of(tmp_path, label, Data(classes=2))
    crop = cropper((6, 6), None, border="mirror")
    crop.forced = True
    out = crop(data)
    np.testing.assert_array_equal(
        out["label"][0], np.pad(label, ((0, 2), (0, 2)), mode="symmetric")[4:, 4:]
    )
    assert (out["image"] > 0).all()


# --- in the loader --------------------------------------------------------------------------------


def drawn(batches: Any) -> list[tuple[str, bytes]]:
    return [
        (i, image.numpy().tobytes())
        for batch in batches
        for i, image in zip(batch["id"], batch["image"], strict=True)
    ]


def test_two_ranks_see_what_one_sees(stored: list[CachedCase]) -> None:
    """Which samples are forced depends on the whole batch, and their patches on their keys."""
    augment = [{"name": "spatial"}, "flip"]
    one = Loader(stored, config({"batch": 2}, augment=augment), 0, True)
    two = [
        Loader(stored, config({"batch": 1}, augment=augment), 0, True, ranks=(rank, 2))
        for rank in range(2)
    ]
    parts = [drawn(rank.epoch(3)) for rank in two]
    assert [s for pair in zip(*parts, strict=True) for s in pair] == drawn(one.epoch(3))


def test_forced_samples_hold_foreground(stored: list[CachedCase]) -> None:
    loader = Loader(stored, config({"batch": 3, "oversample": 0.6, "per_case": 4}), 0, True)
    flags = [(b["label"] == 1).flatten(1).any(1).tolist() for b in loader.epoch(0)]
    assert all(second and third for _, second, third in flags)
    crops = loader.dataset.crop
    for position, forced in enumerate([False, True, True]):
        loader.dataset[0, position, 0]
        assert crops.forced == forced


@pytest.mark.parametrize("workers", [2])
def test_workers_change_nothing(stored: list[CachedCase], workers: int) -> None:
    augment = [{"name": "spatial", "options": {"p_rotation": 0.5}}]
    found = [
        drawn(Loader(stored, config({"steps": 4}, augment=augment, workers=w), 0, True).epoch(1))
        for w in (0, workers)
    ]
    assert found[0] == found[1]


def test_validation_patches_are_drawn_by_the_same_rule(stored: list[CachedCase]) -> None:
    loader = Loader(stored, config({"oversample": 0.5}), 0, training=False)
    first, again = (drawn(loader.epoch(VALIDATION)) for _ in range(2))
    assert first == again
    assert len(first) == 3 * len(stored)
    for batch in loader.epoch(VALIDATION):
        assert (batch["label"][1] == 1).any()
    for rank in range(2):
        part = Loader(stored, config({"oversample": 0.5}), 0, training=False, ranks=(rank, 2))
        assert drawn(part.epoch(VALIDATION)) == [
            s for n in range(rank, 9, 2) for s in first[2 * n : 2 * n + 2]
        ]


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "ranks"), [(2, 1), (1, 2), (2, 3)])
def test_an_epoch_has_so_many_batches(batch: int, ranks: int) -> None:
    ends, steps = [(n,) for n in range(5)], 7
    parts = []
    for rank in range(ranks):
        part = EpochBatches(ends, batch, (1, 0), draws=steps * batch * ranks)
        part.epoch, part.rank, part.size = 4, rank, ranks
        parts.append(part)
        assert len(part) == len(list(part)) == steps
        assert all(part.share(step) == 1 for step in range(steps))
        assert all(len(keys) == batch for keys in part)
    alone = EpochBatches(ends, batch * ranks, (1, 0), draws=steps * batch * ranks)
    alone.epoch = 4
    assert [list(chain(*keys)) for keys in zip(*parts, strict=True)] == list(alone)
    whole = parts[-1]
    whole.rank, whole.size = 0, 1
    assert list(chain(*whole)) == whole.keys(4)
    whole.first = 3
    rest = whole.keys(4)[3 * batch :]
    assert list(whole) == [rest[n : n + batch] for n in range(0, len(rest), batch)]


def test_cases_of_steps_are_uniform_with_replacement() -> None:
    batches = EpochBatches([(n,) for n in range(8)], 2, (1, 0), draws=4000)
    keys = batches.keys(0)
    assert [k[:2] for k in keys] == [(0, n) for n in range(4000)]
    assert scipy.stats.chisquare(np.bincount([k[2] for k in keys])).pvalue > 0.01
    pairs = np.bincount([8 * a[2] + b[2] for a, b in zip(keys[::2], keys[1::2], strict=True)])
    assert scipy.stats.chisquare(pairs).pvalue > 0.01  # twice in a row, too
    ends = [k[2] for k in keys]
    assert ends != [k[2] for k in batches.keys(1)]
    assert ends != [k[2] for k in EpochBatches(batches.samples, 2, (1, 1), draws=4000).keys(0)]
    assert keys == batches.keys(0)


def test_an_epoch_of_steps_goes_on_where_it_stopped(stored: list[CachedCase]) -> None:
    loader = Loader(stored, config({"steps": 5, "per_case": 9}), 0, True)
    assert len(loader) == 5
    whole = drawn(loader.epoch(2))
    assert len(whole) == 10
    assert drawn(loader.epoch(2, 3)) == whole[6:]
    assert drawn(loader.epoch(2, whole=True)) == whole
    validation = Loader(stored, config({"steps": 5}), 0, training=False)
    assert len(validation) == -(-3 * len(stored) // 2)


# --- whole runs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_stopped_within_an_epoch_ends_the_same(
    tiny: Path, surfaces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config", str(tiny), "--data-dir", str(surfaces), "--fold", "0", "--device", "cpu"]
    words += ["--set", "train.epochs=2", "train.average=null", f"data.store={tmp_path / 'store'}"]
    words += ["data.patch.oversample=0.5", "data.patch.steps=4", "data.augment=[spatial, flip]"]
    words += ["train.save_steps=1"]
    real, seen = PatchDataset.__getitem__, []

    def stumble(dataset: PatchDataset, key: Any) -> dict[str, Any]:
        seen.append(key)
        if key[:2] == (1, 4) and len(seen) < 50:
            seen.extend([key] * 50)
            raise RuntimeError("power cut")
        return real(dataset, key)

    monkeypatch.setattr(PatchDataset, "__getitem__", stumble)
    assert train.main([*words, "--out", str(tmp_path / "rough")]) == 1
    before = len(seen)
    assert train.main([*words, "--out", str(tmp_path / "rough")]) == 0
    again = [key for key in seen[before:] if key[0] != VALIDATION]
    assert [key[:2] for key in again if key[1] > 3] == [(1, n) for n in range(4, 8)]
    assert train.main([*words, "--out", str(tmp_path / "calm")]) == 0
    models = [
        (tmp_path / name / "fold_0" / "best_model.safetensors").read_bytes()
        for name in ("rough", "calm")
    ]
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("patch", "more", "message"),
    [
        ({"oversample": 1.5}, {}, "oversample is 1.5"),
        ({"oversample": 0.5, "grid": 0.25}, {}, "oversample draws patches at random"),
        ({"steps": 5, "grid": 0.25}, {}, "steps draws patches at random"),
        ({"steps": 0}, {}, "steps is 0"),
        (
            {"oversample": 0.5},
            {"task": "image", "losses": ["l1"]},
            "no target holds labels",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    patch: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    data = {"patch": {"size": [8, 8, 8], **patch}}
    with pytest.raises(ConfigError, match=message):
        from_dict({"name": "t", "data": data, "network": "unet", "losses": ["dice"], **more})


@pytest.mark.parametrize(("batch", "share", "warned"), [(1, 0.33, True), (2, 0.33, False)])
def test_a_share_of_less_than_one_sample_is_told(batch: int, share: float, warned: bool) -> None:
    found = list(limits.problems(config({"batch": batch, "oversample": share})))
    assert [(p.severity, p.keys) for p in found] == [
        ("warning", ("data.patch.oversample",))
    ] * warned


def test_the_old_draws_are_untouched(stored: list[CachedCase]) -> None:
    """Without the new keys a loader never sees the index."""
    setting = config({"oversample": None, "foreground": None})
    bare = Loader(stored, setting, 0, True)
    assert LOCATIONS not in bare.dataset.cache[0]
    torch.testing.assert_close(
        bare.dataset[0, 0, 0]["image"], Loader(stored, setting, 0, True).dataset[0, 0, 0]["image"]
    )
