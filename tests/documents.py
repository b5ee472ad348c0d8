"""Pages of the documents whose Python blocks run in the tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run_blocks(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run the ```python blocks of a page in order, in one namespace that begins with ``names``;
    returns it.
    """
    blocks = re.findall(
        r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert blocks, page
    for n, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {n + 1}", "exec"), names)
    return names
