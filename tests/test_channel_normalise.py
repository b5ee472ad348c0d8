"""Each channel by its own rule: against nnU-Net's five rules, written down here once more; masks;
what older files hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import examples, opened
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from small_models import model_file, rows, run_predict

from pipeline import config as configs
from pipeline import train
from pipeline.config import ConfigError
from pipeline.data import nonzero, normalise
from pipeline.data import scales as scale_module
from pipeline.data.normalise import IntensityScale
from pipeline.data.prepare import fitted, prepared
from pipeline.files import FileError, LazyArray, Rows
from pipeline.inference import soft as softs
from pipeline.inference.members import _same_scale
from pipeline.inference.models import CheckpointError, load_model
from pipeline.inference.soft import SoftMeta, SoftPrediction
from pipeline.records import NamedOptions
from pipeline.scoring import baselines

CT = {"low": -80.0, "high": 310.5, "mean": 101.25, "std": 47.5}


def entry(name: str, **options: Any) -> NamedOptions:
    return NamedOptions(name=name, options=options)


def lazy(array: np.ndarray) -> LazyArray:
    return Rows(array.shape, array.dtype, lambda first, end: array[:, first:end])


def normalised(method: Any, array: LazyArray) -> np.ndarray:
    """As training and prediction do."""
    scale, _, ready = fitted(method, array)
    return scale.apply(np.asarray(ready[:]))


# --- the rules, written again ---------------------------------------------------------------------


def filled_mask(image: np.ndarray) -> np.ndarray:
    """Non-zero voxels and what no path along the axes connects with the outside."""
    zero = np.pad((image == 0).all(0), 1, constant_values=True)
    labels, _ = ndimage.label(zero)
    outside = labels == labels.flat[0]
    return ~outside[(slice(1, -1),) * (image.ndim - 1)]


def as_ct(x: np.ndarray, _: np.ndarray) -> np.ndarray:
    return (np.clip(x, CT["low"], CT["high"]) - CT["mean"]) / max(CT["std"], 1e-8)


def as_rescale(x: np.ndarray, _: np.ndarray) -> np.ndarray:
    return (x - x.min()) / max(x.max() - x.min(), 1e-8)


def as_rgb(x: np.ndarray, _: np.ndarray) -> np.ndarray:
    return x / 255


def as_none(x: np.ndarray, _: np.ndarray) -> np.ndarray:
    return x


def as_zscore(x: np.ndarray, _: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / max(x.std(), 1e-8)


def as_masked(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if not mask.any():
        return np.zeros_like(x)
    return np.where(mask, (x - x[mask].mean()) / max(x[mask].std(), 1e-8), 0)


RULES: list[tuple[NamedOptions, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = [
    (entry("ct", **CT), as_ct),
    (entry("rescale"), as_rescale),
    (entry("rgb"), as_rgb),
    (entry("none"), as_none),
    (entry("zscore"), as_zscore),
    (entry("zscore", mask=True), as_masked),
]


@st.composite
def images(draw: st.DrawFn) -> np.ndarray:
    """``(C, *S)`` with a zero rim, zero holes and, at times, constant channels."""
    size = draw(st.lists(st.integers(3, 9), min_size=2, max_size=3))
    dtype = draw(st.sampled_from(["uint8", "int16", "uint16", "int32", "float32"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image = rng.integers(0, 256, (draw(st.integers(1, 4)), *size)).astype(dtype)
    image[:, rng.random(size) < draw(st.sampled_from([0, 0.3, 0.8]))] = 0
    rim = draw(st.integers(0, 1))
    image[:, :rim], image[..., :rim] = 0, 0
    if draw(st.booleans()):
        image[0] = draw(st.integers(0, 9))
    return image


@settings(max_examples=examples(40))
@given(images(), st.data())
def test_every_mixture_of_channels_follows_the_rules(
    image: np.ndarray, data: st.DataObject
) -> None:
    chosen = [data.draw(st.sampled_from(range(len(RULES)))) for _ in image]
    method = tuple(RULES[n][0] for n in chosen)
    out, mask = normalised(method, image), filled_mask(image)
    assert out.dtype == np.float32
    for n, channel, values in zip(chosen, image.astype(np.float64), out, strict=True):
        expected = RULES[n][1](channel, mask)
        np.testing.assert_allclose(values, expected, rtol=2e-5, atol=2e-5)
        if "mask" in RULES[n][0].options:
            assert (values[~mask] == 0).all()
    np.testing.assert_array_equal(normalised(method, lazy(image)), out)


@settings(max_examples=examples(30))
@given(images(), st.sampled_from(range(len(RULES))))
def test_one_entry_is_a_list_of_equal_ones(image: np.ndarray, n: int) -> None:
    one, many = RULES[n][0], (RULES[n][0],) * len(image)
    assert fitted(one, image)[0] == fitted(many, image)[0]
    np.testing.assert_array_equal(normalised(one, image), normalised(many, image))
    scale, notes, ready = fitted(one, image)
    assert (scale, notes) == normalise.fit_with_notes(one, image)
    again = prepared(one, scale, image, clip=False)
    np.testing.assert_array_equal(np.asarray(ready), np.asarray(again))


@pytest.mark.parametrize("method", [r[0] for r in RULES], ids=lambda m: f"{m.name}{len(m.options)}")
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("value", [0, 3, 251])
def test_a_constant_is_never_nan(method: NamedOptions, dtype: str, value: int) -> None:
    image = np.full((2, 5, 5), value, dtype)
    out = normalised(method, image)
    if method.name in ("zscore", "rescale"):
        np.testing.assert_array_equal(out, 0)
    assert np.isfinite(out).all()
    flat = entry("ct", low=value, high=value, mean=value, std=0)
    np.testing.assert_array_equal(normalised(flat, image), 0)


def test_large_arrays_are_masked_slab_by_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(1).integers(0, 900, (2, 40, 9, 9)).astype(np.int16)
    image[:, :, :2], image[:, 12:20, 4:6, 4:6] = 0, 0
    method = (entry("zscore", mask=True), entry("rescale"))
    expected = normalised(method, image)
    monkeypatch.setattr(normalise, "WHOLE", 10)
    ready = fitted(method, lazy(image))[2]
    assert not isinstance(ready, np.ndarray)
    assert np.dtype(ready.dtype) == np.float32
    np.testing.assert_allclose(normalised(method, lazy(image)), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(nonzero.mask_of(lazy(image)), filled_mask(image))


def test_nothing_is_copied_where_nothing_is_to_be_done() -> None:
    image = np.ones((2, 4, 4), np.uint8)
    for method in (entry("percentile"), entry("ct", **CT), (entry("zscore"), entry("none"))):
        assert fitted(method, image)[2] is image
        assert not normalise.needs_preparing(method)
    assert normalise.needs_preparing((entry("none"), entry("zscore", mask=True)))


# --- before resampling ----------------------------------------------------------------------------


@settings(max_examples=examples(20))
@given(st.integers(0, 2**32 - 1))
def test_prepare_resample_apply_is_normalise_resample(seed: int) -> None:
    """nnU-Net normalises and then resamples: the map after clipping is linear, so it may wait."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 150, (4, 7, 8, 9)).astype(np.float32)
    image[:, :3] = 0
    limits = {"low": -20, "high": 230, "to": [-1, 1]}
    method = (
        entry("ct", **CT),
        entry("zscore", mask=True),
        entry("range", **limits),
        entry("none"),
    )
    scale, _, ready = fitted(method, image, clip=True)
    later = scale.apply(np.stack([ndimage.zoom(c, 1.7, order=1) for c in np.asarray(ready)]))
    first = np.stack([ndimage.zoom(c, 1.7, order=1) for c in normalised(method, image)])
    np.testing.assert_allclose(later, first, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(
        scale.apply(np.asarray(ready)), normalised(method, image), rtol=1e-6, atol=1e-6
    )
    overshooting = ndimage.zoom(np.asarray(ready)[0], 1.7, order=3)
    cubic = ndimage.zoom(normalised(method, image)[0], 1.7, order=3)
    ends = (np.asarray(ready)[0].min(), np.asarray(ready)[0].max())
    blank = np.stack([np.clip(overshooting, *ends)] * 4)
    np.testing.assert_allclose(
        scale.apply(blank)[0],
        np.clip(cubic, normalised(method, image)[0].min(), normalised(method, image)[0].max()),
        rtol=1e-4,
        atol=1e-4,
    )


# --- documents and bits ---------------------------------------------------------------------------


def test_scales_of_one_kind_have_the_bits_they_had() -> None:
    """The digest is that of commit aa97d02."""
    found = hashlib.sha256()
    whole = np.arange(-300, 300, dtype=np.int16).reshape(3, 10, 20)
    floats = (np.arange(240) * 37 % 101 / 50 - 1).astype(np.float32).reshape(3, 8, 10)
    floats[0, 0, 0] = np.nan
    for scale in (
        IntensityScale(low=(-250.5,), high=(99.0,), to=(-1, 1)),
        IntensityScale(low=(0.1, -3.0, 5.0), high=(0.7, 8.0, 5.0), to=(1, -0.3)),
        IntensityScale(low=(0.3, 0.2, 0.1), high=(1.9, 0.2, 2.0), clip=False),
    ):
        for array in (whole, floats):
            found.update(scale.apply(array).tobytes())
            found.update(scale.invert(scale.apply(array)).tobytes())
        assert set(scale.as_json()) == {"low", "high", "to", "clip"}
    assert found.hexdigest() == "223f23b22ab213fa4596cc20c1885251c6bcb54bd390ddf6726b15ac479ff293"


@settings(max_examples=examples(30))
@given(images(), st.data())
def test_scales_come_back_from_json(image: np.ndarray, data: st.DataObject) -> None:
    method = tuple(RULES[data.draw(st.sampled_from(range(len(RULES))))][0] for _ in image)
    scale = normalise.fit(method, image)
    assert scale_module.from_json(json.loads(json.dumps(scale.as_json()))) == scale
    assert scale_module.joined(scale_module.parts(scale, len(image))) == scale
    inside = [n for n, e in enumerate(method) if e.name in ("none", "rgb", "rescale", "zscore")]
    back = scale.invert(scale.apply(image))[inside]
    np.testing.assert_allclose(back, image[inside], rtol=1e-4, atol=1e-3)


def test_soft_files_keep_scales_old_and_new(tmp_path: Path) -> None:
    mixed = normalise.fit(
        (entry("rgb"), entry("rescale", to=[-1, 1])), np.eye(3)[None].repeat(2, 0)
    )
    for name, scale in (("a", mixed), ("b", IntensityScale(low=(0.0,), high=(255.0,)))):
        meta = SoftMeta(task="image", scale=scale, dtype="uint8", channels=2)
        head = np.zeros((2, 4, 4), np.float32)
        softs.save(tmp_path, SoftPrediction(case_id=name, heads={"main": head}, meta=meta))
        assert softs.load(tmp_path, name).meta.scale == scale
    assert "ranges" not in json.loads((tmp_path / "b.json").read_text())["scale"]
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace('"clip": true', '"clip": 7'))
    with pytest.raises(configs.ConfigError.__bases__[0], match="clip"):
        softs.load(tmp_path, "a")
    assert _same_scale(mixed, mixed)
    assert not _same_scale(mixed, IntensityScale(low=mixed.low, high=mixed.high))


