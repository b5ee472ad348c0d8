"""The Betti-matching loss: a prediction pays for each component, tunnel or cavity that the label
has not, and for each it lacks.
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

_Block = tuple[int | slice, ...]
"""Sample, class and a slice for each axis: the index of a block in an array ``(B, C, *S)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bars:
    """What one block says: voxels of p are numbered through the whole batch in C order.

    p at ``ends`` ``(n,)`` should be ``goals`` ``(n,)``; p should not differ between the two of
    ``loose`` ``(m, 2)``; ``missing`` is the sum of the squared lengths of the unmatched features of
    the label.
    """

    ends: np.ndarray
    goals: np.ndarray
    loose: np.ndarray
    missing: float


def betti_matching(
    *, dims: Sequence[int] | None = None, patch: int | None = 32, unmatched: float = 1.0
) -> Loss:
    """Betti-matching loss (Stucki et al., ICML 2023, arXiv 2211.15272; for volumes arXiv
    2407.04683).

    Probability p and binary label y are filtered from 1 down. A feature is born at b and dies at d,
    both values of single voxels; features of p and y are matched where they are one feature of
    ``max(p, y)``. A block of the image then costs

    ``sum over matched (b_p - b_y)^2 + (d_p - d_y)^2  +  unmatched * sum over the others, of p and
    of y, (b - d)^2``

    and ``(b_p - b_y)^2`` for the component that never dies, in dimension 0. Unmatched features of y
    cost a constant: they have no gradient, but with them 0 means that every feature is matched and
    certain. Foreground is joined by faces.

    ``dims``: dimensions that count (0 components, 1 tunnels or the holes of an image, 2 cavities);
    null: all. ``patch``: the image is cut into blocks of at most this edge, each matched on its
    own; null: not cut. ``unmatched``: weight; 0.5 is the squared distance to the diagonal of the
    persistence diagram. The value is the mean over the blocks with a valid voxel, the classes but
    background, and the samples. Ignored voxels are background in both.

    Only voxels where a feature is born or dies get a gradient: a further term beside dice or ce,
    for a network that already finds the shapes. Matching runs on the CPU in as many threads as
    torch has; a block of 32 x 32 x 32 takes about 0.2 s.
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
        # The first term is 0, or NaN where p is: it ties the value to p where no bar does.
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


def _blocks(valid: np.ndarray, classes: int, patch: int | None) -> Iterator[tuple[_Block, float]]:
    """Blocks with a voxel of ``valid`` ``(B, *S)``, and the weights with which their sum is the
    mean over blocks, classes, samples.
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


def _bars(arrays: Sequence[np.ndarray], block: _Block, dims: Sequence[int]) -> _Bars:
    """``arrays`` ``(B, C, *S)``: p, y and the numbers of the voxels."""
    from pipeline.morphology.matching import (
        match,
    )  # numba takes 0.3 s to import, and only this loss needs it

    p, y, voxels = (x[block] for x in arrays)
    # Only the order of values counts, and -x is exact where 1 - x would round small probabilities
    # together.
    found = match(-p, -y)
    pairs, label, voxels = [found[d] for d in dims], y.ravel(), voxels.ravel()
    ours = np.concatenate([np.append(x.matched[:, :2], x.essential[:, 0]) for x in pairs])
    theirs = np.concatenate([np.append(x.matched[:, 2:], x.essential[:, 1]) for x in pairs])
    loose, lacking = (
        np.concatenate([getattr(x, side) for x in pairs]) for side in ("first", "second")
    )
    missing = np.square(np.diff(label[lacking])).sum()
    return _Bars(
        ends=voxels[ours], goals=label[theirs], loose=voxels[loose], missing=float(missing)
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
