"""Scores of retouching: inside and outside the mask of change each by itself, the leak, the
predicted mask, and pipeline.evaluate.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import structural_similarity
from small_models import run_evaluate
from tiles import soft_of

from pipeline import files
from pipeline.config import Change, Config, ConfigError, from_dict
from pipeline.data import cache, cases, change, properties
from pipeline.data.cache import CachedCase
from pipeline.metrics import METRICS, better, bound, evaluate, names_of
from pipeline.metrics.image import intensities, psnr, ssim
from pipeline.metrics.retouch import Retouched, empty_masks, note, retouch
from pipeline.records import NamedOptions, UserError
from pipeline.scoring import baselines, folder, held_out, memory, pairs
from pipeline.scoring.core import Rules, mean
from pipeline.scoring.pairs import Pair, Reading

SHAPE = (3, 24, 30)
KEYS = ["psnr_in", "psnr_out", "ssim_in", "ssim_out", "leak", "mask_share", "empty_mask"]


def picture(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32) * 0.5 + 0.25


def spot(shape: tuple[int, ...] = SHAPE[1:]) -> np.ndarray:
    """A mask of 6 x 10 pixels."""
    mask = np.zeros(shape, bool)
    mask[8:14, 9:19] = True
    return mask


def retouched(**options: Any) -> Retouched:
    return Retouched(**{"source": picture(), "mask": spot(), **options})


# --- values on paper ------------------------------------------------------------------------------


def test_an_error_inside_alone_is_seen_inside_alone() -> None:
    target, mask = picture(), spot()
    scores = retouch(target + 0.1 * mask, target, change=retouched(source=target, mask=mask))
    assert scores["psnr_in"] == pytest.approx(20, abs=1e-4)  # mse 0.01
    assert (scores["psnr_out"], scores["leak"]) == (100, 0)
    assert scores["ssim_in"] < scores["ssim_out"] < 1  # windows reach 5 pixels over the edge
    assert scores["mask_share"] == pytest.approx(60 / 720)
    assert scores["empty_mask"] == 0
    assert list(scores) == KEYS


def test_an_error_outside_alone_is_seen_outside_alone() -> None:
    target, mask = picture(), spot()
    source = np.where(mask, 0, target)
    prediction = target + np.float32(0.01) * ~mask
    scores = retouch(prediction, target, change=retouched(source=source, mask=mask))
    assert scores["psnr_in"] == 100
    assert scores["psnr_out"] == pytest.approx(40, abs=1e-3)
    assert scores["leak"] == pytest.approx(0.01, rel=1e-4)  # the change inside is no leak


def test_leak_is_measured_against_the_input_and_not_against_the_target() -> None:
    """Where input and target differ below the threshold, a faithful copy of the input leaks
    nothing.
    """
    target = picture()
    source = target + np.float32(0.004)
    assert retouch(source, target, change=retouched(source=source))["leak"] == 0
    assert retouch(target, target, change=retouched(source=source))["leak"] == pytest.approx(
        0.004, rel=1e-3
    )


def test_ssim_is_the_map_of_the_whole_images_read_on_each_side() -> None:
    """Not the similarity of images multiplied by the mask, whose black surroundings agree and
    flatter.
    """
    target, mask = picture(), spot()
    prediction = np.clip(target + np.random.default_rng(3).normal(0, 0.1, SHAPE) * mask, 0, 1)
    options = {
        "data_range": 1,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "full": True,
    }
    maps = np.stack(
        [
            structural_similarity(p.astype(float), t.astype(float), **options)[1]
            for p, t in zip(prediction, target, strict=True)
        ]
    )
    maps, centre = maps[:, 5:-5, 5:-5], mask[5:-5, 5:-5]
    scores = retouch(prediction, target, change=retouched(source=target, mask=mask))
    assert scores["ssim_in"] == pytest.approx(maps[:, centre].mean(), rel=1e-12)
    assert scores["ssim_out"] == pytest.approx(maps[:, ~centre].mean(), rel=1e-12)
    multiplied = structural_similarity(
        prediction[0] * mask, target[0].astype(float) * mask, **options
    )[1][5:-5, 5:-5][centre].mean()
    assert abs(multiplied - scores["ssim_in"]) > 0.01


@pytest.mark.parametrize("shape", [SHAPE, (1, 11, 11), (2, 40, 12)])
def test_a_full_mask_gives_the_scores_of_the_whole_image(shape: tuple[int, ...]) -> None:
    prediction, target = picture(1, shape), picture(2, shape)
    scores = retouch(
        prediction, target, change=Retouched(source=target, mask=np.ones(shape[1:], bool))
    )
    assert scores["psnr_in"] == pytest.approx(psnr(prediction, target)["psnr"], rel=1e-12)
    assert scores["ssim_in"] == pytest.approx(ssim(prediction, target)["ssim"], rel=1e-12)
    assert all(math.isnan(scores[name]) for name in ("psnr_out", "ssim_out", "leak"))
    assert (scores["mask_share"], scores["empty_mask"]) == (1, 0)


def test_an_empty_mask_has_no_inside() -> None:
    prediction, target = picture(1), picture(2)
    scores = retouch(
        prediction, target, change=retouched(source=target, mask=np.zeros(SHAPE[1:], bool))
    )
    assert math.isnan(scores["psnr_in"])
    assert math.isnan(scores["ssim_in"])
    assert scores["psnr_out"] == pytest.approx(psnr(prediction, target)["psnr"], rel=1e-12)
    assert scores["ssim_out"] == pytest.approx(ssim(prediction, target)["ssim"], rel=1e-12)
    assert (scores["mask_share"], scores["empty_mask"]) == (0, 1)


def test_a_mask_at_the_border_alone_has_no_window_centre() -> None:
    mask = np.zeros(SHAPE[1:], bool)
    mask[:5] = True
    scores = retouch(picture(1), picture(2), change=retouched(mask=mask))
    assert math.isnan(scores["ssim_in"])
    assert math.isfinite(scores["psnr_in"] + scores["ssim_out"])


@pytest.mark.parametrize("shape", [(3, 10, 40), (1, 1, 1)])
def test_images_smaller_than_a_window_have_no_similarity_and_no_error(
    shape: tuple[int, ...],
) -> None:
    mask = np.ones(shape[1:], bool)
    scores = retouch(
        picture(1, shape), picture(2, shape), change=Retouched(source=picture(2, shape), mask=mask)
    )
    assert math.isnan(scores["ssim_in"])
    assert math.isnan(scores["ssim_out"])
    assert math.isfinite(scores["psnr_in"])


@pytest.mark.parametrize(
    ("predicted", "mask", "expected"),
    [
        ([0.5, 0.9, 0.1, 0.1], [1, 1, 0, 0], 1),
        ([0.499, 0.9, 0.1, 0.1], [1, 1, 0, 0], 2 / 3),
        ([0.8, 0.8, 0.8, 0.8], [1, 1, 0, 0], 4 / 6),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1),
        ([0, 0, 0, 1], [0, 0, 0, 0], 0),
        ([0, 0, 0, 0.4], [0, 0, 0, 1], 0),
    ],
)
def test_dice_of_the_predicted_mask(
    predicted: list[float], mask: list[int], expected: float
) -> None:
    change = Retouched(
        source=np.zeros((1, 1, 4)),
        mask=np.array([mask], bool),
        predicted=np.array([predicted], np.float32),
    )
    scores = retouch(np.zeros((1, 1, 4)), np.zeros((1, 1, 4)), change=change)
    assert scores["mask_dice"] == pytest.approx(expected)
    assert "mask_dice" not in retouch(
        np.zeros((1, 1, 4)), np.zeros((1, 1, 4)), change=dataclasses.replace(change, predicted=None)
    )


# --- properties -----------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(mask=arrays(bool, SHAPE[1:]), seed=st.integers(0, 99))
def test_the_two_sides_make_up_the_whole(mask: np.ndarray, seed: int) -> None:
    """Mean squared errors, and similarities by window centres, add up by their shares."""
    prediction, target = picture(seed), picture(seed + 1)
    scores = retouch(prediction, target, change=retouched(mask=mask))
    share = mask.mean()
    assert scores["mask_share"] == pytest.approx(share)
    errors = [
        0.0 if math.isnan(scores[k]) else 10 ** (-scores[k] / 10) for k in ("psnr_in", "psnr_out")
    ]
    assert share * errors[0] + (1 - share) * errors[1] == pytest.approx(
        ((prediction - target) ** 2).mean(), rel=1e-4
    )
    centres = mask[5:-5, 5:-5].mean()
    similar = [0.0 if math.isnan(scores[k]) else scores[k] for k in ("ssim_in", "ssim_out")]
    assert centres * similar[0] + (1 - centres) * similar[1] == pytest.approx(
        ssim(prediction, target)["ssim"], rel=1e-6
    )


@settings(max_examples=10, deadline=None)
@given(mask=arrays(bool, SHAPE[1:]), valid=arrays(bool, SHAPE[1:]))
def test_ignored_pixels_change_nothing(mask: np.ndarray, valid: np.ndarray) -> None:
    prediction, target, source, predicted = picture(1), picture(2), picture(3), picture(4)[0]
    expected = retouch(
        prediction, target, valid, change=Retouched(source=source, mask=mask, predicted=predicted)
    )
    for array in (prediction, target, source):
        array[:, ~valid] = np.nan
    found = retouch(
        prediction,
        target,
        valid,
        change=Retouched(source=source, mask=mask ^ ~valid, predicted=predicted * valid),
    )
    assert found == pytest.approx(expected, nan_ok=True, rel=1e-12)
    assert found["mask_share"] == pytest.approx(
        (mask & valid).sum() / valid.sum() if valid.any() else math.nan, nan_ok=True
    )


def test_without_a_valid_pixel_nothing_has_a_score() -> None:
    scores = retouch(picture(1), picture(2), np.zeros(SHAPE[1:], bool), change=retouched())
    assert scores["empty_mask"] == 1
    assert all(math.isnan(v) for k, v in scores.items() if k != "empty_mask")


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"source": picture(0, (1, 24, 30))}, r"input has the shape \(1, 24, 30\)"),
        ({"mask": spot()[:20]}, r"mask of change has the shape \(20, 30\)"),
        ({"predicted": np.zeros((12, 15))}, r"predicted mask has the shape \(12, 15\)"),
    ],
)
def test_shapes_that_do_not_match_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        retouch(picture(), picture(), change=retouched(**options))


def test_answer_and_target_must_be_of_one_shape() -> None:
    with pytest.raises(UserError, match="prediction has the shape"):
        retouch(picture()[:, :20], picture(), change=retouched())
    with pytest.raises(UserError, match="valid voxels has the shape"):
        retouch(picture(), picture(), np.ones(SHAPE, bool), change=retouched())


@pytest.mark.parametrize("place", [(1, 10, 10), (1, 0, 0)])
@pytest.mark.parametrize("which", ["answer", "target"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_pixel_that_is_no_number_is_an_error(
    place: tuple[int, ...], which: str, bad: float
) -> None:
    images = {"answer": picture(1), "target": picture(2)}
    images[which][place] = bad
    with pytest.raises(ValueError, match=r"1 of .* pixels are NaN or infinite"):
        retouch(images["answer"], images["target"], change=retouched())


def test_it_needs_input_and_mask_and_takes_no_options() -> None:
    with pytest.raises(
        ConfigError, match=r"retouch: needs the input and a mask.*data\.change.*--inputs"
    ):
        evaluate([NamedOptions(name="psnr"), NamedOptions(name="retouch")], picture(), picture())
    with pytest.raises(ConfigError, match="no option 'change'"):
        bound(NamedOptions(name="retouch", options={"change": 1}), "metrics.0")
    with pytest.raises(ConfigError, match=r"train\.validate\.metrics\.0: 'retuch' is unknown"):
        bound(NamedOptions(name="retuch"), "train.validate.metrics.0")


# --- the table ------------------------------------------------------------------------------------


def test_it_stands_beside_other_metrics_and_every_share_but_the_masks_own_has_a_direction() -> None:
    found = evaluate(
        [NamedOptions(name="psnr"), NamedOptions(name="retouch")],
        picture(1),
        picture(2),
        change=retouched(predicted=np.zeros(SHAPE[1:])),
    )
    assert list(found) == ["psnr", *KEYS[:5], "mask_dice", *KEYS[5:]]
    assert all(type(value) is float for value in found.values())
    assert {name: better(name) for name in list(found)[1:7]} == {
        **dict.fromkeys([*KEYS[:4], "mask_dice"], "higher"),
        "leak": "lower",
    }
    for name in ("retouch", "mask_share", "empty_mask"):
        with pytest.raises(ConfigError, match=name):
            better(name)
    assert names_of("image") == ["mae", "psnr", "retouch", "ssim"]
    assert [name for name, entry in METRICS.items() if "change" in entry.needs] == ["retouch"]


def test_means_leave_empty_masks_out_and_a_note_tells_how_many() -> None:
    rows = [
        retouch(picture(1), picture(2), change=retouched()),
        retouch(picture(1), picture(2), change=retouched(mask=np.zeros(SHAPE[1:], bool))),
    ]
    assert mean(rows)["psnr_in"] == rows[0]["psnr_in"]
    assert mean(rows)["empty_mask"] == 0.5
    assert empty_masks(rows) == (1, 2)
    assert empty_masks([{"psnr": 1.0}]) is None
    assert note(rows) == ["1 of 2 cases have an empty mask: psnr_in and ssim_in leave them out"]
    assert note([{"empty_mask": None}]) == []


# --- held-out cases of a run ----------------------------------------------------------------------


def setting(**data: Any) -> Config:
    return from_dict(
        {
            "name": "t",
            "task": "image",
            "data": {
                "dims": 2,
                "layout": "folders",
                "folders": {"image": "src", "target": "dst"},
                "normalise": {"name": "range", "options": {"low": 0, "high": None, "to": [0, 1]}},
                "patch": {"size": [16, 16], "foreground": None},
                "change": {},
                **data,
            },
            "network": "unet",
            "losses": [{"name": "l1", "target": "target"}],
            "metrics": ["psnr", "retouch"],
        }
    )


OWN = {
    "change": None,
    "folders": {"mask": "own", "image": "src", "target": "dst"},
    "targets": {"mask": "labels", "target": "image"},
}
"""A user's own masks, as labels, named before the image."""


