"""Regular expressions of a user, matched in a bounded time.

``(a+)+$`` takes years on an id of forty letters, and nothing inside a process can stop it. A
process of its own can be ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 10.0
"""Time for all ids of a data set: an ordinary expression takes less than a second for a million."""

WORK = """
import json, re, sys, warnings
warnings.simplefilter("ignore")
pattern, texts = json.load(sys.stdin)
found = re.compile(pattern)
json.dump([match[1] if (match := found.search(text)) else None for text in texts], sys.stdout)
"""
"""Program of the child process: pattern and texts as JSON on stdin, first groups on stdout."""


def first_groups(pattern: str, texts: Sequence[str], seconds: float = SECONDS) -> list[str | None]:
    """What the first bracket of a regular expression finds in each text.

    Args:
        pattern: expression with at least one bracket.
        texts: texts to search.
        seconds: time for all texts together.

    Returns:
        The first group for each text, None where nothing fits.

    Raises:
        TimeoutError: beyond ``seconds``.

    Example:
        >>> first_groups(r"^(s\\d+)_", ["s1_a", "s22_b", "c"])
        ['s1', 's22', None]
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", WORK],
            input=json.dumps([pattern, list(texts)]).encode(),
            capture_output=True,
            timeout=seconds,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"takes more than {seconds:g} s") from None
    return json.loads(done.stdout)
