"""A box of an image reads as the same slice of the whole, at its place in the world, whatever the
format; names that only look like it stay names.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import files, grid
from pipeline.data import properties
from pipeline.files import boxes, names
from pipeline.records import Geometry, UserError

AFFINE = np.array([[0.0, -0.5, 0.1, 7], [0.7, 0.0, 0.0, -3], [0.05, 0.0, 2.5, 11], [0, 0, 0, 1]])
VOLUMES = (".tif", ".tiff", ".npy", ".nii", ".nii.gz", ".mha", ".nrrd", ".ome.zarr", ".zarr")
PICTURES = (".png", ".tif", ".npy", ".mha", ".nrrd", ".ome.zarr", ".nii.gz")
SHAPE = (11, 9, 7)


def nifti_geometry(sform: int, qform: int, shape: tuple[int, ...]) -> Geometry:
    image = nibabel.Nifti1Image(np.zeros(shape, np.uint8), None)
    straight = AFFINE.copy()
    straight[:3, :3] = np.array([[0, -0.5, 0], [0.7, 0, 0], [0, 0, 2.5]])
    if sform:
        image.set_sform(AFFINE, sform)
    if qform:
        image.set_qform(straight, qform)
    image.header["pixdim"][1:4] = (0.7, 0.5, 2.5)
    with tempfile.TemporaryDirectory() as folder:
        nibabel.save(image, Path(folder) / "a.nii")
        return files.geometry(Path(folder) / "a.nii", 3)


def geometry_for(suffix: str) -> Geometry | None:
    if suffix.endswith("zarr"):
        meta = {"dims": 3, "version": "0.4", "scale": [2.0, 0.5, 0.25], "units": ["nanometer"] * 3}
        return Geometry(format="zarr", meta=meta | {"translation": [5.0, 0.0, -1.0]})
    if suffix in (".nii", ".nii.gz", ".mha", ".nrrd"):
        return nifti_geometry(1, 1, SHAPE)
    if suffix.startswith(".tif"):
        meta = {"dims": 3, "imagej": True, "resolution": [[3, 1], [4, 1]], "resolution_unit": 1}
        return Geometry(format="tiff", meta=meta | {"spacing": 2.5, "unit": "um"})
    return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One volume of one channel and one of two, in every format that can be written."""
    folder, rng = tmp_path_factory.mktemp("whole"), np.random.default_rng(0)
    found = {}
    for suffix in VOLUMES:
        for channels in (1, 2):
            path = folder / f"v{channels}{suffix}"
            array = rng.integers(0, 60000, (channels, *SHAPE), np.uint16)
            files.write(path, array, geometry_for(suffix), dims=3)
            found[f"{suffix}{channels}"] = path
    return found


def shifted(affine: list[list[float]], start: list[int]) -> np.ndarray:
    out = np.array(affine, float)
    out[:3, 3] += out[:3, :3] @ start
    return out


