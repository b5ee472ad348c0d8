"""``pipeline list``: every entry of every table in one line, plugins' entries, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT

from pipeline import list as listing_command
from pipeline import registry
from pipeline.config import first_comment, parse_yaml, shipped_configs
from pipeline.inference.fusion import FUSIONS
from pipeline.workflows import listing

PLUGIN = '''
import pipeline as pl


def brier(*, power: float = 2.0, limits=object, order):
    """Power of the error. Smooth everywhere.

    More.
    """


def bare():
    pass


pl.register("brier_of_a_test", pl.LossEntry(brier, ("labels",)))
pl.register("bare_of_a_test", pl.LossEntry(bare, ("labels",)))
'''


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert listing_command.main(words) == 0
    return capsys.readouterr().out.splitlines()


def test_every_table_that_plugins_may_add_to_can_be_listed() -> None:
    known = [t.entries for t in listing.TABLES.values()]
    assert all(any(t is k for k in known) for t in registry.TABLES.values())
    assert {*listing_command.TABLES} == {"configs", "fusions", *listing.TABLES}


def test_alone_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys)
    assert [line.split()[0] for line in lines] == [*listing_command.TABLES]
    assert all(len(line.split()) > 1 for line in lines)


@pytest.mark.parametrize("name", listing.TABLES)
def test_each_entry_is_a_line_with_a_sentence(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, entries = listed(capsys, name), listing.TABLES[name].entries
    assert [line.split()[0] for line in lines] == [*entries]
    for line in lines:
        entry, _, rest = line.partition(" ")
        text, _, options = rest.strip().partition("  ")
        assert text.endswith("."), entry
        assert "``" not in text, entry
        assert ":func:" not in text, entry
        assert not options or options[0] + options[-1] == "{}", entry


@pytest.mark.parametrize(
    ("table", "entry", "options"),
    [
        ("losses", "dice", {"smooth": 1e-5, "batch": False, "background": False}),
        ("steps", "dust", {"below": 100, "connectivity": 26, "classes": "each"}),
        ("metrics", "surface_dice", {"tolerance": None, "tolerance_mm": None}),
        ("networks", "mednext", {"size": "S", "kernel": 3, "deep_supervision": True}),
        ("augment", "blur", {"p": 0.5, "sigma": [0.5, 1.0], "per_channel": False}),
        ("schedules", "poly", {"power": 0.9}),
    ],
)
def test_options_are_yaml(table: str, entry: str, options: dict[str, object]) -> None:
    (line,) = [line for line in listing.lines(table) if line.split()[0] == entry]
    assert parse_yaml(line[line.index("{") :]) == options


def test_what_must_be_given_and_what_is_long_is_marked() -> None:
    lines = {line.split()[0]: line for line in listing.lines("steps") + listing.lines("networks")}
    assert "{low: ?, high: ?, connectivity: 26}" in lines["hysteresis"]
    assert "{channels: ..., " in lines["dynunet"]


def test_configs_with_their_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys, "configs")
    assert [line.split(maxsplit=1) for line in lines] == [
        [name, first_comment(path)] for name, path in shipped_configs().items()
    ]


def test_configs_are_listed_without_torch() -> None:
    code = (
        "import sys; from pipeline import list as command; command.main(['configs']);"
        " assert not {'torch', 'monai', 'numpy', 'yaml', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_fusions_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys, "fusions")
    assert [line.split(maxsplit=1) for line in lines] == [[n, f.text] for n, f in FUSIONS.items()]
    assert all(f.text for f in FUSIONS.values())


def test_several_tables_have_headings(capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys, "optimizers", "schedules")
    assert [line for line in lines if line.endswith(":")] == ["optimizers:", "schedules:"]


def test_an_unknown_table_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing_command.main(["netwroks"]) == 2
    assert "'netwroks'. Did you mean 'networks'?" in capsys.readouterr().err


def test_entries_of_plugins_are_listed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.list", "losses", "--plugin", str(tmp_path / "mine.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = {line.split()[0]: line.split(maxsplit=1)[1:] for line in done.stdout.splitlines()}
    (told,) = rows["brier_of_a_test"]
    assert told.startswith("Power of the error.  {power: 2.0, limits: ")
    assert told.endswith(", order: ?}")
    assert rows["bare_of_a_test"] == []
    assert len(rows) == len(listing.TABLES["losses"].entries) + 2
