"""The store: every fault of the data is found and named, every file is decoded once, arrays on disk
are the files' own.
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import io
import json
import os
import pickle  # only here, to prove that a handle travels without its pixels
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline import config, files
from pipeline.data import (
    cache,
    cases,
    checks,
    normalise,
    properties,
    reading,
    statistics,
    targets,
)
from pipeline.records import Case, Fault, NamedOptions, UserError

RNG = np.random.default_rng(7)
IMAGE = RNG.integers(0, 255, (6, 10, 9)).astype(np.uint8)
LABEL = RNG.integers(0, 3, (6, 10, 9)).astype(np.uint8)


def system(root: Path, **data) -> config.Config:
    data = {"root": str(root), "ignore_label": 2, **data}
    return config.from_dict({"name": "t", "network": "unet", "losses": ["dice"], "data": data})


def add(
    root: Path,
    name: str,
    image: np.ndarray = IMAGE,
    label: np.ndarray = LABEL,
    suffix: str = ".tif",
) -> None:
    files.write(root / "train_images" / f"{name}{suffix}", image)
    files.write(root / "train_labels" / f"{name}{suffix}", label)


def check(
    root: Path, **data
) -> tuple[Sequence[Case], list[properties.CaseProperties], list[Fault]]:
    settings = system(root, **data)
    found = cases.find(settings.data, settings.targets, root)
    facts = properties.examine(found.train, settings, None)
    return found.train, facts, [*found.faults, *checks.faults(facts, found.train, settings)]


def only(faults: Sequence[Fault]) -> Fault:
    (fault,) = faults
    return fault


# --- faults ---------------------------------------------------------------------------------------


def test_sound_data_has_no_faults(tmp_path: Path) -> None:
    add(tmp_path, "a")
    add(tmp_path, "b", IMAGE[::-1], LABEL.astype(np.float32))  # whole numbers stored as floats
    add(tmp_path, "ü 1", IMAGE.astype(np.float32), LABEL.astype(np.int64), ".nii.gz")
    found, facts, faults = check(tmp_path)
    assert faults == []
    assert facts[0].shapes == {"image": (1, 6, 10, 9), "label": (1, 6, 10, 9)}
    assert sum(facts[0].label_values["label"].values()) == LABEL.size
    assert facts[0].scale == normalise.fit(NamedOptions(name="percentile"), IMAGE[None])
    assert [f.id for f in facts] == [c.id for c in found]


def test_every_fault_is_found_at_once(tmp_path: Path) -> None:
    for name in ("good", "cut", "flat", "shape", "label3", "half", "nan", "constant"):
        add(tmp_path, name, RNG.integers(0, 255, IMAGE.shape).astype(np.uint8))
    cut = tmp_path / "train_images" / "cut.tif"
    cut.write_bytes(cut.read_bytes()[:-50])
    files.write(tmp_path / "train_images" / "flat.tif", IMAGE[0])
    files.write(tmp_path / "train_labels" / "shape.tif", LABEL[1:])
    files.write(tmp_path / "train_labels" / "label3.tif", LABEL + np.isin(IMAGE, 200) * np.uint8(3))
    files.write(tmp_path / "train_labels" / "half.tif", (LABEL * 0.5).astype(np.float32))
    files.write(
        tmp_path / "train_images" / "nan.tif",
        np.where(IMAGE == 3, np.nan, IMAGE).astype(np.float32),
    )
    files.write(tmp_path / "train_images" / "constant.tif", np.full_like(IMAGE, 7))
    _, _, faults = check(tmp_path)
    words = {
        "cut": "truncated",
        "flat": "where a volume is needed",
        "shape": "has shape 5x10x9",
        "label3": "holds labels outside 0 to 1 and 2, which is ignored: ",
        "half": "0.5 (",
        "nan": f"{(IMAGE == 3).sum()} values that are NaN",
        "constant": "is constant",
    }
    assert {f.path.stem for f in faults} == set(words)
    assert all(f.severity == "error" for f in faults)
    for fault in faults:
        assert words[fault.path.stem] in fault.problem
        assert fault.suggestion


def test_warnings_do_not_stop_a_run(tmp_path: Path) -> None:
    add(tmp_path, "a")
    add(tmp_path, "same as a")
    add(tmp_path, "empty", IMAGE + 1, np.where(LABEL == 1, 0, LABEL))
    add(tmp_path, "ignored", IMAGE + 2, np.full_like(LABEL, 2))
    _, _, faults = check(tmp_path)
    assert {f.severity for f in faults} == {"warning"}
    assert {f.path.stem: f.problem for f in faults} == {
        "a": "holds the same image as other cases: a, same as a",
        "empty": "has no foreground",
        "ignored": "is ignored everywhere",
    }


def test_equal_pixels_in_different_formats_are_one_image(tmp_path: Path) -> None:
    add(tmp_path, "a")
    files.write(tmp_path / "train_images" / "b.npy", IMAGE)
    files.write(tmp_path / "train_labels" / "b.npy", LABEL)
    _, facts, faults = check(tmp_path)
    assert facts[0].content == facts[1].content
    assert "a, b" in only(faults).problem


def test_label_two_is_ignored_or_refused(tmp_path: Path) -> None:
    add(tmp_path, "a")
    assert check(tmp_path)[2] == []
    fault = only(check(tmp_path, ignore_label=None)[2])
    assert f"2 ({(LABEL == 2).sum()} voxels)" in fault.problem
    assert check(tmp_path, ignore_label=None, classes=3)[2] == []


@pytest.mark.parametrize("values", [{"0": 5, "255": 3}, {"255": 9}, {"0": 1, "2": 2, "255": 3}])
def test_black_and_white_masks_are_two_classes(values: dict[str, int], tmp_path: Path) -> None:
    label = (
        np.repeat([int(v) for v in values], list(values.values()))
        .astype(np.uint8)
        .reshape(1, 1, -1)
    )
    add(tmp_path, "a", np.arange(label.size, dtype=np.uint8).reshape(label.shape), label)
    found, facts, faults = check(tmp_path)
    assert faults == []
    stored = cache.build(found, facts, system(tmp_path), tmp_path / "store")
    np.testing.assert_array_equal(
        stored[0].targets["label"].array[0], np.where(label == 255, 1, label)
    )


@pytest.mark.parametrize("values", [[0, 1, 255], [0, 254], [255, 256]])
def test_other_masks_are_not_guessed(values: list[int], tmp_path: Path) -> None:
    add(tmp_path, "a", label=RNG.choice(values, LABEL.shape).astype(np.uint16))
    assert "holds labels outside" in only(check(tmp_path)[2]).problem


def test_images_given_as_labels_are_summed_up(tmp_path: Path) -> None:
    add(tmp_path, "a", label=RNG.random(LABEL.shape).astype(np.float32))
    _, facts, faults = check(tmp_path)
    assert len(facts[0].label_values["label"]) == targets.LISTED + 1
    assert sum(facts[0].label_values["label"].values()) == LABEL.size
    assert only(faults).problem.endswith(", ...")


@pytest.mark.parametrize(("shift", "wrong"), [(0.0, False), (5e-4, False), (2e-3, True)])
def test_affines_must_agree(shift: float, wrong: bool, tmp_path: Path) -> None:
    add(tmp_path, "a", suffix=".nii.gz")
    affine = np.eye(4)
    affine[0, 3] = shift
    nibabel.save(nibabel.Nifti1Image(LABEL, affine), tmp_path / "train_labels" / "a.nii.gz")
    faults = check(tmp_path)[2]
    assert bool(faults) == wrong
    assert not wrong or "affines differ" in only(faults).problem


def test_a_different_number_of_channels_is_an_error(tmp_path: Path) -> None:
    for name in "abc":
        add(tmp_path, name, RNG.random((2, *IMAGE.shape)).astype(np.float32))
    add(tmp_path, "d")
    fault = only(check(tmp_path)[2])
    assert (fault.path.stem, fault.problem) == ("d", "has 1 channels, 3 other cases have 2")


def test_masks_saved_in_colour_are_read_if_grey(tmp_path: Path) -> None:
    flat = {
        "dims": 2,
        "patch": {"size": [4, 4]},
        "folders": {"image": "train_images", "label": "train_labels"},
    }
    colour, mask = (
        RNG.integers(0, 255, (3, 8, 9)).astype(np.uint8),
        (LABEL[0, :8] > 0).astype(np.uint8) * 255,
    )
    for name, label in {"a": np.stack([mask] * 3), "b": np.stack([mask, mask, mask // 2])}.items():
        files.write(tmp_path / "train_images" / f"{name}.png", colour + ord(name))
        files.write(tmp_path / "train_labels" / f"{name}.png", label)
    _, facts, faults = check(tmp_path, **flat)
    assert facts[0].shapes == {"image": (3, 8, 9), "label": (1, 8, 9)}
    assert (only(faults).path.stem, "3 different channels" in only(faults).problem) == ("b", True)


def test_a_constant_image_without_targets_is_only_a_warning(tmp_path: Path) -> None:
    files.write(tmp_path / "x.tif", np.zeros_like(IMAGE))
    case = Case(id="x", image=(tmp_path / "x.tif",))
    facts = properties.examine([case], system(tmp_path), None)
    assert only(checks.faults(facts, [case], system(tmp_path))).severity == "warning"


@pytest.mark.parametrize("bad", ["nan", "constant", "both"])
def test_bad_intensities_never_spoil_the_scale(bad: str, tmp_path: Path) -> None:
    image = np.full(IMAGE.shape, 5.0, np.float32) if bad != "nan" else IMAGE.astype(np.float32)
    if bad != "constant":
        image[0, 0, 0] = np.inf
    add(tmp_path, "a", image)
    _, (facts,), _ = check(tmp_path)
    assert facts.constant == (bad != "nan")
    assert facts.scale is not None
    assert np.isfinite(facts.scale.apply(np.nan_to_num(image[None], posinf=np.inf))).all()


# --- facts on disk --------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths in the order in which their pixels are read."""
    seen: list[Path] = []
    read = files.read
    monkeypatch.setattr(
        files,
        "read",
        lambda path, *args, **kwargs: (seen.append(path), read(path, *args, **kwargs))[1],
    )
    return seen


