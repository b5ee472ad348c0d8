"""Volumes larger than memory: shards join to the bits of one process, nothing is computed twice,
slabs give what the whole gives.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiles import main

from pipeline import config as configs
from pipeline import files, morphology, networks, postprocess, predict
from pipeline.data import normalise
from pipeline.data.normalise import IntensityScale
from pipeline.files import Rows
from pipeline.geometry import Tiling
from pipeline.inference import blocks
from pipeline.inference.models import load_models, save_model
from pipeline.inference.sliding_window import (
    Source,
    TileRun,
    network_ensemble,
    sliding_window,
    stream,
    tiling,
    with_fixed_norms,
)
from pipeline.morphology import SlabArray, labelling
from pipeline.records import Checkpoint, NamedOptions, UserError
from pipeline.workflows import predict as workflow
from pipeline.workflows import predict_blocks

quick = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
UNIT = IntensityScale(low=(0.0,), high=(1.0,), clip=False)


def model(
    folder: Path, dims: int = 3, task: str = "labels", norm: str = "batch", **more: Any
) -> Path:
    """A small model with random weights; its tiles are small, so that small volumes have many
    blocks.
    """
    size = [16] * dims
    config = configs.from_dict(
        {
            "name": "tiny",
            "task": task,
            "data": {
                "dims": dims,
                "layout": "folders",
                "patch": {"size": size},
                "normalise": "percentile",
            },
            "network": {
                "name": "dynunet",
                "options": {"channels": [2, 4, 4], "block": 2, "norm": norm},
            },
            "losses": [{"name": "l1", "target": "target"}] if task == "image" else ["dice"],
            "predict": {"overlap": 4},
            "postprocess": []
            if task == "image"
            else [{"name": "threshold", "options": {"at": 0.5}}],
            **more,
        }
    )
    torch.manual_seed(1)
    network = networks.build(config.network, 1, 1, dims)
    path = folder / "best_model.safetensors"
    save_model(
        path,
        Checkpoint(
            config=configs.to_dict(config),
            channels=(1, 1),
            fold=0,
            epoch=0,
            score=None,
            weights=network.state_dict(),
        ),
    )
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("model"))


def volume(
    path: Path, shape: tuple[int, ...] = (53, 20, 21), seed: int = 0, dtype: type = np.uint8
) -> Path:
    array = np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, array, dims=len(shape))
    return path


def go(checkpoint: Path, data: Path, out: Path, *more: str) -> int:
    return predict.main(
        ["--checkpoint", str(checkpoint), "--input", str(data), "--output", str(out), *more]
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, summaries without what differs from run to run."""
    found = {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }
    summary = json.loads(found.pop("summary.json"))
    for row in summary["files"]:
        row.pop("seconds")
        row.pop("blocks", None)
    return {**found, "summary.json": json.dumps(summary).encode()}


# --- tiles ----------------------------------------------------------------------------------------


@quick
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 30)),
    tile=st.sampled_from([8, 12, 16]),
    overlap=st.integers(0, 9),
    halo=st.integers(0, 2),
    grid=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 3),
    data=st.data(),
)
def test_any_rows_have_the_bits_of_the_whole(
    size: tuple[int, int],
    tile: int,
    overlap: int,
    halo: int,
    grid: int,
    batch: int,
    data: st.DataObject,
) -> None:
    tiles = Tiling(size=size, tile=(tile, tile), overlap=overlap, halo=halo, multiple=(grid, grid))
    source = Source(array=np.random.default_rng(0).random((1, *size), np.float32), scale=UNIT)
    convolution = main(torch.nn.Conv2d(1, 2, 3, padding=1))
    run = TileRun(source=source, predict_tile=convolution, tiles=tiles, batch=batch)
    whole = sliding_window(run)["main"]
    first = data.draw(st.integers(0, size[0] - 1))
    end = data.draw(st.integers(first + 1, size[0]))
    taken: list[tuple[int, np.ndarray]] = []
    stream(run, lambda row, heads: taken.append((row, heads["main"].copy())), rows=(first, end))
    assert [row for row, _ in taken] == list(
        np.cumsum([first, *(r.shape[1] for _, r in taken)])[:-1]
    )
    np.testing.assert_array_equal(np.concatenate([r for _, r in taken], 1), whole[:, first:end])


