"""Runs on files that lie differently in the world: trained, scored, predicted, fused and tuned in
model space, answered on each file's own grid.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from worlds import CODES, affine_of, data_set, save, scan, system

import pipeline as pl
from pipeline import cli
from pipeline.files import FileError
from pipeline.inference import soft as softs
from pipeline.inference.options import ModelOptions
from pipeline.records import UserError
from pipeline.scoring import held_out
from pipeline.stopping import StopRequested

CASES = [f"c{n}" for n in range(8)]
OTHER = {"orientation": "LPS", "crop": "nonzero", "spacing": [1.0, None, 2.0]}
METRICS = ["dice", "surface_dice:tolerance_mm=1.0"]


@pytest.fixture(scope="module", autouse=True)
def _no_reports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.workflows.train.write_run_report", lambda run: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the two runs share."""
    return tmp_path_factory.mktemp("store")


def sums(folder: Path, pattern: str) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob(pattern))
    }


@pytest.fixture(scope="module")
def run(data: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    pl.train_folds(system(data={"store": str(store)}), data=data, out=out, device="cpu")
    return out


@pytest.fixture(scope="module")
def other(run: Path, data: Path, store: Path) -> tuple[Path, dict[str, str], dict[str, str]]:
    """A run with another spacing in the same store; arrays of the first run before and after."""
    before = sums(store / "arrays", "*.npy")
    out = run.parent / "two"
    pl.train_folds(system(OTHER, data={"store": str(store)}), data=data, out=out, device="cpu")
    return out, before, sums(store / "arrays", "*.npy")


@pytest.fixture(scope="module")
def predicted(run: Path, data: Path) -> Path:
    """Predictions of the run, in memory."""
    out = run.parent / "memory"
    options = ModelOptions(checkpoint=run, device="cpu")
    found = pl.predict_files(options, data / "imagesTr", out, save_soft=True, blocks="never")
    assert not found.failed
    return out


def labels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)  # pyright: ignore


def image(data: Path, case: str) -> Path:
    return data / "imagesTr" / f"{case}_0000.nii.gz"


# --- training -------------------------------------------------------------------------------------


def test_held_out_answers_lie_where_their_files_do(run: Path, data: Path) -> None:
    found = {p.name.split(".")[0]: p for p in run.glob("fold_*/oof/c?.nii.gz")}
    assert sorted(found) == CASES
    spread: set[str] = set()
    for case, path in found.items():
        answer, given = nibabel.load(path), nibabel.load(image(data, case))  # pyright: ignore
        assert answer.shape == given.shape
        np.testing.assert_array_equal(answer.affine, given.affine)
        spread.add("".join(nibabel.aff2axcodes(answer.affine)))  # pyright: ignore
        nothing = np.asarray(given.dataobj) == 0
        box = np.nonzero(~nothing)
        outside = np.ones(given.shape, bool)
        outside[tuple(slice(b.min(), b.max() + 1) for b in box)] = False
        assert not np.asarray(answer.dataobj)[outside].any()
    assert len(spread) == 7
    assert any(labels(p).any() for p in found.values())


def test_the_scores_of_a_run_are_those_of_its_answers(run: Path, data: Path) -> None:
    cases = json.loads((run / "summary.json").read_text())["cases"]
    for number in (0, 1):
        scores = pl.score_folder(run / f"fold_{number}" / "oof", data / "labelsTr", METRICS)
        assert len(scores["cases"]) == 4
        for case, row in scores["cases"].items():
            own = cases[case]["metrics"]
            assert {k: own[k] for k in row} == pytest.approx(row, abs=1e-12, nan_ok=True)


def test_runs_of_two_spaces_share_a_store(
    run: Path, other: tuple[Path, dict[str, str], dict[str, str]], data: Path, tmp_path: Path
) -> None:
    """The first run's arrays stay, and a run alone has the same weights."""
    _, before, after = other
    assert len(before) == 16
    assert {k: after[k] for k in before} == before
    assert len(after) == 32
    alone = tmp_path / "alone"
    config = system(OTHER)
    pl.train_folds(config, data=data, out=alone, folds=[0], device="cpu")
    name = "best_model.safetensors"
    one, two = (softs_of(r / "fold_0" / name) for r in (alone, other[0]))
    assert one == two


def softs_of(path: Path) -> dict[str, bytes]:
    """The weights of a model file, without its header, which holds the config's paths."""
    from safetensors.numpy import load_file

    return {k: v.tobytes() for k, v in load_file(path).items()}


