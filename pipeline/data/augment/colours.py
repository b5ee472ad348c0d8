"""Transforms of intensities and colours that MONAI lacks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import (
    MapTransform,
    RandGaussianSmoothd,
    RandomizableTransform,
)
from monai.utils import convert_to_dst_type, convert_to_numpy
from skimage.exposure import equalize_adapthist


class RandMirroredSmoothd(RandGaussianSmoothd):
    """MONAI's RandGaussianSmoothd on a mirrored margin.

    MONAI takes zeros outside, which darkens every patch's border by up to a half.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        margin = math.ceil(4 * max(self.rand_smooth.sigma_x))  # where MONAI cuts its kernel off
        wide = {key: _mirrored(data[key], margin) for key in self.key_iterator(dict(data))}
        out = super().__call__({**data, **wide})
        inner = (Ellipsis, *(slice(margin, -margin),) * (data[self.keys[0]].ndim - 1))
        return {**out, **{key: out[key][inner] for key in wide}}


def _mirrored(image: Any, margin: int) -> np.ndarray:
    """The image with a mirrored margin."""
    array = convert_to_numpy(image)
    return np.pad(array, [(0, 0), *[(margin, margin)] * (array.ndim - 1)], mode="symmetric")


class RandColourd(RandomizableTransform, MapTransform):
    """Linear change of colour: hue, saturation and a gain for each channel.

    Hue and saturation are changed as one 3×3 matrix (:func:`colour_matrix`): rotation about the
    grey axis and scaling of the distance from it. A rotation by 120 degrees takes red to green, the
    mean of the three channels stays, and grey stays grey until ``gain`` tints it. Both commute with
    a common scale and offset of the channels, hence need no range: they mean the same on [0, 1], on
    [-1, 1] and on z-scores. ``gain`` multiplies the values as they are, as ``brightness`` does.
    Nothing is clipped; vivid colours may leave the normalised range a little. Where the channels
    were normalised one by one, hues are those of the normalised image.

    Args:
        keys: entries ``(3, *S)``; those with another number of channels stay as they are.
        prob: probability, 0 to 1.
        hue: largest rotation of hues in degrees.
        saturation: range of the factor of saturation.
        gain: each channel is multiplied by 1 - gain to 1 + gain.

    Source:
        Haeberli, Matrix Operations for Image Processing, 1993.
    """

    def __init__(
        self,
        keys: Sequence[str],
        prob: float,
        hue: float,
        saturation: tuple[float, float],
        gain: float,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.hue, self.saturation, self.gain = math.radians(hue), saturation, gain
        self.matrix = np.eye(3)

    def randomize(self, data: Any = None) -> None:
        """Draw whether to change colours, and the matrix.

        Args:
            data: not used.
        """
        super().randomize(None)
        if self._do_transform:
            angle, factor = self.R.uniform(-self.hue, self.hue), self.R.uniform(*self.saturation)
            gains = self.R.uniform(1 - self.gain, 1 + self.gain, 3)
            self.matrix = gains[:, None] * colour_matrix(angle, factor)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        # Drawn before channels are counted: entries after this one then do the same to grey images
        # and to colour.
        self.randomize()
        for key in self.key_iterator(out) if self._do_transform else ():
            if len(out[key]) == 3:
                image = convert_to_numpy(out[key])
                out[key] = convert_to_dst_type(
                    np.tensordot(self.matrix.astype(np.float32), image, axes=1), out[key]
                )[0]
        return out


def colour_matrix(angle: float, saturation: float) -> np.ndarray:
    """Matrix that rotates hues and scales the distance from grey.

    Args:
        angle: rotation of hues in radians, red towards green.
        saturation: factor of the distance from grey; 1 keeps it, 0 gives grey.

    Returns:
        3×3, for columns (red, green, blue).

    Source:
        Haeberli, Matrix Operations for Image Processing, 1993.

    Example:
        >>> red_turned = colour_matrix(math.radians(120), 1.0) @ [1, 0, 0]
        >>> bool(np.allclose(red_turned, [0, 1, 0]))
        True
    """
    grey = np.full((3, 3), 1 / 3)
    rotation = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return grey + saturation * (math.cos(angle) * (np.eye(3) - grey) + math.sin(angle) * rotation)


class RandClahed(RandomizableTransform, MapTransform):
    """scikit-image's ``equalize_adapthist`` on a normalised patch ``(C, Y, X)`` of any range.

    What is equalised (the HSV value of RGB, else each channel) keeps its least and its greatest
    value; a constant stays as it is. The result has at most 256 grey levels between tiles' curves,
    which are blended linearly.

    Args:
        keys: entries of a sample.
        prob: probability, 0 to 1.
        clip: range of the clip limit, within 0 to 1.
        tile: ``(Y, X)`` of a tile in pixels.
    """

    def __init__(
        self, keys: Sequence[str], prob: float, clip: tuple[float, float], tile: tuple[int, ...]
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.range, self.tile, self.clip = clip, tile, clip[0]

    def randomize(self, data: Any = None) -> None:
        """Draw whether to equalise, and the clip limit.

        Args:
            data: not used.
        """
        super().randomize(None)
        if self._do_transform:
            self.clip = self.R.uniform(*self.range)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize()
        for key in self.key_iterator(out) if self._do_transform else ():
            image = convert_to_numpy(out[key])
            changed = (
                self._equalise_value(image)
                if len(image) == 3
                else np.stack([self._equalise(channel) for channel in image])
            )
            out[key] = convert_to_dst_type(changed, out[key])[0]
        return out

    def _equalise_value(self, image: np.ndarray) -> np.ndarray:
        """Equalise RGB by its HSV value, the greatest of the three channels.

        All are multiplied by one factor, counted from the patch's minimum.
        """
        low = image.min()
        above = image - low
        value = above.max(axis=0)
        equal = self._equalise(value)
        factor = np.divide(equal, value, out=np.zeros_like(value), where=value > 0)
        return np.where(value > 0, above * factor, equal) + low

    def _equalise(self, plane: np.ndarray) -> np.ndarray:
        """Equalise one plane ``(Y, X)`` within its own range."""
        low, span = plane.min(), np.ptp(plane)
        if not span > 0:
            return plane
        return low + span * equalize_adapthist((plane - low) / span, self.tile, self.clip).astype(
            plane.dtype
        )
