"""Betti-matching loss: penalises topological features that prediction and label do not share.

These are components, tunnels and cavities that only one of the two has.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.losses.masked import Loss, masked, number
from pipeline.losses.overlap import one_hot, probabilities

_Index = tuple[int | slice, ...]
"""Index of a block in an array ``(B, C, *S)``: sample, class and a slice for each axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bars:
    """The features of one block; voxels of p are numbered through the whole batch in C order."""

    ends: np.ndarray
    """Voxels ``(n,)`` where a matched feature of p is born or dies."""
    goals: np.ndarray
    """Values ``(n,)`` that p should have there."""
    loose: np.ndarray
    """Voxels ``(m, 2)`` where an unmatched feature of p is born and dies: p should not differ."""
    missing: float
    """Sum of the squared lengths of the unmatched features of the label."""


def betti_matching(
    *, dims: Sequence[int] | None = None, patch: int | None = 32, unmatched: float = 1.0
) -> Loss:
    """Betti-matching loss (Stucki et al., ICML 2023).

    Probability p and binary label y are filtered from 1 down. A feature is born at b and dies at d,
    both values of single voxels; features of p and y are matched where they are one feature of
    ``max(p, y)``. A block of the image then costs::

        sum over matched features of (b_p - b_y)^2 + (d_p - d_y)^2
        + unmatched * sum over the other features of p and of y of (b - d)^2

    and ``(b_p - b_y)^2`` for the component that never dies, in dimension 0. Unmatched features of y
    cost a constant: they have no gradient, but with them 0 means that every feature is matched and
    certain. Foreground is joined by faces.

    The value is the mean over the blocks with a valid voxel, the classes but background, and the
    samples. Ignored voxels are background in both. Only voxels where a feature is born or dies get
    a gradient: a further term beside dice or ce, for a network that already finds the shapes.
    Matching runs on the CPU in as many threads as torch has; a block of 32 x 32 x 32 takes about
    0.2 s.

    Args:
        dims: dimensions that count (0 components, 1 tunnels or the holes of an image, 2 cavities);
            None: all.
        patch: the image is cut into blocks of at most this edge in voxels, each matched on its own;
            None: not cut.
        unmatched: weight of the unmatched features; 0.5 is the squared distance to the diagonal of
            the persistence diagram.

    Returns:
        ``loss(logits, target, valid)``, see :data:`pipeline.losses.masked.Loss`; it raises a
        ConfigError for dimensions that the image does not have.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: arXiv 2211.15272; for volumes arXiv 2407.04683.

    Example:
        >>> loss, label = betti_matching(), torch.zeros(1, 1, 8, 8, dtype=torch.int64)
        >>> label[..., 2:6, 2:6] = 1
        >>> logits = 20.0 * (2 * label - 1)
        >>> round(loss(logits, label, torch.ones(1, 1, 8, 8)).item(), 4)
        0.0
        >>> logits[..., 0, 0] = 20  # a second component
        >>> round(loss(logits, label, torch.ones(1, 1, 8, 8)).item(), 4)
        1.0
    """
    chosen = None if dims is None else _dims(dims)
    if patch is not None and (not isinstance(patch, int) or isinstance(patch, bool) or patch < 2):
        raise ConfigError(
            f"loss 'betti_matching': patch is {patch!r}, must be a whole number of at least 2, or"
            " null for no blocks."
        )
    unmatched = number(unmatched, "'betti_matching': unmatched")

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        axes = logits.ndim - 2
        if chosen and max(chosen) >= axes:
            raise ConfigError(
                f"loss 'betti_matching': dims is {list(chosen)}, but an image of {axes} axes has"
                " only dimensions 0 and 1."
            )
        first = 1 if logits.shape[1] > 1 else 0
        p, y = ((x * valid)[:, first:] for x in (probabilities(logits), one_hot(target, logits)))
        arrays = [
            *(x.detach().cpu().numpy() for x in (p, y)),
            np.arange(p.numel()).reshape(p.shape),
        ]
        blocks = list(_blocks(valid[:, 0].cpu().numpy() > 0, p.shape[1], patch))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            bars = list(
                pool.map(lambda block: _bars(arrays, block[0], chosen or range(axes)), blocks)
            )
        # The first term is 0, or NaN where p is: the value depends on p even where no bar does.
        return 0 * p.sum() + _cost(p.flatten(), bars, [weight for _, weight in blocks], unmatched)

    return loss


