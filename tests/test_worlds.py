"""Files that lie differently in the world are one volume in model space; answers come back to each.

What a network learns there is tested in ``test_trained_spaces``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import affine_of, scan, system

from pipeline.config import Config
from pipeline.data import spaces, world
from pipeline.data.model_space import Crop, ModelSpace, Resampling, from_record
from pipeline.data.properties import CaseProperties
from pipeline.data.spaces import nonzero_box, space_of
from pipeline.files import FileError, Rows
from pipeline.grid import Alignment, Grid, affine_grid
from pipeline.inference import soft as softs
from pipeline.inference.soft import SoftMeta, SoftPrediction
from pipeline.inference.writing import decided
from pipeline.records import Case, UserError

NAME = Path("case.nii.gz")
ALL_CODES = [
    "".join(letters)
    for order in itertools.permutations(["RL", "AP", "SI"])
    for letters in itertools.product(*order)
]


def twin(array: np.ndarray, affine: np.ndarray, codes: str) -> tuple[np.ndarray, Grid]:
    """The RAS array ``(*S)`` as ``(1, *S)`` with axes in the order and direction of ``codes``."""
    axes = tuple(next(n for n, pair in enumerate(("RL", "AP", "SI")) if c in pair) for c in codes)
    matrix = np.eye(4)  # voxel of the twin -> voxel of the array
    matrix[:3, :3] = 0
    for new, (old, code) in enumerate(zip(axes, codes, strict=True)):
        matrix[old, new] = 1 if code in "RAS" else -1
        matrix[old, 3] = 0 if code in "RAS" else array.shape[old] - 1
    flips = tuple(n for n, code in enumerate(codes) if code not in "RAS")
    turned = np.flip(array.transpose(axes), flips)
    return np.ascontiguousarray(turned[None]), affine_grid(affine @ matrix, 3)


def back_to_ras(array: np.ndarray, codes: str) -> np.ndarray:
    """The inverse of :func:`twin` for ``(K, *S)``."""
    axes = [next(n for n, pair in enumerate(("RL", "AP", "SI")) if c in pair) for c in codes]
    flips = tuple(n + 1 for n, code in enumerate(codes) if code not in "RAS")
    return np.flip(array, flips).transpose(0, *(1 + axes.index(n) for n in range(3)))


def probabilities(size: tuple[int, ...], classes: int, seed: int = 0) -> np.ndarray:
    """Smooth probabilities ``(K, *size)`` float32 that sum to 1."""
    logits = np.random.default_rng(seed).normal(size=(classes, *size)) * 2
    exp = np.exp(logits)
    return (exp / exp.sum(0)).astype(np.float32)


SPACED = st.fixed_dictionaries(
    {
        "orientation": st.sampled_from(["RAS", "LPS", "SAR", "PIR"]),
        "crop": st.sampled_from([None, "nonzero"]),
        "spacing": st.sampled_from(
            [None, [1.0, 1.0, 1.0], [0.7, None, 2.0], [None, None, None], [2.0, 2.0, 2.0]]
        ),
        "resample": st.sampled_from(
            [{}, {"images": 1}, {"images": 0, "labels": 0, "probabilities": 0}, {"coarse": None}]
        ),
    }
)


@settings(max_examples=examples(60), deadline=None)
@given(
    space=SPACED,
    codes=st.sampled_from(ALL_CODES),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (0.8, 1.2, 1.0), (1.0, 1.0, 4.0), (2.0, 0.5, 0.5)]),
    oblique=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 3),
)
def test_twins_are_one_volume_in_model_space(
    space: dict[str, Any], codes: str, spacing: tuple[float, ...], oblique: float, seed: int
) -> None:
    """Images and labels to the last bit, probabilities that come back to rounding."""
    config = system(space)
    image, label = scan(seed, (9, 12, 7))
    affine = affine_of(spacing, oblique)
    arrays = []
    for name in ("RAS", codes):
        array, grid = twin(image, affine, name)
        own = space_of(NAME, grid, array, config, {})
        labels, _ = twin(label, affine, name)
        arrays.append((own.to_model(array), own.labels_to_model(labels), own))
    (one, labels, first), (other, turned, second) = arrays
    np.testing.assert_array_equal(one[:], other[:])
    np.testing.assert_array_equal(labels, turned)
    assert one.shape[1:] == first.size(image.shape) == labels.shape[1:]
    heads = probabilities(one.shape[1:], 3)
    fill = (1.0, 0.0, 0.0)
    back = [np.asarray(own.to_file(heads, fill=fill)[:]) for own in (first, second)]
    assert back[0].shape[1:] == image.shape
    found = back_to_ras(back[1], codes)
    np.testing.assert_allclose(found, back[0], rtol=0, atol=1e-6)
    ordered = np.sort(back[0], 0)
    clear = ordered[-1] - ordered[-2] > 1e-6
    np.testing.assert_array_equal(found.argmax(0)[clear], back[0].argmax(0)[clear])


@settings(max_examples=examples(40), deadline=None)
@given(
    codes=st.sampled_from(ALL_CODES),
    spacing=st.sampled_from([(1.0, 1.0, 4.0), (4.0, 0.9, 1.0), (0.8, 1.2, 1.0)]),
    wanted=st.sampled_from([[1.0, 1.0, 1.0], [0.7, 1.0, 4.0], [4.0, 1.0, 1.0]]),
)
def test_images_of_twins_come_back_as_twins(
    codes: str, spacing: tuple[float, ...], wanted: list[float]
) -> None:
    """By cubic splines, whose slices are clipped each to its range where they are apart."""
    config = system(
        {"orientation": "RAS", "spacing": wanted},
        task="image",
        losses=[{"name": "l1", "target": "target"}],
        metrics=["psnr"],
    )
    image = scan(0, (9, 12, 7))[0]
    back = []
    for name in ("RAS", codes):
        array, grid = twin(image, affine_of(spacing), name)
        own = space_of(NAME, grid, array, config, {})
        answer = np.random.default_rng(0).random((2, *own.size(array.shape[1:]))) ** 3
        back.append(back_to_ras(np.asarray(own.to_file(answer)[:]), name))
    np.testing.assert_allclose(back[1], back[0], rtol=0, atol=1e-9)


def test_sizes_do_not_hang_on_the_last_digits_of_an_affine() -> None:
    """Halves of a voxel are usual: an odd number of voxels of 1 mm at 2 mm."""
    config = system({"orientation": "RAS", "spacing": [2.0, 2.0, 2.0]})
    found = set()
    for noise in (0, 1e-7, -1e-7):
        grid = affine_grid(np.diag([1 + noise, 1 - noise, 1 + noise, 1]), 3)
        space = space_of(NAME, grid, np.zeros((1, 13, 15, 17)), config, {})
        found.add(space.size((13, 15, 17)))
    assert len(found) == 1
    coarse = {
        spaces.resampling.coarse_axis((1.0, 1.0, 3.0 + noise), (1.0, 1.0, 1.0), 3.0)
        for noise in (0, 1e-7, -1e-7)
    }
    assert coarse == {None}


@settings(max_examples=examples(80), deadline=None)
@given(
    box=st.lists(
        st.tuples(st.integers(0, 8), st.integers(1, 9)).map(lambda p: (min(p[0], p[1] - 1), p[1])),
        min_size=3,
        max_size=3,
    ),
    codes=st.sampled_from(ALL_CODES),
    lazy=st.booleans(),
)
def test_a_crop_alone_is_exact_inside_and_background_outside(
    box: list[tuple[int, int]], codes: str, lazy: bool
) -> None:
    image = np.zeros((9, 9, 9), np.int16)
    inside = tuple(slice(a, b) for a, b in box)
    image[inside] = np.random.default_rng(0).integers(1, 99, image[inside].shape)
    array, grid = twin(image, affine_of((1.0, 1.0, 1.0)), codes)
    space = space_of(NAME, grid, array, system({"orientation": "RAS", "crop": "nonzero"}), {})
    given = Rows(array.shape, array.dtype, lambda a, b: array[:, a:b].copy()) if lazy else array
    np.testing.assert_array_equal(space.to_model(given)[:][0], image[inside])
    heads = probabilities(image[inside].shape, 3)
    meta = SoftMeta(task="labels")
    soft = SoftPrediction(case_id="c", heads={"main": heads}, meta=meta, space=space)
    back = back_to_ras(np.asarray(soft.on_file_grid().main[:]), codes)
    wanted = np.zeros((3, 9, 9, 9), np.float32)
    wanted[0] = 1
    wanted[(slice(None), *inside)] = heads
    np.testing.assert_array_equal(back, wanted)
    labels = back_to_ras(np.asarray(decided(soft))[None], codes)[0]
    np.testing.assert_array_equal(labels, wanted.argmax(0))


@pytest.mark.parametrize(("task", "outside"), [("labels", (1, 0, 0)), ("regions", (0, 0, 0))])
def test_nothing_is_found_outside_a_box(task: str, outside: tuple[int, ...]) -> None:
    crop = Crop(start=(1, 1, 1), stop=(3, 3, 3), size=(4, 4, 4))
    heads, meta = np.ones((3, 2, 2, 2), np.float32), SoftMeta(task=task)
    space = ModelSpace(crop=crop)
    soft = SoftPrediction(case_id="c", heads={"main": heads}, meta=meta, space=space)
    assert tuple(soft.on_file_grid().main[:][:, 0, 0, 0]) == outside


def test_an_image_of_zeros_is_not_cropped() -> None:
    assert nonzero_box(np.zeros((2, 3, 4, 5))) == ((0, 3), (0, 4), (0, 5))
    config = system({"crop": "nonzero"})
    array = np.zeros((1, 3, 4, 5))
    space = space_of(NAME, affine_grid(np.eye(4), 3), array, config, {})
    assert space.to_model(array) is array


def test_any_channel_keeps_a_voxel_in_the_box() -> None:
    array = np.zeros((2, 5, 5, 5), np.float32)
    array[0, 1, 2, 3], array[1, 3, 2, 1] = 1, np.nan
    assert nonzero_box(array) == ((1, 4), (2, 3), (1, 4))


@pytest.mark.parametrize(
    "config",
    [
        system({}),
        system({"orientation": "RAS"}),
        system({"orientation": "RAS", "spacing": [1.0, 1.2, 1.0]}),
        system({"spacing": [None, None, None]}),
        system({"axes": [0, 1, 2]}),
        system({"spacing": [1.01, 1.19, 1.0]}),  # as many voxels
    ],
)
def test_what_is_right_already_is_passed_through(config: Config) -> None:
    """The very array, not a copy; no soft file says anything of a space."""
    image, label = (a[None] for a in scan(0, (9, 8, 7)))
    space = space_of(NAME, affine_grid(affine_of((1.0, 1.2, 1.0)), 3), image, config, {})
    assert space.identity
    assert space.to_model(image) is image
    assert space.labels_to_model(label) is label
    assert space.to_file(image) is image
    soft = SoftPrediction(case_id="c", heads={"main": image}, space=space)
    assert soft.on_file_grid() is soft


# --- soft files -----------------------------------------------------------------------------------


def in_space() -> SoftPrediction:
    """A prediction of ten slices, cropped and resampled."""
    crop = Crop(start=(1, 0, 2), stop=(9, 12, 7), size=(10, 12, 9))
    change = Resampling(old=(8, 12, 5), new=(6, 8, 5), coarse=2, coarse_back=None)
    space = ModelSpace(
        alignment=Alignment(axes=(2, 0, 1), flips=(1,)),
        crop=crop,
        resampling=change,
        spacing=(1.5, 1.5, 1.0),
    )
    heads = {"main": probabilities((6, 8, 5), 3)}
    return SoftPrediction(case_id="c", heads=heads, space=space)


def test_a_saved_prediction_comes_back_as_the_one_in_memory(tmp_path: Path) -> None:
    soft = softs.as_stored(in_space())
    softs.save(tmp_path, soft)
    found = softs.load(tmp_path, "c")
    assert found.space == soft.space
    np.testing.assert_array_equal(
        found.on_file_grid().main[:], np.asarray(soft.on_file_grid().main[:])
    )
    assert found.on_file_grid().main.shape == (3, 12, 9, 10)
    np.testing.assert_array_equal(
        np.asarray(decided(found)).astype(int), np.asarray(decided(soft)).astype(int)
    )


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set an entry of a document."""

    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]  # type: ignore[index]
        document[path[-1]] = value  # type: ignore[index]

    return change


