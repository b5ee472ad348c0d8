"""Augmentations by name, MONAI's and own ones.

Geometry moves the image and every target by the same field: images, distances and soft masks are
interpolated linearly, labels take the nearest voxel and keep their values, the ignored one
included. Intensities change in the image alone, for a label does not depend on them; where the
target is an image, ``both: true`` of an entry gives it the same change as the input. What each
entry does to colours stands in its docstring; ``colour`` is the only one that means to change them.
"""

from pipeline.data.augment.table import AUGMENT, AugmentationEntry, augmentation, augmentations

__all__ = ["AUGMENT", "AugmentationEntry", "augmentation", "augmentations"]