def _dims(dims: Sequence[int]) -> tuple[int, ...]:
    known = (
        isinstance(dims, list | tuple)
        and dims
        and all(type(d) is int and d in (0, 1, 2) for d in dims)
    )
    if not known or len(set(dims)) < len(dims):
        raise ConfigError(
            f"loss 'betti_matching': dims is {dims!r}, must list some of 0, 1 and 2, each once, or"
            " be null for all."
        )
    return tuple(dims)


def _blocks(valid: np.ndarray, classes: int, patch: int | None) -> Iterator[tuple[_Index, float]]:
    """Blocks with a voxel of ``valid`` ``(B, *S)``, and their weights.

    The sum with these weights is the mean over blocks, classes and samples.
    """
    edges = [patch or n for n in valid.shape[1:]]
    starts = list(
        itertools.product(
            *(range(0, n, edge) for n, edge in zip(valid.shape[1:], edges, strict=True))
        )
    )
    cuts = [
        tuple(slice(a, a + edge) for a, edge in zip(start, edges, strict=True)) for start in starts
    ]
    samples = max(1, int(valid.any(tuple(range(1, valid.ndim))).sum()))
    for sample, mask in enumerate(valid):
        here = [cut for cut in cuts if mask[cut].any()]
        for cut, channel in itertools.product(here, range(classes)):
            yield (sample, channel, *cut), 1 / (len(here) * classes * samples)


def _bars(arrays: Sequence[np.ndarray], block: _Index, dims: Sequence[int]) -> _Bars:
    """Match one block; ``arrays`` ``(B, C, *S)`` are p, y and the numbers of the voxels."""
    # numba takes 0.3 s to import, and only this loss needs it.
    from pipeline.morphology.matching import match

    p, y, voxels = (x[block] for x in arrays)
    # Only the order of values counts, and -x is exact where 1 - x would round small probabilities
    # together.
    found = match(-p, -y)
    pairs, label, voxels = [found[d] for d in dims], y.ravel(), voxels.ravel()
    predicted = np.concatenate([np.append(x.matched[:, :2], x.essential[:, 0]) for x in pairs])
    wanted = np.concatenate([np.append(x.matched[:, 2:], x.essential[:, 1]) for x in pairs])
    loose, lacking = (
        np.concatenate([getattr(x, side) for x in pairs]) for side in ("first", "second")
    )
    missing = np.square(np.diff(label[lacking])).sum()
    return _Bars(
        ends=voxels[predicted], goals=label[wanted], loose=voxels[loose], missing=float(missing)
    )


def _cost(p: Tensor, bars: Sequence[_Bars], weights: Sequence[float], unmatched: float) -> Tensor:
    """Weighted sum over blocks, with the gradient to ``p`` ``(voxels,)``; 0 for no blocks."""
    if not bars:
        return p.new_zeros(())
    ends, goals, loose = (
        np.concatenate([getattr(x, name) for x in bars]) for name in ("ends", "goals", "loose")
    )
    on_ends, on_loose = (
        np.repeat(weights, [len(getattr(x, name)) for x in bars]) for name in ("ends", "loose")
    )
    missing = sum(weight * x.missing for weight, x in zip(weights, bars, strict=True))
    misfit = (p[_like(ends, p)] - _like(goals, p, p.dtype)).square() * _like(on_ends, p, p.dtype)
    length = p[_like(loose, p)].diff(dim=1)[:, 0].square() * _like(on_loose, p, p.dtype)
    return misfit.sum() + unmatched * (length.sum() + missing)


def _like(array: np.ndarray, p: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.from_numpy(array).to(p.device, dtype)