def test_every_file_is_decoded_once(tmp_path: Path, decoded: list[Path]) -> None:
    for name in "abc":
        add(tmp_path, name)
    settings, cache = system(tmp_path), tmp_path / "cache"
    found = cases.find(settings.data, settings.targets, tmp_path).train
    ticks: list[tuple[int, int]] = []
    first = properties.examine(
        found, settings, cache, progress=lambda done, total: ticks.append((done, total))
    )
    assert (len(decoded), ticks) == (6, [(1, 3), (2, 3), (3, 3)])
    assert properties.examine(found, settings, cache) == first
    assert len(decoded) == 6
    assert json.loads((cache / "facts" / "a.json").read_text())["facts"]["id"] == "a"


def test_changed_files_and_settings_are_examined_again(tmp_path: Path, decoded: list[Path]) -> None:
    for name in "ab":
        add(tmp_path, name)
    cache = tmp_path / "cache"

    def look(**data) -> list[properties.CaseProperties]:
        decoded.clear()
        settings = system(tmp_path, **data)
        return properties.examine(
            cases.find(settings.data, settings.targets, tmp_path).train, settings, cache
        )

    look()
    os.utime(tmp_path / "train_labels" / "b.tif", ns=(0, 0))
    look()
    assert sorted(p.stem for p in decoded) == ["b", "b"]
    assert look(normalise={"name": "zscore"})[0].scale != look()[0].scale
    assert len(decoded) == 4
    (cache / "facts" / "a.json").write_text('{"key": {"torn')
    look()
    assert [p.stem for p in decoded] == ["a", "a"]
    look(ignore_label=None)  # judged from the same facts
    assert decoded == []


