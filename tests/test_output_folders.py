"""Folders of answers: no input and no file of others is replaced, and two commands do not write
into one at a time.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from small_models import model_file, noise, rows, run_predict
from test_lock import holder

from pipeline import ensemble, files, submit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "run")


def volume(path: Path, seed: int = 0) -> Path:
    files.write(path, noise((16, 17, 18), seed))
    return path


def digests(folder: Path) -> dict[str, str]:
    """Every file below a folder, links by what they lead to."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else files.sha256(p)
        for p in folder.rglob("*")
        if not p.is_dir()
    }


# --- inputs ---------------------------------------------------------------------------------------


def links(tmp_path: Path) -> tuple[Path, Path, Path]:
    volume(tmp_path / "store" / "a.tif")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.tif").symlink_to(tmp_path / "store" / "a.tif")
    return tmp_path / "links", tmp_path / "links", tmp_path / "store"


def folder_of_the_file(tmp_path: Path) -> tuple[Path, Path, Path]:
    inputs, _, store = links(tmp_path)
    return inputs, store, store


def link_on_the_way(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A link to a link that lies in the output folder."""
    inputs, _, store = links(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.tif").symlink_to(inputs / "a.tif")
    return tmp_path / "more", inputs, store


def linked_folder(tmp_path: Path) -> tuple[Path, Path, Path]:
    volume(tmp_path / "store" / "a.tif")
    (tmp_path / "other name").symlink_to(tmp_path / "store")
    return tmp_path / "store", tmp_path / "other name", tmp_path / "store"


def below(name: str, where: str = "") -> object:
    def make(tmp_path: Path) -> tuple[Path, Path, Path]:
        volume(tmp_path / "out" / name / where / "a.tif")
        return tmp_path / "out" / name / where, tmp_path / "out", tmp_path / "out" / name

    return make


def soft_is_a_link(tmp_path: Path) -> tuple[Path, Path, Path]:
    volume(tmp_path / "store" / "a.tif")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "soft").symlink_to(tmp_path / "store")
    return tmp_path / "store", tmp_path / "out", tmp_path / "store"


def inside_a_zarr(tmp_path: Path) -> tuple[Path, Path, Path]:
    volume(tmp_path / "a.zarr")
    return tmp_path / "a.zarr", tmp_path / "a.zarr" / "answers", tmp_path / "a.zarr"


SITUATIONS = [
    links,
    folder_of_the_file,
    link_on_the_way,
    linked_folder,
    below("soft"),
    below("masks"),
    below("blocks", "x.0123456789ab"),
    soft_is_a_link,
    inside_a_zarr,
]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.__qualname__)
@pytest.mark.parametrize("more", [[], ["--save-soft"], ["--shard", "0/1"]])
def test_predict_replaces_no_input(
    situation: object,
    more: list[str],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs, out, kept = situation(tmp_path)  # type: ignore[operator]
    before = digests(tmp_path)
    assert run_predict(model, inputs, out, *more) == 2
    told = capsys.readouterr().err
    assert "--output" in told
    assert "a." in told
    assert "Choose another folder" in told
    assert digests(tmp_path) == before
    assert kept.is_dir()


@pytest.mark.parametrize(
    "situation", [*SITUATIONS, below("members", "run/soft")], ids=lambda s: s.__qualname__
)
@pytest.mark.parametrize("command", ["ensemble", "submit"])
def test_ensembles_of_runs_replace_no_input(
    situation: object, command: str, model: Path, tmp_path: Path
) -> None:
    inputs, out, _ = situation(tmp_path)  # type: ignore[operator]
    if command == "submit" and inputs.suffix == ".zarr":
        pytest.skip("submit takes a folder of test images")
    (tmp_path / "e.yaml").write_text(f"members: [{{run: {model.parent}}}]\n")
    before = digests(tmp_path)
    if command == "ensemble":
        code = ensemble.main(
            [
                "--spec",
                str(tmp_path / "e.yaml"),
                "--input",
                str(inputs),
                "--output",
                str(out),
                "--save-soft",
            ]
        )
    else:
        words = ["--test-dir", str(inputs), "--work", str(out), "--out", str(tmp_path / "s.zip")]
        code = submit.main(["--spec", str(tmp_path / "e.yaml"), *words])
    assert code == 2
    assert digests(tmp_path) == before


def test_an_ensemble_replaces_neither_its_members_nor_their_images(
    model: Path, tmp_path: Path
) -> None:
    volume(tmp_path / "img" / "a.tif")
    assert run_predict(model, tmp_path / "img", tmp_path / "p", "--save-soft") == 0
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "soft").symlink_to(tmp_path / "p" / "soft")
    before = digests(tmp_path)
    for out in (tmp_path / "p", tmp_path / "linked", tmp_path / "img"):
        assert (
            ensemble.main(["--fold-dirs", str(tmp_path / "p"), "--output", str(out), "--save-soft"])
            == 2
        )
        assert digests(tmp_path) == before
    assert (
        ensemble.main(["--fold-dirs", str(tmp_path / "p"), "--output", str(tmp_path / "p" / "e")])
        == 0
    )


def test_answers_beside_a_folder_of_inputs_are_fine(model: Path, tmp_path: Path) -> None:
    assert run_predict(model, volume(tmp_path / "images" / "a.tif").parent, tmp_path) == 0
    assert (tmp_path / "a.tif").is_file()


# --- files of others ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tif", "a_visualization.tif", "soft/a.npy", "summary.json"])
def test_files_that_no_prediction_wrote_are_not_replaced(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = volume(tmp_path / "in" / "a.tif").parent, tmp_path / "out"
    assert run_predict(model, data, tmp_path / "member", "--save-soft") == 0
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text('{"folds": []}')
    before = digests(out)
    assert run_predict(model, data, out, "--save-soft") == 2
    assert run_predict(model, data, out, "--save-soft", "--shard", "0/1") == 2
    assert (
        ensemble.main(
            ["--fold-dirs", str(tmp_path / "member"), "--output", str(out), "--save-soft"]
        )
        == 2
    )
    told = capsys.readouterr().err
    assert told.count(f"holds {name}") == 3
    assert told.count("Choose another folder") == 3
    assert digests(out) == before
    (out / name).rename(out / "mine.txt")
    assert run_predict(model, data, out, "--save-soft") == 0
    assert run_predict(model, data, out, "--save-soft") == 0  # its own answers it may replace
    assert (out / "mine.txt").is_file()


def test_a_run_folder_is_no_folder_for_answers(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model.parent, tmp_path / "run")
    files.write_json(tmp_path / "run" / "summary.json", {"name": "x", "folds": [], "cases": {}})
    before = digests(tmp_path / "run")
    assert run_predict(model, volume(tmp_path / "in" / "a.tif"), tmp_path / "run") == 2
    assert digests(tmp_path / "run") == before


def test_a_killed_prediction_can_be_run_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first answer, before the summary that lists it."""
    data, out = volume(tmp_path / "in" / "a.tif").parent, tmp_path / "out"
    with monkeypatch.context() as patch:

        def killed(*_: object) -> dict[str, object]:
            assert files.read_json(out / "summary.json")["files"] == []
            files.write(out / "a.tif", np.zeros((16, 17, 18), np.uint8))
            raise KeyboardInterrupt

        patch.setattr("pipeline.workflows.predict.predict_case", killed)
        with pytest.raises(KeyboardInterrupt):
            run_predict(model, data, out)
    assert (out / "a.tif").is_file()
    assert run_predict(model, data, out) == 0
    assert rows(out)[0]["status"] == "done"


# --- two at a time --------------------------------------------------------------------------------


def test_a_second_command_is_told_who_has_the_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = volume(tmp_path / "in" / "a.tif").parent, tmp_path / "out"
    assert run_predict(model, data, tmp_path / "member", "--save-soft") == 0
    with holder(out / ".lock") as other:
        for command in (
            lambda: run_predict(model, data, out),
            lambda: ensemble.main(["--fold-dirs", str(tmp_path / "member"), "--output", str(out)]),
        ):
            assert command() == 2
            told = capsys.readouterr().err
            assert f"{out} belongs to process {other.pid}" in told
        assert {p.name for p in out.iterdir()} == {".lock"}
        assert (
            run_predict(model, data, out, "--shard", "0/2") == 0
        )  # shards write blocks only, each its own
    capsys.readouterr()
    assert run_predict(model, data, out) == 0
    assert "taken over from process" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"a.tif", "a_visualization.tif", "summary.json"}


