"""Plans in the report: every value with its reason, the fingerprint, and what was changed since."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import test_report
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import EVIL, check, gaps

from pipeline import files
from pipeline.config import parse_yaml
from pipeline.planning import annotated, plan_file, sheets, stored
from pipeline.planning.fingerprint import CaseFacts, ChannelFacts, Fingerprint, Oddity
from pipeline.planning.settings import Setting
from pipeline.workflows.report import write_report

original = test_report.original

HEADER = [
    "2026-11-30: 2 cases of data, our own rules, 20 minutes.",
    "Memory: expected 5.1 GB, measured 4.9 GB for one step of 2 samples (0.96 times)",
    "Time: about 0:17:00 of 0:20:00 (15% kept free) for 2 folds of 10 epochs of 5 steps",
]
SETTINGS = [
    Setting("name", "surface"),
    Setting("data.dims", 3, "volumes"),
    Setting("data.classes", 2, "0 background, 1 sheet"),
    Setting("data.folds.by", "group", "take the mark away", proposed=True),
    Setting("data.folds.count", 5, "as in nnU-Net"),
    Setting("data.patch.size", [32, 64, 64], "the whole median image, " + "long " * 30),
    Setting("losses", [{"name": "dice", "options": {"batch": True}}, {"name": "ce"}] * 3, "both"),
    Setting("train.epochs", 10, f"as many as fit {EVIL}"),
]


def fingerprint() -> Fingerprint:
    """Two cases of two classes."""
    cases = tuple(
        CaseFacts(
            id=f"case_{n}",
            shape=(10, 20, 30 + n),
            box=(10, 20, 30),
            dtype="uint8",
            spacing=(2.0, 1.0, 1.0),
            codes="SAR",
            family="nifti",
            voxels={0: 5000, 1: 600, 2: 400 * n},
            components={1: 2, **({2: 1} if n else {})},
            values=1 + n,
        )
        for n in range(2)
    )
    channel = ChannelFacts(name="CT", minimum=-1000, maximum=3000, mean=40.5, std=12.25, median=38,
                           low=-20, high=300, spread=0.125)  # fmt: skip
    return Fingerprint(
        root="data", layout="nnunet", folders={}, dims=3, task="labels", cases=cases,
        channels=(channel,), class_names={1: "liver", 2: EVIL}, classes=3, tests=7,
        oddities=(Oddity(case="case_1", text="has a strange spacing", severity="error"),),
    )  # fmt: skip


@pytest.fixture
def planned(original: Path, tmp_path: Path) -> Path:
    run = shutil.copytree(original, tmp_path / "run", ignore=shutil.ignore_patterns("data"))
    files.write_text(run / "plan.yaml", plan_file.text(SETTINGS, HEADER))
    files.write_json(run / "fingerprint.json", stored.as_json(fingerprint()))
    return run


def section(run: Path, title: str) -> str:
    text = write_report(run).read_text(encoding="utf-8")
    check(text)
    return text.partition(f"<h2>{title}")[2].partition("<h2>")[0]


# --- a plan read back -----------------------------------------------------------------------------


def test_every_value_is_read_back_with_its_reason() -> None:
    text = plan_file.text(SETTINGS, HEADER)
    found = {d.key: d for d in annotated.decisions(text)}
    assert list(found) == [s.key for s in SETTINGS]
    for setting in SETTINGS:
        read = found[setting.key]
        assert (read.reason, read.proposed) == (setting.reason.strip(), setting.proposed)
        if isinstance(setting.value, list) and "\n" in read.value:
            assert [parse_yaml(line) for line in read.value.splitlines()] == setting.value
        else:
            assert parse_yaml(read.value) == setting.value
    assert annotated.header(text)[0] == HEADER[0]
    assert " ".join(annotated.header(text)) == " ".join(HEADER)


VALUES = st.one_of(
    st.integers(-99, 99),
    st.booleans(),
    st.none(),
    st.text("abcxyz #:'\"", max_size=8),
    st.lists(st.integers(0, 9), max_size=4),
)
REASONS = st.text("abc xyz,;'#", max_size=150).map(lambda t: " ".join(t.replace("#", "").split()))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(VALUES, REASONS), min_size=1, max_size=6))
def test_values_and_reasons_survive_whatever_they_are(rows: list[tuple[object, str]]) -> None:
    made = [Setting("name", "x")]
    made += [Setting(f"part{n % 2}.key{n}", value, why) for n, (value, why) in enumerate(rows)]
    found = {d.key: d for d in annotated.decisions(plan_file.text(made, ["A plan."]))}
    assert found.keys() == {s.key for s in made}
    for setting in made:
        assert parse_yaml(found[setting.key].value) == setting.value
        assert found[setting.key].reason == setting.reason


@pytest.mark.parametrize("text", ["", "a: [", "- 1\n- 2\n", "text", "# only\n", "a: &a\n  b: *a\n"])
def test_what_is_no_plan_has_no_decisions(text: str) -> None:
    assert annotated.decisions(text) == []


# --- in the report --------------------------------------------------------------------------------


def test_decisions_have_their_reasons_beside_them(planned: Path) -> None:
    text = re.sub("<wbr>", "", section(planned, "Plan"))
    row = text.partition(">data.patch.size")[2].partition("</tr>")[0]
    assert ">[32, 64, 64]</td>" in row
    assert "the whole median image, long long" in row
    assert "as many as fit &lt;script&gt;" in text
    assert ">data.folds.by <span" in text.replace("\n", " ")
    assert '<span class="badge">proposed</span>' in text
    assert "<details" in text
    assert HEADER[0] in text


def test_values_that_were_changed_are_marked(planned: Path) -> None:
    """The run's config has 2 folds, the plan 5; what the config does not name is not compared."""
    text = section(planned, "Plan")
    row = re.sub("<wbr>", "", text).partition(">data.folds.count")[2].partition("</tr>")[0]
    assert "5<br>trained with 2" in row
    assert "1 changed before training" in text
    assert text.count('class="badge stopped"') == 1


