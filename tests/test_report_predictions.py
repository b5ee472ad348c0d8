"""The report of a folder of predictions: right volumes, pictures in their colours, failures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from test_report import EVIL, check, decoded, gaps

from pipeline import colours, files, report, reporting
from pipeline.records import UserError
from pipeline.reporting import planes, predictions

SPACING = (0.5, 0.75, 4.0)


def nifti(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.diag([*SPACING, 1]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def labels() -> np.ndarray:
    """Three classes of 24 x 20 x 6 voxels: a box of 1, two pieces of 2, a speck of 3."""
    found = np.zeros((24, 20, 6), np.uint8)
    found[4:10, 4:10, 2:5] = 1
    found[14:17, 4:10, 2:4], found[14:17, 14:16, 2:4] = 2, 2
    found[20, 18, 3] = 3
    return found


def summary(folder: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    names = {"1": "liver", "2": "spleen", "3": EVIL}
    document = {"models": ["m"], "task": "labels", "classes": 4, "class_names": names,
                "postprocess": [], "inputs": len(rows), "files": rows}  # fmt: skip
    files.write_json(folder / "summary.json", {**document, **more})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two predicted volumes, the input of one of them gone, and a failure."""
    out = tmp_path / "predictions"
    rows: list[dict[str, Any]] = []
    image = np.random.default_rng(0).normal(size=(24, 20, 6)).astype(np.float32)
    for name in ("a", "b"):
        given = tmp_path / "images" / f"{name}.nii.gz"
        nifti(given, image)
        nifti(out / f"{name}.nii.gz", labels() if name == "a" else labels() * 0)
        nifti(out / f"{name}_visualization.nii.gz", labels() * 80)
        rows.append({"id": name, "file": str(given), "status": "done", "shape": [24, 20, 6],
                     "components": 4, "seconds": 1.5})  # fmt: skip
    rows.append({"id": "c", "file": "c.nii.gz", "status": "failed", "error": f"FileError: {EVIL}"})
    (tmp_path / "images" / "b.nii.gz").unlink()
    summary(out, rows)
    return out


def cells(text: str, row: str) -> list[str]:
    """Texts of a row of the table of volumes."""
    table = re.split("<h2>(?:Volumes|Areas)", text)[1].partition("<h2>")[0]
    (found,) = re.findall(rf">{row}</th>(.*?)</tr>", table)
    return [re.sub("<[^>]+>", " ", c).strip() for c in re.findall(r"<td[^>]*>(.*?)</td>", found)]


def test_volumes_are_those_of_the_files(folder: Path) -> None:
    text = reporting.build_predictions(folder)
    check(text)
    ml = np.prod(SPACING) / 1000
    for name, array in (("a", labels()), ("b", labels() * 0)):
        *sizes, components = cells(text, name)
        wanted = [*((array == v).sum() for v in (1, 2, 3)), (array > 0).sum()]
        assert [int(s.split()[0].replace(",", "")) for s in sizes] == wanted
        assert [float(s.split()[1]) for s in sizes] == pytest.approx(
            [w * ml for w in wanted], rel=1e-3
        )
        assert components == "4"
    assert "<span>without foreground</span><b>1</b>" in text
    assert "no truth" in text
    assert "<script" not in text
    assert "not a medical device" in text


def test_components_of_each_class_are_counted(folder: Path) -> None:
    card = reporting.build_predictions(folder).partition("<h3>a</h3>")[2].partition("</article>")[0]
    rows = re.findall(r"</span>([^<]+)</th>.*?data-title=\"components\">(\d+)<", card)
    assert [int(n) for _, n in rows] == [1, 2, 1]
    assert [name for name, _ in rows][:2] == ["liver", "spleen"]


def test_failures_and_what_is_missing_are_stated(folder: Path) -> None:
    nifti(folder / "foreign.nii.gz", labels())
    files.write_json(
        folder / "summary.json", {**files.read_json(folder / "summary.json"), "inputs": 9}
    )
    text = reporting.build_predictions(folder)
    failed = text.partition("<h2>Failed")[2].partition("<h2>")[0]
    assert ">c</th>" in failed
    assert "FileError: &lt;script&gt;" in failed
    assert gaps(text) == [
        "the last command ended after 3 of 9 files; run it again",
        "in the folder but not in summary.json: foreign",
    ]
    assert "b.nii.gz is no longer there: shown on black" in text
    assert "input not named: shown on black" in text


