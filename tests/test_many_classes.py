"""A hundred classes: label types, counts in one pass, losses in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config, limits
from pipeline.config import from_dict
from pipeline.data.targets import label_dtype, read_labels
from pipeline.files import write
from pipeline.losses import many, overlap
from pipeline.metrics import evaluate
from pipeline.metrics.context import MetricContext
from pipeline.metrics.frames import count_classes
from pipeline.metrics.overlap import joint_counts, over_classes
from pipeline.postprocess import argmax
from pipeline.records import NamedOptions

ROOT = Path(__file__).resolve().parents[1]


# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "ignore", "dtype"),
    [
        (100, None, "uint8"),
        (256, None, "uint8"),
        (255, 255, "uint8"),
        (100, 300, "uint16"),
        (100, -1, "int8"),
        (200, -1, "int16"),
    ],
)
def test_labels_keep_their_values(
    classes: int, ignore: int | None, dtype: str, tmp_path: Path
) -> None:
    data = config.Data(
        dims=2, patch=config.Patch(size=(8, 8)), classes=classes, ignore_label=ignore
    )
    assert label_dtype(data) == dtype
    values = [*range(classes), *([] if ignore is None else [ignore])]
    label = np.resize(np.array(values, np.int16), (1, 20, 20))
    write(tmp_path / "label.npy", label)
    assert (read_labels(tmp_path / "label.npy", data) == label).all()


def test_more_classes_than_answers_can_hold_are_refused() -> None:
    settings = {"name": "x", "network": "unet", "losses": ["dice"], "data": {"classes": 257}}
    texts = [p.text for p in limits.problems(from_dict(settings))]
    assert "data.classes is 257, must be at most 256." in texts
    soft = np.zeros((256, 1, 3), np.float32)
    soft[[0, 128, 255], 0, [0, 1, 2]] = 1
    assert argmax(soft).tolist() == [[0, 128, 255]]


# --- metrics --------------------------------------------------------------------------------------

COUNTED = ("dice", "iou", "precision", "recall", "specificity")


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["uint8", "int16", "int64"]),
    st.booleans(),
    st.booleans(),
)
def test_counts_of_one_pass_are_those_of_each_mask(
    seed: int, dtype: str, masked: bool, declared: bool
) -> None:
    """To the last bit, for classes that occur and for classes that do not."""
    rng = np.random.default_rng(seed)
    answer, label = rng.integers(0, 6, (2, 4, 4, 3)).astype(dtype)
    valid = rng.random(label.shape) > 0.4 if masked else None
    classes = (1, 2, 3, 4, 5, 7) if declared else None
    found = evaluate(
        [NamedOptions(name=n) for n in COUNTED],
        answer,
        label,
        valid,
        context=MetricContext(classes=classes),
    )
    seen = np.ones(label.shape, bool) if valid is None else valid
    pair = np.where(seen, answer, 0), np.where(seen, label, 0)
    measures = {
        "dice": lambda p, t: 2 * (p & t).sum() / (p.sum() + t.sum()),
        "iou": lambda p, t: (p & t).sum() / (p | t).sum(),
        "precision": lambda p, t: (p & t).sum() / p.sum() if p.any() else 0.0,
        "recall": lambda p, t: (p & t).sum() / t.sum() if t.any() else 0.0,
        "specificity": lambda p, t: (
            1 - (p & ~t & seen).sum() / (seen & ~t).sum() if (seen & ~t).any() else 1.0
        ),
    }
    if not seen.any():
        return
    for name, measure in measures.items():
        wanted = over_classes(name, pair, lambda p, t, m=measure: float(m(p, t)), classes)
        assert {k: found[k] for k in wanted} == pytest.approx(wanted, nan_ok=True, abs=0, rel=1e-15)
    counts = count_classes(answer, label, valid, (1, 2, 3, 4, 5, 7))
    for c, n in counts.items():
        p, t = answer == c, label == c
        assert (n.tp, n.fp) == ((p & t & seen).sum(), (p & ~t & seen).sum())
        assert (n.fn, n.tn) == ((~p & t & seen).sum(), (~p & ~t & seen).sum())


def test_values_that_cannot_be_counted_together() -> None:
    assert joint_counts(np.array([0, -1]), np.array([0, 1])) is None
    assert joint_counts(np.array([0, 5000]), np.array([0, 1])) is None
    assert joint_counts(np.array([0.0, 1.0]), np.array([0, 1])) is None
    assert evaluate([NamedOptions(name="dice")], np.array([0, 5000]), np.array([0, 5000])) == {
        "dice": 1.0,
        "dice_5000": 1.0,
    }


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dice", {}),
        ("dice", {"batch": True}),
        ("dice", {"background": True}),
        ("tversky", {}),
        ("tversky", {"alpha": 0.0, "beta": 1.0, "batch": True}),
        ("ce", {}),
        ("ce", {"positive_weight": 3.0}),
        ("focal", {}),
        ("focal", {"alpha": 0.25, "gamma": 1.0}),
    ],
)
def test_losses_of_many_classes_are_the_usual_ones(
    name: str, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 30, 6, 5, 4, dtype=torch.float64)
    target = torch.randint(0, 30, (2, 1, 6, 5, 4))
    valid = (torch.rand(2, 1, 6, 5, 4) > 0.3).float()
    found = []
    for limit in (many.MANY, 1000):
        monkeypatch.setattr(many, "MANY", limit)
        x = logits.clone().requires_grad_()
        value = getattr(overlap, name)(**options)(x, target, valid)
        found.append((value.detach(), torch.autograd.grad(value, x)[0]))
    (value, gradient), (usual, usual_gradient) = found
    assert torch.allclose(value, usual, rtol=1e-12)
    assert torch.allclose(gradient, usual_gradient, rtol=1e-9, atol=1e-15)


PEAK = """
from pathlib import Path
import torch
from pipeline.losses import WeightedSum
from pipeline.records import LossTerm

def kib(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0])

x = torch.zeros(1, 100, 64, 64, 48, requires_grad=True)
y = torch.randint(0, 100, (1, 1, 64, 64, 48), dtype=torch.uint8)
loss = WeightedSum([LossTerm(name=n) for n in {names}], {{"label": "labels"}}, 200)
small = torch.zeros(1, 100, 8, 8, 8, requires_grad=True)
loss({{"main": small}}, {{"label": y[..., :8, :8, :8]}})[0].backward()
Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now; getrusage has the parent's
before = kib("VmRSS")
loss({{"main": x}}, {{"label": y}})[0].backward()
print((kib("VmHWM") - before) * 1024 / (x.numel() * 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize(("names", "copies"), [(["dice", "ce"], 4.0), (["focal"], 3.0)])
def test_losses_of_a_hundred_classes_hold_few_copies_of_the_logits(
    names: list[str], copies: float
) -> None:
    """Probabilities or their logarithms of each term, and the gradient; before: 6.3 and 8.0."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(names=names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < copies
