"""Class names of dataset.json stand where people read metrics; JSON keys stay numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline import files, report, train
from pipeline.data.cases import class_names
from pipeline.reporting import tables


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"background": 0, "Anterior": 1, "Posterior": 2}, {1: "Anterior", 2: "Posterior"}),
        ({"Posterior": 2, "Anterior": 1, "background": 0}, {1: "Anterior", 2: "Posterior"}),
        (
            {"0": "background", "1": "Anterior", "10": "Tail", "2": "Posterior"},
            {1: "Anterior", 2: "Posterior", 10: "Tail"},
        ),
        ({"nothing": 0, "whole tumor": [1, 2], "core": 2, "ignore": 3}, {2: "core"}),
        ({"background": "0", "Anterior": "1"}, {1: "Anterior"}),
        (
            {"0": "background", "1": "tumor", "2": "tumor", "3": "cyst"},
            {1: "tumor (1)", 2: "tumor (2)", 3: "cyst"},
        ),
        (
            {
                "background": 0,
                "left\n\x1b[31m kidney": 1,
                " ": 2,
                "yes": True,
                "half": 0.5,
                "below": -1,
            },
            {1: "left [31m kidney"},
        ),
        ({"1" * 5000: "long", "1": "Anterior"}, {1: "Anterior"}),
        (["background", "Anterior"], {}),
        (None, {}),
    ],
)
def test_names_of_both_versions(labels: object, names: dict[int, str], tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert class_names(tmp_path) == names
    assert list(class_names(tmp_path)) == sorted(names)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\xfe", b'{"labels": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
)
def test_a_damaged_file_has_no_names(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    assert class_names(tmp_path) == {}


def test_a_missing_file_has_no_names(tmp_path: Path) -> None:
    assert class_names(tmp_path / "nowhere") == {}


def nnunet_folder(root: Path, names: list[str], cases: int = 4) -> Path:
    """Grey images of 32 x 32 with a square a class, and a dataset.json that names them."""
    squares = len(names)
    side = 32 // int(np.ceil(np.sqrt(squares)))
    for n in range(cases):
        rng = np.random.default_rng(n)
        label = np.zeros((1, 32, 32), np.uint8)
        for value, place in enumerate(rng.permutation(squares), 1):
            y, x = divmod(int(place), 32 // side)
            label[:, y * side : (y + 1) * side - 1, x * side : (x + 1) * side - 1] = value
        image = np.clip(label * (200 // squares) + rng.integers(0, 20, label.shape), 0, 255).astype(
            np.uint8
        )
        files.write(root / "imagesTr" / f"case{n}_0000.png", image)
        files.write(root / "labelsTr" / f"case{n}.png", label)
    labels = {"background": 0, **{name: value for value, name in enumerate(names, 1)}}
    document = {
        "channel_names": {"0": "grey"},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(document))
    return root


def config_file(path: Path, classes: int, metrics: str) -> Path:
    path.write_text(f"""
name: named
task: labels
data:
  layout: nnunet
  dims: 2
  classes: {classes}
  folds: {{count: 2}}
  patch: {{size: [16, 16], batch: 2, foreground: null}}
