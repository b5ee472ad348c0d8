"""The report: right numbers, one sound self-contained page, pictures whose colours mean what they
say, and no crash over gaps.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from pipeline import colours, files, report, reporting
from pipeline.records import UserError
from pipeline.reporting import charts, html_tables, page, pictures, planes, runs
from pipeline.scoring.bootstrap import interval

EVIL = "<script>alert('x')</script>&\""


class Checker(HTMLParser):
    """Collects tags and what they refer to, and complains about tags that do not close in order."""

    VOID = frozenset({"meta", "img", "br", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            v or ""
            for k, v in attrs
            if k in ("src", "href", "xlink:href", "action") or k.startswith("on")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(text: str) -> Checker:
    """The page is well formed, and fetches and runs nothing."""
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    assert all(
        link.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
        for link in checker.links
    )
    assert not {"script", "link", "iframe", "object"} & set(checker.tags)
    assert "url(" not in text
    assert "@import" not in text
    return checker


def decoded(text: str) -> list[np.ndarray]:
    """All pictures of a page, ``(Y, X, 3)`` uint8."""
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(d))))
        for d in re.findall(r'src="data:image/\w+;base64,([^"]+)"', text)
    ]


def volume(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, label with an ignored rim, answer; 12 x 14 x 16 voxels.

    The answer's sheet is shifted by one voxel.
    """
    image = np.random.default_rng(n).integers(0, 255, (12, 14, 16)).astype(np.uint8)
    label = np.full(image.shape, 2, np.uint8)
    label[2:-2, 2:-2, 2:-2] = 0
    label[5:8, 2:-2, 2:-2] = 1
    answer = np.zeros_like(label)
    answer[6:9, 2:-2, 2:-2] = 1
    return image, label, answer


def log_lines(epochs: int) -> str:
    rows = []
    for epoch in range(epochs):
        row: dict[str, Any] = {
            "epoch": epoch,
            "lr": 1e-3 * 0.9**epoch,
            "train_loss": 1 / (epoch + 1),
            "seconds": 1.0,
        }
        if epoch % 2:
            row |= {"val_loss": 1.1 / (epoch + 1), "val_dice": epoch / epochs}
        rows.append(json.dumps(row))
    return "\n".join(rows) + "\n"


def fold_result(fold: int, **more: Any) -> dict[str, Any]:
    metrics = {"best": {"dice": 0.7, "hd95": 3.0}, "swa": {"dice": 0.75, "hd95": 2.5}}
    base = {
        "fold": fold,
        "status": "completed",
        "best_epoch": 5,
        "score": 0.3,
        "metrics": metrics,
        "chosen": "swa",
    }
    return {**base, "checkpoint": "x", "epochs": 10, "seconds": 61.2, "error": "", **more}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run: two folds, six cases in two groups."""
    run = tmp_path_factory.mktemp("runs") / "surface"
    listing, cases = {}, {}
    for n in range(6):
        image, label, answer = volume(n)
        name = f"case{n}"
        files.write(run / "data" / f"i{n}.tif", image)
        files.write(run / "data" / f"l{n}.tif", label)
        files.write(run / f"fold_{n % 2}" / "oof" / f"{name}.tif", answer)
        listing[name] = {
            "image": [str(run / "data" / f"i{n}.tif")],
            "targets": {"label": str(run / "data" / f"l{n}.tif")},
            "group": "g",
        }
        cases[name] = {
            "fold": n % 2,
            "group": f"scroll{n // 3}",
            "metrics": {"dice": 0.5 + n / 20, "hd95": 9.0 - n},
        }
    for fold in range(2):
        files.write_text(run / f"fold_{fold}" / "log.jsonl", log_lines(10))
    mean = {k: float(np.mean([c["metrics"][k] for c in cases.values()])) for k in ("dice", "hd95")}
    summary = {
        "name": "surface",
        "task": "labels",
        "folds": [fold_result(0), fold_result(1)],
        "out_of_fold": mean,
        "cases": cases,
    }
    summary |= {
        "baselines": {
            "empty answer": {"dice": 0.0, "hd95": None},
            "best global threshold": {"dice": 0.4567, "hd95": 12.0},
        }
    }
    files.write_json(run / "summary.json", {**summary, "monitor": "val_loss"})
    files.write_json(run / "cases.json", listing)
    files.write_json(run / "environment.json", {"python": "3.11.7", "packages": {"torch": "2.13"}})
    files.write_text(
        run / "config.yaml",
        "name: surface\ndata:\n  dims: 3\n  classes: 2\n  ignore_label: 2\n  folds: {count: 2}\n",
    )
    return run


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy to damage; its pictures still come from the original's data folder."""
    return shutil.copytree(original, tmp_path / "run", ignore=shutil.ignore_patterns("data"))