def test_three_slices_in_the_colours_of_the_legend(folder: Path) -> None:
    """Upright, with square pixels: of 12 x 15 x 24 mm, whatever the voxels are."""
    text = reporting.build_predictions(folder)
    card = text.partition("<h3>a</h3>")[2].partition("</article>")[0]
    shown = decoded(card)
    assert [s.shape[0] / s.shape[1] for s in shown] == pytest.approx(
        [15 / 12, 24 / 12, 24 / 15], rel=0.02
    )
    assert re.findall(r"<figcaption>(\w+), slice", card) == ["axial", "coronal", "sagittal"]
    legend = text.partition('class="legend"')[2].partition("</p>")[0]
    keyed = re.findall(r"background:rgb\((\d+), (\d+), (\d+)\)\"></i>(\w*)", legend)
    assert [tuple(map(int, k[:3])) for k in keyed] == list(colours.CLASSES[:3])
    assert [k[3] for k in keyed][:2] == ["liver", "spleen"]
    axial = shown[0].astype(int)
    box = axial.shape[1] / 24, axial.shape[0] / 20
    for value, (x, y) in {1: (7, 6), 2: (15, 6)}.items():
        # To the patient's left and back: both axes of RAS are turned.
        pixel = axial[round((20 - y - 0.5) * box[1]), round((24 - x - 0.5) * box[0])]
        colour = pixel - np.array(colours.CLASSES[value - 1]) * 0.6
        assert np.ptp(colour) < 3, "the colour of the class over a grey"
    black = decoded(text.partition("<h3>b</h3>")[2].partition("</article>")[0])
    assert all((s == 0).all() for s in black), "no input, no foreground"


def test_inputs_of_an_ensemble_are_found_in_its_members(folder: Path, tmp_path: Path) -> None:
    fused = tmp_path / "fused"
    nifti(fused / "a.nii.gz", labels())
    row = {"id": "a", "status": "done", "shape": [24, 20, 6]}
    document = {"members": [{"folder": str(folder), "weight": 1.0}], "fusion": "mean",
                "task": "labels", "classes": 4, "inputs": 1, "files": [row]}  # fmt: skip
    files.write_json(fused / "summary.json", document)
    text = reporting.build_predictions(fused)
    check(text)
    assert "shown on black" not in text
    assert "1 member, fusion mean" in text
    assert "class 3" in text


def test_pictures_of_two_dimensions(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 30, 40)).astype(np.uint8)
    answer = np.zeros((1, 30, 40), np.uint8)
    answer[0, 5:9] = 1
    files.write(tmp_path / "in" / "x.png", image, dims=2)
    out = tmp_path / "out"
    files.write(out / "x.png", answer, dims=2)
    files.write(out / "x_overlay.png", image, dims=2)
    row = {"id": "x", "file": str(tmp_path / "in" / "x.png"), "status": "done", "shape": [30, 40]}
    summary(out, [row], classes=2, class_names=None)
    text = reporting.build_predictions(out)
    check(text)
    shown = decoded(text)
    assert len(shown) == 2, "the overlay is no prediction"
    factor = shown[0].shape[0] // 30
    assert np.array_equal(shown[0][0::factor, 0::factor].shape[:2], (30, 40))
    sky = np.array(colours.SKY) * 0.6
    inside = shown[1][6 * factor + 1, ::factor].astype(float) - sky
    assert (np.ptp(inside, axis=1) < 3).all()
    assert cells(text, "x")[0] == str(4 * 40)
    assert "foreground</span>" in text.partition('class="legend"')[2].partition("</p>")[0]


@pytest.mark.parametrize("dims", [2, 3])
def test_images_are_shown_beside_their_inputs(tmp_path: Path, dims: int) -> None:
    size = (3, 30, 40) if dims == 2 else (1, 10, 12, 14)
    suffix = ".png" if dims == 2 else ".tif"
    image = np.random.default_rng(0).integers(0, 120, size).astype(np.uint8)
    given, out = tmp_path / f"x{suffix}", tmp_path / "out"
    files.write(given, image, dims=dims)
    files.write(out / f"x{suffix}", image * 2, dims=dims)
    if dims == 2:
        files.write(out / "masks" / "x.png", np.full((1, 30, 40), 255, np.uint8), dims=2)
    row = {"id": "x", "file": str(given), "status": "done", "shape": list(size[1:])}
    files.write_json(out / "summary.json", {"models": ["m"], "task": "image", "files": [row]})
    text = reporting.build_predictions(out)
    check(text)
    shown = decoded(text)
    assert "<h2>Volumes" not in text
    if dims == 2:
        assert re.findall(r"<figcaption>(\w+)<", text) == ["input", "output", "mask"]
        assert (shown[2] == 255).all()
    else:
        assert len(shown) == 6
    assert np.array_equal(shown[0].astype(int) * 2, shown[1].astype(int)), "one scale for both"


