"""Tables of the report: nothing is cut at the width of a phone or of a screen, measured in a
browser where there is one.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import files, report

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MEASURE = """<script>
document.querySelectorAll('details').forEach(d => d.open = true);
const page = document.documentElement, wide = [...document.querySelectorAll('.wide')];
const out = [...document.querySelectorAll('body *')].filter(
  e => e.getBoundingClientRect().right > page.clientWidth + 1
    && !e.parentElement.closest('.wide, pre, svg'));
const scrolling = wide.filter(w => w.scrollWidth > w.clientWidth + 1);
scrolling.forEach(w => w.scrollLeft = 1e6);
const reached = scrolling.filter(w => {
  const last = w.querySelector('thead th:last-child').getBoundingClientRect();
  const box = w.getBoundingClientRect();
  return last.right <= box.right + 1 && last.left >= box.left;
});
const named = scrolling.filter(w => {
  const first = w.querySelector('tbody th').getBoundingClientRect();
  const box = w.getBoundingClientRect();
  return first.left >= box.left - 1 && first.right <= box.right;
});
parent.document.title = JSON.stringify({
  width: page.clientWidth, page: page.scrollWidth, out: out.map(e => e.outerHTML.slice(0, 80)),
  tables: wide.length, scrolling: scrolling.length, reached: reached.length, named: named.length});
</script></body>"""

LONG = "a_name_without_any_space_" * 6


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A run of 14 classes, 20 further metrics and names as long as people make them."""
    plain = [f"metric_number{'x' * n}" for n in range(20)]
    keys = ["dice", *(f"dice_{n}" for n in range(1, 15)), *plain]
    scores = dict.fromkeys(keys, 0.5)
    cases = {
        f"{LONG}{n}": {"fold": n % 2, "group": f"{LONG}{n % 2}", "metrics": scores}
        for n in range(4)
    }
    fold: dict[str, Any] = {
        "status": "completed",
        "best_epoch": 5,
        "score": 0.3,
        "chosen": "best",
        "epochs": 10,
        "seconds": 61.2,
    }
    folds = [
        {
            **fold,
            "fold": n,
            "metrics": {"best": scores, "swa": scores},
            "checkpoint": "x",
            "error": "",
        }
        for n in range(2)
    ]
    folds[1] |= {"status": "failed", "error": "RuntimeError: " + "/a/path" * 40}
    summary = {
        "name": LONG,
        "task": "labels",
        "monitor": "val_loss",
        "folds": folds,
        "out_of_fold": scores,
        "cases": cases,
    }
    summary |= {
        "class_names": {"1": LONG, "2": "liver"},
        "baselines": {f"best global threshold ({LONG})": scores},
    }
    files.write_json(tmp_path / "summary.json", summary)
    files.write_text(
        tmp_path / "config.yaml",
        f"name: x\ndata:\n  dims: 3\n  classes: 15\n  root: /{'x' * 300}\n",
    )
    gain = {"mean": 0.01, "low": -0.1, "high": 0.2}
    names = ["the run's own", "threshold 0.5", "tuned (nested)"]
    steps = {"all": {"text": "threshold value=0.5, dust below=50, fill_holes below=100, " * 4}}
    rows = [
        {"name": n, "mean": {"dice": 0.5}, "gains": dict.fromkeys(names, gain), "chosen": steps}
        for n in names
    ]
    files.write_json(
        tmp_path / "tuning" / "result.json", {"metric": {"name": "dice"}, "rows": rows}
    )
    return tmp_path


def test_every_table_has_a_box_that_scrolls_and_says_so(crowded: Path) -> None:
    assert report.main([str(crowded)]) == 0
    page = (crowded / "report.html").read_text()
    assert (
        page.count("<table>")
        == len(re.findall(r'<div class="wide"><p class="hint">[^<]+</p><table>', page))
        > 3
    )
    assert re.search(r"\.wide\{[^}]*overflow-x:auto", page)
    scores = page.partition("<h2>Scores")[2].partition("<h2>")[0]
    assert "dice_2" not in scores
    assert "metric_number" in scores
    assert '<th scope="row" colspan="1">liver</th>' in page


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_in_a_browser(crowded: Path, tmp_path: Path, width: int) -> None:
    assert report.main([str(crowded)]) == 0
    page = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>',
        "",
        (crowded / "report.html").read_text(),
    )
    page = page.replace("</body>", MEASURE)
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<title>none</title><iframe width="{width}" height="2000" style="border:0"'
        f' srcdoc="{html.escape(page)}"></iframe>'
    )
    command = [
        str(BROWSER),
        *QUIET,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1600,2000",
        "--dump-dom",
        outer.as_uri(),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    (title,) = re.findall(r"<title>(.*?)</title>", found)[:1]
    seen = json.loads(html.unescape(title))
    assert width - 20 <= seen["width"] <= width
    assert seen["page"] == seen["width"], "the page scrolls sideways"
    assert not seen["out"]
    assert 0 < seen["scrolling"] <= seen["tables"]
    assert seen["reached"] == seen["named"] == seen["scrolling"]
