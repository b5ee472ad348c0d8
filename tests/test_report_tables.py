"""Tables of the report: no table is wider than a phone or a screen, measured in a browser where
there is one.
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

from pipeline import colours, files, report, reporting

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
const blocks = wide.filter(w => getComputedStyle(w.querySelector('thead')).display === 'none');
const cut = [...document.querySelectorAll('td, th')].filter(
  e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth);
parent.document.title = JSON.stringify({
  width: page.clientWidth, page: page.scrollWidth, out: out.map(e => e.outerHTML.slice(0, 80)),
  tables: wide.length, blocks: blocks.length, cut: cut.map(e => e.outerHTML.slice(0, 80)),
  scrolling: scrolling.map(e => e.outerHTML.slice(0, 300))});
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


@pytest.fixture
def usual(tmp_path: Path) -> Path:
    """A run of three classes and six metrics, with intervals and baselines."""
    names = ["dice", "surface_dice", "hd95", "assd", "volume_error", "lesion_f1"]
    keys = [*names, *(f"{name}_{n}" for name in names for n in (1, 2, 3))]
    cases = {
        f"hippocampus_{n:03}": {"fold": n % 2, "group": None, "metrics": dict.fromkeys(keys, n / 7)}
        for n in range(6)
    }
    scores = dict.fromkeys(keys, 12.345)
    fold = {"status": "completed", "best_epoch": 51, "score": 0.3, "chosen": "best", "epochs": 120}
    folds = [
        {**fold, "fold": n, "seconds": 3700.0, "metrics": {"best": scores, "swa": scores}}
        for n in range(5)
    ]
    summary = {
        "name": "hippocampus",
        "task": "labels",
        "monitor": "val_dice_1",
        "folds": folds,
        "out_of_fold": scores,
        "cases": cases,
        "class_names": {"1": "Anterior", "2": "Posterior", "3": "Left ventricle"},
        "units": {"hd95": "mm", "assd": "mm"},
        "baselines": {"empty answer": scores, "best global threshold": scores},
    }
    files.write_json(tmp_path / "summary.json", summary)
    files.write_text(tmp_path / "config.yaml", "name: x\ndata: {dims: 3, classes: 4}\n")
    return tmp_path


def test_cells_know_the_titles_of_their_columns(usual: Path) -> None:
    """What a row of blocks shows beside each value, and below which width there are blocks."""
    assert report.main([str(usual)]) == 0
    text = (usual / "report.html").read_text()
    scores = text.partition("<h2>Scores")[2].partition("<h2>")[0]
    for title in ("weights", "best epoch", "time", "surface_dice", "hd95 [mm]"):
        breaking = title.replace("_", "_\u200b")  # between words, not inside them
        assert f'data-title="{breaking}"' in scores, title
    assert "hd95<small>mm</small></th>" in scores
    assert "surface_<wbr>dice</th>" in scores
    (kind,) = re.findall(r'<table class="below(\d+)">', scores)
    assert 700 < int(kind) < 1140
    assert f"@container (max-width:{int(kind) - 1}px){{" in text


def test_classes_have_names_and_the_colours_of_the_pictures(usual: Path) -> None:
    text = reporting.build(usual)
    table = text.partition("<h2>Classes")[2].partition("<h2>")[0]
    for n, name in enumerate(("Anterior", "Posterior", "Left ventricle")):
        square = f'<i style="background:rgb{colours.CLASSES[n]}"></i>'
        assert f"{square}</span>{name}</th>" in table
        assert f"<span>{square}{name}</span>" in text.partition("<h2>Cases in pictures")[2]
    assert "dice Left ventricle" in text
    assert not re.search(r"dice_\d", text.partition("<h2>Origin")[0])


def test_a_table_too_wide_for_any_screen_is_always_blocks(crowded: Path) -> None:
    assert report.main([str(crowded)]) == 0
    page = (crowded / "report.html").read_text()
    scores = page.partition("<h2>Scores")[2].partition("<h2>")[0]
    assert "dice_2" not in scores
    assert "metric_<wbr>number" in scores
    assert '<table class="stacked">' in scores
    assert "liver</th>" in page


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["crowded", "usual"])
def test_nothing_is_cut_in_a_browser(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, width: int
) -> None:
    run: Path = request.getfixturevalue(name)
    assert report.main([str(run)]) == 0
    seen = measured((run / "report.html").read_text(), tmp_path, width)
    assert width - 20 <= seen["width"] <= width
    assert seen["page"] == seen["width"], "the page scrolls sideways"
    assert not seen["out"]
    assert not seen["scrolling"]
    assert not seen["cut"]
    if name == "usual":
        assert (seen["blocks"] == 0) == (width == 1280), "blocks on a phone, tables on a screen"


def measured(page: str, folder: Path, width: int) -> dict[str, Any]:
    """What :data:`MEASURE` finds in a window of a width."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    page = page.replace("</body>", MEASURE)
    outer = folder / "outer.html"
    outer.write_text(
        f'<title>none</title><iframe width="{width}" height="2000" style="border:0"'
        f' srcdoc="{html.escape(page)}"></iframe>'
    )
    command = [
        str(BROWSER),
        *QUIET,
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1600,2000",
        "--dump-dom",
        outer.as_uri(),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
    (title,) = re.findall(r"<title>(.*?)</title>", found)[:1]
    return json.loads(html.unescape(title))
