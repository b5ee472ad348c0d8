"""Colours: they mean what they are named for, nothing outside a mask changes, and any number type
becomes a picture.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import colours
from pipeline.config import from_dict
from pipeline.training.journal import GAP, Journal
from pipeline.training.previews import preview_panels

LABELS = st.integers(0, 2**16).map(
    lambda seed: np.random.default_rng(seed).integers(0, 9, (6, 7)).astype(np.uint8)
)


def linear(colour: tuple[int, int, int]) -> np.ndarray:
    """sRGB to linear light (IEC 61966-2-1)."""
    c = np.asarray(colour) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


# Machado, Oliveira and Fernandes (2009), table 1, severity 1.
PROTAN = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)
DEUTAN = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)


def lab(light: np.ndarray) -> np.ndarray:
    """Linear light to CIE L*a*b*, D65."""
    from skimage.color import xyz2lab

    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    return xyz2lab((to_xyz @ np.clip(light, 0, 1))[None])[0]


@pytest.mark.parametrize("sight", [np.eye(3), PROTAN, DEUTAN], ids=["normal", "protan", "deutan"])
@pytest.mark.parametrize(
    "group",
    [
        (colours.FOUND, colours.FALSE_POSITIVE, colours.FALSE_NEGATIVE, colours.WRONG_CLASS),
        (colours.GREEN, colours.SKY),
        colours.CLASSES[:4],
    ],
    ids=["errors", "truth and answer", "classes"],
)
def test_colours_differ_for_every_kind_of_sight(
    sight: np.ndarray, group: tuple[colours.Colour, ...]
) -> None:
    """Distance in CIELAB of at least 10, several times what can just be told apart (about 2.3)."""
    seen = [lab(sight @ linear(c)) for c in group]
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 10


@settings(deadline=None, max_examples=25)
@given(LABELS, st.floats(0, 1))
def test_background_stays_and_labels_are_mixed(labels: np.ndarray, strength: float) -> None:
    picture = np.random.default_rng(0).random((*labels.shape, 3))
    painted = colours.classes(picture, labels, strength=strength)
    np.testing.assert_array_equal(painted[labels == 0], picture[labels == 0])
    for y, x in np.argwhere(labels > 0):
        colour = np.array(colours.CLASSES[(int(labels[y, x]) - 1) % len(colours.CLASSES)]) / 255
        np.testing.assert_allclose(
            painted[y, x], (1 - strength) * picture[y, x] + strength * colour, atol=1e-12
        )


@settings(deadline=None, max_examples=25)
@given(LABELS, LABELS)
def test_errors_name_every_pixel(truth: np.ndarray, answer: np.ndarray) -> None:
    """On black each pixel has exactly the colour of its kind; exchanging truth and answer exchanges
    the two kinds of error.
    """
    black = np.zeros((*truth.shape, 3))
    shown, turned = colours.errors(black, truth, answer), colours.errors(black, answer, truth)
    for y, x in np.ndindex(truth.shape):
        t, a = truth[y, x], answer[y, x]
        wanted = np.zeros(3)
        if t and a:
            wanted = np.array(colours.FOUND if t == a else colours.WRONG_CLASS)
        elif t or a:
            wanted = np.array(colours.FALSE_NEGATIVE if t else colours.FALSE_POSITIVE)
        np.testing.assert_allclose(shown[y, x] * 255, 0.85 * wanted, atol=1e-9)
        assert (shown[y, x] == turned[y, x]).all() == (bool(t) == bool(a))


def test_errors_lie_over_a_dimmed_grey_image() -> None:
    picture = np.random.default_rng(0).random((4, 5, 3))
    none = np.zeros((4, 5), np.uint8)
    np.testing.assert_allclose(
        colours.errors(picture, none, none), 0.5 * picture.mean(-1, keepdims=True).repeat(3, -1)
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_image_is_stretched_alike(dtype: str, channels: int) -> None:
    """The same ramp in any number type and unit gives the same picture."""
    ramp = np.linspace(0, 250, 200).reshape(1, 10, 20).round()
    image = np.concatenate([ramp] * channels)
    unit = 100 if dtype in ("uint16", "int16") else 1
    shown = colours.stretched((image * unit).astype(dtype))
    assert shown.shape == (10, 20, 3)
    assert (shown.min(), shown.max()) == (0, 1)
    np.testing.assert_allclose(shown, colours.stretched(image), atol=1e-5)


def test_colours_of_an_image_keep_their_hue() -> None:
    image = np.zeros((3, 10, 10), np.uint8)
    image[0], image[1, :5] = 200, 100
    shown = colours.stretched(image)
    assert shown[0, 0].tolist() == pytest.approx([1, 0.5, 0])
    assert shown[9, 9].tolist() == [1, 0, 0]


def test_values_that_are_no_numbers_do_no_harm() -> None:
    image = np.linspace(0, 1, 100, dtype=np.float32).reshape(1, 10, 10)
    image[0, 0, :3] = np.nan, np.inf, -np.inf
    shown = colours.stretched(image)
    assert shown[0, :3, 0].tolist() == [0, 1, 0]
    assert 0.4 < shown[5, 0, 0] < 0.6
    for empty in (np.full((1, 3, 3), np.nan, np.float32), np.full((3, 3, 3), 7, np.uint8)):
        assert (colours.stretched(empty) == 0).all()


def test_overlay_keeps_size_and_leaves_the_background() -> None:
    image = np.random.default_rng(0).integers(0, 2**16, (3, 31, 17)).astype(np.uint16)
    labels = np.zeros((31, 17), np.uint8)
    labels[3:9, 2:5] = 1
    shown = colours.overlay(image, labels, (colours.SKY,))
    assert (shown.shape, shown.dtype) == ((31, 17, 3), np.uint8)
    bare = colours.to_bytes(colours.stretched(image))
    np.testing.assert_array_equal(shown[labels == 0], bare[labels == 0])
    assert np.abs(shown[labels > 0].astype(int) - colours.SKY).max() <= 0.25 * 255 + 1
    with pytest.raises(ValueError, match="17"):
        colours.overlay(image, labels[:-1])


def test_hatching_stays_inside_its_mask() -> None:
    where = np.zeros((20, 20), bool)
    where[:, 10:] = True
    shown = colours.hatch(np.zeros((20, 20, 3)), where)
    assert (shown[:, :10] == 0).all()
    assert len(np.unique(shown[:, 10:])) == 2


# --- previews -------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """Answers with given logits, whatever it is asked."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = torch.from_numpy(logits.astype(np.float32))[None]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"main": self.logits}