def test_members_are_predicted_by_one_command_at_a_time(model: Path, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(f"members: [{{run: {model.parent}}}]\n")
    data, out = volume(tmp_path / "in" / "a.tif").parent, tmp_path / "out"
    words = ["--spec", str(tmp_path / "e.yaml"), "--input", str(data), "--output", str(out)]
    with holder(out / "members" / "run" / ".lock"):
        assert ensemble.main(words) == 2
    assert ensemble.main(words) == 0
    assert not list(out.rglob(".lock"))
    (out / "members" / "run" / "summary.json").unlink()  # as killed before its first summary
    assert ensemble.main(words) == 0


def test_what_is_refused_leaves_no_folder(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (
        ensemble.main(["--fold-dirs", str(tmp_path / "empty"), "--output", str(tmp_path / "out")])
        == 2
    )
    assert not (tmp_path / "out").exists()


# --- the submission -------------------------------------------------------------------------------


def submit_to(tmp_path: Path, out: Path, *more: str) -> int:
    tests, answers = volume(tmp_path / "tests" / "a.tif").parent, tmp_path / "answers"
    files.write(answers / "a.tif", (noise((16, 17, 18)) > 100).astype(np.uint8))
    return submit.main(
        ["--predictions", str(answers), "--test-dir", str(tests), "--out", str(out), *more]
    )


@pytest.mark.parametrize("kind", ["text", "photos", "folders", "images"])
def test_only_a_submission_is_replaced_by_one(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.zip"
    if kind == "text":
        out.write_text("my notes")
    else:
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr(
                {"photos": "holiday.jpg", "folders": "deep/a.tif", "images": "a.tif"}[kind], b"x"
            )
    before = out.read_bytes()
    assert submit_to(tmp_path, out) == 2
    assert f"--out {out} is there and no submission" in capsys.readouterr().err
    assert out.read_bytes() == before
    out.unlink()
    assert submit_to(tmp_path, out) == 0
    assert submit_to(tmp_path, out) == 0


def test_a_table_that_is_no_submission_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "tests" / "test.csv"
    out.parent.mkdir()
    out.write_text("id,scroll_id\na,1\n")
    assert submit_to(tmp_path, out, "--format", "rle-csv") == 2
    assert out.read_text() == "id,scroll_id\na,1\n"
    assert submit_to(tmp_path, tmp_path / "s.csv", "--format", "rle-csv") == 0
    assert submit_to(tmp_path, tmp_path / "s.csv", "--format", "rle-csv") == 0


def test_the_refusal_comes_before_the_prediction(model: Path, tmp_path: Path) -> None:
    (tmp_path / "s.zip").write_text("my notes")
    (tmp_path / "e.yaml").write_text(f"members: [{{run: {model.parent}}}]\n")
    words = [
        "--test-dir",
        str(volume(tmp_path / "in" / "a.tif").parent),
        "--out",
        str(tmp_path / "s.zip"),
    ]
    assert submit.main(["--spec", str(tmp_path / "e.yaml"), *words]) == 2
    assert not (tmp_path / "s_predictions").exists()
