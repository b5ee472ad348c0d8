"""Spatial folds: blocks are disjoint and apart, and no training sample of a fold holds a voxel of
the block that is held out, nor of its margin.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config as configs
from pipeline import evaluate, files, predict, train, tune
from pipeline.config import ConfigError, Folds
from pipeline.data import blocks, cases, folds, loaders, properties
from pipeline.records import Case, UserError
from pipeline.runs import RunFolder

SHAPE = (12, 44, 10)
"""Of a stack, whose longest axis is its second."""


@settings(max_examples=300)
@given(st.integers(1, 400), st.integers(2, 12), st.integers(0, 40))
def test_blocks_are_disjoint_apart_and_leave_out_margins_alone(
    length: int, count: int, margin: int
) -> None:
    if length - (count - 1) * margin < count:
        with pytest.raises(ValueError, match=f"{length} voxels"):
            blocks.ranges(length, count, margin)
        return
    found = blocks.ranges(length, count, margin)
    assert len(found) == count
    assert (found[0][0], found[-1][1]) == (0, length)
    assert all(after - end == margin for (_, end), (after, _) in itertools.pairwise(found))
    sizes = [end - first for first, end in found]
    assert sum(sizes) == length - (count - 1) * margin
    assert 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1


# --- a small stack whose voxels hold their numbers ------------------------------------------------


def numbered(start: int = 1) -> np.ndarray:
    """Each voxel holds its number, so that a sample says what it was cut from."""
    return np.arange(start, start + np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)


def label_of(values: np.ndarray) -> np.ndarray:
    """A label that follows from the number alone."""
    return ((values // 7) % 3 == 0).astype(np.uint8)


def stacks(root: Path, *starts: int, suffix: str = ".tif") -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for n, start in enumerate(starts):
        values = numbered(start)
        files.write(root / "images" / f"s{n}{suffix}", values)
        files.write(root / "masks" / f"s{n}{suffix}", label_of(values))
    return root


TINY: dict[str, Any] = {
    "name": "blocks",
    "data": {
        "layout": "folders",
        "folds": {"count": 2, "by": "block", "margin": 4},
        "patch": {"size": [8, 16, 8], "batch": 2, "per_case": 6},
        "normalise": {"name": "range", "options": {"low": 0, "high": 65535}},
        "augment": ["flip"],
    },
    "network": {"name": "unet", "options": {"channels": [2, 2, 4, 4, 4]}},
    "losses": ["dice"],
    "metrics": ["dice"],
    "train": {"epochs": 2, "optimizer": {"name": "adam", "options": {"lr": 0.01}}},
    "predict": {"overlap": 4},
}


def settings_of(root: Path, **rules: Any) -> configs.Config:
    data = {**TINY["data"], "root": str(root)}
    data["folds"] = {**data["folds"], **rules}
    return configs.from_dict({**TINY, "data": data})


def found_in(root: Path, patch: int = 16, **rules: Any) -> cases.Found:
    config = settings_of(root, **rules)
    patches = dataclasses.replace(config.data.patch, size=(8, patch, 8))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, patch=patches))
    return cases.find(config.data, config.roles, root)


def only_fault(root: Path, **rules: Any) -> str:
    (fault,) = found_in(root, **rules).faults
    assert fault.severity == "error"
    return f"{fault.problem}. {fault.suggestion}"


def yaml_of(folder: Path, **more: Any) -> Path:
    path = folder / "blocks.yaml"
    path.write_text(yaml.safe_dump({**TINY, **more}))
    return path


def test_block_k_of_every_stack_is_held_out_in_fold_k(tmp_path: Path) -> None:
    found = found_in(stacks(tmp_path, 1, 9000), patch=8, count=3)
    assert not found.faults
    assert [c.id for c in found.train] == ["s0@0", "s0@1", "s0@2", "s1@0", "s1@1", "s1@2"]
    assert [c.block for c in found.train] == [0, 1, 2] * 2
    whole = numbered()
    for case, (first, end) in zip(found.train, [(0, 12), (16, 28), (32, 44)], strict=False):
        np.testing.assert_array_equal(files.read(case.image[0], 3)[0][0], whole[:, first:end])
        np.testing.assert_array_equal(
            files.read(case.targets["label"], 3, labels=True)[0][0], label_of(whole[:, first:end])
        )
    config = settings_of(tmp_path, count=3)
    facts = properties.examine(found.train, config, None, write=False)
    contents = {f.id: f.content for f in facts}
    plan = folds.split(found.train, contents, config.data.folds, seed=1)
    assert plan == folds.split(found.train[::-1], contents, config.data.folds, seed=2)
    assert [s.val for s in plan] == [(f"s0@{k}", f"s1@{k}") for k in range(3)]
    for split in plan:
        assert sorted(split.train + split.val) == sorted(contents)


def test_the_axis_can_be_chosen_and_the_longest_is_meant(tmp_path: Path) -> None:
    root = stacks(tmp_path, 1)
    names = [
        [c.image[0].name for c in found_in(root, axis=axis, margin=2).train] for axis in (None, 1)
    ]
    assert names[0] == names[1] == ["s0.tif#box=:x0:21x:", "s0.tif#box=:x23:44x:"]
    data = {"patch": {"size": [4, 4, 4]}}
    config = configs.from_dict(
        {**TINY, "data": {**TINY["data"], **data, "folds": {**TINY["data"]["folds"], "axis": 0}}}
    )
    first = cases.find(config.data, config.roles, root).train
    assert [c.image[0].name for c in first] == ["s0.tif#box=0:4x:x:", "s0.tif#box=8:12x:x:"]


def test_equal_stacks_are_on_one_side_and_equal_blocks_of_different_folds_refused() -> None:
    def case(stack: str, k: int | None) -> Case:
        name = stack if k is None else f"{stack}@{k}"
        return Case(id=name, image=(Path(f"{name}.tif"),), block=k, group=stack)

    every = [case(s, k) for s in "ab" for k in range(2)]
    rules = Folds(count=2, by="block")
    plan = folds.split(every, {c.id: f"sha{c.block}" for c in every}, rules, 0)
    assert [s.val for s in plan] == [("a@0", "b@0"), ("a@1", "b@1")]
    with pytest.raises(UserError, match=r"equal images: a@0, b@1\. Take copies"):
        folds.split(every, {"a@0": "x", "b@1": "x", "a@1": "y", "b@0": "z"}, rules, 0)
    with pytest.raises(UserError, match="1 of 5 cases could not be divided: c"):
        folds.split([*every, case("c", None)], {}, rules, 0)


def test_what_cannot_be_divided_is_refused_with_numbers_and_a_way_that_works(
    tmp_path: Path,
) -> None:
    root = stacks(tmp_path, 1)
    text = only_fault(root, margin=23)
    assert "12x44x10: 44 slices along axis 1" in text
    assert "2 blocks with margins of 23 (data.folds) leave 21, less than half" in text
    assert "data.folds.margin to at most 22" in text
    text = only_fault(root, margin=13)
    assert "15 slices long, shorter than a patch (16, data.patch.size)" in text
    assert (
        "Lower data.folds.margin to at most 12, or that side of data.patch.size to at most 15"
        in text
    )
    assert not found_in(root, margin=12).faults
    text = only_fault(root, count=4)
    assert "Lower data.folds.count to at most 2, or that side" in text
    text = only_fault(root, count=30, margin=0)
    assert "are 1 slices long, shorter than a patch (16" in text
    assert "Lower data.folds.count to at most 2; or choose" in text
    text = only_fault(root, axis=2, margin=1)
    assert "shorter than a patch (8" in text
    assert "that side of data.patch.size to at most 4" in text


@settings(max_examples=60)
@given(st.integers(4, 60), st.integers(2, 6), st.integers(0, 12), st.integers(1, 20))
def test_every_way_out_that_is_named_is_one(
    length: int, count: int, margin: int, patch: int
) -> None:
    replace = dataclasses.replace
    data = settings_of(Path("x"), count=count, margin=margin, axis=0).data
    data = replace(data, patch=replace(data.patch, size=(patch, 1, 1)))
    found = blocks.problem_of((length, 1, 1), data)
    if found is None:
        sizes = [b - a for a, b in blocks.ranges(length, count, margin)]
        assert min(sizes) >= max(2, patch)
        assert 2 * sum(sizes) >= length
        return
    if "less than half" in found[0]:
        (number,) = re.findall(r"data\.folds\.margin to at most (\d+)", found[1])
        rules = replace(data.folds, margin=int(number))
        left = blocks.problem_of((length, 1, 1), replace(data, folds=rules))
        assert left is None or "less than half" not in left[0]
        return
    for key, number in re.findall(r"data\.folds\.(count|margin) to at most (\d+)", found[1]):
        rules = replace(data.folds, **{key: int(number)})
        assert blocks.problem_of((length, 1, 1), replace(data, folds=rules)) is None
    for number in re.findall(r"data\.patch\.size to at most (\d+)", found[1]):
        smaller = replace(data.patch, size=(int(number), 1, 1))
        assert blocks.problem_of((length, 1, 1), replace(data, patch=smaller)) is None


@settings(max_examples=60)
@given(st.lists(st.integers(4, 400), min_size=1, max_size=3), st.integers(1, 80))
def test_rules_that_fit_divide_every_stack(lengths: list[int], patch: int) -> None:
    data = settings_of(Path("x")).data
    data = dataclasses.replace(
        data,
        patch=dataclasses.replace(data.patch, size=(patch, 1, 1)),
        folds=Folds(axis=0),
    )
    found = blocks.fitting([(n, 1, 1) for n in lengths], data)
    shortest = min(lengths)
    assert (found is None) == ((shortest - 4) // 2 < max(2, patch) or shortest < 2 * 4)
    if found is None:
        return
    rules = found.folds
    assert (rules.by, rules.axis) == ("block", 0)
    for n in lengths:
        assert min(b - a for a, b in blocks.ranges(n, rules.count, rules.margin)) >= patch


def test_a_box_in_a_name_is_not_divided_again(tmp_path: Path) -> None:
    root = stacks(tmp_path, 1)
    for folder in ("images", "masks"):
        path = root / folder / "s0.tif"
        (root / folder / "t.tif#box=:x0:40x:").symlink_to(path)
    faults = found_in(root).faults
    assert ["chooses a box" in f.problem for f in faults] == [True]


def test_rules_of_the_config() -> None:
    def made(dims: int = 3, **rules: Any) -> configs.Config:
        size = [8] * dims
        data = {"dims": dims, "patch": {"size": size}, "folds": {"by": "block", **rules}}
        return configs.from_dict({"name": "x", "network": "unet", "losses": ["dice"], "data": data})

    assert (made().data.folds.margin, made().data.folds.axis) == (16, None)
    with pytest.raises(ConfigError, match=r"axis is 3, must be from 0 to 2"):
        made(axis=3)
    with pytest.raises(ConfigError, match=r"axis is 2, must be from 0 to 1"):
        made(dims=2, axis=2)
    with pytest.raises(ConfigError, match=r"axis is -1"):
        made(axis=-1)
    with pytest.raises(ConfigError, match=r"margin is -1, must not be negative"):
        made(margin=-1)
    with pytest.raises(ConfigError, match=r"data\.folds\.file names others\. Keep one"):
        made(file="splits_final.json")


def test_labels_of_another_shape_are_still_found(tmp_path: Path) -> None:
    """A box of a longer label would fit its block: the files are compared whole."""
    root = stacks(tmp_path, 1)
    longer = np.concatenate([label_of(numbered())] * 2, axis=1)
    files.write(root / "masks" / "s0.tif", longer)
    found = found_in(root)
    assert [c.id for c in found.train] == ["s0"]
    (root / "masks" / "s0.tif").write_bytes(b"II*\0")
    assert [c.id for c in found_in(root).train] == ["s0"]


def test_a_block_that_is_called_like_another_case(tmp_path: Path) -> None:
    root = stacks(tmp_path, 1)
    for folder in ("images", "masks"):
        array = numbered(20000) if folder == "images" else label_of(numbered(20000))
        files.write(root / folder / "s0@1.tif", array)
    (fault,) = found_in(root).faults
    assert "s0@1 is called like another case" in fault.problem


def test_two_pictures_are_divided_along_their_longest_sides(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name, shape in (("a", (60, 20)), ("b", (20, 70))):
            value = np.arange(1200 if name == "a" else 1400, dtype=np.uint16).reshape(shape)
            value = value if folder == "images" else (value % 2).astype(np.uint16)
            files.write(tmp_path / folder / f"{name}.png", value)
    data = {**TINY["data"], "dims": 2, "patch": {"size": [16, 16]}, "root": str(tmp_path)}
    config = configs.from_dict({**TINY, "data": data, "network": "unet"})
    found = cases.find(config.data, config.roles, tmp_path)
    assert not found.faults
    assert [c.image[0].name for c in found.train] == [
        "a.png#box=0:28x:",
        "a.png#box=32:60x:",
        "b.png#box=:x0:33",
        "b.png#box=:x37:70",
    ]


# --- training -------------------------------------------------------------------------------------


class Recorder:
    """What the loaders of a training gave: numbers of voxels, by fold and side."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[tuple[int, bool], set[int]] = {}
        self.samples = 0
        start, give = loaders.PatchDataset.__init__, loaders.PatchDataset.__getitem__
        sides: dict[int, tuple[int, bool]] = {}
        kept: list[Any] = []  # so that no two have one id

        def begin(dataset: Any, given: Any, config: Any, *more: Any) -> None:
            kept.append(dataset)
            sides[id(dataset)] = more[0], more[1]
            start(dataset, given, config, *more)

        def record(dataset: Any, key: Any) -> dict[str, Any]:
            sample = give(dataset, key)
            values = np.rint(np.asarray(sample["image"], np.float64) * 65535).astype(int)[0]
            label = np.asarray(sample["label"])[0]
            there = values > 0  # 0 is padding
            np.testing.assert_array_equal(label[there], label_of(values[there]))
            self.seen.setdefault(sides[id(dataset)], set()).update(values[there].ravel().tolist())
            self.samples += 1
            return sample

        monkeypatch.setattr(loaders.PatchDataset, "__init__", begin)
        monkeypatch.setattr(loaders.PatchDataset, "__getitem__", record)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, Recorder]:
    """Data, run and what was seen, of two folds of two stacks."""
    folder = tmp_path_factory.mktemp("trained")
    root = stacks(folder / "data", 1, 20000)
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        words = ["--config", str(yaml_of(folder)), "--data-dir", str(root)]
        assert train.main([*words, "--out", str(folder / "run"), "--fold", "-1"]) == 0
    return root, folder / "run", recorder