def change(run: Path, **more: Any) -> None:
    files.write_json(run / "summary.json", {**files.read_json(run / "summary.json"), **more})


# --- the page as a whole --------------------------------------------------------------------------


def test_complete_run_gives_a_sound_page(original: Path) -> None:
    text = reporting.build(original)
    checker = check(text)
    assert (
        checker.tags.count("img") == 5 * 3 * 4
    )  # the four worst (of six, the median among them) and the best; three axes; four panels
    assert (
        checker.tags.count("polyline") == 2 * 4
    )  # each fold: train, validation, dice, learning rate
    for wanted in [
        "0.625",
        "0.457",
        "1 min 01 s",
        "6 of 10",
        "swa ✓",
        "baseline: best global threshold",
        "scroll0",
        "2.13",
        "2nd worst",
    ]:
        assert wanted in text
    assert "Not in this report" not in text
    assert reporting.build(original) == text


def test_command_writes_the_page(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert report.main([str(run)]) == 0
    assert (run / "report.html").read_text(encoding="utf-8") == reporting.build(run)
    assert "report.html" in capsys.readouterr().out


def test_folder_without_a_summary_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "no summary.json" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_everything_is_escaped(run: Path) -> None:
    summary = files.read_json(run / "summary.json")
    case = summary["cases"].pop("case0")
    summary["cases"][EVIL] = {**case, "group": EVIL, "metrics": {**case["metrics"], EVIL: 1.0}}
    change(run, name=EVIL, cases=summary["cases"], baselines={EVIL: {"dice": 1.0}}, monitor=EVIL)
    change(
        run,
        out_of_fold={**summary["out_of_fold"], EVIL: 0.5},
        folds=[fold_result(0, status="failed", error=EVIL), fold_result(1)],
    )
    with (run / "fold_1" / "log.jsonl").open("a") as log:
        log.write(
            json.dumps({"epoch": 10, "lr": 1.0, "train_loss": 1.0, f"val_{EVIL}": 1.0}) + "\n"
        )
    files.write_text(run / "config.yaml", f"name: {json.dumps(EVIL)}\n")
    text = reporting.build(run)
    check(text)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 8


def gaps(text: str) -> list[str]:
    found = re.search(r"<aside>.*?</aside>", text, re.DOTALL)
    return re.findall(r"<li>(.*?)</li>", found[0]) if found else []


def test_tuned_rows_are_shown_and_a_damaged_file_is_stated(run: Path) -> None:
    gain = {"mean": 0.0123, "low": -0.001, "high": 0.02, "better": 3, "worse": 1, "cases": 4}
    rows = [
        {
            "name": name,
            "mean": {"dice": mean},
            "gains": {"the run's own": gain},
            "chosen": {part: {"text": "dust <5>"}},
            "cases": {},
        }
        for name, mean, part in (
            ("the run's own", 0.5, "all"),
            ("tuned (nested)", 0.5123, "scroll"),
        )
    ]
    path = run / "tuning" / "result.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"metric": {"name": "dice", "options": {}}, "rows": rows}))
    shown = reporting.build(run)
    assert "Post-processing" in shown
    assert "+0.0123<small>-0.0010 … +0.0200</small>" in shown
    assert "without scroll: dust &lt;5&gt;" in shown
    for text in ("{", json.dumps({"rows": []}), "[]"):
        path.write_text(text)
        assert "tuning/result.json cannot be read" in reporting.build(run)


def test_gaps_are_stated(run: Path) -> None:
    change(
        run,
        baselines={},
        folds=[
            fold_result(0),
            fold_result(1, status="failed", metrics={}, best_epoch=-1, error="loss is NaN"),
        ],
    )
    files.write_text(run / "config.yaml", "data: {folds: {count: 3}, ignore_label: 2}\n")
    (run / "fold_1" / "log.jsonl").unlink()
    (run / "fold_1" / "oof" / "case1.tif").unlink()
    with (run / "fold_0" / "log.jsonl").open("a") as log:
        log.write('{"epoch": 10, "lr": 0.0')
    text = reporting.build(run)
    check(text)
    assert gaps(text) == [
        "fold_0/log.jsonl: 1 unreadable lines are left out",
        "fold_1/log.jsonl is missing: no curves",
        "fold 2 has no result yet",
        "fold 1 failed: loss is NaN",
        "no scores of an empty answer and a threshold yet: they need all folds",
        "no pictures of case case1: fold_1/oof holds no answer",
    ]
    assert '<span class="badge failed">failed</span>' in text


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "cases.json",
        "environment.json",
        "fold_0",
        "fold_1",
        "fold_0/oof/case0.tif",
        "fold_1/log.jsonl",
    ],
)
def test_any_missing_piece_leaves_a_sound_page(run: Path, name: str) -> None:
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    check(reporting.build(run))


