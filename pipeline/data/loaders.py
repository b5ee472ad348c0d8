"""Batches for training and validation: a MONAI CacheDataset of memory-mapped cases, cut and augmented by a seed for each sample.

What a sample looks like depends on (seed, fold, epoch, sample) alone: not on the number of workers, not on what was drawn before.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.dataset import CacheDataset
from monai.data.meta_obj import set_track_meta
from monai.transforms import Compose, Randomizable
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.config import Config
from pipeline.data import derived
from pipeline.data.sampling import seed_of
from pipeline.data.store import Stored
from pipeline.data.transforms import training_chain, validation_chain

set_track_meta(False)  # a MetaTensor costs seven times a Tensor in every small operation, and nothing here reads its metadata

VALIDATION = -1
"""The epoch of which every validation patch is drawn."""

Key = tuple[int, int, int]
"""(epoch, position in the epoch, case)."""


class PatchDataset(Dataset):
    """Samples of one fold: ``dataset[epoch, position, case]`` is a dict of tensors ``(C, *patch)``, ``"id"`` and ``"foreground_share"``.

    Raises KeyError for a case without the maps that the config's losses read.
    """

    def __init__(self, cases: Sequence[Stored], config: Config, fold: int, training: bool) -> None:
        for name in derived.wanted(config):
            bare = [c.case.id for c in cases if name not in c.maps]
            if bare:
                raise KeyError(f"cases {', '.join(bare[:8])} lack the map {name}, which a loss reads: derived.attach() makes it.")
        self.words = (config.seed, fold)
        self.chain = training_chain(config) if training else validation_chain(config)
        self.cache = CacheDataset([{"stored": c} for c in cases], self.chain, progress=False, num_workers=None)

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, position, case = key
        _share(self.chain, np.random.RandomState(seed_of(*self.words, epoch, position)))
        sample: Any = self.cache[case]
        return {k: _tensor(v) for k, v in sample.items()}


def _share(transform: Any, state: np.random.RandomState) -> None:
    """Let every random transform below draw from one state: MONAI's own way makes a generator for each, 0.2 ms apiece."""
    if isinstance(transform, Compose):
        transform.R = state
        for part in transform.transforms:
            _share(part, state)
    elif isinstance(transform, Randomizable):
        transform.set_random_state(state=state)


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        # A flipped array has negative strides, which torch refuses.
        return torch.from_numpy(np.ascontiguousarray(value))
    return value.contiguous() if isinstance(value, torch.Tensor) else value


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys for the epoch set in ``epoch``: every case ``per_case`` times, shuffled by (seed, fold, epoch) when training."""

    def __init__(self, cases: int, per_case: int, batch: int, words: tuple[int, int] | None) -> None:
        self.cases, self.per_case, self.batch, self.words = cases, per_case, batch, words
        self.epoch = VALIDATION

    def __len__(self) -> int:
        return -(-self.cases * self.per_case // self.batch)

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.tile(np.arange(self.cases), self.per_case)
        if self.words is not None:
            order = np.random.default_rng(seed_of(*self.words, self.epoch)).permutation(order)
        keys = [(self.epoch, position, int(case)) for position, case in enumerate(order)]
        for first in range(0, len(keys), self.batch):
            yield keys[first : first + self.batch]


class Loader:
    """Iterate over the batches of one epoch: ``for batch in loader.epoch(7)``."""

    def __init__(self, cases: Sequence[Stored], config: Config, fold: int, training: bool) -> None:
        data = config.data
        per_case = data.patch.per_case if training else config.train.validate.per_case
        self.batches = EpochBatches(len(cases), per_case, data.patch.batch, (config.seed, fold) if training else None)
        self.loader = DataLoader(
            PatchDataset(cases, config, fold, training),
            batch_sampler=self.batches,
            num_workers=data.workers,
            persistent_workers=data.workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        self.batches.epoch = epoch
        return iter(self.loader)


def _ignore_signals(_worker: int) -> None:
    # A scheduler signals the whole process group; the main process decides when the workers end.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
