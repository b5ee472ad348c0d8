"""MetaImage and NRRD: what ITK writes is read as ITK reads it, what is written here lies where its
input lay, and headers that lie or lead elsewhere are refused.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import model_file, noise, rows, run_evaluate, run_predict

import pipeline as pl
from pipeline import files, grid
from pipeline.data import cases, listing
from pipeline.records import Geometry

draw = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TYPES = [*(f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64)), "float32", "float64"]
ENDINGS = (".mha", ".mhd", ".nrrd", ".nhdr")


@st.composite
def placed_images(draw: st.DrawFn) -> sitk.Image:
    """Volumes of any type and channels in an oblique, flipped, anisotropic frame."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 7, 3))
    channels = draw(st.sampled_from([1, 1, 2, 3]))
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    array = (rng.random((*shape, channels)) * 100 - (dtype.kind != "u") * 50).astype(dtype)
    image = sitk.GetImageFromArray(array if channels > 1 else array[..., 0], isVector=channels > 1)
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    if draw(st.booleans()):  # straight, with axes swapped and flipped
        matrix = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    image.SetDirection(matrix.ravel().tolist())
    image.SetSpacing((10 ** rng.uniform(-2, 1, 3)).tolist())
    image.SetOrigin((rng.normal(size=3) * 100).tolist())
    return image


def as_ours(image: sitk.Image) -> np.ndarray:
    """``(C, X, Y, Z)`` of an image of ITK."""
    array = sitk.GetArrayFromImage(image)
    return (array[..., None] if array.ndim == image.GetDimension() else array).T


def in_world(image: sitk.Image, point: np.ndarray) -> np.ndarray:
    """RAS millimetres of a voxel, by ITK itself."""
    return np.array(image.TransformIndexToPhysicalPoint(point.tolist())) * (-1, -1, 1)


