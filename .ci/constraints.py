"""Print the versions of all packages of this environment, as constraints for pip.

    make constraints

Without local version tags (``+cpu``), so that they hold wherever packages come from.
"""

from __future__ import annotations

import datetime
import platform
import re
import sys
from collections.abc import Iterable
from importlib import metadata

LEFT_OUT = {"imaging-pipeline", "pip", "setuptools", "wheel"}
"""This package and the tools that install it."""

HEAD = """\
# Versions that are tested together; make install installs no others (pip install -c).
# Made on {date} by make constraints, with Python {python} on {system}: what a new
# environment with the extras dev and docs gets. Python 3.12 and 3.13 take the same versions; what
# only some of them need is left alone by the others. CUDA's packages follow torch.
"""


def canonical(name: str) -> str:
    """Name of a package as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(distributions: Iterable[metadata.Distribution]) -> list[str]:
    """A line for each package, sorted by name."""
    found = {canonical(d.metadata["Name"]): d.version.partition("+")[0] for d in distributions}
    return [f"{name}=={found[name]}" for name in sorted(found) if name not in LEFT_OUT]


def main() -> int:
    """Print the constraints."""
    head = HEAD.format(
        date=datetime.date.today().isoformat(),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
    )
    sys.stdout.write(head + "\n".join(pins(metadata.distributions())) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
