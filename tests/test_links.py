"""Links, loops, pipes, sockets, devices and folders in the place of files: each is answered, none
is waited for, the others are done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from small_models import model_file, picture, rows, run_predict

from pipeline import ensemble, evaluate, files, predict, report, submit, train, tune
from pipeline.files import lock
from pipeline.inference import outputs

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """A pipe that is opened waits for ever: then the test ends with an error."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("took more than five minutes"))
    signal.alarm(300)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "run", dims=2)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.mkdir()


def linked_folder(path: Path) -> None:
    path.symlink_to(path.parent, target_is_directory=True)


def through_a_file(path: Path) -> None:
    (path.parent / "plain.txt").write_text("x")
    path.symlink_to("plain.txt/x")


KINDS = [fifo, unix_socket, device, dangling, loop, folder, linked_folder, through_a_file]
NO_FOLDERS = [k for k in KINDS if k not in (folder, linked_folder)]


def fill(place: Path) -> Path:
    """A folder with one good image and one entry of each kind."""
    picture(place / "good.png", np.eye(16, dtype=np.uint8))
    for kind in KINDS:
        kind(place / f"{kind.__name__}.png")
    (place / "z.zarr").write_text("a file called like a folder")
    return place


def test_one_bad_entry_fails_alone(model: Path, tmp_path: Path, capsys: Output) -> None:
    data = fill(tmp_path / "in")
    for more in ([], ["--save-soft", "--blocks", "always"]):
        assert run_predict(model, data, tmp_path / "out", *more) == 3
        found = {row["id"]: row for row in rows(tmp_path / "out")}
        assert set(found) == {"good", "z", *(kind.__name__ for kind in KINDS)}
        assert [i for i, row in found.items() if row["status"] == "done"] == ["good"]
        assert all(
            row["file"] in row["error"] and row["error"].count(": ") >= 2
            for i, row in found.items()
            if i != "good"
        )
    assert run_predict(model, data, tmp_path / "shards", "--shard", "0/1") == 3
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", NO_FOLDERS)
def test_a_bad_entry_as_the_only_input(
    kind: object, model: Path, tmp_path: Path, capsys: Output
) -> None:
    kind(tmp_path / "a.png")  # type: ignore[operator]
    assert run_predict(model, tmp_path / "a.png", tmp_path / "out") == 1
    assert f"failed: {tmp_path / 'a.png'}: FileError" in capsys.readouterr().out


def test_loops_of_folders_are_walked_once(model: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "b").symlink_to(tmp_path / "a")
    assert run_predict(model, tmp_path / "a", tmp_path / "out") == 0
    assert run_predict(model, tmp_path / "a" / "b" / "b" / "b", tmp_path / "out") == 0
    (tmp_path / "out" / "again").symlink_to(tmp_path / "out")
    assert run_predict(model, tmp_path / "a", tmp_path / "out") == 0
    assert [row["id"] for row in rows(tmp_path / "out")] == ["x"]