def test_a_moved_data_set_keeps_its_facts(tmp_path: Path, decoded: list[Path]) -> None:
    add(tmp_path / "old", "a")
    for root in ("old", "new"):
        settings = system(tmp_path / root)
        found = cases.find(settings.data, settings.targets, tmp_path / root).train
        (facts,) = properties.examine(found, settings, tmp_path / root / "store")
        assert facts.files["image"][0]["path"] == str(found[0].image[0])
        if root == "old":
            (tmp_path / "old").rename(tmp_path / "new")
    assert len(decoded) == 2


def test_a_dry_look_writes_nothing(tmp_path: Path) -> None:
    add(tmp_path, "a")
    settings = system(tmp_path)
    properties.examine(
        cases.find(settings.data, settings.targets, tmp_path).train,
        settings,
        tmp_path / "cache",
        write=False,
    )
    assert not (tmp_path / "cache").exists()


def test_a_read_only_place_keeps_no_facts_and_no_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root a folder's mode would not stop us: the answer of the system is put in its place."""
    add(tmp_path, "a")
    settings = system(tmp_path)
    found = cases.find(settings.data, settings.targets, tmp_path).train

    def refuse(handle: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", refuse)
    facts = properties.examine(found, settings, tmp_path / "cache")
    assert facts[0].problems == ()
    with pytest.raises(UserError, match=r"Read-only file system.*data\.store"):
        cache.build(found, facts, settings, tmp_path / "store")
    assert not [p for p in (tmp_path / "store").rglob("*") if p.is_file()]


def test_affines_of_nan_are_compared_after_json(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", [[1.0, np.nan]])
    nan = files.read_json(tmp_path / "a.json")
    assert reading.same_affine(nan, [[1.0, np.nan]])
    assert not reading.same_affine(nan, [[1.0, 0.0]])


def test_bad_files_are_looked_at_again(tmp_path: Path) -> None:
    """A failure may lie in the network drive and not in the file: it is never kept."""
    add(tmp_path, "a")
    path = tmp_path / "train_images" / "a.tif"
    path.write_bytes(path.read_bytes()[:-9])
    settings = system(tmp_path)
    found = cases.find(settings.data, settings.targets, tmp_path).train
    assert properties.examine(found, settings, tmp_path / "cache")[0].problems
    assert not (tmp_path / "cache").exists()


def test_progress_may_stop_the_work(tmp_path: Path) -> None:
    for name in "abcdef":
        add(tmp_path, name)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    settings = system(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        properties.examine(
            cases.find(settings.data, settings.targets, tmp_path).train,
            settings,
            None,
            progress=stop,
            workers=1,
        )


# --- arrays on disk -------------------------------------------------------------------------------


def build(root: Path, folder: Path, **data) -> list[cache.CachedCase]:
    settings = system(root, **data)
    found = cases.find(settings.data, settings.targets, root).train
    return cache.build(found, properties.examine(found, settings, folder), settings, folder)


def test_the_store_holds_the_files_own_values(tmp_path: Path) -> None:
    add(tmp_path, "a", IMAGE.astype(np.uint16) * 99)
    add(tmp_path, "b", IMAGE / 3, LABEL.astype(np.float64), ".nii.gz")
    a, b = build(tmp_path, tmp_path / "store")
    assert (a.image.dtype, b.image.dtype, b.targets["label"].dtype) == (
        "uint16",
        "float32",
        "uint8",
    )
    np.testing.assert_array_equal(a.image.array[0], IMAGE.astype(np.uint16) * 99)
    np.testing.assert_array_equal(b.image.array[0], (IMAGE / 3).astype(np.float32))
    np.testing.assert_array_equal(b.targets["label"].array[0], LABEL)
    for volume in (a.image, b.image, a.targets["label"]):
        assert volume.array.shape == volume.shape == (1, *IMAGE.shape)
        assert isinstance(volume.array, np.memmap)
        assert not volume.array.flags.writeable


def test_channels_are_stacked(tmp_path: Path) -> None:
    for channel in range(2):
        files.write(tmp_path / "imagesTr" / f"a_000{channel}.nii.gz", IMAGE + channel)
    files.write(tmp_path / "labelsTr" / "a.nii.gz", LABEL)
    (stored,) = build(tmp_path, tmp_path / "store")
    np.testing.assert_array_equal(stored.image.array, np.stack([IMAGE, IMAGE + 1]))
    assert len(stored.scale.low) == 2


def test_channels_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    for name, second in {"shape": IMAGE[1:], "place": IMAGE}.items():
        files.write(tmp_path / "imagesTr" / f"{name}_0000.nii.gz", IMAGE)
        affine = np.eye(4) if name == "shape" else np.diag([2, 1, 1, 1])
        nibabel.save(
            nibabel.Nifti1Image(second, affine), tmp_path / "imagesTr" / f"{name}_0001.nii.gz"
        )
        files.write(tmp_path / "labelsTr" / f"{name}.nii.gz", LABEL)
    faults = check(tmp_path)[2]
    assert sorted(f.path.name for f in faults) == ["place_0001.nii.gz", "shape_0001.nii.gz"]


def test_an_unchanged_store_costs_nothing(tmp_path: Path, decoded: list[Path]) -> None:
    for name in "ab":
        add(tmp_path, name)
    first = build(tmp_path, tmp_path / "store")
    assert len(decoded) == 8  # a look, and the copy
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.npy")}
    assert build(tmp_path, tmp_path / "store") == first
    assert len(decoded) == 8
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.npy")}


@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "manifest", "source", "classes"])
def test_what_is_torn_or_old_is_built_again(harm: str, tmp_path: Path, decoded: list[Path]) -> None:
    for name in "ab":
        add(tmp_path, name)
    build(tmp_path, tmp_path / "store")
    target, manifest = (
        tmp_path / "store" / "arrays" / "a.image.npy",
        tmp_path / "store" / "arrays" / "a.json",
    )
    decoded.clear()
    image, data = IMAGE, {}
    if harm == "cut":
        target.write_bytes(target.read_bytes()[:-7])
    elif harm == "empty":
        target.write_bytes(b"")
    elif harm == "gone":
        target.unlink()
    elif harm == "manifest":
        manifest.write_text("{")
    elif harm == "source":
        image = IMAGE // 2
        add(tmp_path, "a", image)
    else:
        data = {"classes": 4, "ignore_label": -1}
    stored = build(tmp_path, tmp_path / "store", **data)
    np.testing.assert_array_equal(stored[0].image.array[0], image)
    assert {p.stem for p in decoded} == ({"a", "b"} if harm == "classes" else {"a"})
    assert stored[0].targets["label"].dtype == ("int8" if harm == "classes" else "uint8")


def test_a_file_that_changes_in_between_is_noticed(tmp_path: Path) -> None:
    add(tmp_path, "a")
    settings = system(tmp_path)
    found = cases.find(settings.data, settings.targets, tmp_path).train
    facts = properties.examine(found, settings, None)
    add(tmp_path, "a", IMAGE // 2)
    with pytest.raises(UserError, match="changed while"):
        cache.build(found, facts, settings, tmp_path / "store")
    (tmp_path / "train_images" / "a.tif").write_bytes(b"II")
    with pytest.raises(UserError, match="cannot be stored"):
        cache.build(found, properties.examine(found, settings, None), settings, tmp_path / "store")


def test_long_and_foreign_names(tmp_path: Path) -> None:
    names = ["ü" * 110, "ü" * 109 + "x", "a b (1) №"]
    for i, name in enumerate(names):
        add(tmp_path, name, IMAGE + i)
    stored = build(tmp_path, tmp_path / "store")
    assert len({s.image.path for s in stored}) == 3
    assert build(tmp_path, tmp_path / "store") == stored


def test_a_handle_travels_without_its_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 100, 100, 100), np.uint8))
    volume = cache.Volume(path=tmp_path / "a.npy", shape=(1, 100, 100, 100), dtype="uint8")
    assert copy.deepcopy(volume) is volume
    assert copy.deepcopy({"x": [volume]})["x"][0] is volume
    stream = io.BytesIO()
    pickle.dump(volume, stream)
    assert len(stream.getvalue()) < 500
    assert pickle.loads(stream.getvalue()) == volume


