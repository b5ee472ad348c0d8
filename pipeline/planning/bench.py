"""The parts of a training, each done once or a few times on one case, by the very functions."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import files
from pipeline.config import Config
from pipeline.data import augment, cache, derived, properties, resolve
from pipeline.data.cache import CachedCase
from pipeline.data.folds import Split
from pipeline.data.loaders import Loader
from pipeline.geometry import Tiling
from pipeline.inference import devices, models, soft
from pipeline.inference.sliding_window import network_ensemble, tiling
from pipeline.losses import reads
from pipeline.planning.memory import SavedTensors, saved_tensors
from pipeline.planning.sample import SampleCase, measured_case
from pipeline.progress import Progress
from pipeline.records import METRICS_VERSION
from pipeline.runs import RunFolder
from pipeline.scoring import baselines, held_out
from pipeline.scoring.cached import scoring_of
from pipeline.stopping import stop
from pipeline.tasks import TASKS
from pipeline.training import loop, state
from pipeline.training.distributed import DistributedContext
from pipeline.training.fold import TrainingRun, make_job
from pipeline.training.job import FoldJob
from pipeline.training.model_files import fold_model
from pipeline.training.monitor import monitored
from pipeline.training.previews import preview_panels
from pipeline.training.state import TrainingState
from pipeline.training.validation import validate

DRAWING, STEPPING, ONCE = 3.0, 12.0, 10.0
"""Seconds for which batches are drawn and steps are repeated; from how long on one is enough."""

MOST_DRAWS, LEAST_DRAWS, MOST_STEPS, LEAST_STEPS = 60, 6, 60, 3

TILES = 8
"""Tiles of a case that are predicted; for all of a larger one it is calculated."""

Tell = Callable[[str], object]


@dataclass(slots=True)
class Found:
    """Values as they are found."""

    values: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, name: str, device: str, scale: float = 1.0) -> Iterator[None]:
        """Add the seconds inside, times ``scale``, to a value."""
        began = _now(device)
        yield
        self.values[name] = self.values.get(name, 0.0) + scale * (_now(device) - began)


def _now(device: str) -> float:
    """The time, after the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _alone(config: Config) -> Config:
    """The config for one case in one process: nothing of it leaves the measurement's folder."""
    data = dataclasses.replace(
        config.data,
        workers=0,
        store=None,
        patch=dataclasses.replace(config.data.patch, per_case=1),
        folds=dataclasses.replace(config.data.folds, file=None, by="case", pattern=None),
    )
    train = dataclasses.replace(config.train, track=(), init_from=None, save_steps=0)
    return dataclasses.replace(config, data=data, train=train)


