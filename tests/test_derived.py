"""Maps made from labels: right on shapes of known skeleton and distance, kept once, cut and turned
with their label.
"""

from __future__ import annotations

import dataclasses
import errno
import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from conftest import competition_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import cdist

from pipeline import train
from pipeline.config import Config, from_dict
from pipeline.data import cache, cases, derived, properties
from pipeline.data.cache import CachedCase, Volume
from pipeline.data.derived import DERIVED, Map, derive, distance, medial_surface, skeleton
from pipeline.data.loaders import PatchDataset
from pipeline.data.normalise import IntensityScale
from pipeline.losses import LOSSES, maps, reads
from pipeline.morphology import betti_numbers, dilate
from pipeline.records import LossTerm, UserError
from pipeline.training import loop
from pipeline.training.job import FoldJob
from pipeline.training.monitor import Monitor
from pipeline.training.state import TrainingState

MAP_LOSSES = ["skeleton_recall", "surface_recall", {"name": "boundary", "options": {"reach": 3}}]
READS = reads(
    [LossTerm(**({"name": loss} if isinstance(loss, str) else loss)) for loss in MAP_LOSSES]
)


def config(losses: list[Any], **data: object) -> Config:
    patch = {"size": [16, 16, 16], "foreground": [0.3, 0.7], "tries": 3}
    return from_dict(
        {
            "name": "t",
            "data": {
                "layout": "competition",
                "ignore_label": 2,
                "patch": patch,
                "augment": ["flip", "rotate90"],
                **data,
            },
            "network": "unet",
            "losses": ["dice", *losses],
        }
    )


def slab(
    axis: int, shape: tuple[int, ...] = (15, 18, 21), low: int = 6, high: int = 9
) -> np.ndarray:
    mask = np.zeros(shape, bool)
    np.moveaxis(mask, axis, 0)[low:high] = True
    return mask


def oblique(slope: tuple[float, float], size: int = 24, half: float = 2.0) -> np.ndarray:
    z, y, x = np.mgrid[:size, :size, :size] - (size - 1) / 2
    normal = np.array([1, *slope]) / np.linalg.norm([1, *slope])
    return np.abs(normal[0] * z + normal[1] * y + normal[2] * x) <= half


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("shape", [(3, 20), (3, 3, 20)], ids=["2D", "3D"])
def test_skeleton_of_a_bar_is_its_axis(shape: tuple[int, ...]) -> None:
    mask = np.pad(np.ones(shape, bool), 4)
    thin = skeleton(mask, radius=0).astype(bool)
    places = np.argwhere(thin)
    middle = places[
        (places[:, -1] > 5) & (places[:, -1] < 22)
    ]  # thinning may turn into a corner at the ends
    assert (middle[:, :-1] == 5).all()
    assert middle[:, -1].tolist() == list(range(6, 22))
    assert betti_numbers(thin, 26)[0] == 1
    np.testing.assert_array_equal(skeleton(mask, radius=1).astype(bool), dilate(thin, 1) & mask)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_medial_surface_of_a_slab_is_its_middle_plane_whatever_its_axis(axis: int) -> None:
    mask = slab(axis)
    thin = np.moveaxis(medial_surface(mask, radius=0).astype(bool), axis, 0)
    assert thin[7, 2:-2, 2:-2].all()
    assert not thin[:6].any()
    assert not thin[9:].any()
    assert medial_surface(mask)[mask].mean() > 0.97
    # One axis is not enough: slices along the sheet see a full rectangle, whose skeleton is a few
    # diagonals.
    lines = skeleton(mask, radius=0).astype(bool)
    assert lines.sum() < 0.2 * thin[7].sum()


