"""A dry run promises what a start would do: all faults of config and data in one list, names before
data, nothing started.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import TINY, competition_folder, sheets
from PIL import Image

from pipeline import train

Output = pytest.CaptureFixture[str]


def start(config: Path, data: Path, out: Path, *more: str) -> int:
    return train.main(["--config", str(config), "--data-dir", str(data), "--out", str(out), *more])


def listed(
    config: Path, data: Path, out: Path, capsys: Output, *more: str
) -> tuple[int, list[str]]:
    """Exit code and lines of a dry run, which leaves no run folder."""
    before = sorted(out.rglob("*")) if out.is_dir() else None
    code = start(config, data, out, "--dry-run", *more)
    assert (sorted(out.rglob("*")) if out.is_dir() else None) == before
    return code, capsys.readouterr().out.splitlines()


WRONG = [
    ("data.folds.count=7", "only 6 cases"),
    ("data.folds={count: 3, by: group}", "only 2 groups"),
    ("train.init_from.path=/nowhere/a.safetensors", "no such model file"),
    ("train.init_from.path=tiny.yaml", "safetensors"),
    ("seed=-1", "from 0 to 4294967295"),
    ("seed=4294967296", "from 0 to 4294967295"),
    (
        "data.augment=[{name: noise, options: {std: x}}]",
        "data.augment.0: 'noise': option std is 'x', must be a number",
    ),
    (
        "data.augment=[flip, {name: noise, options: {std: -1}}]",
        "data.augment.1: 'noise' with {'std': -1}",
    ),
    (
        "data.augment=[{name: brightness, options: {range: [a, 1]}}]",
        "must be a list of two numbers",
    ),
    ("train.schedule={name: poly, options: {power: x}}", "option power is 'x', must be a number"),
    (
        "train.schedule={name: step, options: {every: 0}}",
        "train.schedule: 'step' with {'every': 0}",
    ),
    (
        "train.schedule={name: one_cycle, options: {start: 0}}",
        "train.schedule: 'one_cycle' with {'start': 0}",
    ),
    ("train.optimizer.options.lr=x", "option lr is 'x', must be a number"),
    ("train.optimizer.options.lr=-1", "train.optimizer: 'adam'"),
    ("train.optimizer.options.betas=[0.9]", "must be a list of two numbers"),
    ("train.average.lr=-1", "train.average.lr is -1"),
    (
        "metrics=[dice, {name: surface_dice, options: {tolerance: x}}]",
        "metrics.1: 'surface_dice': option tolerance is 'x'",
    ),
    ("metrics=[{name: surface_dice, options: {tolerance: -1}}]", "must not be negative"),
    (
        "metrics=[{name: surface_dice, options: {tolerance_mm: 1.0}}]",
        "tolerance_mm needs the distance between voxels",
    ),
    ("metrics=[dice, psnr]", "metrics.1: 'psnr' is a metric of images"),
    ("train.validate.metrics=[ssim]", "train.validate.metrics.0: 'ssim' is a metric of images"),
    ("losses.1.options={gamma: x}", "loss 'focal': gamma is 'x', must be a number"),
    ("losses=[{name: dice, weight: 0}, {name: ce, weight: 0}]", "losses: every weight is 0"),
    (
        "losses=[{name: tversky, options: {alpha: 0, beta: 0}}]",
        "losses.0: 'tversky' with {'alpha': 0, 'beta': 0}",
    ),
    ("losses.0.target=edge", "reads target 'edge', which the data does not have"),
    ("losses.0.head=deep1", "reads head 'deep1', which the network does not have"),
    ("network.options.dropout=x", "network 'unet': dropout is 'x', must be a number"),
    ("network.options.channels=[4]", "channels"),
    ("network.options.channels=[9000,9000,9000,9000,9000]", "weights, must be at most"),
    ("data.normalise={name: percentile, options: {low: 90, high: 10}}", "low < high"),
    (
        "data.normalise={name: range, options: {high: x}}",
        "option high is 'x', must be a number or null",
    ),
    (
        "postprocess=[threshold, {name: dust, options: {below: x}}]",
        "postprocess.1: 'dust': option below is 'x'",
    ),
    ("postprocess=[argmax]", "argmax compares 2 to 256 channels"),
    ("data.ignore_label=1", "the only class of foreground"),
    ("data.ignore_label=1000000000000000000000", "data.ignore_label is"),
    ("data.patch.size=[100000,100000,100000]", "must be at most 32768 along each axis"),
    ("data.patch.size=[2000,2000,2000]", "8,000,000,000 voxels"),
    ("network.options.channels=[100000000,4,8,8,8]", "must be at most 65536"),
    ("network={name: segresnet, options: {blocks_down: [1, 1000000000]}}", "must be at most 64"),
    ("data.augment=[{name: blur, options: {sigma: [1.0, 1.0e+9]}}]", "must be at most 65536"),
    ("losses=[{name: cldice, options: {iterations: 1000000000}}]", "must be at most 1000"),
    ("data.patch={size: [512, 512, 512], batch: 64}", "a step has 8,589,934,592 voxels"),
    ("data.patch.batch=1000000000", "data.patch.batch is 1000000000, must be at most 4096"),
    ("data.classes=1000000000", "data.classes is 1000000000, must be at most 256"),
    ("data.folds.count=1000000", "data.folds.count is 1000000, must be at most"),
    ("train.epochs=1000000000000", "train.epochs is 1000000000000, must be at most"),
    ("predict.halo=7", "predict.halo is 7: tile (16, 16, 16) leaves too little between two halos"),
    (
        "postprocess=[threshold, {name: closing, options: {radius: 1000}}]",
        "postprocess.1: 'closing': option radius is 1000",
    ),
    ("train.optimizer.options.lr=1.0e+30", "option lr is 1e+30, must be at most 65536"),
    ("predict.halo=8", "have nothing left between two halos"),
    ("predict.norms=exact", "norms"),
    ("data.store=FILE", "is a file"),
    ("data.store=/proc/none/store", "may not be written"),
    ("name=..", "name is '..'"),
    ("name=.", "name is '.'"),
    ("name=a/../../b", "it becomes a folder"),
    (
        "data={layout: folders, targets: {../../label: labels}, patch: {size: [16, 16, 16]}}",
        "its name becomes part of file names",
    ),
]


@pytest.mark.parametrize(("override", "words"), WRONG, ids=[o[:50] for o, _ in WRONG])
def test_what_a_start_would_refuse_is_listed(
    override: str, words: str, tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    override = override.replace("FILE", str(tiny))
    more = (
        ["network.options.norm=instance", "predict.scales=[1, 0.5]"] if "exact" in override else []
    )
    more += ["predict.patch=[16, 16, 16]"] if "exact" in override else []
    began = time.process_time()
    code, lines = listed(tiny, surfaces, tmp_path / "run", capsys, "--set", override, *more)
    assert code == 2
    assert any(line.startswith("error: ") and words in line for line in lines), lines
    assert any("Found" in line for line in lines)  # the data were looked at nonetheless
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    "override", [o for o, _ in WRONG if "FILE" not in o and "/proc" not in o][:12:3]
)
def test_a_start_refuses_the_same(
    override: str, tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    assert start(tiny, surfaces, tmp_path / "run", "--set", override) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_all_faults_are_one_list_names_before_data(
    tiny: Path, tmp_path: Path, capsys: Output
) -> None:
    """Structure, names, limits, places and files at once; a key that cannot be read is taken at its
    default.
    """
    data = competition_folder(tmp_path / "data", cases=5)
    tifffile.imwrite(data / "train_labels" / "103.tif", np.full((20, 24, 24), 7, np.uint8))
    wrong = [
        "train.epochz=3",
        "train.clip=x",
        "data.patch.tries=0",
        "data.folds.count=1",
        "data.augment=[flip, {nme: noise}, {name: noize}]",
        "network.name=unett",
        "metrics=[dicee]",
        "seed=-3",
        f"data.store={tiny}",
    ]
    code, lines = listed(tiny, data, tmp_path / "run", capsys, "--fold", "9", "--set", *wrong)
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 2
    keys = [
        "epochz",
        "train.clip",
        "data.patch.tries",
        "data.folds.count",
        "data.augment.1",
        "data.augment.2",
        "network",
        "metrics.0",
        "seed",
    ]
    keys += ["data.store", "--fold 9"]
    for key in keys:
        assert sum(key in line for line in errors if str(tiny) in line.split(": ")[1]) >= 1, (
            key,
            errors,
        )
    assert "103.tif" in errors[-1]
    assert "7 (11520 voxels)" in errors[-1]
    assert (
        len(errors) == len(set(errors)) == 13
    )  # data.augment.1: an unknown key and a missing name


@pytest.mark.parametrize(
    ("override", "count"),
    [
        (
            "data.dims=2",
            2,
        ),  # the patch has three axes, and so have the files; the value that is ignored stays known
        ("data.change={by: x}", 3),
        ("data.folders={image: null}", 1),
        ("data.patch=[16, 16, 16]", 1),
        ("data.binarise=.nan", 1),
        ("losses.0.weight=.nan", 1),
        ("data.patch={size: [16, 16, 16], foreground: [.nan, 0.7]}", 1),
    ],
)
def test_nothing_is_listed_that_only_follows(
    override: str, count: int, tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    """What is wrong behind a faulty key is looked for with something ordinary in its place, not
    without all that lies around it.
    """
    code, lines = listed(tiny, surfaces, tmp_path / "run", capsys, "--set", override)
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == count, lines
    assert override.partition("=")[0] in errors[0] or "data.patch.size" in errors[0]
    assert not [
        line
        for line in lines
        if "holds labels outside" in line or "more than twice as long" in line
    ]


def test_a_start_lists_every_fault_of_structure_and_names(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    assert (
        start(
            tiny,
            surfaces,
            tmp_path / "run",
            "--set",
            "data.folds.count=1",
            "train.epochs=0",
            "train.epochz=1",
            "predict.batch=0",
        )
        == 2
    )
    told = capsys.readouterr().err
    for key in (
        "data.folds.count is 1",
        "train.epochs is 0",
        "train.epochz: unknown key",
        "predict.batch is 0",
    ):
        assert key in told
    assert (
        start(
            tiny,
            surfaces,
            tmp_path / "run",
            "--set",
            "network.name=unett",
            "metrics=[dicee]",
            "seed=-1",
        )
        == 2
    )
    told = capsys.readouterr().err
    for key in ("'unett' is unknown", "'dicee' is unknown", "seed is -1"):
        assert key in told


def test_names_are_said_before_data_are_looked_at(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    """A giant data set folder is not looked at before names are said."""

    def look(*_: object) -> None:
        raise SystemExit(7)

    monkeypatch.setattr("pipeline.data.cases.find", look)
    with pytest.raises(SystemExit):
        start(tiny, tmp_path, tmp_path / "run", "--dry-run", "--set", "seed=-1")
    assert "seed is -1" in capsys.readouterr().out


@pytest.mark.parametrize("many", [3, 6])
def test_a_fault_of_all_cases_is_one_line(
    many: int, tiny: Path, tmp_path: Path, capsys: Output
) -> None:
    data = competition_folder(tmp_path / "data", cases=many)
    code, lines = listed(tiny, data, tmp_path / "run", capsys, "--set", "data.ignore_label=null")
    (line,) = (line for line in lines if "labels outside" in line)
    assert code == 2
    assert f"all {many} cases" in line
    assert str(data / "train_labels") in line
    assert "100.tif holds labels outside 0 to 1: 2 (" in line
    assert "101.tif" in line


def test_a_fault_of_most_cases_keeps_its_lines(tiny: Path, tmp_path: Path, capsys: Output) -> None:
    data = competition_folder(tmp_path / "data", cases=6)
    label = tifffile.imread(data / "train_labels" / "105.tif")
    tifffile.imwrite(data / "train_labels" / "105.tif", label * (label < 2))
    _, lines = listed(tiny, data, tmp_path / "run", capsys, "--set", "data.ignore_label=null")
    told = [line for line in lines if "labels outside" in line]
    assert [n for n in range(100, 106) if any(f"{n}.tif: holds" in line for line in told)] == [
        100,
        101,
        102,
        103,
        104,
    ]


def test_images_without_labels_are_one_line_whatever_their_names(
    tiny: Path, tmp_path: Path, capsys: Output
) -> None:
    data = competition_folder(tmp_path / "data", cases=5)
    for path in (data / "train_labels").iterdir():
        path.unlink()
    _, lines = listed(tiny, data, tmp_path / "run", capsys)
    assert sum("has no label of the same name" in line for line in lines) == 1
    assert any("all 5 cases" in line and "train_images" in line for line in lines)


def test_a_fold_without_a_labelled_voxel_is_refused(
    tiny: Path, tmp_path: Path, capsys: Output
) -> None:
    """Said before the start, which would fail at that fold."""
    data = competition_folder(tmp_path / "data", cases=4)
    assert (
        start(
            tiny,
            data,
            tmp_path / "a",
            "--fold",
            "0",
            "--set",
            "train.epochs=1",
            "train.average=null",
        )
        == 0
    )
    held = json.loads((tmp_path / "a" / "splits.json").read_text())["folds"][1]["val"]
    for case in held:
        tifffile.imwrite(data / "train_labels" / f"{case}.tif", np.full((20, 24, 24), 2, np.uint8))
    capsys.readouterr()
    for fold, side in (("0", "learn from"), ("1", "validate on")):
        code, lines = listed(tiny, data, tmp_path / "b", capsys, "--fold", fold)
        assert code == 2
        assert any(
            line.startswith("error: ")
            and f"fold {fold} has nothing to {side}" in line
            and held[0] in line
            for line in lines
        )
    assert start(tiny, data, tmp_path / "b", "--fold", "1") == 2
    assert "nothing to validate on" in capsys.readouterr().err
    assert not (tmp_path / "b" / "config.yaml").exists()
    tifffile.imwrite(
        data / "train_labels" / f"{held[0]}.tif", np.eye(24, dtype=np.uint8)[None].repeat(20, 0)
    )
    assert listed(tiny, data, tmp_path / "b", capsys)[0] == 0


def nnunet(root: Path) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for n in range(3):
        image, label = sheets((20, 24, 24), n)
        tifffile.imwrite(root / "imagesTr" / f"c{n}_0000.tif", image)
        tifffile.imwrite(root / "labelsTr" / f"c{n}.tif", label)
    return root


def test_the_folder_of_another_layout_is_recognised(
    tiny: Path, tmp_path: Path, capsys: Output
) -> None:
    root = nnunet(tmp_path / "raw" / "Dataset007_Sheets")
    code, lines = listed(tiny, root, tmp_path / "run", capsys)
    assert code == 2
    assert any("this is an nnU-Net folder" in line and "data.layout=auto" in line for line in lines)
    _, lines = listed(tiny, root.parent, tmp_path / "run", capsys)
    assert any(str(root) in line and "--data-dir" in line for line in lines)
    code, _ = listed(tiny, root, tmp_path / "run", capsys, "--set", "data.layout=auto")
    assert code == 0


def test_a_run_folder_that_is_a_file_or_may_not_be_written(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "file").write_text("mine")
    for out, words in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "run", "is a file"),
        (Path("/proc/run"), "may not be written"),
    ):
        assert start(tiny, surfaces, out, "--dry-run") == 2
        told = capsys.readouterr().out
        assert words in told
        assert "--out" in told
    assert start(tiny, surfaces, tmp_path / "file") == 2
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("folder", "options", "says"),
    [
        ("data", (), "is the folder of the data set"),
        ("data", ("--fresh",), "is the folder of the data set"),
        (".", ("--fresh",), "with the data set"),
        ("mine", ("--fresh",), "holds thesis.txt and no run"),
        ("mine", (), None),
        ("theirs", (), "holds summary.json, which no run wrote"),
    ],
)
def test_what_is_no_run_is_neither_replaced_nor_put_aside(
    folder: str,
    options: tuple[str, ...],
    says: str | None,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    competition_folder(tmp_path / "data", cases=4)
    for name, file in (("mine", "thesis.txt"), ("theirs", "summary.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("mine")
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    words = [
        "--config",
        str(tiny),
        "--data-dir",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / folder),
        "--dry-run",
        *options,
    ]
    assert train.main(words) == (0 if says is None else 2)
    assert says is None or says in capsys.readouterr().out
    if says is not None:
        assert train.main([w for w in words if w != "--dry-run"]) == 2
    assert [
        p for p in sorted(p for p in tmp_path.rglob("*") if p.is_file()) if p.name != ".lock"
    ] == before


def test_an_absent_device_is_listed(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, lines = listed(tiny, surfaces, tmp_path / "run", capsys, "--device", "cuda")
    assert code == 2
    assert any("--device cuda" in line for line in lines)


@pytest.fixture
def finished(tiny: Path, tmp_path: Path, capsys: Output) -> tuple[Path, Path]:
    """Data and a run on them with one complete fold."""
    data, out = competition_folder(tmp_path / "data", cases=4), tmp_path / "run"
    assert (
        start(tiny, data, out, "--fold", "0", "--set", "train.epochs=1", "train.average=null") == 0
    )
    capsys.readouterr()
    return data, out


def test_a_run_under_another_config_or_on_other_data_is_listed(
    finished: tuple[Path, Path], tiny: Path, capsys: Output
) -> None:
    data, out = finished
    same = ("--set", "train.epochs=1", "train.average=null")
    code, _ = listed(tiny, data, out, capsys, *same)
    assert code == 0
    code, lines = listed(tiny, data, out, capsys)
    assert code == 2
    assert any("train.epochs: 1 -> 3" in line for line in lines)
    assert any("--fresh" in line for line in lines)
    for folder in ("train_images", "train_labels"):
        (data / folder / "101.tif").unlink()
    code, lines = listed(tiny, data, out, capsys, *same)
    assert code == 2
    assert any("case 101: removed" in line for line in lines)
    code, _ = listed(tiny, data, out, capsys, "--fresh")
    assert code == 0


def test_a_fold_in_the_hands_of_another_process_is_listed(
    finished: tuple[Path, Path], tiny: Path, capsys: Output
) -> None:
    data, out = finished
    owner = {
        "pid": 1,
        "host": socket.gethostname(),
        "since": "2026-11-01 10:00:00",
        "command": "train.py --fold 0",
    }
    path = out / "fold_0" / ".lock"
    path.write_text(json.dumps(owner))
    same = ("--set", "train.epochs=1", "train.average=null")
    code, _ = listed(tiny, data, out, capsys, "--fold", "0", *same)
    assert code == 0  # left behind by a process that holds it no more
    handle = os.open(path, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        code, lines = listed(tiny, data, out, capsys, "--fold", "0", *same)
        assert code == 2
        assert any(
            f"{out / 'fold_0'} belongs to process 1" in line and "train.py --fold 0" in line
            for line in lines
        )
        code, lines = listed(tiny, data, out, capsys, *same)
        assert code == 0  # the other fold can be trained
        assert any(line.startswith("warning: ") and "left to it" in line for line in lines)
        code, _ = listed(tiny, data, out, capsys, "--fresh")
        assert code == 2
    finally:
        os.close(handle)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("environment.json", "{", "environment.json: cannot be decoded"),
        (
            "environment.json",
            '{"metrics_version": "x"}',
            "metrics version 'x'; this package knows 1 to",
        ),
        (
            "environment.json",
            '{"metrics_version": 99}',
            "metrics version 99; this package knows 1 to",
        ),
        ("environment.json", "[]", "metrics version []"),
        ("cases.json", "{", "cases.json: cannot be decoded"),
        ("cases.json", '{"100": 3}', "is no list of a run's cases"),
        ("splits.json", "[]", "holds no folds"),
        (
            "splits.json",
            '{"folds": [{"train": ["100", "101"], "val": ["101", "102", "103"]}]}',
            "on both sides of fold 0",
        ),
        ("fold_0/result.json", "", "is empty"),
        ("fold_0/result.json", '{"fold": 0}', "is no result of a fold. Remove it"),
        ("fold_0/result.json", "[]", "is no result of a fold. Remove it"),
    ],
)
def test_a_run_whose_files_are_damaged_is_listed_with_all_else(
    name: str, content: str, words: str, finished: tuple[Path, Path], tiny: Path, capsys: Output
) -> None:
    data, out = finished
    (out / name).write_text(content)
    same = ("--fold", "1", "--set", "train.epochs=1", "train.average=null")
    code, lines = listed(tiny, data, out, capsys, *same, "train.clip=-1")
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 2
    assert any(words in line for line in errors), lines
    assert any("train.clip is -1" in line for line in errors)
    assert start(tiny, data, out, *same) == 2
    assert words in capsys.readouterr().err
    assert not (out / "fold_1").exists()


def test_files_where_a_run_needs_folders_and_damaged_states_are_listed(
    finished: tuple[Path, Path], tiny: Path, capsys: Output
) -> None:
    data, out = finished
    same = ("--set", "train.epochs=1", "train.average=null")
    (out / "fold_0" / "result.json").unlink()
    for path in (out / "fold_0" / "checkpoint_latest").iterdir():
        path.write_bytes(b"x")
    shutil.rmtree(out / "store")
    (out / "store").write_text("mine")
    (out / "fold_1").write_text("mine")
    code, lines = listed(tiny, data, out, capsys, *same)
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 2
    for words in (
        f"{out / 'store'} is a file",
        f"{out / 'fold_1'} is a file",
        "saved states are damaged",
    ):
        assert any(words in line for line in errors), lines
    assert start(tiny, data, out, *same) == 2
    assert "is a file where the run needs a folder" in capsys.readouterr().err
    assert (out / "store").read_text() == (out / "fold_1").read_text() == "mine"


def test_initial_weights_that_do_not_fit_are_listed(
    finished: tuple[Path, Path], tiny: Path, tmp_path: Path, capsys: Output
) -> None:
    data, out = finished
    init = f"train.init_from.path={out / 'fold_0' / 'best_model.safetensors'}"
    assert listed(tiny, data, tmp_path / "b", capsys, "--set", init)[0] == 0
    code, lines = listed(
        tiny, data, tmp_path / "b", capsys, "--set", init, "network.options.channels=[4,4,8,8,12]"
    )
    assert code == 2
    assert any("allow_shape" in line for line in lines)


def test_a_patch_larger_than_every_image_by_far_is_a_warning(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    code, lines = listed(
        tiny, surfaces, tmp_path / "run", capsys, "--set", "data.patch.size=[64,16,16]"
    )
    assert code == 0
    assert any(
        line.startswith("warning: ") and "20x24x24" in line and "[64, 16, 16]" in line
        for line in lines
    )


PHOTOS = """
name: photos
task: image
data:
  layout: folders
  folders: {image: src, target: dst}
  dims: 2
  folds: {count: 2}
  normalise: {name: range, options: {low: 0, high: null}}
  patch: {size: [16, 16], foreground: null}