@pytest.mark.parametrize("suffix", VOLUMES)
@settings(max_examples=12)
@given(data=st.data())
def test_a_box_is_the_slice_of_the_whole(
    whole: dict[str, Path], suffix: str, data: st.DataObject
) -> None:
    path = whole[f"{suffix}{data.draw(st.sampled_from([1, 2]))}"]
    box: list[tuple[int, int] | None] = []
    for n in SHAPE:
        first = data.draw(st.integers(0, n - 1))
        end = data.draw(st.integers(first + 1, n))
        box.append(data.draw(st.sampled_from([None, (first, end)])))
    part = files.with_box(path, box)
    cut = tuple(slice(*pair) if pair else slice(None) for pair in box)
    start = [pair[0] if pair else 0 for pair in box]
    array, geometry = files.read(path, 3)
    mine, place = files.read(part, 3, labels=data.draw(st.booleans()))
    np.testing.assert_array_equal(mine, array[(slice(None), *cut)])
    assert mine.dtype == array.dtype
    assert mine.flags.c_contiguous
    assert mine.flags.writeable
    probe = files.probe(part, 3)
    assert (probe.shape, probe.dtype, probe.problem) == (mine.shape, str(mine.dtype), None)
    assert files.geometry(part, 3) == place
    with files.view(part, 3) as (rows, seen):
        assert seen == place
        assert rows.shape == mine.shape
        np.testing.assert_array_equal(rows[:, 0 : mine.shape[1]], mine)
        np.testing.assert_array_equal(rows[:, mine.shape[1] - 1 :], mine[:, -1:])
    if "affine" in geometry.meta:
        np.testing.assert_allclose(
            place.meta["affine"], shifted(geometry.meta["affine"], start), atol=1e-5
        )
        assert np.any(start) == (place.meta["affine"] != geometry.meta["affine"])
    elif "scale" in geometry.meta:
        moved = np.add(
            geometry.meta["translation"], np.multiply(geometry.meta["scale"], start)
        ).tolist()
        assert place.meta.get("translation", [0.0] * 3) == pytest.approx(moved)
    else:
        assert place == geometry


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("suffix", VOLUMES)
def test_a_box_that_is_written_lies_where_it_was_cut(
    whole: dict[str, Path], suffix: str, placed: bool, tmp_path: Path
) -> None:
    path = whole[f"{suffix}1"] if placed else tmp_path / f"a{suffix}"
    if not placed:
        files.write(path, np.random.default_rng(0).integers(0, 99, SHAPE, np.uint8))
    part = files.with_box(path, [(3, 8), None, (2, 6)])
    array, place = files.read(part, 3)
    files.write(tmp_path / f"b{suffix}", array, place)
    again, found = files.read(tmp_path / f"b{suffix}", 3)
    np.testing.assert_array_equal(again, array)
    if "affine" in place.meta:
        assert grid.near(found.meta["affine"], place.meta["affine"])
    else:
        assert found.meta.get("translation") == place.meta.get("translation")
    spacing = grid.grid_of(place, 3).spacing
    assert grid.grid_of(found, 3).spacing == (spacing and pytest.approx(spacing))
    assert grid.grid_of(found, 3).codes == grid.grid_of(place, 3).codes


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 1), (0, 0)])
def test_the_affines_of_nifti_move_as_its_header_says(
    sform: int, qform: int, tmp_path: Path
) -> None:
    """nibabel's slicer is the reference; where no form places the image, the affine follows from
    the shape, for nothing else is written.
    """
    path, array = tmp_path / "a.nii.gz", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    files.write(path, array[None], nifti_geometry(sform, qform, SHAPE))
    image = nibabel.load(path)
    mine, place = files.read(files.with_box(path, [(3, 9), (1, 5), None]), 3)
    reference = image.slicer[3:9, 1:5]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(mine[0], np.asanyarray(reference.dataobj))
    files.write(tmp_path / "b.nii.gz", mine, place)
    written = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(written.affine, place.meta["affine"], atol=1e-6)  # type: ignore[attr-defined]
    header = written.header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (sform, qform)  # type: ignore[index]
    if sform or qform:
        np.testing.assert_allclose(written.affine, reference.affine, atol=1e-5)  # type: ignore[attr-defined]
    else:
        plain = nibabel.Nifti1Image(mine[0], None)
        plain.header.set_zooms((0.7, 0.5, 2.5))
        np.testing.assert_allclose(written.affine, plain.header.get_best_affine(), atol=1e-6)  # type: ignore[attr-defined]
    if sform and qform:
        qform_of_slice = shifted(image.header.get_qform().tolist(), [3, 1, 0])  # type: ignore[attr-defined]
        np.testing.assert_allclose(header.get_qform(), qform_of_slice, atol=1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", PICTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_of_a_picture(suffix: str, channels: int, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (channels, 20, 30), np.uint8)
    path = tmp_path / f"p{suffix}"
    files.write(path, array, dims=2)
    part = files.with_box(path, [None, (5, 29)])
    mine, place = files.read(part, 2)
    np.testing.assert_array_equal(mine, array[:, :, 5:29])
    assert files.probe(part, 2).shape == mine.shape
    assert files.geometry(part, 2) == place
    with files.view(part, 2) as (rows, _):
        np.testing.assert_array_equal(rows[:, 3:9], mine[:, 3:9])
    files.write(tmp_path / f"q{suffix}", mine, place)
    assert files.read(tmp_path / f"q{suffix}", 2)[1].meta.get("affine") == place.meta.get("affine")


def test_a_turned_picture_is_cut_as_it_is_seen(tmp_path: Path) -> None:
    array = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
    tifffile.imwrite(tmp_path / "a.tif", array, extratags=[(274, 3, 1, 6, False)])
    whole = files.read(tmp_path / "a.tif", 2)[0]
    assert whole.shape == (1, 30, 20)
    part = files.with_box(tmp_path / "a.tif", [(25, 30), None])
    np.testing.assert_array_equal(files.read(part, 2)[0], whole[:, 25:])
    with files.view(part, 2) as (rows, _):
        np.testing.assert_array_equal(rows[:, 0:2], whole[:, 25:27])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0:2",
        "0:2x:x:x:",
        "0:2x:xx",
        "5:5x:x:",
        "7:3x:x:",
        "0:12x:x:",
        "0:2xx:",
        "99999999999:x:x:",
    ],
)
def test_what_is_no_box_is_refused_with_the_way_out(whole: dict[str, Path], text: str) -> None:
    path = whole[".tif1"]
    part = path.with_name(f"{path.name}#box={text}")
    found = files.probe(part, 3)
    assert found.problem is not None
    assert "11x9x7" in found.problem
    assert "#box=0:11x0:9x0:7" in found.suggestion
    for read in (files.read, files.geometry):
        with pytest.raises(files.FileError, match="box") as caught:
            read(part, 3)
        assert caught.value.path == part
    with pytest.raises(files.FileError, match="box"), files.view(part, 3):
        pass


