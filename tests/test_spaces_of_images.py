"""Model spaces of TIFF files, pictures, and images that are predicted as images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from conftest import sheets
from PIL import Image
from scipy import ndimage
from worlds import CODES, SPACINGS, affine_of, save, scan, system

import pipeline as pl
from pipeline.config import Config, ConfigError
from pipeline.inference.options import ModelOptions
from pipeline.records import UserError
from pipeline.workflows import serve

IMAGES: dict[str, Any] = {
    "classes": 2,
    "layout": "folders",
    "folders": {"image": "images", "target": "targets"},
    "normalise": {"name": "range", "options": {"low": 0, "high": 2000}},
}


@pytest.fixture(scope="module", autouse=True)
def _no_reports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.workflows.train.write_run_report", lambda run: None)
        yield


def require_equal_scores(run: Path, targets: Path, metrics: list[str], **more: Any) -> None:
    """The scores of the summary are those of the held-out answers on the files' grids."""
    cases = json.loads((run / "summary.json").read_text())["cases"]
    seen = 0
    for fold in run.glob("fold_?"):
        scores = pl.score_folder(fold / "oof", targets, metrics, **more)
        for case, row in scores["cases"].items():
            own = cases[case]["metrics"]
            numbers = {k: v for k, v in row.items() if not isinstance(v, dict)}
            assert {k: own[k] for k in numbers} == pytest.approx(numbers, abs=1e-9, nan_ok=True)
            seen += 1
    assert seen == 4


def train(config: Config, data: Path, out: Path) -> Path:
    pl.train_folds(config, data=data, out=out, device="cpu")
    return out


# --- TIFF -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiffs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four volumes (Z, Y, X) of different sizes; nothing says how far their voxels lie apart."""
    root = tmp_path_factory.mktemp("tiffs")
    for n in range(4):
        image, label = sheets((9 + n, 18, 14), n)
        for folder, array in (("images", image), ("masks", (label == 1).astype(np.uint8))):
            (root / folder).mkdir(exist_ok=True)
            tifffile.imwrite(root / folder / f"c{n}.tif", array)
    return root


def of_tiffs(space: dict[str, Any]) -> Config:
    return system(space, data={"classes": 2, "layout": "folders"}, metrics=["dice"])


def test_axes_alone_come_back_in_the_order_of_the_file(tiffs: Path, tmp_path: Path) -> None:
    run = train(of_tiffs({"axes": [2, 0, 1]}), tiffs, tmp_path / "run")
    require_equal_scores(run, tiffs / "masks", ["dice"])
    options = ModelOptions(checkpoint=run, device="cpu")
    for blocks in ("never", "always"):
        found = pl.predict_files(
            options, tiffs / "images", tmp_path / blocks, save_soft=True, blocks=blocks
        )
        assert not found.failed
    predictor = pl.Predictor.load(run, device="cpu")
    for n in range(4):
        image = tifffile.imread(tiffs / "images" / f"c{n}.tif")
        one, two = (tifffile.imread(tmp_path / b / f"c{n}.tif") for b in ("never", "always"))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, predictor.predict(image))
        turned = predictor.predict(image.transpose(2, 0, 1), axes="xzy")
        np.testing.assert_array_equal(turned, one.transpose(2, 0, 1))
        one, two = (np.load(tmp_path / b / "soft" / f"c{n}.npy") for b in ("never", "always"))
        np.testing.assert_array_equal(one, two)
        assert one.shape == (1, *image.shape)