class Bench:
    """One case, its cache and a fold on it."""

    def __init__(
        self, config: Config, sample: SampleCase, device: str, tell: Tell, folder: Path
    ) -> None:
        self.config, self.sample, self.device = _alone(config), sample, device
        self.tell, self.folder, self.found = tell, folder, Found()

    def all(self) -> dict[str, Any]:
        """Everything, in the order of a run."""
        self.tell("bringing a case to model space")
        cached = self._cached()
        run = self._run(cached)
        with contextlib.ExitStack() as stack:
            job, now = self._start(run)
            self.tell("drawing and augmenting samples")
            batches = self._draw(job)
            self.tell("training steps")
            self._steps(job, now, batches)
            self.tell("validating and saving")
            self._rest_of_epoch(job, now, stack)
            network = now.network.eval()
        self.tell("predicting and scoring a case")
        self._held_out(run, run.cached["val_0"], network)
        return self.found.values

    def _cached(self) -> CachedCase:
        case = measured_case(self.sample, self.config, self.folder)
        copies = [dataclasses.replace(case, id=f"{case.id}_{n}") for n in range(2)]
        facts = properties.examine(copies[:1], self.config, None, write=False, workers=1)
        for path, problem, suggestion in facts[0].problems[:1]:
            raise files.FileError(Path(path), problem, suggestion)
        self.config = resolve.resolved(self.config, facts)
        began = time.perf_counter()
        facts = properties.examine(copies[1:], self.config, None, write=False, workers=1)
        store = self.folder / "store"
        cached = cache.build(copies[1:], facts, self.config, store)
        halfway = time.perf_counter()
        cached = derived.attach(cached, self.config, store, reads(self.config.losses))
        native = cached[0].properties.shapes["image"][1:]
        larger = self.sample.larger
        self.native_ratio = larger * math.prod(self.sample.native) / math.prod(native)
        self.ratio = larger * self.sample.voxels / math.prod(cached[0].image.shape[1:])
        spent = (halfway - began) * self.native_ratio
        spent += (time.perf_counter() - halfway) * self.ratio
        self.found.values["prepare"] = spent
        return cached[0]

    def _run(self, cached: CachedCase) -> TrainingRun:
        """A run of a batch of training cases and one of held-out ones, all the same."""
        train, val = (
            tuple(f"{side}_{n}" for n in range(self.config.data.patch.batch))
            for side in ("train", "val")
        )
        cases = {
            name: dataclasses.replace(cached, case=dataclasses.replace(cached.case, id=name))
            for name in (*train, *val)
        }
        split = Split(train=train, val=val)
        scoring = scoring_of(self.config, METRICS_VERSION, list(cases.values()))
        return TrainingRun(
            config=self.config,
            folder=RunFolder(self.folder / "run"),
            device=devices.kind(self.device),
            channels=(self.sample.channels, self.sample.outputs),
            cached=cases,
            splits=[split],
            context=DistributedContext(device=devices.kind(self.device)),
            version=METRICS_VERSION,
            scoring=scoring,
        )

    def _start(self, run: TrainingRun) -> tuple[FoldJob, TrainingState]:
        with self.found.timed("setup", self.device):
            bar = Progress("")
            job = dataclasses.replace(
                make_job(run, 0, bar),
                device=self.device,
                raise_if_stopped=stop.raise_if_stopped,
                progress=lambda *_: None,
            )
            return job, state.start(job)

    def _draw(self, job: FoldJob) -> list[Mapping[str, Any]]:
        """Batches, and the mean seconds of one; what only the first one takes is kept apart."""
        began = time.perf_counter()
        certain = self._certain(job)
        next(certain.epoch(0))
        first = time.perf_counter() - began
        began = time.perf_counter()
        next(certain.epoch(1))
        self.found.values["first"] = max(0.0, first - (time.perf_counter() - began))
        batches, seconds = [], []
        while _wants_more(seconds, DRAWING, LEAST_DRAWS, MOST_DRAWS):
            began = time.perf_counter()
            batch = next(job.train_loader.epoch(len(seconds)))
            seconds.append(time.perf_counter() - began)
            batches = [*batches, batch][:MOST_STEPS]
        self.found.values["draw"] = statistics.mean(seconds)
        return batches

    def _certain(self, job: FoldJob) -> Loader:
        """A loader in which every augmentation happens, so that nothing is used first later."""
        entries = tuple(
            dataclasses.replace(entry, options={**entry.options, **_always(entry.name)})
            for entry in self.config.data.augment
        )
        data = dataclasses.replace(self.config.data, augment=entries)
        config = dataclasses.replace(self.config, data=data)
        cases = job.train_loader.dataset.cases
        return Loader(cases, config, 0, training=True, reads=reads(config.losses))

    def _steps(self, job: FoldJob, now: TrainingState, batches: Sequence[Mapping]) -> None:
        """Mean seconds of a step, and memory at its peak."""
        now.network.train()
        now.began = time.monotonic()
        loop.set_training_progress(now.network, 0, job.config.train.epochs)
        now.optimizer.zero_grad(set_to_none=True)
        began = _now(self.device)
        with saved_tensors(self.device) as saved:
            self._step(job, now, 0, batches[0])
        warm = _now(self.device) - began
        seconds: list[float] = [warm] if warm > ONCE else []
        while _wants_more(seconds, STEPPING, LEAST_STEPS, MOST_STEPS) and warm <= ONCE:
            stop.raise_if_stopped()
            began = _now(self.device)
            self._step(job, now, len(seconds), batches[len(seconds) % len(batches)])
            seconds.append(_now(self.device) - began)
        # The mean: hours are made of the slow steps, too; and of their second half, since
        # processors begin faster than they go on.
        step = statistics.mean(seconds[len(seconds) // 2 :])
        self.found.values |= {"step": step, **self._peak(job, now, saved, batches[0])}
        self.found.values["first"] += max(0.0, warm - step)

    def _step(self, job: FoldJob, now: TrainingState, number: int, batch: Mapping) -> None:
        """One step, of which ``train.accumulate`` make an update."""
        share = min(job.config.train.accumulate, len(job.train_loader))
        loop.training_step(job, now, number % share, batch)

    def _peak(
        self, job: FoldJob, now: TrainingState, saved: SavedTensors | None, batch: Mapping
    ) -> dict[str, Any]:
        if saved is None:
            peak = torch.cuda.max_memory_allocated()
            held = torch.cuda.max_memory_reserved()
            return {"memory": peak, "reserved": held, "memory_is": "measured"}
        weights = list(now.network.parameters())
        states = [t for s in now.optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
        drawn = [t for t in batch.values() if torch.is_tensor(t)]
        kept = sum(t.numel() * t.element_size() for t in [*weights, *weights, *states, *drawn])
        if now.average is not None:
            kept += sum(t.numel() * t.element_size() for t in weights)
        return {"memory": kept + saved.bytes + saved.passing, "memory_is": "estimated"}

    def _rest_of_epoch(self, job: FoldJob, now: TrainingState, stack: contextlib.ExitStack) -> None:
        """Validation, records, saved state and model file."""
        held = len(job.val_loader.dataset) * job.config.train.validate.per_case  # type: ignore[union-attr]
        found = validate(job, now.network)  # unmeasured: the first use
        with self.found.timed("validate", self.device, 1 / held):
            validate(job, now.network)
        record = {"epoch": 0, "lr": 0.0, **now.means.result(), **found.values, "seconds": 1.0}
        now.history.append(record)
        now.epoch, now.step = 1, 0
        quiet = dataclasses.replace(job.config.train, preview_every=0)
        plain = dataclasses.replace(job, config=dataclasses.replace(job.config, train=quiet))
        monitor = stack.enter_context(monitored(plain, now))
        for n in range(2):  # the first one opens and imports
            if n:
                began = _now(self.device)
            monitor.epoch(now)
            state.save(job, now)
            now.epoch += 1
        self.found.values["epoch"] = _now(self.device) - began
        with self.found.timed("model", self.device):
            model = fold_model(job, now.network, "last", 0, None)
            models.save_model(job.files.model_file("last"), model)
        if job.config.train.preview_every:
            with self.found.timed("preview", self.device):
                monitor.journal.preview(0, preview_panels(job, now.network))

    def _held_out(self, run: TrainingRun, cached: CachedCase, network: torch.nn.Module) -> None:
        """Prediction, way back, scores and files of a case."""
        config, device = self.config, self.device
        predict_tile = network_ensemble([network], config, device)
        part, share = self._few_tiles(cached, predict_tile)
        with self.found.timed("predict", device, share):
            predicted = held_out.predict_stored(part, config, predict_tile, device)
        if self.found.values["predict"] < ONCE * share:  # the second time nothing is new
            del self.found.values["predict"]
            with self.found.timed("predict", device, share):
                predicted = held_out.predict_stored(part, config, predict_tile, device)
        prediction = dataclasses.replace(
            predicted,
            case_id=cached.case.id,
            heads=self._heads(cached, predicted.heads),
            geometry=files.geometry(cached.case.image[0], config.data.dims),
            meta=held_out.meta_of(cached, config),
            space=cached.space,
        )
        native, work = self.native_ratio, self.folder / "soft"
        held_out.answer_of(config, prediction)
        with self.found.timed("back", device, native):
            answer = held_out.answer_of(config, prediction)
        for _ in range(2):  # the first one loads what metrics need
            self.found.values.pop("score", 0)
            with self.found.timed("score", device, native):
                held_out.score(config, prediction, cached, run.scoring)
            if self.found.values["score"] > ONCE * native:
                break
        with self.found.timed("keep", device, self.ratio):
            soft.save(work, soft.as_stored(prediction))
        suffix = TASKS[config.rules].suffix(files.format_suffix(cached.case.image[0]))
        with self.found.timed("keep", device, native):
            files.write(work / f"answer{suffix}", answer, prediction.geometry)
        if config.task == "image" or config.data.classes == 2:
            with self.found.timed("baseline", device, native):
                baselines.BASELINES[config.task](config, [cached], run.scoring)

    def _few_tiles(self, cached: CachedCase, predict_tile: Any) -> tuple[CachedCase, float]:
        """A part of the case with a few tiles, and how many times as many the mean of cases has."""
        config, shape = self.config, cached.image.shape[1:]
        size = list(shape)
        while (few := tiling(config, size, predict_tile)).count() > TILES:
            counts = [len(few.starts(axis)) for axis in range(len(size))]
            axis = max(range(len(size)), key=lambda a: counts[a])
            smaller = max(few.tile[axis], size[axis] * (counts[axis] - 1) // counts[axis])
            if smaller >= size[axis]:
                break
            size[axis] = smaller
        array = np.asarray(cached.image.array[(slice(None), *map(slice, size))])
        path = self.folder / "part.npy"
        np.save(path, array)
        part = dataclasses.replace(
            cached,
            image=cache.Volume(path=path, shape=array.shape, dtype=str(array.dtype)),
            space=type(cached.space)(),
        )
        sizes = Counter(self.sample.every_shape)
        works = sum(n * _work(tiling(config, s, predict_tile)) for s, n in sizes.items())
        return part, works / sizes.total() / _work(few)

    def _heads(self, cached: CachedCase, found: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Heads of the whole case as a trained network might give them: its targets, one voxel off.

        Those of fresh weights are noise, which metrics and components take far longer for.
        """
        config, shape = self.config, cached.image.shape[1:]
        main = next(iter(config.targets))
        target = np.roll(np.asarray(cached.targets[main].array), 1, axis=-1)
        if config.targets[main] == "image":
            heads = {"main": cached.scale.apply(target).astype(np.float32)}
            if "mask" in found:
                heads["mask"] = np.zeros((1, *shape), np.float32)
            return heads
        if config.data.unions is not None:
            masks = [np.isin(target[0], values) for values in config.data.unions]
        elif self.sample.outputs == 1:
            masks = [target[0] == 1]
        else:
            masks = [target[0] == k for k in range(self.sample.outputs)]
        heads = np.full((len(masks), *shape), 0.1 / max(1, len(masks) - 1), np.float32)
        for head, mask in zip(heads, masks, strict=True):
            head[mask] = 0.9
        return {"main": heads}


def _work(tiles: Tiling) -> int:
    """Voxels that go through the network."""
    return tiles.count() * math.prod(tiles.tile)


def _wants_more(seconds: Sequence[float], budget: float, least: int, most: int) -> bool:
    """Whether to measure once more: some, then until the time is used up."""
    if not seconds:
        return True
    spent = sum(seconds)
    return len(seconds) < most and (spent < budget or (len(seconds) < least and spent < 3 * budget))


def _always(name: str) -> dict[str, float]:
    """The options by which an augmentation always happens, where it has any."""
    if name not in augment.AUGMENT:
        return {}
    parameters = inspect.signature(augment.AUGMENT[name].make).parameters
    return {key: 1.0 for key in parameters if key == "p" or key.startswith("p_")}