BROKEN = {
    "axes twice": put("alignment", "axes", value=[0, 0, 1]),
    "axes beyond": put("alignment", "axes", value=[3, 1, 2]),
    "axes of a picture": put("alignment", "axes", value=[1, 0]),
    "flips beyond": put("alignment", "flips", value=[7]),
    "flips twice": put("alignment", "flips", value=[1, 1]),
    "flips without axes": put("alignment", value={"axes": [], "flips": [0]}),
    "no alignment": put("alignment", value=None),
    "old sizes": put("resampling", "old", value=[8, 12, 6]),
    "old sizes of two axes": put("resampling", "old", value=[8, 12]),
    "new sizes": put("resampling", "new", value=[6, 8, 4]),
    "no voxels": put("resampling", value={"old": [8, 12, 0], "new": [6, 8, 5]}),
    "sizes that are text": put("resampling", "new", value="685"),
    "sizes that are fractions": put("resampling", "new", value=[6.0, 8.5, 5]),
    "sizes below zero": put("resampling", "old", value=[-8, 12, 5]),
    "coarse beyond": put("resampling", "coarse", value=3),
    "coarse back beyond": put("resampling", "coarse_back", value=9),
    "coarse below zero": put("resampling", "coarse", value=-1),
    "order of images": put("resampling", "image", value=2),
    "order of predictions": put("resampling", "back", value=7),
    "order that is text": put("resampling", "back", value="1"),
    "order that is true": put("resampling", "back", value=True),
    "rule": put("resampling", "rule", value="quarter"),
    "box that ends before it begins": put("crop", "stop", value=[1, 12, 7]),
    "box beyond the image": put("crop", "stop", value=[9, 13, 7]),
    "box of two axes": put("crop", "start", value=[1, 0]),
    "box of another size": put("crop", "start", value=[2, 0, 2]),
    "image that is smaller": put("crop", "size", value=[10, 12, 6]),
    "no crop in another size": put("crop", value={"start": [], "stop": [], "size": []}),
    "spacing of zero": put("spacing", value=[0.0, 1.0, 1.0]),
    "spacing of two axes": put("spacing", value=[1.0, 1.0]),
    "spacing below zero": put("spacing", value=[1.0, -1.0, 1.0]),
    "space that is a list": lambda document: document.clear(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_space_is_refused_by_name(name: str, tmp_path: Path) -> None:
    softs.save(tmp_path, in_space())
    path = tmp_path / "c.json"
    document = json.loads(path.read_text())
    BROKEN[name](document["space"])
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"c\.json") as error:
        softs.load(tmp_path, "c")
    assert "Predict" in str(error.value) or "Run pipeline.predict" in str(error.value)


@pytest.mark.parametrize("value", [1, "x", [], [1], True])
def test_a_space_that_is_none_is_refused(value: Any, tmp_path: Path) -> None:
    softs.save(tmp_path, in_space())
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "space": value}))
    with pytest.raises(UserError, match=r"c\.json"):
        softs.load(tmp_path, "c")


