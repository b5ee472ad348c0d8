"""Every option of every command with values that nobody means: an answer in words and one of the
exit codes, never a traceback.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
from conftest import TINY, competition_folder, examples
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import model_file, noise
from test_plan import COST

from pipeline import ensemble, evaluate, plan, predict, report, submit, train, tune
from pipeline import list as listing
from pipeline.planning.precision import Precision
from pipeline.workflows import plan as plans

MODEL = "best_model.safetensors"
BASES: dict[ModuleType, list[str]] = {
    train: ["--config", "tiny.yaml", "--data-dir", "data", "--out", "OUT", "--dry-run"],
    predict: ["--checkpoint", MODEL, "--input", "images", "--output", "OUT"],
    ensemble: ["--fold-dirs", "answers/soft", "answers/soft", "--output", "OUT"],
    evaluate: ["--predictions", "answers", "--labels", "labels", "--out", "OUT.json"],
    tune: [
        "run",
        "--out",
        "OUT.yaml",
        "--force",
        "--workers",
        "1",
        "--space",
        "space.yaml",
        "--metric",
        "dice",
    ],
    submit: ["--predictions", "answers", "--test-dir", "images", "--out", "OUT.zip"],
    report: ["run"],
    plan: ["data", "--budget", "cpu", "--minutes", "1", "--out", "OUT.yaml"],
    listing: ["configs"],
}
NUMBERS = [
    "0",
    "-1",
    "1",
    "1e9",
    "9" * 24,
    "nan",
    "inf",
    "-inf",
    "1e-320",
    "1.5",
    "-0.0",
    "0x10",
    "1_0",
    "\u0663",
    "1/2",
    "1/0",
    "3/2",
    "1/1000000000",
]
WORDS = [
    "",
    "auto",
    "null",
    "a",
    "\u202e\x1b[31m",
    "x" * 5000,
    "\udcff",
    "%s%n",
    "=",
    "a=",
    "=b",
    "a=b",
    "[1",
    "{",
    "a\nb",
    "dice,dice",
    "*",
    "~",
    "\\",
]
KEYS = [
    "train.epochs=0",
    "train.epochs=[1",
    "data.classes=1000000000",
    "data.folds.count=1000000000",
    "seed=2026-01-01",
    "name=!!binary aGk=",
]
PATHS = [
    "../..",
    ".",
    "/dev/null",
    "/dev/zero",
    "fifo",
    "loop",
    "text",
    "bytes",
    "images",
    "link",
    "run",
    "data",
    "missing/a",
    "/proc/self/mem",
    MODEL,
    "run/summary.json",
]
VALUES = NUMBERS + WORDS + KEYS + PATHS
FREE = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=20)
"""No command line can hold a zero; and nothing is to be written outside the test's folder."""


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def call(command: ModuleType, arguments: list[str]) -> tuple[object, str]:
    """Exit code, argparse's included, and everything that was said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code: object = command.main(arguments)
        except SystemExit as end:
            code = end.code
    return code, said.getvalue()


@pytest.fixture(scope="module", autouse=True)
def _unmeasured() -> Iterator[None]:
    """Plans say what they would after a measurement, which takes seconds."""
    plain = Precision(amp="none", channels_last=False, seconds=1.0, plain=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans.costs, "measure", lambda *args, **more: COST)
        patch.setattr(plans.precision, "fastest", lambda *args: plain)
        yield


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A run, its data, a model, images with answers and labels, and odd things beside them."""
    with tempfile.TemporaryDirectory() as name:
        here = Path(name) / "a" / "b" / "c"
        here.mkdir(parents=True)
        competition_folder(here / "data", cases=4)
        text = TINY.replace("epochs: 3", "epochs: 1").replace(
            "  average: {start: 1, lr: 5.0e-3}\n", ""
        )
        (here / "tiny.yaml").write_text(text)
        (here / "space.yaml").write_text(
            "stages: [[[{name: threshold, options: {at: 0.4}}], [threshold]]]\n"
        )
        model_file(here)
        for kind in ("images", "labels"):
            (here / kind).mkdir()
            for n in range(2):
                array = noise((20, 24, 24), n)
                tifffile.imwrite(
                    here / kind / f"{n}.tif",
                    array if kind == "images" else (array > 120).astype(np.uint8),
                )
        os.mkfifo(here / "fifo")
        (here / "loop").symlink_to("loop")
        (here / "link").symlink_to("images")
        (here / "text").write_text("x")
        (here / "bytes").write_bytes(bytes(range(256)))
        with inside(here):
            assert (
                call(train, ["--config", "tiny.yaml", "--data-dir", "data", "--out", "run"])[0] == 0
            )
            assert (
                call(
                    predict,
                    [
                        "--checkpoint",
                        MODEL,
                        "--input",
                        "images",
                        "--output",
                        "answers",
                        "--save-soft",
                    ],
                )[0]
                == 0
            )
        yield here


def changed(command: ModuleType, option: str, value: str | None) -> list[str]:
    """The command's ordinary arguments with one option replaced or added; "" is the first
    positional one.
    """
    words = list(BASES[command])
    if not option:
        return [str(value), *words[1:]]
    if option in words and value is not None:
        at = words.index(option)
        end = next((n for n in range(at + 1, len(words)) if words[n].startswith("--")), len(words))
        words[at:end] = []
    return [*words, option] if value is None else [*words, option, value]


def options(command: ModuleType) -> list[tuple[str, bool]]:
    """Options of a command, and whether each takes a value; "" stands for a positional argument."""
    actions = [a for a in command.parser()._actions if "--help" not in a.option_strings]
    return [(next(iter(a.option_strings), ""), a.nargs != 0) for a in actions]


CHOICES = [(c, name, takes) for c in BASES for name, takes in options(c)]


@settings(max_examples=examples(30))
@given(st.data())
def test_options_of_any_value_are_answered(folder: Path, data: st.DataObject) -> None:
    command, option, takes = data.draw(st.sampled_from(CHOICES))
    value = data.draw(st.sampled_from(VALUES) | FREE) if takes else None
    words = changed(command, option, value)
    with inside(folder):
        for left in folder.glob("OUT*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        code, said = call(command, words)
    assert code in (0, 1, 2, 3), (words, code)
    assert said.strip(), words
    assert "Traceback" not in said, words
