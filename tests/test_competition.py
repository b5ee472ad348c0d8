"""The competition's score: equal to the organisers' answers, and right on shapes whose answer is
plain.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import evaluate, morphology
from pipeline.metrics import METRICS
from pipeline.metrics.competition import competition_score, octants, toposcore
from pipeline.morphology.counts import matching_counts
from pipeline.records import UserError

FAMILIES = {
    "degenerate": 40,
    "hollow": 40,
    "large": 3,
    "random_fields": 40,
    "salt": 40,
    "sheets": 40,
    "sparse_blobs": 40,
    "tubes": 40,
}


def reference(folder, family):
    """Names, predictions and labels of one family with the organisers' answers."""
    expected = json.loads((folder / "expected.json").read_text())
    for path in sorted(folder.glob(f"{family}*.npz")):
        with np.load(path) as arrays:
            for name in sorted({key.split(".")[0] for key in arrays.files}):
                shape = tuple(arrays[f"{name}.shape"])
                prediction, label, ignored = (
                    np.unpackbits(arrays[f"{name}.{part}"], count=math.prod(shape)).reshape(shape)
                    for part in ("pred", "fg", "ignore")
                )
                yield name, prediction, np.where(ignored, np.uint8(2), label), expected[name]


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.slow if f == "tubes" else ()) for f in FAMILIES],
)
def test_equals_the_official_scorer(shared_data, family):
    seen = 0
    for name, prediction, label, expected in reference(shared_data / "competition_metric", family):
        found = competition_score(prediction, label)
        assert {str(k): list(v) for k, v in found.counts.items()} == expected["counts_mpg"], name
        for part in ("score", "toposcore", "surface_dice", "voi_score", "voi_split", "voi_merge"):
            assert getattr(found, part) == pytest.approx(expected[part], abs=1e-9), (name, part)
        counted = label != 2
        rows = [
            matching_counts(prediction[o] * counted[o], (label * counted)[o])
            for o in octants(label.shape)
        ]
        assert [[list(row) for row in octant] for octant in rows] == expected[
            "octant_counts_mpg"
        ], name
        seen += 1
    assert seen == FAMILIES[family]


def sheets(n: int = 32, at: tuple[int, ...] = (4, 11, 20, 27)) -> np.ndarray:
    volume = np.zeros((n, n, n), np.uint8)
    for z in at:
        volume[z : z + 3] = 1
    return volume


def test_a_perfect_answer_scores_one_whatever_its_numbers_are():
    label = sheets()
    label[:, :2] = 2
    for scale in (1, 2, 255):
        found = competition_score((label == 1) * np.uint8(scale), label)
        assert found.score == 1
        # Two sheets an octant, in eight octants: one beyond the first in each.
        assert found.counts == {0: (8, 8, 8), 1: (0, 0, 0), 2: (0, 0, 0)}


def test_known_defects_cost_what_the_definition_says():
    label = sheets()
    empty = competition_score(np.zeros_like(label), label)
    assert (empty.toposcore, empty.surface_dice) == (0, 0)
    # The union is the label: four parts of equal size against one label.
    assert (empty.voi_split + empty.voi_merge, empty.voi_score) == (2, 1 / 1.6)
    pierced = label.copy()
    pierced[4:7, 8, 8] = 0
    tunnel = competition_score(pierced, label)
    assert tunnel.counts[1] == (0, 1, 0)
    assert tunnel.toposcore == pytest.approx((0.34 + 0.33 * 0.5 / 1.5) / 0.67)
    bridged = label.copy()
    bridged[7:11, 8, 8] = 1
    assert competition_score(bridged, label).counts[0] == (7, 7, 8)
    hollow = label.copy()
    hollow[5, 8, 8] = 0
    assert competition_score(hollow, label).counts[2] == (0, 1, 0)


def test_an_empty_answer_for_a_single_sheet_keeps_two_terms():
    found = competition_score(np.zeros((16, 16, 16)), sheets(16, (6,)))
    assert (found.toposcore, found.surface_dice, found.voi_score) == (1, 0, 1)
    assert found.score == pytest.approx(0.65)


def test_nothing_against_nothing_is_right():
    assert competition_score(np.zeros((4, 4, 4)), np.full((4, 4, 4), 2)).score == 1


def test_ignored_voxels_and_nan_are_background():
    label = sheets()
    label[:, :, 20:] = 2
    prediction = sheets().astype(np.float32)
    expected = competition_score(prediction, label)
    prediction[:, :, 20:] = np.random.default_rng(0).random((32, 32, 12))
    assert competition_score(prediction, label) == expected
    prediction[prediction == 0] = np.nan
    assert competition_score(prediction, label) == expected
    assert competition_score(prediction, label, ignore_label=None) != expected


