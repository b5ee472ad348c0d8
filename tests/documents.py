"""Pages of the documents whose Python blocks run in the tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def python_blocks(page: Path) -> list[tuple[str, str]]:
    """``(reason, code)`` of the ```python blocks of a page; the reason of a block that is not run
    stands in a comment above it, ``<!-- not run: reason -->``, and is empty for all others.
    """
    return re.findall(
        r"^(?:<!-- not run: (.+?) -->\n)?```python\n(.*?)^```$",
        page.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )


def run_blocks(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run the ```python blocks of a page in order, in one namespace that begins with ``names``;
    returns it.
    """
    blocks = python_blocks(page)
    assert blocks, page
    for n, (reason, block) in enumerate(blocks):
        if not reason:
            exec(compile(block, f"{page.name}, block {n + 1}", "exec"), names)
    return names
