"""The training command: checks before work, exact resumption, failures reported and contained."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tifffile
import torch
from conftest import competition_folder

from pipeline import train
from pipeline.config import from_dict
from pipeline.data.loaders import Key, PatchDataset
from pipeline.inference.models import load_model
from pipeline.losses import WeightedSum
from pipeline.reporting import tables
from pipeline.runs import FoldFolder
from pipeline.training import fold, loop
from pipeline.training.job import FoldJob, TrainingError
from pipeline.training.state import TrainingState
from pipeline.training.validation import Validation


def run(config: Path, data: Path, out: Path, *more: str) -> int:
    return train.main(["--config", str(config), "--data-dir", str(data), "--out", str(out), *more])


def fingerprint(run_folder: Path) -> dict[str, str]:
    """Hashes of everything that must not depend on interruptions: weights, answers, metrics without
    times.
    """
    out = {}
    for path in sorted(run_folder.rglob("*")):
        name = str(path.relative_to(run_folder))
        if (path.suffix == ".safetensors" and "checkpoint_latest" not in name) or path.suffix in (
            ".tif",
            ".npy",
        ):
            out[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name == "log.jsonl":
            rows = [json.loads(x) for x in path.read_text().splitlines()]
            out[name] = json.dumps([{k: v for k, v in r.items() if k != "seconds"} for r in rows])
        if path.name == "summary.json":
            data = json.loads(path.read_text())
            out[name] = json.dumps([data["out_of_fold"], data["cases"]])
    return out


def test_dry_run_starts_nothing(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny, surfaces, tmp_path / "run", "--dry-run") == 0
    assert not (tmp_path / "run").exists()
    assert "6 cases" in capsys.readouterr().out


def test_every_fault_is_told_at_once(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each planted fault is named with its file; exit code 2, and nothing is written."""
    data = competition_folder(tmp_path / "data", cases=8)
    images, labels = data / "train_images", data / "train_labels"
    (labels / "100.tif").unlink()
    tifffile.imwrite(images / "101.tif", np.zeros((24, 24), np.uint8))
    tifffile.imwrite(labels / "102.tif", np.zeros((20, 24, 23), np.uint8))
    whole = (images / "103.tif").read_bytes()
    (images / "103.tif").write_bytes(whole[: len(whole) // 2])
    tifffile.imwrite(labels / "104.tif", np.full((20, 24, 24), 7, np.uint8))
    bad = np.random.default_rng(0).normal(size=(20, 24, 24)).astype(np.float32)
    bad[3, 4, 5] = np.nan
    tifffile.imwrite(images / "105.tif", bad)
    tifffile.imwrite(images / "106.tif", np.full((20, 24, 24), 9, np.uint8))
    tifffile.imwrite(labels / "107.tif", np.zeros((20, 24, 24), np.uint8))
    (images / "108.tif").write_bytes((images / "107.tif").read_bytes())
    (labels / "108.tif").write_bytes((labels / "107.tif").read_bytes())
    assert run(tiny, data, tmp_path / "run") == 2
    told = capsys.readouterr().out.splitlines()
    for case, word in [
        (100, "label"),
        (101, "2"),
        (102, "shape"),
        (103, ""),
        (104, "7"),
        (105, "NaN"),
        (106, "constant"),
    ]:
        assert any(
            "error:" in line and str(case) in line and word.lower() in line.lower() for line in told
        ), (case, told)
    for word in ("foreground", "same image"):
        assert any("warning:" in line and "107" in line and word in line for line in told), (
            word,
            told,
        )
    assert not (tmp_path / "run" / "splits.json").exists()


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("train.epochz=3", "Did you mean 'epochs'"),
        ("network.name=unett", "Did you mean 'unet'"),
        ("losses.0.name=dize", "Did you mean 'dice'"),
        ("metrics=[dicee]", "Did you mean 'dice'"),
        ("train.optimizer.options.learning=1", "no option 'learning'"),
        ("train.stop.monitor=val_iou", "is not computed"),
        ("losses.0.head=mask", "mask"),
        ("postprocess=[dust, threshold]", "Put it first"),
        ("metrics=[components]", "better"),
        ("data.folds.count=9", "9"),
    ],
)
def test_wrong_configs_end_with_2_before_training(
    override: str,
    word: str,
    tiny: Path,
    surfaces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tiny, surfaces, tmp_path / "run", "--set", override) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "run" / "fold_0").exists()


