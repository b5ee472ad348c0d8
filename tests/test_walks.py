"""The walks of docs/architecture.md: each module that is named is imported by the one above it, and
lies no higher.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from documents import ROOT, run_blocks
from test_floors import floor, imports, modules

import pipeline as pl
from pipeline import losses
from pipeline.metrics import METRICS, better
from pipeline.records import LossTerm

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Pairs (caller, called) of a nested list."""
    above: list[str] = []
    for indent, name in re.findall(r"^( *)- (pipeline[\w.]*)$", text, re.MULTILINE):
        depth = len(indent) // 2
        above[depth:] = [name]
        if depth:
            yield above[depth - 1], name


@pytest.mark.parametrize("command", ["train", "plan", "predict", "evaluate"])
def test_a_walk_goes_down(command: str) -> None:
    known = modules()
    walk = list(
        steps(
            re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:][
                ["train", "plan", "predict", "evaluate"].index(command)
            ]
        )
    )
    assert walk[0][0] == f"pipeline.{command}"
    assert len(walk) > 8
    for caller, called in walk:
        assert called in known, called
        assert called in imports(known[caller], known), f"{caller} does not import {called}"
        assert floor(called) <= floor(caller), f"{caller} climbs to {called}"


def test_a_walk_that_climbs_would_be_found() -> None:
    assert list(steps("- pipeline.data\n  - pipeline.train\n")) == [
        ("pipeline.data", "pipeline.train")
    ]
    assert floor("pipeline.train") > floor("pipeline.data")


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """What the page's code defines; the metric that it adds is gone after the test."""
    with METRICS.restored():
        yield run_blocks(ROOT / "docs" / "architecture.md", {})


def test_the_metric_of_the_page_is_one(names: dict[str, Any]) -> None:
    answer, truth = np.array([[0, 1, 1]]), np.array([[0, 1, 2]])
    found = pl.score(answer, truth, "volume_difference", ignore_label=2)
    assert found == {"volume_difference": 0}
    assert better("volume_difference") == "lower"


def test_the_loss_of_the_page_is_one(names: dict[str, Any]) -> None:
    label = torch.tensor([[[0.0, 1.0, 2.0]]])
    logits = torch.tensor([[[0.0, 0.0, 9.0]]], requires_grad=True)
    with losses.LOSSES.restored() as entries:
        entries["brier"] = losses.LossEntry(names["brier"], ("labels",))
        terms = losses.WeightedSum([LossTerm(name="brier")], {"label": "labels"}, ignore_label=2)
    total, _ = terms({"main": logits}, {"label": label})
    total.backward()
    assert total.item() == pytest.approx(0.25)
    assert logits.grad is not None
    assert logits.grad[0, 0, 2] == 0
