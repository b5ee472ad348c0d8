"""File names of any bytes: what is printed forges nothing and never raises, JSON reads back to the
same paths.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import model_file, noise, picture, rows, run_predict

from pipeline import cli, config, ensemble, evaluate, files, predict, report, submit, train, tune
from pipeline.data import cases
from pipeline.progress import log_to_file
from pipeline.records import printable, remember
from pipeline.workflows import predict as workflow

Output = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
ODD = [
    "b\udcffad",
    "esc\x1b[2J",
    "line\nerror: forged",
    "return\rover",
    "tab\ta",
    "quo'te\"",
    "-dash",
    " spaces ",
    "100%d%s{0}$(id)",
    "Case",
    "case",
    "\u05d0\u202eb",
    "\U0001f600",
    "Zu\u0308rich",
    "back\\slash",
    "<b>&amp;",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a folder whose name is no text."""
    return model_file(tmp_path_factory.mktemp("model") / "r\udcfeun\n", dims=2)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    for name in ODD:
        picture(tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


def is_clean(text: str) -> bool:
    return not FORBIDDEN.search(text) and not re.search("^error: forged", text, re.MULTILINE)


# --- through the commands -------------------------------------------------------------------------


def test_every_command_takes_odd_names(
    odd: Path, model: Path, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "o\udcfdut\nerror: forged"
    assert run_predict(model, odd, out, "--save-soft") == 0
    found = json.loads((out / "summary.json").read_bytes().decode())["files"]
    assert {row["file"] for row in found} == {str(odd / f"{name}.png") for name in ODD}
    assert {row["output"] for row in found} <= set(os.listdir(out))
    scores = tmp_path / "sc\udcffores.json"
    words = [
        "--predictions",
        str(out),
        "--labels",
        str(out),
        "--metrics",
        "dice",
        "--workers",
        "1",
        "--out",
        str(scores),
    ]
    assert evaluate.main(words) == 0
    assert set(files.read_json(scores)["cases"]) == {row["id"] for row in found}
    assert (
        ensemble.main(
            ["--fold-dirs", str(out), str(out), "--output", str(tmp_path / "e\x1b"), "--save-soft"]
        )
        == 0
    )
    assert {row["id"] for row in rows(tmp_path / "e\x1b")} == {row["id"] for row in found}
    told = capsys.readouterr()
    assert is_clean(told.out)
    assert not told.err
    assert "line\\nerror: forged" in told.out
    assert "b\\udcffad" in told.out


def test_training_keeps_odd_ids(surfaces: Path, tiny: Path, tmp_path: Path, capsys: Output) -> None:
    data = tmp_path / "data"
    names = ["a\udcff", "b\nerror: forged", "c\x1b[1m", "<d>"]
    for name, source in zip(names, ("100", "101", "102", "103"), strict=True):
        for folder in ("train_images", "train_labels"):
            (data / folder).mkdir(parents=True, exist_ok=True)
            (data / folder / f"{name}.tif").symlink_to(surfaces / folder / f"{source}.tif")
    run = tmp_path / "r\udcffun"
    words = ["--config", str(tiny), "--data-dir", str(data), "--out", str(run)]
    assert (
        train.main([*words, "--set", "train.epochs=1", "train.average=null", "data.folds.by=case"])
        == 0
    )
    assert (
        train.main([*words, "--set", "train.epochs=1", "train.average=null", "data.folds.by=case"])
        == 0
    )
    assert report.main([str(run)]) == 0
    told = capsys.readouterr()
    assert is_clean(told.out + told.err)
    assert config.load(run / "config.yaml").data.root == str(data)
    assert set(files.read_json(run / "cases.json")) == set(names)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "&lt;d&gt;" in page
    assert "<d>" not in page
    (tmp_path / "d\udcffata").symlink_to(data)
    assert (
        train.main(
            [*words, "--data-dir", str(tmp_path / "d\udcffata"), "--out", str(tmp_path / "new")]
        )
        == 2
    )
    assert "d\\udcffata: this name is no UTF-8 text" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert tune.main([str(run)]) == 2
    assert "Rename that folder, or name a link to it" in capsys.readouterr().err
    (tmp_path / "run").symlink_to(run)
    (tmp_path / "space.yaml").write_text(
        "stages: [[[{name: threshold, options: {at: 0.4}}], [{name: threshold}]]]\n"
    )
    words = [
        str(tmp_path / "run"),
        "--metric",
        "dice",
        "--workers",
        "1",
        "--out",
        str(tmp_path / "t.yaml"),
    ]
    assert tune.main([*words, "--space", str(tmp_path / "space.yaml"), "--by", "fold"]) == 0
    assert is_clean(capsys.readouterr().out)
    log, *_ = run.glob("train_*.log")
    assert is_clean(log.read_text(encoding="utf-8"))


def test_channels_are_found_under_names_of_two_lines(tmp_path: Path) -> None:
    for number in (0, 1):
        picture(tmp_path / "in" / f"a\nb_{number:04}.png")
    (case,) = cases.inputs(
        tmp_path / "in",
        config.Data(dims=2, patch=config.Patch(size=(16, 16))),
        channels=2,
        layout="nnunet",
    )
    assert case.id == "a\nb"


def test_a_submission_refuses_names_that_it_cannot_hold(tmp_path: Path, capsys: Output) -> None:
    for name in ("b\udcffad", "esc\x1b", "back\\slash", "line\nfeed", "good"):
        for folder in ("tests", "answers"):
            picture(tmp_path / folder / f"{name}.png", np.eye(16, dtype=np.uint8))
    words = ["--predictions", str(tmp_path / "answers"), "--test-dir", str(tmp_path / "tests")]
    for out in ("s.zip", "s.csv"):
        kind = ["--format", "rle-csv"] if out == "s.csv" else []
        assert submit.main([*words, "--out", str(tmp_path / out), *kind]) == 2
        told = capsys.readouterr().err
        assert "unfit names: 4: back\\slash, b\\udcffad, esc\\x1b, line\\nfeed. Rename" in told
        assert not (tmp_path / out).exists()


def test_a_submission_warns_of_ids_that_differ_in_case(tmp_path: Path, capsys: Output) -> None:
    for name in ("Case", "case", "\u05d0"):
        for folder in ("tests", "answers"):
            picture(tmp_path / folder / f"{name}.png", np.eye(16, dtype=np.uint8))
    words = [
        "--predictions",
        str(tmp_path / "answers"),
        "--test-dir",
        str(tmp_path / "tests"),
        "--out",
        str(tmp_path / "s.zip"),
    ]
    assert submit.main(words) == 0
    assert "differ in case only" in capsys.readouterr().out
    assert set(zipfile.ZipFile(tmp_path / "s.zip").namelist()) == {
        "Case.tif",
        "case.tif",
        "\u05d0.tif",
    }


# --- long names -----------------------------------------------------------------------------------


def test_a_name_without_room_for_its_answer_fails_before_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    picture(tmp_path / "in" / "good.png")
    for name in ("x" * 251, "ü" * 119 + "y"):  # 255 and 243 bytes
        picture(tmp_path / "in" / f"{name}.png")
    worked = []
    original = workflow.predict_case
    monkeypatch.setattr(
        "pipeline.workflows.predict.predict_case",
        lambda p, case: worked.append(case.id) or original(p, case),
    )
    assert run_predict(model, tmp_path / "in", tmp_path / "out") == 3
    assert worked == ["good"]
    assert capsys.readouterr().out.count("and 255 are the most here. Rename the input") >= 2
    assert {row["id"]: row["status"] for row in rows(tmp_path / "out")} == {
        "good": "done",
        "x" * 251: "failed",
        "ü" * 119 + "y": "failed",
    }


def test_an_ensemble_names_a_long_name_before_it_fuses(
    model: Path, tmp_path: Path, capsys: Output
) -> None:
    picture(tmp_path / "in" / "a.png")
    assert run_predict(model, tmp_path / "in", tmp_path / "p", "--save-soft") == 0
    for ending in (".npy", ".json"):
        (tmp_path / "p" / "soft" / f"a{ending}").rename(
            tmp_path / "p" / "soft" / f"{'x' * 250}{ending}"
        )
    (tmp_path / "p" / "summary.json").unlink()
    (tmp_path / "e.yaml").write_text(
        f"members: [{{run: {tmp_path / 'p'}}}]\npostprocess: [threshold]\n"
    )
    assert (
        ensemble.main(["--spec", str(tmp_path / "e.yaml"), "--output", str(tmp_path / "out")]) == 2
    )
    assert (
        "_visualization.png, which has 268 bytes, and 255 are the most" in capsys.readouterr().err
    )


def test_training_refuses_ids_that_leave_no_room(
    surfaces: Path, tiny: Path, tmp_path: Path, capsys: Output
) -> None:
    data = tmp_path / "data"
    for folder in ("train_images", "train_labels"):
        (data / folder).mkdir(parents=True)
        for n, name in enumerate(("a", "b", "x" * 250)):
            (data / folder / f"{name}.tif").symlink_to(surfaces / folder / f"{100 + n}.tif")
    assert (
        train.main(["--config", str(tiny), "--data-dir", str(data), "--out", str(tmp_path / "run")])
        == 2
    )
    assert "has an id of 250 bytes. Rename image and targets: 243 bytes" in capsys.readouterr().out


def test_places_with_names_that_no_disk_holds_are_refused(
    model: Path, tmp_path: Path, capsys: Output
) -> None:
    picture(tmp_path / "in" / "a.png")
    for out in (tmp_path / ("x" * 256), tmp_path / ("y/" * 2040)):
        assert run_predict(model, tmp_path / "in", out) == 2
        assert "may not be written (a" in capsys.readouterr().err
    words = ["--predictions", str(tmp_path / "in"), "--labels", str(tmp_path / "in")]
    assert evaluate.main([*words, "--out", str(tmp_path / ("z" * 251 + ".json"))]) == 2
    assert "255 are the most" in capsys.readouterr().err


# --- what is printed ------------------------------------------------------------------------------


def shell(line: str, tmp_path: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A line of a shell in which $P stands for the commands of this package."""
    known = {
        k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIOENCODING"))
    }
    known |= {"P": f"{sys.executable} -m pipeline", "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=known, capture_output=True, check=False
    )


LOCALES = [
    {},
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {
        "PYTHONIOENCODING": "ascii:strict",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    },
]


@pytest.mark.parametrize("env", LOCALES, ids=lambda e: "-".join(e.values()) or "none")
def test_any_locale_prints_any_name(env: dict[str, str], tmp_path: Path) -> None:
    for name in ("b\udcffad", "ü", "esc\x1b"):
        picture(tmp_path / "in" / f"{name}.png", np.eye(16, dtype=np.uint8))
    line = "$P evaluate --predictions in --labels in --metrics dice --workers 1 --out s.json"
    done = shell(line, tmp_path, **env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"b\\udcffad" in done.stdout
    assert b"\x1b" not in done.stdout
    assert len(json.loads((tmp_path / "s.json").read_bytes().decode())["cases"]) == 3


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (">&-", b""),
        ("2>&- >&- <&-", b""),
        ("| head -1", b""),
        (">/dev/full", b"warning: standard output cannot be written"),
    ],
)
def test_work_goes_on_when_nobody_reads(where: str, told: bytes, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png", np.eye(16, dtype=np.uint8))
    line = (
        "set -o pipefail; $P evaluate --predictions in --labels in --metrics dice --workers 1"
        f" --out s.json {where}"
    )
    done = shell(line, tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith(told)
    assert done.stderr.count(b"\n") == bool(told)
    assert files.read_json(tmp_path / "s.json")["mean"]["dice"] == 1
    assert shell(f"set -o pipefail; $P --help {where}", tmp_path).stderr.startswith(told)


def test_a_dashed_name_has_a_way_in(tmp_path: Path) -> None:
    done = shell("$P predict --input -x.tif --output o --checkpoint c", tmp_path)
    assert done.returncode == 2
    assert b"given as ./-NAME" in done.stderr


def test_errors_and_logs_show_names_on_one_line(tmp_path: Path, capsys: Output) -> None:
    bad = tmp_path / "x\nerror: forged\x1b]0;title\x07"
    assert (
        submit.main(
            ["--predictions", str(bad), "--test-dir", str(bad), "--out", str(tmp_path / "s.zip")]
        )
        == 2
    )
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "x\\nerror: forged\\x1b]0;title\\x07" in told

    def work(**_: object) -> int:
        remember("a\nb")
        with log_to_file(tmp_path, "probe") as log:
            logging.getLogger("pipeline.probe").info("a\nb\x1b\udcff")
        assert log.read_text(encoding="utf-8") == "a\\nb\\x1b\\udcff\n"
        return 0

    assert cli.run(cli.parser("probe", ""), work, []) == 0


def test_text_of_two_lines_stays(capsys: Output) -> None:
    assert printable("one\ntwo\tthree ü \U0001f600") == "one\ntwo\tthree ü \U0001f600"


# --- any bytes ------------------------------------------------------------------------------------

NAMES = st.binary(min_size=1, max_size=60).map(
    lambda b: b.replace(b"/", b"_").replace(b"\0", b"\n")
)


@settings(max_examples=examples(15))
@given(names=st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_names_of_any_bytes(names: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    check_names(names, tmp_path_factory.mktemp("names"))


def check_names(names: list[bytes], folder: Path) -> None:
    """Predict, list, summarise and score files of these names: all are done, and everything that is
    kept is the same name.
    """
    paths = [os.fsencode(folder / "in") + b"/a" + name + b".npy" for name in names]
    (folder / "in").mkdir()
    for path in paths:
        Path(os.fsdecode(path)).write_bytes(_npy())
    ids = [files.case_id(os.fsdecode(p)) for p in paths]
    code, told = quietly(
        predict.main,
        [
            "--checkpoint",
            str(_model()),
            "--input",
            str(folder / "in"),
            "--output",
            str(folder / "out"),
        ],
    )
    assert not FORBIDDEN.search(told)
    if (
        code
    ):  # two spellings of one name, a name of a picture beside an answer, channels that do not fit
        assert code == 2, told
        numbered = all(re.search(r"_\d{4}$", i) for i in ids)
        assert (
            numbered
            or len(set(ids)) < len(ids)
            or any(i.endswith(("_visualization", "_overlay")) for i in ids)
        ), told
        return
    listed = json.loads((folder / "out" / "summary.json").read_bytes().decode())["files"]
    assert {os.fsencode(row["file"]) for row in listed} == set(paths)
    found = {row["id"] for row in listed}
    words = [
        "--predictions",
        str(folder / "out"),
        "--labels",
        str(folder / "out"),
        "--metrics",
        "dice",
        "--workers",
        "1",
    ]
    code, told = quietly(evaluate.main, [*words, "--out", str(folder / "s.json")])
    assert not FORBIDDEN.search(told)
    if not any(i.endswith(("_visualization", "_overlay")) for i in found):
        assert code == 0, told
        assert set(files.read_json(folder / "s.json")["cases"]) == found


def _npy() -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, noise((8, 8)))
    return stream.getvalue()


_models: list[Path] = []


def _model() -> Path:
    import tempfile

    if not _models:
        _models.append(model_file(Path(tempfile.mkdtemp()), dims=2))
    return _models[0]


def quietly(command: object, words: list[str]) -> tuple[int, str]:
    """Exit code of a command and what it printed."""
    import contextlib
    import io

    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = command(words)  # type: ignore[operator]
    return code, out.getvalue() + err.getvalue()


def test_every_format_is_written_under_a_name_that_is_no_text(tmp_path: Path) -> None:
    for suffix in (".tif", ".nii", ".nii.gz", ".npy", ".png", ".zarr", ".jpg"):
        path = tmp_path / f"a\udcff\n{suffix}"
        flat = suffix in (".png", ".jpg")
        array = noise((8, 8)) if flat else noise((4, 8, 8))
        files.write(path, array, dims=2 if flat else 3)
        back, _ = files.read(path, 2 if flat else 3)
        assert back.shape[1:] == array.shape
    assert nibabel.load(tmp_path / "a\udcff\n.nii").shape == (4, 8, 8)