def test_thin_sheets_that_touch_at_edges_only_fall_to_pieces():
    """26-connected for the VOI, but 6-connected for the counts."""
    label = np.zeros((16, 16, 16), np.uint8)
    for y in range(16):
        label[y, y] = 1
    found = competition_score(label, label)
    # A diagonal runs through four octants, each with eight separate rows.
    assert found.counts[0] == (28, 28, 28)


@pytest.mark.parametrize(
    ("shape", "boxes"), [((4, 4, 4), 8), ((5, 1, 3), 4), ((1, 1, 1), 1), ((1, 7, 1), 2)]
)
def test_octants_cover_every_voxel_once_the_longer_run_first(shape, boxes):
    seen = np.zeros(shape, int)
    parts = list(octants(shape))
    for box in parts:
        seen[box] += 1
    assert (seen == 1).all()
    assert len(parts) == boxes
    assert seen[parts[0]].shape == tuple(-(-n // 2) if n > 1 else 1 for n in shape)


@pytest.mark.parametrize(
    ("counts", "score"),
    [
        ([(0, 0, 0)] * 3, 1.0),
        ([(2, 3, 5), (0, 0, 0), (0, 0, 0)], 0.5),
        ([(0, 0, 0), (0, 3, 0), (0, 0, 0)], 1 / 7),
        ([(1, 1, 1), (0, 0, 4), (0, 0, 0)], 0.34 / 0.67),
    ],
)
def test_toposcore_weighs_the_active_dimensions(counts, score):
    assert toposcore(counts) == pytest.approx(score)


masks = hnp.array_shapes(min_dims=2, max_dims=3, max_side=9).flatmap(
    lambda shape: st.tuples(
        *[
            hnp.arrays(
                bool, shape, elements=st.integers(0, 3).map(lambda n: n < 2), fill=st.nothing()
            )
        ]
        * 2
    )
)


@settings(deadline=None, max_examples=60)
@given(masks)
def test_counts_of_any_two_masks(pair):
    p, g = pair
    rows = matching_counts(p, g)
    assert len(rows) == p.ndim
    for mask, column in ((p, 1), (g, 2)):
        numbers = morphology.betti_numbers(mask, connectivity=6)
        assert tuple(row[column] for row in rows) == (max(numbers[0] - 1, 0), *numbers[1:])
    assert all(0 <= m <= min(a, b) for m, a, b in rows)
    assert matching_counts(g, p) == tuple((m, b, a) for m, a, b in rows)
    assert all(m == a == b for m, a, b in matching_counts(p, p))


@settings(deadline=None, max_examples=60)
@given(masks)
def test_counts_agree_with_the_matcher_of_grey_values(pair):
    """Two programs: labelled arrays and a sparse reduction here, the whole procedure cell by cell
    there.
    """
    from pipeline.morphology.matching import match

    p, g = pair
    pairs = match((~p).astype(np.float32), (~g).astype(np.float32))
    expected = tuple(
        (len(x.matched), len(x.matched) + len(x.first), len(x.matched) + len(x.second))
        for x in pairs
    )
    assert matching_counts(p, g) == expected


def test_tunnels_are_matched_where_they_end_together():
    """Tubes through the same place match; a tube elsewhere does not."""
    block = np.ones((9, 9, 9), bool)
    one, both, other = block.copy(), block.copy(), block.copy()
    one[:, 2, 2] = both[:, 2, 2] = both[:, 6, 6] = other[:, 6, 6] = False
    assert matching_counts(one, both)[1] == (1, 1, 2)
    assert matching_counts(one, one)[1] == (1, 1, 1)
    assert matching_counts(one, other)[1] == (0, 1, 1)  # the union has neither


def test_order_decides_which_components_match():
    """What a count of common components cannot see: the union's parts are joined in the order of a
    sweep.
    """
    p, g = np.zeros((2, 1, 1, 7), bool)
    p[..., [0, 2, 6]] = True
    g[..., [2, 4, 6]] = True
    # The sweep starts in p's own part; the common parts that come later meet both masks, but at the
    # first joining g has none yet.
    assert matching_counts(p, g)[0] == (1, 2, 2)


@pytest.mark.parametrize(
    ("a", "b"), [((3, 3, 3), (3, 3, 4)), ((3, 3), (3, 3)), ((3, 3, 3), (3, 3))]
)
def test_other_shapes_are_refused(a, b):
    with pytest.raises(UserError, match="Z, Y, X"):
        competition_score(np.zeros(a), np.zeros(b))


def test_more_voxels_than_numbers_are_refused(monkeypatch):
    monkeypatch.setattr("pipeline.morphology.counts.MOST_VOXELS", 100)
    ring = np.ones((5, 5, 5), bool)
    ring[:, 2, 2] = False
    with pytest.raises(UserError, match="Match them in parts"):
        matching_counts(ring, ring)


def test_the_metric_is_the_score():
    label = sheets()
    prediction = np.roll(label, 1, axis=1)
    prediction[8:30, 5, 5] = 1
    label[:3] = 2
    record = competition_score(prediction, label)
    found = METRICS["competition"].compute(prediction, np.where(label == 2, 0, label), label != 2)
    assert list(found) == [
        "competition",
        "toposcore",
        "surface_dice",
        "voi_score",
        "voi_split",
        "voi_merge",
        "counts",
    ]
    assert found["competition"] == record.score
    assert found["counts"] == {str(k): list(v) for k, v in record.counts.items()}


def test_evaluate_scores_a_folder_by_it(tmp_path, capsys):
    (tmp_path / "answers").mkdir()
    (tmp_path / "labels").mkdir()
    label = sheets(24, (4, 12))
    label[:, :2] = 2
    answers = {"a": label == 1, "b": np.roll(label == 1, 2, axis=0), "c": np.ones_like(label)}
    for name, answer in answers.items():
        tifffile.imwrite(tmp_path / "answers" / f"{name}.tif", answer.astype(np.uint8))
        tifffile.imwrite(tmp_path / "labels" / f"{name}.tif", label if name != "c" else label[:-1])
    outs = []
    for workers in ("1", "2"):
        out = tmp_path / f"{workers}.json"
        words = [
            "--predictions",
            tmp_path / "answers",
            "--labels",
            tmp_path / "labels",
            "--metrics",
            "competition",
            "--workers",
            workers,
        ]
        assert evaluate.main([str(w) for w in [*words, "--out", out]]) == 3
        outs.append(json.loads(out.read_text()))
    assert outs[0] == outs[1]
    scores = outs[0]
    assert list(scores["cases"]) == ["a", "b"]
    assert scores["cases"]["a"]["competition"] == 1
    assert scores["cases"]["b"]["counts"]["1"] == [0, 0, 0]
    assert scores["cases"]["b"]["competition"] == competition_score(answers["b"], label).score
    assert scores["mean"]["competition"] == (1 + scores["cases"]["b"]["competition"]) / 2
    assert "counts" not in scores["mean"]
    assert "shape" in scores["failed"]["c"]
    assert "competition" in capsys.readouterr().out


def test_the_label_value_2_is_ignored_even_where_an_answer_holds_it(tmp_path):
    """An answer with 2 or 255 is foreground there, as for the organisers."""
    for folder, value in (("answers", 2), ("labels", 1)):
        (tmp_path / folder).mkdir()
        volume = sheets(16, (6,)) * np.uint8(value)
        if folder == "labels":
            volume[:3] = 2
        tifffile.imwrite(tmp_path / folder / "a.tif", volume)
    words = [
        "--predictions",
        tmp_path / "answers",
        "--labels",
        tmp_path / "labels",
        "--metrics",
        "competition",
    ]
    assert evaluate.main([str(w) for w in [*words, "--out", tmp_path / "out.json"]]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["mean"]["competition"] == 1


def test_training_stops_and_chooses_by_it(tiny, surfaces, tmp_path):
    """Early stopping and the choice between best and averaged weights take the score by name."""
    from pipeline import train

    settings = [
        "metrics=[competition, dice]",
        "train.validate.metrics=[competition]",
        "train.stop.monitor=val_competition",
    ]
    words = [
        "--config",
        tiny,
        "--data-dir",
        surfaces,
        "--out",
        tmp_path / "run",
        "--fold",
        0,
        "--set",
        *settings,
    ]
    assert train.main([str(w) for w in words]) == 0
    log = [
        json.loads(line)
        for line in (tmp_path / "run" / "fold_0" / "log.jsonl").read_text().splitlines()
    ]
    result = json.loads((tmp_path / "run" / "fold_0" / "result.json").read_text())
    best = max(range(len(log)), key=lambda n: log[n]["val_competition"])
    assert (result["best_epoch"], result["score"]) == (best, log[best]["val_competition"])
    assert result["chosen"] == max(
        result["metrics"], key=lambda kind: result["metrics"][kind]["competition"]
    )
    cases = result["cases"][result["chosen"]]
    assert all(set(row["counts"]) == {"0", "1", "2"} for row in cases.values())
    assert result["metrics"][result["chosen"]]["competition"] == pytest.approx(
        np.mean([row["competition"] for row in cases.values()])
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"competition", "toposcore", "voi_score"} <= set(summary["out_of_fold"])
    assert "counts" not in summary["out_of_fold"]
    assert (tmp_path / "run" / "report.html").is_file()
