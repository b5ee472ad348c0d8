"""Files of old commits (tests/fixtures) load, continue and predict.

Only commands are called, so that the tests hold whatever becomes of the code behind them. Bits are
compared where machine and libraries are those that made the files, else numbers within a tolerance.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import json
import runpy
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

FIXTURES = Path(__file__).parent / "fixtures"
MAKER = runpy.run_path(str(FIXTURES / "make_old.py"))
FIRST, SECOND = "4580d4e", "fb151b2"
TESTS = "data/surface/test_images"
PICTURES = "data/pairs/test_images"
ANSWERS = (".tif", ".png", ".npy", ".json")
TIMES = ("seconds", "command", "created")
"""Keys of JSON files whose values belong to one run of a command."""

TRAINED = 0.1
"""Tolerance of weights after training on another machine: a bias before a norm has no gradient but
rounding errors, of which Adam makes whole steps."""

Array = np.ndarray
Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Old:
    """An unpacked archive, the working folder, and whether its bits hold on this machine."""

    commit: str
    exact: bool


@pytest.fixture(scope="module", params=[FIRST, SECOND])
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Old]:
    """Files of a commit in a folder of their own, on one thread."""
    folder = tmp_path_factory.mktemp(request.param)
    with tarfile.open(FIXTURES / f"old_{request.param}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*.json"):
        text = path.read_text()
        if MAKER["FOLDER"] in text:
            path.write_text(text.replace(MAKER["FOLDER"], str(folder)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.chdir(folder):
        exact = holds(read_json("fixture.json"), MAKER["calibration"]())
        yield Old(commit=request.param, exact=exact)
    torch.set_num_threads(threads)


def holds(made: Mapping[str, Any], calibration: str) -> bool:
    """Whether bits may be compared: equal versions, kind of processor, and bits of torch.

    The calibration is small; larger convolutions round otherwise on AMD's processors, seen with
    equal versions and instruction sets.
    """
    cpus = Path("/proc/cpuinfo")
    if cpus.is_file() and "AuthenticAMD" in cpus.read_text():
        return False
    versions = {name: importlib.metadata.version(name) for name in made["packages"]}
    cpu = torch.backends.cpu.get_cpu_capability()
    return (versions, cpu, calibration) == (made["packages"], made["cpu"], made["calibration"])


def run(command: str, *words: str) -> int:
    """Exit code of ``python -m pipeline.COMMAND WORDS``."""
    return importlib.import_module(f"pipeline.{command}").main(list(words))


# --- comparing -----------------------------------------------------------------------------------


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def stamps(*folders: str) -> dict[str, tuple[str, int]]:
    """Hash and modification time of every file, locks left out."""
    found = [p for folder in folders for p in sorted(Path(folder).rglob("*"))]
    paths = [p for p in found if p.is_file() and p.name != ".lock"]
    assert paths
    return {str(p): (sha256(p), p.stat().st_mtime_ns) for p in paths}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def store_stamps(old: Old, run_folder: str) -> dict[str, tuple[str, int]]:
    """Stamps of a run's store; of the first commit only arrays, as its JSON gains checksums."""
    found = stamps(f"{run_folder}/store")
    return {p: stamp for p, stamp in found.items() if old.commit != FIRST or p.endswith(".npy")}