def test_a_box_of_nothing_says_so(tmp_path: Path) -> None:
    part = tmp_path / "none.tif#box=0:1x:x:"
    assert files.probe(part, 3).problem == "does not exist"
    with pytest.raises(files.FileError, match="does not exist") as caught:
        files.read(part, 3)
    assert caught.value.path == part
    with pytest.raises(UserError, match="only be read"):
        files.write(part, np.zeros((2, 3, 4)))
    with pytest.raises(UserError, match="only be read"):
        files.write(tmp_path / "a.zarr#box=0:1x:x:", np.zeros((2, 3, 4)))


def test_names_that_only_look_like_boxes_are_names(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)
    for name in ("a#box=0:1x:x:.tif", "a#rows=0:2.tif", "#box=0:1x:x:.tif", "box=0:1x:x:.tif"):
        files.write(tmp_path / name, array)
        np.testing.assert_array_equal(files.read(tmp_path / name, 3)[0], array)
        assert files.stem(name) == name[:-4]
        assert files.split_selection(tmp_path / name) == (tmp_path / name, "")
        part = files.with_box(tmp_path / name, [(1, 2), None, None])
        np.testing.assert_array_equal(files.read(part, 3)[0], array[:, 1:])
        assert files.case_id(part) == name[:-4]
    for name in ("a.tif#", "a.tif#1", "a.tif#level=1", "a.tif#box=a", "a.tif#Box", "a.tif~"):
        assert not files.is_image(name)
        assert files.box_text(Path(name)) is None