@pytest.mark.parametrize("norms", ["tile", "frozen", "exact"])
def test_rows_of_a_network_with_instance_norm(norms: str, tmp_path: Path) -> None:
    networks_, config = load_models(
        [
            model(
                tmp_path,
                dims=2,
                norm="instance",
                predict={"patch": [104, 104], "overlap": 0, "norms": norms, "flips": True},
            )
        ]
    )
    predict_tile = network_ensemble(networks_, config, "cpu")
    source = Source(array=np.random.default_rng(0).random((1, 330, 33), np.float32), scale=UNIT)
    tiles = tiling(config, (330, 33), predict_tile)

    def run() -> TileRun:
        fixed = with_fixed_norms(predict_tile, source, tiles)
        return TileRun(source=source, predict_tile=fixed, tiles=tiles)

    whole = sliding_window(run())["main"]
    taken: list[np.ndarray] = []
    stream(run(), lambda _, heads: taken.append(heads["main"].copy()), rows=(210, 230))
    np.testing.assert_array_equal(np.concatenate(taken, 1), whole[:, 210:230])


def test_only_tiles_with_a_say_are_computed() -> None:
    tiles = Tiling(size=(160, 16), tile=(16, 16), overlap=4)
    source = Source(array=np.zeros((1, 160, 16), np.float32), scale=UNIT)
    seen: list[int] = []
    predict_tile = main(lambda x: seen.append(len(x)) or x)  # type: ignore[func-returns-value]
    run = TileRun(source=source, predict_tile=predict_tile, tiles=tiles)
    stream(run, lambda *_: None, rows=(48, 60))
    assert len(seen) == 2
    assert tiles.count() == 13


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 7))
@quick
def test_shares_are_disjoint_and_complete(counts: list[int], number: int) -> None:
    shares = [blocks.share(counts, i, number) for i in range(number)]
    for case, count in enumerate(counts):
        assert [n for s in shares for n in s[case]] == list(range(count))
    sizes = [sum(map(len, s)) for s in shares]
    assert max(sizes) - min(sizes) <= 1


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_shards_join_to_the_answer_of_one_process(shards: int, tiny: Path, tmp_path: Path) -> None:
    """All files of the output folder, soft answers included, to the last byte."""
    for n, shape in enumerate([(53, 20, 21), (16, 16, 16), (5, 30, 17)]):
        volume(tmp_path / "in" / f"{n}.tif", shape, n)
    more = ["--save-soft", "--batch", "2", *(["--tta"] if shards == 3 else [])]
    assert go(tiny, tmp_path / "in", tmp_path / "one", *more) == 0
    for index in range(shards):
        assert (
            go(tiny, tmp_path / "in", tmp_path / "many", *more, "--shard", f"{index}/{shards}") == 0
        )
        assert not list((tmp_path / "many").glob("*.tif"))
    assert go(tiny, tmp_path / "in", tmp_path / "many", *more) == 0
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("shape", "suffix"),
    [((75, 33), ".png"), ((31, 18, 17), ".nii.gz"), ((40, 20, 21), ".ome.zarr")],
)
@pytest.mark.parametrize("task", ["labels", "image"])
def test_shards_of_every_kind_of_file(
    shape: tuple[int, ...], suffix: str, task: str, tmp_path: Path
) -> None:
    path = model(tmp_path / "model", len(shape), task)
    volume(tmp_path / "in" / f"a{suffix}", shape)
    assert go(path, tmp_path / "in", tmp_path / "one", "--save-soft") == 0
    for index in (1, 0):
        assert (
            go(path, tmp_path / "in", tmp_path / "many", "--save-soft", "--shard", f"{index}/2")
            == 0
        )
    assert go(path, tmp_path / "in", tmp_path / "many", "--save-soft") == 0
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [
            {"name": "hysteresis", "options": {"low": 0.45, "high": 0.55}},
            {"name": "dust", "options": {"below": 20}},
        ],
        [
            "threshold",
            {"name": "dust", "options": {"below": 9, "connectivity": 6}},
            {"name": "fill_holes", "options": {"below": 4}},
        ],
        [
            "threshold",
            {"name": "fill_holes", "options": {"below": 9, "per_slice": 0}},
            {"name": "closing", "options": {"radius": 1.5}},
        ],
    ],
)
@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_an_answer_by_blocks_is_that_of_memory(
    steps: list, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.files.pixels.ROWS", 1)
    monkeypatch.setattr("pipeline.files.pixels.SLAB", 5 * 400)  # slabs of a few rows
    path = model(tmp_path / "model", postprocess=steps)
    volume(tmp_path / "in" / f"a{suffix}", (37, 20, 20))
    assert go(path, tmp_path / "in", tmp_path / "memory", "--save-soft", "--blocks", "never") == 0
    assert go(path, tmp_path / "in", tmp_path / "blocks", "--save-soft", "--blocks", "always") == 0
    assert contents(tmp_path / "blocks") == contents(tmp_path / "memory")
    answer = files.read(tmp_path / "blocks" / f"a{suffix}", 3)[0]
    assert 0 < answer.mean() < 1


def test_an_image_by_blocks_is_that_of_memory(tmp_path: Path) -> None:
    path = model(tmp_path / "model", task="image")
    volume(tmp_path / "in" / "a.tif", (37, 20, 20), dtype=np.uint16)
    for way in ("never", "always"):
        assert go(path, tmp_path / "in", tmp_path / way, "--save-soft", "--blocks", way) == 0
    assert contents(tmp_path / "never") == contents(tmp_path / "always")


def count_tiles(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Counts the tiles that networks see from now on; raises at one of them."""
    seen: list[int] = []
    original = workflow.progress_steps

    @contextlib.contextmanager
    def watched(what: str, total: int) -> Iterator[Callable[[int], None]]:
        with original(what, total) as advance:

            def step(n: int) -> None:
                advance(n)
                seen.append(n)
                if len(seen) == stop_at:
                    raise KeyboardInterrupt

            yield step

    for module in (workflow, predict_blocks):
        monkeypatch.setattr(module, "progress_steps", watched)
    return seen


def test_what_is_there_is_not_computed_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at a tile, a process leaves whole blocks; the next one computes the tiles of the
    others only.
    """
    data, out = volume(tmp_path / "in" / "a.tif", (65, 16, 16)), tmp_path / "out"
    assert go(tiny, data, tmp_path / "one") == 0
    tiles = Tiling(size=(65, 16, 16), tile=(16, 16, 16), overlap=4, multiple=(8, 8, 8))
    with monkeypatch.context() as patch:
        count_tiles(patch, stop_at=4)
        with pytest.raises(KeyboardInterrupt):
            go(tiny, data, out, "--shard", "0/1")
    written = {p.name: p.stat().st_mtime_ns for p in (out / "blocks").rglob("*.npy")}
    assert sorted(written) == ["00000000.npy", "00000008.npy"]
    seen = count_tiles(monkeypatch)
    assert go(tiny, data, out, "--shard", "0/1") == 0
    assert len(seen) == tiles.count() - 1  # the first tile is needed for the first block only
    assert (
        written.items()
        <= {p.name: p.stat().st_mtime_ns for p in (out / "blocks").rglob("*.npy")}.items()
    )
    seen.clear()
    next((out / "blocks").rglob("00000032.npy")).unlink()
    assert go(tiny, data, out) == 0
    assert len(seen) == 2
    assert contents(out) == contents(tmp_path / "one")


@pytest.mark.parametrize("change", ["input", "model", "option"])
def test_stale_blocks_are_not_taken(change: str, tmp_path: Path) -> None:
    path, data, out = model(tmp_path / "model"), volume(tmp_path / "in" / "a.tif"), tmp_path / "out"
    assert go(path, data, out, "--shard", "0/1") == 0
    more: list[str] = []
    if change == "input":
        volume(data, seed=5)
    elif change == "model":
        model(
            tmp_path / "model",
            network={"name": "dynunet", "options": {"channels": [3, 6, 6], "block": 2}},
        )
    else:
        more = ["--overlap", "0"]
    assert go(path, data, out, *more) == 0
    assert go(path, data, tmp_path / "one", *more) == 0
    assert contents(out) == contents(tmp_path / "one")


@pytest.mark.slow
def test_a_killed_shard_continues(tiny: Path, tmp_path: Path) -> None:
    """A process that is killed while it computes, in the way of a scheduler: SIGKILL, at whatever
    it does.
    """
    data, out = volume(tmp_path / "in" / "a.tif", (160, 16, 20)), tmp_path / "out"
    words = [
        "--checkpoint",
        str(tiny),
        "--input",
        str(data),
        "--output",
        str(out),
        "--shard",
        "0/2",
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline.predict", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        until = time.monotonic() + 60
        while (
            len(list(out.rglob("*.npy"))) < 3 and child.poll() is None and time.monotonic() < until
        ):
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("0*.npy")}
    assert before
    for n in (0, 1):
        assert go(tiny, data, out, "--shard", f"{n}/2") == 0
    assert before.items() <= {p: p.stat().st_mtime_ns for p in out.rglob("0*.npy")}.items()
    assert go(tiny, data, out) == 0
    assert go(tiny, data, tmp_path / "one") == 0
    assert contents(out) == contents(tmp_path / "one")


def test_a_bad_file_is_met_by_one_shard(tiny: Path, tmp_path: Path) -> None:
    volume(tmp_path / "in" / "a.tif")
    (tmp_path / "in" / "b.tif").write_bytes((tmp_path / "in" / "a.tif").read_bytes()[:200])
    codes = [go(tiny, tmp_path / "in", tmp_path / "out", "--shard", f"{n}/3") for n in range(3)]
    assert sorted(codes) == [0, 0, 3]
    assert go(tiny, tmp_path / "in", tmp_path / "out") == 3
    assert (tmp_path / "out" / "a.tif").is_file()
    assert not (tmp_path / "out" / "blocks").exists()


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "0/0"])
def test_shards_that_are_none(text: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        go(tiny, volume(tmp_path / "a.tif"), tmp_path / "out", f"--shard={text}")
    assert end.value.code == 2


def test_channels_in_several_files(tmp_path: Path) -> None:
    from pipeline.data.reading import load_image, opened
    from pipeline.records import Case

    paths = (
        volume(tmp_path / "a.tif", (9, 8, 7)),
        volume(tmp_path / "b.npy", (9, 8, 7), 1, np.float64),
    )
    case = Case(id="x", image=paths)
    whole, geometry = load_image(case, 3)
    with opened(case, 3) as (pixels, place):
        assert (pixels.dtype, place) == (whole.dtype, geometry)
        np.testing.assert_array_equal(pixels[:, 2:7, 1:], whole[:, 2:7, 1:])
    other = Case(id="x", image=(paths[0], volume(tmp_path / "c.tif", (9, 8, 6))))
    with pytest.raises(files.FileError, match="one grid"), opened(other, 3):
        pass


# --- memory ---------------------------------------------------------------------------------------


def test_a_step_that_needs_too_much_is_named_beforehand() -> None:
    steps = (
        NamedOptions(name="threshold"),
        NamedOptions(name="dust"),
        NamedOptions(name="closing", options={"size": 3}),
    )
    size = (2048, 2048, 2048)
    with pytest.raises(
        UserError, match=r"2048 x 2048 x 2048 .*'closing'.* 160.0 GiB .* 8.0 GiB .*--shard 0/1"
    ):
        postprocess.check_memory(steps, 1, size, available=8 << 30)
    postprocess.check_memory(steps, 1, size, available=200 << 30)
    postprocess.check_memory(steps[:2], 1, size, available=1 << 20)
    with pytest.raises(UserError, match="walls"):
        postprocess.check_memory((NamedOptions(name="walls"),), 1, size, available=8 << 30)


def test_the_refusal_comes_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(tmp_path, postprocess=["threshold", {"name": "closing", "options": {"size": 3}}])
    monkeypatch.setattr("pipeline.processes.available_memory", lambda: 1000)
    seen = count_tiles(monkeypatch)
    assert go(path, volume(tmp_path / "in" / "a.tif"), tmp_path / "out", "--blocks", "always") == 1
    assert not seen
    row = json.loads((tmp_path / "out" / "summary.json").read_text())["files"][0]
    assert "'closing'" in row["error"]


# --- components -----------------------------------------------------------------------------------

MASKS = st.tuples(
    st.one_of(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 14)] * 2)),
    st.integers(0, 2**20),
    st.floats(0.1, 0.9),
)


