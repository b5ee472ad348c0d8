"""Prediction, ensembles and scores as commands: options laid over the config, one bad file
contained, members that agree.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import colours, ensemble, evaluate, files, networks, predict
from pipeline import config as configs
from pipeline.data import normalise
from pipeline.inference import soft as softs
from pipeline.inference.fusion import fuse
from pipeline.inference.models import CheckpointError, load_model, load_models, save_model
from pipeline.inference.outputs import answer_files
from pipeline.inference.sliding_window import (
    Source,
    TileRun,
    network_ensemble,
    sliding_window,
    tiling,
)
from pipeline.inference.writing import Target, write_answer
from pipeline.metrics import METRICS
from pipeline.records import Checkpoint, NamedOptions, UserError
from pipeline.workflows import submit as workflow
from pipeline.workflows.fuse import member_folders


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds with random weights: prediction needs no trained ones."""
    from pipeline import files

    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(TINY)
    config = configs.load(folder / "config.yaml")
    for fold in (0, 1):
        torch.manual_seed(fold)
        network = networks.build(config.network, 1, 1, 3)
        weights = network.state_dict()
        model = Checkpoint(
            config=configs.to_dict(config),
            channels=(1, 1),
            fold=fold,
            epoch=3,
            score=0.5,
            weights=weights,
        )
        save_model(folder / f"fold_{fold}" / "best_model.safetensors", model)
        files.write_json(folder / f"fold_{fold}" / "result.json", {**RESULT, "fold": fold})
    return folder


RESULT = {
    "status": "completed",
    "best_epoch": 3,
    "score": 0.5,
    "metrics": {},
    "checkpoint": "best_model.safetensors",
    "chosen": "best",
    "epochs": 4,
    "seconds": 1.0,
    "error": "",
    "cases": {},
}


def go(run: Path, data: Path, out: Path, *more: str) -> int:
    return predict.main(
        ["--checkpoint", str(run), "--input", str(data), "--output", str(out), *more]
    )


def rows(out: Path) -> list[dict]:
    return json.loads((out / "summary.json").read_text())["files"]


def test_answers_visualisations_and_statistics(run: Path, surfaces: Path, tmp_path: Path) -> None:
    assert go(run, surfaces / "test_images", tmp_path, "--threshold", "0.4") == 0
    for row in rows(tmp_path):
        answer = tifffile.imread(tmp_path / f"{row['id']}.tif")
        picture = tifffile.imread(tmp_path / f"{row['id']}_visualization.tif")
        assert answer.dtype == picture.dtype == np.uint8
        assert set(np.unique(answer)) <= {0, 1}
        np.testing.assert_array_equal(picture, answer * 255)
        assert row["foreground_voxels"] == int(answer.sum())
        assert {"components", "largest_component", "seconds", "tiles"} <= set(row)


def test_folds_are_averaged_as_if_predicted_one_by_one(
    run: Path, surfaces: Path, tmp_path: Path
) -> None:
    """RUN reads each volume once for both folds; FOLD by FOLD and pipeline.ensemble must give the
    same.
    """
    tests = surfaces / "test_images"
    assert go(run, tests, tmp_path / "both", "--save-soft") == 0
    for fold in (0, 1):
        assert go(run / f"fold_{fold}", tests, tmp_path / f"fold_{fold}", "--save-soft") == 0
    assert (
        ensemble.main(
            [
                "--fold-dirs",
                str(tmp_path / "fold_0"),
                str(tmp_path / "fold_1"),
                "--output",
                str(tmp_path / "e"),
                "--save-soft",
            ]
        )
        == 0
    )
    for case_id in softs.ids(tmp_path / "both" / "soft"):
        a = softs.load(tmp_path / "both" / "soft", case_id).main
        b = softs.load(tmp_path / "e" / "soft", case_id).main
        np.testing.assert_allclose(a, b, atol=2e-3)
        assert (tmp_path / "e" / f"{case_id}.tif").is_file()