@settings(deadline=None, max_examples=6)
@given(slope=st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
def test_medial_surface_of_an_oblique_sheet(slope: tuple[float, float]) -> None:
    """At most half as thick as the sheet, near all of it; the tube is one whole sheet again."""
    mask = oblique(slope)
    thin = medial_surface(mask, radius=0).astype(bool)
    assert (thin <= mask).all()
    assert thin.sum() < 0.55 * mask.sum()
    assert (dilate(thin, 2.5) >= mask).mean() > 0.99
    tube = medial_surface(mask, radius=2).astype(bool)
    assert (tube <= mask).all()
    assert betti_numbers(tube, 26) == betti_numbers(mask, 26) == (1, 0, 0)


def test_medial_surface_of_an_image_is_the_skeleton() -> None:
    mask = np.zeros((20, 20), bool)
    mask[4:9, 3:17] = True
    np.testing.assert_array_equal(medial_surface(mask), skeleton(mask))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_distance_of_a_half_space(axis: int) -> None:
    mask = slab(axis, low=0, high=7)
    along = np.moveaxis(distance(mask, reach=4), axis, 0)
    np.testing.assert_array_equal(
        along,
        np.broadcast_to((np.arange(len(along)) - 6.5).clip(-4, 4)[:, None, None], along.shape),
    )
    assert along.dtype == np.float16


@settings(deadline=None, max_examples=25)
@given(
    mask=arrays.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))),
    reach=st.sampled_from([1, 2.5, 40]),
)
def test_distance_is_that_to_the_nearest_voxel_of_the_other_kind(
    mask: np.ndarray, reach: float
) -> None:
    far = np.full(mask.shape, np.inf)
    if mask.any() and not mask.all():
        inside, outside = np.argwhere(mask), np.argwhere(~mask)
        between = cdist(inside, outside)
        far[mask], far[~mask] = between.min(1), between.min(0)
    wanted_ = (np.where(mask, -1, 1) * (far - 0.5)).clip(-reach, reach)
    np.testing.assert_allclose(distance(mask, reach=reach), wanted_, rtol=1e-3)


@pytest.mark.parametrize("space", [(6, 7), (5, 6, 7)], ids=["2D", "3D"])
@pytest.mark.parametrize("full", [False, True])
def test_uniform_masks(space: tuple[int, ...], full: bool) -> None:
    mask = np.full(space, full)
    assert (distance(mask) == (-derived.REACH if full else derived.REACH)).all()
    for make in (skeleton, medial_surface):
        made = make(mask)
        assert made.dtype == np.uint8
        assert made.any() == full


def test_ignored_voxels_are_background_and_classes_have_channels() -> None:
    label = np.zeros((1, 12, 12, 12), np.uint8)
    label[0, 2:5], label[0, 7:10] = 1, 3
    label[0, :, :, :4] = 2
    data = config([], classes=4).data
    (wish,) = reads([LossTerm(name="surface_recall", target="label")])
    assert wish is not None
    made = derive(label, wish, data)
    assert made.shape == (3, 12, 12, 12)
    for channel, value in enumerate((1, 2, 3)):
        np.testing.assert_array_equal(
            made[channel], medial_surface((label[0] == value) & (value != 2))
        )
    assert made[0].any()
    assert not made[1].any()
    binary = derive(np.where(label == 3, 1, label), wish, config([]).data)
    np.testing.assert_array_equal(binary[0], made[0] | made[2])


# ---------------------------------------------------------------- names and options


def test_losses_and_maps_agree_on_options_and_their_defaults() -> None:
    for loss, name in ((n, entry.map) for n, entry in LOSSES.items() if entry.map in DERIVED):
        theirs = inspect.signature(LOSSES[loss].make).parameters
        for option, own in inspect.signature(DERIVED[name]).parameters.items():
            if own.kind is own.KEYWORD_ONLY:
                assert theirs[option].default == own.default


def test_names_tell_options_apart() -> None:
    found = maps(
        config(
            [
                *MAP_LOSSES,
                {"name": "skeleton_recall", "options": {"radius": 3}},
                {"name": "boundary", "head": "mask"},
            ]
        )
    )
    assert list(found) == [
        "label:skeleton",
        "label:medial_surface",
        "label:distance,reach=3",
        "label:skeleton,radius=3",
        "label:distance",
    ]
    assert found["label:distance,reach=3"].fill == 3
    assert found["label:skeleton,radius=3"].file == "label.skeleton-radius3"
    assert maps(
        config([{"name": "skeleton_recall", "options": {"radius": 2}}, "skeleton_recall"])
    ).keys() == {"label:skeleton"}
    assert maps(config(["ce"])) == {}


# ---------------------------------------------------------------- kept beside the store


def attached(root: Path, folder: Path, losses: list[Any], **data: object) -> list[CachedCase]:
    setting = config(losses, **data)
    found = cases.find(setting.data, setting.targets, root).train
    stored = cache.build(found, properties.examine(found, setting, folder), setting, folder)
    return derived.attach(stored, setting, folder, reads(setting.losses))


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (folder / "maps").iterdir()}


