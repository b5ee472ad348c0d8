"""The public names: light to import, quiet, and with the answers of the commands."""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from conftest import competition_folder, do_nothing_model, sheets
from documents import ROOT, run_blocks
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from small_models import model_file, nifti, run_predict

import pipeline as pl
from pipeline import files, train
from pipeline.__main__ import COMMANDS
from pipeline.inference import soft as softs
from pipeline.runs import RunFolder
from pipeline.training.job import FoldJob, TrainingError

Output = pytest.CaptureFixture[str]


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the names ------------------------------------------------------------------------------------


def test_importing_loads_nothing() -> None:
    heavy = "{'torch', 'monai', 'numpy', 'yaml', 'pydantic', 'argparse', 'logging', 'tqdm'}"
    assert python(f"import sys, pipeline; print(sorted({heavy} & set(sys.modules)))") == "[]\n"


def test_every_public_name_is_there_and_no_command_is_called_so() -> None:
    assert set(pl.__all__) <= set(dir(pl))
    for name in pl.__all__:
        assert getattr(pl, name).__doc__, name
    assert not set(pl.__all__) & {*COMMANDS, "plan", "convert", "pack", "__main__"}
    with pytest.raises(AttributeError, match="offers AugmentationEntry"):
        _ = pl.nothing  # type: ignore[attr-defined]


def test_types_are_known_to_checkers() -> None:
    """The marker of PEP 561, and the same names for a checker as at run time."""
    assert (ROOT / "pipeline" / "py.typed").is_file()
    text = (ROOT / "pipeline" / "__init__.py").read_text()
    imported = re.findall(r"^    from (pipeline\.[\w.]+) import (\w+) as \2$", text, re.MULTILINE)
    assert sorted(pl.__all__) == sorted(name for _, name in imported)
    for home, name in imported:
        assert getattr(importlib.import_module(home), name) is getattr(pl, name)


# --- a notebook -----------------------------------------------------------------------------------


def test_the_page_runs_as_it_stands(
    surfaces: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "docs" / "library.md", {"DATA": surfaces, "CONFIG": str(tiny)})
    assert names["labels"].shape == names["truth"].shape
    assert 0 <= names["scores"]["dice"] <= 1
    told = capsys.readouterr()
    assert "Epoch" not in told.out + told.err
    assert told.out.startswith("{'dice': ")


@pytest.mark.slow
def test_training_by_function_and_by_command_is_one(
    surfaces: Path, tiny: Path, tmp_path: Path
) -> None:
    run = pl.train_folds(str(tiny), data=str(surfaces), folds=[1], out=str(tmp_path / "a"))
    words = [
        "--config",
        str(tiny),
        "--data-dir",
        str(surfaces),
        "--fold",
        "1",
        "--out",
        str(tmp_path / "b"),
        "--device",
        "cpu",
    ]
    assert train.main(words) == 0
    for name in ("best_model.safetensors", "swa_model.safetensors"):
        assert (run.path / "fold_1" / name).read_bytes() == (
            tmp_path / "b" / "fold_1" / name
        ).read_bytes()
    assert pl.train_folds(pl.load_config(tiny), surfaces, folds=(1,), out=tmp_path / "a") == run


