"""Batches for training and validation: a MONAI CacheDataset of memory-mapped cases, cut and
augmented by a seed for each sample.

What a sample looks like depends on (seed, fold, epoch, sample) alone: not on the number of workers,
not on what was drawn before.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.dataset import CacheDataset
from monai.transforms import Compose, Randomizable
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline import plugins
from pipeline.config import Config
from pipeline.data import derived
from pipeline.data.cache import CachedCase
from pipeline.data.derived import Wish
from pipeline.data.sampling import RandBalancedCropd, grid_places, holds_change, seed_of
from pipeline.data.transforms import plain_tensors, training_chain, validation_chain

VALIDATION = -1
"""The epoch of which every validation patch is drawn."""

TIMEOUT = 600.0
"""Seconds for which a batch may be waited for before its worker counts as hung: far more than a
slow disk or a network share takes.
"""

Key = tuple[int, ...]
"""(epoch, position in the epoch, case), and with ``data.patch.grid`` a fourth number, the slice of
that case's grid.
"""


class PatchDataset(Dataset):
    """Samples of one fold: ``dataset[epoch, position, case]`` is a dict of tensors ``(C, *patch)``,
    ``"id"``, ``"foreground_share"``, ``"changed"``.

    ``dataset[epoch, position, case, slice]`` is cut at that place of the case's grid, counted as in
    :func:`grid_places`. ``reads`` are the maps that the losses read. Raises KeyError for a case
    without the maps that the config needs.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        config: Config,
        fold: int,
        training: bool,
        reads: Collection[Wish] = (),
    ) -> None:
        self.plugins = (
            plugins.carried()
        )  # first: a worker that is started anew needs them for what follows
        for name in derived.wanted(config, reads):
            bare = [c.case.id for c in cases if name not in c.maps]
            if bare:
                raise KeyError(
                    f"cases {', '.join(bare[:8])} lack the map {name}: derived.attach() makes it."
                )
        self.words = (config.seed, fold)
        self.cases, self.size = cases, config.data.patch.size
        self.chain = training_chain(config, reads) if training else validation_chain(config, reads)
        self.crop = next(t for t in self.chain.transforms if isinstance(t, RandBalancedCropd))
        grid = config.data.patch.grid if training else None
        self.places = (
            None
            if grid is None
            else [grid_places(c.image.shape[1:], self.size, grid) for c in cases]
        )
        with plain_tensors():
            self.cache = CacheDataset(
                [{"stored": c} for c in cases], self.chain, progress=False, num_workers=None
            )

    def __len__(self) -> int:
        return len(self.cache)

    def samples(self, per_case: int) -> list[tuple[int, ...]]:
        """Ends of the keys of an epoch: every case ``per_case`` times, or with a grid every slice
        of every case once.
        """
        if self.places is None:
            return [(case,) for _ in range(per_case) for case in range(len(self))]
        return [
            (case, n)
            for case, places in enumerate(self.places)
            for n in range(math.prod(map(len, places)))
        ]

    def changed(self, samples: Sequence[tuple[int, ...]]) -> list[bool]:
        """Whether the slice at the end of each key, sorted by case, holds some of its case's mask
        of change.
        """
        found: list[bool] = []
        for case, ends in itertools.groupby(samples, key=lambda end: end[0]):
            # Open for one case at a time: every memory map holds a file descriptor.
            mask, blocks = (
                self.cases[case].maps[name].array for name in (derived.MASK, derived.BLOCKS)
            )
            found += [
                holds_change(mask, blocks, self._place(case, number), self.size)
                for _, number in ends
            ]
        return found

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, position, case, *number = key
        _share(self.chain, np.random.RandomState(seed_of(*self.words, epoch, position)))
        self.crop.place = self._place(case, *number) if number else None
        with plain_tensors():
            sample: Any = self.cache[case]
        return {k: _tensor(v) for k, v in sample.items()}

    def _place(self, case: int, number: int) -> list[int]:
        assert self.places is not None
        axes = self.places[case]
        at = np.unravel_index(number, [len(starts) for starts in axes])
        return [starts[int(n)] for starts, n in zip(axes, at, strict=True)]