def blemished(dtype: str = "uint8", strength: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """A photograph, and the same with a dark spot of 6 x 10 pixels."""
    most = np.iinfo(dtype).max
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    target = 0.5 + 0.2 * np.sin(y / 3 + np.arange(3)[:, None, None]) * np.cos(x / 5)
    return tuple(np.rint(a * most).astype(dtype) for a in (target, target - strength * spot()))  # type: ignore[return-value]


def stored(root: Path, settings: Config, strength: float = 0.2) -> CachedCase:
    """One case in the store with its mask: of ``data.change``, or the user's own, which is the
    upper half.
    """
    target, source = blemished(strength=strength)
    half = np.zeros(SHAPE[1:], np.uint8)
    half[:12] = 1
    for name, array in (("src", source), ("dst", target), ("own", half)):
        files.write(root / name / "one.png", array, dims=2)
    found = cases.find(settings.data, settings.targets, root).train
    case = cache.build(
        found, properties.examine(found, settings, None, write=False), settings, root / "store"
    )[0]
    if settings.data.change is None:
        return case
    mask = change.difference_mask(source, target, settings.data.change).astype(np.float16)
    return dataclasses.replace(case, maps={"mask": cache.save(root / "mask.npy", mask)})


def test_a_held_out_case_is_scored_by_the_mask_of_its_pair(tmp_path: Path) -> None:
    config, (target, source) = setting(), blemished()
    case = stored(tmp_path, config)
    mask = change.difference_mask(source, target, Change())[0] >= 0.5
    soft = np.concatenate([intensities(target), mask[None]]).astype(np.float32)
    scores = held_out.score(config, soft_of(config, soft, case), case)
    assert scores["psnr_in"] == scores["psnr_out"] == scores["psnr"] == 100
    assert scores["mask_dice"] == 1
    assert scores["mask_share"] == mask.mean() > 60 / 720
    assert scores["leak"] == pytest.approx(
        np.abs(intensities(target) - intensities(source))[:, ~mask].mean(), abs=1e-9
    )
    assert held_out.answer_of(config, soft_of(config, soft, case)).shape == SHAPE
    np.testing.assert_array_equal(held_out.answer_of(config, soft_of(config, soft, case)), target)


def test_a_network_without_a_mask_has_no_dice_of_it(tmp_path: Path) -> None:
    config = setting()
    scores = held_out.score(
        config,
        soft_of(config, intensities(blemished()[0]), stored(tmp_path, config)),
        stored(tmp_path, config),
    )
    assert list(scores) == ["psnr", *KEYS]


def test_a_users_own_masks_are_read_where_they_are_a_target(tmp_path: Path) -> None:
    config = setting(**OWN)
    target, source = blemished()
    scores = held_out.score(
        config,
        soft_of(config, intensities(source), stored(tmp_path, config)),
        stored(tmp_path, config),
    )
    assert (scores["mask_share"], scores["leak"]) == (0.5, 0)
    difference = intensities(source)[:, :12] - intensities(target)[:, :12]
    assert scores["psnr_in"] == pytest.approx(-10 * math.log10((difference**2).mean()), rel=1e-4)


def test_doing_nothing_leaks_nothing_and_predicts_no_mask(tmp_path: Path) -> None:
    config = setting()
    several = [stored(tmp_path / "a", config), stored(tmp_path / "b", config, strength=0)]
    row = baselines.of_images(config, several)[baselines.DO_NOTHING]
    assert list(row) == ["psnr", *KEYS]
    assert (row["leak"], row["psnr_out"], row["empty_mask"]) == (0, 100, 0.5)
    assert 10 < row["psnr_in"] < row["psnr"]


def test_other_metrics_ask_for_no_mask(tmp_path: Path) -> None:
    config = dataclasses.replace(setting(), metrics=(NamedOptions(name="psnr"),))
    case = dataclasses.replace(stored(tmp_path, config), maps={})
    soft = np.concatenate([intensities(blemished()[0]), np.zeros((1, *SHAPE[1:]), np.float32)])
    assert held_out.score(config, soft_of(config, soft, case), case) == {"psnr": 100}
    with pytest.raises(ConfigError, match="retouch: needs the input and a mask"):
        held_out.score(setting(), soft_of(setting(), soft, case), case)


# --- pipeline.evaluate ----------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two photographs with a spot, of 8 and 16 bits, and a clean one; answers take away half of the
    spot; a predicted mask each.
    """
    for name, dtype, strength in (("a", "uint8", 0.2), ("b", "uint16", 0.2), ("c", "uint8", 0)):
        target, source = blemished(dtype, strength)
        answer = ((target.astype(float) + source) / 2).astype(dtype)
        for where, image in (("dst", target), ("src", source), ("answers", answer)):
            files.write(tmp_path / where / f"{name}.png", image, dims=2)
        mask = change.difference_mask(source, target, Change())[0]
        files.write(
            tmp_path / "elsewhere" / f"{name}.png", np.rint(mask * 255).astype(np.uint8), dims=2
        )
    return tmp_path


def result(root: Path) -> dict[str, Any]:
    return json.loads((root / "out.json").read_text())


def test_the_command_scores_both_sides_beside_do_nothing(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_evaluate(folders, "--metrics", "psnr", "retouch", "--inputs", folders / "src") == 0
    scores = result(folders)
    assert scores["empty_masks"] == 1
    assert scores["cases"]["c"]["psnr_in"] is None
    assert scores["cases"]["a"]["mask_share"] == scores["cases"]["b"]["mask_share"] > 60 / 720
    # Half the error is 6.02 dB more, whatever the number type; 8 bits round it.
    assert scores["difference"]["psnr_in"] == pytest.approx(20 * math.log10(2), abs=0.1)
    assert (scores["do_nothing"]["leak"], scores["mean"]["leak"], scores["difference"]["leak"]) == (
        0,
        0,
        0,
    )
    assert "mask_dice" not in scores["mean"]
    assert set(scores["difference"]) == {"psnr", *KEYS[:5]}  # shares of the mask are no gain
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "1 of 3 cases have an empty mask: psnr_in and ssim_in leave them out"
    assert [line.split("  ")[0] for line in told[-4:-1]] == ["mean", "do nothing", "difference"]


@pytest.mark.parametrize("named", [True, False])
def test_predicted_masks_are_named_or_lie_beside_the_answers(folders: Path, named: bool) -> None:
    if not named:
        (folders / "elsewhere").rename(folders / "answers" / "masks")
    words = ["--masks", folders / "elsewhere"] if named else []
    assert run_evaluate(folders, "--metrics", "retouch", "--inputs", folders / "src", *words) == 0
    scores = result(folders)
    assert [case["mask_dice"] for case in scores["cases"].values()] == [1, 1, 1]
    assert "mask_dice" not in scores["do_nothing"]


def test_settings_of_the_mask_are_those_of_data_change(folders: Path) -> None:
    shares = {}
    for words in ((), ("opening=0", "dilation=0", "blur=0"), ("threshold=100",)):
        assert (
            run_evaluate(
                folders,
                "--metrics",
                "retouch",
                "--inputs",
                folders / "src",
                *(["--change", *words] if words else []),
            )
            == 0
        )
        shares[words] = result(folders)["cases"]["b"]["mask_share"]
    usual, bare, blind = shares.values()
    assert bare == pytest.approx(60 / 720)
    assert blind == 0 < bare < usual


def test_the_command_and_a_run_see_the_same_mask(folders: Path) -> None:
    """Training keeps masks in half precision, which can lift a pixel over the level of 0.5."""
    soft = np.full((1, 20, 20), 0.49999, np.float32)
    assert (soft.astype(np.float16) >= 0.5).all()
    source, target = (files.read(folders / name / "a.png", 2)[0] for name in ("src", "dst"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(change, "difference_mask", lambda *_: soft)
        assert pairs.changed_mask(source, target, Change()).all()
    np.testing.assert_array_equal(
        pairs.changed_mask(source, target, Change()),
        change.difference_mask(source, target, Change())[0].astype(np.float16) >= 0.5,
    )


def test_a_case_that_cannot_be_scored_fails_by_name(folders: Path) -> None:
    files.write(folders / "src/a.png", blemished()[1][:, :20], dims=2)
    coloured = np.zeros(SHAPE, np.uint8)
    coloured[1] = 255
    files.write(folders / "elsewhere/b.png", coloured, dims=2)
    assert (
        run_evaluate(
            folders,
            "--metrics",
            "retouch",
            "--inputs",
            folders / "src",
            "--masks",
            folders / "elsewhere",
        )
        == 3
    )
    scores = result(folders)
    assert list(scores["cases"]) == ["c"]
    assert scores["empty_masks"] == 1
    assert "src/a.png: has shape (20, 30)" in scores["failed"]["a"]
    assert "3 different channels where a mask is needed" in scores["failed"]["b"]


def test_a_predicted_mask_of_another_size_fails_by_name(folders: Path) -> None:
    files.write(folders / "elsewhere/a.png", np.zeros((12, 15), np.uint8), dims=2)
    assert (
        run_evaluate(
            folders,
            "--metrics",
            "retouch",
            "--inputs",
            folders / "src",
            "--masks",
            folders / "elsewhere",
        )
        == 3
    )
    assert "elsewhere/a.png: has shape (12, 15)" in result(folders)["failed"]["a"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--metrics", "psnr", "retouch"], "Name the inputs with --inputs DIR"),
        (["--metrics", "retouch", "dice"], "retouch are of images, the others of labels"),
        (
            ["--metrics", "psnr", "--masks", "x"],
            "--masks is for metrics of what was to change: retouch",
        ),
        (
            ["--metrics", "dice", "--change", "by=colour"],
            "--change is for metrics of what was to change: retouch",
        ),
        (
            ["--metrics", "retouch", "--inputs", "src", "--change", "by"],
            "--change by: give KEY=VALUE",
        ),
        (
            ["--metrics", "retouch", "--inputs", "src", "--change", "treshold=8"],
            "treshold: unknown key. Did you mean 'threshold'",
        ),
        (["--metrics", "retouch", "--inputs", "src", "--change", "by=hue"], "--change"),
        (
            ["--metrics", "retouch", "--inputs", "src", "--change", "blur=-1"],
            "must not be negative",
        ),
        (
            ["--metrics", "retouch", "--inputs", "src", "--masks", "none"],
            "--masks none: no such folder",
        ),
    ],
)
def test_wrong_options_are_refused(
    folders: Path,
    words: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folders)
    assert run_evaluate(folders, *words) == 2
    assert told in capsys.readouterr().err


def test_a_missing_mask_is_named(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "elsewhere/b.png").unlink()
    assert (
        run_evaluate(
            folders,
            "--metrics",
            "retouch",
            "--inputs",
            folders / "src",
            "--masks",
            folders / "elsewhere",
        )
        == 2
    )
    assert "no predicted mask for 1 cases: b" in capsys.readouterr().err


def test_volumes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("dst", "src", "answers"):
        files.write(tmp_path / name / "a.tif", np.zeros((1, 4, 12, 12), np.uint8), dims=3)
    assert run_evaluate(tmp_path, "--metrics", "retouch", "--inputs", tmp_path / "src") == 2
    assert "retouch compares photographs" in capsys.readouterr().err


def test_memory_of_a_case_grows_with_its_space_and_its_channels(folders: Path) -> None:
    rules, entry = (
        Rules(metrics=(NamedOptions(name="psnr"), NamedOptions(name="retouch"))),
        METRICS["retouch"],
    )
    pair = Pair(
        id="a",
        prediction=folders / "answers/a.png",
        label=folders / "dst/a.png",
        rules=rules,
        reading=Reading(dims=2),
    )
    grey = dataclasses.replace(pair, label=folders / "elsewhere/a.png")
    voxel = memory.OPENED_IMAGE + max(entry.bytes_per_voxel, METRICS["psnr"].bytes_per_voxel)
    assert folder.bytes_of(pair) == 720 * (3 * voxel + entry.bytes_per_pixel)
    assert folder.bytes_of(grey) == 720 * (voxel + entry.bytes_per_pixel)
    labels = dataclasses.replace(pair, rules=Rules(metrics=(NamedOptions(name="dice"),)))
    assert folder.bytes_of(labels) == 3 * 720 * (memory.OPENED + METRICS["dice"].bytes_per_voxel)
