"""The numbers of ct: those of the foreground of all cases, the same for every fold, in the config
and in the model file; and masked channels, which training and prediction see alike.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import TINY, examples, sheets
from documents import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import run_predict

from pipeline import config as configs
from pipeline import files, train
from pipeline.config import Config, ConfigError, numbers
from pipeline.data import cache, cases, intensities, normalise, properties, resolve
from pipeline.data.model_space import ModelSpace
from pipeline.inference.models import load_model
from pipeline.inference.predictor import Predictor
from pipeline.records import NamedOptions, UserError
from pipeline.runs import RunFolder

NUMBERS = ("low", "high", "mean", "std")

METHOD = "data.normalise=[{name: ct}, {name: zscore, options: {mask: true}}]"


# --- counts ---------------------------------------------------------------------------------------


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images ``(1, *S)`` and masks ``(*S)`` of one to four cases."""
    kind = draw(st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "whole floats"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images, masks = [], []
    for _ in range(draw(st.integers(1, 4))):
        image = rng.normal(rng.uniform(-200, 900), rng.uniform(1, 300), (1, 6, 7, 8))
        if kind in ("uint8", "uint16"):
            image = np.clip(image, 0, np.iinfo(kind).max)
        image = image.astype(np.float32 if "float" in kind else kind)
        images.append(np.rint(image) if kind == "whole floats" else image)
        masks.append(rng.random((6, 7, 8)) < draw(st.sampled_from([0.01, 0.3, 1.0])))
    masks[0][0, 0, 0] = True
    return images, masks


@settings(max_examples=examples(60))
@given(data_sets(), st.lists(st.floats(0, 100), min_size=1, max_size=3))
def test_numbers_are_those_of_all_voxels(
    found: tuple[list[np.ndarray], list[np.ndarray]], at: list[float]
) -> None:
    images, masks = found
    values = np.concatenate([i[0][m] for i, m in zip(images, masks, strict=True)])
    values = values.astype(np.float64)
    counts = [intensities.collect(i, m)[0] for i, m in zip(images, masks, strict=True)]
    percentiles, mean, std = intensities.pooled(counts, at)
    assert mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-12)
    assert std == pytest.approx(values.std(), rel=1e-9, abs=1e-9)
    expected = np.percentile(values, at)
    if (values == np.rint(values)).all():
        assert percentiles == expected.tolist()
    else:
        error = np.abs(np.array(percentiles) - expected)
        assert (error <= np.ptp(values) / intensities.BINS / 2 * (1 + 1e-6)).all()
    again = intensities.pooled(counts, at)
    assert (percentiles, mean, std) == again


def test_wide_whole_numbers_and_extremes_are_counted_in_bins() -> None:
    rng = np.random.default_rng(0)
    for image in (
        rng.integers(-(2**31), 2**31 - 1, (1, 5000)).astype(np.int32),
        (rng.normal(0, 1, (1, 5000)) * 1e30).astype(np.float32),
        np.r_[rng.normal(0, 1, 4999), 1e6].astype(np.float32)[None],
    ):
        mask = np.ones(5000, bool)
        (count,) = intensities.collect(image, mask)
        assert len(count.counts) == intensities.BINS
        (found,), _, _ = intensities.pooled([count], [50])
        assert abs(found - np.percentile(image.astype(float), 50)) <= 1e-4 * np.ptp(
            image.astype(float)
        )
        assert sum(count.counts) == count.count == 5000


def test_nan_and_ignored_voxels_do_not_count() -> None:
    image = np.array([[1.0, np.nan, np.inf, 4.0, 9.0, 100.0]], np.float32)
    labels = np.array([1, 1, 1, 3, 2, 0])
    assert intensities.foreground(labels, 2).tolist() == [True, True, True, True, False, False]
    (count,) = intensities.collect(image, intensities.foreground(labels, 2))
    assert (count.count, count.mean) == (2, 2.5)
    (empty,) = intensities.collect(image, np.zeros(6, bool))
    assert (empty.count, empty.counts) == (0, ())
    assert intensities.pooled([empty, count], [0, 100])[0] == [1.0, 4.0]


# --- a config and a stored one --------------------------------------------------------------------


def config_of(normal: Any) -> Config:
    return configs.from_dict(
        {"name": "a", "network": "unet", "losses": ["dice"], "data": {"normalise": normal}}
    )


STORED = {"low": 1.0, "high": 9.0, "mean": 4.0, "std": 2.0}