def test_a_scale_of_other_channels_is_refused() -> None:
    scale = normalise.fit((entry("rgb"), entry("ct", **CT)), np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="2 channels cannot be used for an array of 3"):
        scale.apply(np.zeros((3, 3, 3)))


def test_a_channel_is_sliced_like_an_array() -> None:
    image = np.random.default_rng(0).integers(0, 9, (3, 6, 5, 4))
    for whole in (image, lazy(image)):
        one = nonzero.Channel(nonzero.Whole(whole), 1)
        assert (one.shape, len(one)) == ((1, 6, 5, 4), 1)
        np.testing.assert_array_equal(one[:], image[1:2])
        np.testing.assert_array_equal(one[0], image[1])
        np.testing.assert_array_equal(one[:, 2:5], image[1:2, 2:5])
        np.testing.assert_array_equal(one[:, 2:5, 1:, :2], image[1:2, 2:5, 1:, :2])


def test_unit_of_each_channel() -> None:
    method = (entry("rescale", to=[-1, 1]), entry("rgb"))
    array = np.array([[[-1.0, 0.0, 1.0]], [[0.0, 0.5, 1.2]]])
    np.testing.assert_array_equal(normalise.unit(method, array), [[[0, 0.5, 1]], [[0, 0.5, 1]]])