def test_maps_are_those_of_the_whole_label_and_made_once(tmp_path: Path) -> None:
    root = competition_folder(tmp_path / "data", cases=2)
    first = attached(root, tmp_path / "store", MAP_LOSSES)
    label = first[0].targets["label"].array[0] == 1
    np.testing.assert_array_equal(first[0].maps["label:skeleton"].array[0], skeleton(label))
    np.testing.assert_array_equal(
        first[0].maps["label:medial_surface"].array[0], medial_surface(label)
    )
    np.testing.assert_array_equal(
        first[0].maps["label:distance,reach=3"].array[0], distance(label, reach=3)
    )
    before = stamps(tmp_path / "store")
    assert len(before) == 2 * 3 * 2
    assert attached(root, tmp_path / "store", MAP_LOSSES) == first
    assert stamps(tmp_path / "store") == before
    attached(root, tmp_path / "store", [{"name": "skeleton_recall", "options": {"radius": 3}}])
    after = stamps(tmp_path / "store")
    assert after.keys() - before.keys() == {
        f"{i}.label.skeleton-radius3.{kind}" for i in (100, 101) for kind in ("npy", "json")
    }
    assert {k: after[k] for k in before} == before


def test_without_such_losses_nothing_is_made(tmp_path: Path) -> None:
    stored = attached(competition_folder(tmp_path / "data", cases=1), tmp_path / "store", ["ce"])
    assert stored[0].maps == {}
    assert not (tmp_path / "store" / "maps").exists()


def test_changed_labels_torn_files_and_other_rules_are_made_again(tmp_path: Path) -> None:
    root, folder = competition_folder(tmp_path / "data", cases=2), tmp_path / "store"
    one, other = (
        case.maps["label:skeleton"] for case in attached(root, folder, ["skeleton_recall"])
    )
    whole, kept = one.path.read_bytes(), other.path.stat().st_mtime_ns
    one.path.write_bytes(whole[:-9])
    attached(root, folder, ["skeleton_recall"])
    assert one.path.read_bytes() == whole
    path = root / "train_labels" / "100.tif"
    label = tifffile.imread(path)
    label[:, :, 12:] = 0
    tifffile.imwrite(path, label)
    again = attached(root, folder, ["skeleton_recall"])[0].maps["label:skeleton"].array
    np.testing.assert_array_equal(again[0], skeleton(label == 1))
    assert other.path.stat().st_mtime_ns == kept
    three = attached(root, folder, ["skeleton_recall"], ignore_label=None, classes=3)
    assert three[1].maps["label:skeleton"].array.shape[0] == 2


def test_a_read_only_store_is_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Volume:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    root = competition_folder(tmp_path / "data", cases=1)
    attached(root, tmp_path / "store", [])
    monkeypatch.setattr(cache, "save", refuse)
    with pytest.raises(UserError, match=r"data\.store"):
        attached(root, tmp_path / "store", ["skeleton_recall"])


# ---------------------------------------------------------------- in samples


@pytest.fixture(scope="module")
def stored(surfaces: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    return attached(surfaces, tmp_path_factory.mktemp("store"), MAP_LOSSES)


ALL = [
    {"name": n, "options": {"p": 1.0}}
    for n in ("noise", "brightness", "contrast", "gamma", "blur", "affine")
]


@pytest.mark.parametrize("augment", [["flip", "rotate90"], ALL], ids=["grid", "all"])
def test_image_and_label_are_the_same_bits_with_and_without_maps(
    stored: list[CachedCase], augment: list[Any]
) -> None:
    plain = [dataclasses.replace(case, maps={}) for case in stored]
    with_maps = PatchDataset(
        stored, config(MAP_LOSSES, augment=augment), 0, training=True, reads=READS
    )
    without = PatchDataset(plain, config([], augment=augment), 0, training=True)
    for n in range(4):
        one, other = with_maps[0, n, n], without[0, n, n]
        assert set(one) - set(other) == {
            "label:skeleton",
            "label:medial_surface",
            "label:distance,reach=3",
        }
        for key in ("image", "label"):
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)
            assert one[key].dtype == other[key].dtype


def test_maps_are_cut_and_turned_with_their_label(stored: list[CachedCase]) -> None:
    """With the label itself in the place of each map, they stay equal; noise and contrast do not
    reach them.
    """
    case = stored[0]
    twin = dataclasses.replace(case, maps=dict.fromkeys(case.maps, case.targets["label"]))
    dataset = PatchDataset(
        [twin],
        config(MAP_LOSSES, augment=["flip", "rotate90", *ALL[:-1]]),
        0,
        training=True,
        reads=READS,
    )
    still = PatchDataset([twin], config(MAP_LOSSES, augment=[]), 0, training=True, reads=READS)
    turned = 0
    for n in range(6):
        sample = dataset[0, n, 0]
        for key in case.maps:
            torch.testing.assert_close(sample[key].float(), sample["label"].float())
        turned += not torch.equal(sample["label"], still[0, n, 0]["label"])
    assert turned > 0


