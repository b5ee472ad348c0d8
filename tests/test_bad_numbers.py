"""NaN and infinity, wherever they come in: images, weights, soft predictions and weights of members
are refused by name.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file, save_file
from small_models import model_file, noise, rows, run_predict

from pipeline import ensemble, files, train
from pipeline.data.normalise import IntensityScale
from pipeline.inference import soft as softs
from pipeline.inference.models import load_model, save_model
from pipeline.losses import vgg
from pipeline.records import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model"))


# --- images ---------------------------------------------------------------------------------------


def spoiled(
    path: Path, value: float, count: int = 3, shape: tuple[int, ...] = (20, 18, 17)
) -> Path:
    array = noise(shape, dtype=np.float32)
    array.reshape(-1)[:: array.size // count][:count] = value
    files.write(path, array, dims=len(shape))
    return path


@pytest.mark.parametrize("suffix", [".tif", ".nii.gz", ".npy", ".zarr"])
@pytest.mark.parametrize("blocks", ["never", "always"])
def test_an_image_with_nan_or_infinity_fails_and_the_others_are_done(
    blocks: str, suffix: str, model: Path, tmp_path: Path
) -> None:
    spoiled(tmp_path / "in" / f"a{suffix}", np.nan)
    spoiled(tmp_path / "in" / f"b{suffix}", -np.inf, 1)
    files.write(tmp_path / "in" / f"c{suffix}", noise((20, 18, 17), dtype=np.float32), dims=3)
    assert run_predict(model, tmp_path / "in", tmp_path / "out", "--blocks", blocks) == 3
    first, second, third = rows(tmp_path / "out")
    assert [r["status"] for r in (first, second, third)] == ["failed", "failed", "done"]
    for row, name, count in ((first, "a", 3), (second, "b", 1)):
        assert (
            f"{tmp_path / 'in' / name}{suffix}: holds {count} values that are NaN or infinite"
            in row["error"]
        )
        assert "Replace them" in row["error"]
        assert not (tmp_path / "out" / f"{name}{suffix}").exists()
    assert (
        run_predict(model, tmp_path / "in" / f"a{suffix}", tmp_path / "alone", "--blocks", blocks)
        == 1
    )


def test_rows_of_blocks_that_are_never_normalised_by_their_values_are_checked_too(
    tmp_path: Path,
) -> None:
    """With a fixed range no pass over the file comes before the network."""
    model = model_file(tmp_path / "model", data={"patch": {"size": [16] * 3}, "normalise": "range"})
    array = noise((60, 18, 17), dtype=np.float32)
    array[50, 5, 5] = np.inf
    files.write(tmp_path / "a.tif", array)
    assert run_predict(model, tmp_path / "a.tif", tmp_path / "out", "--blocks", "always") == 1
    assert "holds 1 values that are NaN or infinite" in rows(tmp_path / "out")[0]["error"]


def test_the_channel_that_holds_them_is_named(tmp_path: Path) -> None:
    model = model_file(tmp_path / "model", channels=2)
    files.write(tmp_path / "in" / "a_0000.tif", noise((20, 18, 17), dtype=np.float32))
    spoiled(tmp_path / "in" / "a_0001.tif", np.inf, 4)
    for blocks in ("never", "always"):
        assert run_predict(model, tmp_path / "in", tmp_path / blocks, "--blocks", blocks) == 1
        assert "a_0001.tif: holds 4 values" in rows(tmp_path / blocks)[0]["error"]


def test_served_images_get_400(tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    pytest.importorskip("python_multipart")
    from served import built, serving

    model = model_file(tmp_path / "model", dims=2)
    spoiled(tmp_path / "a.tif", np.nan, 2, (20, 18))
    with serving(built(model)) as url:
        response = httpx.post(
            f"{url}/predict",
            content=(tmp_path / "a.tif").read_bytes(),
            headers={"Content-Type": "image/tiff"},
        )
        assert response.status_code == 400
        assert "holds 2 values that are NaN or infinite" in response.json()["error"]
        assert str(tmp_path) not in response.json()["error"]
    on_nifti = model_file(tmp_path / "nifti", dims=2, trained_on={"family": "nifti", "codes": "RA"})
    with pytest.raises(UserError, match=r"trained on NIfTI.*pipeline\.predict"):
        built(on_nifti)


# --- weights --------------------------------------------------------------------------------------


def with_weights(path: Path, out: Path, value: float) -> list[str]:
    """A model file of which two tensors hold the value; returns their names."""
    model = load_model(path)
    weights = {name: w.clone() for name, w in model.weights.items()}
    names = [name for name, w in weights.items() if w.is_floating_point()][1:3]
    weights[names[0]].view(-1)[0] = value
    weights[names[1]].view(-1)[:1] = value
    save_model(out, dataclasses.replace(model, weights=weights))
    return names


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_models_of_nan_or_infinity_are_refused(
    value: float, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = with_weights(model, tmp_path / "bad.safetensors", value)
    files.write(tmp_path / "a.tif", noise((16, 16, 16)))
    assert run_predict(tmp_path / "bad.safetensors", tmp_path / "a.tif", tmp_path / "out") == 2
    told = capsys.readouterr().err
    for word in (
        str(tmp_path / "bad.safetensors"),
        *names,
        "2 weights in 2 of",
        "NaN or infinite",
        "--model",
    ):
        assert word in told
    assert not (tmp_path / "out").exists()


def test_training_does_not_begin_from_such_weights(
    tiny: Path, surfaces: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_weights(model, tmp_path / "bad.safetensors", np.nan)
    options = ["--set", f"train.init_from.path={tmp_path / 'bad.safetensors'}"]
    code = train.main(
        [
            "--config",
            str(tiny),
            "--data-dir",
            str(surfaces),
            "--out",
            str(tmp_path / "run"),
            "--fold",
            "0",
            *options,
        ]
    )
    assert code in (1, 2)
    assert "NaN or infinite" in "".join(capsys.readouterr())


def test_a_vgg_file_of_nan_is_refused_when_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vgg.safetensors"
    weights = vgg.random_weights("relu2_2")
    vgg.write_slim(path, weights, "other")
    vgg.check(path, "relu2_2")
    bad = load_file(path)
    bad["features.2.weight"][0, 0] = torch.nan
    save_file(bad, path)
    with pytest.raises(
        vgg.WeightsError,
        match=r"9 weights in 1 of 8 tensors are NaN or infinite: features.2.weight",
    ):
        vgg.check(path, "relu2_2")


# --- ensembles ------------------------------------------------------------------------------------


def member(folder: Path, array: np.ndarray, **meta: Any) -> Path:
    known = softs.SoftMeta(**{"task": "labels", "suffix": ".tif", "dtype": "float32", **meta})
    softs.save(
        folder / "soft", softs.SoftPrediction(case_id="x", heads={"main": array}, meta=known)
    )
    return folder


@pytest.mark.parametrize(
    ("value", "shown"),
    [(np.nan, "nan"), (np.inf, "inf"), (7.0, "7"), (-0.25, "-0.25"), (1.0625, "1.0625")],
)
def test_soft_files_of_no_probabilities_are_refused(
    value: float, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = member(tmp_path / "good", np.full((1, 6, 7, 8), 0.5, np.float32))
    array = np.full((1, 6, 7, 8), 0.5, np.float32)
    array[0, 5, 6, 2:4] = value
    bad = member(tmp_path / "bad", array)
    for fusion in ("mean", "logit", "vote"):
        code = ensemble.main(
            [
                "--fold-dirs",
                str(good),
                str(bad),
                "--output",
                str(tmp_path / "out"),
                "--fusion",
                fusion,
            ]
        )
        assert code == 2
        told = capsys.readouterr().err
        for word in (
            str(bad / "soft" / "x.npy"),
            "holds 2 values",
            "probabilities from 0 to 1",
            shown,
            "--save-soft",
        ):
            assert word in told
        assert not (tmp_path / "out").exists()


def test_probabilities_may_be_off_by_their_rounding(tmp_path: Path) -> None:
    for n, value in enumerate((0.0, 1.0005, -0.0005)):
        one = member(tmp_path / str(n), np.full((1, 4, 4, 4), value, np.float32))
        assert (
            ensemble.main(
                ["--fold-dirs", str(one), "--output", str(tmp_path / f"out{n}"), "--fusion", "vote"]
            )
            == 0
        )


def test_soft_images_may_be_any_finite_number(tmp_path: Path) -> None:
    scale = IntensityScale(low=(0.0,), high=(1.0,), clip=False)
    for name, value in (("good", 7.0), ("bad", np.inf)):
        member(
            tmp_path / name,
            np.full((1, 4, 5, 6), value, np.float32),
            task="image",
            scale=scale,
            channels=1,
        )
    assert (
        ensemble.main(["--fold-dirs", str(tmp_path / "good"), "--output", str(tmp_path / "out")])
        == 0
    )
    assert (tifffile.imread(tmp_path / "out" / "x.tif") == 7).all()
    assert (
        ensemble.main(["--fold-dirs", str(tmp_path / "bad"), "--output", str(tmp_path / "out2")])
        == 2
    )


def test_intensities_on_other_scales_are_not_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, to in (("one", (0.0, 1.0)), ("two", (-1.0, 1.0))):
        scale = IntensityScale(low=(0.0,), high=(255.0,), to=to)
        member(
            tmp_path / name,
            np.zeros((1, 4, 5, 6), np.float32),
            task="image",
            dtype="uint8",
            scale=scale,
            channels=1,
        )
    assert (
        ensemble.main(
            [
                "--fold-dirs",
                str(tmp_path / "one"),
                str(tmp_path / "two"),
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert "scales" in capsys.readouterr().err


@pytest.mark.parametrize("weight", [".nan", ".inf", "-.inf", "-1", "0"])
def test_weights_that_make_no_mean_are_refused(
    weight: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = member(tmp_path / "one", np.full((1, 4, 4, 4), 0.5, np.float32))
    others = "" if weight == "0" else f", {{run: {one}, weight: 1}}"
    (tmp_path / "e.yaml").write_text(f"members: [{{run: {one}, weight: {weight}}}{others}]\n")
    assert (
        ensemble.main(["--spec", str(tmp_path / "e.yaml"), "--output", str(tmp_path / "out")]) == 2
    )
    assert "weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [2.0, 0.5, np.nan, -1.0])
def test_answers_that_vote_are_masks(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(tmp_path / "one" / "x.tif", np.full((4, 5, 6), value, np.float32))
    assert (
        ensemble.main(
            [
                "--fold-dirs",
                str(tmp_path / "one"),
                "--output",
                str(tmp_path / "out"),
                "--fusion",
                "vote",
            ]
        )
        == 2
    )
    assert "0/1 masks" in capsys.readouterr().err


def test_a_torn_soft_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = member(tmp_path / "one", np.full((1, 4, 4, 4), 0.5, np.float32))
    for content in ("{", "[]", '{"task": "labels"}'):
        (one / "soft" / "x.json").write_text(content)
        assert ensemble.main(["--fold-dirs", str(one), "--output", str(tmp_path / "out")]) == 2
        assert "--save-soft" in capsys.readouterr().err
    shutil.rmtree(one)


# --- values beyond 32 bits ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tif", ".nii.gz", ".npy", ".zarr"])
@pytest.mark.parametrize("blocks", ["never", "always"])
def test_values_that_float32_cannot_hold_fail(
    blocks: str, suffix: str, model: Path, tmp_path: Path
) -> None:
    array = noise((20, 18, 17), dtype=np.float64)
    array[3, 3, :4] = 1e300
    files.write(tmp_path / f"a{suffix}", array, dims=3)
    assert run_predict(model, tmp_path / f"a{suffix}", tmp_path / "out", "--blocks", blocks) == 1
    assert "holds 4 values beyond 3.4e+38" in rows(tmp_path / "out")[0]["error"]
    files.write(tmp_path / f"b{suffix}", noise((20, 18, 17), dtype=np.float64), dims=3)
    assert run_predict(model, tmp_path / f"b{suffix}", tmp_path / "good", "--blocks", blocks) == 0


@pytest.mark.parametrize(
    ("value", "dtype", "told"),
    [
        (np.nan, np.float32, "holds 1 values that are NaN or infinite"),
        (1e300, np.float64, "holds 1 values beyond 3.4e+38"),
    ],
)
def test_training_names_the_channel_that_holds_them(
    value: float,
    dtype: type,
    told: str,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "nnunet"
    for case in range(3):
        for channel in range(2):
            array = noise((16, 16, 16), 2 * case + channel, dtype)
            array[5, 5, 5] = value if (case, channel) == (1, 1) else 0
            files.write(root / "imagesTr" / f"c{case}_{channel:04d}.nii.gz", array)
        files.write(
            root / "labelsTr" / f"c{case}.nii.gz",
            (noise((16, 16, 16), case) > 100).astype(np.uint8),
        )
    words = [
        "--config",
        str(tiny),
        "--data-dir",
        str(root),
        "--out",
        str(tmp_path / "run"),
        "--set",
        "data.layout=nnunet",
        "--dry-run",
    ]
    assert train.main(words) == 2
    err = capsys.readouterr()
    assert f"c1_0001.nii.gz: {told}" in err.out + err.err
    assert "c1_0000.nii.gz: holds" not in err.out + err.err