def test_an_edited_plan_says_so(planned: Path) -> None:
    files.write_text(planned / "plan.yaml", plan_file.text(SETTINGS, HEADER))
    assert "edited by hand" not in section(planned, "Plan")
    files.write_text(
        planned / "plan.yaml", plan_file.text(SETTINGS, HEADER).replace("dims: 3", "dims: 2")
    )
    assert "edited by hand" in section(planned, "Plan")


def test_expected_time_stands_beside_the_actual_one(planned: Path) -> None:
    text = section(planned, "Plan")
    row = text.partition(">Time</th>")[2].partition("</tr>")[0]
    assert "about 0:17:00 of 0:20:00" in row
    assert "2 min 02 s for 2 folds" in row, "two folds of 61.2 s"
    assert "expected 5.1 GB, measured 4.9 GB" in text


def test_the_fingerprint_is_shown_as_tables(planned: Path) -> None:
    text = section(planned, "Data")
    plain = re.sub("<[^>]+>", " ", text)
    for wanted in ("2x1x1 mm in all", "2 SAR", "2 uint8", "1 liver", "case_1", "refused",
                   "has a strange spacing", "0 CT", "-1000"):  # fmt: skip
        assert wanted in plain, wanted
    assert "<script" not in text
    liver = text.partition(">1 liver</th>")[2].partition("</tr>")[0]
    assert re.findall(r">([^<]+)</td>", liver) == ["2", "10.3 %", "1.2 ml", "2"]


def test_shares_of_classes_add_up() -> None:
    (rows,) = [rows for title, _, rows in sheets.sheets(fingerprint()) if title == "Classes"]
    shares = [float(row[2].split()[0]) for row in rows]
    assert shares == pytest.approx([100 * 1200 / 11600, 100 * 400 / 11600], rel=0.01)


def test_a_plan_without_a_fingerprint_is_a_gap(planned: Path) -> None:
    (planned / "fingerprint.json").unlink()
    text = write_report(planned).read_text(encoding="utf-8")
    assert any(gap.startswith("fingerprint.json") for gap in gaps(text))
    assert "<h2>Plan" in text
    assert "<h2>Data" not in text
    files.write_text(planned / "plan.yaml", "a: [")
    assert any("plan.yaml" in g for g in gaps(write_report(planned).read_text(encoding="utf-8")))


def test_a_run_that_was_not_planned_has_no_such_section(original: Path, tmp_path: Path) -> None:
    run = shutil.copytree(original, tmp_path / "run", ignore=shutil.ignore_patterns("data"))
    text = write_report(run).read_text(encoding="utf-8")
    assert "<h2>Plan" not in text
    assert "<h2>Data" not in text
