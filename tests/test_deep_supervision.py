"""A network with deep-supervision heads that no term names: the losses count there, too, by half, a
quarter ..., and it is said.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline import train
from pipeline.losses import with_deep
from pipeline.records import LossTerm

NETWORK = "network={name: dynunet, options: {channels: [4, 4, 8, 8], deep_supervision: 2}}"
QUICK = ("--fold", "0", "--set", "train.epochs=1", "train.average=null", "metrics=[dice]")
Output = pytest.CaptureFixture[str]


def run(config: Path, data: Path, out: Path, *more: str) -> int:
    return train.main(
        [
            "--config",
            str(config),
            "--data-dir",
            str(data),
            "--out",
            str(out),
            *QUICK,
            NETWORK,
            *more,
        ]
    )


def losses_of(out: Path) -> dict[str, float]:
    return json.loads((out / "fold_0" / "log.jsonl").read_text().splitlines()[0])


def test_terms_are_added_and_said(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "run"
    assert run(tiny, surfaces, out) == 0
    (line,) = (
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("Deep supervision:")
    )
    assert "deep1 (0.5 times)" in line
    assert "deep2 (0.25 times)" in line
    row = losses_of(out)
    names = {"dice": 0.4, "focal": 0.2, "variance": 0.2}
    for name in names:
        assert {f"train/{name}", f"train/{name}@deep1", f"train/{name}@deep2"} <= set(row)
    total = sum(
        weight
        * (row[f"train/{n}"] + 0.5 * row[f"train/{n}@deep1"] + 0.25 * row[f"train/{n}@deep2"])
        for n, weight in names.items()
    )
    assert row["train_loss"] == pytest.approx(total, rel=1e-5)
    assert [t["head"] for t in yaml.safe_load((out / "config.yaml").read_text())["losses"]] == [
        "main"
    ] * 3  # as it was written
    assert run(tiny, surfaces, out) == 0  # and so the run can go on


def test_named_heads_are_left_alone(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    assert (
        run(
            tiny,
            surfaces,
            tmp_path / "run",
            "losses=[dice, {name: dice, head: deep1, weight: 0.3}]",
        )
        == 0
    )
    assert "Deep supervision" not in capsys.readouterr().out
    assert {k for k in losses_of(tmp_path / "run") if k.startswith("train/")} >= {
        "train/dice",
        "train/dice@deep1",
    }
    assert "train/dice@deep2" not in losses_of(tmp_path / "run")


def test_a_run_of_before_goes_on_without(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "run"
    assert run(tiny, surfaces, out) == 0
    known = json.loads((out / "environment.json").read_text())
    del known["metrics_version"]
    (out / "environment.json").write_text(json.dumps(known))
    capsys.readouterr()
    assert run(tiny, surfaces, out, "--fold", "1") == 0
    assert "Deep supervision" not in capsys.readouterr().out
    assert "@deep" not in (out / "fold_1" / "log.jsonl").read_text()


def test_weights_halve_from_head_to_head() -> None:
    terms = (LossTerm(name="dice", weight=2.0), LossTerm(name="ce", head="mask", target="mask"))
    added = with_deep(terms, ("main", "mask", "deep2", "deep1"))[2:]
    assert [(t.name, t.head, t.weight) for t in added] == [
        ("dice", "deep1", 1.0),
        ("dice", "deep2", 0.5),
    ]
