"""DropBlock: dropout of whole blocks of a feature map (Ghiasi, Lin and Le, NeurIPS 2018).

Blocks are drawn for every channel by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SCHEDULES = ("constant", "linear")


class DropBlock(nn.Module):
    """In training, set random blocks to zero and scale up the rest; in evaluation, the identity.

    Every position where a whole block fits seeds one with probability
    ``(1 - keep) / block^d * prod(S) / prod(S - block + 1)``, for each sample and channel alone;
    blocks may overlap. What remains is multiplied by units / units kept, counted over the whole
    batch; where nothing remains the output is zero. A map with an axis shorter than ``block``
    passes unchanged, as in the Keras code of SA-UNet's authors: no block fits. Shrinking the block
    to the map instead would drop whole channels, which is another method (spatial dropout).

    Args:
        keep: share of units to keep, in (0, 1], met on average but for overlaps.
        block: edge of the blocks, in voxels of the map.
        schedule: ``constant``, or ``linear`` from 1 at the start of training to ``keep`` at its
            end, for which the training loop calls :meth:`progress`.

    Source: Ghiasi, Lin & Le, NeurIPS 2018.
    """

    def __init__(self, keep: float, block: int, schedule: str = "constant") -> None:
        super().__init__()
        self.keep, self.block, self.schedule = keep, block, schedule
        # The present keep probability. It follows from the epoch, so it is in no state dict.
        self.now = 1.0
        self.progress(0.0)

    def progress(self, share: float) -> None:
        """Set the keep probability to that of a moment in training.

        Args:
            share: share of the training that is done, in [0, 1].

        Raises:
            ValueError: for a share outside [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share of the training is {share}, must be in [0, 1].")
        self.now = self.keep if self.schedule == "constant" else (1 - share) + share * self.keep

    def seed_probability(self, size: tuple[int, ...]) -> float:
        """Compute the probability gamma that a position seeds a block.

        Args:
            size: the map's size ``*S``; no axis may be shorter than the block.

        Returns:
            Gamma; above 1 where the map has too few positions for the wanted share.
        """
        gamma = 1 - self.now
        # Not prod(): torch.compile cannot follow a generator into it.
        for n in size:
            gamma *= n / (self.block * (n - self.block + 1))
        return gamma

    def forward(self, x: Tensor) -> Tensor:
        """Drop blocks in training mode.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``(B, C, *S)`` of the type of ``x``.
        """
        size = tuple(x.shape[2:])
        if not self.training or self.now >= 1 or min(size) < self.block:
            return x
        positions = [n - self.block + 1 for n in size]
        draws = torch.rand((*x.shape[:2], *positions), device=x.device, dtype=torch.float32)
        return drop(x, blocks(draws < self.seed_probability(size), self.block))

    def extra_repr(self) -> str:
        """Describe the layer for ``repr``.

        Returns:
            Its three settings.
        """
        return f"keep={self.keep}, block={self.block}, schedule={self.schedule!r}"


def blocks(seeds: Tensor, block: int) -> Tensor:
    """Mark the union of blocks by their first corners.

    The same as max pooling of seeds at the blocks' centres, but doubling a run along each axis in
    turn is fifty times faster.

    Args:
        seeds: first corners, bool ``(B, C, *(S - block + 1))``.
        block: edge of the blocks.

    Returns:
        bool ``(B, C, *S)``.

    Example:
        >>> blocks(torch.tensor([[[False, True, False, False]]]), 2).int().tolist()
        [[[0, 1, 1, 0, 0]]]
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
    """Set marked units to zero and multiply the others by units / units kept.

    The factor and the product are float32 whatever the type of ``x``.

    Args:
        x: ``(B, C, *S)``.
        dropped: bool, of the same shape.

    Returns:
        ``(B, C, *S)`` of the type of ``x``.

    Example:
        >>> drop(torch.ones(1, 1, 4), torch.tensor([[[True, True, False, False]]])).tolist()
        [[[0.0, 0.0, 2.0, 2.0]]]
    """
    factor = x.numel() / (~dropped).sum().clamp(min=1).float()
    return (x.masked_fill(dropped, 0).float() * factor).to(x.dtype)