def require_same(found: Array, expected: Array, exact: bool, where: str, near: float = 1e-3):
    """Equal types, shapes and bits; where bits do not hold, near floats and 99 of 100 integers."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
    if exact:
        assert found.tobytes() == expected.tobytes(), where
    elif np.issubdtype(expected.dtype, np.floating):
        np.testing.assert_allclose(found, expected, rtol=near, atol=near, err_msg=where)
    else:
        assert np.mean(np.abs(found.astype(int) - expected.astype(int)) > 0) <= 0.01, where


def require_known(found: Any, expected: Any, exact: bool, where: str) -> None:
    """All that old JSON says stands in the new one, which may hold more keys."""
    if isinstance(expected, dict):
        missing = set(expected) - set(found)
        assert not missing, f"{where}: lost {missing}"
        for key in expected:
            if key not in TIMES:
                require_known(found[key], expected[key], exact, f"{where}: {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for n, (one, other) in enumerate(zip(found, expected, strict=True)):
            require_known(one, other, exact, f"{where}[{n}]")
    elif isinstance(expected, float) and not exact:
        assert found == pytest.approx(expected, rel=0.02, abs=0.02, nan_ok=True), where
    else:
        assert found == expected, where


def require_same_model(found: Path, expected: Path, exact: bool) -> None:
    """Equal tensors, and a header that knows all that the old one says."""
    one, other = load_file(found), load_file(expected)
    assert set(one) == set(other), found
    for name in other:
        require_same(one[name], other[name], exact, f"{found}: {name}", TRAINED)
    headers = []
    for path in (found, expected):
        with safe_open(path, framework="np") as file:
            headers.append(json.loads(file.metadata()["pipeline"]))
    require_known(*headers, exact, str(found))


def require_same_fold(found: Path, expected: Path, exact: bool) -> None:
    """Models, newest state, records and held-out answers of a fold."""
    models = sorted(p.name for p in expected.glob("*.safetensors"))
    assert models
    assert sorted(p.name for p in found.glob("*.safetensors")) == models
    for name in models:
        require_same_model(found / name, expected / name, exact)
    require_same_model(newest_state(found), newest_state(expected), exact)
    require_known(epochs(found), epochs(expected), exact, str(found / "log.jsonl"))
    results = [read_json(fold / "result.json") for fold in (found, expected)]
    require_known(*results, exact, str(found / "result.json"))
    require_same_answers(found / "oof", expected / "oof", exact, near=0.02)


def epochs(fold: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]


def newest_state(fold: Path) -> Path:
    return max((fold / "checkpoint_latest").glob("*.safetensors"))


def require_same_answers(found: Path, expected: Path, exact: bool, near: float = 1e-3) -> None:
    """Equal pixels in all files of a folder of answers, and JSON that knows what the old says."""
    paths = [p for p in expected.rglob("*") if p.suffix in ANSWERS and "members" not in p.parts]
    assert {".npy", ".json"} < {p.suffix for p in paths}
    for path in paths:
        other = found / path.relative_to(expected)
        if path.suffix == ".json":
            documents = [comparable(read_json(p)) for p in (other, path)]
            require_known(*documents, exact, str(other))
        else:
            require_same(pixels(other), pixels(path), exact, str(other), near)


def pixels(path: Path) -> np.ndarray:
    if path.suffix == ".npy":  # a mask head was once the last channel, and is now a file of its own
        heads = [path, path.parent / "mask" / path.name]
        return np.concatenate([np.load(p, allow_pickle=False) for p in heads if p.is_file()])
    return tifffile.imread(path) if path.suffix == ".tif" else np.asarray(Image.open(path))


def comparable(document: Any) -> Any:
    """Without the folder of answers in paths."""
    return json.loads(json.dumps(document).replace('"new/', '"predictions/'))


# --- training ------------------------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is(old: Old, capsys: Capture) -> None:
    """Training again exits 0 and says so; folds and store are not touched, the summary is equal."""
    folds = ("runs/surface/fold_0", "runs/surface/fold_1")
    before, store, summary = (
        stamps(*folds),
        store_stamps(old, "runs/surface"),
        read_json("runs/surface/summary.json"),
    )
    assert run("train", "--config", "configs/surface.yaml", "--out", "runs/surface") == 0
    assert capsys.readouterr().out.count("already complete") == 2
    assert stamps(*folds) == before
    assert store_stamps(old, "runs/surface") == store
    require_known(read_json("runs/surface/summary.json"), summary, old.exact, "summary.json")


def test_a_stopped_run_goes_on_to_the_same_end(old: Old) -> None:
    """Stopped in an epoch with averaging: weights, state, records and held-out answers are equal.

    The reference is what the old code made of the same stopped run.
    """
    before = store_stamps(old, "runs/stopped")
    assert not Path("runs/stopped/fold_0/result.json").exists()
    assert "_step_" in newest_state(Path("runs/stopped/fold_0")).name
    words = ("--config", "configs/surface.yaml", "--fold", "0")
    assert run("train", *words, "--out", "runs/stopped") == 0
    require_same_fold(Path("runs/stopped/fold_0"), Path("reference/stopped/fold_0"), old.exact)
    assert store_stamps(old, "runs/stopped") == before


def test_the_next_fold_is_trained_as_it_was(old: Old) -> None:
    """A run with one finished fold of two: the other one ends in the same bits as then."""
    before, store = stamps("runs/image/fold_0"), store_stamps(old, "runs/image")
    assert run("train", "--config", "configs/image.yaml", "--fold", "1", "--out", "runs/image") == 0
    require_same_fold(Path("runs/image/fold_1"), Path("reference/image/fold_1"), old.exact)
    assert stamps("runs/image/fold_0") == before
    assert store_stamps(old, "runs/image") == store


def test_keys_that_a_stored_config_lacks_are_defaults(old: Old, capsys: Capture) -> None:
    """A run of before those keys is not refused."""
    shutil.copytree("runs/surface", "runs/older")
    path = Path("runs/older/config.yaml")
    config = yaml.safe_load(path.read_text())
    for section, key in (
        ("data", "frames"),
        ("data", "change"),
        ("train", "keep_every"),
        ("train", "track"),
        ("predict", "scales"),
    ):
        del config[section][key]
    path.write_text(yaml.safe_dump(config))
    assert run("train", "--config", "configs/surface.yaml", "--out", "runs/older") == 0
    assert capsys.readouterr().out.count("already complete") == 2


def test_another_config_is_refused(old: Old, capsys: Capture) -> None:
    words = ("--config", "configs/surface.yaml", "--out", "runs/surface")
    assert run("train", *words, "--set", "predict.scales=[0.8]") == 2
    assert "predict.scales" in capsys.readouterr().err


def test_a_report_is_made_of_an_old_run(old: Old) -> None:
    run_folder = Path("runs/surface")
    (run_folder / "report.html").unlink(missing_ok=True)
    assert run("report", str(run_folder)) == 0
    page = (run_folder / "report.html").read_text()
    assert all(str(100 + n) in page for n in range(6))


# --- prediction ----------------------------------------------------------------------------------

MODELS: dict[str, tuple[str, ...]] = {
    "all": ("runs/surface", "--input", TESTS),
    "fold_0": ("runs/surface/fold_0", "--input", TESTS),
    "fold_1": ("runs/surface/fold_1", "--input", TESTS),
    "best": ("runs/surface/fold_0", "--model", "best", "--input", TESTS),
    "swa": ("runs/surface/fold_0", "--model", "swa", "--input", TESTS),
    "flips": ("runs/surface/fold_1", "--tta", "--patch-size", "8", "16", "16", "--input", TESTS),
    "stopped": ("reference/stopped/fold_0", "--input", TESTS),
    "image": ("runs/image/fold_0", "--input", PICTURES),
    "retouch": ("runs/retouch/fold_0", "--input", PICTURES),
}


@pytest.mark.parametrize("name", MODELS)
def test_old_models_give_the_same_answers(name: str, old: Old) -> None:
    """Answers, masks, probabilities and what stands beside them."""
    words = ("--checkpoint", *MODELS[name], "--output", f"new/{name}", "--save-soft")
    assert run("predict", *words) == 0
    require_same_answers(Path("new", name), Path("predictions", name), old.exact)


def test_the_fixtures_tell_models_apart(old: Old) -> None:
    """Otherwise the test above would not test which model answers."""
    soft = {
        name: stamps(f"predictions/{name}/soft")[f"predictions/{name}/soft/106.npy"][0]
        for name in ("all", "best", "swa", "fold_0", "flips")
    }
    assert len(set(soft.values())) == 4
    assert soft["fold_0"] in (soft["best"], soft["swa"])


def test_blocks_of_an_old_shard_are_used(old: Old) -> None:
    """The same shard again writes none anew; the last command makes the answers of one process."""
    shutil.copytree("predictions/shards", "new/shards")
    before = {p: stamp for p, stamp in stamps("new/shards").items() if p.endswith(".npy")}
    assert before
    words = (
        "--checkpoint",
        *MODELS["all"],
        "--output",
        "new/shards",
        "--blocks",
        "always",
        "--save-soft",
    )
    assert run("predict", *words, "--shard", "0/2") == 0
    assert {p: stamp for p, stamp in stamps("new/shards").items() if p.endswith(".npy")} == before
    assert run("predict", *words) == 0
    require_same_answers(Path("new/shards"), Path("predictions/all"), old.exact)


def test_old_soft_predictions_are_fused_as_they_were(old: Old) -> None:
    folders = ("predictions/fold_0", "predictions/fold_1")
    assert run("ensemble", "--fold-dirs", *folders, "--output", "new/fused", "--save-soft") == 0
    require_same_answers(Path("new/fused"), Path("predictions/fused"), old.exact)


def test_members_that_an_old_ensemble_predicted_are_used_again(old: Old, capsys: Capture) -> None:
    shutil.copytree("predictions/spec", "new/spec")
    before = stamps("new/spec/members/surface/soft", "new/spec/members/surface-2/soft")
    spec = ("--spec", "ensembles/members.yaml", "--input", TESTS)
    assert run("ensemble", *spec, "--output", "new/spec", "--save-soft") == 0
    assert capsys.readouterr().out.count("2 of 2 images are predicted already") == 2
    assert stamps("new/spec/members/surface/soft", "new/spec/members/surface-2/soft") == before
    require_same_answers(Path("new/spec"), Path("predictions/spec"), old.exact)


# --- scores and what follows ---------------------------------------------------------------------


def test_an_old_search_is_not_computed_again(old: Old, capsys: Capture) -> None:
    journal, result = (
        Path("runs/surface/tuning/scores.jsonl"),
        read_json("runs/surface/tuning/result.json"),
    )
    before = journal.read_bytes()
    words = ("--space", "ensembles/space.yaml", "--workers", "1")
    assert run("tune", "runs/surface", *words, "--out", "ensembles/again.yaml") == 0
    rounds = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]
    assert rounds
    assert all(line.endswith(", 0 scores to compute") for line in rounds), rounds
    assert journal.read_bytes() == before
    require_known(read_json("runs/surface/tuning/result.json"), result, old.exact, "result.json")
    texts = [Path(f"ensembles/{name}.yaml").read_text() for name in ("again", "tuned")]
    assert yaml.safe_load(texts[0]) == yaml.safe_load(texts[1])


def test_old_answers_have_the_same_scores(old: Old) -> None:
    """Both versions of the metrics agree on masks of two classes without a unit of length."""
    expected = read_json("scores.json")
    metrics = MAKER["METRICS"].split() + MAKER["DISTANCES"].split()
    words = (
        "--predictions",
        "predictions/all",
        "--labels",
        "data/test_labels",
        "--ignore-label",
        "2",
    )
    assert run("evaluate", *words, "--metrics", *metrics, "--out", "new_scores.json") == 0
    require_known(read_json("new_scores.json"), expected, old.exact, "scores.json")


def test_old_images_have_the_same_scores(old: Old) -> None:
    words = (
        "--predictions",
        "predictions/retouch",
        "--labels",
        "data/test_targets",
        "--inputs",
        PICTURES,
    )
    change = ("--change", "threshold=3", "dilation=1", "blur=1")
    metrics = ("psnr", "ssim", "mae", "retouch")
    words = (*words, "--metrics", *metrics, *change)
    assert run("evaluate", *words, "--out", "new_image_scores.json") == 0
    require_known(
        read_json("new_image_scores.json"),
        read_json("image_scores.json"),
        old.exact,
        "image_scores.json",
    )


def test_old_answers_make_the_same_submission(old: Old) -> None:
    words = ("--predictions", "predictions/fused", "--test-dir", TESTS)
    assert run("submit", *words, "--out", "new.zip") == 0
    if old.exact:
        assert Path("new.zip").read_bytes() == Path("submission.zip").read_bytes()
    else:
        require_same_members(Path("new.zip"), Path("submission.zip"))


def require_same_members(found: Path, expected: Path) -> None:
    """Equal names and masks, whatever bytes this machine's compression makes of them."""
    with zipfile.ZipFile(found) as one, zipfile.ZipFile(expected) as other:
        assert one.namelist() == other.namelist()
        for name in other.namelist():
            masks = [tifffile.imread(io.BytesIO(z.read(name))) for z in (one, other)]
            require_same(*masks, exact=True, where=name)