def test_a_fold_that_fails_is_an_error(
    surfaces: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(job: FoldJob) -> None:
        raise TrainingError(f"loss of fold {job.fold} is nan")

    monkeypatch.setattr("pipeline.training.loop.fit", diverge)
    with pytest.raises(
        pl.FoldError,
        match=(
            r"fold 0 failed: TrainingError: loss of fold 0 is nan. See .*error.txt\n.*fold 1 failed"
        ),
    ):
        pl.train_folds(tiny, surfaces, out=tmp_path / "run", continue_on_error=True)
    assert RunFolder(tmp_path / "run").fold(0).result().status == "failed"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("folds", "told"), [([7], "--fold 7: there are 2 folds"), ([], "none is named")]
)
def test_folds_that_are_not_there(
    folds: list[int], told: str, surfaces: Path, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(pl.UserError, match=told):
        pl.train_folds(tiny, surfaces, folds=folds, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- a predictor ----------------------------------------------------------------------------------


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, np.ndarray, Path]:
    """A model file, a volume, and the folder of the command's answer to it."""
    model = model_file(tmp_path)
    volume = sheets((20, 24, 28), 3)[0]
    tifffile.imwrite(tmp_path / "v.tif", volume)
    assert run_predict(model, tmp_path / "v.tif", tmp_path / "out", "--save-soft") == 0
    return model, volume, tmp_path / "out"


def test_an_array_has_the_answer_of_its_file(
    case: tuple[Path, np.ndarray, Path], tmp_path: Path, capsys: Output
) -> None:
    model, volume, out = case
    capsys.readouterr()
    predictor = pl.Predictor.load(model)
    labels, heads = predictor.predict(volume), predictor.predict_heads(volume)
    wanted = files.read(out / "v.tif", 3, labels=True)[0][0]
    assert np.array_equal(labels, wanted)
    assert 0 < wanted.mean() < 1
    assert np.array_equal(heads["main"].astype(np.float16), softs.load(out / "soft", "v").main)
    assert list(heads) == ["main"]
    assert np.array_equal(predictor.predict(tmp_path / "v.tif"), wanted)
    assert np.array_equal(predictor.predict(str(tmp_path / "v.tif")), wanted)
    assert np.array_equal(predictor.predict(volume[None]), wanted)
    assert capsys.readouterr() == ("", "")


def test_a_tensor_gives_a_tensor(case: tuple[Path, np.ndarray, Path]) -> None:
    model, volume, _ = case
    predictor = pl.Predictor.load(model)
    labels = predictor.predict(torch.from_numpy(volume))
    assert isinstance(labels, torch.Tensor)
    assert labels.device.type == "cpu"
    assert np.array_equal(labels.numpy(), predictor.predict(volume))
    heads = predictor.predict_heads(torch.from_numpy(volume))
    heads["main"] += 1  # an ordinary tensor
    assert not heads["main"].is_inference()


def test_axes_in_another_order_change_nothing(case: tuple[Path, np.ndarray, Path]) -> None:
    model, volume, _ = case
    predictor = pl.Predictor.load(model)
    turned = predictor.predict(volume.transpose(2, 0, 1), axes="xzy", spacing=(1, 2, 3))
    assert np.array_equal(turned, predictor.predict(volume).transpose(2, 0, 1))


def test_two_devices_have_the_bits_of_one(case: tuple[Path, np.ndarray, Path]) -> None:
    model, volume, _ = case
    for options in ({}, {"batch": 3}, {"flips": True, "norms": "tile"}):
        one = pl.Predictor.load(model, device="cpu", **options).predict_heads(volume)["main"]
        two = pl.Predictor.load(model, device=["cpu", "cpu", "cpu"], **options).predict_heads(
            volume
        )["main"]
        assert np.array_equal(one, two)


def test_threads_are_given_back(
    case: tuple[Path, np.ndarray, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, volume, _ = case
    predictor, seen = pl.Predictor.load(model, threads=2), []
    monkeypatch.setattr(
        "pipeline.inference.predictor.sliding_window",
        lambda *_, **__: (
            seen.append(torch.get_num_threads())
            or {"main": np.zeros((1, *volume.shape), np.float32)}
        ),
    )
    predictor.predict(volume)
    assert (seen, torch.get_num_threads()) == ([2], 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"folds": "all"}, "is no run folder"),
        ({"threads": 0}, "at least 1 thread"),
        ({"device": "gpu"}, "none of auto, cpu, cuda"),
        ({"device": "cuda:99"}, "CUDA"),
        ({"folds": [0]}, "is no run folder"),
        ({"patch_size": [0]}, "Enlarge the patch"),
    ],
)
def test_loading_says_what_cannot_be(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    model_file(tmp_path)
    with pytest.raises(pl.UserError, match=told):
        pl.Predictor.load(tmp_path, **options).predict(np.zeros((8, 8, 8), np.uint8))


def test_loading_knows_its_options(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match="takes no overlapp; further options are allow_missing_folds"
    ):
        pl.Predictor.load(model_file(tmp_path), overlapp=3)


@pytest.mark.parametrize(
    ("volume", "where", "told"),
    [
        (np.zeros((8, 8)), {}, r"shape \(8, 8\)"),
        (np.zeros((2, 8, 8, 8)), {}, "has 2 channels, the model takes 1"),
        (np.full((8, 8, 8), np.nan), {}, "NaN"),
        (np.array(["a"]), {}, "numbers of shape"),
        (np.zeros((8, 8, 8)), {"axes": "zzx"}, "must be the letters 'zyx'"),
        (np.zeros((8, 8, 8)), {"spacing": (1, 2)}, "3 positive numbers"),
        (np.zeros((8, 8, 8)), {"affine": np.eye(3)}, "4 x 4"),
        (np.zeros((8, 8, 8)), {"affine": np.eye(4), "axes": "xyz"}, "leave spacing and axes out"),
    ],
)
def test_arrays_that_cannot_be_answered(
    volume: Any, where: dict[str, Any], told: str, tmp_path: Path
) -> None:
    predictor = pl.Predictor.load(model_file(tmp_path))
    with pytest.raises(pl.UserError, match=told):
        predictor.predict(volume, **where)


def test_a_model_of_nifti_asks_for_an_affine(tmp_path: Path) -> None:
    model = model_file(
        tmp_path, trained_on={"family": "nifti", "codes": "RAS", "spacing": [1.0, 1.0, 1.0]}
    )
    volume, affine = sheets((20, 24, 28), 3)[0], np.diag([1.0, 1.0, 1.0, 1.0])
    predictor = pl.Predictor.load(model)
    with pytest.raises(pl.UserError, match=r"axes RAS.*Give affine="):
        predictor.predict(volume)
    straight = predictor.predict(volume, affine=affine)
    path = nifti(tmp_path / "turned.nii.gz", volume, affine, "PIR")
    image = nibabel.load(path)
    turned = predictor.predict(np.asarray(image.dataobj), affine=image.affine)
    assert np.array_equal(turned, predictor.predict(path))
    back = nibabel.Nifti1Image(turned, image.affine).as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(image.affine), nibabel.io_orientation(affine)
        )
    )
    assert np.array_equal(np.asarray(back.dataobj), straight)