def test_a_network_with_other_axes_learns_what_permuted_files_teach(
    tiffs: Path, tmp_path: Path
) -> None:
    """``data.axes`` on the files, and none on files saved in that order, give the same weights."""
    from safetensors.numpy import load_file

    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for path in (tiffs / folder).iterdir():
            array = tifffile.imread(path).transpose(2, 0, 1)
            tifffile.imwrite(tmp_path / "data" / folder / path.name, array)
    one = train(of_tiffs({"axes": [2, 0, 1]}), tiffs, tmp_path / "one")
    two = train(of_tiffs({}), tmp_path / "data", tmp_path / "two")
    weights = [load_file(r / "fold_0" / "best_model.safetensors") for r in (one, two)]
    assert {k: v.tobytes() for k, v in weights[0].items()} == {
        k: v.tobytes() for k, v in weights[1].items()
    }
    for case in (one / "fold_0" / "oof").glob("c?.tif"):
        turned = tifffile.imread(two / "fold_0" / "oof" / case.name)
        np.testing.assert_array_equal(tifffile.imread(case).transpose(2, 0, 1), turned)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"spacing": [1.0, 1.0, 1.0]}, ("data.spacing is [1.0, 1.0, 1.0]", "leave data.spacing")),
        ({"orientation": "RAS"}, ("data.orientation is RAS", "leave data.orientation out")),
    ],
)
def test_files_that_do_not_say_where_they_lie_are_refused_before_training(
    space: dict[str, Any], words: tuple[str, ...], tiffs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        train(of_tiffs(space), tiffs, tmp_path / "run")
    assert all(word in str(error.value) for word in words)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"orientation": "RAS", "axes": [2, 0, 1]}, "Write data.orientation: SRA"),
        ({"orientation": "RAP"}, "one of each of R/L, A/P and S/I"),
        ({"axes": [0, 0, 1]}, "must hold each of 0, 1, 2 once"),
        ({"spacing": [1.0, 1.0]}, "must hold 3 positive numbers"),
        ({"spacing": [1.0, 0.0, None]}, "must hold 3 positive numbers"),
        ({"resample": {"coarse": 0.5}}, "must be at least 1, or null"),
        ({"resample": {"images": 2}}, "0, 1 or 3"),
    ],
)
def test_a_space_that_is_none_is_refused(space: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        system(space)
    assert words in str(error.value)


# --- images as answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_images_come_back_in_type_and_grid(kind: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for n in range(4):
        image = scan(n)[0].astype(kind)
        for folder, array in (("images", image), ("targets", (image * 0.9).astype(kind))):
            affine = affine_of(SPACINGS[n])
            save(data / folder / f"c{n}.nii.gz", array, affine, CODES[n])
    config = system(
        data=IMAGES,
        task="image",
        losses=[{"name": "l1", "target": "target"}],
        metrics=[{"name": "psnr", "options": {"peak": 2000}} if kind == "float32" else "psnr"],
    )
    run = train(config, data, tmp_path / "run")
    name = "psnr:peak=2000" if kind == "float32" else "psnr"
    require_equal_scores(run, data / "targets", [name])
    options = ModelOptions(checkpoint=run, device="cpu")
    for blocks in ("never", "always"):
        out = tmp_path / blocks
        found = pl.predict_files(options, data / "images", out, blocks=blocks)
        assert not found.failed
    predictor = pl.Predictor.load(run, device="cpu")
    for n in range(4):
        given = nibabel.load(data / "images" / f"c{n}.nii.gz")  # pyright: ignore
        one, two = (nibabel.load(tmp_path / b / f"c{n}.nii.gz") for b in ("never", "always"))  # pyright: ignore
        assert (one.shape, one.get_data_dtype()) == (given.shape, np.dtype(kind))
        np.testing.assert_array_equal(one.affine, given.affine)
        answer, array = np.asarray(one.dataobj), np.asarray(given.dataobj)
        np.testing.assert_array_equal(answer, np.asarray(two.dataobj))
        np.testing.assert_array_equal(answer, predictor.predict(array, affine=given.affine)[0])
        outside = np.ones(array.shape, bool)
        outside[tuple(slice(b.min(), b.max() + 1) for b in np.nonzero(array))] = False
        assert outside.any()
        assert (np.abs(answer[outside]) < 1e-3).all()
        assert np.abs(answer[~outside]).mean() > 10


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs of pictures of different spacings, which differ in a patch."""
    root = tmp_path_factory.mktemp("pairs")
    for n in range(4):
        values = np.random.default_rng(n).random((30 + 2 * n, 26))
        image = (ndimage.gaussian_filter(values, 1) * 200 + 20).astype(np.uint8)
        target = image.copy()
        target[6:18, 4:16] = 255 - target[6:18, 4:16]
        size = 0.8 + 0.1 * (n % 3)
        for folder, array in (("images", image), ("targets", target)):
            (root / folder).mkdir(exist_ok=True)
            tifffile.imwrite(
                root / folder / f"c{n}.tif",
                array,
                imagej=True,
                resolution=(1 / size, 1 / size),
                metadata={"unit": "mm"},
            )
    return root


@pytest.mark.parametrize(
    "space", [{"axes": [1, 0]}, {"spacing": [1.0, 1.0]}, {"axes": [1, 0], "spacing": [0.9, None]}]
)
def test_pairs_are_scored_on_the_grid_of_their_files(
    space: dict[str, Any], pairs: Path, tmp_path: Path
) -> None:
    """The mask of change, too, which training makes in model space."""
    more = {"dims": 2, "patch": {"size": [8, 8], "batch": 1, "per_case": 1}, "change": {}}
    config = system(
        space,
        data={**IMAGES, "normalise": {"name": "range"}, **more},
        task="image",
        losses=[{"name": "l1", "target": "target"}],
        metrics=["psnr", "retouch"],
    )
    run = train(config, pairs, tmp_path / "run")
    require_equal_scores(run, pairs / "targets", ["psnr", "retouch"], inputs=pairs / "images")


def test_a_server_of_spaced_pictures_refuses_what_has_no_spacing(
    pairs: Path, tmp_path: Path
) -> None:
    config = system(
        {"spacing": [1.0, 1.0]},
        data={
            **IMAGES,
            "normalise": {"name": "range"},
            "dims": 2,
            "patch": {"size": [8, 8], "batch": 1, "per_case": 1},
        },
        task="image",
        losses=[{"name": "l1", "target": "target"}],
        metrics=["psnr"],
    )
    run = train(config, pairs, tmp_path / "run")
    shutil.copy(pairs / "images" / "c1.tif", tmp_path / "c1.tif")
    array = tifffile.imread(tmp_path / "c1.tif")
    Image.fromarray(array).save(tmp_path / "c1.png")
    predictor = pl.Predictor.load(run, device="cpu")
    answer = predictor.predict(tmp_path / "c1.tif")
    np.testing.assert_array_equal(predictor.predict(array, spacing=(0.9, 0.9)), answer)
    job = serve.PredictJob(
        predictor=serve.predict.prepare(ModelOptions(checkpoint=run, device="cpu")),
        output=Path(),
    )
    for call in (
        lambda: predictor.predict(array),
        lambda: predictor.predict(tmp_path / "c1.png"),
        lambda: serve.predict_file(job, tmp_path / "c1.png", tmp_path / "out"),
    ):
        with pytest.raises(UserError, match="spacing=") as error:
            call()
        assert "data.spacing is [1.0, 1.0]" in str(error.value)
