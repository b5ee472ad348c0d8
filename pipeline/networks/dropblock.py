"""DropBlock: dropout of whole blocks of a feature map, drawn for every channel by itself (Ghiasi,
Lin and Le, NeurIPS 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SCHEDULES = ("constant", "linear")


class DropBlock(nn.Module):
    """Training: sets blocks of edge ``block`` to zero and raises the rest; evaluation: the
    identity. ``(B, C, *S)`` in and out.

    ``keep``: the share of units to keep, in (0, 1], met on average but for overlaps. ``schedule``:
    ``constant``, or ``linear`` from 1 at the start of training to ``keep`` at its end, for which
    someone calls :meth:`progress`.

    Every place where a whole block fits seeds one with probability ``(1 - keep) / block^d * prod(S)
    / prod(S - block + 1)``, for each sample and channel alone; blocks may overlap. What remains is
    multiplied by units / units kept, counted over the whole batch; where nothing remains the output
    is zero. A map with an axis shorter than ``block`` passes unchanged, as in the Keras code of
    SA-UNet's authors: no block fits. Shrinking the block to the map instead would drop whole
    channels, which is another method (spatial dropout).
    """

    def __init__(self, keep: float, block: int, schedule: str = "constant") -> None:
        super().__init__()
        self.keep, self.block, self.schedule = keep, block, schedule
        # the keep probability of this moment: it follows from the epoch, so no state holds it
        self.now = 1.0
        self.progress(0.0)

    def progress(self, share: float) -> None:
        """Set the keep probability to that of the moment when ``share`` of the training, in [0, 1],
        is done.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share of the training is {share}, must be in [0, 1].")
        self.now = self.keep if self.schedule == "constant" else (1 - share) + share * self.keep

    def seed_probability(self, size: tuple[int, ...]) -> float:
        """Gamma for maps of ``size``, of which no axis may be shorter than the block."""
        gamma = 1 - self.now
        for n in size:  # not prod(): torch.compile cannot follow a generator into it
            gamma *= n / (self.block * (n - self.block + 1))
        return gamma

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        if not self.training or self.now >= 1 or min(size) < self.block:
            return x
        places = [n - self.block + 1 for n in size]
        draws = torch.rand((*x.shape[:2], *places), device=x.device, dtype=torch.float32)
        return drop(x, blocks(draws < self.seed_probability(size), self.block))

    def extra_repr(self) -> str:
        return f"keep={self.keep}, block={self.block}, schedule={self.schedule!r}"


def blocks(seeds: Tensor, block: int) -> Tensor:
    """Union of blocks of edge ``block`` whose first corners are ``seeds``, bool ``(B, C, *(S -
    block + 1))``; bool ``(B, C, *S)``.

    The same as max pooling of seeds at the blocks' centres, but doubling a run along each axis in
    turn is fifty times faster.
    """
    covered = functional.pad(seeds, (block - 1, block - 1) * (seeds.ndim - 2))
    for axis in range(2, seeds.ndim):
        reach = 1
        while reach < block:
            step = min(reach, block - reach)
            rest = covered.shape[axis] - step
            covered = covered.narrow(axis, 0, rest) | covered.narrow(axis, step, rest)
            reach += step
    return covered


def drop(x: Tensor, dropped: Tensor) -> Tensor:
    """``x`` with the units that ``dropped`` (bool, same shape) marks at zero and the others times
    units / units kept.

    The factor and the product are float32 whatever the type of ``x``, which the result has again.
    """
    factor = x.numel() / (~dropped).sum().clamp(min=1).float()
    return (x.masked_fill(dropped, 0).float() * factor).to(x.dtype)