@pytest.mark.parametrize(
    "arguments", [["--fold", "7"], ["--data-dir", "/nowhere"], ["--config", "/nowhere.yaml"]]
)
def test_wrong_arguments_end_with_2(
    arguments: list[str], tiny: Path, surfaces: Path, tmp_path: Path
) -> None:
    assert run(tiny, surfaces, tmp_path / "run", *arguments) == 2


def command(config: Path, data: Path, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pipeline.train",
        "--config",
        str(config),
        "--data-dir",
        str(data),
        "--out",
        str(out),
    ]


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(tiny: Path, surfaces: Path, tmp_path: Path) -> None:
    """SIGKILL in the first epoch, between epochs, while scoring, and SIGTERM: the rerun ends as the
    undisturbed run does.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert run(tiny, surfaces, tmp_path / "calm") == 0
    out = tmp_path / "rough"
    moments = [
        ("Model parameters", 0.05, signal.SIGKILL),
        ("Epoch 1/3", 0.0, signal.SIGKILL),
        ("Epoch 2/3", 0.1, signal.SIGTERM),
        ("SWA:", 0.1, signal.SIGKILL),
        ("STARTING FOLD 1", 0.6, signal.SIGKILL),
    ]
    codes = []
    for line, wait, number in moments:
        codes.append(_interrupt(command(tiny, surfaces, out), environment, (line, wait, number)))
    assert (
        subprocess.run(
            command(tiny, surfaces, out), env=environment, check=False, capture_output=True
        ).returncode
        == 0
    )
    assert fingerprint(out) == fingerprint(tmp_path / "calm")
    assert -signal.SIGKILL in codes
    assert 75 in codes


def _interrupt(
    words: list[str], environment: dict[str, str], moment: tuple[str, float, int]
) -> int:
    line, wait, number = moment
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if line in text:
                time.sleep(wait)
                process.send_signal(number)
                break
        process.stdout.read()
        return process.wait()


@pytest.mark.slow
def test_a_damaged_newest_state_falls_back(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One flipped byte in the newest state: said aloud, and the state before it leads to the same
    end.
    """
    assert run(tiny, surfaces, tmp_path / "calm", "--fold", "0") == 0
    assert run(tiny, surfaces, tmp_path / "rough", "--fold", "0") == 0
    folder = tmp_path / "rough" / "fold_0"
    (folder / "result.json").unlink()
    newest = sorted((folder / "checkpoint_latest").iterdir())[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))
    assert run(tiny, surfaces, tmp_path / "rough", "--fold", "0") == 0
    assert "damaged" in capsys.readouterr().out
    assert fingerprint(tmp_path / "rough") == fingerprint(tmp_path / "calm")
    for state in (folder / "checkpoint_latest").iterdir():
        state.write_bytes(b"")
    (folder / "result.json").unlink()
    assert run(tiny, surfaces, tmp_path / "rough", "--fold", "0") == 1
    assert "--fresh" in capsys.readouterr().out