@pytest.mark.parametrize("where", ["run", "fold", "file"])
def test_run_fold_or_file(where: str, run: Path, surfaces: Path, tmp_path: Path) -> None:
    path = {"run": run, "fold": run / "fold_0", "file": run / "fold_0" / "best_model.safetensors"}[
        where
    ]
    assert go(path, surfaces / "test_images" / "900.tif", tmp_path) == 0
    assert len(json.loads((tmp_path / "summary.json").read_text())["models"]) == (
        2 if where == "run" else 1
    )


def test_one_bad_file_does_not_stop_the_others(
    run: Path, surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    good = (surfaces / "test_images" / "900.tif").read_bytes()
    (inputs / "a.tif").write_bytes(good)
    (inputs / "b.tif").write_bytes(good[: len(good) // 3])
    tifffile.imwrite(inputs / "c.tif", np.zeros((20, 20), np.uint8))
    (inputs / "d.tif").write_bytes(good)
    assert go(run, inputs, tmp_path / "out") == 3
    assert [r["status"] for r in rows(tmp_path / "out")] == ["done", "failed", "failed", "done"]
    assert (tmp_path / "out" / "d.tif").is_file()
    assert not (tmp_path / "out" / "b.tif").exists()
    told = capsys.readouterr().out
    assert "c.tif" in told
    assert "3" in rows(tmp_path / "out")[2]["error"]  # says that three axes are needed


def test_nifti_keeps_its_place_in_the_world(run: Path, tmp_path: Path) -> None:
    affine = np.array([[-0.7, 0.1, 0, 12], [0, 0.7, 0.2, -3], [0.1, 0, 1.5, 40], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(
        np.random.default_rng(0).normal(100, 20, (18, 20, 17)).astype(np.float32), affine
    )
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 4)
    image.set_qform(affine, 2)
    (tmp_path / "in").mkdir()
    nibabel.save(image, tmp_path / "in" / "p.nii.gz")
    assert go(run, tmp_path / "in", tmp_path / "out") == 0
    given, answer = (
        nibabel.load(tmp_path / "in" / "p.nii.gz"),
        nibabel.load(tmp_path / "out" / "p.nii.gz"),
    )
    assert answer.shape == given.shape
    for field in (
        "sform_code",
        "qform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "pixdim",
        "quatern_b",
        "xyzt_units",
    ):
        np.testing.assert_array_equal(answer.header[field], given.header[field], err_msg=field)


def test_small_volumes_keep_their_shape(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n, shape in enumerate([(3, 5, 7), (2, 16, 40), (17, 15, 16)]):
        tifffile.imwrite(
            tmp_path / "in" / f"{n}.tif",
            np.random.default_rng(n).integers(0, 255, shape).astype(np.uint16),
            photometric="minisblack",
        )
    assert go(run, tmp_path / "in", tmp_path / "out") == 0
    assert [tifffile.imread(tmp_path / "out" / f"{n}.tif").shape for n in range(3)] == [
        (3, 5, 7),
        (2, 16, 40),
        (17, 15, 16),
    ]


def test_options_reach_tiles_and_steps(run: Path, surfaces: Path, tmp_path: Path) -> None:
    more = [
        "--patch_size",
        "16",
        "24",
        "16",
        "--overlap",
        "8",
        "--min_component_size",
        "7",
        "--max_hole_size",
        "9",
        "--kernel_size",
        "3",
        "--tta",
        "--separate_instances",
    ]
    assert go(run, surfaces / "test_images" / "900.tif", tmp_path, *more) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (
        summary["predict"] | {"patch": [16, 24, 16], "overlap": 8, "flips": True}
        == summary["predict"]
    )
    steps = {s["name"]: s["options"] for s in summary["postprocess"]}
    assert steps["dust"]["below"] == 7
    assert steps["fill_holes"]["below"] == 9
    assert steps["closing"]["size"] == 3
    assert list(steps)[-1] == "instances"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (["--checkpoint", "/nowhere"], "does not exist"),
        (["--input", "/nowhere"], "nowhere"),
        (["--patch-size", "16", "16"], "3"),
        (["--threshold", "1.5"], "1.5"),
        (["--model", "swa"], "only best"),
    ],
)
def test_wrong_arguments_end_with_2(
    change: list[str],
    word: str,
    run: Path,
    surfaces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert go(run, surfaces / "test_images", tmp_path / "out", *change) == 2
    assert word in capsys.readouterr().err


def test_inputs_are_never_overwritten(run: Path, surfaces: Path) -> None:
    before = (surfaces / "test_images" / "900.tif").read_bytes()
    assert go(run, surfaces / "test_images", surfaces / "test_images") == 2
    assert (surfaces / "test_images" / "900.tif").read_bytes() == before


def test_missing_folds_are_refused_unless_allowed(
    run: Path, surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    partial = tmp_path / "partial"
    shutil.copytree(run, partial)
    shutil.rmtree(partial / "fold_1")
    assert go(partial, surfaces / "test_images", tmp_path / "a") == 2
    assert "fold_1" in capsys.readouterr().err
    assert go(partial, surfaces / "test_images", tmp_path / "b", "--allow-missing-folds") == 0


# --- images ---------------------------------------------------------------------------------------


def flat_model(folder: Path, **more: object) -> Path:
    """A model for RGB images with random weights."""
    config = configs.from_dict(
        {
            "name": "flat",
            "task": "labels",
            "data": {
                "dims": 2,
                "layout": "folders",
                "patch": {"size": [32, 32]},
                "normalise": "range",
            },
            "network": {"name": "unet", "options": {"channels": [4, 4, 8, 8, 8]}},
            "losses": ["dice"],
            "predict": {"overlap": 8},
            **more,
        }
    )
    torch.manual_seed(5)
    outputs = (
        3 if config.task == "image" else (1 if config.data.classes == 2 else config.data.classes)
    )
    network = networks.build(config.network, 3, outputs, 2)
    path = folder / "flat" / "best_model.safetensors"
    save_model(
        path,
        Checkpoint(
            config=configs.to_dict(config),
            channels=(3, outputs),
            fold=0,
            epoch=0,
            score=None,
            weights=network.state_dict(),
        ),
    )
    return path


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flat_model(tmp_path_factory.mktemp("flat"))


def rgb(path: Path, size: tuple[int, int] = (45, 61), seed: int = 0) -> np.ndarray:
    """Write an RGB picture; returns it as ``(C, Y, X)``."""
    array = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return np.moveaxis(array, -1, 0)


def test_answers_of_other_models_are_not_replaced_in_silence(
    run: Path, surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = surfaces / "test_images", tmp_path / "out"
    for model, warned in (("fold_0", False), ("fold_0", False), ("fold_1", True)):
        assert go(run / model, images, out) == 0
        told = capsys.readouterr()
        assert ("holds answers of other models" in told.out + told.err) == warned
    summary = json.loads((out / "summary.json").read_text())
    for damaged in (5, {"a": 1}, [None]):
        (out / "summary.json").write_text(json.dumps({**summary, "models": damaged}))
        assert go(run / "fold_1", images, out) == 0


def test_a_config_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("name: x\n")
    assert go(tmp_path / "x.yaml", tmp_path, tmp_path / "out") == 2
    assert "is a config, no model" in capsys.readouterr().err


def test_overlays_lie_beside_answers_and_are_none(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written by predict, not listed as answers, and made again by ensemble from the inputs."""
    image = rgb(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    assert go(flat, tmp_path / "in", out, "--threshold", "0.5", "--save-soft") == 0
    answer = np.asarray(Image.open(out / "a.png"))
    assert 0 < answer.mean() < 1
    shown = np.asarray(Image.open(out / "a_overlay.png"))
    np.testing.assert_array_equal(shown, colours.overlay(image, answer, (colours.SKY,)))
    assert {p.name for p in out.glob("*.png")} == {"a.png", "a_visualization.png", "a_overlay.png"}
    assert list(answer_files(out)) == ["a"]
    assert [a.id for a in workflow.check(out, tmp_path / "in")] == ["a"]
    said = "such as a.png; beside each, to look at: a_overlay.png, a_visualization.png\n"
    assert f"Answers are in {out}, {said}" in capsys.readouterr().out
    assert ensemble.main(["--fold-dirs", str(out), "--output", str(tmp_path / "e")]) == 0
    assert f"Answers are in {tmp_path / 'e'}, {said}" in capsys.readouterr().out
    answer, shown = (
        np.asarray(Image.open(tmp_path / "e" / f"{name}.png")) for name in ("a", "a_overlay")
    )  # of rounded probabilities
    np.testing.assert_array_equal(shown, colours.overlay(image, answer, (colours.SKY,)))


@pytest.mark.parametrize("change", ["gone", "resized", "unreadable"])
def test_ensemble_leaves_out_overlays_of_inputs_that_changed(
    change: str, flat: Path, tmp_path: Path
) -> None:
    rgb(tmp_path / "in" / "a.png")
    assert go(flat, tmp_path / "in", tmp_path / "out", "--save-soft") == 0
    if change == "gone":
        (tmp_path / "in" / "a.png").unlink()
    elif change == "resized":
        rgb(tmp_path / "in" / "a.png", (46, 61))
    else:
        (tmp_path / "in" / "a.png").write_bytes(b"not a picture")
    assert (
        ensemble.main(["--fold-dirs", str(tmp_path / "out"), "--output", str(tmp_path / "e")]) == 0
    )
    assert {p.name for p in (tmp_path / "e").glob("*.png")} == {"a.png", "a_visualization.png"}


def test_classes_have_their_colours_in_overlays(tmp_path: Path) -> None:
    soft = np.eye(4, dtype=np.float32)[:, :, None].repeat(3, axis=2)  # row n is class n
    given = softs.SoftPrediction(
        case_id="x", heads={"main": soft}, meta=softs.SoftMeta(task="labels", suffix=".png")
    )
    write_answer(given, Target(output=tmp_path, image=np.zeros((1, 4, 3), np.uint8)))
    shown = np.asarray(Image.open(tmp_path / "x_overlay.png"))[:, 0]
    np.testing.assert_allclose(shown, 0.75 * np.array([(0, 0, 0), *colours.CLASSES[:3]]), atol=0.51)


def test_volumes_have_no_overlays(run: Path, surfaces: Path, tmp_path: Path) -> None:
    assert go(run / "fold_0", surfaces / "test_images" / "900.tif", tmp_path) == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "900.tif",
        "900_visualization.tif",
        "summary.json",
    }


def test_several_files_and_folders(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one/a.png", "one/b.png", "two/c.png", "more/a.png"):
        rgb(tmp_path / name, (20, 20))
    words = ["--checkpoint", str(flat), "--output", str(tmp_path / "out"), "--input"]
    assert (
        predict.main(
            [
                *words,
                str(tmp_path / "one" / "b.png"),
                str(tmp_path / "two"),
                str(tmp_path / "one" / "a.png"),
            ]
        )
        == 0
    )
    assert [r["id"] for r in rows(tmp_path / "out")] == ["b", "c", "a"]
    assert predict.main([*words, str(tmp_path / "one"), str(tmp_path / "more" / "a.png")]) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "one" / "a.png") in told
    assert str(tmp_path / "more" / "a.png") in told
    assert predict.main([*words, str(tmp_path / "one"), str(tmp_path / "none.png")]) == 2
    assert (
        predict.main(
            [
                *words[:3],
                str(tmp_path / "two"),
                "--input",
                str(tmp_path / "one" / "a.png"),
                str(tmp_path / "two"),
            ]
        )
        == 2
    )


def test_inputs_named_like_overlays_are_refused(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "a_overlay"):
        rgb(tmp_path / "in" / f"{name}.png", (20, 20))
    assert go(flat, tmp_path / "in", tmp_path / "out") == 2
    assert "a_overlay.png" in capsys.readouterr().err
    assert go(flat, tmp_path / "in" / "a_overlay.png", tmp_path / "out") == 0


def test_an_ensemble_of_runs_takes_several_inputs(flat: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        rgb(tmp_path / "in" / f"{name}.png", (20, 20))
    spec = tmp_path / "e.yaml"
    spec.write_text(f"members: [{{run: {flat.parent}}}]\n")
    inputs = [str(tmp_path / "in" / f"{name}.png") for name in ("a", "c")]
    assert (
        ensemble.main(["--spec", str(spec), "--output", str(tmp_path / "out"), "--input", *inputs])
        == 0
    )
    assert list(answer_files(tmp_path / "out")) == ["a", "c"]
    assert (tmp_path / "out" / "a_overlay.png").is_file()
    assert (
        ensemble.main(["--spec", str(spec), "--output", str(tmp_path / "in"), "--input", *inputs])
        == 2
    )


def test_whole_and_scales_reach_the_network(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgb(tmp_path / "in" / "a.png", (70, 45))
    assert (
        go(
            flat,
            tmp_path / "in",
            tmp_path / "w",
            "--whole",
            "--save-soft",
            "--scales",
            "0.75",
            "1",
            "--tta",
        )
        == 0
    )
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert (
        summary["predict"] | {"patch": "whole", "scales": [0.75, 1.0], "flips": True}
        == summary["predict"]
    )
    assert summary["files"][0]["tiles"] == 1
    array, _ = files.read(tmp_path / "in" / "a.png", 2)
    (network,), config = load_models([flat])
    config = dataclasses.replace(
        config, predict=dataclasses.replace(config.predict, flips=True, scales=(0.75, 1.0))
    )
    source = Source(array=array, scale=normalise.fit(config.data.normalise, array))
    with torch.inference_mode():
        expected = network_ensemble([network], config, "cpu")(
            torch.from_numpy(source.scale.apply(array)[None])
        )["main"][0].numpy()
    np.testing.assert_allclose(softs.load(tmp_path / "w" / "soft", "a").main, expected, atol=1e-3)
    with pytest.raises(SystemExit, match="2"):
        go(flat, tmp_path / "in", tmp_path / "x", "--whole", "--patch-size", "32")
    assert go(flat, tmp_path / "in", tmp_path / "x", "--scales", "0") == 2
    assert "predict.scales" in capsys.readouterr().err


def test_whole_in_the_config_gives_way_to_a_patch_size(tmp_path: Path) -> None:
    model = flat_model(tmp_path, predict={"patch": "whole"})
    rgb(tmp_path / "in" / "a.png", (70, 45))
    assert go(model, tmp_path / "in", tmp_path / "w") == 0
    assert go(model, tmp_path / "in", tmp_path / "t", "--patch-size", "32", "--overlap", "0") == 0
    assert [rows(tmp_path / f)[0]["tiles"] for f in "wt"] == [1, 6]


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "gif", "bmp", "png"])
def test_labels_are_written_without_loss(ending: str, flat: Path, tmp_path: Path) -> None:
    rgb(tmp_path / "in" / f"a.{ending}", (40, 40))
    assert go(flat, tmp_path / "in", tmp_path / "out") == 0
    assert rows(tmp_path / "out")[0]["output"] == "a.png"
    assert set(np.unique(np.asarray(Image.open(tmp_path / "out" / "a.png")))) == {0, 1}


@pytest.mark.parametrize(
    ("ending", "written"), [("jpg", "jpg"), ("gif", "png"), ("bmp", "png"), ("png", "png")]
)
def test_images_keep_a_format_that_can_be_written(
    ending: str, written: str, tmp_path: Path
) -> None:
    model = flat_model(tmp_path, task="image", losses=[{"name": "l1", "target": "target"}])
    rgb(tmp_path / "in" / f"a.{ending}", (40, 40))
    assert go(model, tmp_path / "in", tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"a.{written}", "summary.json"}
    assert files.probe(tmp_path / "out" / f"a.{written}", 2).shape == (3, 40, 40)


# --- model files ----------------------------------------------------------------------------------


def test_model_files_are_byte_reproducible_and_complete(run: Path, tmp_path: Path) -> None:
    path = run / "fold_0" / "best_model.safetensors"
    model = load_model(path)
    save_model(tmp_path / "again.safetensors", model)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert model.channels == (1, 1)
    assert model.config["name"] == "tiny"


def test_foreign_and_damaged_models_are_refused(run: Path, tmp_path: Path) -> None:
    content = (run / "fold_0" / "best_model.safetensors").read_bytes()
    for name, data in [
        ("cut", content[: len(content) // 2]),
        ("empty", b""),
        ("noise", b"\x00" * 999),
        ("huge_header", b"\xff" * 8 + content),
    ]:
        (tmp_path / f"{name}.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError):
            load_model(tmp_path / f"{name}.safetensors")
    (tmp_path / "model.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="pickled"):
        load_model(tmp_path / "model.pth")


def test_architecture_mismatch_lists_the_weights(
    run: Path, tmp_path: Path, surfaces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(run / "fold_0" / "best_model.safetensors")
    config = json.loads(json.dumps(model.config))
    config["network"]["options"]["channels"] = [4, 4, 8, 8, 16]
    save_model(
        tmp_path / "odd.safetensors",
        Checkpoint(
            config=config, channels=(1, 1), fold=0, epoch=0, score=None, weights=model.weights
        ),
    )
    assert go(tmp_path / "odd.safetensors", surfaces / "test_images", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "shape:" in told
    assert "the network wants" in told


# --- ensembles ------------------------------------------------------------------------------------


def member(folder: Path, softs_by_id: dict[str, np.ndarray]) -> Path:
    for case_id, array in softs_by_id.items():
        meta = softs.SoftMeta(task="labels", suffix=".tif", dtype="uint8")
        softs.save(
            folder / "soft", softs.SoftPrediction(case_id=case_id, heads={"main": array}, meta=meta)
        )
    return folder


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.01, 5), min_size=1, max_size=4),
    st.sampled_from(["mean", "logit", "vote"]),
    st.integers(1, 3),
    st.integers(1, 40),
)
def test_fusion_equals_the_formula(
    weights: list[float], fusion: str, channels: int, depth: int
) -> None:
    rng = np.random.default_rng(len(weights))
    arrays = [rng.random((channels, depth, 3, 2)).astype(np.float32) for _ in weights]
    arrays = [a / a.sum(0) if channels > 1 else a for a in arrays]
    w = np.array(weights) / sum(weights)
    if fusion == "mean":
        expected = sum(x * a for x, a in zip(w, arrays, strict=True))
    elif fusion == "vote":
        decide = [
            (
                (a >= 0.5)
                if channels == 1
                else (np.arange(channels)[:, None, None, None] == a.argmax(0))
            )
            for a in arrays
        ]
        expected = sum(x * d for x, d in zip(w, decide, strict=True))
    else:
        clipped = [np.clip(a.astype(float), 2.0**-12, 1 - 2.0**-12) for a in arrays]
        if channels == 1:
            z = sum(x * np.log(a / (1 - a)) for x, a in zip(w, clipped, strict=True))
            expected = 1 / (1 + np.exp(-z))
        else:
            z = np.exp(sum(x * np.log(a) for x, a in zip(w, clipped, strict=True)))
            expected = z / z.sum(0)
    np.testing.assert_allclose(fuse(arrays, weights, fusion, "x"), expected, atol=1e-5)


def test_one_member_is_itself_and_equal_members_change_nothing() -> None:
    a = np.random.default_rng(0).uniform(0.05, 0.95, (1, 40, 5, 6)).astype(np.float32)
    for fusion in ("mean", "logit"):
        np.testing.assert_allclose(fuse([a], [3.0], fusion, "x"), a, atol=1e-5)
        np.testing.assert_allclose(fuse([a, a, a], [1.0, 2.0, 0.5], fusion, "x"), a, atol=1e-5)


def test_disagreeing_members_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = np.full((1, 4, 4, 4), 0.5, np.float32)
    one = member(tmp_path / "one", {"x": a, "y": a})
    two = member(tmp_path / "two", {"x": a, "z": a})
    assert ensemble.main(["--fold-dirs", str(one), str(two), "--output", str(tmp_path / "o")]) == 2
    told = capsys.readouterr().err
    assert "y" in told
    assert "z" in told
    three = member(tmp_path / "three", {"x": a, "y": np.full((1, 4, 4, 5), 0.5, np.float32)})
    assert (
        ensemble.main(["--fold-dirs", str(one), str(three), "--output", str(tmp_path / "o")]) == 2
    )
    assert "shape" in capsys.readouterr().err
    assert ensemble.main(["--fold-dirs", str(one), "--output", str(one)]) == 2


def test_spec_gives_members_weights_and_steps(tmp_path: Path) -> None:
    low, high = (np.full((1, 6, 6, 6), p, np.float32) for p in (0.2, 0.6))
    member(tmp_path / "p" / "fold_0", {"x": low})
    member(tmp_path / "p" / "fold_1", {"x": high})
    spec = tmp_path / "e.yaml"
    spec.write_text(
        f"members: [{{run: {tmp_path}/p, folds: [0, 1]}}]\n"
        "postprocess: [{name: threshold, options: {at: 0.39}}]\n"
    )
    assert ensemble.main(["--spec", str(spec), "--output", str(tmp_path / "o")]) == 0
    assert tifffile.imread(tmp_path / "o" / "x.tif").all()
    spec.write_text(
        f"members: [{{run: {tmp_path}/p/fold_0, weight: 3}}, {{run: {tmp_path}/p/fold_1}}]\n"
        "fusion: mean\n"
    )
    assert ensemble.main(["--spec", str(spec), "--output", str(tmp_path / "o2")]) == 0
    assert not tifffile.imread(tmp_path / "o2" / "x.tif").any()
    spec.write_text("memberz: []\n")
    assert ensemble.main(["--spec", str(spec), "--output", str(tmp_path / "o3")]) == 2


def test_answers_alone_can_vote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n, value in enumerate([1, 1, 0]):
        (tmp_path / f"m{n}").mkdir()
        tifffile.imwrite(
            tmp_path / f"m{n}" / "x.tif",
            np.full((4, 5, 6), value, np.uint8),
            photometric="minisblack",
        )
    folders = [str(tmp_path / f"m{n}") for n in range(3)]
    assert ensemble.main(["--fold-dirs", *folders, "--output", str(tmp_path / "o")]) == 2
    assert "--fusion vote" in capsys.readouterr().err
    assert (
        ensemble.main(
            ["--fold-dirs", *folders, "--output", str(tmp_path / "o"), "--fusion", "vote"]
        )
        == 0
    )
    assert tifffile.imread(tmp_path / "o" / "x.tif").all()


# --- scores ---------------------------------------------------------------------------------------


def test_evaluate_writes_the_contract(surfaces: Path, tmp_path: Path) -> None:
    labels = surfaces / "train_labels"
    (tmp_path / "p").mkdir()
    for path in labels.iterdir():
        label = tifffile.imread(path)
        tifffile.imwrite(
            tmp_path / "p" / path.name, (label == 1).astype(np.uint8), photometric="minisblack"
        )
    out = tmp_path / "scores.json"
    words = [
        "--predictions",
        tmp_path / "p",
        "--labels",
        labels,
        "--metrics",
        "dice",
        "surface_dice",
        "--out",
        out,
        "--ignore-label",
        2,
    ]
    assert evaluate.main([str(w) for w in words]) == 0
    scores = json.loads(out.read_text())
    assert set(scores) == {"cases", "mean", "pooled", "failed"}
    assert len(scores["cases"]) == 6
    assert scores["mean"] == {"dice": 1.0, "surface_dice": 1.0}
    (tmp_path / "p" / "100.tif").unlink()
    assert evaluate.main(["--predictions", str(tmp_path / "p"), "--labels", str(labels)]) == 2


@pytest.mark.slow
def test_the_ignored_label_travels_with_predictions(
    run: Path, surfaces: Path, tmp_path: Path
) -> None:
    """From the model's config through predict and ensemble to evaluate: value 2 is no class there,
    whatever the answers hold.
    """
    inputs, labels = surfaces / "train_images", surfaces / "train_labels"
    assert go(run, inputs, tmp_path / "p", "--save-soft") == 0
    assert ensemble.main(["--fold-dirs", str(tmp_path / "p"), "--output", str(tmp_path / "e")]) == 0
    for folder in ("p", "e"):
        assert json.loads((tmp_path / folder / "summary.json").read_text())["ignore_label"] == 2
        out = tmp_path / f"{folder}.json"
        assert (
            evaluate.main(
                [
                    "--predictions",
                    str(tmp_path / folder),
                    "--labels",
                    str(labels),
                    "--metrics",
                    "dice",
                    "--out",
                    str(out),
                ]
            )
            == 0
        )
        assert list(json.loads(out.read_text())["mean"]) == ["dice"]


def test_a_wrong_shape_is_a_failed_case_and_exit_3(surfaces: Path, tmp_path: Path) -> None:
    labels = surfaces / "train_labels"
    (tmp_path / "p").mkdir()
    for path in labels.iterdir():
        shape = (3, 3, 3) if path.stem == "101" else tifffile.imread(path).shape
        tifffile.imwrite(
            tmp_path / "p" / path.name, np.zeros(shape, np.uint8), photometric="minisblack"
        )
    out = tmp_path / "s.json"
    assert (
        evaluate.main(
            [
                "--predictions",
                str(tmp_path / "p"),
                "--labels",
                str(labels),
                "--metrics",
                "dice",
                "--out",
                str(out),
            ]
        )
        == 3
    )
    assert list(json.loads(out.read_text())["failed"]) == ["101"]


def test_unknown_metric_is_refused(surfaces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(surfaces / "train_labels")
    assert evaluate.main(["--predictions", folder, "--labels", folder, "--metrics", "dicee"]) == 2
    assert "dice" in capsys.readouterr().err
    assert "dice" in METRICS


def test_training_and_prediction_normalise_alike(run: Path, surfaces: Path) -> None:
    """The scale that predict fits on a file is the one that the store keeps for the same file."""
    from pipeline import files
    from pipeline.data import cases, properties

    config = configs.load(run / "config.yaml")
    found = cases.find(config.data, config.targets, surfaces).train
    facts = properties.examine(found, config, None, write=False)
    for case, fact in zip(found, facts, strict=True):
        array, _ = files.read(case.image[0], 3)
        assert normalise.fit(config.data.normalise, array) == fact.scale


def test_prediction_is_the_sliding_window(run: Path, surfaces: Path, tmp_path: Path) -> None:
    assert go(run / "fold_0", surfaces / "test_images" / "900.tif", tmp_path, "--save-soft") == 0
    config = configs.load(run / "config.yaml")
    model = load_model(run / "fold_0" / "best_model.safetensors")
    network = networks.build(config.network, 1, 1, 3).eval()
    network.load_state_dict(dict(model.weights))
    array = tifffile.imread(surfaces / "test_images" / "900.tif")[None]
    scale = normalise.fit(config.data.normalise, array)
    predict_tile = network_ensemble([network], config, "cpu")
    tile_run = TileRun(
        source=Source(array=array, scale=scale),
        predict_tile=predict_tile,
        tiles=tiling(config, array.shape[1:], predict_tile),
    )
    soft = sliding_window(tile_run)["main"]
    np.testing.assert_allclose(softs.load(tmp_path / "soft", "900").main, soft, atol=1e-3)


def test_member_weights_must_make_sense() -> None:
    from pipeline.records import Member

    with pytest.raises(UserError, match="weights"):
        member_folders([Member(run=Path("."), weight=0.0)])
    assert NamedOptions(name="x").options == {}
