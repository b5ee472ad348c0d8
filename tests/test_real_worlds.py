"""Real scans of mixed orientations and spacings through model space and back."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from small_models import model_file
from worlds import system

from pipeline import files
from pipeline import predict as predict_command
from pipeline.config import Config
from pipeline.data.cases import class_names
from pipeline.data.model_space import ModelSpace
from pipeline.data.spaces import space_of
from pipeline.grid import grid_of
from pipeline.inference.soft import SoftMeta, SoftPrediction
from pipeline.inference.writing import decided

STACKS = [f"fetal_run{n}" for n in range(1, 7)]


def labelled(root: Path, case: str, config: Config) -> tuple[np.ndarray, ModelSpace]:
    """A label ``(1, *S)`` as its file has it, and the way of its image to model space."""
    image, geometry = files.read(root / "imagesTr" / f"{case}_0000.nii.gz", 3)
    label, _ = files.read(root / "labelsTr" / f"{case}.nii.gz", 3, labels=True)
    space = space_of(Path(case), grid_of(geometry, 3), image, config, {})
    return np.rint(label).astype(np.uint8), space


def back_on_its_grid(label: np.ndarray, space: ModelSpace, classes: int) -> np.ndarray:
    """The label in model space, taken as a certain prediction and brought back, ``(*S)``."""
    seen = space.labels_to_model(label)[0]
    assert set(np.unique(seen)) <= set(np.unique(label))
    heads = {"main": np.stack([seen == c for c in range(classes)]).astype(np.float32)}
    meta = SoftMeta(task="labels")
    return np.asarray(decided(SoftPrediction(case_id="c", heads=heads, meta=meta, space=space)))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


@pytest.mark.parametrize("case", STACKS)
def test_stacks_of_three_orientations_come_back_to_the_last_voxel(
    shared_data: Path, case: str
) -> None:
    root = shared_data / "fetal_brain_mialsrtk6"
    config = system({"orientation": "RAS", "crop": "nonzero", "classes": 2})
    label, space = labelled(root, case, config)
    inside = space.to_file(space.to_model(np.ones_like(label)))[:]
    back = back_on_its_grid(label, space, 2)
    assert back.shape == label.shape[1:]
    np.testing.assert_array_equal(back, label[0] * inside[0])


def test_resampled_stacks_agree_with_their_labels(shared_data: Path) -> None:
    root = shared_data / "fetal_brain_mialsrtk6"
    config = system({"orientation": "RAS", "spacing": [1.5, 1.5, 1.5], "classes": 2})
    for case in STACKS[::2]:
        label, space = labelled(root, case, config)
        assert space.spacing == (1.5, 1.5, 1.5)
        back = back_on_its_grid(label, space, 2)
        assert dice(back > 0, label[0] > 0) > 0.97, case


def test_answers_lie_in_each_stacks_own_grid(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "fetal_brain_mialsrtk6"
    data = {
        "dims": 3,
        "patch": {"size": [64, 64, 64]},
        "normalise": "zscore",
        "orientation": "RAS",
        "crop": "nonzero",
        "spacing": [2.5, 2.5, 3.5],
    }
    model = model_file(tmp_path, trained_on={"family": "nifti", "codes": "RAS"}, data=data)
    images = [root / "imagesTr" / f"{case}_0000.nii.gz" for case in STACKS[::2]]
    words = ["--checkpoint", str(model), "--input", *map(str, images)]
    assert predict_command.main([*words, "--output", str(tmp_path / "out")]) == 0
    codes = set()
    for path in images:
        given = nibabel.load(path)
        answer = nibabel.load(tmp_path / "out" / path.name)
        assert answer.shape == given.shape
        np.testing.assert_array_equal(answer.affine, given.affine)
        codes.add("".join(nibabel.aff2axcodes(answer.affine)))
    assert codes == {"RAS", "IRP", "IAR"}


def test_organs_keep_their_names_and_volumes(shared_data: Path) -> None:
    root = shared_data / "openkbp_oar"
    names = class_names(root)
    assert (names[1], names[4], len(names)) == ("Brainstem", "LeftParotid", 7)
    config = system({"orientation": "RAS", "spacing": [4.5, 4.5, 3.0], "classes": 8})
    for case in ("kbp_004", "kbp_100", "kbp_332"):
        label, space = labelled(root, case, config)
        back = back_on_its_grid(label, space, 8)
        assert set(np.unique(back)) == set(range(8))
        for c in range(1, 8):
            before, after = (int(np.count_nonzero(x == c)) for x in (label[0], back))
            assert abs(after - before) < 0.4 * before + 30, (case, names[c], before, after)
            assert dice(back == c, label[0] == c) > 0.7, (case, names[c])
