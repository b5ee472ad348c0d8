"""Preparing the competition's download: what is wrong is printed and stops it, what is right is
stored once.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import prepare_competition
import pytest
import tifffile

from pipeline.data import cache, cases, properties

SCRIPT = Path(__file__).resolve().parents[1] / "data_prep" / "prepare_competition.py"


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """A small download as Kaggle unpacks it: LZW volumes of several slices, one deprecated row."""
    rng = np.random.default_rng(0)
    root = tmp_path / "vesuvius challenge"
    rows = ["id,scroll_id", "9999,34117"]
    for name in ("1004283", "11460685", "998"):
        rows.append(f"{name},26002")
        for folder, high in (("train_images", 255), ("train_labels", 3)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            volume = rng.integers(0, high, (8, 16, 16)).astype(np.uint8)
            tifffile.imwrite(
                root / folder / f"{name}.tif",
                volume,
                compression="lzw",
                metadata=None,
                photometric="minisblack",
            )
    (root / "test_images").mkdir()
    (root / "test_images" / "1407735.tif").write_bytes(
        (root / "train_images" / "998.tif").read_bytes()
    )
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    return root


def test_a_sound_download_is_stored_and_a_second_run_changes_nothing(
    download: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_competition.main([str(download), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "4 rows in train.csv, 3 training images, 1 test images" in out
    assert "806 rows and 786" in out
    assert "names 1 ids without any file (9999)" in out
    before = {p: p.stat().st_mtime_ns for p in (download / "store").rglob("*") if p.is_file()}
    assert len(before) == 3 * 4  # facts, manifest, image, label
    assert prepare_competition.main([str(download)]) == 0
    assert before == {
        p: p.stat().st_mtime_ns for p in (download / "store").rglob("*") if p.is_file()
    }


def test_training_finds_the_store(download: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepare_competition.main([str(download)]) == 0
    settings = prepare_competition.competition_config(download)
    folder = cache.cache_folder(settings.data, download / "run")
    assert folder == download / "store"
    from pipeline import files

    monkeypatch.setattr(files, "read", None)  # nothing is decoded again
    found = cases.find(settings.data, settings.targets, download).train
    facts = properties.examine(found, settings, folder, write=False)
    assert len(cache.build(found, facts, settings, folder)) == 3


def test_all_errors_are_printed_and_nothing_is_built(
    download: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (download / "train_images" / "998.tif", download / "test_images" / "1407735.tif"):
        path.write_bytes(path.read_bytes()[:-20])
    (download / "train_labels" / "1004283.tif").unlink()
    label = download / "train_labels" / "11460685.tif"
    tifffile.imwrite(label, tifffile.imread(label) + np.uint8(1), compression="lzw")
    assert prepare_competition.main([str(download)]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert [Path(line.split(": ")[1]).name for line in lines] == [
        "1004283.tif",
        "998.tif",
        "11460685.tif",
        "1407735.tif",
    ]
    assert not (download / "store" / "arrays").exists()


def test_a_wrong_folder_is_an_error_with_the_expected_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_competition.main([str(tmp_path / "gone")]) == 2
    assert "train_labels/ID.tif" in capsys.readouterr().out
    assert not (tmp_path / "gone").exists()


def test_it_runs_as_a_script(download: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"],
        capture_output=True,
        text=True,
        cwd=SCRIPT.parents[1],
        check=False,
    )
    assert done.returncode == 0
    assert "data_prep/prepare_competition.py" in done.stdout


def test_real_chunks_are_prepared(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, root = shared_data / "fib25_surfaces", tmp_path / "fib25"
    for folder in ("train_images", "train_labels"):
        (root / folder).mkdir(parents=True)
        for path in sorted((source / folder).iterdir())[:3]:
            (root / folder / path.name).symlink_to(path)
    (root / "train.csv").symlink_to(source / "train.csv")
    assert prepare_competition.main([str(root)]) == 0
    assert "3 cases are ready" in capsys.readouterr().out