def test_the_place_of_the_store(tmp_path: Path) -> None:
    data = config.Data(root=str(tmp_path))
    assert cache.cache_folder(data, tmp_path / "run") == tmp_path / "run" / "store"
    (tmp_path / "store" / "arrays").mkdir(parents=True)
    assert cache.cache_folder(data, tmp_path / "run") == tmp_path / "store"
    assert cache.cache_folder(
        dataclasses.replace(data, store="elsewhere"), tmp_path / "run"
    ) == Path("elsewhere")


# --- normalise ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    values=arrays.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int16, np.float32]),
        st.integers(1, 300),
        elements=st.integers(0, 255),
    ),
    at=st.lists(
        st.one_of(st.floats(0, 100), st.sampled_from([0.5, 99.5, 0, 50, 100])),
        min_size=1,
        max_size=3,
    ),
)
def test_percentiles_equal_numpys(values: np.ndarray, at: list[float]) -> None:
    assert normalise.percentiles(values[None], at)[0] == tuple(
        float(x) for x in np.percentile(values, at)
    )


def test_histograms_are_counted_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 7)
    np.testing.assert_array_equal(
        normalise.histogram(IMAGE), np.bincount(IMAGE.ravel(), minlength=256)
    )


def test_percentile_scale_is_the_sources(tmp_path: Path) -> None:
    low, high = np.percentile(IMAGE, (0.5, 99.5))
    expected = (np.clip(IMAGE, low, high) - low) / (high - low)
    scale = normalise.percentile(IMAGE[None])[0]
    out = scale.apply(IMAGE[None])
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0], expected, atol=1e-6)
    np.testing.assert_allclose(scale.invert(out)[0], np.clip(IMAGE, low, high), atol=1e-4)


