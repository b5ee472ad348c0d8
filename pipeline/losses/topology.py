"""Losses for label targets that measure connection: centre lines, sheets, distance and links.

Target, channels and empty cases as in :mod:`pipeline.losses.overlap`; of several channels every
class but background takes part, and all count the same. Three of the losses read a map that is made
from the label once (:mod:`pipeline.data.derived`) and given as a fourth argument: one channel for
each class that takes part. All of them depend on part of the voxels or of the errors only, so each
is meant as a further term beside dice or ce.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.losses.cldice import soft_erode, soft_open, soft_skel
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline.config import ConfigError
from pipeline.data.derived import RADIUS, REACH
from pipeline.losses.masked import Loss, masked, masked_mean, number, sample_mean
from pipeline.losses.overlap import SMALLEST, one_hot, probabilities

FEW = 3
"""Iterations of ``cldice`` that are enough to try it."""


def cldice(*, iterations: int = 3, smooth: float = 1.0) -> Loss:
    """Soft centre-line Dice (clDice), mean over samples and classes.

    With soft skeletons S of p and y it is ``1 - 2 T_p T_s / (T_p + T_s)``, where
    ``T_p = (sum S(p) y + smooth) / (sum S(p) + smooth)`` measures how much of the prediction's
    skeleton lies in the label, and ``T_s`` the same of the label's skeleton in the prediction.
    Closes gaps and removes bridges. Each iteration keeps two fields for the backward pass, where
    its inner steps are computed again. An empty target costs what the prediction's skeleton does;
    both empty cost 0. A structure that survives all erosions has no soft skeleton and has no
    effect.

    Args:
        iterations: erosions of the soft skeleton, at least half the width in voxels of the thickest
            structure.
        smooth: added to numerators and denominators, at least 1e-12.

    Returns:
        ``loss(logits, target, valid)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: Shit et al., CVPR 2021.

    Example:
        >>> target = torch.zeros(1, 1, 7, 20)
        >>> target[..., 2:5, 1:-1] = 1
        >>> logits, valid = 40 * target - 20, torch.ones_like(target)
        >>> round(cldice()(logits, target, valid).item(), 4)
        0.0
        >>> logits[..., 9:11] = -20  # a gap
        >>> round(cldice()(logits, target, valid).item(), 4)
        0.0625
    """
    iterations = _whole(iterations, "'cldice': iterations", 0)
    smooth = number(smooth, "'cldice': smooth", SMALLEST)

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        p, y = _classes(logits, target, valid)
        precision = _share(soft_skeleton(p, iterations), y, smooth)
        recall = _share(soft_skel(y, iterations), p, smooth)
        return sample_mean(1 - 2 * precision * recall / (precision + recall), valid)

    return loss


def few(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Limit the iterations of ``cldice`` to what is enough to try it.

    Args:
        options: options of :func:`cldice`.

    Returns:
        The options for a trial.
    """
    often = options.get("iterations")
    return {**options, "iterations": FEW} if isinstance(often, int) and often > FEW else options


def soft_skeleton(p: Tensor, iterations: int) -> Tensor:
    """MONAI's ``soft_skel``, but iterations keep 2 fields for the backward pass and not 32."""
    again = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    thin: Tensor = again(_ridge, p)
    for _ in range(iterations):
        p, thin = again(_thinner, p, thin)
    return thin


def _ridge(p: Tensor) -> Tensor:
    return functional.relu(p - soft_open(p))


def _thinner(p: Tensor, thin: Tensor) -> tuple[Tensor, Tensor]:
    p = soft_erode(p)
    delta = _ridge(p)
    return p, thin + functional.relu(delta - thin * delta)


def skeleton_recall(*, radius: float = RADIUS) -> Loss:
    """Skeleton recall, ``1 - sum p t / sum t``, mean over samples and classes.

    t is the skeleton of the label, grown by ``radius`` voxels inside it, the map ``skeleton``.
    Closes gaps in lines. It does not depend on what is predicted elsewhere, and alone it thickens a
    prediction. Without a skeleton the value is 0.

    Args:
        radius: voxels by which the map's skeleton is grown; read when the map is made.

    Returns:
        ``loss(logits, target, valid, skeleton)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for a ``radius`` that cannot be used.

    Source: Kirchhoff et al., ECCV 2024.
    """
    number(radius, "'skeleton_recall': radius")

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor, tube: Tensor) -> Tensor:
        p, _ = _classes(logits, target, valid, tube)
        return sample_mean(1 - _share(tube, p, SMALLEST), valid)

    return loss


def surface_recall(*, fp_weight: float = 0.5, radius: float = RADIUS) -> Loss:
    """Recall on the medial surface, and the false-positive volume.

    ``1 - sum p t / sum t + fp_weight * sum p (1 - y) / sum (1 - y)``, where t is the middle of the
    label's sheets, found across all three axes and grown by ``radius`` voxels inside the label, the
    map ``medial_surface`` (in 2D it is that of the skeleton). Sums run over the valid voxels of a
    sample and class, 1 - y is all that is not of the class. Closes holes in sheets. Without a
    medial surface the first part is 0, without background the second.

    Args:
        fp_weight: weight of the false-positive volume.
        radius: voxels by which the map's surface is grown; read when the map is made.

    Returns:
        ``loss(logits, target, valid, medial_surface)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: the recall of Kirchhoff et al., ECCV 2024, for sheets.
    """
    fp_weight = number(fp_weight, "'surface_recall': fp_weight")
    number(radius, "'surface_recall': radius")

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor, tube: Tensor) -> Tensor:
        p, y = _classes(logits, target, valid, tube)
        away = valid - y
        false = _total(p * away) / _total(away).clamp(min=1)
        return sample_mean(1 - _share(tube, p, SMALLEST) + fp_weight * false, valid)

    return loss