def mask(given_: tuple[tuple[int, ...], int, float]) -> np.ndarray:
    shape, seed, density = given_
    return np.random.default_rng(seed).random(shape) < density


def in_slabs(array: np.ndarray, rows: int) -> SlabArray:
    ranges = dict(enumerate((a, min(a + rows, len(array))) for a in range(0, len(array), rows)))
    return SlabArray(array.shape, ranges, lambda number: array[slice(*ranges[number])])


def joined(array: SlabArray) -> np.ndarray:
    return np.concatenate([array.make(number) for number in array.ranges])


many = settings(deadline=None, max_examples=60)


@many
@given(MASKS, st.integers(1, 5), st.sampled_from([6, 18, 26]))
def test_components_over_slabs(given_: tuple, rows: int, connectivity: int) -> None:
    array = mask(given_)
    labels, count = morphology.components(array, connectivity)
    slabs = in_slabs(array, rows)
    sizes = morphology.component_sizes(slabs, connectivity)
    assert len(sizes) - 1 == count
    assert sorted(sizes[1:]) == sorted(np.bincount(labels.ravel(), minlength=count + 1)[1:])
    assert sizes[0] == 0
    # Each component of the whole is one of the slabs: selected alone, it is the same voxels.
    found = labelling.connect(
        slabs,
        connectivity,
        lambda labels, count, _: np.bincount(labels.ravel(), minlength=count + 1),
    )
    for name in range(1, min(count, 4) + 1):
        selected = joined(found.select(np.arange(count + 1) == name))
        assert len(np.unique(labels[selected])) == 1
        assert selected.sum() == sizes[name]


