"""Batches for training and validation: cached cases, cropped and augmented with a seed per sample.

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
from pipeline.data.derived import MapRequest
from pipeline.data.locations import LOCATIONS, is_forced
from pipeline.data.sampling import RandBalancedCropd, grid_patch_starts, holds_change, seed_of
from pipeline.data.transforms import plain_tensors, training_chain, validation_chain

VALIDATION = -1
"""The epoch with which every validation patch is seeded."""

TIMEOUT = 600.0
"""Seconds to wait for a batch before its worker counts as hung: far more than a slow disk or a
network share takes.
"""

Key = tuple[int, ...]
"""(epoch, position in the epoch, case), and with ``data.patch.grid`` a fourth number, the slice of
that case's grid.
"""


class PatchDataset(Dataset):
    """Samples of one fold, on a MONAI CacheDataset of memory-mapped cases.

    ``dataset[epoch, position, case]`` is a dict of tensors ``(C, *patch)``, ``"id"``,
    ``"foreground_share"`` and ``"changed"``. ``dataset[epoch, position, case, slice]`` is cut at
    that position of the case's grid, counted as in :func:`grid_patch_starts`.

    Args:
        cases: cases of the fold, with the maps that the config needs.
        config: config of the run.
        fold: number of the fold, a part of every seed.
        training: augment, and cut along ``data.patch.grid`` where that is set.
        reads: maps that the losses read.
        wide: samples of a batch on all ranks, by which ``data.patch.oversample`` says where in a
            batch a sample is centred on foreground; None: ``data.patch.batch``.

    Raises:
        KeyError: for cases without the maps that the config needs.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        config: Config,
        fold: int,
        training: bool,
        reads: Collection[MapRequest] = (),
        wide: int | None = None,
    ) -> None:
        # First: a worker that is started anew needs the plugins for what follows.
        self.plugins = plugins.carried()
        index = () if derived.located(config) is None else (LOCATIONS,)
        for name in (*derived.wanted(config, reads), *index):
            bare = [c.case.id for c in cases if name not in c.maps]
            if bare:
                raise KeyError(
                    f"cases {', '.join(bare[:8])} lack the map {name}: derived.attach() makes it."
                )
        self.seeds, self.oversample = (config.seed, fold), config.data.patch.oversample
        self.wide = config.data.patch.batch if wide is None else wide
        self.cases, self.size = cases, config.data.patch.size
        self.chain = training_chain(config, reads) if training else validation_chain(config, reads)
        self.crop = next(t for t in self.chain.transforms if isinstance(t, RandBalancedCropd))
        grid = config.data.patch.grid if training else None
        self.grid_starts = (
            None
            if grid is None
            else [grid_patch_starts(c.image.shape[1:], self.size, grid) for c in cases]
        )
        with plain_tensors():
            self.cache = CacheDataset(
                [{"stored": c} for c in cases], self.chain, progress=False, num_workers=None
            )

    def __len__(self) -> int:
        return len(self.cache)

    def samples(self, per_case: int) -> list[tuple[int, ...]]:
        """Samples of an epoch as the ends of their keys.

        Args:
            per_case: random patches of each case; without effect where there is a grid.

        Returns:
            ``(case,)`` for each random patch, or ``(case, slice)`` for each slice of the grid once.
        """
        if self.grid_starts is None:
            return [(case,) for _ in range(per_case) for case in range(len(self))]
        return [
            (case, n)
            for case, grid_starts in enumerate(self.grid_starts)
            for n in range(math.prod(map(len, grid_starts)))
        ]

    def changed(self, samples: Sequence[tuple[int, ...]]) -> list[bool]:
        """Whether slices of the grid hold some of their case's mask of change.

        Args:
            samples: ``(case, slice)``, sorted by case.

        Returns:
            One truth value per sample.
        """
        found: list[bool] = []
        for case, ends in itertools.groupby(samples, key=lambda end: end[0]):
            # Open for one case at a time: every memory map holds a file descriptor.
            mask, blocks = (
                self.cases[case].maps[name].array for name in (derived.MASK, derived.BLOCKS)
            )
            found += [
                holds_change(mask, blocks, self._start(case, number), self.size)
                for _, number in ends
            ]
        return found

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, position, case, *number = key
        set_random_state(self.chain, np.random.RandomState(seed_of(*self.seeds, epoch, position)))
        self.crop.fixed_start = self._start(case, *number) if number else None
        if self.oversample is not None:
            self.crop.forced = is_forced(position, self.wide, self.oversample)
        with plain_tensors():
            sample: Any = self.cache[case]
        return {k: _tensor(v) for k, v in sample.items()}

    def _start(self, case: int, number: int) -> list[int]:
        """First voxel of a slice of a case's grid, along each axis."""
        assert self.grid_starts is not None
        axes = self.grid_starts[case]
        at = np.unravel_index(number, [len(starts) for starts in axes])
        return [starts[int(n)] for starts, n in zip(axes, at, strict=True)]


