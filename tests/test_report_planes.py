"""Planes of volumes: upright whatever way the file stores them, square pixels, any storage."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline import files
from pipeline.grid import Grid, reorientation
from pipeline.reporting import planes

CODES = ["".join(flips) for axes in itertools.permutations(("RL", "AP", "SI"))
         for flips in itertools.product(*axes)]  # fmt: skip
"""All 48 ways to store a volume."""


def cut(codes: str, direction: str, world: tuple[int, int, int]) -> planes.Cut:
    """The slice through the voxel ``world`` (of LPS) of a volume that is stored otherwise."""
    pairs = {c: pair for pair in ("RL", "AP", "SI") for c in pair}
    axis = next(n for n, c in enumerate(codes) if pairs[c] == direction)
    size = {"RL": 4, "AP": 5, "SI": 6}[direction]
    index = world[("RL", "AP", "SI").index(direction)]
    index = index if codes[axis] in "LPS" else size - 1 - index
    grid = Grid(family="nifti", codes=codes, spacing=(1.0, 1.0, 1.0))
    return planes.Cut(axis=axis, index=index, count=size, grid=grid)


@pytest.mark.parametrize("codes", CODES)
def test_planes_are_upright_however_a_volume_is_stored(codes: str) -> None:
    """Rows go down to the feet, or to the back; columns go to the left hand, or to the back."""
    lps = np.arange(4 * 5 * 6).reshape(1, 4, 5, 6)
    way = reorientation("LPS", codes)
    assert way is not None
    stored = way.apply(lps)
    at = (1, 3, 2)
    wanted = {
        "SI": lps[:, :, :, at[2]].swapaxes(1, 2),
        "AP": lps[:, :, at[1]].swapaxes(1, 2)[:, ::-1],
        "RL": lps[:, at[0]].swapaxes(1, 2)[:, ::-1],
    }
    for direction, expected in wanted.items():
        (found,) = planes.planes(stored, [cut(codes, direction, at)])
        assert np.array_equal(found, expected), direction


def test_pixels_have_the_size_of_the_upright_plane() -> None:
    grid = Grid(family="nifti", codes="RAS", spacing=(1.0, 2.0, 8.0))
    found = {c.title.split(",")[0]: c.pixel for a in range(3)
             for c in [planes.Cut(axis=a, index=0, count=9, grid=grid)]}  # fmt: skip
    assert found == {"axial": (2.0, 1.0), "coronal": (8.0, 1.0), "sagittal": (8.0, 2.0)}
    plain = planes.Cut(axis=1, index=2, count=9)
    assert (plain.title, plain.pixel) == ("axis 1, slice 3 of 9", (1.0, 1.0))


def test_thick_slices_look_as_thick_as_they_are() -> None:
    shown = planes.enlarge(np.arange(9 * 256).reshape(9, 256), (8.0, 1.36))
    assert shown.shape == (round(9 * 8 / 1.36), 256)
    assert np.array_equal(np.unique(shown), np.arange(9 * 256)), "no pixel is lost"
    whole = planes.enlarge(np.zeros((10, 10)), (1.0, 3.0))
    assert whole.shape[1] == 3 * whole.shape[0]


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".nii.gz", ".zarr"])
def test_planes_of_files_are_those_of_the_array(tmp_path: Path, suffix: str) -> None:
    volume = np.random.default_rng(0).integers(0, 3, (40, 11, 12)).astype(np.uint8)
    path = tmp_path / f"x{suffix}"
    files.write(path, volume)
    wanted = [
        planes.Cut(axis=a, index=i, count=n) for a, i, n in ((0, 33, 40), (1, 3, 11), (2, 0, 12))
    ]
    with files.view(path, 3) as (rows, _):
        found = planes.planes(rows, wanted)
        counted = planes.counts(rows, ignore=2)
    for plane, expected in zip(found, (volume[33], volume[:, 3], volume[:, :, 0]), strict=True):
        assert np.array_equal(plane[0], expected)
    for axis, along in enumerate(counted):
        others = tuple(a for a in range(3) if a != axis)
        assert np.array_equal(along, (volume == 1).sum(axis=others))
