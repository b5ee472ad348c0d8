"""Named heads from the network to the disk: a mask beside the image, in memory, by blocks, shared,
fused, and from older files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
from PIL import Image

from pipeline import ensemble, files
from pipeline.files import Rows
from pipeline.inference import blocks
from pipeline.inference import soft as softs
from pipeline.inference.writing import Target, write_answer
from pipeline.records import Geometry, UserError

ABPN = {"task": "image", "network": "abpn", "losses": [{"name": "l1", "target": "target"}]}


@pytest.fixture(scope="module")
def retouch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.model_file(
        tmp_path_factory.mktemp("abpn"),
        dims=2,
        channels=3,
        data={"dims": 2, "patch": {"size": [32, 32]}},
        **ABPN,
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name, size in (("a", (70, 45)), ("b", (33, 64))):
        files.write(
            folder / f"{name}.png", rng.integers(0, 255, (3, *size), dtype=np.uint8), dims=2
        )
    return folder


def pixels(folder: Path) -> dict[str, np.ndarray]:
    """All arrays and pictures in a folder by their names."""
    found = {str(p.relative_to(folder)): np.asarray(Image.open(p)) for p in folder.rglob("*.png")}
    return found | {str(p.relative_to(folder)): np.load(p) for p in folder.rglob("*.npy")}


def require_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert set(one) == set(other)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.slow
def test_heads_lie_beside_each_other_whatever_the_way(
    retouch: Path, photographs: Path, tmp_path: Path
) -> None:
    for way in ("never", "always"):
        assert (
            small_models.run_predict(
                retouch, photographs, tmp_path / way, "--save-soft", "--blocks", way
            )
            == 0
        )
    for n in (0, 1, 2):
        assert (
            small_models.run_predict(
                retouch, photographs, tmp_path / "shards", "--save-soft", "--shard", f"{n}/3"
            )
            == 0
        )
    assert list((tmp_path / "shards" / "blocks").rglob("0*.mask.npy"))
    assert small_models.run_predict(retouch, photographs, tmp_path / "shards", "--save-soft") == 0
    found = pixels(tmp_path / "never")
    assert set(found) == {f"{n}.png" for n in ("a", "b", "masks/a", "masks/b")} | {
        f"soft/{n}.npy" for n in ("a", "b", "mask/a", "mask/b")
    }
    assert (found["soft/a.npy"].shape, found["soft/mask/a.npy"].shape) == ((3, 70, 45), (1, 70, 45))
    assert json.loads((tmp_path / "never" / "soft" / "a.json").read_text())["heads"] == [
        "main",
        "mask",
    ]
    require_equal(pixels(tmp_path / "always"), found)
    require_equal(pixels(tmp_path / "shards"), found)


def test_heads_are_fused_head_by_head(retouch: Path, photographs: Path, tmp_path: Path) -> None:
    """A prediction with itself is itself; one in the form of before heads had names is the same
    prediction.
    """
    assert small_models.run_predict(retouch, photographs, tmp_path / "new", "--save-soft") == 0
    as_before(tmp_path / "new", tmp_path / "old")
    for name, members in {
        "one": ("new", "new2"),
        "two": ("old", "new"),
        "three": ("old", "old2"),
    }.items():
        for copy, of in (("new2", "new"), ("old2", "old")):
            if not (tmp_path / copy).exists():
                (tmp_path / copy).mkdir()
                (tmp_path / copy / "soft").symlink_to(tmp_path / of / "soft")
        folders = [str(tmp_path / m) for m in members]
        assert (
            ensemble.main(
                ["--fold-dirs", *folders, "--output", str(tmp_path / name), "--save-soft"]
            )
            == 0
        )
        require_equal(pixels(tmp_path / name), pixels(tmp_path / "new"))


@pytest.mark.parametrize("fusion", ["logit", "vote"])
def test_intensities_have_no_logit_and_no_vote(
    fusion: str,
    retouch: Path,
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert small_models.run_predict(retouch, photographs, tmp_path / "new", "--save-soft") == 0
    folder = str(tmp_path / "new")
    assert (
        ensemble.main(["--fold-dirs", folder, "--output", str(tmp_path / "e"), "--fusion", fusion])
        == 2
    )
    assert "intensities of images" in capsys.readouterr().err


def test_a_large_ensemble_is_that_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused, decided and written slab by slab; scratch files are gone."""
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        heads = {"main": rng.random((1, 20, 9, 8), np.float32)}
        softs.save(
            tmp_path / name / "soft",
            softs.SoftPrediction(case_id="x", heads=heads, meta=softs.SoftMeta(suffix=".tif")),
        )
    spec = tmp_path / "e.yaml"
    steps = (
        "[{name: hysteresis, options: {low: 0.4, high: 0.7}}, {name: dust, options: {below: 5}},"
        " {name: closing, options: {size: 3}}]"
    )
    spec.write_text(
        f"members: [{{run: {tmp_path / 'one'}}}, {{run: {tmp_path / 'two'}, weight: 2}}]\n"
        f"postprocess: {steps}\n"
    )
    for out, whole in (("memory", 2**27), ("slabs", 10)):
        monkeypatch.setattr("pipeline.workflows.fuse.WHOLE", whole)
        monkeypatch.setattr("pipeline.files.pixels.SLAB", 100)
        assert (
            ensemble.main(["--spec", str(spec), "--output", str(tmp_path / out), "--save-soft"])
            == 0
        )
    paths = sorted(
        p.relative_to(tmp_path / "memory") for p in (tmp_path / "memory").rglob("*") if p.is_file()
    )
    assert paths == sorted(
        p.relative_to(tmp_path / "slabs") for p in (tmp_path / "slabs").rglob("*") if p.is_file()
    )
    for path in paths:
        assert (tmp_path / "memory" / path).read_bytes() == (
            tmp_path / "slabs" / path
        ).read_bytes(), path