def test_a_stopped_run_goes_on_to_the_same_weights(
    run: Path, data: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, done = held_out.predict_stored, 0

    def counted(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == 2:
            cli.stop.signal = signal.SIGUSR1
        return original(*arguments)

    monkeypatch.setattr(held_out, "predict_stored", counted)
    monkeypatch.setattr(cli.stop, "signal", None)
    config = system(data={"store": str(store)})
    with pytest.raises(StopRequested):
        pl.train_folds(config, data=data, out=tmp_path / "r", folds=[0], device="cpu")
    assert not (tmp_path / "r" / "fold_0" / "result.json").exists()
    cli.stop.signal = None
    pl.train_folds(config, data=data, out=tmp_path / "r", folds=[0], device="cpu")
    assert softs_of(tmp_path / "r" / "fold_0" / "best_model.safetensors") == softs_of(
        run / "fold_0" / "best_model.safetensors"
    )
    for pattern in ("oof/*.nii.gz", "oof/soft/*.npy"):
        assert sums(tmp_path / "r" / "fold_0", pattern) == sums(run / "fold_0", pattern)


# --- prediction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [0, 3])
def test_blocks_and_shards_give_the_bits_of_memory(
    shards: int, run: Path, predicted: Path, data: Path, tmp_path: Path
) -> None:
    options = ModelOptions(checkpoint=run, device="cpu")
    blocks = 0
    for shard in range(shards):
        found = pl.predict_files(options, data / "imagesTr", tmp_path, shard=(shard, shards))
        assert not found.failed
        blocks += sum(row["blocks"] for row in found.rows)
    found = pl.predict_files(options, data / "imagesTr", tmp_path, save_soft=True, blocks="always")
    assert not found.failed
    assert not shards or blocks > 2 * len(CASES)
    assert not (tmp_path / "blocks").exists()
    for case in CASES:
        one, two = (nibabel.load(f / f"{case}.nii.gz") for f in (predicted, tmp_path))  # pyright: ignore
        np.testing.assert_array_equal(np.asarray(two.dataobj), np.asarray(one.dataobj))
        np.testing.assert_array_equal(two.affine, one.affine)
        one, two = (f / "soft" / f"{case}.json" for f in (predicted, tmp_path))
        assert one.read_text() == two.read_text()
    assert sums(tmp_path / "soft", "*.npy") == sums(predicted / "soft", "*.npy")


def test_what_is_large_for_its_model_goes_by_blocks(
    run: Path, predicted: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of thick slices is small, what the model sees of it is not."""
    options = ModelOptions(checkpoint=run, device="cpu")
    monkeypatch.setattr("pipeline.data.normalise.WHOLE", 3 * 18 * 20 * 17)
    found = pl.predict_files(options, data / "imagesTr", tmp_path, save_soft=True)
    by_blocks = {row["id"] for row in found.rows if "blocks" in row}
    assert by_blocks == {"c2", "c3", "c6", "c7"} & by_blocks
    assert {"c3"} <= by_blocks < set(CASES)
    for case in by_blocks:
        np.testing.assert_array_equal(
            labels(tmp_path / f"{case}.nii.gz"), labels(predicted / f"{case}.nii.gz")
        )


@pytest.mark.parametrize("codes", ["LPS", "SAR", "IPL"])
def test_twins_get_twin_answers(codes: str, run: Path, tmp_path: Path) -> None:
    """Through the commands: to rounding where it decides, else to the last voxel."""
    affine = affine_of((1.0, 0.9, 1.7), 0.2)
    array, _ = scan(50)
    for name in ("RAS", codes):
        save(tmp_path / "in" / f"{name}.nii.gz", array, affine, name)
    predictor = pl.Predictor.load(run, device="cpu")
    heads = {}
    for name in ("RAS", codes):
        path = tmp_path / "in" / f"{name}.nii.gz"
        found = predictor.predict_heads(path)["main"]
        own = nibabel.load(path).affine  # pyright: ignore
        heads[name] = np.stack([in_ras(c, own) for c in found])
        answer = predictor.predict(path)
        np.testing.assert_array_equal(answer, found.argmax(0))
    one, two = heads.values()
    assert one.shape == (3, *array.shape)
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-6)


def in_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The array of a file with its axes in RAS."""
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), affine)  # pyright: ignore
    return np.asarray(nibabel.as_closest_canonical(image).dataobj)  # pyright: ignore


def test_arrays_files_and_lone_models_have_one_answer(
    run: Path, predicted: Path, data: Path, tmp_path: Path
) -> None:
    predictor = pl.Predictor.load(run, device="cpu")
    lone = tmp_path / "model.safetensors"
    shutil.copy(run / "fold_0" / "best_model.safetensors", lone)
    first = pl.Predictor.load(run, folds=[0], device="cpu")
    copied = pl.Predictor.load(lone, device="cpu")
    for case in CASES:
        given = nibabel.load(image(data, case))  # pyright: ignore
        answer = labels(predicted / f"{case}.nii.gz")
        array = np.asarray(given.dataobj)
        np.testing.assert_array_equal(predictor.predict(array, affine=given.affine), answer)
        np.testing.assert_array_equal(predictor.predict(image(data, case)), answer)
        heads = first.predict_heads(image(data, case))["main"]
        assert heads.shape == (3, *given.shape)
        np.testing.assert_array_equal(copied.predict_heads(image(data, case))["main"], heads)


def test_a_training_case_is_seen_as_in_training(run: Path, data: Path) -> None:
    """Held-out cases predicted from their files are those predicted from the cache."""
    for number in (0, 1):
        fold = run / f"fold_{number}"
        predictor = pl.Predictor.load(fold, device="cpu")
        for path in fold.glob("oof/soft/*.npy"):
            kept = softs.load(path.parent, path.stem)
            heads = predictor.predict_heads(image(data, path.stem))["main"]
            np.testing.assert_allclose(heads, kept.on_file_grid().main[:], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, plain: p.predict(plain), ("data.orientation is RAS", "Give it an affine")),
        (lambda p, plain: p.predict(np.ones((9, 9, 9), np.int16)), ("axes RAS", "affine=")),
        (
            lambda p, plain: p.predict(np.ones((9, 9, 9), np.int16), spacing=(1, 1, 1)),
            ("axes RAS", "affine="),
        ),
    ],
)
def test_an_image_that_lies_nowhere_is_refused(
    call: Callable[..., Any], words: tuple[str, ...], run: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9), np.int16), None), plain)  # pyright: ignore
    with pytest.raises(UserError) as error:
        call(pl.Predictor.load(run, device="cpu"), plain)
    assert all(word in str(error.value) for word in words)
    found = pl.predict_files(ModelOptions(checkpoint=run, device="cpu"), plain, tmp_path / "out")
    assert "data.orientation is RAS" in found.failed[0]["error"]