def boundary(*, reach: float = REACH) -> Loss:
    """Boundary loss, ``mean (p - y) d / reach`` over valid voxels and classes.

    d is the signed distance to the label's surface, negative inside, cut off at ``reach`` voxels:
    the map ``distance``. The published loss is ``mean p d``; the constant taken off changes no
    gradient and makes the value ``mean |p - y| |d| / reach``, which is 0 for the right prediction.
    An error costs the more the farther it lies from the surface, so bridges over wide gaps and
    holes in thick bodies weigh more than a shifted edge. It knows no topology, and alone it favours
    the empty prediction where the label is thin: combine it with dice or ce.

    Args:
        reach: voxels at which the distance is cut off, from 1 to 1000.

    Returns:
        ``loss(logits, target, valid, distance)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for a ``reach`` that cannot be used.

    Source: Kervadec et al., MIDL 2019.
    """
    reach = number(reach, "'boundary': reach", 1, 1000)

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor, distance: Tensor) -> Tensor:
        p, y = _classes(logits, target, valid, distance)
        return masked_mean((p - y) * distance / reach, valid)

    return loss


def connectivity(*, reach: Sequence[int] = (1,), smooth: float = 1e-5) -> Loss:
    """Soft Dice of links: ``1 - (2 sum a t + smooth) / (sum a + sum t + smooth)``.

    A link joins a voxel with the one r voxels on along an axis, for each r of ``reach``. Its
    predicted strength a is the least p of the r + 1 voxels along it, its truth t is 1 where all of
    them belong to the label: affinities, here of the foreground. The value is the mean over axes,
    reaches, samples and classes. A link counts where all of its voxels are valid. One weak voxel
    breaks the links of all axes through it, and the minimum hands their gradient to that voxel
    alone: cut sheets and lines are joined. False links are in the denominator: bridges cost too.
    Axes no longer than r have no such links.

    Args:
        reach: lengths of links in voxels, each at least 1.
        smooth: added to numerator and denominator, at least 1e-12.

    Returns:
        ``loss(logits, target, valid)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: affinities of Turaga et al., Neural Computation 2010, and Funke et al., TPAMI 2019.

    Example:
        >>> target = torch.ones(1, 1, 1, 8)
        >>> logits, valid = 40 * target - 20, torch.ones_like(target)
        >>> logits[..., 4] = -20  # one voxel breaks two of seven links
        >>> round(connectivity()(logits, target, valid).item(), 4)
        0.1667
    """
    if not isinstance(reach, list | tuple) or not reach:
        raise ConfigError(
            f"loss 'connectivity': reach is {reach!r}, must be a list of whole numbers of at least"
            " 1, e.g. [1, 4]."
        )
    steps = [_whole(r, "'connectivity': reach", 1) for r in reach]
    smooth = number(smooth, "'connectivity': smooth", SMALLEST)

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        # Outside `valid` both are 0, hence so is every link that touches it.
        p, y = _classes(logits, target, valid)
        values = [
            _dice(_links(p, axis, r), _links(y, axis, r), smooth)
            for axis in range(2, p.ndim)
            for r in steps
            if r < p.shape[axis]
        ]
        return sample_mean(torch.stack(values, -1).flatten(1), valid) if values else p.sum() * 0

    return loss


def _links(x: Tensor, axis: int, reach: int) -> Tensor:
    """Least of each ``reach + 1`` successive values along ``axis``."""
    count = x.shape[axis] - reach
    return functools.reduce(torch.minimum, (x.narrow(axis, k, count) for k in range(reach + 1)))


def _dice(a: Tensor, b: Tensor, smooth: float) -> Tensor:
    return 1 - (2 * _total(a * b) + smooth) / (_total(a) + _total(b) + smooth)


def _classes(logits: Tensor, target: Tensor, valid: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and one-hot label of every class but background, ``(B, K, *S)``.

    Both are 0 where not valid.
    """
    first = 1 if logits.shape[1] > 1 else 0
    p, y = ((x * valid)[:, first:] for x in (probabilities(logits), one_hot(target, logits)))
    for extra in maps:
        if extra.shape[1] != p.shape[1]:
            raise ValueError(
                f"a loss got a map of {extra.shape[1]} channels and logits of {p.shape[1]} classes"
                " besides background; a map has a channel for each class of data.classes but"
                " background, so the head must have data.classes channels (1 for 2 classes)."
            )
    return p, y


def _total(x: Tensor) -> Tensor:
    """Sum over space, ``(B, K)``."""
    return x.flatten(2).sum(2)


def _share(part: Tensor, of: Tensor, smooth: float) -> Tensor:
    """How much of ``part`` lies in ``of``: ``(B, K)``, 1 where there is no part."""
    return (_total(part * of) + smooth) / (_total(part) + smooth)


def _whole(value: Any, where: str, least: int) -> int:
    """``value`` if it is a whole number of at least ``least``; else ConfigError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"loss {where} is {value!r}, must be a whole number of at least {least}.")
    return value