def test_each_channel_has_its_own_limits_and_bad_values_none() -> None:
    image = np.stack([IMAGE, IMAGE * 0.01 + 5, np.full(IMAGE.shape, 3.0)]).astype(np.float32)
    image[1, 0, 0, :3] = [np.nan, np.inf, -np.inf]
    for part in (
        NamedOptions(name="percentile"),
        NamedOptions(name="zscore"),
        NamedOptions(name="range", options={"low": 0, "high": 255}),
    ):
        scale = normalise.fit(part, image)
        out = scale.apply(image)
        assert np.isfinite(np.delete(out[1].ravel(), [1, 2])).all()
        assert len(scale.low) == 3
    out = normalise.fit(NamedOptions(name="percentile", options={"to": [-1, 1]}), image).apply(
        image
    )
    assert (out[0].min(), out[0].max(), out[2].min(), out[2].max()) == (-1, 1, -1, -1)
    zscore = normalise.zscore(image)[0]
    good = zscore.apply(image)[0]
    assert abs(good.mean()) < 1e-4
    assert abs(good.std() - 1) < 1e-4
    np.testing.assert_allclose(
        zscore.invert(zscore.apply(image))[0], image[0], rtol=1e-4, atol=1e-3
    )


def test_nothing_but_nan_gives_zeros() -> None:
    image = np.full((1, 3, 3), np.nan, np.float32)
    for name in ("percentile", "zscore"):
        np.testing.assert_array_equal(normalise.fit(NamedOptions(name=name), image).apply(image), 0)


