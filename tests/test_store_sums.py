"""Arrays of the store carry sums: a damaged one is made again and it is said once; stores of before
have none and are taken.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline import config as configs
from pipeline import files, train
from pipeline.data import cache, cases, derived, properties
from pipeline.losses import reads


def go(tiny: Path, data: Path, out: Path) -> int:
    words = ["--config", str(tiny), "--data-dir", str(data), "--out", str(out), "--fold", "0"]
    return train.main(
        [
            *words,
            "--set",
            "train.epochs=1",
            "train.average=null",
            "train.preview_every=0",
            "metrics=[dice]",
        ]
    )


def damage(path: Path, at: int = -40) -> bytes:
    """Change one byte, so that size and header stay; returns what was there."""
    raw = bytearray(path.read_bytes())
    before = bytes(raw)
    raw[at] ^= 0x5A
    path.write_bytes(raw)
    return before


@pytest.mark.parametrize("name", ["102.image.npy", "102.label.npy"])
def test_a_damaged_array_is_made_again_and_said_once(
    name: str, surfaces: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert go(tiny, surfaces, run) == 0
    arrays = run / "store" / "arrays"
    capsys.readouterr()
    sound = damage(arrays / name)
    assert go(tiny, surfaces, run) == 0
    said = capsys.readouterr().out
    assert said.count("is damaged") == 1
    assert (
        f"warning: {arrays / name}: is damaged: its content is not what was written. It is made"
        " again" in said
    )
    assert "is damaged" in max(run.glob("train_fold_0_*.log")).read_text()
    assert (arrays / name).read_bytes() == sound
    assert go(tiny, surfaces, run) == 0
    assert "is damaged" not in capsys.readouterr().out


def opened(tiny: Path, data: Path, folder: Path, *settings: str) -> list[cache.CachedCase]:
    config = configs.load(tiny, [f"data.root={data}", *settings])
    found = cases.find(config.data, config.roles, data).train
    stored = cache.build(found, properties.examine(found, config, folder), config, folder)
    return derived.attach(stored, config, folder, reads(config.losses))


def test_maps_made_from_labels_are_checked_too(
    surfaces: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = "losses=[{name: dice}, {name: skeleton_recall}]"
    first = opened(tiny, surfaces, tmp_path, losses)
    (path,) = {v.path for v in first[3].maps.values()}
    sound = damage(path)
    again = opened(tiny, surfaces, tmp_path, losses)
    assert path.read_bytes() == sound
    assert again == first


def strip(folder: Path) -> None:
    """Manifests as they were written before there were sums."""
    for manifest in folder.rglob("*.json"):
        document = json.loads(manifest.read_text())
        for entry in document.get("arrays", {}).values():
            del entry["sum"]
        manifest.write_text(json.dumps(document))


def test_a_store_of_before_is_taken_and_gains_sums(
    surfaces: Path, tiny: Path, tmp_path: Path
) -> None:
    first = opened(tiny, surfaces, tmp_path)
    strip(tmp_path)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*.npy")}
    assert opened(tiny, surfaces, tmp_path) == first
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*.npy")} == before
    for manifest in (tmp_path / "arrays").glob("*.json"):
        document = files.read_json(manifest)
        assert document["key"]["format"] == 2
        assert all(entry["sum"].startswith("crc32") for entry in document["arrays"].values())


def test_a_store_of_before_with_other_values_is_made_again(
    surfaces: Path, tiny: Path, tmp_path: Path
) -> None:
    """Labels of bool values tagged MINISWHITE were stored inverted."""
    first = opened(tiny, surfaces, tmp_path)
    label = tmp_path / "arrays" / "101.label.npy"
    sound = label.read_bytes()
    np.save(label, 1 - np.minimum(np.load(label), 1))
    assert label.stat().st_size == len(sound)
    (tmp_path / "arrays" / "103.image.npy").write_bytes(
        bytes((tmp_path / "arrays" / "103.image.npy").stat().st_size)
    )
    strip(tmp_path)
    assert opened(tiny, surfaces, tmp_path) == first
    assert label.read_bytes() == sound
    assert np.load(tmp_path / "arrays" / "103.image.npy").any()


def test_sums_of_large_files_are_samples_of_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.files import durable

    path = tmp_path / "a"
    path.write_bytes(np.random.default_rng(0).bytes(durable.WHOLE + 12345))
    usual, size = files.checksum(path), path.stat().st_size
    step = size // 40
    for start in range(0, size, step):  # a piece that is lost is noticed wherever it lies
        raw = bytearray(path.read_bytes())
        raw[start : start + step] = bytes(len(raw[start : start + step]))
        (tmp_path / "b").write_bytes(raw)
        assert files.checksum(tmp_path / "b") != usual
    for at in (0, -1):
        damage(path, at)
        assert files.checksum(path) != usual
        damage(path, at)
    assert files.checksum(path) == usual
    path.write_bytes(path.read_bytes()[: durable.WHOLE])
    for at in (0, 12345, -1):
        usual = files.checksum(path)
        damage(path, at)
        assert files.checksum(path) != usual


def test_a_label_that_is_read_otherwise_today_replaces_the_stored_one(
    surfaces: Path, tiny: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(surfaces, tmp_path / "data")
    for path in (tmp_path / "data" / "train_labels").glob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path) == 1)
    stored = opened(tiny, tmp_path / "data", tmp_path / "store", "data.ignore_label=null")
    right = np.array(stored[0].targets["label"].array)
    np.save(stored[0].targets["label"].path, 1 - right)  # what the reader of before made of it
    strip(tmp_path / "store")
    again = opened(tiny, tmp_path / "data", tmp_path / "store", "data.ignore_label=null")
    np.testing.assert_array_equal(again[0].targets["label"].array, right)
    np.testing.assert_array_equal(right[0], tifffile.imread(stored[0].case.targets["label"]))


@pytest.mark.parametrize("text", ["[]", "{", '{"key": 1}', None])
def test_a_manifest_that_is_none_is_made_again(
    text: str | None, surfaces: Path, tiny: Path, tmp_path: Path
) -> None:
    first = opened(tiny, surfaces, tmp_path)
    manifest = tmp_path / "arrays" / "102.json"
    manifest.write_text(
        text or manifest.read_text().replace("102.image.npy", "../../102.image.npy")
    )
    assert opened(tiny, surfaces, tmp_path) == first
    assert files.read_json(manifest)["arrays"]["image"]["path"] == "102.image.npy"


def test_a_zarr_that_changed_inside_is_stored_again(tiny: Path, tmp_path: Path) -> None:
    """Its folder keeps its time and size."""
    rng, data, settings = (
        np.random.default_rng(0),
        tmp_path / "data",
        ["data.layout=folders", "data.ignore_label=null"],
    )
    for n in range(2):
        files.write(
            data / "images" / f"{n}.zarr", rng.integers(0, 250, (16, 16, 16)).astype(np.uint8)
        )
        files.write(data / "masks" / f"{n}.tif", rng.integers(0, 2, (16, 16, 16)).astype(np.uint8))
    opened(tiny, data, tmp_path / "store", *settings)
    changed = rng.integers(0, 250, (16, 16, 16)).astype(np.uint8)
    files.write(tmp_path / "new.zarr", changed)
    for path in (tmp_path / "new.zarr").rglob("*"):
        if path.is_file():
            (data / "images" / "1.zarr" / path.relative_to(tmp_path / "new.zarr")).write_bytes(
                path.read_bytes()
            )
    stored = opened(tiny, data, tmp_path / "store", *settings)
    assert np.array_equal(stored[1].image.array[0], changed)