def test_a_link_may_carry_the_box_in_its_name(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)
    (tmp_path / "links").mkdir()
    for suffix in (".tif", ".npy", ".mha", ".zarr"):
        files.write(tmp_path / f"a{suffix}", array)
        link = tmp_path / "links" / f"b{suffix}#box=1:2x:x:"
        link.symlink_to(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(files.read(link, 3)[0], array[:, 1:])
        assert files.case_id(link) == "b"
        with files.view(link, 3) as (rows, _):
            np.testing.assert_array_equal(rows[:, 0:1], array[:, 1:])


def test_a_box_of_a_level_and_of_a_link_to_a_level(tmp_path: Path) -> None:
    import zarr

    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="w", zarr_format=2)
    arrays = [np.arange(8 * 6 * 4).reshape(8, 6, 4), np.arange(4 * 3 * 2).reshape(4, 3, 2)]
    for n, array in enumerate(arrays):
        group.create_array(str(n), data=array.astype(np.uint16))
    scales = [[1.0, 1, 1], [2.0, 2, 2]]
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        for n, scale in enumerate(scales)
    ]
    axes = [{"name": n, "type": "space"} for n in "zyx"]
    group.attrs.update({"multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}]})
    (tmp_path / "l.zarr#level=1").symlink_to(tmp_path / "a.ome.zarr")
    for path in (tmp_path / "a.ome.zarr#level=1", tmp_path / "l.zarr#level=1"):
        part = files.with_box(path, [(1, 3), None, None])
        assert part.name.endswith("#level=1,box=1:3x:x:")
        array, place = files.read(part, 3)
        np.testing.assert_array_equal(array[0], arrays[1][1:3])
        assert place.meta["translation"] == [2.0, 0.0, 0.0]
        assert properties.file_stamp(part)["size"] > 0
    other = tmp_path / "a.ome.zarr#box=0:2x:x:,level=1"
    np.testing.assert_array_equal(files.read(other, 3)[0][0], arrays[1][:2])


@settings(max_examples=50)
@given(st.text(st.sampled_from("a.#:x0,=box\n@") | st.characters(codec="utf-8"), max_size=12))
def test_a_name_without_its_box_comes_back(text: str) -> None:
    name = f"{text.replace('/', '').replace(chr(0), '')}.tif"
    part = files.with_box(Path(name), [(0, 2), None, None])
    assert names.without_box(part.name) == name
    assert files.box_text(part) == "0:2x:x:"
    assert boxes.source(part) == Path(name)
    assert files.case_id(part) == files.case_id(name)


def test_stamps_tell_boxes_apart_and_follow_the_file(whole: dict[str, Path]) -> None:
    path = whole[".nii.gz1"]
    one, two = (files.with_box(path, [pair, None, None]) for pair in ((0, 4), (5, 9)))
    stamps = [properties.file_stamp(p) for p in (path, one, two)]
    assert len({s["name"] for s in stamps}) == 3
    assert len({(s["size"], s["mtime_ns"]) for s in stamps}) == 1
    assert all(s.keys() == stamps[0].keys() for s in stamps)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_whole_image_is_decoded_once_for_many_boxes(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.files import formats

    path = tmp_path / f"a{suffix}"
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(1, *SHAPE)
    files.write(path, array)
    form, count = formats._format(path), 0
    original = form.read

    def counted(*given: object) -> object:
        nonlocal count
        count += 1
        return original(*given)

    monkeypatch.setattr(form, "read", counted)
    files.forget()
    for first in range(5):
        part = files.read(files.with_box(path, [(first, first + 2), None, None]), 3)[0]
        part[:] = 0  # what was kept does not change with what was given
    assert count == 1
    files.write(path, array + 1)
    last = files.with_box(path, [(9, 11), None, None])
    np.testing.assert_array_equal(files.read(last, 3)[0], array[:, 9:] + 1)
    assert count == 2
    monkeypatch.setattr(boxes, "KEPT", 10)
    for _ in range(2):
        files.forget()
        files.read(last, 3)
    assert count == 4
    assert not boxes._decoded
    assert not boxes._locks


def test_reading_a_box_reads_no_more_rows_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.files import formats

    asked: list[tuple[int, int]] = []
    path = tmp_path / "a.npy"
    files.write(path, np.zeros((1, 100, 8, 8), np.uint8))
    original = formats._guarded_rows

    def recorded(path: Path, pixels: object) -> object:
        rows = original(path, pixels)  # type: ignore[arg-type]
        make = rows.make  # type: ignore[union-attr]
        rows.make = lambda first, end: asked.append((first, end)) or make(first, end)  # type: ignore[union-attr]
        return rows

    monkeypatch.setattr(formats, "_guarded_rows", recorded)
    monkeypatch.setattr(boxes, "SLAB", 10 * 64)
    assert files.read(files.with_box(path, [(35, 60), None, (2, 3)]), 3)[0].shape == (1, 25, 8, 1)
    assert asked == [(35, 45), (45, 55), (55, 60)]


def test_a_box_of_a_series_of_slices(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    from dicom_series import write_series

    volume = np.random.default_rng(0).integers(0, 2000, SHAPE).astype(np.int16)
    write_series(tmp_path / "scan 1", volume)
    whole, place = files.read(tmp_path / "scan 1", 3)
    part = files.with_box(tmp_path / "scan 1", [(2, 5), None, (4, 7)])
    assert part.name == "scan 1#box=2:5x:x4:7"
    assert files.case_id(part) == "scan 1"
    assert files.format_suffix(part) == ".dcm"
    array, found = files.read(part, 3)
    np.testing.assert_array_equal(array, whole[:, 2:5, :, 4:7])
    assert files.probe(part, 3).shape == array.shape
    np.testing.assert_allclose(found.meta["affine"], shifted(place.meta["affine"], [2, 0, 4]))
    assert properties.file_stamp(part)["files"] == SHAPE[2]