@pytest.mark.parametrize(
    ("mine", "stored", "equal"),
    [
        ("ct", {"name": "ct", "options": STORED}, True),
        ("ct", [{"name": "ct", "options": STORED}] * 2, True),
        (["ct", "none"], [{"name": "ct", "options": STORED}, "none"], True),
        ({"name": "ct", "options": {"low": None}}, {"name": "ct", "options": STORED}, True),
        ({"name": "ct", "options": {"low": 1.0}}, {"name": "ct", "options": STORED}, True),
        ({"name": "ct", "options": {"low": 2.0}}, {"name": "ct", "options": STORED}, False),
        ({"name": "ct", "options": STORED}, {"name": "ct", "options": STORED}, True),
        (
            {"name": "ct", "options": {"low_percentile": 2.0}},
            {"name": "ct", "options": STORED},
            False,
        ),
        ("ct", "percentile", False),
        (["ct"], [{"name": "ct", "options": STORED}] * 2, False),
        (["ct", "rgb"], [{"name": "ct", "options": STORED}, "none"], False),
        ("percentile", "percentile", True),
    ],
)
def test_numbers_of_a_run_are_no_change(mine: Any, stored: Any, equal: bool) -> None:
    one, other = config_of(mine), config_of(stored)
    found = numbers.filled(one, other)
    assert (configs.difference(configs.to_dict(other), configs.to_dict(found)) == []) == equal
    assert numbers.filled(other, one) == other


# --- a data set of two channels -------------------------------------------------------------------

SHAPE = (20, 24, 24)


