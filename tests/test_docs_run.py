"""The Python of the pages runs as it stands, page by page, on small data that is made here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from documents import ROOT, python_blocks, run_blocks

import pipeline as pl
from pipeline import networks, plugins
from pipeline.records import NamedOptions

DOCS = ROOT / "docs"

RUN_ELSEWHERE = {
    "library.md": "test_api.py",
    "own_loop.md": "test_docs_own_loop.py",
    "architecture.md": "test_walks.py",
    "extending.md": "test_plugins.py",
}
"""Pages whose blocks other tests run, which also look at what comes out."""

QUICK = ("kaggle.md", "monai.md", "microscopy.md", "restoration.md")
"""Pages that need neither files nor training."""

TRAINING = ("start.md", "plan.md")


def page(name: str) -> Path:
    (found,) = [p for p in DOCS.rglob(name) if "_build" not in p.parts]
    return found


def test_every_page_with_python_is_run() -> None:
    with_python = {
        p.name
        for p in (*DOCS.rglob("*.md"), ROOT / "README.md")
        if "_build" not in p.parts and any(not reason for reason, _ in python_blocks(p))
    }
    assert with_python == {*RUN_ELSEWHERE, *QUICK, *TRAINING}
    for name, test in RUN_ELSEWHERE.items():
        assert name in (ROOT / "tests" / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", QUICK)
def test_a_page_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_blocks(page(name), {})
    said = capsys.readouterr().out
    CHECKS[name](names, said)


def kaggle(names: dict[str, Any], said: str) -> None:
    whole, broken = map(float, said.split())
    assert whole == 1
    assert broken < 0.99


def monai(names: dict[str, Any], said: str) -> None:
    assert names["whole"].shape == (2, 1, 32, 32)
    assert torch.isfinite(names["loss"])
    assert "['main']" in said


def microscopy(names: dict[str, Any], said: str) -> None:
    assert "'lesion_f1': 0.66" in said


def restoration(names: dict[str, Any], said: str) -> None:
    assert names["output"].grad is not None
    assert names["metric"].values()["leak"] == pytest.approx(0.02, abs=0.005)


CHECKS = {
    "kaggle.md": kaggle,
    "monai.md": monai,
    "microscopy.md": microscopy,
    "restoration.md": restoration,
}


@pytest.mark.slow
def test_the_first_page_runs(
    surfaces: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_blocks(page("start.md"), {"DATA": surfaces, "CONFIG": tiny})
    assert names["run"].completed() == [0]


def nnunet_folder(root: Path) -> None:
    """Twelve volumes of one bright cube."""
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    for n in range(12):
        label = np.zeros((20, 20, 20), np.uint8)
        at = rng.integers(4, 9)
        label[at : at + 7, 5:12, 6:13] = 1
        image = (100 * label + rng.normal(100, 10, label.shape)).astype(np.float32)
        for folder, array, end in (("imagesTr", image, "_0000"), ("labelsTr", label, "")):
            nifti = nibabel.Nifti1Image(array, np.eye(4))
            nibabel.save(nifti, root / folder / f"case{n:02}{end}.nii.gz")
    (root / "dataset.json").write_text(
        '{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "cube": 1},'
        ' "numTraining": 12, "file_ending": ".nii.gz"}'
    )


@pytest.mark.slow
def test_the_page_of_plans_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nnunet_folder(tmp_path / "DIR")
    names = run_blocks(page("plan.md"), {})
    assert (tmp_path / "NAME.yaml").is_file()
    assert names["plan"].config.data.classes == 2


def test_the_plugin_of_the_guide_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``py`` marks a file of its own."""
    text = page("monai.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("attention.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins, "_owners", {})
    with networks.NETWORKS.restored():
        pl.load_plugins("attention.py")
        net = networks.build(NamedOptions(name="attention"), 1, 2, 2)
        assert net(torch.zeros(1, 1, 33, 40))["main"].shape == (1, 2, 33, 40)
