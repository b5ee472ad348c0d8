"""examples/: every plugin does what it says, every script runs from an empty folder, the notebook
executes, and docs/extending.md shows the plugins as they are.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documents import ROOT
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import Randomizable

import pipeline as pl
from pipeline import plugins, registry
from pipeline.data import normalise
from pipeline.data.augment.keys import Keys
from pipeline.data.augment.table import AUGMENT
from pipeline.losses.module import Loss
from pipeline.metrics import METRICS, better
from pipeline.networks import NETWORKS, build
from pipeline.postprocess import POSTPROCESS
from pipeline.records import NamedOptions
from pipeline.training.optim import OPTIMIZERS, SCHEDULES

EXAMPLES = ROOT / "examples"
FILES = sorted((EXAMPLES / "plugins").glob("*.py"))
SCRIPTS = ("train_own_folder.py", "predict_one_array.py", "monai_loop.py")
ALL = EXAMPLES / "plugins" / "all.yaml"

for _name in pl.__all__:
    getattr(pl, _name)  # loads every table


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> Iterator[None]:
    """The plugins of examples/, for this module alone."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for name in ("_loaded", "_owners"):
            patch.setattr(plugins, name, {})
        for table in registry.TABLES.values():
            stack.enter_context(table.restored())
        pl.load_plugins(FILES)
        yield
    for name in [n for n in sys.modules if n.startswith("pipeline_plugin_")]:
        del sys.modules[name]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```py\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


# --- pages and files ------------------------------------------------------------------------------


def test_the_page_shows_every_plugin_as_it_is() -> None:
    _, *shown = blocks(ROOT / "docs" / "extending.md")  # the first is the least that works
    assert sorted(shown) == sorted(path.read_text() for path in FILES)


def test_every_file_is_in_a_table_and_every_link_leads_somewhere() -> None:
    for folder in (EXAMPLES, EXAMPLES / "plugins"):
        page = (folder / "README.md").read_text()
        links = re.findall(r"\]\(([^)#]+)", page)
        assert all((folder / link).exists() for link in links)
        files = {p.name for p in folder.iterdir() if p.suffix in (".py", ".yaml", ".ipynb")}
        assert files <= set(links), files - set(links)


def test_the_plugins_add_to_every_open_table() -> None:
    owned = {kind for kind, _ in plugins._owners}
    assert owned == {table.kind for table in registry.TABLES.values()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_plugin_registers_is_documented_and_used(path: Path) -> None:
    names = [name for (_, name), owner in plugins._owners.items() if owner.name == path.name]
    assert names
    config = ALL.read_text()
    for name in names:
        (table,) = [t for t in registry.TABLES.values() if name in t]
        text = registry.function_of(table[name]).__doc__ or ""
        assert "Args:" in text, name
        assert "Returns:" in text, name
        assert re.search(rf"\b{name}\b", config), name
    assert f"examples/plugins/{path.name}" in config


# --- losses ---------------------------------------------------------------------------------------


def label(channels: int) -> torch.Tensor:
    """Class numbers ``(2, 1, 12, 12)`` with every class in each item."""
    target = torch.zeros(2, 1, 12, 12)
    target[..., 2:6, 2:9] = 1
    if channels > 1:
        target[..., 8:10, 3:11] = 2
    return target


def right(target: torch.Tensor, channels: int) -> torch.Tensor:
    """Logits that are sure of the truth."""
    if channels == 1:
        return (target > 0).float() * 60 - 30
    return torch.cat([(target == n).float() for n in range(channels)], 1) * 60 - 30


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["focal_tversky", "edge_ce"])
def test_a_loss_is_0_for_the_truth_and_learns(name: str, channels: int) -> None:
    loss, target = Loss(name), label(channels)
    assert loss(right(target, channels), target).item() < 1e-4
    assert loss(-right(target, channels), target).item() > 0.9
    logits = torch.zeros(2, channels, 12, 12, requires_grad=True)
    before = loss(logits, target)
    before.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert loss(logits - 0.5 * logits.grad.sign(), target) < before
    exact = right(target, channels).requires_grad_()
    loss(exact, target).backward()
    assert exact.grad is not None
    assert exact.grad.isfinite().all()


@pytest.mark.parametrize("name", ["focal_tversky", "edge_ce"])
def test_a_loss_leaves_ignored_voxels_out(name: str) -> None:
    target = label(3)
    target[..., :2] = 255
    logits = torch.randn(2, 3, 12, 12, requires_grad=True)
    loss = Loss(name, ignore_label=255)
    value = loss(logits, target)
    value.backward()
    assert logits.grad is not None
    assert not logits.grad[..., :2].any()
    changed = logits.detach().clone()
    changed[..., :2] = 9
    assert torch.allclose(loss(changed, target), value)
    assert loss(logits, torch.full_like(target, 255)).item() < 1e-3


def test_focal_tversky_is_tversky_at_gamma_1() -> None:
    logits, target = torch.randn(2, 3, 12, 12), label(3)
    ours = Loss("focal_tversky", gamma=1.0)(logits, target)
    assert torch.allclose(ours, Loss("tversky")(logits, target), atol=1e-5)
    root = Loss("focal_tversky", gamma=2.0)(logits[:1], target[:1])
    assert root > ours  # of numbers below 1


def test_edge_ce_counts_edges_more() -> None:
    target = torch.zeros(1, 1, 24, 24)
    target[..., :12] = 1
    loss = Loss("edge_ce", strength=5)
    values = []
    for column in (12, 23):  # one wrong column, at the edge and far away
        logits = right(target, 1)
        logits[..., column] = 30
        values.append(loss(logits, target).item())
    assert values[0] > 4 * values[1]
    logits = torch.randn(1, 1, 24, 24)
    plain = Loss("edge_ce", strength=0)(logits, target)
    assert torch.allclose(plain, Loss("ce")(logits, target), atol=1e-6)


# --- metric ---------------------------------------------------------------------------------------


def test_boundary_iou_of_known_masks() -> None:
    truth = np.zeros((40, 40), np.uint8)
    truth[5:35, 5:35] = 1
    answer = np.zeros_like(truth)
    answer[5:35, 5:34] = 1  # one column is missing
    score = lambda a, b, **o: METRICS["boundary_iou"].compute(a, b, **o)["boundary_iou"]  # noqa: E731
    assert score(truth, truth) == 1
    rims = [30**2 - 28**2, 30 * 29 - 28 * 27]  # one voxel wide: 116 and 114
    both = 114 - 28  # of the answer's last column only its two ends lie on the truth's rim
    assert score(answer, truth, width=1) == pytest.approx(both / (sum(rims) - both))
    assert score(answer, truth, width=2) < pl.score(answer, truth, "iou")["iou"]
    empty = np.zeros_like(truth)
    assert (score(empty, empty), score(empty, truth), score(truth, empty)) == (1, 0, 0)
    full = np.ones_like(truth)
    assert (score(full, full), score(full, empty)) == (1, 0)


def test_boundary_iou_by_class_and_by_name() -> None:
    truth = np.zeros((20, 20), np.uint8)
    truth[2:9, 2:9], truth[11:18, 11:18] = 1, 2
    answer = np.where(truth == 2, 0, truth)
    found = pl.score(answer, truth, ["boundary_iou:width=3"], num_classes=4)
    assert found["boundary_iou_1"] == 1
    assert found["boundary_iou_2"] == 0
    assert np.isnan(found["boundary_iou_3"])
    assert found["boundary_iou"] == 0.5
    assert better("boundary_iou") == "higher"
    valid = truth != 2
    assert METRICS["boundary_iou"].compute(answer, truth, valid) == {"boundary_iou": 1}
    metric = pl.Metric("boundary_iou", num_classes=4)
    metric(torch.tensor(answer)[None, None], torch.tensor(truth)[None, None])
    assert metric.aggregate().item() == 0.5
    with pytest.raises(pl.UserError, match="width is 0"):
        pl.score(answer, truth, ["boundary_iou:width=0"])


@given(st.integers(0, 2**32 - 1))
def test_boundary_iou_is_symmetric_and_equals_iou_for_wide_rims(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 6, 7, 8)) < 0.5
    compute = METRICS["boundary_iou"].compute
    assert compute(a, b, width=1) == compute(b, a, width=1)
    assert compute(a, b, width=99)["boundary_iou"] == pytest.approx(pl.score(a, b, "iou")["iou"])


# --- post-processing ------------------------------------------------------------------------------


def test_min_radius_removes_what_is_thin() -> None:
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[3:12, 3:12, 3:12] = 1
    labels[20, :, :] = 1  # a film of 900 voxels
    labels[24:29, 3:6, 3:6] = 2  # three voxels thick: 2
    run = POSTPROCESS["min_radius"].run
    kept = run(labels, radius=2)
    assert kept.dtype == labels.dtype
    assert np.array_equal(kept, np.where(np.arange(30)[:, None, None] == 20, 0, labels))
    assert set(np.unique(run(labels, radius=3))) == {0, 1}
    assert not run(labels, radius=6).any()
    assert np.array_equal(run(np.ones((4, 4), np.uint8), radius=50), np.ones((4, 4)))
    assert not run(np.zeros((4, 4), np.uint8)).any()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0]))
def test_min_radius_is_idempotent_and_only_removes(seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.repeat(rng.integers(0, 3, (5, 5)), 3, 0), 3, 1).astype(np.uint8)
    run = POSTPROCESS["min_radius"].run
    once = run(labels, radius=radius)
    assert np.array_equal(run(once, radius=radius), once)
    assert ((once == labels) | (once == 0)).all()
    assert radius > 1 or np.array_equal(once, labels)


def test_tuning_tries_min_radius() -> None:
    setting = pl.SearchSetting(channels=3, dims=3, scale=1.0, decided=True)
    search = POSTPROCESS["min_radius"].search
    assert search is not None
    for options in search.options(setting):
        POSTPROCESS["min_radius"].run(np.ones((4, 4), np.uint8), **options)


# --- augmentation, normalisation, network ---------------------------------------------------------

KEYS = Keys(
    image=("image",), every=("image", "label"), modes=("bilinear", "nearest"), size=(16, 16, 16)
)


def augmented(name: str, seed: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Image before and after, with p = 1."""
    image = torch.rand(2, 16, 16, 16, generator=torch.Generator().manual_seed(seed))
    sample = {"image": image.clone(), "label": torch.ones(1, 16, 16, 16)}
    for transform in AUGMENT[name].make(KEYS, p=1.0, **options):
        assert isinstance(transform, Randomizable)
        transform.set_random_state(seed)
        sample = transform(sample)
    assert sample["label"].min() == 1
    assert sample["image"].shape == image.shape
    return image, torch.as_tensor(sample["image"])


def test_a_bias_field_is_smooth_and_multiplies() -> None:
    image, after = augmented("bias_field", 1, strength=0.5)
    field = (after / image.clamp(min=1e-6)).log()[:, image.amin(0) > 0.01]
    assert field.std() > 0.01
    assert torch.allclose(augmented("bias_field", 1, strength=0.0)[1], image)
    assert torch.equal(augmented("bias_field", 1, strength=0.5)[1], after)


@given(st.integers(0, 1000), st.integers(1, 4))
def test_missing_slices_repeat_the_one_before(seed: int, most: int) -> None:
    image, after = augmented("missing_slices", seed, most=most)
    changed = [n for n in range(16) if not torch.equal(image[:, n], after[:, n])]
    assert 1 <= len(changed) <= most
    assert changed == list(range(changed[0], changed[-1] + 1))
    assert changed[0] >= 1
    assert all(torch.equal(after[:, n], image[:, changed[0] - 1]) for n in changed)


def test_missing_slices_leave_the_sample_that_they_were_given() -> None:
    (transform,) = AUGMENT["missing_slices"].make(KEYS, p=1.0)
    sample = {"image": torch.rand(1, 8, 4, 4)}
    before = sample["image"].clone()
    transform(sample)
    assert torch.equal(sample["image"], before)
    (never,) = AUGMENT["missing_slices"].make(KEYS, p=0.0)
    assert torch.equal(never(sample)["image"], before)


def test_robust_is_the_z_score_of_normal_numbers_and_ignores_bright_spots() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(100, 7, (2, 60, 60, 30)).astype(np.float32)
    spotted = image.copy()
    spotted[:, :2, :2] = 1e6
    scale, notes = normalise.fit_with_notes(NamedOptions(name="robust"), spotted)
    assert notes == ()
    out = scale.apply(image)
    assert out.mean() == pytest.approx(0, abs=0.02)
    assert out.std() == pytest.approx(1, abs=0.02)
    assert np.allclose(scale.invert(out), image, atol=1e-3)


def test_robust_falls_back_to_the_extremes() -> None:
    image = np.zeros((1, 10, 10), np.uint8)
    image[0, 0, :3] = 200
    scale, (note,) = normalise.fit_with_notes(NamedOptions(name="robust"), image)
    assert "minimum to its maximum" in note
    assert np.unique(scale.apply(image)).size == 2
    constant, _ = normalise.fit_with_notes(NamedOptions(name="robust"), image * 0)
    assert not constant.apply(image * 0).any()


@pytest.mark.parametrize(("dims", "size"), [(2, (1, 1, 21, 34)), (3, (2, 1, 9, 17, 12))])
def test_the_attention_unet_takes_any_size(dims: int, size: tuple[int, ...]) -> None:
    named = NamedOptions(name="attention_unet", options={"channels": [4, 8, 8]})
    network = build(named, 1, 3, dims).eval()
    assert network(torch.rand(size))["main"].shape == (size[0], 3, *size[2:])
    for output in network.outputs:
        assert network.get_submodule(output) is not None
    with pytest.raises(ValueError, match="at least two"):
        NETWORKS["attention_unet"].build(in_channels=1, out_channels=1, dims=2, channels=[4])


# --- optimiser and schedule -----------------------------------------------------------------------


def test_lion_steps_by_the_sign_and_resumes() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.0]))
    lion = OPTIMIZERS["lion"].make([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.tensor([3.0, -0.001, 0.0])
    lion.step()
    assert torch.allclose(weight, torch.tensor([0.95 - 0.1, -1.9 + 0.1, 0.0]))
    copy = torch.nn.Parameter(weight.detach().clone())
    resumed = OPTIMIZERS["lion"].make([copy], lr=0.1, weight_decay=0.5)
    resumed.load_state_dict(lion.state_dict())
    for value in (-1.0, 2.0, -0.02):
        weight.grad, copy.grad = torch.full((3,), value), torch.full((3,), value)
        lion.step()
        resumed.step()
    assert torch.equal(weight, copy)


def test_the_trapezoid_rises_stays_falls_and_resumes() -> None:
    def begun(lr: float = 2.0) -> tuple[torch.optim.Optimizer, Any]:
        sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        return sgd, SCHEDULES["trapezoid"].make(sgd, 20, rise=0.2, fall=0.5)

    sgd, schedule = begun()
    rates = []
    for _ in range(20):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[10:] == pytest.approx([2.0 * n / 10 for n in range(10, 0, -1)])
    assert sgd.param_groups[0]["lr"] == 0
    later, resumed = begun()
    for _ in range(7):
        later.step()
        resumed.step()
    state = json.loads(json.dumps(resumed.state_dict()))
    other, again = begun()
    again.load_state_dict(state)
    other.step()
    again.step()
    later.step()
    resumed.step()
    assert again.get_last_lr() == resumed.get_last_lr()
    for options in ({"rise": 0.8, "fall": 0.4}, {"rise": -0.1}):
        with pytest.raises(ValueError, match="together up to 1"):
            SCHEDULES["trapezoid"].make(sgd, 20, **options)


# --- all of them in one training, the scripts and the notebook ------------------------------------


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }


def small_data(folder: Path) -> Path:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("small_data").write_folder(folder)
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.mark.slow
def test_one_training_uses_all_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the paths of the config begin
    data = small_data(tmp_path / "data")
    config = pl.load_config(ALL, ["train.epochs=4", "data.workers=0"])
    run = pl.train_folds(config, data, folds=[0], out=tmp_path / "run", device="cpu")
    kept = {path.name for path in run.plugins.glob("*.py")}
    assert kept == {path.name for path in FILES}
    log, _ = run.fold(0).epochs()
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    scores = run.summary()["out_of_fold"]
    assert 0 <= scores["boundary_iou"] <= 1
    answer = pl.Predictor.load(run, device="cpu").predict(data / "imagesTs/case6_0000.nii.gz")
    assert answer.shape == (40, 40, 16)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_from_an_empty_folder(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    told = done.stdout
    if script == "predict_one_array.py":
        import nibabel

        folder = tmp_path / "runs/one_array"
        image, answer = (
            nibabel.Nifti1Image.from_filename(folder / name)
            for name in ("data/imagesTs/case6_0000.nii.gz", "labels.nii.gz")
        )
        assert answer.shape == image.shape
        assert np.array_equal(np.asarray(answer.affine), np.asarray(image.affine))
        truth = nibabel.Nifti1Image.from_filename(folder / "data/labelsTs/case6.nii.gz")
        assert pl.score(answer.get_fdata(), truth.get_fdata(), "dice")["dice"] > 0.6
    else:
        last = [float(x) for x in re.findall(r"dice (\d\.\d+)", told)][-1]
        assert last > 0.4, told


NOTEBOOK = EXAMPLES / "notebook.ipynb"


def outputs(notebook: Any) -> list[Any]:
    return [o for cell in notebook["cells"] for o in cell.get("outputs", [])]


def require_good(notebook: Any) -> None:
    """Pictures, numbers and neither errors nor anything on standard error."""
    found = outputs(notebook)
    assert sum("image/png" in o.get("data", {}) for o in found) >= 4
    assert not [o for o in found if o["output_type"] == "error" or o.get("name") == "stderr"]


def test_the_stored_notebook_is_executed_small_and_clean() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 2**20
    notebook = json.loads(text)
    require_good(notebook)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = json.dumps(outputs(notebook))
    assert not re.search(r"/(home|root|tmp|usr|Users|work)\b|Traceback|Warning", shown)


@pytest.mark.docs
def test_the_notebook_executes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(package, reason=f"{package} executes the notebook: make docs")
    for name in ("notebook.ipynb", "small_data.py", "small.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    code = (
        "import nbformat; from nbclient import NotebookClient\n"
        "book = nbformat.read('notebook.ipynb', 4)\n"
        "NotebookClient(book, timeout=1800, kernel_name='python3').execute()\n"
        "nbformat.write(book, 'executed.ipynb')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "executed.ipynb").read_text())
    found = outputs(made)
    assert sum("image/png" in o.get("data", {}) for o in found) >= 4
    assert not [o for o in found if o["output_type"] == "error"]