@many
@given(MASKS, st.integers(1, 20), st.sampled_from([6, 18, 26]), st.integers(0, 30))
def test_dust_over_slabs(given_: tuple, rows: int, connectivity: int, below: int) -> None:
    array = mask(given_)
    found = joined(morphology.remove_small_components(in_slabs(array, rows), below, connectivity))
    np.testing.assert_array_equal(
        found, morphology.remove_small_components(array, below, connectivity)
    )


@many
@given(MASKS, st.integers(1, 20), st.one_of(st.none(), st.integers(0, 12)))
def test_holes_over_slabs(given_: tuple, rows: int, below: int | None) -> None:
    array = mask(given_)
    np.testing.assert_array_equal(
        joined(morphology.fill_holes(in_slabs(array, rows), below)),
        morphology.fill_holes(array, below),
    )


def test_a_hole_over_many_slabs() -> None:
    shell = np.zeros((20, 9, 9), bool)
    shell[2:18, 2:7, 2:7] = True
    shell[4:16, 4, 4] = False
    kept, closed = (joined(morphology.fill_holes(in_slabs(shell, 3), below)) for below in (11, 12))
    np.testing.assert_array_equal(kept, shell)
    assert closed.sum() == shell.sum() + 12


@many
@given(MASKS, st.integers(1, 20), st.sampled_from([6, 18, 26]))
def test_hysteresis_over_slabs(given_: tuple, rows: int, connectivity: int) -> None:
    low = mask(given_)
    high = low & (np.random.default_rng(given_[1] + 1).random(low.shape) < 0.1)
    found = joined(morphology.hysteresis(in_slabs(low, rows), in_slabs(high, rows), connectivity))
    np.testing.assert_array_equal(found, morphology.hysteresis(low, high, connectivity))