def test_images_come_back_in_their_type(tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (3, 40, 50), np.uint8)
    predictor = pl.Predictor.load(do_nothing_model(tmp_path / "m.safetensors", 3))
    answer = predictor.predict(photograph)
    assert answer.dtype == np.uint8
    assert np.array_equal(answer, photograph)


def test_warnings_come_once_and_by_logging(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_file(tmp_path, trained_on={"family": "array", "spacing": [1.0, 1.0, 1.0]})
    predictor, volume = pl.Predictor.load(model), sheets((20, 24, 28), 3)[0]
    for _ in range(2):
        predictor.predict(volume, spacing=(4, 1, 1))
    told = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert [
        ("its voxels are 4 x 1 x 1" in r.getMessage(), r.name.startswith("pipeline.")) for r in told
    ] == [(True, True)]


@pytest.mark.slow
def test_warnings_reach_standard_error_of_a_plain_script(tmp_path: Path) -> None:
    model = model_file(tmp_path, trained_on={"family": "array", "spacing": [1.0, 1.0, 1.0]})
    code = (
        "import logging, numpy as np, pipeline as pl\n"
        f"p = pl.Predictor.load({str(model)!r})\n"
        "{}p.predict(np.random.default_rng(0).integers(0, 255, (16, 16, 16)).astype('uint8'), "
        "spacing=(4, 1, 1))"
    )
    for more, wanted in (("", 1), ("logging.getLogger('pipeline').setLevel(logging.ERROR)\n", 0)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(more)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert done.stderr.count("its voxels are") == wanted


def test_a_run_answers_with_its_finished_folds(surfaces: Path, tiny: Path, tmp_path: Path) -> None:
    run = pl.train_folds(
        pl.load_config(tiny, ["train.epochs=1", "train.average=null"]),
        surfaces,
        folds=[1],
        out=tmp_path / "run",
    )
    predictor = pl.Predictor.load(tmp_path / "run")
    assert predictor.models == (str(run.fold(1).model("auto")),)
    assert predictor.models == pl.Predictor.load(run, folds=[1], model="best").models


def test_a_tensor_of_monai_says_how_it_lies(tmp_path: Path) -> None:
    model = model_file(
        tmp_path, trained_on={"family": "nifti", "codes": "RAS", "spacing": [1.0, 1.0, 1.0]}
    )
    volume, affine = sheets((20, 24, 28), 3)[0], np.diag([-1.0, 1.0, 1.0, 1.0])
    predictor = pl.Predictor.load(model)
    found = predictor.predict(MetaTensor(torch.from_numpy(volume), affine=torch.from_numpy(affine)))
    assert np.array_equal(found.numpy(), predictor.predict(volume, affine=affine))
    assert repr(predictor).startswith("Predictor('small', 1 model, 1 channel, device 'c")


# --- the process of a user ------------------------------------------------------------------------


def test_training_leaves_monai_as_it_was(surfaces: Path, tiny: Path, tmp_path: Path) -> None:
    assert get_track_meta()
    config = pl.load_config(tiny, ["train.epochs=1", "train.average=null"])
    run = pl.train_folds(config, surfaces, folds=0, out=str(tmp_path / "run"))
    assert get_track_meta()
    assert run.fold(0).exists
    assert not run.fold(1).exists


def test_names_and_single_things_will_do(
    case: tuple[Path, np.ndarray, Path], surfaces: Path, tiny: Path, tmp_path: Path
) -> None:
    model, volume, _ = case
    assert pl.load_config(tiny, "train.epochs=9").train.epochs == 9
    assert pl.RunFolder(str(tmp_path)) == RunFolder(tmp_path)
    assert pl.ModelOptions(checkpoint=str(model)).checkpoint == model
    done = pl.predict_files(
        pl.ModelOptions(checkpoint=str(model)), str(tmp_path / "v.tif"), str(tmp_path / "again")
    )
    assert (done.code, done.failed) == (0, [])
    assert pl.score(volume > 99, volume > 90, "dice", spacing=2.0) == pl.score(
        volume > 99, volume > 90, ["dice"]
    )
    zipped = pl.write_submission(
        str(tmp_path / "again"), str(_alone(tmp_path)), str(tmp_path / "s.zip")
    )
    assert [a.id for a in zipped.answers] == ["v"]


def _alone(folder: Path) -> Path:
    """A folder with the one volume in it."""
    (folder / "tests").mkdir()
    (folder / "tests" / "v.tif").write_bytes((folder / "v.tif").read_bytes())
    return folder / "tests"


def test_a_script_without_a_guard_scores(tmp_path: Path) -> None:
    """Its body would run again in every process that is started from it."""
    for name in ("p", "t"):
        for n in range(3):
            files.write(tmp_path / name / f"{n}.tif", sheets((8, 8, 8), n)[1])
    script = tmp_path / "script.py"
    script.write_text(
        "print('BODY')\n"
        "import pipeline as pl\n"
        f"print(pl.score_folder({str(tmp_path / 'p')!r}, {str(tmp_path / 't')!r}, 'dice', "
        "ignore_label=2)['mean'])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "BODY\n{'dice': 1.0}\n", done.stderr


def test_faults_of_data_are_in_the_error(tiny: Path, tmp_path: Path) -> None:
    data = competition_folder(tmp_path / "d", cases=4)
    (data / "train_labels" / "100.tif").write_bytes(b"no picture")
    with pytest.raises(pl.UserError, match=r"1 fault in the data.*\n.*100.tif"):
        pl.train_folds(tiny, data, out=tmp_path / "run")


def test_folders_in_which_nothing_can_be_scored(tmp_path: Path) -> None:
    for name in ("p", "t"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.tif").write_bytes(b"no picture")
    with pytest.raises(pl.UserError, match=r"a.tif"):
        pl.score_folder(tmp_path / "p", tmp_path / "t", "dice")
    with pytest.raises(TypeError, match="takes no fow; further options are"):
        pl.score_folder(tmp_path / "p", tmp_path / "t", "dice", fow=3)


def test_random_numbers_of_the_caller_go_on_undisturbed(
    case: tuple[Path, np.ndarray, Path], surfaces: Path, tiny: Path, tmp_path: Path
) -> None:
    model, volume, _ = case
    before = torch.get_rng_state()
    pl.Predictor.load(model).predict(volume)
    config = pl.load_config(tiny, ["train.epochs=1", "train.average=null"])
    with torch.no_grad():  # a notebook that predicts elsewhere
        pl.train_folds(config, surfaces, folds=np.arange(1), out=tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


def test_two_trainings_at_a_time_are_refused(
    surfaces: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(job: FoldJob) -> None:
        with pytest.raises(pl.UserError, match="another thread of this process is training"):
            pl.train_folds(tiny, surfaces, folds=1, out=tmp_path / "other")
        raise TrainingError("enough")

    monkeypatch.setattr("pipeline.training.loop.fit", twice)
    with pytest.raises(pl.FoldError, match="enough"):
        pl.train_folds(tiny, surfaces, folds=0, out=tmp_path / "run")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m: pl.Predictor.load(m, norms="x"), "norms"),
        (lambda m: pl.Predictor.load(m, batch=1.5), "batch"),
        (lambda m: pl.Predictor.load(m, overlap="4.5"), "overlap"),
        (lambda m: pl.Predictor.load(m, folds=[]), "none is named"),
        (lambda m: pl.Predictor.load(m, folds=[0, 0]), "each once"),
        (lambda m: pl.Predictor.load(m, folds=[True]), "whole numbers"),
        (lambda m: pl.Predictor.load(m, device=None), "none of auto"),
        (lambda m: pl.predict_files(pl.ModelOptions(checkpoint=m), [], "o"), "no file"),
        (
            lambda m: pl.predict_files(pl.ModelOptions(checkpoint=m), "v", "o", blocks="x"),
            "blocks is 'x'",
        ),
        (
            lambda m: pl.predict_files(pl.ModelOptions(checkpoint=m), "v", "o", shard=(5, 2)),
            "shard is",
        ),
        (lambda m: pl.tune_postprocessing([]), "no run folder"),
        (lambda m: pl.tune_postprocessing("r", by="x"), "must be group or fold"),
        (lambda m: pl.train_folds("configs/demo.yaml", folds=[1.5]), "whole numbers"),
        (lambda m: pl.train_folds("configs/demo.yaml", folds=[1, 1]), "each once"),
        (lambda m: pl.score([[0]], [[0]], []), "at least one"),
        (lambda m: pl.score([[0]], [[0]], [{"name": "dice", "bla": 1}]), "names no metric"),
        (
            lambda m: pl.score(
                [[0]], [[0]], ["surface_dice:tolerance=1", "surface_dice:tolerance=2"]
            ),
            "each once",
        ),
        (lambda m: pl.score([[0]], [[0]], "dice", ignore_label="2"), "give a whole number"),
        (lambda m: pl.score([[0]], [[0]], "hd95", spacing=(-1, 1)), "above 0"),
        (lambda m: pl.score([[0]], [[np.inf]], "dice"), "no class numbers"),
        (lambda m: pl.score([[0]], [[0]], "roc_auc", probabilities=[[np.nan]]), "0 to 1"),
        (lambda m: pl.score([[np.nan] * 16] * 16, [[0.0] * 16] * 16, "psnr"), "Look at both"),
    ],
)
def test_options_that_cannot_be_followed_are_said(
    call: Callable[[Path], object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(pl.UserError, match=told):
        call(model_file(tmp_path))


def test_a_great_label_is_one_class() -> None:
    scores = pl.score([[3_000_000, 1, 0]], [[3_000_000, 1, 1]], "dice")
    assert set(scores) == {"dice", "dice_1", "dice_3000000"}


def test_half_precision_is_taken(case: tuple[Path, np.ndarray, Path]) -> None:
    predictor, volume = pl.Predictor.load(case[0]), torch.from_numpy(case[1])
    assert torch.equal(
        predictor.predict(volume.to(torch.bfloat16)),
        predictor.predict(volume.to(torch.bfloat16).float()),
    )


# --- scores ---------------------------------------------------------------------------------------

METRICS = ["dice", "surface_dice:tolerance=2", "hd95", "components", "voi"]


def test_arrays_score_as_their_files(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "t").mkdir()
    truth = sheets((16, 20, 24), 1)[1]
    answer = np.where(np.roll(truth, 1, 0) == 2, 0, np.roll(truth, 1, 0)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "p" / "a.tif", answer)
    tifffile.imwrite(tmp_path / "t" / "a.tif", truth)
    wanted = pl.score_folder(tmp_path / "p", tmp_path / "t", METRICS, ignore_label="2")["cases"][
        "a"
    ]
    found = pl.score(answer, torch.from_numpy(truth), METRICS, ignore_label=2)
    assert found == pytest.approx(wanted, rel=0, abs=0)
    scaled = pl.score(answer, truth, METRICS, ignore_label=2, spacing=(3, 3, 3))
    assert scaled["hd95"] == pytest.approx(3 * found["hd95"])


def test_classes_are_those_that_are_declared() -> None:
    truth = np.zeros((4, 4), np.uint8)
    truth[1:3, 1:3] = 1
    found = pl.score(truth, truth, ["dice"], num_classes=4)
    assert found["dice_1"] == 1
    assert np.isnan(found["dice_3"])
    assert pl.score(truth, truth) == {"dice": 1}


def test_images_are_scored_on_their_scale() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    assert pl.score(image, image, ["mae"]) == {"mae": 0}
    assert pl.score(image, np.where(image > 0, image - 1, 1).astype(np.uint8), ["mae"])[
        "mae"
    ] == pytest.approx(1 / 255)


@pytest.mark.parametrize(
    ("answer", "truth", "metrics", "more", "told"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), ["dice"], {}, "bring both to one grid"),
        (np.full((2, 2), 0.5), np.zeros((2, 2)), ["dice"], {}, "no class numbers"),
        (np.zeros((2, 2)), np.zeros((2, 2)), ["dicee"], {}, "dice"),
        (np.zeros((2, 2)), np.zeros((2, 2)), ["dice:x=1"], {}, "x"),
        (np.zeros((2, 2)), np.zeros((2, 2)), ["dice", "psnr"], {}, "Score twice"),
        (np.zeros((2, 2)), np.zeros((2, 2)), ["roc_auc"], {}, "probabilities="),
        (np.zeros((2, 2)), np.full((2, 2), 5), ["dice"], {"num_classes": 3}, "class 5 occurs"),
        (np.zeros((2, 2)), np.zeros((2, 2)), ["hd95"], {"spacing": (1,)}, "give 2 numbers"),
        ("a.tif", np.zeros((2, 2)), ["dice"], {}, "score_folder"),
    ],
)
def test_what_cannot_be_scored(
    answer: Any, truth: Any, metrics: list[str], more: dict[str, Any], told: str
) -> None:
    with pytest.raises(pl.UserError, match=f"(?i){told}"):
        pl.score(answer, truth, metrics, **more)


def test_a_folder_of_data_by_its_name(tmp_path: Path) -> None:
    competition_folder(tmp_path / "d", cases=2, tests=0)
    scores = pl.score_folder(
        str(tmp_path / "d" / "train_labels"), str(tmp_path / "d" / "train_labels"), ["dice"]
    )
    assert scores["mean"]["dice"] == 1