def test_no_training_sample_holds_a_voxel_of_the_held_out_block_or_of_a_margin(
    trained: tuple[Path, Path, Recorder],
) -> None:
    seen, both = trained[2].seen, [numbered(1), numbered(20000)]
    own = {
        k: {int(v) for w in both for v in w[:, a:b].ravel()}
        for k, a, b in [(0, 0, 20), (1, 24, 44)]
    }
    assert trained[2].samples >= 2 * 2 * 12
    assert seen.keys() == {(fold, side) for fold in (0, 1) for side in (True, False)}
    for fold in (0, 1):
        assert seen[fold, True] <= own[1 - fold]
        assert seen[fold, False] <= own[fold]
        assert len(seen[fold, True]) > 0.5 * len(own[1 - fold])  # they were cut everywhere in it


def test_every_block_has_an_answer_and_a_score_and_its_own_grid(
    trained: tuple[Path, Path, Recorder],
) -> None:
    run = RunFolder(trained[1])
    ids = {f"s{n}@{k}" for n in (0, 1) for k in (0, 1)}
    assert set(run.listing()) == ids
    found = json.loads(run.splits_file.read_text())
    assert (found["by"], found["margin"], found["axis"]) == ("block", 4, None)
    for k in (0, 1):
        folder = run.fold(k)
        assert {p.name for p in folder.answers.glob("*.tif")} == {f"s0@{k}.tif", f"s1@{k}.tif"}
        assert files.read(folder.answers / f"s1@{k}.tif", 3)[0].shape == (1, 12, 20, 10)
        assert "s0@0" in run.listing()
    summary = json.loads(run.summary_file.read_text())
    assert "dice" in json.dumps(summary)