@draw
@given(image=placed_images(), packed=st.booleans(), ending=st.sampled_from(ENDINGS))
def test_itk_files_are_read_as_itk_reads_them(
    tmp_path: Path, image: sitk.Image, packed: bool, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(image, os.fspath(path), useCompression=packed)
    array, geometry = files.read(path, 3)
    np.testing.assert_array_equal(array, as_ours(image))
    assert array.dtype == as_ours(image).dtype
    assert array.flags.writeable
    probe = files.probe(path, 3)
    assert (probe.shape, probe.dtype) == (array.shape, array.dtype.name)
    assert files.geometry(path, 3) == geometry
    affine = np.array(grid.grid_of(geometry, 3).affine)
    corner = np.array(array.shape[1:]) - 1
    for point in (np.zeros(3, int), corner):
        expected = in_world(image, point)
        np.testing.assert_allclose((affine @ [*point, 1])[:3], expected, rtol=1e-9, atol=1e-6)


@draw
@given(image=placed_images(), ending=st.sampled_from([".mha", ".nrrd"]))
def test_answers_lie_where_their_input_lay_for_itk(
    tmp_path: Path, image: sitk.Image, ending: str
) -> None:
    sitk.WriteImage(image, os.fspath(tmp_path / "in.mha"))
    array, geometry = files.read(tmp_path / "in.mha", 3)
    out = tmp_path / f"out{ending}"
    files.write(out, array, geometry)
    written = sitk.ReadImage(os.fspath(out))
    np.testing.assert_array_equal(as_ours(written), array)
    exact = ending == ".mha"  # an NRRD holds spacing and direction as one vector
    for have, want in (
        (written.GetOrigin(), image.GetOrigin()),
        (written.GetSpacing(), image.GetSpacing()),
        (written.GetDirection(), image.GetDirection()),
    ):
        np.testing.assert_allclose(have, want, rtol=0 if exact else 1e-12, atol=1e-12)
    first = out.read_bytes()
    files.write(out, array, geometry)
    assert out.read_bytes() == first
    again, place = files.read(out, 3)
    np.testing.assert_array_equal(again, array)
    assert grid.near(place.meta["affine"], geometry.meta["affine"])


@draw
@given(image=placed_images(), ending=st.sampled_from([".mha", ".nrrd"]))
def test_worlds_are_those_of_nifti(tmp_path: Path, image: sitk.Image, ending: str) -> None:
    """One volume written by ITK as NIfTI and as another format is one volume here, and stays one
    where it is written across formats.
    """
    if image.GetNumberOfComponentsPerPixel() > 1:
        image = sitk.VectorIndexSelectionCast(image, 0)
    sitk.WriteImage(image, os.fspath(tmp_path / "a.nii.gz"))
    sitk.WriteImage(image, os.fspath(tmp_path / f"a{ending}"))
    (one, there), (two, here) = (files.read(tmp_path / f"a{s}", 3) for s in (".nii.gz", ending))
    np.testing.assert_array_equal(one, two)
    grids = [grid.grid_of(g, 3) for g in (there, here)]
    assert grids[0].codes == grids[1].codes
    assert grids[0].family == grids[1].family == "nifti"
    np.testing.assert_allclose(grids[0].spacing, grids[1].spacing, rtol=1e-5)
    found = grid.alignment(grids[1], two.shape[1:], grids[0], one.shape[1:])
    assert found is not None
    assert found.identity
    files.write(tmp_path / "b.nii.gz", two, here)
    np.testing.assert_allclose(
        nibabel.load(tmp_path / "b.nii.gz").affine, grids[1].affine, rtol=1e-5, atol=1e-4
    )
    files.write(tmp_path / f"b{ending}", one, there)
    assert grid.near(
        files.geometry(tmp_path / f"b{ending}", 3).meta["affine"], there.meta["affine"]
    )


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_volumes_of_other_orientations_are_mapped_exactly(
    tmp_path: Path, ending: str, codes: str
) -> None:
    image = sitk.GetImageFromArray(noise((4, 5, 6), seed=3))
    image.SetSpacing((0.5, 0.75, 2))
    image.SetOrigin((3, -40, 7))
    turned = sitk.DICOMOrient(image, codes)
    sitk.WriteImage(image, os.fspath(tmp_path / "a.nii.gz"))
    sitk.WriteImage(turned, os.fspath(tmp_path / f"b{ending}"))
    (one, there), (two, here) = (files.read(tmp_path / n, 3) for n in ("a.nii.gz", f"b{ending}"))
    source, target = grid.grid_of(here, 3), grid.grid_of(there, 3)
    assert source.codes == codes
    found = grid.alignment(source, two.shape[1:], target, one.shape[1:])
    assert found is not None
    np.testing.assert_array_equal(found.apply(two), one)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_2d(tmp_path: Path, ending: str, channels: int) -> None:
    array = noise((4, 5, channels), seed=2)
    image = sitk.GetImageFromArray(array if channels > 1 else array[..., 0], isVector=channels > 1)
    image.SetSpacing((0.25, 0.5))
    image.SetOrigin((3, 4))
    sitk.WriteImage(image, os.fspath(tmp_path / f"a{ending}"))
    read, geometry = files.read(tmp_path / f"a{ending}", 2)
    np.testing.assert_array_equal(read, array.T)
    assert grid.grid_of(geometry, 2).spacing == (0.25, 0.5)
    assert grid.grid_of(geometry, 2).codes is None
    assert "is an image" in str(files.probe(tmp_path / f"a{ending}", 3).problem)
    files.write(tmp_path / f"b{ending}", read, geometry)
    again = sitk.ReadImage(os.fspath(tmp_path / f"b{ending}"))
    assert (again.GetSpacing(), again.GetOrigin()) == (image.GetSpacing(), image.GetOrigin())
    np.testing.assert_array_equal(as_ours(again), read)
    files.write(tmp_path / "b.nii.gz", read, geometry)
    np.testing.assert_array_equal(files.read(tmp_path / "b.nii.gz", 2)[0], read)


def mha(*changes: tuple[str, str | None], pixels: bytes | None = None, tail: bytes = b"") -> bytes:
    """A MetaImage of 4 x 3 x 2 voxels with fields changed or, by None, taken away."""
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "1 2 3",
        "ElementSpacing": "1 1 2",
        "DimSize": "4 3 2",
        "ElementType": "MET_UCHAR",
        "ElementDataFile": "LOCAL",
    }
    last = dict(changes).get("ElementDataFile", "LOCAL")
    merged = {**fields, **dict(changes)}
    merged.pop("ElementDataFile")
    lines = [*((k, v) for k, v in merged.items() if v is not None), ("ElementDataFile", last)]
    head = "".join(f"{k} = {v}\n" for k, v in lines if v is not None)
    return head.encode() + (bytes(range(24)) if pixels is None else pixels) + tail


