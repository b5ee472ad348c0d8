"""Configs of the package are found by name from any folder; a file of the user's wins."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, competition_folder
from documents import ROOT

import pipeline as pl
from pipeline import config as configs
from pipeline import train
from pipeline.config import ConfigError, find_config, first_comment, shipped_configs

SPELLINGS = ["surface", "surface.yaml", "configs/surface", "configs/surface.yaml"]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_configs_of_the_repository_are_shipped() -> None:
    assert {p.name for p in shipped_configs().values()} == {
        p.name for p in (ROOT / "configs").iterdir()
    }
    for name, path in shipped_configs().items():
        assert path.stem == name == configs.load(path).name


def test_each_says_in_its_first_line_what_it_is() -> None:
    for path in shipped_configs().values():
        text = first_comment(path)
        assert len(text) > 30, path
        assert not text.startswith("#"), path


def test_a_path_may_leave_its_ending_out(elsewhere: Path) -> None:
    (elsewhere / "sub").mkdir()
    (elsewhere / "sub" / "mine.yaml").write_text("name: mine\n")
    assert find_config("sub/mine") == Path("sub/mine.yaml")
    (elsewhere / "vessels.yaml").symlink_to("nowhere")
    assert find_config("vessels") == Path("vessels.yaml"), "not silently another one"


def test_a_message_names_a_few_files(elsewhere: Path) -> None:
    for n in range(30):
        (elsewhere / f"{n}.yaml").touch()
    with pytest.raises(ConfigError, match="and 20 more"):
        find_config("none")


@pytest.mark.parametrize("given", SPELLINGS)
def test_a_name_is_found_from_any_folder(
    given: str, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = find_config(given)
    assert found.samefile(ROOT / "configs" / "surface.yaml")
    assert caplog.messages == [f"Config {given}: {found}"]
    assert pl.load_config(given) == configs.load(ROOT / "configs" / "surface.yaml")


@pytest.mark.parametrize(
    ("given", "there"),
    [
        ("surface", "surface"),
        ("surface", "surface.yaml"),
        ("surface", "configs/surface.yaml"),
        ("surface.yaml", "surface.yaml"),
        ("surface.yaml", "configs/surface.yaml"),
        ("configs/surface", "configs/surface.yaml"),
        ("configs/surface.yaml", "configs/surface.yaml"),
        ("other/surface.yaml", "other/surface.yaml"),
    ],
)
def test_an_existing_file_wins(
    given: str, there: str, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    Path(there).parent.mkdir(exist_ok=True)
    Path(there).write_text(TINY)
    assert find_config(given) == Path(there)
    assert pl.load_config(given).name == "tiny"
    assert bool(caplog.messages) == (given != there)


def test_a_folder_of_that_name_is_no_file(elsewhere: Path) -> None:
    Path("surface").mkdir()
    Path("surface.yaml").mkdir()
    assert find_config("surface").parent.samefile(ROOT / "configs")


def test_a_link_that_leads_nowhere_is_not_replaced_silently(elsewhere: Path) -> None:
    Path("surface.yaml").symlink_to("mine.yaml")
    assert find_config("surface.yaml") == Path("surface.yaml")
    with pytest.raises(ConfigError, match=r"surface\.yaml: no such config file"):
        pl.load_config("surface.yaml")


@pytest.mark.parametrize(
    "given",
    ["/surface.yaml", "./a/surface", "../surface", "a/configs/surface.yaml", "configs/a/surface"],
)
def test_a_path_elsewhere_is_no_name(given: str, elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        find_config(given)


def test_an_unknown_name_is_told_the_nearest_one(elsewhere: Path) -> None:
    Path("mine.yaml").write_text(TINY)
    with pytest.raises(ConfigError, match="Did you mean 'surface'") as raised:
        pl.load_config("surfce.yaml")
    told = str(raised.value)
    assert "python -m pipeline.list configs" in told
    assert "holds mine.yaml" in told


@pytest.mark.parametrize("given", ["", ".", "..", "\0", "x" * 5000, "configs", "configs/", "~"])
def test_odd_names_are_answered(given: str, elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        find_config(given)


def test_what_reads_runs_and_models_looks_nothing_up(elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        configs.load("configs/surface.yaml")


def test_nothing_that_reads_stored_configs_imports_the_search() -> None:
    """Only what takes the user's words does; a new one is added here after a look."""
    users = {
        str(path.relative_to(ROOT))
        for folder in ("pipeline", "data_prep")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"\bfind_config\(", path.read_text(encoding="utf-8"))
    }
    assert users == {
        "data_prep/change_masks.py",
        "pipeline/config/shipped.py",
        "pipeline/runs.py",  # load_config
        "pipeline/workflows/plan.py",  # --config, and its default
        "pipeline/workflows/train.py",  # train_folds
    }
    text = (ROOT / "pipeline" / "runs.py").read_text(encoding="utf-8")
    assert len(re.findall(r"\bfind_config\(", text)) == 1


def test_a_command_takes_a_name(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = competition_folder(elsewhere / "data", shape=(32, 32, 32))
    words = ["--config", "demo", "--data-dir", str(data), "--dry-run"]
    assert train.main(words) == 0
    assert f"Config demo: {shipped_configs()['demo']}" in capsys.readouterr().out


def test_the_default_is_found_too(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    competition_folder(elsewhere / "data", shape=(20, 24, 24))
    assert train.main(["--data-dir", "data", "--dry-run"]) == 0
    assert f"Config surface: {shipped_configs()['surface']}" in capsys.readouterr().out


def test_python_takes_a_name(elsewhere: Path) -> None:
    with pytest.raises(pl.UserError, match="data/surfaces"):  # the config's data.root
        pl.train_folds("surface_cpu", folds=[0])


def test_a_run_keeps_the_config_and_not_its_name(elsewhere: Path) -> None:
    data = competition_folder(elsewhere / "data", cases=4)
    text = TINY.replace("epochs: 3", "epochs: 1").replace("average: {start: 1, lr: 5.0e-3}", "")
    Path("tiny.yaml").write_text(text)
    run = pl.train_folds("tiny", data, folds=[0], out="run")
    Path("tiny.yaml").write_text("name: other")
    assert pl.Predictor.load(run).config.name == "tiny"
    assert "tiny.yaml" not in run.config_file.read_text()


def test_masks_of_change_take_a_name(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "data_prep" / "change_masks.py"), "a", "b", "c"]
    done = subprocess.run(
        [*words, "--config", "surface_cpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "surface_cpu: data.change is null" in done.stderr