# --- at the doors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [entry("rgb"), (entry("none"), entry("rgb"))])
def test_rgb_refuses_values_outside_its_range(method: Any) -> None:
    image = np.full((2, 4, 4), 255, np.float32)
    assert normalise.problem_of(method, image) is None
    for value in (255.5, -0.01):
        image[1, 2, 2] = value
        found = normalise.problem_of(method, image)
        assert found is not None
        assert "outside 0 to 255, which 'rgb' of data.normalise takes: they reach" in found[0]
        assert "channel 1" in found[0]
    assert normalise.problem_of(method, image.astype(np.uint8)) is None


def test_prediction_refuses_values_outside_rgb(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m", data={"patch": {"size": [16] * 3}, "normalise": "rgb"})
    (tmp_path / "in").mkdir()
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 16)).astype(np.int16)
    tifffile.imwrite(tmp_path / "in" / "good.tif", image)
    image[3, 3, 3] = 256
    tifffile.imwrite(tmp_path / "in" / "bad.tif", image)
    assert run_predict(model, tmp_path / "in", tmp_path / "out") == 3
    (bad,) = [row for row in rows(tmp_path / "out") if row["status"] == "failed"]
    assert bad["id"] == "bad"
    assert "has 1 values outside 0 to 255" in bad["error"]