def nrrd(*changes: tuple[str, str | None], pixels: bytes | None = None) -> bytes:
    """An NRRD of 4 x 3 x 2 voxels with fields changed or, by None, taken away."""
    fields = {
        "type": "uint8",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "4 3 2",
        "space directions": "(1,0,0) (0,1,0) (0,0,2)",
        "kinds": "domain domain domain",
        "encoding": "raw",
        "space origin": "(1,2,3)",
    }
    merged = {**fields, **dict(changes)}
    head = "NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in merged.items() if v is not None)
    return head.encode() + b"\n" + (bytes(range(24)) if pixels is None else pixels)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (mha(pixels=bytes(23)), "announces 24 bytes of pixels, there are 23"),
        (mha(tail=bytes(9999)), "do not belong together"),
        (mha(("DimSize", "4 3 200000000000")), "truncated"),
        (mha(("DimSize", "4 3 -2")), "DimSize"),
        (mha(("DimSize", "4 3")), "3 whole numbers"),
        (mha(("NDims", "4"), ("DimSize", "4 3 2 1"), ("TransformMatrix", None)), "has 4 axes"),
        (mha(("ElementSpacing", "1 0 2")), "not all above 0"),
        (mha(("ElementSpacing", "1 nan 2")), "numbers are needed"),
        (mha(("TransformMatrix", "1 0 0 1 0 0 0 0 1")), "span the space"),
        (mha(("ElementType", "MET_STRING")), "MET_STRING"),
        (mha(("ElementDataFile", "/etc/passwd")), "outside its folder"),
        (mha(("ElementDataFile", "../other.raw")), "outside its folder"),
        (mha(("ElementDataFile", "slice%03d.raw 1 2 1")), "several files"),
        (mha(("ElementDataFile", "LIST")), "several files"),
        (mha(("ElementDataFile", "none.raw")), "does not exist"),
        (mha(("BinaryData", "False")), "as text"),
        (mha(("CompressedData", "maybe")), "not True or False"),
        (mha(("ElementToIntensityFunctionSlope", "2")), "scaled"),
        (mha(("CompressedData", "True"), pixels=gzip.compress(bytes(23), mtime=0)), "23 of 24"),
        (
            mha(("CompressedData", "True"), pixels=gzip.compress(bytes(25), mtime=0)),
            "more than the 24",
        ),
        (mha(("CompressedData", "True"), pixels=gzip.compress(bytes(24), mtime=0)[:-6]), "cut off"),
        (mha(("CompressedData", "True"), ("CompressedDataSize", "99")), "compressed bytes"),
        (b"ObjectType = Image\n" + mha(), "twice"),
        (b"no header at all", "is no MetaImage"),
    ],
)
def test_metaimages_that_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "in" / "a.mha"
    path.parent.mkdir()
    path.write_bytes(data)
    (tmp_path / "other.raw").write_bytes(bytes(24))
    with pytest.raises(files.FileError, match=words) as error:
        files.read(path, 3)
    assert error.value.suggestion


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (nrrd(pixels=bytes(23)), "announces 24 bytes of pixels, there are 23"),
        (nrrd(pixels=bytes(9999)), "do not belong together"),
        (nrrd(("sizes", "4 3 2000000000000")), "truncated"),
        (nrrd(("sizes", "4 3")), "3 whole numbers"),
        (nrrd(("type", "block")), "block"),
        (nrrd(("type", "short")), "byte order"),
        (nrrd(("encoding", "ascii")), "encoding"),
        (nrrd(("space directions", "(1,0,0) (0,1,0) (0,0,0)")), "length 0"),
        (nrrd(("space directions", "(1,0,0) (1,0,0) (0,0,2)")), "span the space"),
        (nrrd(("space directions", "(1,0,0) (0,1,0)")), "for 3 axes"),
        (nrrd(("space directions", "(1,0) (0,1) (1,1)")), "space of 2 axes"),
        (nrrd(("space directions", "(1,0,0) (0,nan,0) (0,0,2)")), "numbers are needed"),
        (nrrd(("kinds", "time domain domain")), "no space"),
        (nrrd(("data file", "/etc/passwd")), "outside its folder"),
        (nrrd(("data file", "../other.raw")), "outside its folder"),
        (nrrd(("data file", "LIST")), "several files"),
        (nrrd(("data file", "a%d.raw 1 2 1")), "several files"),
        (nrrd(("byte skip", "7")), "skipped"),
        (nrrd(("encoding", "gzip"), pixels=gzip.compress(bytes(23), mtime=0)), "23 of 24"),
        (nrrd(("encoding", "gzip"), pixels=b"no gzip"), "cannot be decoded"),
        (nrrd(("encoding", "bz2"), pixels=bz2.compress(bytes(25))), "more than the 24"),
        (nrrd(("encoding", None)), "no field 'encoding'"),
        (b"NRRD0009\n" + nrrd(), "is no NRRD"),
        (
            nrrd(
                ("dimension", "4"),
                ("sizes", "4 3 2 2"),
                ("space directions", None),
                ("space", None),
                ("space origin", None),
                ("kinds", None),
                pixels=bytes(48),
            ),
            "has 4 axes",
        ),
        (
            nrrd(
                ("dimension", "4"),
                ("sizes", "4 3 2 2"),
                ("space directions", "(1,0,0) (0,1,0) (0,0,2) none"),
                ("kinds", "domain domain domain time"),
                pixels=bytes(48),
            ),
            "kind time",
        ),
    ],
)
def test_nrrds_that_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "in" / "a.nrrd"
    path.parent.mkdir()
    path.write_bytes(data)
    (tmp_path / "other.raw").write_bytes(bytes(24))
    with pytest.raises(files.FileError, match=words) as error:
        files.read(path, 3)
    assert error.value.suggestion


