"""Folders of answers that are not those of one finished prediction are no members, no submission
and have no score.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_models import model_file, noise, rows, run_predict
from test_lock import holder

from pipeline import ensemble, evaluate, files, submit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture
def predicted(model: Path, tmp_path: Path) -> Path:
    """Answers to a and b, whose images lie in ``in`` and labels in ``labels``."""
    for n, name in enumerate("ab"):
        files.write(tmp_path / "in" / f"{name}.tif", noise((16, 17, 18), n, np.float32))
        files.write(
            tmp_path / "labels" / f"{name}.tif", (noise((16, 17, 18), n) > 100).astype(np.uint8)
        )
    assert run_predict(model, tmp_path / "in", tmp_path / "p", "--save-soft") == 0
    return tmp_path / "p"


def uses(folder: Path, out: Path) -> dict[str, Callable[[], int]]:
    """What commands do with a folder of answers."""
    root = folder.parent
    scored = [
        "--predictions",
        str(folder),
        "--labels",
        str(root / "labels"),
        "--metrics",
        "dice",
        "--workers",
        "1",
    ]
    return {
        "ensemble": lambda: ensemble.main(["--fold-dirs", str(folder), "--output", str(out / "e")]),
        "vote": lambda: ensemble.main(
            ["--fold-dirs", str(folder), "--fusion", "vote", "--output", str(out / "v")]
        ),
        "submit": lambda: submit.main(
            [
                "--predictions",
                str(folder),
                "--test-dir",
                str(root / "in"),
                "--out",
                str(out / "s.zip"),
            ]
        ),
        "evaluate": lambda: evaluate.main(scored),
    }


USES = ("ensemble", "vote", "submit", "evaluate")


@pytest.mark.parametrize("use", USES)
def test_an_older_answer_to_a_case_that_failed_since_is_not_taken(
    use: str, predicted: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = noise((16, 17, 18), 0, np.float32)
    image[3, 3, 3] = np.nan
    files.write(tmp_path / "in" / "a.tif", image)
    assert run_predict(model, tmp_path / "in", predicted, "--save-soft") == 3
    assert (predicted / "a.tif").is_file()
    capsys.readouterr()
    assert uses(predicted, tmp_path)[use]() == 2
    told = capsys.readouterr().err
    assert f"{predicted}: a could not be predicted the last time" in told
    assert "Predict them again" in told
    files.write(tmp_path / "in" / "a.tif", noise((16, 17, 18), 0, np.float32))
    assert run_predict(model, tmp_path / "in", predicted, "--save-soft") == 0
    assert uses(predicted, tmp_path)[use]() == 0


@pytest.mark.parametrize("use", USES)
def test_a_killed_prediction_over_older_answers_is_told(
    use: str,
    predicted: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def killed(*_: object) -> dict[str, object]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.workflows.predict.predict_case", killed)
        with pytest.raises(KeyboardInterrupt):
            run_predict(model, tmp_path / "in", predicted, "--save-soft")
    capsys.readouterr()
    assert uses(predicted, tmp_path)[use]() == 2
    assert (
        f"{predicted}: the last command that wrote there ended after 0 of 2 cases"
        in capsys.readouterr().err
    )
    assert run_predict(model, tmp_path / "in", predicted, "--save-soft") == 0
    assert uses(predicted, tmp_path)[use]() == 0


@pytest.mark.parametrize("use", USES)
def test_what_is_being_written_is_left_alone(
    use: str, predicted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with holder(predicted / ".lock") as other:
        assert uses(predicted, tmp_path)[use]() == 2
    told = capsys.readouterr().err
    assert f"{predicted} is being written by process {other.pid}" in told
    assert "Wait until that is done" in told


@pytest.mark.parametrize("use", USES)
def test_answers_of_several_commands_are_taken_and_named(
    use: str, predicted: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image at a time, as loops of a shell do."""
    assert run_predict(model, tmp_path / "in" / "b.tif", predicted, "--save-soft") == 0
    assert uses(predicted, tmp_path)[use]() == 0
    assert (
        f"{predicted} holds answers that its last prediction did not write (summary.json): a"
        in capsys.readouterr().out
    )


def test_a_failed_case_without_an_answer_is_said_and_the_others_are_fused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(tmp_path / "in" / "a.tif", np.full((16, 17, 18), np.nan, np.float32))
    files.write(tmp_path / "in" / "b.tif", noise((16, 17, 18)))
    assert run_predict(model, tmp_path / "in", tmp_path / "p", "--save-soft") == 3
    assert ensemble.main(["--fold-dirs", str(tmp_path / "p"), "--output", str(tmp_path / "e")]) == 0
    assert [row["id"] for row in rows(tmp_path / "e")] == ["b"]
    assert (
        "lacks cases that could not be predicted (summary.json says why): a"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("summary", [None, {"models": [], "files": []}])
def test_folders_of_older_versions_and_of_others_are_taken_as_they_are(
    summary: dict[str, object] | None, predicted: Path, tmp_path: Path
) -> None:
    (predicted / "summary.json").unlink()
    if summary is not None:
        steps = [{"name": "threshold", "options": {"at": 0.5}}]
        files.write_json(predicted / "summary.json", {**summary, "postprocess": steps})
    for use in uses(predicted, tmp_path).values():
        assert use() == 0


def test_a_member_that_is_a_run_is_finished_by_the_next_start(
    predicted: Path, model: Path, tmp_path: Path
) -> None:
    """Killed when its last answer was there and the summary did not list it yet."""
    (tmp_path / "e.yaml").write_text(f"members: [{{run: {model.parent}}}]\n")
    words = [
        "--spec",
        str(tmp_path / "e.yaml"),
        "--input",
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "e"),
    ]
    assert ensemble.main(words) == 0
    path = tmp_path / "e" / "members" / "run" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": []}))
    assert ensemble.main(words) == 0


