"""What a config costs on the device at hand: memory and seconds, measured on one case.

Everything is done as training does it, by the very functions, in a folder that is removed again:
properties, cache, draws of the loader, steps of the loop, validation, saving, prediction, scoring.
Nothing that a process had is changed by it: random states, threads and files are as before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import Config
from pipeline.files.limits import available_memory, cores
from pipeline.inference import devices
from pipeline.planning.bench import Bench, Tell
from pipeline.planning.memory import estimated_memory
from pipeline.planning.sample import SampleCase
from pipeline.progress import audible, silenced
from pipeline.training.fold import memory_hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a config costs on one device; seconds are of one thing each, of the mean case."""

    device: str
    fits: bool = True
    """False: one step does not fit into the device's memory, and no seconds are known."""
    problem: str = ""
    """What did not fit."""
    batch: int
    """Samples of a step."""
    workers: int = 0
    """Loader processes of the config; what they draw was measured in the main process."""
    cores: int = 1
    """Cores that cases are read and brought to model space on."""
    memory: int = 0
    """Bytes of the device in use at the peak of a step."""
    memory_is: str = "measured"
    """``measured`` (CUDA) or ``estimated`` (CPU: weights, states, tensors kept for backward)."""
    reserved: int = 0
    """Bytes that torch holds of a CUDA device at that peak; 0 on the CPU."""
    available: int = 0
    """Bytes that the device has; on the CPU those that are free now."""
    start: float = 0.0
    """Until a new process has imported what training needs."""
    first: float = 0.0
    """First use in a process: loops that are compiled, kernels that are chosen."""
    prepare: float = 0.0
    """Reading and checking a case, to model space, into the cache, on one core."""
    setup: float = 0.0
    """Network, loaders and optimiser of a fold."""
    draw: float = 0.0
    """Drawing and augmenting the samples of a batch in one process."""
    step: float = 0.0
    """Forward, loss, backward and update of a batch."""
    epoch: float = 0.0
    """Saving the state and writing the records of an epoch."""
    model: float = 0.0
    """Writing a model file."""
    preview: float = 0.0
    """A picture of a held-out case."""
    validate: float = 0.0
    """Validating a patch."""
    predict: float = 0.0
    """Predicting a case, in model space."""
    back: float = 0.0
    """From model space to the grid of the file, decided and post-processed."""
    keep: float = 0.0
    """Writing soft prediction and answer of a case."""
    score: float = 0.0
    """Metrics of a case, with ``back``."""
    baseline: float = 0.0
    """Baselines of a case; 0 where a run has none."""
    real: bool = False
    """Whether the case was a real one."""
    took: float = 0.0
    """Seconds that the measurement took."""

    def as_json(self) -> dict[str, Any]:
        """The record as JSON.

        Returns:
            All fields, times to four digits.
        """
        found = dataclasses.asdict(self)
        return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}

    @property
    def batch_seconds(self) -> float:
        """Seconds of a step, drawing included.

        Loader processes draw while a CUDA device computes; on the CPU they share its cores.
        """
        if not self.workers:
            return self.draw + self.step
        if devices.kind(self.device) == "cuda":
            return max(self.step, self.draw / self.workers)
        return max(self.step + self.draw / self.cores, self.draw / self.workers)


def measure(
    config: Config,
    sample: SampleCase,
    device: str,
    progress: Tell | None = None,
    *,
    start: bool = True,
) -> Cost:
    """Measure what a config costs on a device, in about 20 seconds or a few steps.

    Args:
        config: the config that will be trained.
        sample: the median case.
        device: ``cpu``, ``cuda``, ``cuda:1``.
        progress: called with what is measured next.
        start: also start a process and import what training needs, about four seconds.

    Returns:
        The cost; where a step does not fit into memory with ``fits`` False, and no seconds.

    Raises:
        ConfigError: where the config cannot be trained on such a case.
        Exception: what else training would raise.
    """
    began, tell = time.perf_counter(), audible(progress or (lambda text: None))
    found = {
        "device": device,
        "batch": config.data.patch.batch,
        "workers": config.data.workers,
        "cores": min(16, cores()),
        "real": sample.is_real,
    }
    with _unchanged(device), tempfile.TemporaryDirectory(prefix="pipeline_cost_") as folder:
        # As in training, where cuda:1 is made the present device and called cuda.
        found |= _values(config, sample, devices.kind(device), tell, Path(folder))
    if start:
        tell("starting a process")
        found["start"] = _start_seconds()
    return Cost(**found, took=time.perf_counter() - began)


def _values(
    config: Config, sample: SampleCase, device: str, tell: Tell, folder: Path
) -> dict[str, Any]:
    """What is measured; where memory is short, what is known of that."""
    problem = ""
    try:
        values = _memory(config, sample, device)
        if values.get("fits", True):
            values |= Bench(config, sample, device, tell, folder).all()
        return values
    except Exception as error:
        if not memory_hint(error):
            raise
        problem = str(error).strip().splitlines()[0][:300]
    # Only here nothing refers to the tensors of the step any more.
    gc.collect()
    values = {"fits": False, "problem": problem, "available": _room(device)}
    if device == "cuda":
        values |= {"memory": torch.cuda.max_memory_allocated()}
        values |= {"reserved": torch.cuda.max_memory_reserved()}
        torch.cuda.empty_cache()
    return values


def _room(device: str) -> int:
    """Bytes that a device has; of the CPU, those that are free."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    return available_memory()


def _memory(config: Config, sample: SampleCase, device: str) -> dict[str, Any]:
    """On the CPU whether a step fits, before one is tried: too large ones end a process."""
    room = _room(device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return {"available": room}
    need = estimated_memory(config, sample.channels, sample.outputs)
    if need is None or need <= room:
        return {"available": room}
    text = f"one step takes about {need / 1e9:.1f} GB, {room / 1e9:.1f} GB are free"
    return {
        "available": room,
        "memory": need,
        "memory_is": "estimated",
        "fits": False,
        "problem": text,
    }


@contextlib.contextmanager
def _unchanged(device: str) -> Iterator[None]:
    """Leave random states, threads and modes of the process as they are."""
    is_cuda = devices.kind(device) == "cuda"
    cuda = range(torch.cuda.device_count()) if is_cuda else []
    numbers, numpy_state = random.getstate(), np.random.get_state()
    threads = torch.get_num_threads()
    try:
        with (
            silenced(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(cuda),
            torch.cuda.device(device) if is_cuda else contextlib.nullcontext(),
        ):
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(numpy_state)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _start_seconds() -> float:
    """Seconds until a new process has imported what training needs; NaN where it cannot start."""
    code, began = "import pipeline.workflows.train", time.perf_counter()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
        return time.perf_counter() - began
    return 10.0
