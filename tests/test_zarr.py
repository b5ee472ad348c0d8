"""OME-Zarr and arrays that stay in their file: what is sliced is what is read, round trips keep
scale and axes, folders are whole or absent.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import small_models
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline as pl
from pipeline import files
from pipeline.config import from_dict
from pipeline.data import cases
from pipeline.files.pixels import Rows, slabs
from pipeline.records import Geometry

quick = settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
RNG = np.random.default_rng(0)


def ome(
    path: Path, array: np.ndarray, axes: str, version: str, entries: dict[str, Any] | None = None
) -> Path:
    """An OME-Zarr of one level as other programs write it, with a coarser one beside."""
    old = version == "0.4"
    group = zarr.open_group(path, mode="w", zarr_format=2 if old else 3)
    for name, level in (("full", array), ("half", array[..., ::2, ::2])):
        group.create_array(name, data=level, chunks=tuple(min(n, 7) for n in level.shape))
    kinds = {"t": "time", "c": "channel"}
    entry = {
        "axes": [
            {
                "name": a,
                "type": kinds.get(a, "space"),
                **({"unit": "micrometer"} if a in "zyx" else {}),
            }
            for a in axes
        ],
        "datasets": [
            {
                "path": name,
                "coordinateTransformations": [
                    {
                        "type": "scale",
                        "scale": [1.0 if a in kinds else "zyx".index(a) + factor for a in axes],
                    },
                    {
                        "type": "translation",
                        "translation": [0.0 if a in kinds else 5.0 for a in axes],
                    },
                ],
            }
            for name, factor in (("full", 2.0), ("half", 4.0))
        ],
        "coordinateTransformations": [
            {"type": "scale", "scale": [1.0 if a in kinds else 10.0 for a in axes]}
        ],
        **(entries or {}),
    }
    group.attrs.update(
        {"multiscales": [{**entry, "version": "0.4"}]}
        if old
        else {"ome": {"version": "0.5", "multiscales": [entry]}}
    )
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("axes", "shape", "dims", "wanted"),
    [
        ("zyx", (9, 20, 15), 3, (1, 9, 20, 15)),
        ("czyx", (2, 9, 20, 15), 3, (2, 9, 20, 15)),
        ("tczyx", (1, 2, 9, 20, 15), 3, (2, 9, 20, 15)),
        ("zcyx", (9, 2, 20, 15), 3, (2, 9, 20, 15)),
        ("yx", (20, 15), 2, (1, 20, 15)),
        ("tczyx", (1, 3, 1, 20, 15), 2, (3, 20, 15)),
    ],
)
def test_the_finest_level_of_other_programs_files(
    version: str,
    axes: str,
    shape: tuple[int, ...],
    dims: int,
    wanted: tuple[int, ...],
    tmp_path: Path,
) -> None:
    array = RNG.integers(0, 999, shape).astype(np.uint16)
    path = ome(tmp_path / "a.ome.zarr", array, axes, version)
    assert files.probe(path, dims) == files.Probe(shape=wanted, dtype="uint16", problem=None)
    read, geometry = files.read(path, dims)
    expected = array[0] if axes[0] == "t" else array
    if axes == "zcyx":
        expected = expected.swapaxes(0, 1)
    np.testing.assert_array_equal(read, expected.reshape(wanted))
    assert geometry == files.geometry(path, dims)
    space = "zyx"[3 - dims :]
    assert geometry.meta["scale"] == [10.0 * ("zyx".index(a) + 2) for a in space]
    assert geometry.meta["translation"] == [50.0] * dims
    assert geometry.meta["units"] == ["micrometer"] * dims
    json.dumps(geometry.meta)
    assert files.dims_of(path) == (3 if "z" in axes else 2)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("shape", [(1, 9, 20, 15), (3, 9, 20, 15), (1, 300, 40), (2, 30, 600)])
def test_an_answer_lies_where_its_input_lay(
    version: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    dims = len(shape) - 1
    names = "zyx"[3 - dims :]
    given_path = ome(tmp_path / "in.zarr", np.zeros(shape[1:], np.uint8), names, version)
    geometry = files.geometry(given_path, dims)
    answer = RNG.integers(0, 9, shape).astype(np.uint8)
    files.write(tmp_path / "out.ome.zarr", answer[0] if len(answer) == 1 else answer, geometry)
    read, place = files.read(tmp_path / "out.ome.zarr", dims)
    np.testing.assert_array_equal(read, answer)
    assert place == geometry
    document = "zarr.json" if version == "0.5" else ".zattrs"
    text = json.loads((tmp_path / "out.ome.zarr" / document).read_text())
    entry = (text["attributes"]["ome"] if version == "0.5" else text)["multiscales"][0]
    assert [a["name"] for a in entry["axes"]] == ["c"] * (len(answer) > 1) + list(names)
    assert len(entry["datasets"][0]["coordinateTransformations"][0]["scale"]) == len(entry["axes"])


def test_without_an_input_version_0_4_is_written(tmp_path: Path) -> None:
    files.write(tmp_path / "a.zarr", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    assert (
        json.loads((tmp_path / "a.zarr" / ".zattrs").read_text())["multiscales"][0]["version"]
        == "0.4"
    )
    assert files.geometry(tmp_path / "a.zarr", 3).meta["scale"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", [2, 3])
def test_plain_arrays(kind: int, tmp_path: Path) -> None:
    array = RNG.random((4, 5, 6), np.float32)
    zarr.create_array(tmp_path / "a.zarr", data=array, zarr_format=kind)  # type: ignore[arg-type]
    np.testing.assert_array_equal(files.read(tmp_path / "a.zarr", 3)[0][0], array)
    np.testing.assert_array_equal(files.read(tmp_path / "a.zarr", 2)[0], array)


def test_what_is_no_image_is_refused_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    ome(tmp_path / "series.zarr", np.zeros((3, 4, 5, 6), np.uint8), "tzyx", "0.4")
    ome(
        tmp_path / "old.zarr",
        np.zeros((4, 5, 6), np.uint8),
        "zyx",
        "0.4",
        {"axes": ["z", "y", "x"]},
    )
    for name, word in {
        "empty": "zarr.json",
        "group": "multiscales",
        "series": "3x4x5x6",
        "old": "before 0.4",
        "none": "not exist",
    }.items():
        found = files.probe(tmp_path / f"{name}.zarr", 3)
        assert found.problem, name
        assert word in found.problem + found.suggestion, found


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_level_is_chosen_in_the_path(version: str, tmp_path: Path) -> None:
    """With its own scale, of level and pyramid multiplied; nothing chosen is level 0."""
    array = RNG.integers(0, 999, (2, 9, 20, 16)).astype(np.uint16)
    path = ome(tmp_path / "a.ome.zarr", array, "czyx", version)
    chosen = {n: tmp_path / f"a.ome.zarr#level={n}" for n in (0, 1)}
    for given_path, level in ((path, 0), (chosen[0], 0), (chosen[1], 1)):
        read, geometry = files.read(given_path, 3)
        np.testing.assert_array_equal(read, array[..., ::2, ::2] if level else array)
        with files.view(given_path, 3) as (rows, _):
            np.testing.assert_array_equal(rows[:, 2:5], read[:, 2:5])
        factor = 4 if level else 2
        assert geometry.meta["scale"] == [10.0 * (factor + n) for n in range(3)]
        assert files.probe(given_path, 3).shape == read.shape
        assert files.case_id(given_path) == "a"
        files.write(tmp_path / "out.ome.zarr", read[0], geometry)
        assert files.geometry(tmp_path / "out.ome.zarr", 3) == geometry


@pytest.mark.parametrize("axes", ["tczyx", "zctyx", "cztyx", "yxtcz"])
def test_a_time_is_chosen_and_axes_go_by_name(axes: str, tmp_path: Path) -> None:
    size = {"t": 3, "c": 2, "z": 5, "y": 8, "x": 6}
    array = RNG.integers(0, 999, [size[a] for a in axes]).astype(np.uint16)
    path = ome(tmp_path / "a.zarr", array, axes, "0.4")
    found = files.probe(path, 3)
    assert "series of 3 times" in str(found.problem)
    assert "a.zarr#time=0" in found.suggestion
    for time in range(3):
        read, geometry = files.read(tmp_path / f"a.zarr#time={time}", 3)
        expected = array.transpose([axes.index(a) for a in "tczyx"])[time]
        np.testing.assert_array_equal(read, expected)
        assert geometry.meta["scale"] == [20.0, 30.0, 40.0]
        with files.view(tmp_path / f"a.zarr#time={time}", 3) as (rows, _):
            np.testing.assert_array_equal(rows[:, 1:3], expected[:, 1:3])


def test_axes_go_by_type_where_their_names_are_free(tmp_path: Path) -> None:
    array = RNG.integers(0, 99, (2, 3, 4, 5, 6)).astype(np.uint8)
    kinds = (("moment", "time"), ("stain", "channel"), *((n, "space") for n in "zyx"))
    entries = {"axes": [{"name": n, "type": t} for n, t in kinds]}
    ome(tmp_path / "a.zarr", array, "tczyx", "0.5", entries)
    np.testing.assert_array_equal(files.read(tmp_path / "a.zarr#time=1", 3)[0], array[1])


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("level=2", "has 2 levels, of which level 2 is none. Choose one from level=0"),
        ("time=3", "has 3 times, of which time 3 is none"),
        ("level=-1", "neither level=N nor time=N"),
        ("level=1,level=0", "neither level=N nor time=N"),
        ("channel=1", "neither level=N nor time=N"),
        ("", "neither level=N nor time=N"),
    ],
)
def test_choices_that_are_refused(choice: str, words: str, tmp_path: Path) -> None:
    ome(tmp_path / "a.zarr", np.zeros((3, 4, 8, 6), np.uint8), "tzyx", "0.4")
    with pytest.raises(files.FileError, match=words):
        files.read(tmp_path / f"a.zarr#{choice}", 3)
    ome(tmp_path / "b.zarr", np.zeros((4, 8, 6), np.uint8), "zyx", "0.4")
    with pytest.raises(files.FileError, match="no axis of time"):
        files.read(tmp_path / "b.zarr#time=0", 3)
    zarr.create_array(tmp_path / "c.zarr", data=np.zeros((4, 8, 6), np.uint8))
    with pytest.raises(files.FileError, match="plain array"):
        files.read(tmp_path / "c.zarr#level=0,time=0", 3)


def test_a_link_chooses_for_training(tmp_path: Path) -> None:
    array = RNG.integers(0, 99, (4, 8, 6)).astype(np.uint8)
    path = ome(tmp_path / "all" / "a.zarr", array, "zyx", "0.5")
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.zarr#level=1").symlink_to(path)
    data = from_dict({"name": "t", "network": "unet", "losses": ["dice"]}).data
    (case,) = cases.inputs(images, data)
    assert case.id == "a"
    np.testing.assert_array_equal(files.read(case.image[0], 3)[0][0], array[:, ::2, ::2])


def test_a_level_is_predicted_on_its_own_grid(tmp_path: Path) -> None:
    array = RNG.integers(0, 250, (17, 40, 36)).astype(np.uint8)
    path = ome(tmp_path / "a.ome.zarr", array, "zyx", "0.5")
    model = small_models.model_file(tmp_path / "m")
    chosen = path.with_name("a.ome.zarr#level=1")
    assert small_models.run_predict(model, chosen, tmp_path / "out") == 0
    (row,) = small_models.rows(tmp_path / "out")
    assert (row["id"], row["output"], row["shape"]) == ("a", "a.ome.zarr", [17, 20, 18])
    answer, geometry = files.read(tmp_path / "out" / "a.ome.zarr", 3)
    assert geometry == files.geometry(chosen, 3)
    predictor = pl.Predictor.load(model, device="cpu")
    np.testing.assert_array_equal(predictor.predict(str(chosen)), answer[0])
    assert small_models.run_predict(model, chosen, path / "out") == 2  # inside its own input


def test_names() -> None:
    assert [files.stem(n) for n in ("a/scan.1.ome.zarr", "b.zarr", "c.OME.ZARR")] == [
        "scan.1",
        "b",
        "c",
    ]
    assert files.suffix("a.ome.zarr") == ".ome.zarr"
    assert files.is_image("a.zarr")
    assert not files.is_image(".a.zarr")


def test_folders_are_found_as_cases(tmp_path: Path) -> None:
    data = from_dict({"name": "t", "network": "unet", "losses": ["dice"]}).data
    for name in ("b.ome.zarr", "a.zarr"):
        files.write(tmp_path / name, np.zeros((3, 4, 5), np.uint8))
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((3, 4, 5), np.uint8), photometric="minisblack")
    (tmp_path / "folder").mkdir()
    assert [c.id for c in cases.inputs(tmp_path, data)] == ["a", "b", "c"]
    assert [(c.id, c.image) for c in cases.inputs(tmp_path / "a.zarr", data)] == [
        ("a", (tmp_path / "a.zarr",))
    ]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    files.write(path, np.ones((3, 4, 5), np.uint8))
    files.write(path, np.full((3, 4, 5), 2, np.uint8))

    def broken(first: int, end: int) -> np.ndarray:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        files.write(path, Rows((1, 3, 4, 5), np.dtype(np.uint8), broken))
    assert int(files.read(path, 3)[0].min()) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    with files.whole(tmp_path / "x.zarr") as temp:
        files.write(temp, np.ones((1, 2, 2), np.uint8))
        left = tmp_path / temp.name.replace("-" + temp.name.split("-")[2] + "-", "-999999999-")
        left.mkdir()
        (left / "chunk").write_bytes(b"half")
    assert files.remove_stale_temps(tmp_path) == [left]
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]


# --- arrays that stay in their file ---------------------------------------------------------------

STACK = RNG.integers(0, 200, (11, 8, 10)).astype(np.uint8)
VIEWED = {
    "contiguous.tif": lambda p: tifffile.imwrite(p, STACK, photometric="minisblack"),
    "lzw.tif": lambda p: tifffile.imwrite(p, STACK, compression="lzw", photometric="minisblack"),
    "big.tif": lambda p: tifffile.imwrite(
        p, STACK.astype(np.uint16), bigtiff=True, byteorder=">", photometric="minisblack"
    ),
    "imagej.tif": lambda p: tifffile.imwrite(
        p, STACK.reshape(11, 1, 8, 10), imagej=True, metadata={"axes": "ZCYX"}
    ),
    "channels.tif": lambda p: tifffile.imwrite(
        p, np.stack([STACK, 255 - STACK]), metadata={"axes": "CZYX"}, photometric="minisblack"
    ),
    "hyper.tif": lambda p: tifffile.imwrite(
        p,
        np.stack([STACK, 255 - STACK], 1),
        imagej=True,
        metadata={"axes": "ZCYX"},
        compression="zlib",
    ),
    "colour.tif": lambda p: tifffile.imwrite(
        p,
        np.stack([STACK] * 3, -1),
        photometric="rgb",
        compression="zlib",
        metadata={"axes": "ZYXS"},
    ),
    "alpha.tif": lambda p: tifffile.imwrite(
        p,
        np.stack([STACK] * 4, -1),
        photometric="rgb",
        extrasamples=["unassalpha"],
        metadata={"axes": "ZYXS"},
    ),
    "ink.tif": lambda p: tifffile.imwrite(p, STACK > 99, photometric="miniswhite"),
    "float.npy": lambda p: np.save(p, STACK.astype(np.float32)),
    "four.npy": lambda p: np.save(p, np.stack([STACK] * 4).astype(">i2")),
    "plain.zarr": lambda p: zarr.create_array(p, data=STACK, chunks=(3, 5, 4)),
    "scan.nii.gz": lambda p: files.write(p, STACK),
    "scan.png": lambda p: files.write(p, STACK[0]),
    "flat.tif": lambda p: tifffile.imwrite(p, STACK[0], compression="zlib"),
    "rgb.tif": lambda p: tifffile.imwrite(p, np.stack([STACK[0]] * 3, -1), photometric="rgb"),
}


@quick
@given(
    name=st.sampled_from(sorted(VIEWED)),
    boxes=st.lists(st.lists(st.integers(0, 12), min_size=6, max_size=6), min_size=1, max_size=5),
)
@pytest.mark.usefixtures("tmp_path")
def test_slices_of_a_view_are_those_of_the_array(
    name: str, boxes: list[list[int]], tmp_path: Path
) -> None:
    path = tmp_path / name
    if not path.exists():
        VIEWED[name](path)
    dims = files.dims_of(path)
    whole, geometry = files.read(path, dims)
    with files.view(path, dims) as (pixels, place):
        assert (pixels.shape, pixels.dtype, len(pixels), place) == (
            whole.shape,
            whole.dtype,
            len(whole),
            geometry,
        )
        for box in boxes:
            key = (
                slice(None),
                *(
                    slice(min(a, b), max(a, b))
                    for a, b in zip(box[:dims], box[dims : 2 * dims], strict=True)
                ),
            )
            np.testing.assert_array_equal(pixels[key], whole[key])
        np.testing.assert_array_equal(pixels[0], whole[0])


@pytest.mark.parametrize("name", sorted(VIEWED))
def test_every_kind_of_view(name: str, tmp_path: Path) -> None:
    VIEWED[name](tmp_path / name)
    dims = files.dims_of(tmp_path / name)
    whole = files.read(tmp_path / name, dims)[0]
    with files.view(tmp_path / name, dims) as (pixels, _):
        parts = [pixels[:, a:b] for a, b in slabs(pixels, 3)]
        assert {p.dtype for p in parts} == {whole.dtype}
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_rows_already_there_are_not_read_again() -> None:
    asked: list[tuple[int, int]] = []
    array = np.arange(40 * 3).reshape(1, 40, 3)

    def make(first: int, end: int) -> np.ndarray:
        asked.append((first, end))
        return array[:, first:end]

    rows = Rows(array.shape, array.dtype, make)
    for first, end in ((0, 16), (0, 16), (8, 24), (10, 20), (24, 40), (0, 4)):
        np.testing.assert_array_equal(rows[:, first:end, 1:], array[:, first:end, 1:])
    assert asked == [(0, 16), (16, 24), (24, 40), (0, 4)]


def test_a_view_of_a_damaged_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[5].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + 30] = b"\xff" * 30
    path.write_bytes(bytes(data))
    with files.view(path, 3) as (pixels, _):
        np.testing.assert_array_equal(pixels[:, :5], STACK[None, :5])
        with pytest.raises(files.FileError):
            pixels[:, 4:7]
    path.write_bytes(bytes(data[:300]))
    with pytest.raises(files.FileError, match="truncated"), files.view(path, 3):
        pass


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".npy", ".nii.gz"])
@pytest.mark.parametrize("shape", [(1, 9, 20, 15), (3, 9, 20, 15), (1, 9, 20), (3, 9, 20)])
def test_rows_give_the_bytes_of_the_array(
    suffix: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.files.pixels.ROWS", 1)
    monkeypatch.setattr("pipeline.files.pixels.SLAB", 2000)
    array = RNG.integers(0, 9, shape).astype(np.uint8)
    geometry = Geometry(
        format="tiff", meta={"dims": len(shape) - 1, "imagej": suffix == ".tif", "spacing": 2.0}
    )
    rows = Rows(shape, array.dtype, lambda a, b: array[:, a:b])
    files.write(tmp_path / f"a{suffix}", array, geometry)
    files.write(tmp_path / f"b{suffix}", rows, geometry)
    if suffix == ".zarr":
        np.testing.assert_array_equal(files.read(tmp_path / "b.zarr", len(shape) - 1)[0], array)
    else:
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_of_many_compressed_streams_are_predicted(tmp_path: Path, version: int) -> None:
    """As bgzip writes them: gzip allows streams one behind the other."""
    volume = small_models.noise((16, 128, 128))
    gzip_2, gzip_3 = numcodecs.GZip(), zarr.codecs.GzipCodec()
    zarr.create_array(
        tmp_path / "images" / "many.zarr",
        shape=volume.shape,
        chunks=volume.shape,
        dtype=volume.dtype,
        zarr_format=version,
        compressors=gzip_2 if version == 2 else gzip_3,
    )[...] = volume
    (chunk,) = (
        path
        for path in (tmp_path / "images").rglob("*")
        if path.name in ("0.0.0", "0") and path.is_file()
    )
    raw = volume.tobytes()
    chunk.write_bytes(
        b"".join(gzip.compress(raw[n : n + 2000]) for n in range(0, len(raw), 2000))
        + bytes(300_000)
    )
    files.write(tmp_path / "images" / "one.tif", volume[None], dims=3)
    model = small_models.model_file(tmp_path)
    assert small_models.run_predict(model, tmp_path / "images", tmp_path / "out") == 0
    many, one = (
        files.read(tmp_path / "out" / row["output"], 3)[0]
        for row in small_models.rows(tmp_path / "out")
    )
    assert np.array_equal(many, one)