def set_random_state(transform: Any, state: np.random.RandomState) -> None:
    """Let every random transform of a chain draw from one state.

    MONAI's own method makes a generator for each, 0.2 ms apiece.
    """
    if isinstance(transform, Compose):
        transform.R = state
        for child in transform.transforms:
            set_random_state(child, state)
    elif isinstance(transform, Randomizable):
        transform.set_random_state(state=state)


def _tensor(value: Any) -> Any:
    """Arrays as contiguous tensors, anything else as it is."""
    if isinstance(value, np.ndarray):
        # A flipped array has negative strides, which torch refuses.
        return torch.from_numpy(np.ascontiguousarray(value))
    return value.contiguous() if isinstance(value, torch.Tensor) else value


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys for the epoch set in ``epoch``.

    Every one of ``samples`` comes once; ``count`` of the ``others`` join them, drawn anew for each
    epoch, none twice. With ``draws`` an epoch has that many instead, drawn with replacement.

    With several ranks a global batch is ``size`` times as large, and each rank yields its part of
    it: two ranks with batches of one see what one rank with batches of two sees. A rank for which
    the last batch leaves nothing yields its first sample, with a :meth:`share` of 0, since every
    rank has to take every step. With ``dealt`` whole batches go to the ranks in turn instead, none
    to two ranks.

    Args:
        samples: ends of the keys of every epoch.
        batch: samples of a batch on one rank.
        seeds: (seed, fold) by which an epoch is shuffled and drawn; None: in order, without
            ``others``.
        others: ends of keys of which each epoch draws some.
        count: how many of the others an epoch holds.
        draws: samples of an epoch that are drawn uniformly with replacement; None: each comes once.
    """

    def __init__(
        self,
        samples: Sequence[tuple[int, ...]],
        batch: int,
        seeds: tuple[int, int] | None,
        others: Sequence[tuple[int, ...]] = (),
        count: int = 0,
        draws: int | None = None,
    ) -> None:
        self.samples, self.batch, self.seeds = samples, batch, seeds
        self.others, self.count, self.draws = others, count, draws
        self.epoch, self.first = VALIDATION, 0
        self.rank, self.size, self.dealt = 0, 1, False

    @property
    def total(self) -> int:
        """Samples of an epoch."""
        return len(self.samples) + self.count if self.draws is None else self.draws

    def __len__(self) -> int:
        if self.dealt:
            return len(range(self.rank, -(-self.total // self.batch), self.size))
        return -(-self.total // (self.batch * self.size))

    def share(self, step: int) -> float:
        """Weight of this rank's part of a batch in the mean over ranks.

        Args:
            step: number of the batch in the epoch.

        Returns:
            1 where all ranks have equally many samples, 0 where this one has none.
        """
        wide = self.batch * self.size
        present = min(wide, self.total - step * wide)
        own = min(max(present - self.rank * self.batch, 0), self.batch)
        return own * self.size / present

    def keys(self, epoch: int) -> list[Key]:
        """All keys of an epoch in their order.

        Args:
            epoch: number of the epoch, from 0 on; ``VALIDATION`` for validation.

        Returns:
            Keys of all ranks.
        """
        samples = self.samples
        if self.seeds is not None and self.draws is not None:
            random = np.random.default_rng(seed_of(*self.seeds, epoch))
            samples = [samples[n] for n in random.integers(len(samples), size=self.draws).tolist()]
        elif self.seeds is not None:
            random = np.random.default_rng(seed_of(*self.seeds, epoch))
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

    Args:
        cases: cases of the fold, with the maps that the config needs.
        config: config of the run.
        fold: number of the fold.
        training: shuffled and augmented; else validation patches, the same in every epoch.
        ranks: (rank, number of ranks): training batches are shared by all of them, validation
            batches are dealt out.
        reads: maps that the losses read.

    Raises:
        KeyError: for cases without the maps that the config needs.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        config: Config,
        fold: int,
        training: bool,
        *,
        ranks: tuple[int, int] = (0, 1),
        reads: Collection[MapRequest] = (),
    ) -> None:
        data = config.data
        per_case = data.patch.per_case if training else config.train.validate.per_case
        steps = data.patch.steps if training else None
        wide = data.patch.batch * (ranks[1] if training else 1)
        self.dataset = PatchDataset(cases, config, fold, training, reads, wide)
        samples = self.dataset.samples(per_case if steps is None else 1)
        share = data.patch.changed if training and data.patch.grid is not None else None
        split = (
            (samples, [], 0)
            if share is None
            else _split_by_change(samples, self.dataset.changed(samples), share)
        )
        self.batches = EpochBatches(
            split[0],
            data.patch.batch,
            (config.seed, fold) if training else None,
            *split[1:],
            draws=None if steps is None else steps * wide,
        )
        self.batches.rank, self.batches.size = ranks
        self.batches.dealt = not training
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
        """The batches of an epoch.

        Args:
            epoch: number of the epoch; ``VALIDATION`` for validation.
            first: number of the first batch; those before are not drawn.
            whole: all batches, as if there were no other ranks.

        Returns:
            Iterator of batches: tensors ``(B, C, *patch)``, and lists or tensors of what is no
            array.
        """
        self.batches.epoch, self.batches.first = epoch, first
        self.batches.rank, self.batches.size = (0, 1) if whole else self.ranks
        return _kill_workers_on_error(iter(self.loader))

    def share(self, step: int) -> float:
        """Weight of this rank's part of a batch (:meth:`EpochBatches.share`).

        Args:
            step: number of the batch in the epoch.

        Returns:
            0 to the number of ranks.
        """
        return self.batches.share(step)

    def first(self, count: int) -> list[dict[str, Any]]:
        """The first samples of epoch 0, read without disturbing the epoch that is under way.

        Args:
            count: how many.

        Returns:
            Samples without a batch axis; fewer where the epoch has fewer.
        """
        return [self.dataset[key] for key in self.batches.keys(0)[:count]]


Ends = list[tuple[int, ...]]
"""Ends of keys: ``(case,)`` or ``(case, slice)``."""


def _split_by_change(
    samples: Ends, changed: Sequence[bool], share: float
) -> tuple[Ends, Ends, int]:
    """Samples of every epoch, those of which each epoch draws some, and how many.

    So many are drawn that ``share`` of an epoch has changed. Where that takes more than there are,
    all are drawn and the share is higher; where nothing has changed, all are of every epoch.
    """
    if not any(changed):
        return samples, [], 0
    held = [s for s, c in zip(samples, changed, strict=True) if c]
    others = [s for s, c in zip(samples, changed, strict=True) if not c]
    return held, others, min(len(others), round(len(held) * (1 - share) / share))


def _kill_workers_on_error(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The batches; where one fails, the workers are killed.

    They ignore the signal by which torch ends them, and one that hangs would keep this process from
    ending, too.
    """
    try:
        yield from batches
    except Exception:
        for worker in getattr(batches, "_workers", ()):
            # RuntimeError is how torch reports a worker's death, here a wanted one.
            with contextlib.suppress(RuntimeError):
                worker.kill()
                # With a limit: one that waits for a dead network share outlives even this.
                worker.join(5)
        raise


def _ignore_signals(_worker: int) -> None:
    """Let the main process alone decide when workers end."""
    # A scheduler signals the whole process group; the main process decides when the workers end.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
