"""Any bytes give an array or a FileError: every reader, damaged at any byte and where its structure
says something.
"""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import reader_seeds as seeds
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import files
from pipeline.files import limits

GROWTH = 2**30
"""Bytes by which memory may grow while some 100 small files are read; announced are up to 2**64."""

draw = settings(
    max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def _bounded(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(limits, "UNASKED", 2**20)
    monkeypatch.setattr(limits, "available_memory", lambda: 2**28)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GROWTH


def answer(action: Callable[[], np.ndarray]) -> np.ndarray | None:
    """What a reader gives, None for a FileError that has one line of words."""
    try:
        return action()
    except files.FileError as error:
        assert error.problem  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return None


def viewed(path: Path, dims: int) -> np.ndarray:
    with files.view(path, dims) as (rows, _):
        return np.array(rows[:])


def check(path: Path, dims: int) -> None:
    """The ways to one file agree on whether it can be read, and on what is in it."""
    probed = files.probe(path, dims)
    array, other = answer(lambda: files.read(path, dims)[0]), answer(lambda: viewed(path, dims))
    answer(lambda: files.read(path, dims, labels=True)[0])
    assert (array is None) == (other is None)
    if probed.problem is not None:
        assert array is None
        return
    files.geometry(path, dims)
    if array is not None and other is not None:
        assert array.shape == other.shape == probed.shape
        np.testing.assert_array_equal(array, other)


@cache
def tiffs() -> dict[str, bytes]:
    return seeds.tiff_seeds()


@cache
def pictures() -> dict[str, dict[str, bytes]]:
    return seeds.picture_seeds()


@pytest.mark.parametrize("damage", [seeds.damage_bytes, seeds.damage_tiff, seeds.damage_text])
@draw
@given(rng=st.randoms(use_true_random=False), name=st.sampled_from([*seeds.TIFFS, "reduced copy"]))
def test_tiff(tmp_path: Path, damage: seeds.Damage, rng: random.Random, name: str) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(damage(rng, tiffs()[name]))
    for dims in (3, 2):
        check(path, dims)


@pytest.mark.parametrize("damage", [seeds.damage_bytes, seeds.damage_nifti, seeds.damage_packed])
@draw
@given(
    rng=st.randoms(use_true_random=False),
    name=st.sampled_from(["one", "two", "scaled", "extended"]),
)
def test_nifti(tmp_path: Path, damage: seeds.Damage, rng: random.Random, name: str) -> None:
    path = tmp_path / ("x.nii.gz" if damage is seeds.damage_packed else "x.nii")
    path.write_bytes(damage(rng, seeds.nifti_seeds()[name]))
    for dims in (3, 2):
        check(path, dims)


@pytest.mark.parametrize("damage", [seeds.damage_bytes, seeds.damage_png])
@draw
@given(
    rng=st.randoms(use_true_random=False),
    name=st.sampled_from(["grey", "colour", "palette", "bit", "deep", "deep colour"]),
)
def test_png(tmp_path: Path, damage: seeds.Damage, rng: random.Random, name: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(damage(rng, pictures()[".png"][name]))
    check(path, 2)


@pytest.mark.parametrize("suffix", [".jpg", ".gif", ".bmp"])
@draw
@given(rng=st.randoms(use_true_random=False))
def test_jpeg_gif_and_bmp(tmp_path: Path, suffix: str, rng: random.Random) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(seeds.damage_bytes(rng, rng.choice(list(pictures()[suffix].values()))))
    check(path, 2)


@pytest.mark.parametrize("damage", [seeds.damage_bytes, seeds.damage_npy])
@draw
@given(
    rng=st.randoms(use_true_random=False), name=st.sampled_from(["c", "fortran", "float", "second"])
)
def test_npy(tmp_path: Path, damage: seeds.Damage, rng: random.Random, name: str) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(damage(rng, seeds.npy_seeds()[name]))
    for dims in (3, 2):
        check(path, dims)


@cache
def placed() -> dict[str, dict[str, bytes]]:
    return seeds.placed_seeds()


@pytest.mark.parametrize("damage", [seeds.damage_bytes, seeds.damage_header])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".mhd", ".nhdr"])
@draw
@given(
    rng=st.randoms(use_true_random=False),
    name=st.sampled_from(["plain", "packed", "vectors", "flat"]),
)
def test_metaimage_and_nrrd(
    tmp_path: Path, damage: seeds.Damage, suffix: str, rng: random.Random, name: str
) -> None:
    path = tmp_path / f"x{suffix}"
    (tmp_path / "LOCAL").write_bytes(bytes(9))
    whole = {".mhd": ".mha", ".nhdr": ".nrrd"}.get(suffix, suffix)
    path.write_bytes(damage(rng, placed()[whole][name]))
    for dims in (3, 2):
        check(path, dims)


@pytest.mark.parametrize("name", ["implicit", "jpeg2000", "frames"])
@draw
@given(rng=st.randoms(use_true_random=False))
def test_dicom(tmp_path: Path, name: str, rng: random.Random) -> None:
    """Half of them keep their mark and their first group, or little else would be damaged."""
    data = placed()[".dcm"][name]
    kept = data[:300] if rng.random() < 0.5 else b""
    path = tmp_path / "x.dcm"
    path.write_bytes(kept + seeds.damage_bytes(rng, data[len(kept) :]))
    for dims in (3, 2):
        check(path, dims)


@pytest.fixture(scope="module")
def zarrs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return seeds.write_zarrs(tmp_path_factory.mktemp("zarrs"))


@pytest.mark.parametrize("what", ["description", "chunk"])
@draw
@given(rng=st.randoms(use_true_random=False))
def test_zarr(tmp_path: Path, zarrs: list[Path], what: str, rng: random.Random) -> None:
    path = tmp_path / "x.zarr"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(rng.choice(zarrs), path)
    inside = sorted(p for p in path.rglob("*") if p.is_file())
    described = [p for p in inside if p.name in (".zarray", ".zgroup", ".zattrs", "zarr.json")]
    if what == "description":
        one = rng.choice(described)
        one.write_text(seeds.damage_json(rng, one.read_text()))
    else:
        one = rng.choice([p for p in inside if p not in described])
        one.write_bytes(seeds.damage_bytes(rng, one.read_bytes()))
    for dims in (3, 2):
        check(path, dims)


def test_sound_seeds_are_read(tmp_path: Path, zarrs: list[Path]) -> None:
    """Else the damaged ones would say nothing."""
    kinds = {".tif": tiffs(), ".nii": seeds.nifti_seeds(), ".npy": seeds.npy_seeds(), **pictures()}
    kinds |= placed()
    for suffix, found in kinds.items():
        for name, data in found.items():
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(data)
            probes = [files.probe(path, dims).problem for dims in (2, 3)]
            assert None in probes or name == "two", (path, probes)
    for path in zarrs:
        np.testing.assert_array_equal(files.read(path, 3)[0][0], seeds.VOLUME)
