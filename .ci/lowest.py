"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

    python .ci/lowest.py [PACKAGE ...] > lowest.txt

Packages that are named have their version of constraints.txt instead. Tools that read code and do
not run it (ruff, pyright, setuptools) are left out.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {"ruff", "pyright", "setuptools"}
LOWER = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?>=([0-9][0-9.]*)")


def canonical(name: str) -> str:
    """Name of a package as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lower_bounds(requirements: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and lowest version of each requirement.

    Raises:
        ValueError: for a requirement without a lower bound.
    """
    for requirement in requirements:
        found = LOWER.match(requirement)
        if found is None:
            raise ValueError(f"{requirement!r} has no lower bound. Write it as NAME>=VERSION.")
        yield canonical(found[1]), found[2]


def lowest(tested: Iterable[str] = ()) -> dict[str, str]:
    """Versions to test by name: of the dependencies and of the extra dev.

    Args:
        tested: packages that get their tested version instead.

    Raises:
        ValueError: for a package that has no tested version.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    found = {name: version for name, version in lower_bounds(wanted) if name not in TOOLS}
    pins = re.findall(
        r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    versions = {canonical(name): version for name, version in pins}
    for name in tested:
        if name not in versions or name not in found:
            raise ValueError(f"{name!r} is no direct dependency with a version in constraints.txt.")
        found[name] = versions[name]
    return found


def main() -> int:
    """Print the constraints."""
    print("\n".join(f"{name}=={version}" for name, version in lowest(sys.argv[1:]).items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