def test_one_slab_is_labelled_once_and_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    told = labelling.components
    monkeypatch.setattr(
        labelling,
        "components",
        lambda mask, connectivity: counted.append(0) or told(mask, connectivity),
    )
    monkeypatch.setattr(labelling, "connect", None)
    array = mask(((9, 8, 7), 3, 0.3))
    for given_ in (array, in_slabs(array, 9)):
        changed = morphology.fill_holes(morphology.remove_small_components(given_, 3), 2)
        if isinstance(changed, SlabArray):
            changed = joined(changed)
        counted.clear()
        np.testing.assert_array_equal(
            changed, morphology.fill_holes(morphology.remove_small_components(array, 3), 2)
        )
        assert len(counted) == 2


@quick
@given(
    shape=st.tuples(*[st.integers(1, 11)] * 3),
    seed=st.integers(0, 2**20),
    below=st.integers(0, 20),
    holes=st.one_of(st.none(), st.integers(0, 20)),
)
def test_steps_of_several_classes_over_slabs(
    shape: tuple[int, ...], seed: int, below: int, holes: int | None, tmp_path: Path
) -> None:
    soft = np.random.default_rng(seed).random((3, *shape), np.float32)
    steps = (
        NamedOptions(name="dust", options={"below": below}),
        NamedOptions(name="fill_holes", options={"below": holes}),
    )
    compare_by_slabs(steps, soft, tmp_path, rows=2)


