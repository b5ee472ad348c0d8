"""Benchmarks start: what a document quotes can be measured again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
HELPERS = ("sides.py", "trees.py")
"""Modules that benchmarks share."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted(p for p in FOLDER.glob("*.py") if p.name not in HELPERS), ids=lambda p: p.stem
)
def test_a_benchmark_says_how_it_is_called(path: Path, tmp_path: Path) -> None:
    """Everything that it imports at its top is there, and asking leaves nothing."""
    paths = os.pathsep.join(str(p) for p in (FOLDER.parents[1], FOLDER.parent))
    done = subprocess.run(
        [sys.executable, str(path), "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:")
    assert os.listdir(tmp_path) == []
