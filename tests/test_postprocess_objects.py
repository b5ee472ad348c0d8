"""Steps on objects of named classes: the largest component, and small components class by class."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
import tifffile
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_models import noise, run_predict
from test_blocks import compare_by_slabs

from pipeline import config as configs
from pipeline import files, morphology, networks, postprocess
from pipeline.config import ConfigError
from pipeline.inference import soft as softs
from pipeline.inference.models import save_model
from pipeline.postprocess.classes import each_class
from pipeline.postprocess.objects import named_objects
from pipeline.records import Checkpoint, NamedOptions
from pipeline.workflows.fuse import EnsembleJob, fuse, of_folders

FEW = settings(max_examples=60, deadline=None)
SHAPES = st.one_of(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 6)] * 3))
MAPS = arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 0, 0, 1, 2, 3]))
CLASSES: list[Any] = ["each", "foreground", 2, [1], [3, 1], [[1, 2]], [[1, 3], 2], [2, 7]]


def part(name: str, **options: Any) -> NamedOptions:
    return NamedOptions(name=name, options=options)


def objects(classes: Any, labels: np.ndarray) -> list[list[int]]:
    values = [int(v) for v in np.unique(labels) if v]
    if classes == "each":
        return [[v] for v in values]
    if classes == "foreground":
        return [values]
    listed = [classes] if isinstance(classes, int) else classes
    return [o if isinstance(o, list) else [o] for o in listed]


def by_scipy(labels: np.ndarray, classes: Any, keeps: Any, connectivity: int) -> np.ndarray:
    """One object after the other, each component of it by a mask of its own."""
    reach = {6: 1, 18: 2, 26: labels.ndim}[connectivity]
    structure = scipy.ndimage.generate_binary_structure(labels.ndim, min(reach, labels.ndim))
    out = labels.copy()
    for values in objects(classes, labels):
        numbers, count = scipy.ndimage.label(np.isin(labels, values), structure)
        sizes = [int((numbers == n).sum()) for n in range(1, count + 1)]
        for n, size in enumerate(sizes, 1):
            if not keeps(size, sizes):
                out[numbers == n] = 0
    return out


@FEW
@given(labels=MAPS, classes=st.sampled_from(CLASSES), connectivity=st.sampled_from([6, 18, 26]))
def test_the_largest_component_is_that_of_scipy(
    labels: np.ndarray, classes: Any, connectivity: int
) -> None:
    before = labels.copy()
    found = postprocess.largest_component(labels, classes, connectivity)
    expected = by_scipy(labels, classes, lambda size, sizes: size == max(sizes), connectivity)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == labels.dtype
    np.testing.assert_array_equal(labels, before)


@FEW
@given(labels=MAPS, axis=st.integers(-2, -1))
def test_a_turned_answer_is_the_answer_turned(labels: np.ndarray, axis: int) -> None:
    """Equal components all stay, so that no order of voxels decides."""
    np.testing.assert_array_equal(
        np.flip(postprocess.largest_component(np.flip(labels, axis), "each"), axis),
        postprocess.largest_component(labels, "each"),
    )


def test_equal_components_all_stay() -> None:
    labels = np.array([[1, 0, 2, 0, 1]])
    np.testing.assert_array_equal(postprocess.largest_component(labels, [1]), labels)
    np.testing.assert_array_equal(postprocess.largest_component(labels), labels)


@FEW
@given(
    labels=MAPS,
    classes=st.sampled_from(CLASSES),
    below=st.integers(0, 9),
    connectivity=st.sampled_from([6, 18, 26]),
)
def test_dust_of_named_classes_is_that_of_scipy(
    labels: np.ndarray, classes: Any, below: int, connectivity: int
) -> None:
    found = postprocess.dust(labels, below, connectivity, classes)
    expected = by_scipy(labels, classes, lambda size, _: size >= below, connectivity)
    np.testing.assert_array_equal(found, expected)


@FEW
@given(labels=MAPS, below=st.integers(0, 9))
def test_dust_without_classes_is_what_it_was(labels: np.ndarray, below: int) -> None:
    expected = each_class(labels, lambda m: morphology.remove_small_components(m, below))
    np.testing.assert_array_equal(postprocess.dust(labels, below), expected)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.one_of(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 12)] * 2)),
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 10),
    steps=st.lists(
        st.builds(
            lambda name, classes: (
                part(name, classes=classes)
                if name == "largest_component"
                else part(name, classes=classes, below=4)
            ),
            st.sampled_from(["dust", "largest_component"]),
            st.sampled_from([c for c in CLASSES if c != [2, 7]]),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_by_slabs_they_give_what_memory_gives(
    shape: tuple[int, ...],
    seed: int,
    rows: int,
    steps: list[NamedOptions],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    soft = np.random.default_rng(seed).dirichlet(np.ones(4), shape).astype(np.float32)
    soft = np.ascontiguousarray(np.moveaxis(soft, -1, 0))
    compare_by_slabs(steps, soft, tmp_path_factory.mktemp("work"), rows)


def test_a_list_of_yaml_is_run_as_it_reads() -> None:
    steps = yaml.safe_load(
        "[argmax, {name: largest_component, options: {classes: [2]}},"
        " {name: dust, options: {mm3: 4, classes: [1, 3]}}]"
    )
    labels = np.zeros((9, 3, 9), np.uint8)
    labels[0, 1, :5], labels[0, 1, 7] = 2, 2
    labels[3, 1, :1], labels[3, 1, 4:6] = 1, 1
    labels[6, 1, :2], labels[6, 1, 4:5] = 3, 3
    soft = (np.arange(4)[:, None, None, None] == labels).astype(np.float32)
    named = [NamedOptions(name=s) if isinstance(s, str) else NamedOptions(**s) for s in steps]
    found = postprocess.apply(named, soft, spacing=(2.0, 1.0, 1.0))
    expected = labels.copy()
    expected[0, 1, 7] = expected[3, 1, 0] = expected[6, 1, 4] = 0
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "classes", ["all", [], [0], [-1], [True], [1.5], [[]], [[[1]]], 0, [70000]]
)
def test_what_names_no_classes_is_refused(classes: Any) -> None:
    for name in ("dust", "largest_component"):
        with pytest.raises(ConfigError, match="classes"):
            postprocess.check([part("argmax"), part(name, classes=classes)], 4)


def test_a_value_is_named_once() -> None:
    with pytest.raises(ConfigError, match="named twice"):
        named_objects("dust", [[1, 2], 2])
    assert named_objects("dust", 3.0) == ((3,),)


@pytest.mark.parametrize(
    ("steps", "channels", "words"),
    [
        ([part("dust", classes=[4])], 4, "labels hold no 4: they hold 1, 2, 3"),
        ([part("largest_component", classes=[2])], 1, "hold no 2: they hold 1"),
        ([part("threshold"), part("dust", classes=2)], 1, "hold no 2"),
        ([part("regions", order=[1, 5]), part("dust", classes=[[1, 2]])], 2, "hold no 2"),
    ],
)
def test_a_class_that_is_never_written_is_refused(
    steps: list[NamedOptions], channels: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        postprocess.check(steps, channels)


def test_classes_that_may_be_there_pass() -> None:
    postprocess.check([part("dust", classes=[9])])
    postprocess.check([part("regions", order=[1, 5]), part("dust", classes=[5])], 2)
    postprocess.check([part("argmax"), part("instances"), part("dust", classes=[9])], 3)


# --- commands -------------------------------------------------------------------------------------

CONFIG = """
name: small
task: labels
data: {classes: 3, patch: {size: [16, 16, 16]}, normalise: percentile}
network: {name: dynunet, options: {channels: [2, 4, 4], block: 2, norm: batch}}
losses: [dice]
predict: {overlap: 4}
"""


def three_classes(folder: Path, steps: list[Any]) -> Path:
    """A model of three classes with random weights."""
    config = configs.from_dict({**yaml.safe_load(CONFIG), "postprocess": steps})
    torch.manual_seed(1)
    weights = networks.build(config.network, 1, 3, 3).state_dict()
    path = folder / "best_model.safetensors"
    model = Checkpoint(
        config=configs.to_dict(config),
        channels=(1, 3),
        fold=0,
        epoch=0,
        score=None,
        weights=weights,
    )
    save_model(path, model)
    return path


def test_predict_and_ensemble_run_them(tmp_path: Path) -> None:
    """Predicted whole and by blocks, and fused from what was kept, a file has the same labels."""
    steps = [
        {"name": "largest_component", "options": {"classes": [2]}},
        {"name": "dust", "options": {"classes": [1], "below": 3}},
    ]
    plain, both = (three_classes(tmp_path / f"model{len(s)}", s) for s in ([], steps))
    (tmp_path / "in").mkdir()
    files.write(tmp_path / "in" / "a.tif", noise((20, 21, 22)), dims=3)
    answers = {}
    for name, model, more in (
        ("plain", plain, ("--save-soft",)),
        ("both", both, ()),
        ("blocks", both, ("--blocks", "always")),
    ):
        assert run_predict(model, tmp_path / "in", tmp_path / name, *more) == 0
        answers[name] = tifffile.imread(tmp_path / name / "a.tif")
    assert set(np.unique(answers["plain"])) == {0, 1, 2}
    wanted = postprocess.dust(postprocess.largest_component(answers["plain"], [2]), 3, 26, [1])
    assert (wanted != answers["plain"]).any()
    for name in ("both", "blocks"):
        np.testing.assert_array_equal(answers[name], wanted)
    named = tuple(NamedOptions(**step) for step in steps)
    spec = dataclasses.replace(of_folders([tmp_path / "plain"]), postprocess=named)
    assert fuse(EnsembleJob(spec=spec, output=tmp_path / "fused")).done == ("a",)
    soft = softs.load(tmp_path / "plain" / "soft", "a").main[:].astype(np.float32)
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "fused" / "a.tif"), postprocess.apply(named, soft)
    )