@pytest.mark.slow
def test_changed_config_or_data_is_refused_unless_fresh(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = competition_folder(tmp_path / "data", cases=4), tmp_path / "run"
    assert run(tiny, data, out, "--fold", "0", "--set", "train.epochs=2") == 0
    assert run(tiny, data, out, "--fold", "0", "--set", "train.epochs=2", "data.workers=1") == 0
    assert run(tiny, data, out, "--fold", "0") == 2
    assert "train.epochs: 2 -> 3" in capsys.readouterr().err
    label = tifffile.imread(data / "train_labels" / "100.tif")
    label[5, 5, 5] ^= 1
    tifffile.imwrite(data / "train_labels" / "100.tif", label)
    assert run(tiny, data, out, "--fold", "0", "--set", "train.epochs=2") == 2
    assert "case 100: content changed" in capsys.readouterr().err
    assert run(tiny, data, out, "--fold", "0", "--set", "train.epochs=2", "--fresh") == 0
    assert (tmp_path / "run.old-1" / "fold_0" / "best_model.safetensors").is_file()


@pytest.mark.parametrize("change", ["removed", "renamed"])
def test_a_missing_or_renamed_case_is_refused(
    change: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = competition_folder(tmp_path / "data", cases=5), tmp_path / "run"
    assert run(tiny, data, out, "--fold", "0", "--set", "train.epochs=1", "train.average=null") == 0
    for folder in ("train_images", "train_labels"):
        old = data / folder / "102.tif"
        old.unlink() if change == "removed" else old.rename(old.with_stem("702"))
    table = data / "train.csv"
    rows = table.read_text().replace("102,a\n", "" if change == "removed" else "702,a\n")
    table.write_text(rows)
    before = fingerprint(out)
    assert run(tiny, data, out, "--fold", "0", "--set", "train.epochs=1", "train.average=null") == 2
    told = capsys.readouterr().err
    assert "case 102: removed" in told
    assert ("case 702: added" in told) == (change == "renamed")
    assert "content changed" not in told
    assert fingerprint(out) == before


def test_nan_stops_the_fold_and_names_the_case(
    tiny: Path,
    surfaces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poisoned = "102"
    original = FoldJob.images

    def poison(job: FoldJob, batch: dict) -> torch.Tensor:
        image = original(job, batch)
        return image * float("nan") if poisoned in batch["id"] and job.network.training else image

    monkeypatch.setattr(FoldJob, "images", poison)
    assert run(tiny, surfaces, tmp_path / "run", "--continue-on-error") == 1
    told = capsys.readouterr().out
    assert "loss is nan" in told
    assert poisoned in told.split("loss is nan")[1]
    results = [FoldFolder(tmp_path / "run" / f"fold_{n}").result() for n in (0, 1)]
    assert sorted(r.status for r in results if r) == ["completed", "failed"]


@pytest.mark.slow
def test_a_failed_fold_stops_the_others_unless_told_to_go_on(
    tiny: Path, surfaces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.fit

    def fail(job: FoldJob) -> TrainingState:
        if job.fold == 0:
            raise RuntimeError("CUDA out of memory")
        return original(job)

    monkeypatch.setattr(loop, "fit", fail)
    assert run(tiny, surfaces, tmp_path / "a") == 1
    assert not (tmp_path / "a" / "fold_1").exists()
    assert run(tiny, surfaces, tmp_path / "b", "--continue-on-error") == 1
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert [f["status"] for f in summary["folds"]] == ["failed", "completed"]
    monkeypatch.setattr(loop, "fit", original)
    assert run(tiny, surfaces, tmp_path / "b") == 0  # only the failed fold is trained


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "Caught _ArrayMemoryError in worker 0: Unable to allocate 8.00 TiB for an array with"
            " shape (1099511627776,)"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
            " 4398046511104 bytes"
        ),
    ],
)
def test_out_of_memory_in_a_fold_says_how_to_go_on(
    error: Exception,
    tiny: Path,
    surfaces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(job: FoldJob) -> TrainingState:
        raise error

    monkeypatch.setattr(loop, "fit", fail)
    assert run(tiny, surfaces, tmp_path / "run", "--fold", "0") == 1
    (line,) = (text for text in capsys.readouterr().out.splitlines() if "Fold 0 FAILED" in text)
    assert "Reduce data.patch.batch or data.patch.size" in line


def test_other_errors_get_no_advice_on_memory() -> None:
    with pytest.raises(np.exceptions.AxisError) as caught:
        np.zeros(3).sum(axis=2)
    assert fold.memory_hint(caught.value) == ""


def test_numpys_own_error_gets_the_advice() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, np.uint8)
    assert "data.patch.batch" in fold.memory_hint(caught.value)


class FourBatches:
    """Stands for a loader of four batches that no other rank shares."""

    def __len__(self) -> int:
        return 4

    def share(self, step: int) -> float:
        return 1.0


class Poisoned:
    """A distributed context as rank 0 sees it: the other one gives ``loss`` for cases x and y."""

    is_single, rank = True, 0

    def __init__(self, loss: float) -> None:
        self.loss = loss

    def all_gather(self, value: list[Any]) -> list[Any]:
        _, count, values, shares = value
        return [
            value,
            [
                ["x", "y"],
                count,
                {**values, "train_loss": self.loss, "train/dice": self.loss},
                shares,
            ],
        ]


@pytest.mark.parametrize("loss", [0.25, float("nan"), float("inf"), -float("inf")])
def test_what_one_rank_cannot_learn_changes_no_weight_of_any(loss: float, tmp_path: Path) -> None:
    """This rank's own loss is finite: it names the other's cases, and its weights stay."""
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    patch = {"size": [8, 8]}
    config = from_dict(
        {
            "name": "t",
            "data": {"dims": 2, "layout": "folders", "patch": patch},
            "network": "unet",
            "losses": ["dice"],
        }
    )
    job = FoldJob(
        config=config,
        fold=0,
        folder=tmp_path,
        device="cpu",
        network=cast(Any, network),
        channels=(1, 1),
        losses=WeightedSum(config.losses, config.kinds, None),
        train_loader=cast(Any, FourBatches()),
        val_loader=cast(Any, None),
        raise_if_stopped=lambda: None,
        progress=lambda *_: None,
        context=cast(Any, Poisoned(loss)),
    )
    state = TrainingState(
        network=network,
        forward=lambda x: {"main": network(x)},
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        schedule=cast(Any, None),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        average=None,
        epoch=4,
    )
    batch: dict[str, Any] = {
        "id": ["a", "b"],
        "image": torch.rand(2, 1, 8, 8),
        "label": torch.ones(2, 1, 8, 8, dtype=torch.uint8),
    }
    batch |= {name: torch.tensor([0.5, 0.5]) for name in ("foreground_share", "changed")}
    before = [p.detach().clone() for p in network.parameters()]
    if np.isfinite(loss):
        assert loop.training_step(job, state, 2, batch)
        assert state.step == 3
        assert not any(
            torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True)
        )
        return
    with pytest.raises(
        TrainingError, match=rf"loss is {loss} \(dice\) in epoch 5, step 3, cases x, y\."
    ):
        loop.training_step(job, state, 2, batch)
    assert state.step == 0
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))