def panels(
    image: np.ndarray, label: np.ndarray, logits: np.ndarray, **data: Any
) -> list[np.ndarray]:
    """Panels of one patch, from a job that holds no more than they need."""
    batch = {
        "image": torch.from_numpy(image.astype(np.float32))[None],
        "label": torch.from_numpy(label)[None],
    }
    dims = image.ndim - 1
    settings = {
        "name": "t",
        "data": {"dims": dims, "patch": {"size": list(image.shape[1:])}, **data},
        "network": "unet",
        "losses": ["dice"],
    }
    job: Any = SimpleNamespace(
        config=from_dict(settings),
        images=lambda batch: batch["image"],
        val_loader=SimpleNamespace(epoch=lambda _: iter([batch])),
    )
    return preview_panels(job, Fixed(logits))


def test_preview_of_an_rgb_patch() -> None:
    image = np.random.default_rng(0).random((3, 4, 6))
    image[:, 0, 0], image[:, 0, 1] = 0, 1
    label = np.array([[[0, 0, 1, 1, 2, 2]] * 4], np.uint8)
    logits = np.array([[[-9, 9, -9, 9, 9, -9]] * 4])
    shown, truth, soft, errors = panels(image, label, logits, ignore_label=2)
    np.testing.assert_allclose(shown, np.moveaxis(image, 0, -1), atol=1e-6)
    assert (truth[0] * 255).round().tolist() == [[0] * 3] * 2 + [list(colours.WHITE)] * 2 + [
        list(colours.GREY)
    ] * 2
    assert soft[0, :, 0].round(2).tolist() == [0, 1, 0, 1, 1, 0]
    assert soft.shape == (4, 6, 3)
    grey = 0.5 * np.moveaxis(image, 0, -1).mean(-1)[0]
    assert errors[0, 0] == pytest.approx(grey[0])
    for x, colour in ((1, colours.FALSE_POSITIVE), (2, colours.FALSE_NEGATIVE), (3, colours.FOUND)):
        assert errors[0, x] == pytest.approx(0.15 * grey[x] + 0.85 * np.array(colour) / 255)
    assert (errors[0, 4:] * 255).round().tolist() == [list(colours.GREY)] * 2


def test_preview_of_classes_in_a_volume() -> None:
    """The middle plane; classes in their colours."""
    label = np.zeros((1, 5, 2, 3), np.uint8)
    label[0, 2] = [[0, 1, 2], [2, 1, 0]]
    logits = 9.0 * (np.arange(3)[:, None, None, None] == label[0])
    image, truth, answer, errors = panels(
        np.random.default_rng(0).random((1, 5, 2, 3)), label, logits, classes=3
    )
    assert image.shape == truth.shape == errors.shape == (2, 3, 3)
    np.testing.assert_array_equal(truth, answer)
    assert (truth[0] * 255).round().tolist() == [[0, 0, 0], list(colours.GREEN), list(colours.SKY)]


def test_journal_lays_panels_side_by_side(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 3)
    left, right = np.zeros((100, 30, 3)), np.full((100, 30, 3), 0.5)
    journal.preview(1, [left, right])
    journal.close()
    shown = np.asarray(Image.open(tmp_path / "previews" / "epoch_0002.png"))
    assert shown.shape == (200, 2 * 60 + GAP, 3)
    assert shown[:, :60].max() == 0
    assert shown[:, 60 : 60 + GAP].min() == 255
    assert (shown[:, -60:] == 128).all()
