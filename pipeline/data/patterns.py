"""Regular expressions that a user writes, matched in a bounded time.

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


def first_groups(pattern: str, texts: Sequence[str], seconds: float = SECONDS) -> list[str | None]:
    """What the first bracket of ``pattern`` finds in each text, None where nothing fits.

    Raises TimeoutError beyond ``seconds``.
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
