"""Which examples the properties of this suite are tried with: the same in every `make test`, new
ones in every `make fuzz`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
from hypothesis import given, settings, strategies as st

@settings(max_examples=20)
@given(st.integers(0, 10**9))
def test_probe(n):
    print("drawn", n)
"""


def drawn(tmp_path: Path, *options: str) -> list[str]:
    """Examples of a property in a process of its own, under the conftest of this suite."""
    (tmp_path / "test_probe.py").write_text(PROBE)
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "-p",
        "conftest",
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(
        [*words, *options, str(tmp_path / "test_probe.py")],
        env=environment,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if "drawn" in line]


@pytest.mark.slow
def test_examples_are_the_same_unless_new_ones_are_asked_for(tmp_path: Path) -> None:
    usual = drawn(tmp_path)
    assert len(usual) == 20
    assert drawn(tmp_path) == usual
    fresh = ["--hypothesis-profile=fresh", "--hypothesis-seed"]
    one, other = drawn(tmp_path, *fresh, "1"), drawn(tmp_path, *fresh, "2")
    assert one != usual
    assert one != other
    assert drawn(tmp_path, *fresh, "1") == one
    # Constants of the code may be cached there, but no example that a later run would begin with.
    assert not (tmp_path / ".hypothesis" / "examples").exists()


def test_a_property_that_sets_its_number_of_examples_keeps_the_rest_of_the_profile() -> None:
    numbers: list[int] = []

    @settings(settings.get_profile("fixed"), max_examples=25)
    @given(st.integers(0, 10**9))
    def probe(n: int) -> None:
        numbers.append(n)

    probe()
    probe()
    assert len(numbers) == 50
    assert numbers[:25] == numbers[25:]
    assert settings(max_examples=5).database is None