@pytest.mark.parametrize(
    "part",
    [
        NamedOptions(name="percentil"),
        NamedOptions(name="percentile", options={"lo": 1}),
        NamedOptions(name="percentile", options={"low": 60, "high": 40}),
        NamedOptions(name="percentile", options={"to": [1, 1]}),
        NamedOptions(name="range", options={"low": 3, "high": 3}),
    ],
)
def test_wrong_options_are_refused(part: NamedOptions) -> None:
    with pytest.raises(config.ConfigError, match=r"data\.normalise"):
        normalise.fit(part, IMAGE[None])


def test_a_scale_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="2 channels"):
        normalise.IntensityScale(low=(0, 0), high=(1, 1)).apply(np.zeros((3, 4, 4)))


# --- real data ------------------------------------------------------------------------------------


def test_fib25_surfaces(shared_data: Path, tmp_path: Path) -> None:
    settings = system(shared_data / "fib25_surfaces")
    found = cases.find(settings.data, settings.targets, shared_data / "fib25_surfaces").train[:4]
    facts = properties.examine(found, settings, tmp_path)
    assert checks.faults(facts, found, settings) == []
    assert all(set(f.label_values["label"]) == {"0", "1", "2"} for f in facts)
    for stored in cache.build(found, facts, settings, tmp_path):
        np.testing.assert_array_equal(stored.image.array[0], tifffile.imread(stored.case.image[0]))
        np.testing.assert_array_equal(
            stored.targets["label"].array[0], tifffile.imread(stored.case.targets["label"])
        )


def test_hippocampus(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "hippocampus"
    settings = system(root, classes=3, ignore_label=None)
    found = cases.find(settings.data, settings.targets, root).train[:5]
    facts = properties.examine(found, settings, tmp_path)
    assert checks.faults(facts, found, settings) == []
    assert {f.id: f.dtypes["label"] for f in facts}["hippocampus_003"] == "float32"
    stored = {s.case.id: s for s in cache.build(found, facts, settings, tmp_path)}[
        "hippocampus_003"
    ]
    assert stored.targets["label"].dtype == "uint8"
    reference = np.asanyarray(
        nibabel.Nifti1Image.from_filename(stored.case.targets["label"]).dataobj
    )
    np.testing.assert_array_equal(stored.targets["label"].array[0], reference)