def as_before(new: Path, old: Path) -> None:
    """The soft predictions of a folder as written before: the mask as the last channel."""
    (old / "soft").mkdir(parents=True)
    for path in (new / "soft").glob("*.npy"):
        heads = [np.load(path), np.load(new / "soft" / "mask" / path.name)]
        np.save(old / "soft" / path.name, np.concatenate(heads))
        facts = json.loads(path.with_suffix(".json").read_text())
        del facts["heads"]
        (old / "soft" / path.name).with_suffix(".json").write_text(json.dumps(facts))


def soft(folder: Path, **more: Any) -> Path:
    heads = {"main": np.zeros((2, 5, 6), np.float32), "mask": np.ones((1, 5, 6), np.float32)}
    meta = softs.SoftMeta(task="image", suffix=".png", dtype="uint8", channels=2)
    softs.save(folder, softs.SoftPrediction(case_id="x", heads=heads, meta=meta))
    path = folder / "x.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return folder


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"heads": ["main", "../mask"]}, "heads"),
        ({"heads": ["main", ""]}, "heads"),
        ({"heads": ["main", "soft"]}, "soft"),
        ({"task": "labels"}, "mask"),
        ({"channels": 7}, "channels is 7"),
    ],
)
def test_heads_that_mean_nothing_are_refused(
    more: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        softs.load(soft(tmp_path, **more), "x")


def test_a_head_that_is_gone_or_of_another_size_is_named(tmp_path: Path) -> None:
    softs.load(soft(tmp_path), "x")
    np.save(tmp_path / "mask" / "x.npy", np.ones((1, 5, 7), np.float32))
    with pytest.raises(UserError, match=r"heads of \(5, 7\) and \(5, 6\)"):
        softs.load(tmp_path, "x")
    (tmp_path / "mask" / "x.npy").unlink()
    with pytest.raises(UserError, match=r"mask.x.npy"):
        softs.load(tmp_path, "x")


def test_a_mask_that_is_no_probability_is_refused(tmp_path: Path) -> None:
    np.save(soft(tmp_path) / "mask" / "x.npy", np.full((1, 5, 6), 1.5, np.float32))
    with pytest.raises(UserError, match="30 values that are no probabilities"):
        softs.load_sound(tmp_path, "x")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("task", ["labels", "image"])
def test_what_is_read_as_it_is_sliced_is_written_as_in_memory(
    task: str, dims: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.files.pixels.ROWS", 2)
    monkeypatch.setattr("pipeline.files.pixels.SLAB", 50)
    rng = np.random.default_rng(0)
    heads = {"main": rng.random((2, *(9, 8, 7)[:dims]), np.float32)}
    heads |= {"mask": rng.random((1, *(9, 8, 7)[:dims]), np.float32)} if task == "image" else {}
    meta = softs.SoftMeta(task=task, suffix=".tif", dtype="uint16", channels=2)
    place = Geometry(meta={"dims": dims})
    given = softs.SoftPrediction(case_id="x", heads=heads, geometry=place, meta=meta)
    lazy = {
        name: Rows(a.shape, a.dtype, lambda first, end, a=a: a[:, first:end].copy())
        for name, a in heads.items()
    }
    rows = []
    for name, one in (
        ("memory", given),
        ("slabs", softs.SoftPrediction(case_id="x", heads=lazy, geometry=place, meta=meta)),
    ):
        (tmp_path / name).mkdir()
        softs.save(tmp_path / name / "soft", one)
        rows.append(write_answer(one, Target(output=tmp_path / name, work=tmp_path)))
    assert rows[0] == rows[1]
    paths = [
        p.relative_to(tmp_path / "memory") for p in (tmp_path / "memory").rglob("*") if p.is_file()
    ]
    assert len(paths) == (5 if task == "image" else 4)
    for path in paths:
        assert (tmp_path / "memory" / path).read_bytes() == (
            tmp_path / "slabs" / path
        ).read_bytes(), path


def test_blocks_of_another_backend_are_not_taken(
    retouch: Path, photographs: Path, tmp_path: Path
) -> None:
    from pipeline.inference.options import ModelOptions
    from pipeline.inference.predictor import prepare
    from pipeline.records import Case

    predictor = prepare(ModelOptions(checkpoint=retouch))
    case = Case(id="a", image=(photographs / "a.png",))
    keys = {
        backend: blocks.key({"m": "0"}, predictor.config, case, backend)
        for backend in ("torch", "onnx", "openvino")
    }
    assert len(set(keys.values())) == 3
    assert keys["torch"] == blocks.key({"m": "0"}, predictor.config, case)
    assert small_models.run_predict(retouch, photographs, tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["backend"] == "torch"