def test_it_goes_on_and_another_margin_is_another_run(
    trained: tuple[Path, Path, Recorder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out, _ = trained
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    words = ["--config", str(yaml_of(tmp_path)), "--data-dir", str(root), "--out", str(out)]
    assert train.main([*words, "--fold", "1"]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    assert train.main([*words, "--fold", "1", "--set", "data.folds.margin=2"]) == 2
    assert "margin" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fold_that_was_stopped_ends_with_the_same_weights(
    trained: tuple[Path, Path, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out, _ = trained
    words = ["--config", str(yaml_of(tmp_path)), "--data-dir", str(root), "--fold", "0"]
    words += ["--out", str(tmp_path / "run")]
    original, calls = loaders.PatchDataset.__getitem__, 0

    def break_down(dataset: Any, key: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 24:
            raise RuntimeError("lost")
        return original(dataset, key)

    with monkeypatch.context() as patch:
        patch.setattr(loaders.PatchDataset, "__getitem__", break_down)
        assert train.main(words) == 1
    assert train.main(words) == 0
    name = "fold_0/best_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (out / name).read_bytes()


def test_all_blocks_are_trained_on_by_fold_all(
    trained: tuple[Path, Path, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    words = ["--config", str(yaml_of(tmp_path)), "--data-dir", str(trained[0]), "--fold", "all"]
    assert train.main([*words, "--out", str(tmp_path / "run")]) == 0
    both = [numbered(1), numbered(20000)]
    kept = {int(v) for w in both for a, b in ((0, 20), (24, 44)) for v in w[:, a:b].ravel()}
    (seen,) = recorder.seen.values()
    assert seen <= kept


def test_whole_stacks_and_parts_of_them_are_predicted(
    trained: tuple[Path, Path, Recorder], tmp_path: Path
) -> None:
    root, out, _ = trained
    words = ["--checkpoint", str(out), "--output", str(tmp_path / "out"), "--input"]
    assert predict.main([*words, str(root / "images")]) == 0
    for n in (0, 1):
        assert files.read(tmp_path / "out" / f"s{n}.tif", 3)[0].shape == (1, *SHAPE)
    words = ["--checkpoint", str(out), "--output", str(tmp_path / "part"), "--input"]
    assert predict.main([*words, str(root / "images" / "s0.tif#box=:x0:20x:")]) == 0
    assert files.read(tmp_path / "part" / "s0.tif", 3)[0].shape == (1, 12, 20, 10)


@pytest.mark.slow
def test_answers_of_blocks_can_be_evaluated_with_links_to_their_labels(
    trained: tuple[Path, Path, Recorder], tmp_path: Path
) -> None:
    root, out, _ = trained
    fold = RunFolder(out).fold(1)
    for n in (0, 1):
        link = tmp_path / "labels" / f"s{n}@1.tif#box=:x24:44x:"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(root / "masks" / f"s{n}.tif")
    words = [
        "--predictions",
        str(fold.answers),
        "--labels",
        str(tmp_path / "labels"),
        "--metrics",
        "dice",
    ]
    assert evaluate.main([*words, "--out", str(tmp_path / "scores.json")]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    mine = json.loads((fold.path / "result.json").read_text())["metrics"]
    assert set(found["cases"]) == {"s0@1", "s1@1"}
    assert found["mean"]["dice"] == pytest.approx(mine["best"]["dice"])


@pytest.mark.slow
def test_tuning_takes_blocks_for_cases(
    trained: tuple[Path, Path, Recorder], tmp_path: Path
) -> None:
    root, out, _ = trained
    for more in ([], ["--data-dir", str(root)]):
        words = [str(out), "--metric", "dice", "--out", str(tmp_path / f"t{len(more)}.yaml")]
        assert tune.main([*words, *more]) == 0


def test_the_answers_of_a_nifti_stack_lie_where_its_blocks_do(tmp_path: Path) -> None:
    affine = np.array([[0, -2.0, 0, 7], [1.5, 0, 0, -3], [0, 0, 2.5, 11], [0, 0, 0, 1]])
    root = tmp_path / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        values = numbered().transpose(2, 1, 0)
        array = values if folder == "images" else label_of(values)
        nibabel.save(nibabel.Nifti1Image(array, affine), root / folder / "s.nii.gz")
    data = {**TINY["data"], "patch": {"size": [8, 16, 8], "batch": 2, "per_case": 2}}
    config = yaml_of(tmp_path, data=data, train={**TINY["train"], "epochs": 1})
    words = ["--config", str(config), "--data-dir", str(root), "--out", str(tmp_path / "run")]
    assert train.main([*words, "--fold", "1"]) == 0
    answer: Any = nibabel.load(tmp_path / "run" / "fold_1" / "oof" / "s@1.nii.gz")
    assert answer.shape == (10, 20, 12)
    whole: Any = nibabel.load(root / "images" / "s.nii.gz")
    np.testing.assert_allclose(answer.affine, whole.slicer[:, 24:].affine)
    assert not np.allclose(answer.affine, affine)


def test_real_stacks_are_divided(shared_data: Path) -> None:
    """One of the real volumes alone, as one big stack would be."""
    root = shared_data / "fib25_surfaces"
    config = configs.from_dict(
        {
            **TINY,
            "data": {
                "layout": "competition",
                "ignore_label": 2,
                "folds": {"count": 3, "by": "block", "margin": 8},
                "patch": {"size": [16, 16, 16]},
            },
        }
    )
    found = cases.find(config.data, config.roles, root)
    assert not [f for f in found.faults if f.severity == "error"]
    first = [c for c in found.train if c.id.startswith(found.train[0].id.split("@")[0])]
    whole = tifffile.imread(str(first[0].image[0]).partition("#")[0])
    axis = int(np.argmax(whole.shape))
    boxes = blocks.ranges(whole.shape[axis], 3, 8)
    for case, (a, b) in zip(first, boxes, strict=True):
        cut = whole.take(range(a, b), axis)
        np.testing.assert_array_equal(files.read(case.image[0], 3)[0][0], cut)