def test_odd_headers_that_are_sound(tmp_path: Path) -> None:
    """Other names of fields, other worlds, units, channels behind space, bytes before pixels."""
    expected = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).T
    sound: dict[str, bytes] = {
        "a.mha": mha(("TransformMatrix", None), ("Rotation", "1 0 0 0 1 0 0 0 1")),
        "b.mha": mha(("Offset", None), ("Position", "1 2 3"), ("Comment", "by hand")),
        "c.mha": mha(tail=b"\n"),
        "d.nrrd": nrrd().replace(b"\n", b"\r\n", 9),
        "e.nrrd": nrrd(
            ("space", "RAS"),
            ("space directions", "(-1,0,0) (0,-1,0) (0,0,2)"),
            ("space origin", "(-1,-2,3)"),
        ),
        "f.nrrd": nrrd(("encoding", "bzip2"), pixels=bz2.compress(bytes(range(24)))),
        "g.nrrd": nrrd().replace(b"type:", b"# a comment\nname:=value: with colon\ntype:"),
        "h.nrrd": nrrd(
            ("space units", '"um" "um" "um"'),
            ("space directions", "(1000,0,0) (0,1000,0) (0,0,2000)"),
            ("space origin", "(1000,2000,3000)"),
        ),
    }
    for name, data in sound.items():
        (tmp_path / name).write_bytes(data)
        array, geometry = files.read(tmp_path / name, 3)
        np.testing.assert_array_equal(array[0], expected, err_msg=name)
        found = grid.grid_of(geometry, 3)
        assert (found.codes, found.spacing) == ("LPS", (1.0, 1.0, 2.0)), name
        assert np.array(found.affine)[:3, 3].tolist() == [-1, -2, 3], name
        files.write(tmp_path / f"again-{name}", array, geometry)
        assert files.geometry(tmp_path / f"again-{name}", 3) == geometry, name
    several = nrrd(
        ("dimension", "4"),
        ("sizes", "4 3 1 2"),
        ("space directions", "(1,0,0) (0,1,0) (0,0,2) none"),
        ("kinds", "domain domain domain list"),
    )
    (tmp_path / "i.nrrd").write_bytes(several)
    last = np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 4)
    np.testing.assert_array_equal(files.read(tmp_path / "i.nrrd", 3)[0], last.transpose(0, 3, 2, 1))
    (tmp_path / "j.mhd").write_bytes(mha(("ElementDataFile", "j.bin"), ("HeaderSize", "5"))[:-24])
    (tmp_path / "j.bin").write_bytes(b"12345" + bytes(range(24)))
    np.testing.assert_array_equal(files.read(tmp_path / "j.mhd", 3)[0][0], expected)
    (tmp_path / "k.mhd").write_bytes(mha(("ElementDataFile", "j.bin"), ("HeaderSize", "-1"))[:-24])
    np.testing.assert_array_equal(files.read(tmp_path / "k.mhd", 3)[0][0], expected)


