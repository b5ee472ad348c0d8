"""Blemishes as a retoucher removes them, drawn onto a photograph, for make_pairs.py.

Kinds are stains, spots, hairs and scratches, and dust. Each is a thin film over a small box of the
photograph. What lies beneath shows through it, so texture stays::

    out = (1 - cover (1 - gain)) image + cover light

with a ``cover`` of 0..1 for each pixel and a ``gain`` and a ``light`` for each colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

SKIN_GAINS = ((0.48, 0.34, 0.25), (0.86, 0.52, 0.46), (0.78, 0.60, 0.44), (0.33, 0.28, 0.25))
"""What light of each colour a mole, a pimple, a freckle and a dark speck let through where they are
thickest.
"""

VISIBLE = 5 / 255
"""Least change of the value (the greatest of R, G and B), on the mean of a blemish's core, for it
to count as one.
"""

TRIES = 10
"""Blemishes drawn, each at another place, before one is given up: nothing dark shows on black."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """One blemish, wherever it may lie.

    Attributes:
        cover: share ``(y, x)`` of each pixel that it hides, 0 to 1; both sides odd, centred.
        gain, light: per colour, ``(3,)``.
    """

    cover: np.ndarray
    gain: np.ndarray
    light: np.ndarray


def add(
    image: np.ndarray,
    count: int,
    draw: np.random.Generator,
    scale: float = 1.0,
    only: Iterable[str] = (),
) -> dict[str, int]:
    """Draw blemishes onto a photograph, in place.

    Args:
        image: ``(3, Y, X)`` on 0..1; changed.
        count: number of blemishes.
        draw: random numbers.
        scale: size relative to the usual one.
        only: kinds to draw; empty: all.

    Returns:
        The number of each kind; fewer than ``count`` in all where the photograph hides them.
    """
    among = set(only) or set(KINDS)
    shares = np.array([share if kind in among else 0 for kind, (share, _) in KINDS.items()])
    wanted = draw.multinomial(count, shares / shares.sum())
    return {
        kind: sum(lay(image, shape, draw, scale) for _ in range(n))
        for (kind, (_, shape)), n in zip(KINDS.items(), wanted, strict=True)
    }


def lay(
    image: np.ndarray,
    shape: Callable[[np.random.Generator, float], Film],
    draw: np.random.Generator,
    scale: float,
) -> bool:
    """Draw one blemish where it is visible; returns whether such a place was found."""
    for _ in range(TRIES):
        film = shape(draw, scale)
        inside, cover = clipped(
            film.cover, [int(draw.integers(n)) for n in image.shape[1:]], image.shape[1:]
        )
        part = image[:, *inside]
        gain, light = film.gain[:, None, None], film.light[:, None, None]
        covered = np.clip((1 - cover * (1 - gain)) * part + cover * light, 0, 1)
        change = np.abs(covered.max(axis=0) - part.max(axis=0))
        if change[cover >= film.cover.max() / 2].sum() >= VISIBLE * np.count_nonzero(
            film.cover >= film.cover.max() / 2
        ):
            part[...] = covered
            return True
    return False


def clipped(
    cover: np.ndarray, centre: list[int], space: tuple[int, ...]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """The box of an image under a ``cover`` around ``centre``, and the part of it inside."""
    starts = [c - n // 2 for c, n in zip(centre, cover.shape, strict=True)]
    y, x = (
        slice(max(s, 0), min(s + n, edge))
        for s, n, edge in zip(starts, cover.shape, space, strict=True)
    )
    return (y, x), cover[
        y.start - starts[0] : y.stop - starts[0], x.start - starts[1] : x.stop - starts[1]
    ]


def stain(draw: np.random.Generator, scale: float) -> Film:
    """A faint, uneven discolouration of 20 to 60 pixels across: brownish, or a pale veil."""
    strength = draw.uniform(0.04, 0.11)
    cover = blob(draw, scale * between(draw, 10, 30), soft=draw.uniform(0.5, 1), bumps=0.35)
    if draw.random() < 0.65:
        return film(cover, 1 - strength * np.array([1, 1.2, 1.5]), np.zeros(3))
    return film(cover, np.full(3, 1 - strength), strength * np.array([0.92, 0.9, 0.86]))


def spot(draw: np.random.Generator, scale: float) -> Film:
    """A mole, pimple, freckle or dark speck with a radius of 2 to 12 pixels."""
    radius = between(draw, 2, 12)
    cover = blob(draw, scale * radius, soft=max(draw.uniform(0.4, 1), 1.2 / radius), bumps=0.2)
    gain = np.array(SKIN_GAINS[draw.integers(len(SKIN_GAINS))]) + draw.uniform(-0.04, 0.04)
    return film(draw.uniform(0.45, 0.95) * cover, gain, np.zeros(3))


def line(draw: np.random.Generator, scale: float) -> Film:
    """A dark hair or light scratch: 20 to 120 pixels long, 1.4 to 3 wide at half its strength."""
    cover = stroke(draw, scale * draw.uniform(20, 120), scale * draw.uniform(1.4, 3))
    if draw.random() < 0.6:
        return film(
            draw.uniform(0.5, 0.9) * cover,
            np.array([0.22, 0.17, 0.14]) + draw.uniform(0, 0.15),
            np.full(3, 0.01),
        )
    return film(draw.uniform(0.3, 0.7) * cover, np.full(3, 0.45), np.array([0.5, 0.49, 0.47]))


def dust(draw: np.random.Generator, scale: float) -> Film:
    """A light speck with a soft rim and a radius of 1 to 2.5 pixels."""
    cover = blob(draw, scale * between(draw, 1, 2.5), soft=1.2, bumps=0.25)
    return film(
        draw.uniform(0.4, 0.95) * cover, np.full(3, 0.45), 0.5 + draw.uniform(-0.03, 0.03, 3)
    )


KINDS: Mapping[str, tuple[float, Callable[[np.random.Generator, float], Film]]] = {
    "stain": (0.06, stain),
    "spot": (0.5, spot),
    "line": (0.2, line),
    "dust": (0.24, dust),
}
"""Share of each kind and what draws it, in the order in which they lie over each other: dust lies
on skin.
"""


def film(cover: np.ndarray, gain: np.ndarray, light: np.ndarray) -> Film:
    return Film(
        cover=cover.astype(np.float32), gain=gain.astype(np.float32), light=light.astype(np.float32)
    )


def between(draw: np.random.Generator, low: float, high: float) -> float:
    """A size whose logarithm is drawn evenly: small ones are many."""
    return math.exp(draw.uniform(math.log(low), math.log(high)))


def blob(draw: np.random.Generator, radius: float, soft: float, bumps: float) -> np.ndarray:
    """Cover of an ellipse with an uneven outline.

    Args:
        draw: random numbers.
        radius: in pixels.
        soft: share of the radius over which the edge fades.
        bumps: greatest unevenness of the outline, as a share of the radius.

    Returns:
        ``(y, x)``, 0 to 1.
    """
    bends = draw.uniform(-bumps, bumps, 3) / [2, 3, 4]
    reach = math.ceil(radius * (1 + soft / 2) * (1 + np.abs(bends).sum())) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] - draw.uniform(-0.5, 0.5, (2, 1, 1))
    turn, flat = draw.uniform(0, math.pi), draw.uniform(0.65, 1)
    along, across = (
        x * math.cos(turn) + y * math.sin(turn),
        (y * math.cos(turn) - x * math.sin(turn)) / flat,
    )
    angle, phases = np.arctan2(across, along), draw.uniform(0, 2 * math.pi, 3)
    outline = 1 + sum(
        bend * np.cos(k * angle + phase)
        for k, (bend, phase) in enumerate(zip(bends, phases, strict=True), 2)
    )
    inner = np.clip((1 + soft / 2 - np.hypot(along, across) / (radius * outline)) / soft, 0, 1)
    return inner**2 * (3 - 2 * inner)


def stroke(draw: np.random.Generator, length: float, width: float) -> np.ndarray:
    """Cover of a smoothly bent line with a Gaussian profile, thinner towards its ends.

    Args:
        draw: random numbers.
        length: in pixels.
        width: in pixels, at half its strength.

    Returns:
        ``(y, x)``, 0 to 1.
    """
    at = np.linspace(0, 1, 2 * math.ceil(length) + 1)
    heading = (
        draw.uniform(0, 2 * math.pi)
        + draw.normal(0, 1) * at
        + draw.uniform(0, 0.4) * np.sin(2 * math.pi * (at + draw.random()))
    )
    points = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=0) * (
        length / len(at)
    )
    points -= (points.max(axis=0) + points.min(axis=0)) / 2 + draw.uniform(-0.5, 0.5, 2)
    sigma = width / math.sqrt(8 * math.log(2))
    reach = [math.ceil(r + 4 * sigma) for r in np.abs(points).max(axis=0)]
    grid = np.moveaxis(np.mgrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1], 0, -1)
    distance, nearest = KDTree(points).query(
        grid, distance_upper_bound=4 * sigma
    )  # infinite, and index len(points), beyond
    thickness = sigma * (1 - 0.6 * (2 * at - 1) ** 4)
    return np.exp(-0.5 * (distance / np.append(thickness, 1)[nearest]) ** 2)