def test_folders_are_scored_and_packed_beside_bad_entries(tmp_path: Path, capsys: Output) -> None:
    answers, labels = fill(tmp_path / "answers"), fill(tmp_path / "labels")
    words = [
        "--predictions",
        str(answers),
        "--labels",
        str(labels),
        "--metrics",
        "dice",
        "--workers",
        "1",
    ]
    assert evaluate.main([*words, "--out", str(tmp_path / "s.json")]) == 3
    scores = files.read_json(tmp_path / "s.json")
    assert scores["cases"] == {"good": {"dice": 1.0}}
    assert set(scores["failed"]) == {"z", *(kind.__name__ for kind in NO_FOLDERS)}
    assert (
        submit.main(
            [
                "--predictions",
                str(answers),
                "--test-dir",
                str(labels),
                "--out",
                str(tmp_path / "s.zip"),
            ]
        )
        == 2
    )
    assert "test images unreadable" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_places_of_every_command(kind: object, model: Path, tmp_path: Path, capsys: Output) -> None:
    """As output, config, model, ensemble, run and document: exit code 2 and the path."""
    data = picture(tmp_path / "in" / "a.png", np.eye(16, dtype=np.uint8)).parent
    assert run_predict(model, data, tmp_path / "p", "--save-soft") == 0
    odd = tmp_path / "odd"
    kind(odd)  # type: ignore[operator]
    assert run_predict(odd, data, tmp_path / "out") == 2
    words = [
        "--predictions",
        str(data),
        "--labels",
        str(data),
        "--metrics",
        "dice",
        "--workers",
        "1",
    ]
    commands = [
        lambda: run_predict(odd, data, tmp_path / "out"),
        lambda: train.main(
            ["--config", str(odd), "--data-dir", str(data), "--out", str(tmp_path / "run")]
        ),
        lambda: train.main(
            [
                "--config",
                str(odd),
                "--data-dir",
                str(data),
                "--out",
                str(tmp_path / "run"),
                "--dry-run",
            ]
        ),
        lambda: ensemble.main(["--spec", str(odd), "--output", str(tmp_path / "out")]),
        lambda: ensemble.main(["--fold-dirs", str(odd), "--output", str(tmp_path / "out")]),
        lambda: tune.main([str(odd)]),
        lambda: report.main([str(odd)]),
        lambda: evaluate.main([*words[:3], str(odd), *words[4:]]),
        lambda: evaluate.main([*words, "--split", str(odd)]),
        lambda: submit.main(
            ["--predictions", str(odd), "--test-dir", str(data), "--out", str(tmp_path / "s.zip")]
        ),
    ]
    if kind not in (folder, linked_folder):
        commands += [
            lambda: run_predict(model, data, odd),
            lambda: run_predict(model, data, odd / "deeper"),
            lambda: ensemble.main(["--fold-dirs", str(tmp_path / "p"), "--output", str(odd)]),
            lambda: evaluate.main([*words, "--out", str(odd / "s.json")]),
            lambda: submit.main(
                ["--predictions", str(data), "--test-dir", str(data), "--out", str(odd / "s.zip")]
            ),
        ]
    for command in commands:
        capsys.readouterr()
        assert command() == 2
        told = capsys.readouterr()
        assert "odd" in told.err + told.out
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [fifo, unix_socket, folder])
def test_what_is_no_file_is_not_replaced(
    kind: object, model: Path, tmp_path: Path, capsys: Output
) -> None:
    """Where an answer, a table or a submission is to be written, also in a folder that is a
    prediction's.
    """
    data = picture(tmp_path / "in" / "a.png", np.eye(16, dtype=np.uint8)).parent
    assert run_predict(model, data, tmp_path / "out") == 0
    (tmp_path / "out" / "a.png").unlink()
    for path in (
        tmp_path / "out" / "a.png",
        tmp_path / "s.json",
        tmp_path / "s.zip",
        tmp_path / "s.csv",
    ):
        kind(path)  # type: ignore[operator]
    before = {
        p: os.lstat(p).st_ino
        for p in tmp_path.rglob("*")
        if p.suffix in (".png", ".json", ".zip", ".csv")
    }
    assert run_predict(model, data, tmp_path / "out") == 1
    words = [
        "--predictions",
        str(data),
        "--labels",
        str(data),
        "--metrics",
        "dice",
        "--workers",
        "1",
    ]
    assert evaluate.main([*words, "--out", str(tmp_path / "s.json")]) == 2
    for name, more in (("s.zip", []), ("s.csv", ["--format", "rle-csv"])):
        assert (
            submit.main(
                [
                    "--predictions",
                    str(data),
                    "--test-dir",
                    str(data),
                    "--out",
                    str(tmp_path / name),
                    *more,
                ]
            )
            == 2
        )
    same = {p: os.lstat(p).st_ino for p in before if p.name != "summary.json"}
    assert same == {p: i for p, i in before.items() if p in same}
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", [fifo, unix_socket, device, folder, dangling, loop])
def test_a_lock_that_is_no_file(kind: object, model: Path, tmp_path: Path, capsys: Output) -> None:
    data = picture(tmp_path / "in" / "a.png").parent
    (tmp_path / "out").mkdir()
    kind(tmp_path / "out" / lock.NAME)  # type: ignore[operator]
    assert lock.owner(tmp_path / "out" / lock.NAME) is None
    assert run_predict(model, data, tmp_path / "out") == 2
    assert lock.NAME in capsys.readouterr().err
    with (
        pytest.raises(files.FileError.__base__, match="is no file"),
        lock.held(tmp_path / "out" / lock.NAME, print),
    ):
        pass