def test_numbered_objects_are_counted_and_are_no_classes(folder: Path) -> None:
    steps = [{"name": "instances", "options": {}}]
    document = files.read_json(folder / "summary.json")
    files.write_json(
        folder / "summary.json", {**document, "postprocess": steps, "class_names": None}
    )
    text = reporting.build_predictions(folder)
    check(text)
    assert cells(text, "a")[-1] == "3"
    assert "class 1" not in text


def test_what_is_too_large_is_listed_and_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "available_memory", lambda: 3000)
    text = reporting.build_predictions(folder)
    check(text)
    assert any("as its format is read whole" in gap for gap in gaps(text))
    monkeypatch.setattr(predictions, "MOST_VOXELS", 10)
    assert any("reports read up to 10" in gap for gap in gaps(reporting.build_predictions(folder)))


def test_volumes_in_slabs_fit_however_little_memory_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "available_memory", lambda: 3000)
    files.write(tmp_path / "a.tif", labels())
    row = {"id": "a", "status": "done", "shape": [24, 20, 6]}
    summary(tmp_path, [row])
    text = reporting.build_predictions(tmp_path)
    assert cells(text, "a")[0] == str((labels() == 1).sum())
    assert len(decoded(text)) == 3


def test_many_predictions_are_shown_from_the_least_to_the_most(tmp_path: Path) -> None:
    rows = []
    for n in range(30):
        answer = np.zeros((4, 5, 6), np.uint8)
        answer.ravel()[: 3 * n] = 1
        files.write(tmp_path / f"x{n}.tif", answer)
        rows.append({"id": f"x{n}", "status": "done", "shape": [4, 5, 6]})
    summary(tmp_path, rows, classes=2)
    text = reporting.build_predictions(tmp_path)
    shown = [int(n) for n in re.findall(r"<h3>x(\d+)</h3>", text)]
    assert len(shown) == 12
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (0, 29)
    assert "18 more are not shown" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_what_is_no_label_is_said(folder: Path, value: float) -> None:
    array = labels().astype(np.float32)
    array[0, 0, 0] = value
    nifti(folder / "a.nii.gz", array)
    text = reporting.build_predictions(folder)
    check(text)
    assert any(f"holds {value}, which is no label" in gap for gap in gaps(text))


def test_the_largest_of_many_classes_are_listed(tmp_path: Path) -> None:
    array = np.repeat(np.arange(4000, dtype=np.uint16), np.arange(4000) // 100 + 1)
    array = np.resize(array, (40, 40, len(array) // 1600))
    files.write(tmp_path / "a.tif", array)
    row = {"id": "a", "status": "done", "shape": list(array.shape)}
    summary(tmp_path, [row], classes=10**8, class_names=None)
    text = reporting.build_predictions(tmp_path)
    check(text)
    assert "The largest 32 of" in text
    assert len(text) < 10**6


def test_summaries_of_other_hands_are_read_as_far_as_they_go(folder: Path) -> None:
    document = files.read_json(folder / "summary.json")
    document["files"][0]["file"] = "x" * 5000
    files.write_json(folder / "summary.json", {**document, "models": 5, "members": [1, {"a": 2}]})
    text = reporting.build_predictions(folder)
    check(text)
    assert "shown on black" in text


def test_damaged_files_leave_a_sound_page(folder: Path) -> None:
    (folder / "a.nii.gz").write_bytes(b"nothing")
    text = reporting.build_predictions(folder)
    check(text)
    assert any(gap.startswith("volumes of a") for gap in gaps(text))


def test_command_writes_the_page_of_predictions(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert report.main([str(folder)]) == 0
    assert (folder / "report.html").read_text(encoding="utf-8") == reporting.build_predictions(
        folder
    )
    assert "report.html" in capsys.readouterr().out
    files.write_json(folder / "summary.json", {"models": [], "files": [{"no": "id"}]})
    assert report.main([str(folder)]) == 2
    assert "no summary of predictions" in capsys.readouterr().err


def test_a_folder_that_is_written_is_refused(folder: Path) -> None:
    from pipeline.inference.outputs import owned
    from pipeline.workflows.report import write_report

    with owned(folder), pytest.raises(UserError, match="is being written by"):
        write_report(folder)


def test_large_pictures_stay_small_files(tmp_path: Path) -> None:
    answer = np.random.default_rng(0).integers(0, 2, (60, 600, 700)).astype(np.uint8)
    files.write(tmp_path / "a.tif", answer)
    summary(tmp_path, [{"id": "a", "status": "done", "shape": [60, 600, 700]}], classes=2)
    text = reporting.build_predictions(tmp_path)
    assert max(max(s.shape) for s in decoded(text)) <= planes.LARGE
    assert len(text) < 2**20