@pytest.mark.parametrize(
    "name", ["config.yaml", "cases.json", "fold_0/oof/case0.tif", "fold_1/log.jsonl"]
)
def test_any_damaged_piece_leaves_a_sound_page(run: Path, name: str) -> None:
    (run / name).write_bytes(b"\x00: [ rubbish \xff")
    text = reporting.build(run)
    check(text)
    assert gaps(text)


def test_run_without_any_score(run: Path) -> None:
    failed = fold_result(0, status="failed", metrics={}, best_epoch=-1, error="out of memory")
    change(run, folds=[failed], out_of_fold={}, cases={}, baselines={})
    (run / "fold_0" / "log.jsonl").unlink()
    text = reporting.build(run)
    check(text)
    assert "fold 0 failed: out of memory" in text


def test_scores_that_are_no_numbers(run: Path) -> None:
    cases = files.read_json(run / "summary.json")["cases"]
    for case in cases.values():
        case["metrics"] = {"dice": None}
    change(run, cases=cases, out_of_fold={"dice": None})
    text = reporting.build(run)
    check(text)
    assert "No case has a finite dice" in text


def test_shapes_that_differ_are_stated(run: Path) -> None:
    files.write(run / "fold_0" / "oof" / "case0.tif", volume(0)[2][1:])
    text = reporting.build(run)
    check(text)
    assert any(
        g.startswith("no pictures of case case0") and "differ in shape" in g for g in gaps(text)
    )


# --- numbers --------------------------------------------------------------------------------------


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).beta(5, 2, 40)
    ours = interval(values.tolist())
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours is not None
    assert ours == pytest.approx(
        (theirs.low, theirs.high), abs=0.1 * values.std() / np.sqrt(len(values))
    )
    assert ours == interval(values.tolist())


def test_interval_at_its_edges() -> None:
    assert interval([]) is None
    assert interval([0.5]) is None
    assert interval([0.5, 0.5]) == (0.5, 0.5)


def test_lower_is_better_where_it_is(run: Path) -> None:
    cases = files.read_json(run / "summary.json")["cases"]
    change(run, out_of_fold={"hd95": 6.5, "dice": 0.6})
    found = runs.load(run)
    assert runs.leading_metric(found) == ("hd95", -1)
    worst_first = pictures.rank(found, "hd95", -1)
    assert [cases[i]["metrics"]["hd95"] for i in worst_first] == sorted(
        (c["metrics"]["hd95"] for c in cases.values()), reverse=True
    )