def test_a_later_version_may_say_more(tmp_path: Path) -> None:
    softs.save(tmp_path, in_space())
    path = tmp_path / "c.json"
    document = json.loads(path.read_text())
    for part in ("alignment", "crop", "resampling"):
        document["space"][part]["later"] = 1
    path.write_text(json.dumps(document))
    assert softs.load(tmp_path, "c").space == in_space().space


def test_a_sound_space_is_its_own_record() -> None:
    for space in (
        in_space().space,
        ModelSpace(),
        ModelSpace(alignment=Alignment(axes=(1, 0), flips=(0, 1))),
        replace(in_space().space, crop=None, alignment=Alignment(axes=(), flips=())),
        replace(in_space().space, resampling=None),
    ):
        assert from_record(json.loads(json.dumps(space.record()))) == space


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "grid", "words"),
    [
        (
            {"spacing": [1.0, 1.0, 2.0]},
            Grid(family="array"),
            ("data.spacing is [1.0, 1.0, 2.0]", "how far its voxels lie apart", "spacing="),
        ),
        (
            {"orientation": "RAS"},
            Grid(family="nifti", spacing=(1.0, 1.0, 1.0)),
            ("data.orientation is RAS", "how its axes lie", "Give it an affine"),
        ),
        (
            {"orientation": "RAS"},
            Grid(family="nifti", spacing=(1.0, 1.0, 1.0), codes="R?S"),
            ("data.orientation is RAS", "how its axes lie", "Give it an affine"),
        ),
    ],
)
def test_what_a_file_does_not_say_is_refused(
    space: dict[str, Any], grid: Grid, words: tuple[str, ...]
) -> None:
    with pytest.raises(FileError) as error:
        space_of(NAME, grid, np.ones((1, 4, 4, 4)), system(space), {})
    assert all(word in str(error.value) for word in (str(NAME), *words))


