"""Resampling beside scikit-image and torch: error, seconds and peak memory, in turn.

    python tests/benchmarks/resampling.py [--rounds 3] [--limit 1200] [--edge 512]

First one volume 128 x 160 x 160 to 192 x 200 x 120, cubic and linear. The error is the largest
difference from scikit-image in float64, as a share of the range of values. Then the export of 14
classes from 160^3 to a label map of EDGE^3, each side in a child process whose address space may
grow by LIMIT MiB beyond what its imports take; labels are compared with those of the first side.
torch has no cubic interpolation of volumes, and its linear one is that of ``align_corners=False``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

OLD, NEW = (128, 160, 160), (192, 200, 120)
CLASSES, MODEL = 14, 160


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--limit", type=int, default=1200, help="MiB of address space for the export")
    p.add_argument("--edge", type=int, default=512)
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = p.parse_args()
    if given.child:
        print(json.dumps(child(given.child[0], Path(given.child[1]), given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        volume = np.random.default_rng(0).normal(size=OLD).astype(np.float32)
        np.save(path / "volume.npy", volume)
        table(
            path,
            ["skimage-3", "float64-3", "float32-3", "skimage-1", "float32-1", "torch-1"],
            given,
        )
        logits = np.random.default_rng(1).normal(size=(CLASSES, 20, 20, 20)).astype(np.float32)
        soft = np.exp(logits.repeat(8, 1).repeat(8, 2).repeat(8, 3))
        np.save(path / "soft.npy", (soft / soft.sum(0)).astype(np.float16))
        print(f"\n{CLASSES} classes, {MODEL}^3 to labels of {given.edge}^3, {given.limit} MiB")
        table(path, ["export", "export-torch", "export-skimage"], given)


def table(path: Path, sides: list[str], given: argparse.Namespace) -> None:
    """Run the sides in turn; print medians, ratios to the first, error and peak memory."""
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(given.rounds):
        for side, found in rows.items():
            command = [sys.executable, __file__, "--child", side, str(path)]
            command += ["--limit", str(given.limit), "--edge", str(given.edge)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = done.stdout.splitlines()
            found.append(json.loads(lines[-1]) if lines else {"failed": reason(done)})
    first = rows[sides[0]]
    print(f"{'side':<16}{'seconds':>10}{'first/this':>12}{'peak MiB':>10}  error or labels")
    for side, found in rows.items():
        bad = next((r["failed"] for r in found if "failed" in r), None)
        if bad is not None:
            print(f"{side:<16}{bad}")
            continue
        seconds, peak = (statistics.median(r[k] for r in found) for k in ("seconds", "peak"))
        ratio = statistics.median(r["seconds"] for r in first) / seconds
        print(f"{side:<16}{seconds:>10.3f}{ratio:>12.2f}{peak:>10.0f}  {found[0]['result']}")


def reason(done: subprocess.CompletedProcess) -> str:
    last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return "no result: " + last[:90]


def child(side: str, path: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One side, once."""
    run = EXPORTS[side] if side in EXPORTS else lambda p, g: volume(side, p)
    return run(path, given)


def measured(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, seconds, and MiB by which the peak of resident memory grew."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held
    before = status("VmHWM")
    began = time.perf_counter()
    found = work()
    return found, time.perf_counter() - began, status("VmHWM") - before


def status(key: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) / 1024


def volume(side: str, path: Path) -> dict[str, Any]:
    from skimage.transform import resize as skimage_resize

    kind, order = side.split("-")
    array = np.load(path / "volume.npy")
    options: dict[str, Any] = {
        "order": int(order),
        "mode": "edge",
        "anti_aliasing": False,
        "preserve_range": True,
    }
    reference = skimage_resize(array.astype(np.float64), NEW, **options)
    work: Callable[[], Any]
    if kind == "skimage":
        work = lambda: skimage_resize(array.astype(np.float64), NEW, **options)  # noqa: E731
    elif kind == "torch":
        import torch
        from torch.nn import functional

        tensor = torch.from_numpy(array)[None, None]
        work = lambda: functional.interpolate(tensor, NEW, mode="trilinear")[0, 0].numpy()  # noqa: E731
        work()
    else:
        from pipeline.data.resampling import axes_of, resize

        given = array.astype(kind)[None]
        axes = axes_of(OLD, NEW, int(order), None)
        resize(given[:, :2], axes_of((2, *OLD[1:]), (2, *NEW[1:]), int(order), None))
        work = lambda: resize(given, axes)[0]  # noqa: E731
    found, seconds, peak = measured(work)
    error = np.abs(found - reference).max() / np.ptp(array)
    return {"seconds": seconds, "peak": peak, "result": f"{error:.1e}"}


def export(path: Path, given: argparse.Namespace) -> dict[str, Any]:
    from pipeline.data.model_space import ModelSpace, Resampling
    from pipeline.inference.soft import SoftPrediction
    from pipeline.inference.writing import decided

    edge = given.edge
    space = ModelSpace(resampling=Resampling(old=(edge,) * 3, new=(MODEL,) * 3))
    limited(given.limit)
    soft = np.load(path / "soft.npy", mmap_mode="r")
    prediction = SoftPrediction(case_id="case", heads={"main": soft}, space=space)
    return labelled(*measured(lambda: decided(prediction)))


def export_torch(path: Path, given: argparse.Namespace) -> dict[str, Any]:
    import torch
    from torch.nn import functional

    def work() -> np.ndarray:
        soft = torch.from_numpy(np.load(path / "soft.npy")).float()[None]
        large = functional.interpolate(soft, (given.edge,) * 3, mode="trilinear")
        return large[0].argmax(0).to(torch.uint8).numpy()

    functional.interpolate(torch.zeros(1, 1, 2, 2, 2), (4, 4, 4), mode="trilinear")
    limited(given.limit)
    return labelled(*measured(work))


def export_skimage(path: Path, given: argparse.Namespace) -> dict[str, Any]:
    from skimage.transform import resize as skimage_resize

    def work() -> np.ndarray:
        soft = np.load(path / "soft.npy").astype(np.float64)
        options: dict[str, Any] = {"order": 1, "mode": "edge", "anti_aliasing": False}
        large = [skimage_resize(one, (given.edge,) * 3, **options) for one in soft]
        return np.stack(large).argmax(0).astype(np.uint8)

    limited(given.limit)
    return labelled(*measured(work))


def limited(more: int) -> None:
    """Let the address space grow by so many MiB."""
    limit = int(status("VmSize") + more) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def labelled(labels: np.ndarray, seconds: float, peak: float) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest()[:8]
    return {"seconds": seconds, "peak": peak, "result": f"{labels.shape} {digest}"}


EXPORTS = {"export": export, "export-torch": export_torch, "export-skimage": export_skimage}


if __name__ == "__main__":
    main()