@pytest.mark.parametrize(
    "name",
    ["train.csv", "split.json", "dataset.json", "train_images", "train_labels", "test_images"],
)
@pytest.mark.parametrize("kind", [fifo, device, loop, dangling, unix_socket])
def test_odd_entries_in_a_data_set(
    name: str, kind: object, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in surfaces.iterdir():
        if path.name != name:
            (data / path.name).symlink_to(path)
    kind(data / name)  # type: ignore[operator]
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = [
        "--config",
        str(tmp_path / "tiny.yaml"),
        "--data-dir",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--dry-run",
    ]
    code = train.main(words)
    told = capsys.readouterr()
    harmless = name in (
        "split.json",
        "dataset.json",
        "test_images",
    )  # not of this layout, or not needed
    assert code == (0 if harmless else 2), told.out
    assert harmless or name in told.out + told.err


@pytest.mark.slow
def test_odd_entries_in_a_run(tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output) -> None:
    """A run whose documents became pipes and folders is refused or made whole, and never waited
    for.
    """
    run = tmp_path / "run"
    words = ["--config", str(tiny), "--data-dir", str(surfaces), "--out", str(run)]
    words += ["--set", "train.epochs=1", "train.average=null"]
    assert train.main([*words, "--fold", "0"]) == 0
    for path in (
        run / "splits.json",
        run / "cases.json",
        run / "fold_0" / "result.json",
        run / "fold_0" / "log.jsonl",
        run / "summary.json",
    ):
        kept = path.read_bytes()
        for kind in (fifo, folder) if path.name == "cases.json" else (fifo,):
            path.unlink()
            kind(path)
            assert train.main([*words, "--fold", "0", "--dry-run"]) in (0, 2)
            assert report.main([str(run)]) in (0, 2)
            assert (
                predict.main(
                    [
                        "--checkpoint",
                        str(run / "fold_0"),
                        "--input",
                        str(tmp_path / "none"),
                        "--output",
                        str(tmp_path / "o"),
                    ]
                )
                == 2
            )
            path.rmdir() if kind is folder else path.unlink()
            path.write_bytes(kept)
    assert "Traceback" not in capsys.readouterr().err


def test_a_zero_byte_in_a_path_of_a_document(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    texts = {
        "data.yaml": TINY.replace(
            "  layout: competition", '  layout: competition\n  root: "a\\0b"'
        ),
        "store.yaml": TINY.replace(
            "  layout: competition", '  layout: competition\n  store: "a\\0b"'
        ),
        "name.yaml": TINY.replace("name: tiny", 'name: "a\\0b"'),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        more = [] if name == "data.yaml" else ["--data-dir", str(surfaces)]
        for dry in ([], ["--dry-run"]):
            assert train.main(["--config", str(tmp_path / name), *more, *dry]) == 2
    (tmp_path / "e.yaml").write_text('members: [{run: "a\\0b"}]\n')
    assert (
        ensemble.main(["--spec", str(tmp_path / "e.yaml"), "--output", str(tmp_path / "out")]) == 2
    )
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err


# --- rights ---------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders(model: Path, tmp_path: Path, capsys: Output) -> None:
    data = tmp_path / "in"
    for name in ("good", "bad"):
        picture(data / f"{name}.png")
    (data / "bad.png").chmod(0)
    assert run_predict(model, data, tmp_path / "out") == 3
    assert "may not be read" in capsys.readouterr().out
    data.chmod(0o300)
    assert run_predict(model, data, tmp_path / "out") == 2
    assert "cannot be listed" in capsys.readouterr().err
    data.chmod(0o700)


def test_an_entry_that_may_not_be_looked_at(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user who is not root: the error comes from the system call. (No name of hexadecimal
    digits: temporary files have such.)
    """
    data = tmp_path / "in"
    for name in ("good", "hidden"):
        picture(data / f"{name}.png")
    original = os.stat

    def stat(path: object, *more: object, **options: object) -> os.stat_result:
        if "hidden" in os.fspath(path):  # type: ignore[arg-type]
            raise PermissionError(13, "Permission denied", path)
        return original(path, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat)
    assert run_predict(model, data, tmp_path / "out") == 3
    assert {row["id"]: row["status"] for row in rows(tmp_path / "out")} == {
        "good": "done",
        "hidden": "failed",
    }


def test_a_folder_that_may_not_be_listed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    data = picture(tmp_path / "in" / "a.png").parent
    original = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path == data:
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert run_predict(model, data, tmp_path / "out") == 2
    assert evaluate.main(["--predictions", str(data), "--labels", str(data)]) == 2
    assert (
        ensemble.main(
            ["--fold-dirs", str(data), "--output", str(tmp_path / "out"), "--fusion", "vote"]
        )
        == 2
    )
    assert (
        submit.main(
            ["--predictions", str(data), "--test-dir", str(data), "--out", str(tmp_path / "s.zip")]
        )
        == 2
    )
    assert capsys.readouterr().err.count("cannot be listed: Permission denied") == 4


# --- many -----------------------------------------------------------------------------------------


def test_many_entries(model: Path, tmp_path: Path) -> None:
    """Time grows with the number of entries, not with its square."""
    data = tmp_path / "in"
    data.mkdir()
    for n in range(3000):
        (data / f"{n}.png").symlink_to("nowhere")
    picture(data / "good.png")
    began = time.monotonic()
    assert run_predict(model, data, tmp_path / "out") == 3
    assert time.monotonic() - began < 120
    assert len(rows(tmp_path / "out")) == 3001


def test_a_growing_list_is_written_seldom_and_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = [0.0], []

    def write() -> None:
        written.append(clock[0])
        clock[0] += 1.0  # a write takes a second

    monkeypatch.setattr(outputs.time, "monotonic", lambda: clock[0])
    with outputs.ThrottledWriter(write) as keep:
        for _ in range(100):
            keep()
            clock[0] += 0.5
    assert len(written) == 4
    written.clear()
    with contextlib.suppress(KeyboardInterrupt), outputs.ThrottledWriter(write) as keep:
        keep()
        keep()
        raise KeyboardInterrupt
    assert len(written) == 2