def properties_of(codes: str, spacing: tuple[float, ...], config: Config) -> CaseProperties:
    grid = Grid(family="nifti", codes=codes, spacing=spacing)
    space = spaces.space_for(NAME, grid, (8, 8, 8), config, {})
    entry = {"family": "nifti", "codes": codes, "spacing": list(spacing)}
    return CaseProperties(
        id=codes,
        files={"image": [{"path": str(NAME)}]},
        shapes={"image": (1, 8, 8, 8)},
        grids={"image": entry},
        space=space.record(),
    )


def test_thick_slices_on_other_axes_are_uneven_once_all_lie_alike() -> None:
    """The file's own axes hide it: the third is the thick one in each."""
    seen = [("RAS", (1.0, 1.0, 3.0)), ("IRP", (1.0, 1.0, 3.0))]
    for keys, warned in (({}, True), ({"spacing": [1.0, 1.0, 1.0]}, False)):
        config = system({"orientation": "RAS", **keys})
        found = [properties_of(codes, spacing, config) for codes, spacing in seen]
        cases = [Case(id=p.id, image=(NAME,)) for p in found]
        faults = world.faults(found, cases, Path("data"), data=config.data)
        assert [f.severity for f in faults] == ["warning"] * warned
        assert all("data.spacing" in f.suggestion for f in faults)
        about = world.trained_on("nnunet", found, {}, config.data)
        assert about["codes"] == "RAS"
        assert about["spacing"] == [1.0, 2.0, 2.0]