def test_a_zarr_that_changed_inside_is_predicted_again(model: Path, tmp_path: Path) -> None:
    """Its folder keeps its time and size."""
    files.write(tmp_path / "in" / "a.zarr", noise((16, 17, 18)))
    (tmp_path / "e.yaml").write_text(f"members: [{{run: {model.parent}}}]\n")
    words = [
        "--spec",
        str(tmp_path / "e.yaml"),
        "--input",
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "e"),
    ]
    assert ensemble.main(words) == 0
    files.write(tmp_path / "other.zarr", noise((16, 17, 18), 7))
    for path in (tmp_path / "other.zarr").rglob("*"):
        if path.is_file():
            (tmp_path / "in" / "a.zarr" / path.relative_to(tmp_path / "other.zarr")).write_bytes(
                path.read_bytes()
            )
    assert ensemble.main(words) == 0
    assert run_predict(model, tmp_path / "other.zarr", tmp_path / "direct") == 0
    answers = tmp_path / "e" / "members" / "run" / "a.zarr", tmp_path / "direct" / "other.zarr"
    own, direct = (files.read(path, 3)[0] for path in answers)
    assert np.array_equal(own, direct)


# --- folders that cannot be written to ------------------------------------------------------------


def a_file(out: Path) -> None:
    out.write_text("mine")


def below_a_file(out: Path) -> None:
    out.parent.rmdir()
    out.parent.write_text("mine")


def a_dead_link(out: Path) -> None:
    out.symlink_to("nowhere")


def a_lock_of_others(out: Path) -> None:
    out.mkdir()
    (out / ".lock").write_text("mine")


def a_lock_that_is_a_folder(out: Path) -> None:
    (out / ".lock").mkdir(parents=True)


@pytest.mark.parametrize(
    "kind", [a_file, below_a_file, a_dead_link, a_lock_of_others, a_lock_that_is_a_folder]
)
def test_an_output_that_cannot_be_a_folder_is_refused_by_name(
    kind: Callable[[Path], None],
    predicted: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "deep" / "out"
    out.parent.mkdir()
    kind(out)
    before = sorted(os.walk(tmp_path))
    for use in (
        lambda: run_predict(model, tmp_path / "in", out),
        lambda: run_predict(model, tmp_path / "in", out, "--shard", "0/1"),
        lambda: ensemble.main(["--fold-dirs", str(predicted), "--output", str(out)]),
    ):
        assert use() == 2
        told = capsys.readouterr().err
        assert f"--output {out}" in told
        assert "Choose another folder" in told
    assert sorted(os.walk(tmp_path)) == before
    if kind is a_lock_of_others:
        assert (out / ".lock").read_text() == "mine"


def test_files_of_others_among_the_blocks_stay(
    predicted: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "blocks").mkdir(parents=True)
    (out / "blocks" / "notes.txt").write_text("mine")
    for more in (["--shard", "0/1"], []):
        assert run_predict(model, tmp_path / "in", out, "--blocks", "always", *more) == 0
    assert [p.name for p in (out / "blocks").iterdir()] == ["notes.txt"]


# --- soft predictions and summaries that are none -------------------------------------------------


def damaged(key: str, value: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / "soft" / "a.json"
        facts = json.loads(path.read_text())
        where = facts["geometry"] if key in facts["geometry"] else facts
        path.write_text(
            json.dumps(
                {**facts, "geometry": {**where, key: value}}
                if where is not facts
                else {**facts, key: value}
            )
        )

    return make


def array(value: np.ndarray | None) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / "soft" / "a.npy"
        path.write_bytes(b"") if value is None else np.save(path, value)

    return make


@pytest.mark.parametrize(
    "make",
    [
        damaged("suffix", "/../../out.tif"),
        damaged("suffix", None),
        damaged("task", "other"),
        damaged("image", 5),
        damaged("meta", None),
        damaged("format", "nifti"),
        array(None),
        array(np.float16(0.5)),
        array(np.zeros((1, 0, 4, 4), np.float16)),
    ],
)
def test_soft_predictions_of_odd_content_are_refused_by_name(
    make: Callable[[Path], None],
    predicted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(predicted)
    assert ensemble.main(["--fold-dirs", str(predicted), "--output", str(tmp_path / "e")]) == 3
    told = capsys.readouterr().out
    assert f"{predicted / 'soft' / 'a.npy'}: not a readable soft prediction" in told
    assert "Run pipeline.predict --save-soft again" in told
    assert [row["id"] for row in rows(tmp_path / "e") if row["status"] == "failed"] == ["a"]
    assert not list((tmp_path / "e").glob("a*"))


@pytest.mark.parametrize("summary", [[], {"postprocess": None}, {"postprocess": [{"zz": 1}]}])
def test_a_summary_of_odd_content_is_refused_by_name(
    summary: object, predicted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (predicted / "summary.json").write_text(json.dumps(summary))
    assert ensemble.main(["--fold-dirs", str(predicted), "--output", str(tmp_path / "e")]) == 2
    assert f"{predicted / 'summary.json'}: is no summary of predictions" in capsys.readouterr().err