def _share(transform: Any, state: np.random.RandomState) -> None:
    """Let every random transform below draw from one state: MONAI's own way makes a generator for
    each, 0.2 ms apiece.
    """
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
    """Batches of keys for the epoch set in ``epoch``: every one of ``samples`` once, shuffled by
    (seed, fold, epoch) when ``words`` say so.

    ``count`` of the ``others`` join them, drawn by the same words anew for each epoch, none twice.

    With several ranks a batch of all is ``size`` times as large, and each rank yields its part of
    it: two ranks with batches of one see what one rank with batches of two sees. A rank for which
    the last batch leaves nothing yields its first sample, with no :meth:`share`, since every rank
    has to take every step. With ``dealt`` whole batches go round instead, none to two ranks.
    """

    def __init__(
        self,
        samples: Sequence[tuple[int, ...]],
        batch: int,
        words: tuple[int, int] | None,
        others: Sequence[tuple[int, ...]] = (),
        count: int = 0,
    ) -> None:
        self.samples, self.batch, self.words = samples, batch, words
        self.others, self.count = others, count
        self.epoch, self.first = VALIDATION, 0
        self.rank, self.size, self.dealt = 0, 1, False

    @property
    def total(self) -> int:
        """Samples of an epoch."""
        return len(self.samples) + self.count

    def __len__(self) -> int:
        if self.dealt:
            return len(range(self.rank, -(-self.total // self.batch), self.size))
        return -(-self.total // (self.batch * self.size))

    def share(self, step: int) -> float:
        """Weight of this rank's part of batch ``step`` in the mean over ranks: 1 where all have
        equally many samples.
        """
        wide = self.batch * self.size
        there = min(wide, self.total - step * wide)
        own = min(max(there - self.rank * self.batch, 0), self.batch)
        return own * self.size / there

    def keys(self, epoch: int) -> list[Key]:
        """All keys of an epoch in their order."""
        samples = self.samples
        if self.words is not None:
            random = np.random.default_rng(seed_of(*self.words, epoch))
            drawn = (
                random.choice(len(self.others), self.count, replace=False).tolist()
                if self.count
                else []
            )
            samples = [*samples, *(self.others[n] for n in drawn)]
            samples = [samples[n] for n in random.permutation(len(samples)).tolist()]
        return [(epoch, position, *sample) for position, sample in enumerate(samples)]

    def __iter__(self) -> Iterator[list[Key]]:
        keys, wide = self.keys(self.epoch), self.batch * self.size
        if self.dealt:
            for first in range(self.rank * self.batch, len(keys), wide):
                yield keys[first : first + self.batch]
            return
        for first in range(self.first * wide, len(keys), wide):
            mine = first + self.rank * self.batch
            yield keys[mine : mine + self.batch] or keys[first : first + 1]


class Loader:
    """Iterate over the batches of one epoch: ``for batch in loader.epoch(7)``.

    ``ranks`` is (rank, number of ranks): training batches are shared by all of them, validation
    batches are dealt out. ``reads`` are the maps that the losses read.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        config: Config,
        fold: int,
        training: bool,
        *,
        ranks: tuple[int, int] = (0, 1),
        reads: Collection[Wish] = (),
    ) -> None:
        data = config.data
        per_case = data.patch.per_case if training else config.train.validate.per_case
        self.dataset = PatchDataset(cases, config, fold, training, reads)
        samples = self.dataset.samples(per_case)
        share = data.patch.changed if training and data.patch.grid is not None else None
        parts = (
            (samples, [], 0)
            if share is None
            else _parted(samples, self.dataset.changed(samples), share)
        )
        self.batches = EpochBatches(
            parts[0], data.patch.batch, (config.seed, fold) if training else None, *parts[1:]
        )
        self.batches.rank, self.batches.size, self.batches.dealt = *ranks, not training
        self.ranks = ranks
        self.loader = DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=data.workers,
            persistent_workers=data.workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
            timeout=TIMEOUT if data.workers else 0,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, first: int = 0, whole: bool = False) -> Iterator[dict[str, Any]]:
        """The batches of an epoch from number ``first`` on; those before are not drawn.

        ``whole``: as if there were no other ranks.
        """
        self.batches.epoch, self.batches.first = epoch, first
        self.batches.rank, self.batches.size = (0, 1) if whole else self.ranks
        return _guarded(iter(self.loader))

    def share(self, step: int) -> float:
        """See :meth:`EpochBatches.share`."""
        return self.batches.share(step)

    def first(self, count: int) -> list[dict[str, Any]]:
        """The first ``count`` samples of epoch 0 (fewer where it has fewer), read beside the epoch
        that is under way, which does not notice.
        """
        return [self.dataset[key] for key in self.batches.keys(0)[:count]]


Ends = list[tuple[int, ...]]


def _parted(samples: Ends, changed: Sequence[bool], share: float) -> tuple[Ends, Ends, int]:
    """Samples of every epoch, those of which each epoch draws some, and how many: so many that
    ``share`` of an epoch has changed.

    Where that takes more than there are, all are drawn and the share is higher; where nothing has
    changed, all are of every epoch.
    """
    if not any(changed):
        return samples, [], 0
    held = [s for s, c in zip(samples, changed, strict=True) if c]
    others = [s for s, c in zip(samples, changed, strict=True) if not c]
    return held, others, min(len(others), round(len(held) * (1 - share) / share))


def _guarded(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The batches; where one fails, the workers are killed: they ignore the signal by which torch
    ends them, and one that hangs would keep this process from ending, too.
    """
    try:
        yield from batches
    except Exception:
        for worker in getattr(batches, "_workers", ()):
            with contextlib.suppress(
                RuntimeError
            ):  # by which torch tells of a worker's death, here a wanted one
                worker.kill()
                worker.join(
                    5
                )  # not without limit: one that waits for a dead network share outlives even this
        raise


def _ignore_signals(_worker: int) -> None:
    # A scheduler signals the whole process group; the main process decides when the workers end.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
