"""What a new user types first: python -m pipeline, and --help of every command."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline import cli
from pipeline.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


def front(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_is_listed() -> None:
    """A module with a parser and a main is a command."""
    names = [m.name for m in pkgutil.iter_modules(pipeline.__path__) if m.name != "__main__"]
    modules = {n: importlib.import_module(f"pipeline.{n}") for n in names}
    assert sorted(COMMANDS) == sorted(
        n for n, m in modules.items() if hasattr(m, "main") and hasattr(m, "parser")
    )


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_package_says_what_there_is(words: tuple[str, ...]) -> None:
    done = front(*words)
    assert (done.returncode, done.stderr) == (0, "")
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{text}$", done.stdout, re.MULTILINE)
    assert "python -m pipeline COMMAND --help" in done.stdout
    assert "python -m pipeline list" in done.stdout
    assert "no medical device" in done.stdout


def test_the_package_answers_at_once() -> None:
    """A bare interpreter's start is taken off: what a busy machine needs for that is not ours."""

    def seconds(*words: str) -> float:
        began = processor_seconds()
        subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True)
        return processor_seconds() - began

    def processor_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    rounds = [seconds("-m", "pipeline") - seconds("-c", "pass") for _ in range(3)]
    assert min(rounds) < 0.3
    code = (
        "import runpy, sys\n"
        "sys.argv = ['pipeline']\n"
        "try:\n"
        "    runpy.run_module('pipeline', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'monai', 'numpy', 'scipy', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("word", "near"), [("trian", "train"), ("evalaute", "evaluate"), ("Predict", "predict")]
)
def test_an_unknown_word_names_the_nearest_command(word: str, near: str) -> None:
    done = front(word, "--config", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{word!r}. Did you mean {near!r}?" in done.stderr


def called(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """As the console command ``name`` starts the package."""
    code = (
        f"import sys; sys.argv = ['/somewhere/bin/{name}', *{words!r}];"
        " from pipeline.__main__ import main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_usage_names_the_program_that_was_called() -> None:
    one = subprocess.run(
        [sys.executable, "-m", "pipeline.report", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert one.startswith("usage: python -m pipeline.report [-h]")
    for done, program in (
        (front("report", "--help"), "python -m pipeline report"),
        (called("pipeline", "report", "--help"), "pipeline report"),
    ):
        assert done.stdout.startswith(f"usage: {program} [-h]")
        whole, same = (" ".join(t.split("\n\n", 1)[1].split()) for t in (done.stdout, one))
        assert whole == same
    assert called("pipeline").stdout.startswith("usage: pipeline COMMAND [options]")
    assert "python -m" not in called("pipeline").stdout
    assert "pipeline --help lists all" in called("pipeline", "trian").stderr
    wrong = called("pipeline", "report")
    assert (wrong.returncode, wrong.stderr.split()[:3]) == (2, ["usage:", "pipeline", "report"])


def test_the_version_is_told() -> None:
    assert front("--version").stdout == f"pipeline {pipeline.__version__}\n"


def test_a_command_is_run(tmp_path: Path) -> None:
    done = front("report", str(tmp_path))
    assert done.returncode == 2
    assert f"error: {tmp_path}: no summary.json" in done.stderr


SCRIPTS = [
    path.stem
    for path in sorted((ROOT / "data_prep").glob("*.py"))
    if "ArgumentParser" in path.read_text(encoding="utf-8")
]
PARSERS = [*(f"pipeline.{name}" for name in COMMANDS), *SCRIPTS]
EMPTY = (None, False, argparse.SUPPRESS, "", [], ())


@pytest.mark.parametrize("module", PARSERS)
def test_help_names_defaults_that_are_values_and_no_others(module: str) -> None:
    parser = importlib.import_module(module).parser()
    text = " ".join(parser.format_help().split())
    assert not re.findall(r"\(default: (?:None|False|True|\[\]|\(\)|\{\}|''|)\)", text)
    assert "==SUPPRESS==" not in text
    for action in parser._actions:
        if not any(action.default is e or action.default == e for e in EMPTY):
            many = isinstance(action.default, list | tuple)
            typed = " ".join(map(str, action.default)) if many else action.default
            assert f"(default: {typed})" in text, action.dest


@pytest.mark.parametrize("module", PARSERS)
def test_help_says_more_of_each_option_than_its_name(module: str) -> None:
    parser = importlib.import_module(module).parser()
    assert parser.description
    for action in parser._actions:
        words = {word.strip(";:,.") for word in (action.help or "").split()}
        assert len(words - {*action.dest.split("_")}) > 2, action.dest


def test_a_default_of_nought_is_shown() -> None:
    parser = cli.parser("probe", "Test.")
    for name, default in (
        ("nought", 0),
        ("words", ""),
        ("nothing", None),
        ("many", []),
        ("half", 0.5),
        ("flag", False),
    ):
        parser.add_argument(f"--{name}", default=default, help=f"{name}!")
    text = parser.format_help()
    assert re.findall(r"(\w+)! \(default: (.*)\)", text) == [("nought", "0"), ("half", "0.5")]


def test_train_alone_says_what_it_trains_and_leaves_nothing(tmp_path: Path) -> None:
    """Who has no competition data learns how to name other data, and has no folder to remove."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "train"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "python -m pipeline train --data-dir DIR" in done.stdout
    assert "python -m pipeline list configs" in done.stdout
    assert "--data-dir to a folder that holds" in done.stderr + done.stdout
    assert os.listdir(tmp_path) == []