def test_slanted_maps_stay_masks_and_distances_near_their_label(stored: list[CachedCase]) -> None:
    dataset = PatchDataset(
        stored, config(MAP_LOSSES, augment=ALL[-1:]), 0, training=True, reads=READS
    )
    for n in range(4):
        sample = dataset[0, n, n]
        assert set(sample["label:medial_surface"].unique().tolist()) <= {0, 1}
        inside, far = sample["label"] == 1, sample["label:distance,reach=3"]
        agree = (far < 0) == inside
        assert (
            agree.float().mean() > 0.93
        )  # one is interpolated, the other rounded: they may differ at the surface
        assert far[~agree].abs().max() < 1.5


def test_beyond_the_volume_lies_no_foreground(stored: list[CachedCase]) -> None:
    setting = config(MAP_LOSSES, augment=[], patch={"size": [30, 24, 24], "foreground": None})
    sample = PatchDataset(stored[:1], setting, 0, training=False, reads=READS)[-1, 0, 0]
    assert sample["label:distance,reach=3"].dtype == torch.float32
    for outside in (slice(0, 5), slice(25, 30)):
        assert (sample["label:distance,reach=3"][:, outside] == 3).all()
        assert not sample["label:skeleton"][:, outside].any()
    assert sample["label:skeleton"].any()


def test_a_case_without_its_maps_says_so(stored: list[CachedCase]) -> None:
    bare = [dataclasses.replace(stored[0], maps={})]
    with pytest.raises(KeyError, match=r"label:skeleton.*derived\.attach"):
        PatchDataset(bare, config(MAP_LOSSES), 0, training=True, reads=READS)[0, 0, 0]


def test_handles_of_maps_are_not_opened_by_other_configs(stored: list[CachedCase]) -> None:
    twin = dataclasses.replace(stored[0], scale=IntensityScale(low=(0.0,), high=(2.0,)))
    assert set(PatchDataset([twin], config([]), 0, training=True)[0, 0, 0]) == {
        "image",
        "label",
        "id",
        "foreground_share",
        "changed",
    }
    assert Map(target="label", name="skeleton", options={"radius": 2.0}).key in twin.maps


# ---------------------------------------------------------------- a whole run


def test_a_run_with_maps_trains_resumes_and_makes_them_once(
    tiny: Path,
    surfaces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tiny.read_text().replace(
        "losses: [",
        "losses: [surface_recall, {name: skeleton_recall, weight: 0.5}, {name: boundary, weight:"
        " 5}, cldice, connectivity, ",
    )
    tiny.write_text(text)
    words = ["--config", str(tiny), "--data-dir", str(surfaces), "--fold", "0", "--device", "cpu"]
    words += ["--set", "train.epochs=2", "train.average=null", f"data.store={tmp_path / 'store'}"]
    real = loop.train_epoch

    def stumble(job: FoldJob, state: TrainingState, monitor: Monitor) -> None:
        if state.epoch == 1:
            raise RuntimeError("power cut")
        real(job, state, monitor)

    monkeypatch.setattr(loop, "train_epoch", stumble)
    assert train.main([*words, "--out", str(tmp_path / "rough")]) == 1
    before = stamps(tmp_path / "store")
    assert len(before) == 6 * 3 * 2
    monkeypatch.setattr(loop, "train_epoch", real)
    assert train.main([*words, "--out", str(tmp_path / "rough")]) == 0
    assert "continuing after epoch 1" in capsys.readouterr().out
    assert train.main([*words, "--out", str(tmp_path / "calm")]) == 0
    assert stamps(tmp_path / "store") == before
    models = [
        (tmp_path / name / "fold_0" / "best_model.safetensors").read_bytes()
        for name in ("rough", "calm")
    ]
    assert models[0] == models[1]
    log = (tmp_path / "calm" / "fold_0" / "log.jsonl").read_text()
    assert all(
        f"val/{name}" in log
        for name in ("surface_recall", "skeleton_recall", "boundary", "cldice", "connectivity")
    )