@pytest.mark.parametrize("space", ["right", "left"])
@pytest.mark.parametrize("side", ["anterior", "posterior"])
def test_worlds_of_nrrd_are_those_of_itk(tmp_path: Path, space: str, side: str) -> None:
    path = tmp_path / "a.nrrd"
    name = f"{space}-{side}-superior"
    path.write_bytes(nrrd(("space", name), ("space directions", "(0,1,0) (-0.5,0,0) (0,0,2)")))
    if name == "right-posterior-superior":  # no name of the format
        assert grid.grid_of(files.geometry(path, 3), 3).codes is None
        return
    image = sitk.ReadImage(os.fspath(path))
    affine = np.array(grid.grid_of(files.geometry(path, 3), 3).affine)
    for point in ((0, 0, 0), (3, 2, 1)):
        np.testing.assert_allclose((affine @ [*point, 1])[:3], in_world(image, np.array(point)))


def test_what_a_file_does_not_say_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_bytes(mha(("TransformMatrix", None), ("Offset", None)))
    bare = (("space", None), ("space directions", None), ("space origin", None))
    (tmp_path / "a.nrrd").write_bytes(nrrd(*bare, ("spacings", "1 1 2")))
    (tmp_path / "b.nrrd").write_bytes(nrrd(*bare))
    for name, spacing in (("a.mha", (1, 1, 2)), ("a.nrrd", (1, 1, 2)), ("b.nrrd", None)):
        found = grid.grid_of(files.geometry(tmp_path / name, 3), 3)
        assert (found.family, found.codes, found.spacing) == ("nifti", None, spacing), name


def test_links_lead_to_pixels_beside_the_real_header_only(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "a.mhd").write_bytes(mha(("ElementDataFile", "a.raw"))[:-24])
    (real / "a.raw").write_bytes(bytes(24))
    (tmp_path / "linked.mhd").symlink_to(real / "a.mhd")
    assert files.probe(tmp_path / "linked.mhd", 3).problem is None
    (real / "b.mhd").write_bytes(mha(("ElementDataFile", "b.raw"))[:-24])
    (tmp_path / "secret.raw").write_bytes(bytes(24))
    (real / "b.raw").symlink_to(tmp_path / "secret.raw")
    assert "outside its folder" in str(files.probe(real / "b.mhd", 3).problem)
    (real / "c.mhd").write_bytes(mha(("ElementDataFile", "c.raw"))[:-24])
    os.mkfifo(real / "c.raw")
    assert "no regular file" in str(files.probe(real / "c.mhd", 3).problem)