# --- several members ------------------------------------------------------------------------------


def test_folds_are_fused_in_their_space(
    run: Path, predicted: Path, data: Path, tmp_path: Path
) -> None:
    for number in (0, 1):
        options = ModelOptions(checkpoint=run / f"fold_{number}", device="cpu")
        pl.predict_files(options, data / "imagesTr", tmp_path / f"{number}", save_soft=True)
    fused = pl.fuse_predictions([tmp_path / "0", tmp_path / "1"], tmp_path / "f", save_soft=True)
    assert (sorted(fused.done), fused.failed) == (CASES, {})
    for case in CASES:
        one, two = (softs.load(f / "soft", case) for f in (predicted, tmp_path / "f"))
        assert two.space == one.space
        assert not two.space.identity
        np.testing.assert_allclose(two.main, one.main, rtol=0, atol=1e-3)
        assert (
            labels(tmp_path / "f" / f"{case}.nii.gz") != labels(predicted / f"{case}.nii.gz")
        ).mean() < 0.02


def test_runs_of_two_spaces_are_fused_on_the_grid_of_the_file(
    predicted: Path,
    other: tuple[Path, dict[str, str], dict[str, str]],
    data: Path,
    tmp_path: Path,
) -> None:
    options = ModelOptions(checkpoint=other[0], device="cpu")
    pl.predict_files(options, data / "imagesTr", tmp_path / "two", save_soft=True)
    members = [predicted, tmp_path / "two"]
    fused = pl.fuse_predictions(members, tmp_path / "f", save_soft=True)
    assert (sorted(fused.done), fused.failed) == (CASES, {})
    for case in CASES:
        one, two = (softs.load(m / "soft", case).on_file_grid().main[:] for m in members)
        mean = (one + two) / 2
        found = softs.load(tmp_path / "f" / "soft", case)
        assert found.space.identity
        np.testing.assert_allclose(found.main, mean, rtol=0, atol=1e-3)
        ordered = np.sort(mean, 0)
        clear = ordered[-1] - ordered[-2] > 1e-5
        answer = labels(tmp_path / "f" / f"{case}.nii.gz")
        np.testing.assert_array_equal(answer[clear], mean.argmax(0)[clear])
    with pytest.MonkeyPatch.context() as patch:  # as volumes that do not fit in memory
        patch.setattr("pipeline.workflows.fuse.WHOLE", 1)
        pl.fuse_predictions(members, tmp_path / "s", save_soft=True)
    assert sums(tmp_path / "s", "c?.nii.gz") == sums(tmp_path / "f", "c?.nii.gz")
    assert sums(tmp_path / "s" / "soft", "*.npy") == sums(tmp_path / "f" / "soft", "*.npy")
    votes = pl.fuse_predictions(members, tmp_path / "v", fusion="vote")
    assert (sorted(votes.done), votes.failed) == (CASES, {})