network: {{name: unet, options: {{channels: [4, 4, 8, 8, 8]}}}}
losses: [dice, ce]
metrics: {metrics}
train: {{epochs: 2, average: null}}
""")
    return path


def trained(tmp_path: Path, names: list[str], metrics: str) -> Path:
    data, run = nnunet_folder(tmp_path / "data", names), tmp_path / "run"
    config = config_file(tmp_path / "named.yaml", len(names) + 1, metrics)
    assert (
        train.main(
            ["--config", str(config), "--data-dir", str(data), "--out", str(run), "--device", "cpu"]
        )
        == 0
    )
    return run


def test_training_names_its_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path, ["Anterior", "CA1 <b>head"], "[dice, iou]")
    out = capsys.readouterr().out
    summary = files.read_json(run / "summary.json")
    assert summary["class_names"] == {"1": "Anterior", "2": "CA1 <b>head"}
    assert {"dice", "dice_1", "dice_2", "iou_1"} <= set(summary["out_of_fold"])
    assert "val_dice_1" in json.loads((run / "fold_0" / "log.jsonl").read_text().splitlines()[0])
    lines = (run / "fold_0" / "training_log.txt").read_text().splitlines()
    assert all(
        "Val Dice Anterior: 0." in line and "Val Dice CA1 <b>head: 0." in line for line in lines
    )
    assert all(line in out for line in lines)
    (head,) = [line for line in out.splitlines() if line.startswith("fold        status")]
    for title in ("dice Anterior", "dice CA1 <b>head", "iou Anterior"):
        assert title in head
    (mean,) = [line for line in out.splitlines() if line.startswith("out of fold")]
    for key, title in (("dice_1", "dice Anterior"), ("iou_2", "iou CA1 <b>head")):
        end = head.index(title) + len(title)
        assert mean[:end].split()[-1] == f"{summary['out_of_fold'][key]:.4f}", "a column has moved"
    page = (run / "report.html").read_text()
    for title in (
        "dice Anterior",
        "dice CA1 &lt;b&gt;head",
        "</i>Anterior<",
        "</i>CA1 &lt;b&gt;head<",
    ):
        assert title in page
    assert "dice_1" not in page.partition("<h2>Origin")[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.classes=3"], ""),
        (
            ["data.classes=2", "data.ignore_label=2"],
            "calls 2 'Posterior', but data.ignore_label is 2: it is not learned",
        ),
        (["data.classes=5"], "names classes up to 2, but data.classes is 5"),
    ],
)
def test_a_config_that_reads_classes_otherwise_is_warned_of(
    settings: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, config = (
        nnunet_folder(tmp_path / "data", ["Anterior", "Posterior"]),
        config_file(tmp_path / "c.yaml", 3, "[dice]"),
    )
    assert (
        train.main(
            ["--config", str(config), "--data-dir", str(data), "--dry-run", "--set", *settings]
        )
        == 0
    )
    told = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("warning: ") and "dataset.json" in line
    ]
    assert [words in line for line in told] == [True] * bool(words)


def test_a_class_that_is_called_ignore_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, config = (
        nnunet_folder(tmp_path / "data", ["Anterior", "ignore"]),
        config_file(tmp_path / "c.yaml", 3, "[dice]"),
    )
    assert train.main(["--config", str(config), "--data-dir", str(data), "--dry-run"]) == 0
    assert (
        "calls 2 'ignore', but data.ignore_label is None: it is learned as a class"
        in capsys.readouterr().out
    )
    assert (
        train.main(
            [
                "--config",
                str(config),
                "--data-dir",
                str(data),
                "--dry-run",
                "--set",
                "data.classes=2",
                "data.ignore_label=2",
            ]
        )
        == 0
    )
    assert "dataset.json" not in capsys.readouterr().out


def test_many_classes_have_tables_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "spleen",
        "right kidney",
        "left kidney",
        "gall bladder",
        "esophagus",
        "liver",
        "stomach",
        "aorta",
        "pancreas",
    ]
    run = trained(tmp_path, names, "[dice, iou]")
    table, page = (
        tables.of_training(files.read_json(run / "summary.json")),
        (run / "report.html").read_text(),
    )
    assert table in capsys.readouterr().out
    assert max(map(len, table.splitlines())) < 120
    means = files.read_json(run / "summary.json")["out_of_fold"]
    for value, name in enumerate(names, 1):
        numbers = [f"{means[f'{metric}_{value}']:.4f}" for metric in ("dice", "iou")]
        assert [
            line
            for line in table.splitlines()
            if line.startswith(name) and line.split()[-2:] == numbers
        ]
    classes = page.partition("<h2>Classes")[2].partition("<h2>")[0]
    for value, name in enumerate(names, 1):
        row = rf">{name}</th><td[^>]*><span>{means[f'dice_{value}']:.3f}</span>"
        assert re.search(row, classes)
    tiles = re.findall(r'<div class="tile"><span>(\w+)<', page)
    assert tiles == ["dice", "iou"]


def test_summaries_of_before_show_numbers(tmp_path: Path) -> None:
    run = trained(tmp_path, ["Anterior", "Posterior"], "[dice]")
    summary = files.read_json(run / "summary.json")
    del summary["class_names"]
    files.write_json(run / "summary.json", summary)
    assert "dice_1" in tables.of_training(summary)
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "dice_1" in page
    assert "</i>class 1<" in page