TOGETHER = [
    ("threshold",),
    ("hysteresis", {"low": 0.4, "high": 0.9}),
    ("walls", {"low": 0.3, "depth": 0.5}),
    ("dust", {"below": 3}),
    ("dust", {"below": 5, "connectivity": 6}),
    ("remove_small_components", {"min_size": 4}),
    ("fill_holes", {"below": 4}),
    ("fill_holes", {"below": None}),
    ("fill_holes", {"per_slice": 0}),
    ("fill_holes", {"per_slice": 1}),
    ("closing", {"radius": 1}),
    ("instances", {"depth": 1}),
]
STEPS = [NamedOptions(name=name, options=dict(*options)) for name, *options in TOGETHER]


@quick
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 10),
    steps=st.tuples(
        st.lists(st.sampled_from(STEPS[:3]), max_size=1),
        st.lists(st.sampled_from(STEPS[3:]), max_size=3),
    ),
)
def test_any_steps_by_slabs_give_what_memory_gives(
    shape: tuple[int, ...],
    seed: int,
    rows: int,
    steps: tuple[list[NamedOptions], list[NamedOptions]],
    tmp_path: Path,
) -> None:
    soft = np.random.default_rng(seed).random((1, *shape), np.float32)
    compare_by_slabs([*steps[0], *steps[1]], soft, tmp_path, rows)