def test_a_model_whose_ct_has_no_numbers_is_refused(tmp_path: Path) -> None:
    data = {"patch": {"size": [16] * 3}, "normalise": ["ct", "zscore"]}
    model = model_file(tmp_path / "m", channels=2, data=data)
    with pytest.raises(CheckpointError, match=r"data\.normalise\.0: 'ct' has no low, high, mean"):
        load_model(model)
    with pytest.raises(ConfigError, match="ct lacks numbers"):
        normalise.fit(entry("ct"), np.zeros((1, 2, 2)))


def dry(config: Path, data: Path, out: Path, *settings: str) -> int:
    words = ["--config", config, "--data-dir", data, "--out", out, "--dry-run", "--set", *settings]
    return train.main([str(word) for word in words])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("[rgb, none]", "has 1 channels, data.normalise has 2 entries"),
        ("[]", "data.normalise is an empty list"),
        ("[{name: zscores}]", "Did you mean 'zscore'?"),
        ("[{name: zscore, options: {masked: true}}]", "data.normalise.0: 'zscore' has no option"),
        ("{name: zscore, options: {mask: 1}}", "must be true or false"),
        ("{name: ct, options: {low_percentile: 99.9}}", "low_percentile < high_percentile"),
        ("{name: ct, options: {low: 9, high: 3, mean: 1, std: 1}}", "low <= high"),
        ("{name: ct, options: {std: -3}}", "std >= 0"),
    ],
)
def test_a_dry_run_finds_what_is_wrong(
    setting: str,
    message: str,
    surfaces: Path,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert dry(tiny, surfaces, tmp_path / "run", f"data.normalise={setting}") == 2
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    "method", ["[rgb]", "[none]", "ct", "[{name: zscore, options: {mask: true}}]"]
)
def test_a_dry_run_accepts(method: str, surfaces: Path, tiny: Path, tmp_path: Path) -> None:
    assert dry(tiny, surfaces, tmp_path / "run", f"data.normalise={method}") == 0


PAIRS = """
name: t
task: image
data:
  layout: folders
  folders: {image: src, target: dst}
  dims: 2
  folds: {count: 2}
  patch: {size: [16, 16], foreground: null}
network: {name: deblur_unet, options: {base: 4, groups: 4}}
losses: [{name: l1, target: target}]
metrics: [psnr]
train: {stop: {monitor: val_loss}}
"""


def test_images_need_a_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(4):
        for folder in ("src", "dst"):
            (tmp_path / folder).mkdir(exist_ok=True)
            image = np.random.default_rng(n).integers(0, 255, (24, 30)).astype(np.uint8)
            tifffile.imwrite(tmp_path / folder / f"{n}.tif", image)
    (tmp_path / "t.yaml").write_text(PAIRS)
    for method in ("rescale", "rgb", "[rgb]", "zscore"):
        setting = f"data.normalise={method}"
        assert dry(tmp_path / "t.yaml", tmp_path, tmp_path / "run", setting) == 0
    capsys.readouterr()
    for method in ("none", "ct", "{name: zscore, options: {mask: true}}"):
        setting = f"data.normalise={method}"
        assert dry(tmp_path / "t.yaml", tmp_path, tmp_path / "run", setting) == 2
        assert "gives intensities without a range" in capsys.readouterr().out


def test_another_number_of_channels_is_named() -> None:
    method = (entry("rgb"), entry("rgb"))
    found = normalise.problem_of(method, np.zeros((3, 2, 2), np.uint8))
    assert found is not None
    assert found[0] == "has 3 channels, data.normalise has 2 entries"
    with pytest.raises(ConfigError, match="has 3 channels"):
        normalise.fit(method, np.zeros((3, 2, 2), np.uint8))
    assert issubclass(FileError, Exception)


@pytest.mark.parametrize("method", ["none", f"{{name: ct, options: {CT}}}"])
def test_the_best_threshold_is_found_without_a_range(
    method: str, surfaces: Path, tiny: Path, tmp_path: Path
) -> None:
    config = configs.load(tiny, [f"data.root={surfaces}", f"data.normalise={method}"])
    found = baselines.of_labels(config, opened(surfaces, config, tmp_path / "store"))
    assert found["best global threshold"]["dice"] > 0.8
