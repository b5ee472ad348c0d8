"""Disks that are full, read-only or fail: path and bytes are named, nothing is half written, places
are looked at before work.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from small_models import model_file, noise, rows, run_predict

from pipeline import ensemble, evaluate, files, predict, report, submit, train, tune
from pipeline.files import Rows, durable, lock
from pipeline.records import UserError
from pipeline.training import journal

Output = pytest.CaptureFixture[str]
SUFFIXES = (".tif", ".nii", ".nii.gz", ".mha", ".nrrd", ".npy", ".zarr")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "run")


def volume(path: Path, size: int = 16) -> Path:
    files.write(path, noise((size, size, size)))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts an empty disk of so many bytes."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip("no right to mount a disk here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may become larger; what has been written stays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def left(folder: Path) -> set[str]:
    return {p.name for p in folder.rglob("*")}


# --- every writer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("by", ["limit", "disk"])
@pytest.mark.parametrize("rows_of", [False, True])
def test_every_format_names_path_and_bytes(
    suffix: str, by: str, rows_of: bool, small: Callable[[int], Path], tmp_path: Path
) -> None:
    """Real limits of the kernel: EFBIG and ENOSPC. Random numbers do not shrink."""
    place = small(2**18) if by == "disk" else tmp_path
    path, old = place / f"a{suffix}", (noise((2, 2, 2)) > 5).astype(np.uint8)
    files.write(path, old)
    before = left(place)
    array = noise((1, 80, 100, 128))
    given = Rows(array.shape, array.dtype, lambda a, b: array[:, a:b]) if rows_of else array[0]
    if suffix == ".zarr" and by == "limit":
        given, array = np.random.default_rng(0).random((64, 64, 64)), np.empty((64, 64, 64))
    with (
        largest_file(2**17) if by == "limit" else contextlib.nullcontext(),
        pytest.raises(files.DiskError) as caught,
    ):
        files.write(path, given)
    told = str(caught.value)
    assert told.startswith(f"{path}: ")
    assert ("File too large" if by == "limit" else "No space left on device") in told
    assert f"{array.nbytes} bytes are needed" in told
    assert re.search(r"after \d+ bytes, .*, \d+ are free; the file was not changed\. ", told)
    assert ("ulimit -f" if by == "limit" else "Free space in") in told
    assert left(place) == before
    assert (files.read(path, 3)[0][0] == old).all()


@pytest.mark.parametrize(
    "write",
    [lambda p: files.write_json(p, ["x" * 300_000]), lambda p: files.write_text(p, "x" * 300_000)],
)
def test_documents_name_path_and_bytes(
    write: Callable[[Path], None], small: Callable[[int], Path]
) -> None:
    place = small(2**16)
    with pytest.raises(
        files.DiskError,
        match=r"No space left on device after \d+ bytes, 3000\d\d bytes are needed, \d+ are free",
    ):
        write(place / "a.json")
    assert not left(place)


REASONS = {
    errno.EDQUOT: "quota is used up",
    errno.EIO: "fails: look into",
    errno.EROFS: "is read-only",
    errno.EACCES: "right to write",
    errno.EMFILE: "ulimit -n",
    errno.ENAMETOOLONG: "choose a shorter one",
}


@pytest.mark.parametrize("number", REASONS)
def test_every_reason_has_its_way_out(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    for write in (
        lambda: files.write(tmp_path / "a.npy", np.zeros((2, 2, 2))),
        lambda: files.write_json(tmp_path / "a.json", {}),
        lambda: files.write(tmp_path / "a.zarr", np.zeros((2, 2, 2))),
    ):
        with pytest.raises(files.DiskError) as caught:
            write()
        assert caught.value.errno == number
        assert str(caught.value).startswith(f"{tmp_path}/a.")
        assert REASONS[number] in str(caught.value)
    assert not left(tmp_path)


def test_errors_of_files_that_are_read_stay_theirs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), files.whole(tmp_path / "a") as temp:
        temp.write_bytes((tmp_path / "absent").read_bytes())


def test_an_error_of_the_disk_survives_the_way_between_processes(tmp_path: Path) -> None:
    import pickle

    error = files.DiskError(28, "words")
    again = pickle.loads(pickle.dumps(error))
    assert (again.errno, str(again)) == (28, "words")


def test_logs_and_locks_name_their_path(tmp_path: Path) -> None:
    record = {"epoch": 0, "train_loss": 1.0, "val_loss": 1.0, "lr": 0.1, "seconds": 1.0}
    kept = journal.Journal(tmp_path, 2)
    kept.epoch(record)
    with (
        largest_file(1),
        pytest.raises(files.DiskError, match=rf"{tmp_path}/log.jsonl: File too large"),
    ):
        kept.epoch(record)
    kept.close()
    (tmp_path / "other").mkdir()
    with (
        largest_file(1),
        pytest.raises(files.DiskError, match=rf"{tmp_path}/other/.lock: File too large"),
        lock.held(tmp_path / "other" / ".lock", print),
    ):
        pass


# --- commands on a full disk ----------------------------------------------------------------------


def test_predictions_that_do_not_fit_are_refused_before_work(
    model: Path,
    tmp_path: Path,
    small: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    data = volume(tmp_path / "in" / "a.tif", 48).parent
    volume(data / "b.tif", 48)
    place = small(2**18)
    monkeypatch.setattr("pipeline.workflows.predict.predict_case", lambda *_: pytest.fail("worked"))
    assert run_predict(model, data, place / "out", "--save-soft") == 1
    told = capsys.readouterr().err
    assert f"{place / 'out'}: {2 * 2 * 48**3} bytes are needed for what will be written, " in told
    assert "leave --save-soft out" in told
    assert not left(place)
    monkeypatch.setattr(durable, "PLAIN", frozenset())  # a disk that may compress
    monkeypatch.setattr("pipeline.workflows.predict.predict_case", lambda *_: {})
    assert run_predict(model, data, place / "out", "--save-soft") == 0
    assert f"warning: {place / 'out'}: {2 * 2 * 48**3} bytes are needed" in capsys.readouterr().out


def test_what_fits_is_kept_and_the_rest_is_done_later(
    model: Path, tmp_path: Path, small: Callable[[int], Path], capsys: Output
) -> None:
    """The second answer does not fit; with room, the same command does all."""
    data = volume(tmp_path / "in" / "a.npy", 24).parent
    volume(data / "b.npy", 64)
    place = small(3 * 2**17)
    assert (
        predict.main(
            [
                "--checkpoint",
                str(model),
                "--input",
                str(data / "a.npy"),
                "--output",
                str(place / "out"),
            ]
        )
        == 0
    )
    (place / "ballast").write_bytes(bytes(2**17))
    assert run_predict(model, data, place / "out") == 1
    assert "bytes are needed" in capsys.readouterr().err
    assert rows(place / "out")[0]["status"] == "done"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "PLAIN", frozenset())
        assert run_predict(model, data, place / "out") == 1
    found = {row["id"]: row for row in rows(place / "out")}
    assert (found["a"]["status"], found["b"]["status"]) == ("done", "failed")
    assert re.search(
        rf"DiskError: {place}/out/b.*npy: No space left on device after", found["b"]["error"]
    )
    assert not [name for name in left(place) if name.startswith(".tmp-")]
    (place / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
    assert run_predict(model, data, place / "out") == 0


def test_blocks_on_a_full_disk(
    model: Path, tmp_path: Path, small: Callable[[int], Path], capsys: Output
) -> None:
    """Soft answers by blocks, once written through mappings: a full disk killed the process."""
    data = volume(tmp_path / "in" / "a.npy", 48).parent
    place = small(2**19)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "PLAIN", frozenset())
        assert run_predict(model, data, place / "out", "--save-soft", "--blocks", "always") == 1
    assert "No space left on device after" in capsys.readouterr().out
    assert run_predict(model, data, place / "out", "--save-soft", "--blocks", "always") == 1
    assert "bytes are needed" in capsys.readouterr().err + capsys.readouterr().out
    subprocess.run(["mount", "-o", "remount,size=8m", str(place)], check=True)
    assert run_predict(model, data, place / "out", "--save-soft", "--blocks", "always") == 0
    other = tmp_path / "other"
    assert run_predict(model, data, other, "--save-soft", "--blocks", "never") == 0
    for name in ("a.npy", "soft/a.npy"):
        here, there = (np.load(p / name).squeeze() for p in (place / "out", other))
        assert (here == there).all()


def test_training_stops_on_a_full_disk_and_goes_on(
    surfaces: Path, tiny: Path, small: Callable[[int], Path], capsys: Output
) -> None:
    place = small(2**20)
    words = [
        "--config",
        str(tiny),
        "--data-dir",
        str(surfaces),
        "--out",
        str(place / "run"),
        "--fold",
        "0",
    ]
    words += ["--set", "train.epochs=2", "train.average=null"]
    (place / "ballast").write_bytes(bytes(2**20 - 120_000))
    for dry in (["--dry-run"], []):
        code = train.main([*words, *dry])
        told = capsys.readouterr()
        assert code == (2 if dry else 1)
        assert re.search(
            rf"{place}/run/store: \d+ bytes are needed for what will be written, \d+ are free",
            told.out + told.err,
        )
    (place / "ballast").write_bytes(bytes(2**19 + 2**17))
    assert train.main(words) == 1
    told = capsys.readouterr()
    assert re.search(
        rf"{place}/run/\S+: No space left on device after \d+ bytes", told.out + told.err
    )
    assert "Traceback" not in told.err
    (place / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(place)], check=True)
    assert train.main(words) == 0
    assert "Fold 0 complete" in capsys.readouterr().out
    assert not [name for name in left(place) if name.startswith(".tmp-")]


def test_other_commands_on_a_full_disk(model: Path, tmp_path: Path, capsys: Output) -> None:
    data = tmp_path / "in"
    files.write(data / "a.tif", (noise((24, 24, 24)) > 120).astype(np.uint8))
    assert run_predict(model, data, tmp_path / "p", "--save-soft") == 0
    words = [
        "--predictions",
        str(data),
        "--labels",
        str(data),
        "--metrics",
        "dice",
        "--workers",
        "1",
        "--out",
        str(tmp_path / "s.json"),
    ]
    packed = ["--predictions", str(data), "--test-dir", str(data), "--out"]
    with largest_file(100):
        assert evaluate.main(words) == 1
        assert f"error: {tmp_path / 's.json'}: File too large" in capsys.readouterr().err
        assert submit.main([*packed, str(tmp_path / "s.zip")]) == 1
        assert f"error: {tmp_path / 's.zip'}: File too large" in capsys.readouterr().err
        assert submit.main([*packed, str(tmp_path / "s.csv"), "--format", "rle-csv"]) == 1
        assert f"error: {tmp_path / 's.csv'}: File too large" in capsys.readouterr().err
        assert (
            ensemble.main(
                ["--fold-dirs", str(tmp_path / "p"), "--output", str(tmp_path / "e"), "--save-soft"]
            )
            == 1
        )
        assert re.search(rf"error: {tmp_path}/e/\S+: File too large", capsys.readouterr().err)
    assert not {"s.json", "s.zip", "s.csv"} & left(tmp_path)


def test_few_open_files(model: Path, tmp_path: Path, capsys: Output) -> None:
    """A limit that this process is already at: a message with the way out, no traceback."""
    data = volume(tmp_path / "in" / "a.tif").parent
    assert run_predict(model, data, tmp_path / "out") == 0
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in range(4):
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, before[1]))
        try:
            code = run_predict(model, data, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        told = capsys.readouterr()
        assert code == (1 if "ulimit -n" in told.out + told.err else 0)
        assert more or code == 1
    assert not [name for name in left(tmp_path) if name.startswith(".tmp-")]


# --- read-only places -----------------------------------------------------------------------------


@pytest.fixture
def readonly(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], Path]:
    """A function that makes a folder read-only, whoever runs the tests: the error comes from the
    system call.
    """
    closed: list[Path] = []
    original = os.open

    def refuse(path: object, flags: int, *more: object, **options: object) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        where = Path(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else None
        if writes and where is not None and any(c in (where, *where.parents) for c in closed):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, flags, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)

    def close(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        closed.append(folder)
        return folder

    return close


def test_read_only_places_are_found_before_work(
    model: Path,
    tmp_path: Path,
    readonly: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    data = tmp_path / "in"
    files.write(data / "a.tif", (noise((16, 16, 16)) > 120).astype(np.uint8))
    assert run_predict(model, data, tmp_path / "p", "--save-soft") == 0
    (tmp_path / "e.yaml").write_text(f"members: [{{run: {model.parent}}}]\n")
    ro = readonly(tmp_path / "ro")
    (tmp_path / "half").mkdir()
    soft = readonly(tmp_path / "half" / "soft")
    for name in (
        "pipeline.inference.predictor.load_models",
        "pipeline.workflows.evaluate.pair",
        "pipeline.workflows.submit.check",
        "pipeline.workflows.fuse.looked_at",
    ):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("worked"))
    spec = ["--spec", str(tmp_path / "e.yaml")]
    words = ["--predictions", str(data), "--labels", str(data), "--metrics", "dice", "--out"]
    packed = ["--predictions", str(data), "--test-dir", str(data), "--out"]
    commands: list[tuple[Path, Callable[[], int]]] = [
        (ro, lambda: run_predict(model, data, ro)),
        (
            ro / "deep" / "er",
            lambda: run_predict(model, data, ro / "deep" / "er", "--shard", "0/2"),
        ),
        (soft, lambda: run_predict(model, data, tmp_path / "half", "--save-soft")),
        (
            ro / "x",
            lambda: ensemble.main(["--fold-dirs", str(tmp_path / "p"), "--output", str(ro / "x")]),
        ),
        (ro / "x", lambda: ensemble.main([*spec, "--input", str(data), "--output", str(ro / "x")])),
        (ro, lambda: evaluate.main([*words, str(ro / "s.json")])),
        (ro, lambda: submit.main([*packed, str(ro / "s.zip")])),
        (
            ro / "w",
            lambda: submit.main(
                [
                    *spec,
                    "--test-dir",
                    str(data),
                    "--work",
                    str(ro / "w"),
                    "--out",
                    str(tmp_path / "s.zip"),
                ]
            ),
        ),
    ]
    for place, command in commands:
        assert command() == 2
        told = capsys.readouterr().err
        assert f"{place} may not be written (Read-only file system)" in told
        assert "Choose another folder" in told
    assert not left(ro)


def test_a_run_that_may_not_be_written(
    surfaces: Path,
    tiny: Path,
    tmp_path: Path,
    readonly: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    run = tmp_path / "run"
    words = [
        "--config",
        str(tiny),
        "--data-dir",
        str(surfaces),
        "--set",
        "train.epochs=1",
        "train.average=null",
        "--out",
    ]
    assert train.main([*words, str(run), "--fold", "0"]) == 0
    readonly(run)
    monkeypatch.setattr("pipeline.data.properties.examine", lambda *_, **__: pytest.fail("worked"))
    monkeypatch.setattr("pipeline.workflows.tune.prepare", lambda *_: pytest.fail("worked"))
    monkeypatch.setattr("pipeline.reporting.build", lambda *_: pytest.fail("worked"))
    capsys.readouterr()
    for place, command in (
        (run, lambda: train.main([*words, str(run), "--fold", "1"])),
        (run / "new", lambda: train.main([*words, str(run / "new")])),
        (
            run / "store2",
            lambda: train.main(
                [*words, str(tmp_path / "other"), "--set", f"data.store={run / 'store2'}"]
            ),
        ),
        (run / "tuning", lambda: tune.main([str(run)])),
        (run, lambda: report.main([str(run)])),
    ):
        assert command() == 2
        assert f"{place} may not be written" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(model: Path, tmp_path: Path, capsys: Output) -> None:
    data = volume(tmp_path / "in" / "a.tif").parent
    (tmp_path / "out").mkdir(mode=0o500)
    assert run_predict(model, data, tmp_path / "out") == 2
    assert "may not be written" in capsys.readouterr().err


def test_a_disk_that_is_read_only(
    model: Path, tmp_path: Path, small: Callable[[int], Path], capsys: Output
) -> None:
    data = volume(tmp_path / "in" / "a.tif").parent
    place = small(2**20)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    assert run_predict(model, data, place / "out") == 2
    assert f"{place / 'out'} may not be written (Read-only file system)" in capsys.readouterr().err
    with pytest.raises(files.DiskError, match="is read-only: choose another folder"):
        files.write_json(place / "a.json", {})


# --- nothing is left ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_writer_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    def stopped(first: int, end: int) -> np.ndarray:
        if first:
            raise KeyboardInterrupt
        return np.zeros((1, end - first, 512, 512), np.float32)

    with pytest.raises(KeyboardInterrupt):
        files.write(
            tmp_path / f"a{suffix}",
            Rows((1, 600, 512, 512), np.dtype(np.float32), stopped)
            if suffix in (".tif", ".npy", ".zarr")
            else _raises(),
        )
    assert not left(tmp_path)


def _raises() -> Rows:
    def stopped(*_: int) -> np.ndarray:
        raise KeyboardInterrupt

    return Rows((1, 2, 2, 2), np.dtype(np.uint8), stopped)


@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_npy_files_hold_the_bytes_that_numpy_writes(order: str, tmp_path: Path) -> None:
    for dtype in ("uint8", "<f4", ">u2", "float16"):
        array = np.asarray(
            noise((3, 5, 7)).astype(dtype), order="C" if order == "strided" else order
        )  # type: ignore[call-overload]
        array = array[:, ::2] if order == "strided" else array
        files.write(tmp_path / "a.npy", array)
        np.save(tmp_path / "b.npy", array)
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    many = noise((2, 40, 50, 60)).astype(np.float32)
    files.write(tmp_path / "a.npy", Rows(many.shape, many.dtype, lambda a, b: many[:, a:b]))
    np.save(tmp_path / "b.npy", many)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.tif").mkdir()
    (tmp_path / "a.tif" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is a folder where a file is to be written"):
        files.write(tmp_path / "a.tif", noise((4, 4, 4)))
    assert (tmp_path / "a.tif" / "mine.txt").read_text() == "x"