def compare_by_slabs(
    steps: Sequence[NamedOptions],
    soft: np.ndarray,
    work: Path,
    rows: int,
    spacing: tuple[float, ...] | None = None,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.files.pixels.ROWS", 1)
        patch.setattr("pipeline.files.pixels.SLAB", rows * math.prod(soft.shape[2:]))
        labels = postprocess.apply(
            steps, Rows(soft.shape, soft.dtype, lambda a, b: soft[:, a:b]), work, spacing
        )
        expected = postprocess.apply(steps, soft, spacing=spacing)
        assert (labels.shape, labels.dtype) == ((1, *expected.shape), expected.dtype)
        np.testing.assert_array_equal(labels[0], expected)
        found, known = (postprocess.statistics(a, spacing) for a in (labels, expected))
        assert found == known


@pytest.mark.parametrize("channels", [1, 3])
def test_without_a_folder_probabilities_are_decided_by_slabs_into_memory(channels: int) -> None:
    soft = np.random.default_rng(0).random((channels, 40, 9, 8)).astype(np.float32)
    seen: list[int] = []

    def make(first: int, end: int) -> np.ndarray:
        seen.append(end - first)
        return soft[:, first:end]

    steps = [NamedOptions(name="dust", options={"below": 5})]
    rows: Any = Rows(soft.shape, soft.dtype, make)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.postprocess.driver.SLAB", 4 * channels * 9 * 8 * 8)
        found = postprocess.apply(steps, rows)
    np.testing.assert_array_equal(found[:][0], postprocess.apply(steps, soft))
    assert max(seen) == 8


# --- limits of intensities ------------------------------------------------------------------------


def lazy(array: np.ndarray) -> Rows:
    return Rows(array.shape, array.dtype, lambda a, b: array[:, a:b])


KINDS = ["uint8", "uint16", "int16", "int32", "uint32", "float32", "float16"]


@quick
@given(st.sampled_from(KINDS), st.integers(0, 2**20), st.integers(1, 300))
def test_streamed_percentiles_are_exact(kind: str, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    array = (rng.normal(0, 50, (2, count, 3)) * (1 if kind[0] == "f" else 2)).astype(np.float32)
    array = np.abs(array).astype(kind) if kind[0] == "u" else array.astype(kind)
    if kind[0] == "f":
        array[0, rng.integers(0, count, count // 3)] = [np.nan, np.inf, -0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.files.pixels.ROWS", 1)
        patch.setattr("pipeline.files.pixels.SLAB", 100)
        patch.setattr(normalise, "WHOLE", 0)
        found = normalise.percentiles(lazy(array), (0.5, 50, 99.5))
    for channel, limits in zip(array, found, strict=True):
        values = channel[np.isfinite(channel)].astype(np.float64)
        expected = np.percentile(values, (0.5, 50, 99.5)) if values.size else np.zeros(3)
        np.testing.assert_allclose(limits, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
@pytest.mark.parametrize("part", ["percentile", "range", "zscore"])
def test_streamed_limits_are_those_of_memory(
    kind: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).integers(0, 250, (2, 40, 9, 9)).astype(kind)
    expected = normalise.fit(NamedOptions(name=part), array)
    rows = lazy(array)
    assert normalise.fit(NamedOptions(name=part), rows) == expected
    monkeypatch.setattr(normalise, "WHOLE", 10)
    monkeypatch.setattr("pipeline.files.pixels.ROWS", 1)
    monkeypatch.setattr("pipeline.files.pixels.SLAB", 1000)
    found = normalise.fit(NamedOptions(name=part), rows)
    if part == "zscore":
        np.testing.assert_allclose(found.low + found.high, expected.low + expected.high, rtol=1e-12)
    else:
        assert found == expected


def test_zscore_leaves_nan_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalise, "WHOLE", 0)
    monkeypatch.setattr("pipeline.files.pixels.ROWS", 1)
    monkeypatch.setattr("pipeline.files.pixels.SLAB", 40)
    array = np.array([[[1, np.nan], [np.nan, np.nan], [3, 8]]], np.float32)
    found, expected = (normalise.fit(NamedOptions(name="zscore"), a) for a in (lazy(array), array))
    np.testing.assert_allclose((found.low, found.high), (expected.low, expected.high))


def test_a_large_tiff_answer_is_read_by_other_programs(tiny: Path, tmp_path: Path) -> None:
    volume(tmp_path / "in" / "a.tif", (40, 20, 20))
    assert (
        go(tiny, tmp_path / "in", tmp_path / "out", "--blocks", "always", "--threshold", "0.5") == 0
    )
    assert tifffile.imread(tmp_path / "out" / "a.tif").shape == (40, 20, 20)
