"""The synthetic scrolls: same bytes from same options, sheets that are thin, apart and hard to find
by a threshold.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import cc3d
import edt
import numpy as np
import pytest
import synthetic_scroll as scroll
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from pipeline.records import UserError


@pytest.fixture(scope="module")
def six() -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Two chunks of each of three scrolls, 64^3: scroll id, image, label."""
    return [
        (s, image, label)
        for _, _, s, image, label in scroll.volumes(scroll.Options(train=6, test=0))
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scrolls") / "data"
    assert (
        scroll.main([str(out), "--size", "32", "--train", "4", "--test", "2", "--scrolls", "2"])
        == 0
    )
    return out


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def best_threshold_dice(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Largest Dice that one threshold reaches on the labelled voxels of all volumes together."""
    grey = np.concatenate([image[label < 2] for image, label in pairs])
    truth = np.concatenate([label[label < 2] == 1 for image, label in pairs])
    above = [np.bincount(grey[truth == t], minlength=256)[::-1].cumsum() for t in (False, True)]
    return float((2 * above[1] / (above[0] + above[1] + truth.sum())).max())


def test_same_options_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    scroll.write(again, scroll.Options(size=32, train=4, test=2, scrolls=2))
    assert digest(again) == digest(written)
    other = tmp_path / "other"
    scroll.write(other, scroll.Options(size=32, train=4, test=2, scrolls=2, seed=43))
    name = "train_images/260010000.tif"
    assert digest(other)[name] != digest(written)[name]


def test_more_volumes_leave_the_others_as_they_are() -> None:
    few = {
        i: image
        for _, i, _, image, _ in scroll.volumes(scroll.Options(size=24, train=2, test=1, scrolls=2))
    }
    many = {
        i: image
        for _, i, _, image, _ in scroll.volumes(scroll.Options(size=24, train=5, test=2, scrolls=2))
    }
    assert set(few) <= set(many)
    assert all(np.array_equal(image, many[i]) for i, image in few.items())
    assert len({image.tobytes() for image in many.values()}) == len(many)


def test_layout_is_the_competitions(written: Path) -> None:
    for part, count in (("train", 4), ("test", 2)):
        with (written / f"{part}.csv").open(newline="") as table:
            rows = list(csv.DictReader(table))
        ids = [row["id"] for row in rows]
        assert len(set(ids)) == count
        assert {row["scroll_id"] for row in rows} == {"26001", "26002"}
        for kind in ("images", "labels"):
            assert sorted(p.name for p in (written / f"{part}_{kind}").iterdir()) == sorted(
                f"{i}.tif" for i in ids
            )
    assert not list(written.parent.glob(".*"))


def test_files_are_lzw_pages_of_uint8(written: Path) -> None:
    for path in written.rglob("*.tif"):
        with tifffile.TiffFile(path) as tif:
            assert len(tif.pages) == 32
            assert {page.compression for page in map(tif.pages.get, range(32))} == {
                tifffile.COMPRESSION.LZW
            }
            assert tif.asarray().shape == (32, 32, 32)
            assert tif.asarray().dtype == np.uint8


def test_second_run_costs_nothing_and_changes_nothing(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = {p: p.stat().st_mtime_ns for p in written.rglob("*")}
    monkeypatch.setattr(scroll, "make_volume", lambda *_: pytest.fail("a volume was made"))
    assert (
        scroll.main([str(written), "--size", "32", "--train", "4", "--test", "2", "--scrolls", "2"])
        == 0
    )
    assert "already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in written.rglob("*")} == before


def test_other_content_is_refused(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    assert scroll.main([str(tmp_path)]) == 2
    assert "not written by this command" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["diary.txt"]
    before = digest(written)
    assert scroll.main([str(written), "--size", "32"]) == 2
    assert "other options" in capsys.readouterr().err
    assert digest(written) == before


def test_damaged_data_set_is_refused(tmp_path: Path) -> None:
    options = scroll.Options(size=24, train=1, test=0, scrolls=1)
    scroll.write(tmp_path / "data", options)
    (tmp_path / "data" / "train_labels" / "260010000.tif").unlink()
    with pytest.raises(
        UserError, match=r"1 files are missing or changed: train_labels/260010000\.tif"
    ):
        scroll.write(tmp_path / "data", options)


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(scroll, "write_tiff", fail)
    with pytest.raises(OSError, match="no space"):
        scroll.write(tmp_path / "data", scroll.Options(size=24, train=1, test=0, scrolls=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad", [{"size": 8}, {"size": 5000}, {"train": 0}, {"scrolls": 0}, {"test": -1}, {"seed": -1}]
)
def test_options_out_of_range_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match=str(next(iter(bad.values())))):
        scroll.Options(**bad)


def test_labels_have_a_rim_and_patches_of_ignore(six: list) -> None:
    for _, image, label in six:
        assert image.shape == label.shape == (64, 64, 64)
        assert image.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) == {0, 1, 2}
        rim = np.pad(np.zeros((60,) * 3, bool), 2, constant_values=True)
        assert (label[rim] == 2).all()
        core = label[4:-4, 4:-4, 4:-4]
        assert not all(
            (face == 2).all()
            for axis in range(3)
            for face in (core.take(0, axis), core.take(-1, axis))
        )
        assert 0.05 < (core == 2).mean() < 0.40


def test_sheets_are_thin_several_and_apart(six: list) -> None:
    for _, _, label in six:
        sheet = label == 1
        # Largest distance to another value: half the thickness, and never more than two voxels and
        # a corner.
        assert 1 <= np.median(edt.edt(sheet, black_border=False)[sheet]) <= 2
        assert (edt.edt(sheet, black_border=False) > 2.5).sum() < 0.01 * sheet.sum()
        parts = np.bincount(cc3d.connected_components(sheet, connectivity=26).ravel())[1:]
        assert (parts > 300).sum() >= 2
        assert 0.08 < sheet.sum() / (label < 2).sum() < 0.30


def test_whole_sheets_have_no_cavities(six: list) -> None:
    for _, _, label in six:
        outside = np.pad(label != 1, 1, constant_values=True)
        assert cc3d.connected_components(outside, connectivity=26, return_N=True)[1] == 1


def test_sheets_are_brighter_than_what_lies_between(six: list) -> None:
    for _, image, label in six:
        assert image[label == 1].mean() > image[label == 0].mean() + 15


def test_no_global_threshold_solves_it(six: list) -> None:
    for _, image, label in six:
        assert 0.40 < best_threshold_dice([(image, label)]) < 0.70
    assert best_threshold_dice([(image, label) for _, image, label in six]) < 0.60


def test_scrolls_differ_and_a_scroll_stays_itself() -> None:
    first, second, again = (
        scroll.make_scroll(1, 0),
        scroll.make_scroll(1, 1),
        scroll.make_scroll(1, 0),
    )
    assert first.spacing == again.spacing
    assert np.array_equal(first.fibres, again.fibres)
    assert first.spacing != second.spacing
    assert 2 <= first.thickness <= 6
    assert 2 <= second.thickness <= 6


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.integers(4, 20))
def test_spline_basis_is_the_cubic_b_spline(positions: list[float], count: int) -> None:
    basis = scroll.spline_basis(np.array(positions), count)
    bump = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    for position, row in zip(positions, basis, strict=True):
        assert row.sum() == pytest.approx(1, abs=1e-6)
        # Coefficient k belongs to the knot at k - 1 and repeats every ``count``.
        offsets = (position - (np.arange(count) - 1) + count / 2) % count - count / 2
        assert row == pytest.approx(np.nan_to_num(bump(offsets)), abs=1e-5)


def test_field_is_smooth_with_unit_variance() -> None:
    axis = np.arange(0, 160, 1.0)
    field = scroll.noise_field(np.random.default_rng(0), pitch=10.0)((axis, axis, axis))
    assert field.shape == (160, 160, 160)
    assert field.std() == pytest.approx(1, abs=0.05)
    assert np.diff(field, axis=2).std() < 0.2  # 1.41 if neighbours were independent
    moved = scroll.noise_field(np.random.default_rng(0), pitch=10.0)((axis[:20] + 160, axis, axis))
    assert moved == pytest.approx(field[:20], abs=1e-4)  # it repeats after 16 coefficients
