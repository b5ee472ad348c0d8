"""Write a synthetic data set of rolled papyrus, for demos and tests.

    python data_prep/synthetic_scroll.py OUT [--size 64] [--train 15] [--test 3]
        [--scrolls 3] [--seed 42]

Each scroll is one deformed Archimedean spiral with its own sheet spacing, thickness, contrast and
noise; each volume is a chunk cut at a random place of it. The layout is that of the surface
detection competition: ``train_images/ID.tif`` and ``train_labels/ID.tif`` are LZW multi-page uint8
(labels: 0 background, 1 sheet, 2 unlabelled); ``test_labels/`` is extra, for one's own evaluation.
The same options give the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import cli
from pipeline.progress import progress
from pipeline.records import DONE, UserError
from pipeline.stopping import stop

logger = logging.getLogger(f"pipeline.{Path(__file__).stem}")

if TYPE_CHECKING:
    import numpy as np

    Axes = tuple[np.ndarray, np.ndarray, np.ndarray]

MARKER = "synthetic_scroll.json"
"""File that ends up in a complete data set: the options, and the size of every file."""
GENERATOR = 1
"""Raise this when the same options begin to give other bytes."""
FIRST_TEST = 500
"""Chunk number of a scroll's first test volume; training volumes count from 0."""
LABEL_HALF = 1.25
"""Half the thickness of a labelled surface, voxels."""
LATTICE = 16
"""Coefficients along each axis of a noise field, before it repeats."""
TEXTURE = 256
"""Side of the periodic fibre texture, voxels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to write.

    Attributes:
        size: edge of each cubic volume in voxels.
        train, test: numbers of volumes.
        scrolls: number of scrolls, the groups of the folds.
        seed: of all that is random.
    """

    size: int = 64
    train: int = 15
    test: int = 3
    scrolls: int = 3
    seed: int = 42

    def __post_init__(self) -> None:
        if not 24 <= self.size <= 1024:
            raise UserError(
                f"size is {self.size}; a volume needs at least 24 voxels along each edge and at"
                " most 1024."
            )
        if min(self.train, self.scrolls) < 1 or self.test < 0:
            raise UserError(
                f"train is {self.train}, test {self.test}, scrolls {self.scrolls}; give at least 1"
                " train volume and 1 scroll."
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must lie in 0 ... 2**32 - 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A smooth random function of the scroll's own coordinates.

    A periodic cubic B-spline with mean 0 and variance about 1.
    """

    coefficients: np.ndarray
    pitch: float

    def __call__(self, axes: Axes) -> np.ndarray:
        """Values ``(Z, Y, X)`` float32 on the grid spanned by three coordinate vectors (voxels)."""
        import numpy as np

        field = self.coefficients
        for axis in axes:  # each pass evaluates the first axis and moves it to the end
            field = np.tensordot(
                field, spline_basis(axis / self.pitch, len(self.coefficients)), axes=(0, 1)
            )
        # The squares of the cubic B-spline's weights add up to 151/315 on average, for each axis.
        return field * np.float32((151 / 315) ** -1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scroll:
    """One scroll: its geometry, its look, and the fields that deform it everywhere alike.

    Lengths are in voxels; grey levels run from 0, black, to 1, white.
    """

    id: str
    spacing: float
    thickness: float
    contrast: float
    noise: float
    blur: float
    turn: int
    fields: dict[str, Field]
    fibres: np.ndarray


def spline_basis(positions: np.ndarray, count: int) -> np.ndarray:
    """Weights of a periodic uniform cubic B-spline.

    Args:
        positions: ``(N,)``, in knots.
        count: number of knots of a period.

    Returns:
        ``(N, count)`` float32; each row adds up to 1.
    """
    import numpy as np

    cell = np.floor(positions).astype(int)
    t = positions - cell
    weights = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    basis = np.zeros((len(positions), count), np.float32)
    for offset, weight in enumerate(weights):
        basis[np.arange(len(positions)), (cell + offset) % count] = weight
    return basis


def noise_field(rng: np.random.Generator, pitch: float, count: int = LATTICE) -> Field:
    """A fresh field whose features are about ``pitch`` voxels wide."""
    import numpy as np

    return Field(coefficients=rng.standard_normal((count,) * 3, np.float32), pitch=pitch)


PITCHES = {
    "shift_y": 52.0,
    "shift_x": 47.0,
    "ripple": 21.0,
    "press": 34.0,
    "hole_0": 27.0,
    "hole_1": 29.0,
    "fray": 5.5,
    "split": 31.0,
    "density": 19.0,
    "shading": 41.0,
}
"""Feature sizes of a scroll's fields, voxels. No two are equal, so their repeats never coincide."""


def make_scroll(seed: int, number: int) -> Scroll:
    """Scroll ``number`` of a seed; independent of how many others there are."""
    import numpy as np

    rng = np.random.default_rng([seed, number])
    spacing = rng.uniform(11.0, 16.0)
    return Scroll(
        id=scroll_id(number),
        spacing=spacing,
        thickness=min(rng.uniform(2.5, 6.0), spacing / 2.4),
        contrast=rng.uniform(0.32, 0.44),
        noise=rng.uniform(0.035, 0.06),
        blur=rng.uniform(0.8, 1.2),
        turn=int(rng.choice([-1, 1])),
        fields={name: noise_field(rng, pitch) for name, pitch in PITCHES.items()},
        fibres=_fibres(rng),
    )


def _fibres(rng: np.random.Generator) -> np.ndarray:
    """Two periodic textures ``(2, TEXTURE, TEXTURE)``: papyrus has crossed layers.

    Axes: along the winding, along the scroll's axis.
    """
    import numpy as np
    from scipy import ndimage

    white = rng.standard_normal((2, TEXTURE, TEXTURE), np.float32)
    for layer, sigma in enumerate([(9.0, 0.8), (0.8, 9.0)]):
        ndimage.gaussian_filter(white[layer], sigma, output=white[layer], mode="wrap")
    return white / white.std(axis=(1, 2), keepdims=True)


def make_volume(
    scroll: Scroll, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A chunk of a scroll at a random place: image and labels, uint8 ``(size, size, size)``."""
    import cc3d
    import numpy as np

    axes = _place(size, rng)
    winding, along = _unroll(scroll, axes)
    density, surface = np.zeros((size,) * 3, np.float32), np.zeros((size,) * 3, bool)
    press = _press(scroll, axes, winding)
    faint = np.clip(0.85 + 0.24 * scroll.fields["density"](axes), 0.25, 1.3)
    for family in (0, 1):
        phase = (winding + (press if family else -press) - family) / 2
        turn = np.round(phase)
        depth = (phase - turn) / _slope(
            phase
        )  # to first order the signed distance to the sheet, voxels
        present, whole = _tear(scroll, axes, family)
        surface |= whole & (np.abs(depth) <= LABEL_HALF)
        sheet = (
            _profile(scroll, axes, depth)
            * present
            * faint
            * _texture(scroll, depth, along + 89 * turn, axes[0])
        )
        np.maximum(density, sheet, out=density)
    image = _scan(scroll, axes, density, rng)
    return image, _annotate(cc3d.dust(surface, threshold=60, connectivity=6), rng)


def _place(size: int, rng: np.random.Generator) -> Axes:
    """Coordinates of a chunk's voxels.

    The scroll's axis, y = x = 0, stays outside, where windings would be too tight.
    """
    import numpy as np

    radius = 0.71 * size + rng.uniform(30, 140)
    angle = rng.uniform(0, 2 * math.pi)
    centre = (rng.uniform(0, 2000), radius * math.sin(angle), radius * math.cos(angle))
    z, y, x = (c + np.arange(size, dtype=np.float32) - size / 2 for c in centre)
    return z, y, x


def _unroll(scroll: Scroll, axes: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Winding number (sheets lie at whole numbers) and the way along the winding in voxels."""
    import numpy as np

    y = axes[1][:, None] + 6.5 * scroll.fields["shift_y"](axes)
    x = axes[2] + 6.5 * scroll.fields["shift_x"](axes)
    radius = np.hypot(y, x)
    middle = math.atan2(float(axes[1].mean()), float(axes[2].mean()))
    # Angles are taken from the chunk's middle: their jump of a full turn then lies behind the
    # scroll's axis, never in the chunk.
    angle = np.arctan2(
        y * math.cos(middle) - x * math.sin(middle), y * math.sin(middle) + x * math.cos(middle)
    )
    winding = (
        radius + 1.6 * scroll.fields["ripple"](axes)
    ) / scroll.spacing - scroll.turn * angle / (2 * math.pi)
    return winding, angle * radius


def _slope(values: np.ndarray) -> np.ndarray:
    """Length of the gradient, per voxel."""
    import numpy as np

    squares = np.zeros_like(values)
    for axis in range(3):
        squares += np.gradient(values, axis=axis) ** 2
    return np.sqrt(squares, out=squares)


def _press(scroll: Scroll, axes: Axes, winding: np.ndarray) -> np.ndarray:
    """How far even and odd windings are pushed towards each other, in windings.

    At most until two sheets touch.
    """
    import numpy as np

    nearest = max(scroll.thickness, 2 * LABEL_HALF + 2.0)
    room = np.clip(1 - nearest * _slope(winding), 0, None)
    return room / 2 * np.tanh(1.3 * scroll.fields["press"](axes))


def _tear(scroll: Scroll, axes: Axes, family: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the sheets of a family exist.

    Softly, with ragged edges (float32 in 0 ... 1), and the smooth outline (bool).
    """
    import numpy as np

    field = 1.55 - scroll.fields[f"hole_{family}"](axes)
    ragged = field + 0.22 * scroll.fields["fray"](axes)
    return np.clip(6 * ragged + 0.5, 0, 1), field > 0


def _profile(scroll: Scroll, axes: Axes, depth: np.ndarray) -> np.ndarray:
    """Density across a sheet, 0 ... 1.

    A slab with soft edges, whose outer third comes off as a flake in places.
    """
    import numpy as np

    half = scroll.thickness / 2
    seam = half / 3
    gap = np.clip(2.5 * (scroll.fields["split"](axes) - 1.0), 0, 3)
    body = np.minimum(depth + half, np.where(gap > 0, seam, half) - depth)
    flake = np.minimum(depth - seam - gap, half + gap - depth)
    return np.clip(np.maximum(body, np.where(gap > 0, flake, -1)) + 0.5, 0, 1)


def _texture(scroll: Scroll, depth: np.ndarray, along: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Factor around 1 of the papyrus fibres.

    They run along the winding on the inner face of a sheet, along the axis on the outer.
    """
    import numpy as np

    column = along.astype(np.int32) % TEXTURE
    row = np.broadcast_to((z.astype(np.int32) % TEXTURE)[:, None, None], column.shape)
    return 1 + 0.16 * scroll.fibres[(depth > 0).astype(np.int8), column, row]


def _scan(scroll: Scroll, axes: Axes, density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The scanner's picture, uint8.

    It has debris and specks between the sheets, uneven background, blur, noise and faint rings.
    """
    import numpy as np
    from scipy import ndimage

    shape = density.shape
    debris = np.clip(0.45 * (noise_field(rng, 4.5, 32)(axes) - 0.8), 0, 0.8)
    blobs = np.clip(3 * (noise_field(rng, 8.0, 32)(axes) - 2.0), 0, 1.2)
    specks = 3.5 * (rng.random(shape, np.float32) < 5e-4)
    grey = scroll.contrast * np.maximum(np.maximum(density, debris), blobs)
    grey += scroll.contrast * specks + 0.12 * scroll.fields["shading"](axes)
    ndimage.gaussian_filter(grey, scroll.blur, output=grey)
    grain = rng.standard_normal(shape, np.float32)
    ndimage.gaussian_filter(grain, 0.55, output=grain)
    grey += scroll.noise * grain / grain.std() + _rings(axes, rng)
    return np.clip(np.rint(255 * (0.30 + grey)), 0, 255).astype(np.uint8)


def _rings(axes: Axes, rng: np.random.Generator) -> np.ndarray:
    """Ring artefacts ``(1, Y, X)``: faint circles around the scanner's own axis.

    They are the same in every slice.
    """
    import numpy as np

    centre = rng.uniform(-200, 200, 2)
    radius = np.hypot(axes[1][:, None] - centre[0], axes[2] - centre[1]).astype(np.int32)
    table = 0.02 * rng.standard_normal(radius.max() + 1)
    return table.astype(np.float32)[radius][None]


def _annotate(surface: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels from the true surfaces.

    2 on a rim of 2 to 4 voxels and on smooth patches of 10 to 25 % of the volume.
    """
    import numpy as np

    size = len(surface)
    axis = np.arange(size, dtype=np.float32)
    doubt = noise_field(rng, 0.3 * size)((axis, axis, axis))
    label = surface.astype(np.uint8)
    label[doubt > np.quantile(doubt[::2, ::2, ::2], 1 - rng.uniform(0.10, 0.25))] = 2
    rim = int(rng.integers(2, 5))
    inner = (slice(rim, size - rim),) * 3
    framed = np.full_like(label, 2)
    framed[inner] = label[inner]
    return framed


def plan(options: Options) -> list[tuple[str, str, str, int, int]]:
    """The volumes to write, one row each; scrolls take turns.

    Args:
        options: what to write.

    Returns:
        Part (``train``, ``test``), id, scroll id, number of the scroll, number of the chunk.
    """
    rows = []
    for part, first, count in (("train", 0, options.train), ("test", FIRST_TEST, options.test)):
        for index in range(count):
            number, chunk = index % options.scrolls, first + index // options.scrolls
            rows.append((part, f"{scroll_id(number)}{chunk:04d}", scroll_id(number), number, chunk))
    return rows


def scroll_id(number: int) -> str:
    return str(26001 + number)


def volumes(options: Options) -> Iterator[tuple[str, str, str, np.ndarray, np.ndarray]]:
    """Each volume as (part, id, scroll id, image, label), in the order of :func:`plan`.

    A volume depends on the seed, its scroll, its chunk and the size only: more volumes leave the
    others as they are.
    """
    import numpy as np

    scrolls = [make_scroll(options.seed, number) for number in range(options.scrolls)]
    for part, name, scroll, number, chunk in plan(options):
        rng = np.random.default_rng([options.seed, number, chunk])
        yield part, name, scroll, *make_volume(scrolls[number], options.size, rng)


def write(out: Path, options: Options) -> bool:
    """Write the data set to ``out``, whole or not at all.

    False: it is there already, from the same options.

    Raises UserError where ``out`` holds anything else.
    """
    if _is_there(out, options):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        for part in ("train", "test"):
            _write_table(partial, part, options)
        for part, name, _, image, label in progress(
            volumes(options), "volumes", options.train + options.test
        ):
            stop.raise_if_stopped()
            write_tiff(partial / f"{part}_images" / f"{name}.tif", image)
            write_tiff(partial / f"{part}_labels" / f"{name}.tif", label)
        _finish(partial, options)
        partial.rename(out)  # onto an empty folder too, but never onto one with content
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _write_table(folder: Path, part: str, options: Options) -> None:
    from pipeline import files

    lines = [
        "id,scroll_id",
        *(f"{name},{scroll}" for p, name, scroll, *_ in plan(options) if p == part),
    ]
    files.write_text(folder / f"{part}.csv", "\n".join(lines) + "\n")
    (folder / f"{part}_images").mkdir(parents=True)
    (folder / f"{part}_labels").mkdir(parents=True)


def write_tiff(path: Path, array: np.ndarray) -> None:
    import tifffile

    tifffile.imwrite(
        path, array, compression="lzw", photometric="minisblack", metadata=None, software=False
    )


def _facts(options: Options) -> dict[str, Any]:
    return {"generator": GENERATOR, "options": dataclasses.asdict(options)}


def _finish(folder: Path, options: Options) -> None:
    from pipeline import files

    sizes = {
        str(p.relative_to(folder)): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    files.write_json(folder / MARKER, {**_facts(options), "files": sizes})


def _is_there(out: Path, options: Options) -> bool:
    """Whether ``out`` holds this very data set.

    False: it is absent or empty. Raises UserError for anything else.
    """
    from pipeline import files

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    suggestion = "Give another folder, or remove this one first."
    if not (out / MARKER).is_file():
        raise UserError(
            f"{out} exists and was not written by this command (it has no {MARKER}). {suggestion}"
        )
    found = files.read_json(out / MARKER)
    wanted = _facts(options)
    if {key: found.get(key) for key in wanted} != wanted:
        raise UserError(
            f"{out} holds a data set of other options ({found.get('options')}, not"
            f" {wanted['options']}). {suggestion}"
        )
    changed = [
        name
        for name, size in found["files"].items()
        if not (out / name).is_file() or (out / name).stat().st_size != size
    ]
    if changed:
        raise UserError(
            f"{out}: {len(changed)} files are missing or changed: {', '.join(changed[:10])}. Remove"
            " the folder and run again."
        )
    return True


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=str(__doc__).split("\n\n")[0],
        allow_abbrev=False,
        formatter_class=cli.HelpFormatter,
    )
    p.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="folder to write; must be absent, empty, or hold the same data set",
    )
    p.add_argument("--size", type=int, default=64, help="edge of the cubic volumes, voxels")
    p.add_argument("--train", type=int, default=15, help="number of training volumes")
    p.add_argument("--test", type=int, default=3, help="number of test volumes")
    p.add_argument("--scrolls", type=int, default=3, help="scrolls, the groups of volumes")
    p.add_argument("--seed", type=int, default=42, help="the same seed gives the same bytes")
    return p


def work(arguments: argparse.Namespace) -> int:
    """The whole command; returns its exit code."""
    values = vars(arguments)
    options = Options(**{f.name: values[f.name] for f in dataclasses.fields(Options)})
    wrote = write(arguments.out, options)
    what = (
        f"{options.train} training and {options.test} test volumes of {options.size}^3 voxels from"
        f" {options.scrolls} scrolls"
    )
    logger.info(f"{arguments.out}: {what}" + ("" if wrote else "; they were there already"))
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), lambda **options: work(argparse.Namespace(**options)), argv)


if __name__ == "__main__":
    raise SystemExit(main())