def test_nan_in_a_later_epoch_leaves_what_was_good(
    tiny: Path,
    surfaces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The best model and the state of epoch 1 stay, and the rerun without the poison ends as a run
    that never saw it.
    """
    original = loop.training_step

    def poison(job: FoldJob, state: TrainingState, step: int, batch: dict) -> bool:
        bad = state.epoch >= 1 and step == 1
        return original(
            job, state, step, {**batch, "image": batch["image"] * float("nan")} if bad else batch
        )

    out, more = tmp_path / "run", ("--fold", "0", "--set", "train.epochs=2")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", poison)
        assert run(tiny, surfaces, out, *more) == 1
    assert "in epoch 2, step 2, cases" in capsys.readouterr().out
    assert load_model(out / "fold_0" / "best_model.safetensors").epoch == 0
    result = FoldFolder(out / "fold_0").result()
    assert result is not None
    assert (result.status, "epoch 2, step 2" in result.error) == ("failed", True)
    assert run(tiny, surfaces, out, *more) == 0
    assert "continuing after epoch 1" in capsys.readouterr().out
    assert run(tiny, surfaces, tmp_path / "calm", *more) == 0
    assert fingerprint(out) == fingerprint(tmp_path / "calm")


def test_a_validation_that_is_never_finite_fails_the_fold(
    tiny: Path,
    surfaces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        loop,
        "validate",
        lambda job, network: Validation(
            values={"val_loss": float("nan"), "val_dice": 0.5}, unlabelled=0
        ),
    )
    assert run(tiny, surfaces, tmp_path / "run", "--fold", "0") == 1
    assert "val_loss was never finite" in capsys.readouterr().out
    assert not (tmp_path / "run" / "fold_0" / "best_model.safetensors").exists()


def test_a_dead_loader_worker_fails_the_fold(
    tiny: Path,
    surfaces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The worker ends without a word, as one that the kernel kills for its memory; the next start
    trains the fold.
    """
    original = PatchDataset.__getitem__

    def die(dataset: PatchDataset, key: Key) -> dict:
        if key[1] == 1:
            os._exit(1)
        return original(dataset, key)

    more = ("--fold", "0", "--set", "data.workers=1", "train.epochs=1", "train.average=null")
    with monkeypatch.context() as patch:
        patch.setattr(PatchDataset, "__getitem__", die)
        assert run(tiny, surfaces, tmp_path / "run", *more) == 1
    told = capsys.readouterr().out
    assert "Fold 0 FAILED: RuntimeError: DataLoader worker" in told
    assert "exited unexpectedly" in told
    assert run(tiny, surfaces, tmp_path / "run", *more) == 0


def test_a_run_folder_that_may_not_be_written_is_named_before_any_work(
    tiny: Path, surfaces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny, surfaces, Path("/proc/run")) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error:")
    assert "/proc/run" in told.err
    assert told.out == ""  # not even the data were looked at


def test_early_stopping_keeps_the_best(
    tiny: Path, surfaces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.3, float("nan"), 0.4, 0.2, 0.1])
    monkeypatch.setattr(
        loop,
        "validate",
        lambda job, network: Validation(
            values={"val_loss": next(values), "val_dice": 0.5}, unlabelled=0
        ),
    )
    assert (
        run(
            tiny,
            surfaces,
            tmp_path / "run",
            "--fold",
            "0",
            "--set",
            "train.epochs=9",
            "train.stop.patience=2",
            "train.average=null",
        )
        == 0
    )
    result = FoldFolder(tmp_path / "run" / "fold_0").result()
    assert result is not None
    assert (result.best_epoch, result.epochs, result.score) == (1, 4, 0.3)
    assert load_model(tmp_path / "run" / "fold_0" / "best_model.safetensors").epoch == 1
    assert "Early stopping" in (tmp_path / "run" / "fold_0" / "training_log.txt").read_text()