def test_counts_do_not_rank(run: Path) -> None:
    change(run, out_of_fold={"components": 7.0, "dice": 0.6})
    assert runs.leading_metric(runs.load(run)) == ("dice", 1)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40))
def test_pick_shows_each_case_once_and_always_the_extremes(count: int) -> None:
    ranked = [f"c{n}" for n in range(count)]
    chosen = pictures.pick(ranked)
    names = [name for _, name in chosen]
    assert len(set(names)) == len(names) == (min(count, 5) if count < 8 else 6)
    assert chosen[-1] == ("best", ranked[-1])
    assert names[:4] == ranked[:4] or count <= 4
    assert count < 8 or ("median", ranked[count // 2]) in chosen


# --- charts ---------------------------------------------------------------------------------------

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@settings(deadline=None, max_examples=100)
@given(NUMBERS, st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    high = low + span
    if (high - low) <= 1e-9 * abs(high):
        return
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 6
    assert found == sorted(found)
    slack = 1e-6 * span + 1e-9 * abs(low)
    assert all(low - slack <= t <= high + slack for t in found)


@settings(deadline=None, max_examples=60)
@given(st.floats(1e-8, 1), st.floats(1.7, 1e6))
def test_logarithmic_ticks_are_inside(low: float, ratio: float) -> None:
    found = charts.ticks(low, low * ratio, log=True)
    assert all(low * (1 - 1e-6) <= t <= low * ratio * (1 + 1e-6) for t in found)
    assert ratio < 2.6 or found


def test_scale_maps_ends_to_ends() -> None:
    scale = charts.Scale(low=1e-4, high=1e-2, start=100, stop=0, log=True)
    assert [scale(1e-4), scale(1e-3), scale(1e-2)] == [100, 50, 0]


VALUES = st.one_of(st.none(), st.floats(width=32), st.floats(-10, 10))


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUES, max_size=6), st.booleans())
@example(values=[5e-324], log=True)
def test_chart_of_whatever_a_log_holds(values: list[float | None], log: bool) -> None:
    points: Any = list(enumerate(values, 1))
    text = charts.chart("loss", {"train": points, "none": []}, log=log, mark=2)
    check(text)
    assert not re.search(r'[ ,"]-?(nan|inf)[ ,"]', text)
    drawable = [v for v in values if v is not None and np.isfinite(v) and (v > 0 or not log)]
    assert ("<polyline" in text) == bool(drawable)
    assert text.count("<circle") == len(drawable)


def test_histogram_counts_every_value() -> None:
    values = np.random.default_rng(0).normal(size=50).tolist()
    text = charts.histogram("dice", values, (-0.1, 0.1))
    check(text)
    assert sum(int(n) for n in re.findall(r": (\d+)</title>", text)) == 50
    check(charts.histogram("constant", [0.5, 0.5], (0.5, 0.5)))
    assert "no values" in charts.histogram("nothing", [])


def test_short_rows_span_the_missing_columns() -> None:
    rows = [("", ["x", 1, 2]), ("", ["wide", page.Safe("<b>2</b>")])]
    text = html_tables.table(["a", "b", "c"], rows)
    assert '>x</th><td data-title="b">1</td><td data-title="c">2</td>' in text
    assert 'colspan="2">wide</th><td data-title="c"><b>2</b></td>' in text


# --- pictures -------------------------------------------------------------------------------------


def test_error_colours_mean_what_the_legend_says(original: Path) -> None:
    found = runs.load(original)
    image, label, answer = (a[None] for a in volume(0))
    # Rows are Z, columns X.
    shown = dict(pictures.label_panels(found, image[:, :, 6], label[:, :, 6], answer[:, :, 6]))
    errors = shown["errors"]
    factor = errors.shape[0] // 12

    def colour(z: int, x: int) -> np.ndarray:
        return errors[z * factor + factor // 2, x * factor + factor // 2] * 255

    def near(a: np.ndarray, b: tuple[int, int, int]) -> bool:
        return bool(np.abs(a - np.array(b)).max() < 45)

    assert near(colour(5, 8), colours.BLUE)  # truth only
    assert near(colour(6, 8), colours.WHITE)  # both
    assert near(colour(8, 8), colours.ORANGE)  # answer only
    assert len({round(float(c)) for c in colour(0, 8)}) == 1  # ignored: grey
    assert len({round(float(c)) for c in colour(3, 8)}) == 1  # background: grey
    assert (
        shown["image"].shape
        == shown["truth"].shape
        == shown["prediction"].shape
        == errors.shape
        == (12 * factor, 16 * factor, 3)
    )


def test_wrong_classes_have_their_own_colour(run: Path) -> None:
    files.write_text(run / "config.yaml", "data: {classes: 3}\n")
    truth = np.array([[[1, 2, 0]]])
    answer = np.array([[[1, 1, 0]]])
    errors = dict(pictures.label_panels(runs.load(run), truth * 0, truth, answer))["errors"]
    width = errors.shape[1] // 3
    assert errors[0, width + width // 2] * 255 == pytest.approx(np.array(colours.PURPLE) * 0.85)
    assert errors[0, width // 2] * 255 == pytest.approx(np.array(colours.WHITE) * 0.85)
    assert errors[0, -1] == pytest.approx(0)


def test_slices_follow_the_foreground() -> None:
    truth = np.zeros((1, 9, 10, 11), np.uint8)
    truth[0, 7, 2:4, 3] = 1
    truth[0, :, :, 0] = 2
    found = pictures.slices((truth, truth, truth), ignore=2)
    assert [shown.title for shown in found] == [
        "axis 0, slice 8 of 9",
        "axis 1, slice 4 of 10",
        "axis 2, slice 4 of 11",
    ]
    assert [shown.planes[1].shape for shown in found] == [(1, 10, 11), (1, 9, 11), (1, 9, 10)]
    empty = pictures.slices((truth * 0, truth * 0, truth * 0), ignore=None)
    assert [shown.title for shown in empty] == [
        "axis 0, slice 5 of 9",
        "axis 1, slice 6 of 10",
        "axis 2, slice 6 of 11",
    ]


def test_small_pictures_grow_and_large_ones_shrink() -> None:
    small = planes.enlarge(np.random.default_rng(0).random((8, 6, 3)))
    assert small.shape == (240, 180, 3)
    assert np.array_equal(small[::30, ::30], np.random.default_rng(0).random((8, 6, 3)))
    (large,) = decoded(f'src="{pictures.data_url(np.full((1000, 500, 3), 0.5))}"')
    assert large.shape == (planes.LARGE, planes.LARGE // 2, 3)
    assert (large == 128).all()


def flat_run(
    run: Path, task: str, truth: np.ndarray, answer: np.ndarray, image: np.ndarray
) -> Path:
    """A run of one 2D case; arrays are ``(C, Y, X)``."""
    for name, array in (("image", image), ("truth", truth), ("fold_0/oof/x", answer)):
        files.write(run / f"{name}.png", array, dims=2)
    target = "label" if task == "labels" else "target"
    files.write_json(
        run / "cases.json",
        {"x": {"image": [str(run / "image.png")], "targets": {target: str(run / "truth.png")}}},
    )
    metric = "dice" if task == "labels" else "psnr"
    case = {"fold": 0, "group": None, "metrics": {metric: 0.5}}
    summary = {
        "name": "flat",
        "task": task,
        "folds": [fold_result(0)],
        "out_of_fold": {metric: 0.5},
        "cases": {"x": case},
    }
    files.write_json(run / "summary.json", summary)
    files.write_text(run / "config.yaml", "data: {dims: 2}\n")
    return run


def test_image_task_shows_input_target_prediction_and_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(40, 200, (3, 30, 40)).astype(np.uint8)
    answer = target.copy()
    answer[:, 10, 20] += 51
    text = reporting.build(flat_run(tmp_path, "image", target, answer, target // 2))
    check(text)
    shown = decoded(text)
    assert len(shown) == 4
    factor = shown[0].shape[0] // 30
    for picture, array in zip(shown, (target // 2, target, answer), strict=False):
        assert np.array_equal(picture[::factor, ::factor], np.moveaxis(array, 0, -1))
    difference = shown[3][::factor, ::factor].astype(int).sum(axis=-1)
    assert np.unravel_index(difference.argmax(), difference.shape) == (10, 20)
    assert (difference > 0).sum() == 1
    assert "white = " in text


def test_two_dimensional_masks_of_255(tmp_path: Path) -> None:
    truth = np.zeros((1, 20, 20), np.uint8)
    truth[0, 5:9] = 255
    image = np.random.default_rng(0).integers(0, 255, (3, 20, 20)).astype(np.uint8)
    text = reporting.build(flat_run(tmp_path, "labels", truth, (truth > 0).astype(np.uint8), image))
    check(text)
    shown = decoded(text)
    assert len(shown) == 4
    found = (np.abs(shown[3].astype(int) - colours.WHITE).max(axis=-1) < 45).mean()
    assert found == pytest.approx(4 / 20)  # 255 and 1 are the same answer


def test_large_images_are_shown_large_in_colour_and_grow(tmp_path: Path) -> None:
    """A thin line of one pixel in a picture of 900 x 700 is still there, in its colours."""
    image = np.full((3, 900, 700), 90, np.uint8)
    image[0], image[:, :450] = 200, 20
    truth, answer = np.zeros((2, 1, 900, 700), np.uint8)
    truth[0, :, 350], answer[0, 450:, 350], answer[0, :, 100] = 255, 1, 1
    text = reporting.build(flat_run(tmp_path, "labels", truth, answer, image))
    check(text)
    shown = decoded(text)
    assert [s.shape for s in shown] == [(900, 700, 3)] * 4
    assert text.count('tabindex="0"') == 4
    assert 'class="strip n4 large"' in text
    assert len(text) < 2**20
    assert np.ptp(shown[0][700, 10].astype(int)) > 100  # the image is in colour
    for (y, x), colour in {
        (700, 350): colours.FOUND,
        (200, 350): colours.FALSE_NEGATIVE,
        (200, 100): colours.FALSE_POSITIVE,
    }.items():
        hues = {
            c: np.abs(shown[3][y, x].astype(int) - c).sum()
            for c in (colours.FOUND, colours.FALSE_NEGATIVE, colours.FALSE_POSITIVE)
        }
        assert min(hues, key=lambda c: hues[c]) == colour


def test_masks_saved_as_grey_are_cut_where_the_config_says(tmp_path: Path) -> None:
    truth = np.tile(np.array([0, 3, 120, 128, 250], np.uint8).repeat(4), (1, 20, 1))
    run = flat_run(
        tmp_path, "labels", truth, (truth > 127).astype(np.uint8), np.zeros((1, 20, 20), np.uint8)
    )
    files.write_text(run / "config.yaml", "data: {dims: 2, binarise: 127}\n")
    errors = decoded(reporting.build(run))[3].astype(int)
    assert (np.abs(errors - colours.FOUND).max(axis=-1) < 45).mean() == pytest.approx(2 / 5)
    assert (errors == 0).all(axis=-1).mean() == pytest.approx(3 / 5)


def test_the_legend_names_classes(run: Path) -> None:
    files.write_text(run / "config.yaml", "data: {classes: 4}\n")
    legend = re.findall(
        r"</i>([^<]+)", reporting.build(run).split('class="legend"')[1].split("</p>")[0]
    )
    assert legend == [
        "class 1",
        "class 2",
        "class 3",
        "false positive",
        "false negative",
        "wrong class",
        "found",
    ]


def test_missing_target_is_stated(tmp_path: Path) -> None:
    mask = np.zeros((1, 20, 20), np.uint8)
    run = flat_run(tmp_path, "labels", mask, mask, mask)
    files.write_json(run / "cases.json", {"x": {"image": [str(run / "image.png")], "targets": {}}})
    assert "cases.json names no target" in reporting.build(run)


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no summary\.json"):
        runs.load(tmp_path)
