"""docs/own_loop.md: its code runs, and its tables name every loss, metric and option there is."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from documents import ROOT, run_blocks

from pipeline.config import ConfigError
from pipeline.losses import LOSSES, LossEntry, reads
from pipeline.losses.module import RANGE, Loss, takes_range
from pipeline.metrics import METRICS, directions
from pipeline.metrics.entry import GIVEN
from pipeline.metrics.module import REDUCTIONS, Metric
from pipeline.records import LossTerm

PATH = ROOT / "docs" / "own_loop.md"
PAGE = PATH.read_text(encoding="utf-8")


def table(first: str) -> dict[str, list[str]]:
    """Cells of the table whose first heading is ``first``, by the name in the first of a row."""
    lines = iter(PAGE.splitlines())
    next(line for line in lines if line.startswith(f"| {first} |"))
    next(lines)
    rows: dict[str, list[str]] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name.strip("`")] = cells
    return rows


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def options(function: Any, without: tuple[str, ...] = ()) -> list[str]:
    found = inspect.signature(function).parameters.values()
    return [f"{p.name}={p.default!r}" for p in found if p.name not in without]


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_blocks(PATH, {})
    epochs = [
        line.split()[:3]
        for line in capsys.readouterr().out.splitlines()
        if re.match(r"\d \d", line)
    ]
    assert float(epochs[-1][1]) < float(epochs[0][1]), "the loop of the page trains"


def test_the_table_of_losses_is_whole() -> None:
    rows = table("loss")
    assert list(rows) == list(LOSSES)
    for name, (target, says, extra, settings) in rows.items():
        assert says, name
        assert tuple(target.split(", ")) == LOSSES[name].targets, name
        own = [f"range={RANGE!r}"] if takes_range(name) else []
        assert spans(settings) == options(LOSSES[name].make) + own, name
        wish = next(iter(reads([LossTerm(name=name, options={"reduce": "mask"})])), None)
        assert spans(extra)[:1] == (
            [] if wish is None else ["mask" if wish.key == "mask" else wish.name]
        ), name


def test_the_table_of_metrics_is_whole() -> None:
    rows = table("metric")
    assert list(rows) == list(METRICS)
    mask = torch.zeros(1, 1, 12, 12, 12)
    mask[..., 3:8, 3:8, 3:8] = 1
    photo = torch.rand(1, 3, 16, 16)
    for name, (kind, better, says, further, settings) in rows.items():
        assert says, name
        entry = METRICS[name]
        wanted = (
            "probabilities"
            if "probabilities" in entry.needs
            else "images"
            if entry.task == "image"
            else "decisions"
        )
        assert kind.split(", ")[0] == wanted, name
        assert better == directions().get(name, ""), name
        assert spans(settings) == options(entry.compute, GIVEN), name
        metric = Metric(name)
        if name == "retouch":
            metric(photo, photo, source=photo, predicted=photo[:, :1])
        else:
            metric(mask, mask)
        assert [n for n in metric.names if n != name] == spans(further), name


def test_reductions_and_arguments_are_named() -> None:
    assert {row.split(",")[0].strip('`"') for row in table("`aggregate(...)`")} == set(REDUCTIONS)
    for kind in (Loss, Metric):
        for parameter in list(inspect.signature(kind).parameters.values())[1:-1]:
            shown = repr(parameter.default).replace("'", '"')
            assert re.search(rf"\b{parameter.name}={re.escape(shown)}", PAGE), (
                kind,
                parameter.name,
            )


def test_the_table_would_notice_a_new_entry() -> None:
    with LOSSES.restored() as entries:
        entries["further"] = LossEntry(lambda *, strength=1.0: None, ("labels",))
        with pytest.raises(AssertionError):
            test_the_table_of_losses_is_whole()


def test_an_option_of_the_page_is_one_of_the_class() -> None:
    with pytest.raises(ConfigError, match="no option 'radios'"):
        Loss("skeleton_recall", radios=1)
