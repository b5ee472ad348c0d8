"""Class names of dataset.json stand where people read metrics; the keys of JSON files stay numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.data.cases import class_names


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"background": 0, "Anterior": 1, "Posterior": 2}, {1: "Anterior", 2: "Posterior"}),
        ({"Posterior": 2, "Anterior": 1, "background": 0}, {1: "Anterior", 2: "Posterior"}),
        ({"0": "background", "1": "Anterior", "10": "Tail", "2": "Posterior"}, {1: "Anterior", 2: "Posterior", 10: "Tail"}),
        ({"nothing": 0, "whole tumor": [1, 2], "core": 2, "ignore": 3}, {2: "core"}),
        ({"background": "0", "Anterior": "1"}, {1: "Anterior"}),
        ({"0": "background", "1": "tumor", "2": "tumor", "3": "cyst"}, {1: "tumor (1)", 2: "tumor (2)", 3: "cyst"}),
        ({"background": 0, "left\n\x1b[31m kidney": 1, " ": 2, "yes": True, "half": 0.5, "below": -1}, {1: "left [31m kidney"}),
        ({"1" * 5000: "long", "1": "Anterior"}, {1: "Anterior"}),
        (["background", "Anterior"], {}),
        (None, {}),
    ],
)
def test_names_of_both_versions(labels: object, names: dict[int, str], tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert class_names(tmp_path) == names
    assert list(class_names(tmp_path)) == sorted(names)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"labels": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"])
def test_a_damaged_file_has_no_names(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    assert class_names(tmp_path) == {}


def test_a_missing_file_has_no_names(tmp_path: Path) -> None:
    assert class_names(tmp_path / "nowhere") == {}