def volume(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A CT, an MR scan with a dark rim, and labels (2 is ignored)."""
    image, label = sheets(SHAPE, n)
    ct = image.astype(np.int16) * 7 - 900
    mr = image.astype(np.int16) * 3 + 50
    mr[:, :4], ct[:, :4], mr[:, :, -3:], ct[:, :, -3:] = 0, 0, 0, 0
    return ct, mr, label


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir()
    for n in range(5):
        *channels, label = volume(n)
        test = n == 4
        for c, channel in enumerate(channels):
            path = root / ("imagesTs" if test else "imagesTr") / f"c{n}_000{c}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(channel, np.eye(4)), path)
        if not test:
            nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), root / "labelsTr" / f"c{n}.nii.gz")
    text = TINY.replace("layout: competition", "layout: nnunet").replace("epochs: 3", "epochs: 1")
    text = text.replace("  average: {start: 1, lr: 5.0e-3}\n", "")
    (root / "c.yaml").write_text(text)
    return root


def go(root: Path, out: Path, *more: str, method: str = METHOD) -> int:
    words = ["--config", root / "c.yaml", "--data-dir", root, "--out", out, *more]
    return train.main([*map(str, words), "--set", method])


@pytest.fixture(scope="module")
def run(scans: Path) -> Path:
    """Two folds, started one after the other as the tasks of an array are."""
    out = scans.parent / "scans_run"
    assert go(scans, out, "--fold", "0") == 0
    begun = (out / "config.yaml").read_text()
    assert go(scans, out, "--fold", "1") == 0
    assert (out / "config.yaml").read_text() == begun
    return out


def pooled_foreground() -> np.ndarray:
    found = [volume(n) for n in range(4)]
    return np.concatenate([ct[label == 1] for ct, _, label in found]).astype(np.float64)


def test_both_folds_and_the_run_hold_the_numbers_of_all_cases(run: Path) -> None:
    values = pooled_foreground()
    stored = configs.load(run / "config.yaml").data.normalise
    assert isinstance(stored, tuple)
    found = stored[0].options
    assert set(found) == set(NUMBERS)
    assert [found["low"], found["high"]] == np.percentile(values, [0.5, 99.5]).tolist()
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert found["std"] == pytest.approx(values.std(), rel=1e-12)
    assert stored[1] == NamedOptions(name="zscore", options={"mask": True})
    for fold in ("fold_0", "fold_1"):
        header = load_model(run / fold / "best_model.safetensors").config
        assert configs.from_dict(header).data.normalise == stored


def test_the_same_command_goes_on_with_the_run(
    run: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(scans, run, "--fold", "-1") == 0
    assert "already complete" in capsys.readouterr().out
    assert go(scans, run, "--dry-run") == 0
    other = METHOD.replace("{name: ct}", "{name: ct, options: {high: 77}}")
    assert go(scans, run, "--dry-run", method=other) == 2
    assert "data.normalise" in capsys.readouterr().out
    config = configs.load(run / "config.yaml")
    assert RunFolder(run).changed_settings(config) == []


def test_numbers_by_hand_are_taken(scans: Path, tmp_path: Path) -> None:
    config = configs.load(scans / "c.yaml", [f"data.root={scans}", METHOD])
    by_hand = numbers.with_numbers(config.data.normalise, [{**STORED}, {}])
    config = numbers.with_normalisation(config, by_hand)
    found = cases.find(config.data, config.roles, scans).train
    facts = properties.examine(found, config, tmp_path)
    assert resolve.resolved(config, facts) is config
    assert all(not f.intensities for f in facts)
    for fact in facts:
        assert fact.scale is not None
        (mean, _, how), (_, _, masked) = fact.scale.channels(2)
        assert (mean, how.window) == (4.0, (1.0, 9.0))
        assert masked.window is None
    # Without numbers the counts are needed, and the same facts do not do.
    wanted = configs.load(scans / "c.yaml", [f"data.root={scans}", METHOD])
    assert all(f.intensities for f in properties.examine(found, wanted, tmp_path))
    assert properties.examine(found, config, tmp_path) == [
        dataclasses.replace(fact, intensities=more.intensities)
        for fact, more in zip(facts, properties.examine(found, wanted, tmp_path), strict=True)
    ]


def test_no_voxel_is_read_twice(run: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configs.load(scans / "c.yaml", [f"data.root={scans}", METHOD])
    found = cases.find(config.data, config.roles, scans).train
    monkeypatch.setattr(properties, "load_image", None)
    facts = properties.examine(found, config, run / "store", write=False)
    stored = configs.load(run / "config.yaml")
    assert resolve.resolved(config, facts).data.normalise == stored.data.normalise
    with pytest.raises(ConfigError, match=r"data\.normalise\.0: 'ct' has no low"):
        cache.build(found, facts, config, run / "store")


def test_one_ct_for_all_channels_has_numbers_of_each(scans: Path) -> None:
    config = configs.load(scans / "c.yaml", [f"data.root={scans}", "data.normalise=ct"])
    found = cases.find(config.data, config.roles, scans).train
    method = resolve.resolved(config, properties.examine(found, config, None)).data.normalise
    assert isinstance(method, tuple)
    mr = np.concatenate([volume(n)[1][volume(n)[2] == 1] for n in range(4)])
    assert [e.options["low"] for e in method] == [
        np.percentile(pooled_foreground(), 0.5),
        np.percentile(mr, 0.5),
    ]


def test_training_and_prediction_see_the_same_values(run: Path, scans: Path) -> None:
    config = configs.load(run / "config.yaml")
    found = cases.find(config.data, config.roles, scans).train
    facts = properties.examine(found, config, run / "store", write=False)
    stored = cache.build(found, facts, config, run / "store")
    assert json.loads((run / "store" / "arrays" / "c0.json").read_text())["key"]["masked"] == [
        False,
        True,
    ]
    predictor = Predictor.load(run / "fold_0", device="cpu")
    for n, one in enumerate(stored):
        ct, mr, _ = volume(n)
        source, _ = predictor.source(Path("x"), np.stack([ct, mr]), ModelSpace())
        assert source.scale == one.scale
        kept = np.asarray(one.image.array)
        assert kept.dtype == np.float32
        np.testing.assert_array_equal(kept, source.array[:])
        out = one.scale.apply(kept)
        inside = (ct != 0) | (mr != 0)
        np.testing.assert_array_equal(out[1][~inside], 0)
        values = mr[inside].astype(np.float64)
        np.testing.assert_allclose(
            out[1][inside], (values - values.mean()) / values.std(), rtol=1e-5, atol=1e-5
        )
        pool = pooled_foreground()
        window = np.percentile(pool, [0.5, 99.5])
        np.testing.assert_allclose(
            out[0], (np.clip(ct, *window) - pool.mean()) / pool.std(), rtol=1e-5, atol=1e-5
        )


def test_the_model_file_alone_predicts_the_same(run: Path, scans: Path, tmp_path: Path) -> None:
    test = scans / "imagesTs"
    assert run_predict(run / "fold_0", test, tmp_path / "whole", "--save-soft") == 0
    (tmp_path / "alone").mkdir()
    model = shutil.copy(run / "fold_0" / "best_model.safetensors", tmp_path / "alone")
    assert run_predict(Path(model), test, tmp_path / "file", "--save-soft") == 0
    blocks = ("--save-soft", "--blocks", "always")
    assert run_predict(Path(model), test, tmp_path / "blocks", *blocks) == 0
    expected = np.load(tmp_path / "whole" / "soft" / "c4.npy")
    for name in ("file", "blocks"):
        np.testing.assert_array_equal(np.load(tmp_path / name / "soft" / "c4.npy"), expected)
    assert files.read_json(tmp_path / "blocks" / "soft" / "c4.json")["dtype"] == "int16"
    heads = Predictor.load(model, device="cpu").predict_heads(
        np.stack(volume(4)[:2]), affine=np.eye(4)
    )
    np.testing.assert_allclose(heads["main"], expected, atol=1e-3)


def test_without_foreground_ct_says_what_to_do(scans: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(scans, data)
    for path in (data / "labelsTr").glob("*"):
        nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), path)
    config = configs.load(data / "c.yaml", [f"data.root={data}", METHOD])
    found = cases.find(config.data, config.roles, data).train
    facts = properties.examine(found, config, None)
    with pytest.raises(UserError, match=r"channel 0 has none\. Look at the labels, or give"):
        resolve.resolved(config, facts)
    assert go(data, tmp_path / "run", "--dry-run") == 2
    assert normalise.needs_preparing(config.data.normalise)


@pytest.mark.parametrize(
    ("method", "warns"),
    [("percentile", True), ("[zscore, ct]", True), (METHOD.partition("=")[2], False)],
)
def test_a_channel_called_ct_is_normalised_as_one(
    method: str, warns: bool, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scans, data)
    names = {"channel_names": {"0": "ct ", "1": "MRI"}, "file_ending": ".nii.gz"}
    files.write_json(data / "dataset.json", names)
    assert go(data, tmp_path / "run", "--dry-run", method=f"data.normalise={method}") == 0
    assert ("calls channel 0 CT, but data.normalise" in capsys.readouterr().out) == warns


def test_the_page_names_every_normalisation() -> None:
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert [name for name in normalise.NORMALISE if f"\n| `{name}`" not in page] == []