@pytest.mark.slow
def test_average_is_the_average(
    tiny: Path, surfaces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running average by hand: 0.9/0.1 over the epochs from ``start`` on, and the equal average."""
    snapshots: list[dict[str, torch.Tensor]] = []
    original = loop.save

    def spy(job: FoldJob, state: TrainingState) -> None:
        snapshots.append({k: v.clone() for k, v in state.network.state_dict().items()})
        original(job, state)

    monkeypatch.setattr(loop, "save", spy)
    for decay in ("0.9", "null"):
        snapshots.clear()
        assert (
            run(
                tiny,
                surfaces,
                tmp_path / decay,
                "--fold",
                "0",
                "--set",
                f"train.average.decay={decay}",
                "train.epochs=4",
            )
            == 0
        )
        kept = snapshots[1:]
        name = next(k for k in kept[0] if k.endswith("weight"))
        expected = kept[0][name]
        for n, s in enumerate(kept[1:], 2):
            expected = (
                0.9 * expected + 0.1 * s[name]
                if decay == "0.9"
                else expected + (s[name] - expected) / n
            )
        torch.testing.assert_close(
            load_model(tmp_path / decay / "fold_0" / "swa_model.safetensors").weights[name],
            expected,
        )


def test_averaging_has_its_own_learning_rate(tiny: Path, surfaces: Path, tmp_path: Path) -> None:
    assert run(tiny, surfaces, tmp_path / "run", "--fold", "0") == 0
    rates = [
        json.loads(x)["lr"]
        for x in (tmp_path / "run" / "fold_0" / "log.jsonl").read_text().splitlines()
    ]
    assert rates == [1e-2, 5e-3, 5e-3]


def test_batchnorm_statistics_of_the_average_are_recomputed(
    tiny: Path, surfaces: Path, tmp_path: Path
) -> None:
    assert (
        run(tiny, surfaces, tmp_path / "run", "--fold", "0", "--set", "network.options.norm=batch")
        == 0
    )
    best, swa = (
        load_model(tmp_path / "run" / "fold_0" / f"{k}_model.safetensors").weights
        for k in ("best", "swa")
    )
    means = [k for k in swa if k.endswith("running_mean")]
    assert means
    assert any(not torch.allclose(best[k], swa[k]) for k in means)


@pytest.mark.slow
def test_init_from_lists_and_refuses(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny, surfaces, tmp_path / "a", "--fold", "0", "--set", "train.epochs=2") == 0
    model = tmp_path / "a" / "fold_0" / "best_model.safetensors"
    init = f"train.init_from.path={model}"
    assert run(tiny, surfaces, tmp_path / "b", "--fold", "0", "--set", init) == 0
    assert "of" in capsys.readouterr().out.split("Initial weights from")[1].splitlines()[0]
    wider = "network.options.channels=[4,4,8,8,12]"
    assert run(tiny, surfaces, tmp_path / "c", "--fold", "0", "--set", init, wider) != 0
    assert "allow_shape" in capsys.readouterr().out
    assert (
        run(
            tiny,
            surfaces,
            tmp_path / "d",
            "--fold",
            "0",
            "--set",
            init,
            wider,
            "train.init_from.allow_shape=true",
        )
        == 0
    )
    assert "left fresh" in capsys.readouterr().out


@pytest.mark.parametrize(
    "schedule", ["cosine_restarts", "cosine", "step", "plateau", "poly", "one_cycle", "constant"]
)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_schedules_survive_json(schedule: str, optimizer: str) -> None:
    """Stopping after every epoch and going on from the JSON gives the same rates as one run."""
    from pipeline.config import Train
    from pipeline.records import NamedOptions
    from pipeline.training import optim
    from pipeline.training.state import plain_schedule

    settings = Train(
        epochs=12,
        optimizer=NamedOptions(name=optimizer, options={"lr": 0.1}),
        schedule=NamedOptions(name=schedule),
        average=None,
    )
    whole, parts = [], []
    module = torch.nn.Linear(1, 1)
    opt, sched = optim.make_optimizer(settings, module)
    for epoch in range(12):
        whole.append(opt.param_groups[0]["lr"])
        opt.step()
        optim.step_schedule(sched, float(epoch % 3))
    groups, saved = None, None
    for epoch in range(12):
        opt, sched = optim.make_optimizer(settings, module)
        if saved is not None:
            opt.load_state_dict({"state": {}, "param_groups": json.loads(groups)})
            sched.load_state_dict(json.loads(saved))
        parts.append(opt.param_groups[0]["lr"])
        opt.step()
        optim.step_schedule(sched, float(epoch % 3))
        groups, saved = (
            json.dumps(opt.state_dict()["param_groups"]),
            json.dumps(plain_schedule(sched.state_dict())),
        )
    np.testing.assert_allclose(parts, whole)


def test_warm_restarts_restart() -> None:
    from pipeline.config import Train
    from pipeline.records import NamedOptions
    from pipeline.training import optim

    settings = Train(
        schedule=NamedOptions(
            name="cosine_restarts", options={"first": 10, "factor": 2, "min_lr": 1e-6}
        )
    )
    opt, sched = optim.make_optimizer(settings, torch.nn.Linear(1, 1))
    rates = []
    for _ in range(31):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        optim.step_schedule(sched, 0.0)
    assert rates[0] == rates[10] == rates[30] == 1e-4
    assert rates[9] < 1e-5
    assert rates[29] < rates[11]


def test_summary_table_shows_failures() -> None:
    summary = {
        "folds": [
            {
                "fold": 0,
                "status": "completed",
                "best_epoch": 3,
                "score": 0.1,
                "metrics": {"best": {"dice": 0.5}},
                "chosen": "best",
                "seconds": 61.0,
                "error": "",
            },
            {
                "fold": 1,
                "status": "failed",
                "best_epoch": -1,
                "score": None,
                "metrics": {},
                "chosen": "best",
                "seconds": 2.0,
                "error": "RuntimeError: x",
            },
        ],
        "out_of_fold": {"dice": 0.5},
        "cases": {"a": {}},
        "monitor": "val_loss",
    }
    text = tables.of_training(summary)
    assert "RuntimeError: x" in text
    assert "0:01:01" in text


def test_console_output_is_kept(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log holds all that was printed, the checks before the run folder existed included."""
    assert run(tiny, surfaces, tmp_path / "run", "--fold", "0") == 0
    (log,) = (tmp_path / "run").glob("train_*.log")
    assert log.read_text().splitlines() == capsys.readouterr().out.splitlines()
