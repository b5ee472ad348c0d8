"""One look at a data set: files are decoded once, facts are right, and what is odd is said."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage
from worlds import affine_of, save, scan

from pipeline import files
from pipeline.data import cases, intensities, properties
from pipeline.files import FileError, formats
from pipeline.planning.arrangement import arrange
from pipeline.planning.fingerprint import CaseFacts, ChannelFacts, Fingerprint, Oddity
from pipeline.planning.look import fingerprint_of
from pipeline.planning.observing import MOST, measure, observe, thinned
from pipeline.planning.oddities import far
from pipeline.planning.stored import as_json, from_json, read
from pipeline.planning.tables import LINES, WIDTH, table
from pipeline.records import UserError

LABELS = {"background": 0, "LeftLung": 1, "liver": 2}


def nnunet(root: Path, count: int = 6, **change: Any) -> Path:
    """Scans of int16 in the nnU-Net layout; ``change`` holds functions of (seed, image, label)."""
    for n in range(count):
        image, label = scan(n)
        for name, edit in change.items():
            if name == f"c{n}":
                image, label = edit(image, label)
        save(root / "imagesTr" / f"c{n}_0000.nii.gz", image, affine_of((1, 1, 2)))
        save(root / "labelsTr" / f"c{n}.nii.gz", label, affine_of((1, 1, 2)))
    document = {"labels": LABELS, "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(document))
    return root


def texts(found: Fingerprint, case: str) -> str:
    return "\n".join(o.text for o in found.oddities if o.case == case)


def pieces(mask: np.ndarray) -> int:
    """Components whose corners may touch."""
    _, count = ndimage.label(mask, np.ones((3, 3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    return int(count)


def test_facts_are_those_of_the_arrays(tmp_path: Path) -> None:
    found = fingerprint_of(arrange(nnunet(tmp_path)))
    assert (found.layout, found.dims, found.task, found.classes) == ("nnunet", 3, "labels", 3)
    assert found.class_names == {1: "LeftLung", 2: "liver"}
    assert [c.id for c in found.cases] == [f"c{n}" for n in range(6)]
    pooled = []
    for n, case in enumerate(found.cases):
        image, label = scan(n)
        assert case.shape == image.shape
        assert case.spacing == pytest.approx((1, 1, 2))
        assert (case.codes, case.dtype, case.family) == ("RAS", "int16", "nifti")
        where = np.nonzero(image)
        assert case.box == tuple(int(w.max() - w.min()) + 1 for w in where)
        assert case.voxels == {v: int((label == v).sum()) for v in np.unique(label).tolist()}
        for value in (1, 2):
            inside = label == value
            assert case.components[value] == pieces(inside)
            centre = (np.array(ndimage.center_of_mass(inside)) + 0.5) / inside.shape
            np.testing.assert_allclose(case.centres[value], centre, atol=1e-4)
            box = ndimage.find_objects(inside.astype(int))[0]
            assert case.extents[value] == tuple(s.stop - s.start for s in box)
        pooled.append(image[label > 0])
    values = np.concatenate(pooled)
    channel = found.channels[0]
    at = np.percentile(values, (0, 0.5, 50, 99.5, 100))
    facts = (channel.minimum, channel.low, channel.median, channel.high, channel.maximum)
    np.testing.assert_allclose(facts, at)
    assert channel.name == "MRI"
    assert (channel.mean, channel.std) == pytest.approx((values.mean(), values.std()))
    assert channel.spread == pytest.approx(np.std([v.mean() for v in pooled]) / values.std())
    assert not found.oddities


def test_each_file_is_decoded_once_in_however_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrangement, seen, read_file = arrange(nnunet(tmp_path)), Counter[Path](), formats.read

    def counting(path: Path, *args: Any, **options: Any) -> Any:
        seen[path] += 1
        return read_file(path, *args, **options)

    monkeypatch.setattr(files, "read", counting)
    steps = []
    one = fingerprint_of(arrangement, lambda done, total: steps.append((done, total)), workers=1)
    assert set(seen.values()) == {1}
    assert len(seen) == 12
    assert steps == [(n, 6) for n in range(1, 7)]
    many = fingerprint_of(arrangement, workers=4)
    assert as_json(many)["channels"] == as_json(one)["channels"]


def test_an_observer_changes_no_property(tmp_path: Path) -> None:
    arrangement = arrange(nnunet(tmp_path, 2))
    config, seen = arrangement.config, list[Any]()
    found = cases.find(config.data, config.roles, tmp_path).train
    plain = properties.examine(found, config, cache=None)
    assert plain == [properties.examine_one(case, config, seen.append) for case in found]
    for n, arrays_of_case in enumerate(seen):
        np.testing.assert_array_equal(arrays_of_case["image"][0], scan(n)[0])
        np.testing.assert_array_equal(arrays_of_case["label"][0], scan(n)[1])


def test_files_that_cannot_be_used_do_not_stop_it(tmp_path: Path) -> None:
    root = nnunet(
        tmp_path,
        8,
        c1=lambda image, label: (image, label[:-1]),
        c2=lambda image, label: (np.full_like(image, 7), label),
        c3=lambda image, label: (image, label * 0),
        c4=lambda image, label: (image, np.where(label == 2, 9, label).astype(np.uint8)),
        c5=lambda image, label: (scan(0)[0], label),
        c6=lambda image, label: (np.where(image > 600, np.nan, image).astype("f4"), label),
    )
    (root / "imagesTr" / "c7_0000.nii.gz").write_bytes(b"no image")
    found = fingerprint_of(arrange(root))
    assert [c.id for c in found.cases] == [f"c{n}" for n in range(7)]
    refused = {o.case for o in found.oddities if o.severity == "error"}
    assert refused == {"c1", "c2", "c4", "c6", "c7"}
    assert "has shape" in texts(found, "c1")
    assert "constant" in texts(found, "c2")
    assert "no foreground" in texts(found, "c3")
    assert "outside 0 to 2: 9" in texts(found, "c4")
    assert "same image as other cases: c0, c5" in texts(found, "c0")
    assert "NaN" in texts(found, "c6")
    assert all(o.path for o in found.oddities if o.severity == "error")
    assert "int16, 1 float32 (c6)" in texts(found, "")
    assert "class 2 (liver) is in 5" in texts(found, "")


def test_nothing_readable_is_refused_in_words(tmp_path: Path) -> None:
    root = nnunet(tmp_path, 2)
    arrangement = arrange(root)
    for path in (root / "imagesTr").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of its 2 cases can be read"):
        fingerprint_of(arrangement)
    for path in (root / "imagesTr").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no case"):
        fingerprint_of(arrangement)


def test_cases_far_from_the_rest(tmp_path: Path) -> None:
    root = nnunet(
        tmp_path,
        7,
        c3=lambda image, label: (np.tile(image, (1, 1, 3)), np.tile(label, (1, 1, 3))),
        c5=lambda image, label: (image * 10, label),
        c6=lambda image, label: (image, label * 0 + 1),
    )
    found = fingerprint_of(arrange(root))
    assert "has 18x20x48 voxels, the median is 18x20x16" in texts(found, "c3")
    assert "mean intensity" in texts(found, "c5")
    assert "is class 1 (LeftLung) in every voxel" in texts(found, "c6")
    assert {o.case for o in found.oddities} == {"", "c3", "c5", "c6"}


def test_orientations_and_spacings(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    image, label = scan(3)
    save(root / "imagesTr" / "c3_0000.nii.gz", image, affine_of((3, 1, 2)), "LPS")
    save(root / "labelsTr" / "c3.nii.gz", label, affine_of((3, 1, 2)), "LPS")
    found = fingerprint_of(arrange(root))
    assert found.cases[3].codes == "LPS"
    assert not found.oddities, "a plan brings them together"


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_white_is_class_one(tmp_path: Path, suffix: str) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for n in range(3):
        image = np.random.default_rng(n).integers(0, 256, (24, 40, 3), np.uint8)
        mask = np.zeros((24, 40), np.uint8)
        mask[7:17, 9:23] = 255
        mask[7:17, 32:39] = 255
        Image.fromarray(image).save(tmp_path / "images" / f"{n}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{n}{suffix}", quality=80)
    found = fingerprint_of(arrange(tmp_path))
    assert (found.classes, found.dims, len(found.channels)) == (2, 2, 3)
    assert found.folders == {"image": "images", "label": "masks"}
    assert found.binarise == (127 if suffix == ".jpg" else None)
    for case in found.cases:
        assert case.components == {1: 2}
        assert abs(case.voxels[1] - 210) <= (20 if suffix == ".jpg" else 0)
    assert not found.oddities


def test_pairs_have_no_classes(tmp_path: Path) -> None:
    for n in range(4):
        image = np.random.default_rng(n).integers(0, 256, (20, 22, 3), np.uint8)
        for folder in ("src", "dst", "test_images"):
            (tmp_path / folder).mkdir(exist_ok=True)
            name = f"t{n}.png" if folder == "test_images" else f"{n}.png"
            Image.fromarray(image).save(tmp_path / folder / name)
    found = fingerprint_of(arrange(tmp_path))
    assert (found.task, found.tests) == ("image", 4)
    assert found.cases[0].voxels == {}
    assert found.channels[0].maximum > 200


@pytest.mark.parametrize(
    ("values", "said"),
    [((0, 128, 255), "253 of them occur nowhere"), ((0, 1, 255), "ignore_label: 255")],
)
def test_classes_with_gaps(tmp_path: Path, values: tuple[int, ...], said: str) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for n in range(3):
        image = np.random.default_rng(n).integers(0, 256, (20, 20, 3), np.uint8)
        mask = np.repeat(np.array(values, np.uint8), 7)[:20] * np.ones((20, 1), np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{n}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{n}.png")
    found = fingerprint_of(arrange(tmp_path))
    assert set(found.cases[0].voxels) == set(values)
    assert said in texts(found, "")


# --- one case -------------------------------------------------------------------------------------


@given(arrays.arrays(np.int64, (5, 6, 4), elements=st.sampled_from([-1, 0, 1, 2, 7, 2**40])))
def test_measures_against_scipy(labels: np.ndarray) -> None:
    found: dict[str, Any] = measure(labels, ignored=-1)
    values = np.unique(labels).tolist()
    assert found["voxels"] == {v: int((labels == v).sum()) for v in values}
    assert set(found["components"]) == {v for v in values if v > 0}
    assert found["values"] == len(found["components"])
    for value, count in found["components"].items():
        assert count == pieces(labels == value)
        centre = (np.array(ndimage.center_of_mass(labels == value)) + 0.5) / labels.shape
        np.testing.assert_allclose(found["centres"][value], centre, atol=1e-4)


def test_more_objects_than_are_kept_are_counted() -> None:
    labels = np.arange(40 * 40).reshape(40, 40)
    found: dict[str, Any] = measure(labels, None)
    assert found["values"] == 1599
    assert len(found["components"]) == MOST


def test_labels_that_are_no_whole_numbers_are_not_measured() -> None:
    image = np.ones((1, 4, 4))
    found = observe({"image": image, "label": np.full((1, 4, 4), 0.5)}, "label", None)
    assert (found.voxels, found.foreground, found.box) == ({}, False, (4, 4))


@given(st.integers(0, 99), st.integers(1, 60_000))
def test_thinned_counts_keep_percentiles(seed: int, span: int) -> None:
    values = np.random.default_rng(seed).integers(0, span, 500)[None]
    whole = intensities.collect(values, np.ones(500, bool))[0]
    found = thinned(whole)
    assert len(found.counts) <= 4096
    ends = [intensities.pooled([c], (0.5, 50, 99.5)) for c in (whole, found)]
    np.testing.assert_allclose(ends[0][0], ends[1][0], atol=span * 1.3e-4)
    assert ends[0][1:] == ends[1][1:]


@given(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=20), st.floats(0.1, 10))
def test_far_follows_its_rule(values: list[float], least: float) -> None:
    middle = np.median(values)
    limit = max(5 * np.median(np.abs(np.array(values) - middle)), least)
    wanted = [n for n, v in enumerate(values) if abs(v - middle) > limit * (1 + 1e-9)]
    assert set(wanted) <= set(far(values, least))
    assert all(abs(values[n] - middle) > limit * (1 - 1e-9) for n in far(values, least))


# --- kept and printed -----------------------------------------------------------------------------

words = st.text("abcXYZ 01é_-", min_size=1, max_size=30).filter(str.strip)
counts = st.integers(0, 2**30)
values = st.integers(-1, 2**40)
numbers = st.floats(-1e9, 1e9)


@st.composite
def fingerprints(draw: st.DrawFn) -> Fingerprint:
    dims = draw(st.sampled_from([2, 3]))
    sizes = st.tuples(*[st.integers(1, 5000)] * dims)
    share = st.tuples(*[st.floats(0, 1)] * dims)
    case = st.builds(
        CaseFacts,
        id=words,
        shape=sizes,
        box=sizes,
        dtype=st.sampled_from(["uint8", "int16", "float32"]),
        spacing=st.none() | st.tuples(*[st.floats(1e-6, 1e3)] * dims),
        codes=st.none() | st.just("RAS"[:dims]),
        family=st.sampled_from(["nifti", "array"]),
        voxels=st.dictionaries(values, counts, max_size=20),
        components=st.dictionaries(values, counts, max_size=20),
        centres=st.dictionaries(values, share, max_size=3),
        extents=st.dictionaries(values, sizes, max_size=3),
        values=counts,
        seconds=st.floats(0, 1e4),
    )
    channel = st.builds(
        ChannelFacts,
        name=st.none() | words,
        **dict.fromkeys(
            ("minimum", "maximum", "mean", "std", "median", "low", "high", "spread"), numbers
        ),
    )
    oddity = st.builds(
        Oddity,
        case=st.just("") | words,
        text=words,
        path=words,
        severity=st.sampled_from(["error", "warning"]),
    )
    order = st.none() | st.lists(values, max_size=3).map(tuple)
    regions = st.dictionaries(words, st.lists(values, min_size=1, max_size=3).map(tuple))
    return draw(
        st.builds(
            Fingerprint,
            root=words,
            layout=st.sampled_from(["nnunet", "folders", "competition"]),
            folders=st.dictionaries(words, words, max_size=3),
            dims=st.just(dims),
            task=st.sampled_from(["labels", "image"]),
            cases=st.lists(case, min_size=1, max_size=6).map(tuple),
            channels=st.lists(channel, max_size=8).map(tuple),
            class_names=st.dictionaries(st.integers(1, 99), words, max_size=99),
            regions=st.none() | regions,
            regions_class_order=order,
            ignore_label=st.none() | values,
            classes=st.integers(2, 300),
            binarise=st.none() | numbers,
            tests=counts,
            groups=st.dictionaries(words, words, max_size=4),
            oddities=st.lists(oddity, max_size=40).map(tuple),
        )
    )


@settings(max_examples=examples(25))
@given(fingerprints())
def test_json_and_back(found: Fingerprint) -> None:
    document = json.loads(json.dumps(as_json(found)))
    assert from_json(document, Path("fingerprint.json")) == found


@settings(max_examples=examples(25))
@given(fingerprints())
def test_a_table_fits_a_page(found: Fingerprint) -> None:
    lines = table(found).splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH


def edited(document: dict[str, Any], keys: tuple[Any, ...], value: Any) -> dict[str, Any]:
    place: Any = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return document


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("format",), 0),
        (("format",), "1"),
        (("dims",), 4),
        (("dims",), 2),
        (("classes",), 10**9),
        (("task",), "classify"),
        (("cases",), {}),
        (("cases", 0, "shape"), [1, 2]),
        (("cases", 0, "shape", 0), -1),
        (("cases", 0, "shape", 0), True),
        (("cases", 0, "spacing"), [0, 1, 1]),
        (("cases", 0, "codes"), "RASX"),
        (("cases", 0, "id"), "../../x"),
        (("cases", 0, "voxels"), {"one": 3}),
        (("cases", 0, "voxels"), {"1e3": 3}),
        (("cases", 0, "voxels"), {"9" * 5000: 3}),
        (("cases", 0, "centres"), {"1": [0.5]}),
        (("cases", 0, "centres"), {"1": [0.5, 2.0, 0.5]}),
        (("channels", 0, "mean"), None),
        (("oddities",), [{"case": "", "text": "x" * 20_000, "path": "", "severity": "warning"}]),
        (("class_names",), {"": "a"}),
    ],
)
def test_hostile_documents_are_refused(tmp_path: Path, keys: tuple[Any, ...], value: Any) -> None:
    document = json.loads(json.dumps(as_json(fingerprint_of(arrange(nnunet(tmp_path, 2))))))
    path = tmp_path / "fingerprint.json"
    files.write_json(path, document)
    assert len(read(path).cases) == 2
    files.write_json(path, edited(document, keys, value))
    with pytest.raises(FileError):
        read(path)


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "tests", "classes", "dims", "channels"),
    [
        ("hippocampus", 40, 20, 3, 3, 1),
        ("topomortar", 25, 25, 2, 2, 3),
        pytest.param("sunnybrook_lv", 30, 15, 2, 3, 1, marks=pytest.mark.slow),
        pytest.param("chase_db1", 10, 4, 2, 2, 3, marks=pytest.mark.slow),
        pytest.param("axondeepseg_sem_2d", 10, 0, 3, 2, 1, marks=pytest.mark.slow),
        pytest.param("openkbp_oar", 24, 8, 8, 3, 1, marks=pytest.mark.slow),
        pytest.param("fetal_brain_mialsrtk6", 6, 0, 2, 3, 1, marks=pytest.mark.slow),
        pytest.param("fib25_surfaces", 22, 5, 2, 3, 1, marks=pytest.mark.slow),
    ],
)
def test_real_data_sets(
    shared_data: Path, name: str, count: int, tests: int, classes: int, dims: int, channels: int
) -> None:
    found = fingerprint_of(arrange(shared_data / name))
    seen = (len(found.cases), found.tests, found.classes, found.dims, len(found.channels))
    assert seen == (count, tests, classes, dims, channels)
    assert not [o for o in found.oddities if o.severity == "error"]
    if name == "hippocampus":  # two scans on another scale
        assert {o.case for o in found.oddities} == {"", "hippocampus_034", "hippocampus_044"}