network: {name: dynunet, options: {channels: [4, 4, 8]}}
losses: [{name: l1, target: target}]
metrics: [psnr]
train: {epochs: 1, preview_every: 0, validate: {metrics: [psnr]}, stop: {monitor: val_psnr}}
predict: {overlap: 4}
"""


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    for n in range(4):
        for folder in ("src", "dst"):
            (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (24, 9, 3)).astype(np.uint8)).save(
                tmp_path / "photos" / folder / f"{n}.png"
            )
    (tmp_path / "photos.yaml").write_text(PHOTOS)
    return tmp_path / "photos.yaml", tmp_path / "photos"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("metrics=[dice]", "metrics.0: 'dice' is a metric of labels"),
        (
            "train.validate.metrics=[psnr, hd95]",
            "train.validate.metrics.1: 'hd95' is a metric of labels",
        ),
        ("metrics=[psnr, ssim]", "every side must be at least"),  # images of 24 x 9
        ("metrics=[{name: psnr, options: {peak: 0}}]", "peak is 0"),
        ("losses.0={name: ms_ssim, target: target}", "need at least 176 along each side"),
        (
            "losses.0={name: perceptual, target: target, options: {weights: /nowhere.safetensors}}",
            "no such file",
        ),
        ("metrics=[psnr, retouch]", "Set data.change"),
    ],
)
def test_metrics_and_losses_of_images(
    override: str, words: str, photos: tuple[Path, Path], tmp_path: Path, capsys: Output
) -> None:
    assert listed(*photos, tmp_path / "run", capsys)[0] == 0
    code, lines = listed(*photos, tmp_path / "run", capsys, "--set", override)
    assert code == 2
    assert any(line.startswith("error: ") and words in line for line in lines), lines


def test_competition_metric_of_images_is_listed(
    photos: tuple[Path, Path], tmp_path: Path, capsys: Output
) -> None:
    root = tmp_path / "flat"
    for n in range(3):
        image, label = sheets((24, 24), n)
        for folder, array in (("images", image), ("masks", label * (label < 2))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{n}.png")
    text = (
        TINY.replace("competition", "auto")
        .replace("[16, 16, 16]", "[16, 16]")
        .replace("ignore_label: 2", "dims: 2")
    )
    (tmp_path / "flat.yaml").write_text(text)
    assert listed(tmp_path / "flat.yaml", root, tmp_path / "run", capsys)[0] == 0
    code, lines = listed(
        tmp_path / "flat.yaml",
        root,
        tmp_path / "run",
        capsys,
        "--set",
        "metrics=[dice, competition]",
    )
    assert code == 2
    assert any("metrics.1: 'competition'" in line and "volumes" in line for line in lines)


def test_good_settings_of_every_kind_pass(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    """What is tried out must not refuse what trains: every augmentation, schedule, optimiser, loss
    and metric with its defaults.
    """
    from pipeline.data.augment import AUGMENT
    from pipeline.losses import for_target
    from pipeline.metrics import METRICS
    from pipeline.training.optim import OPTIMIZERS, SCHEDULES

    augment = ", ".join(["spatial", *(n for n in AUGMENT if n not in ("clahe", "spatial"))])
    metrics = ", ".join(n for n, entry in METRICS.items() if entry.task == "labels")
    losses = ", ".join(f"{{name: {n}}}" for n in for_target("labels"))
    more = [f"data.augment=[{augment}]", f"metrics=[dice, {metrics}]", f"losses=[{losses}]"]
    code, lines = listed(tiny, surfaces, tmp_path / "run", capsys, "--set", *more)
    assert code == 0, lines
    for name in SCHEDULES:
        assert (
            listed(
                tiny,
                surfaces,
                tmp_path / "run",
                capsys,
                "--set",
                f"train.schedule={{name: {name}}}",
            )[0]
            == 0
        ), name
    for name in OPTIMIZERS:
        assert (
            listed(
                tiny,
                surfaces,
                tmp_path / "run",
                capsys,
                "--set",
                f"train.optimizer={{name: {name}}}",
            )[0]
            == 0
        ), name


def test_a_store_that_is_complete_is_only_read(
    finished: tuple[Path, Path],
    tiny: Path,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.workflows.checks import places

    data, out = finished
    shutil.copytree(out / "store", tmp_path / "kept")
    monkeypatch.setattr(
        places,
        "refused",
        lambda folder: "Read-only file system" if folder == tmp_path / "kept" else "",
    )
    store = f"data.store={tmp_path / 'kept'}"
    assert listed(tiny, data, tmp_path / "b", capsys, "--set", store)[0] == 0
    next((tmp_path / "kept" / "arrays").glob("*.json")).unlink()
    code, lines = listed(tiny, data, tmp_path / "b", capsys, "--set", store)
    assert code == 2
    assert any("lacks 1 cases" in line and "data.store" in line for line in lines)