SEARCH = "stages: [[[], [{name: dust, options: {below: 4}}]]]"


def test_runs_in_other_spaces_are_tuned(
    run: Path,
    other: tuple[Path, dict[str, str], dict[str, str]],
    data: Path,
    tmp_path: Path,
) -> None:
    """The run as it is has the scores of its summary; two runs are fused on the grid of files."""
    (tmp_path / "space.yaml").write_text(SEARCH)
    for runs in ([run], [run, other[0]]):
        out = tmp_path / f"{len(runs)}.yaml"
        more = {"metric": "dice", "space": tmp_path / "space.yaml", "data_dir": data}
        assert pl.tune_postprocessing(runs, out=out, **more).spec.is_file()
    summary = json.loads((run / "summary.json").read_text())["cases"]
    rows = json.loads((run / "tuning" / "result.json").read_text())["rows"]
    own = next(row for row in rows if row["name"] == "the run's own")["cases"]
    assert {i: row["dice"] for i, row in own.items()} == pytest.approx(
        {i: row["metrics"]["dice"] for i, row in summary.items()}, abs=1e-12
    )


MASKED = {"normalise": {"name": "zscore", "options": {"mask": True}}}
REGIONS = {"regions": {"whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}


@pytest.mark.parametrize(
    ("codes", "space", "more"),
    [(CODES, {"orientation": "RAS"}, MASKED), (["RAS"] * 4, {}, REGIONS)],
    ids=["some files lie right already", "regions"],
)
def test_a_case_is_scored_by_its_answer(
    codes: Sequence[str], space: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    """Answers are made from rounded probabilities, and so are their scores."""
    folder = tmp_path / "data"
    for n in range(4):
        for kind, name, array in zip(
            ("imagesTr", "labelsTr"), (f"c{n}_0000", f"c{n}"), scan(n), strict=True
        ):
            save(folder / kind / f"{name}.nii.gz", array, affine_of((1, 1, 1)), codes[n])
    config = system(space, data=more, metrics=["dice"])
    run = pl.train_folds(config, data=folder, out=tmp_path / "run", device="cpu").path
    cases = json.loads((run / "summary.json").read_text())["cases"]
    for number in (0, 1):
        oof = run / f"fold_{number}" / "oof"
        for case, row in pl.score_folder(oof, folder / "labelsTr", "dice")["cases"].items():
            own = cases[case]["metrics"]
            assert {k: own[k] for k in row} == pytest.approx(row, abs=1e-12, nan_ok=True)


def test_an_image_too_large_at_its_spacing_is_refused_before_it_is_made(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header in metres: millions of voxels in model space for each of the file."""
    monkeypatch.setattr("pipeline.files.limits.available_memory", lambda: 2**28)
    path = save(tmp_path / "far.nii.gz", scan(0)[0], affine_of((40, 40, 40)))
    fast = tmp_path / "out"
    options = ModelOptions(checkpoint=run, device="cpu")
    with pytest.raises(FileError, match=r"data\.spacing an array of 4x\d+x\d+x\d+ float32"):
        pl.Predictor.load(run, device="cpu").predict(path)
    found = pl.predict_files(options, path, fast, blocks="never")
    assert "Check its header" in found.failed[0]["error"]
    folder = data_set(tmp_path / "set", 2)
    save(folder / "imagesTr" / "c0_0000.nii.gz", scan(0)[0], affine_of((40, 40, 40)))
    save(folder / "labelsTr" / "c0.nii.gz", scan(0)[1], affine_of((40, 40, 40)))
    with pytest.raises(FileError, match=r"c0_0000\.nii\.gz: announces at data\.spacing"):
        pl.train_folds(system(), data=folder, out=tmp_path / "run", device="cpu")