def test_pixels_beside_a_header_belong_to_it(tmp_path: Path) -> None:
    """They are no files that are left over, and a change of them is a change of the case."""
    from pipeline.data.properties import file_stamp

    sitk.WriteImage(sitk.GetImageFromArray(noise((3, 4, 5))), os.fspath(tmp_path / "a.mhd"))
    sitk.WriteImage(sitk.GetImageFromArray(noise((3, 4, 5))), os.fspath(tmp_path / "b.nhdr"), True)
    found, others = listing.list_folder(tmp_path)
    assert [p.name for p in found] == ["a.mhd", "b.nhdr"]
    assert not others
    before = file_stamp(tmp_path / "a.mhd")
    os.utime(tmp_path / "a.raw", ns=(1, before["mtime_ns"] + 10**9))
    assert file_stamp(tmp_path / "a.mhd") != before


@pytest.mark.parametrize("ending", [".mhd", ".nhdr", ".dcm"])
def test_formats_that_are_only_read(tmp_path: Path, ending: str) -> None:
    with pytest.raises(pl.UserError, match=r"only read\. Write \.(mha|nrrd|nii\.gz) instead"):
        files.write(tmp_path / f"a{ending}", np.zeros((3, 4, 5), np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = {"layout": "folders", "family": "nifti", "codes": "RAS", "spacing": [1.0, 1.0, 2.0]}
    return model_file(tmp_path_factory.mktemp("model"), trained_on=trained)


def test_a_model_of_nifti_predicts_them_all_alike(model: Path, tmp_path: Path) -> None:
    """The answers are of the same voxels, in the format of the input where it can be written, with
    its origin, spacing and direction; scores of one against the other are perfect.
    """
    image = sitk.GetImageFromArray(noise((18, 17, 20), seed=5))
    image.SetSpacing((1, 1, 2))
    image.SetOrigin((-5, 8, 11))
    images = tmp_path / "images"
    images.mkdir()
    for name in ("n.nii.gz", "a.mha", "h.mhd", "r.nrrd", "d.nhdr"):
        turned = image if name != "a.mha" else sitk.DICOMOrient(image, "RAI")
        sitk.WriteImage(turned, os.fspath(images / name))
    assert run_predict(model, images, tmp_path / "out") == 0
    assert {row["output"] for row in rows(tmp_path / "out")} == {
        *("n.nii.gz", "a.mha", "h.mha", "r.nrrd", "d.nrrd")
    }
    expected = sitk.ReadImage(os.fspath(tmp_path / "out" / "n.nii.gz"))
    assert 0 < sitk.GetArrayFromImage(expected).mean() < 1
    for name in ("a.mha", "h.mha", "r.nrrd", "d.nrrd"):
        answer = sitk.ReadImage(os.fspath(tmp_path / "out" / name))
        if name == "a.mha":
            given_image = sitk.ReadImage(os.fspath(images / name))
            assert answer.GetDirection() == given_image.GetDirection() != image.GetDirection()
            assert answer.GetOrigin() == given_image.GetOrigin()
            answer = sitk.DICOMOrient(answer, "LPS")
        np.testing.assert_array_equal(as_ours(answer), as_ours(expected), err_msg=name)
        assert answer.GetOrigin() == image.GetOrigin()
        assert answer.GetSpacing() == image.GetSpacing()
        assert answer.GetDirection() == image.GetDirection()
    predictor = pl.Predictor.load(model, device="cpu")
    array = predictor.predict(images / "a.mha")
    np.testing.assert_array_equal(array, files.read(tmp_path / "out" / "a.mha", 3)[0][0])


def test_answers_and_labels_of_several_formats_are_compared_in_the_world(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray((noise((8, 9, 10), seed=7) > 120).astype(np.uint8))
    image.SetSpacing((1, 2, 3))
    turned = sitk.DICOMOrient(image, "PIR")
    for name, one, other in (
        ("a", ".nii.gz", ".mha"),
        ("b", ".nrrd", ".nii.gz"),
        ("c", ".mhd", ".nrrd"),
    ):
        for folder, given_image, ending in (("answers", image, one), ("dst", turned, other)):
            (tmp_path / folder).mkdir(exist_ok=True)
            sitk.WriteImage(given_image, os.fspath(tmp_path / folder / f"{name}{ending}"))
    assert run_evaluate(tmp_path, "--metrics", "dice", "hd95") == 0
    scores = json.loads((tmp_path / "out.json").read_text())
    assert scores["mean"]["dice"] == 1, scores
    assert scores["mean"]["hd95"] == 0
    assert len(scores["cases"]) == 3
    moved = sitk.Image(image)
    moved.SetOrigin((0, 0, 50))
    sitk.WriteImage(moved, os.fspath(tmp_path / "answers" / "a.nii.gz"))
    assert run_evaluate(tmp_path, "--metrics", "dice") != 0


def test_answers_from_saved_probabilities(model: Path, tmp_path: Path) -> None:
    from pipeline.inference import soft as softs

    sitk.WriteImage(sitk.GetImageFromArray(noise((18, 17, 20))), os.fspath(tmp_path / "a.mha"))
    trained = {"layout": "folders", "family": "nifti", "codes": "LPS", "spacing": [1.0, 1.0, 1.0]}
    other = model_file(tmp_path / "m", trained_on=trained)
    assert run_predict(other, tmp_path / "a.mha", tmp_path / "out", "--save-soft") == 0
    soft = softs.load_sound(tmp_path / "out" / "soft", "a")
    assert soft.geometry == files.geometry(tmp_path / "a.mha", 3)
    assert soft.meta.suffix == ".mha"
    path = tmp_path / "out" / "soft" / "a.json"
    text = path.read_text()
    for key, value in {
        "spacing": [1.0, 1.0],
        "directions": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        "origin": "here",
        "placed": 1,
        "unit": None,
        "affine": [[1.0, 0.0, 0.0, 0.0]] * 4,
    }.items():
        document = json.loads(text)
        document["geometry"]["meta"][key] = value
        path.write_text(json.dumps(document))
        with pytest.raises(pl.UserError, match="not a readable soft prediction"):
            softs.load(tmp_path / "out" / "soft", "a")


def test_channels_of_several_formats_are_one_case(tmp_path: Path) -> None:
    """As far as they lie at one place."""
    from pipeline.config import from_dict
    from pipeline.data.reading import load_image

    image = sitk.GetImageFromArray(noise((3, 4, 5)))
    image.SetOrigin((1, 2, 3))
    for name in ("c_0000.nii.gz", "c_0001.mha", "c_0002.nrrd"):
        sitk.WriteImage(image, os.fspath(tmp_path / name))
    data = from_dict({"name": "t", "network": "unet", "losses": ["dice"]}).data
    (case,) = cases.inputs(tmp_path, data)
    assert load_image(case, 3)[0].shape == (3, 5, 4, 3)
    image.SetOrigin((1, 2, 4))
    sitk.WriteImage(image, os.fspath(tmp_path / "c_0002.nrrd"))
    with pytest.raises(files.FileError, match="elsewhere in the world"):
        load_image(case, 3)
    files.write(tmp_path / "d.mha", noise((3, 4, 5)), Geometry(format="zarr"))
    assert grid.grid_of(files.geometry(tmp_path / "d.mha", 3), 3).codes is None
