"""The augmentations ``bias_field`` (MONAI's) and ``missing_slices`` (a transform of our own).

::

    data:
      augment:
        - flip
        - {name: bias_field, options: {strength: 0.5}}
        - {name: missing_slices, options: {p: 0.1}}
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform, RandBiasFieldd, RandomizableTransform, Transform

import pipeline as pl


def bias_field(keys: Any, p: float = 0.3, strength: float = 0.3) -> list[Transform]:
    """Brightness that varies smoothly over the patch, as from the coil of an MR scanner.

    Args:
        keys: entries of a sample: ``keys.image``, for geometry ``keys.every``.
        p: share of patches.
        strength: the field is the exponential of a polynomial of degree 3 whose coefficients are
            drawn from 0 to this.

    Returns:
        Transforms of a sample.

    Source: van Leemput et al., IEEE TMI 1999; MONAI's ``RandBiasField``.
    """
    return [RandBiasFieldd(keys.image, prob=p, coeff_range=(0.0, strength))]


class RandMissingSlicesd(RandomizableTransform, MapTransform):
    """Some successive slices are lost: each repeats the last one before them."""

    def __init__(self, keys: Sequence[str], prob: float, most: int) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.most = most

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return out
        lost, place = self.R.randint(1, self.most + 1), self.R.random_sample()  # seeded by the run
        for key in self.key_iterator(out):
            image = torch.as_tensor(out[key]).clone()  # (C, *S); the sample may be used again
            first = 1 + int(place * max(1, image.shape[1] - 1 - lost))
            image[:, first : first + lost] = image[:, first - 1 : first]
            out[key] = image
        return out


def missing_slices(keys: Any, p: float = 0.2, most: int = 2) -> list[Transform]:
    """Slices of the first space axis that repeat the one before, as where sections were lost.

    Labels stay: the network learns to carry structures across.

    Args:
        keys: entries of a sample.
        p: share of patches.
        most: greatest number of slices that are lost.

    Returns:
        Transforms of a sample.
    """
    if most < 1:
        raise ValueError(f"most is {most}, must be at least 1 slice.")
    return [RandMissingSlicesd(keys.image, p, most)]


pl.register("bias_field", pl.AugmentationEntry(bias_field))
pl.register("missing_slices", pl.AugmentationEntry(missing_slices))
