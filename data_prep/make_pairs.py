"""Make training pairs out of sharp photographs.

    python data_prep/make_pairs.py PHOTOGRAPHS OUT --kind blur --variants 8 --crop 384
    python data_prep/make_pairs.py PHOTOGRAPHS OUT --kind tone --held-out chelsea coffee
    python data_prep/make_pairs.py PHOTOGRAPHS OUT --kind blemish --scale 4          # 24 megapixels

The kinds are for configs/deblur.yaml (blur), image_to_image.yaml (tone) and retouch.yaml (blemish).
PHOTOGRAPHS are files or folders. OUT gets src/NAME_00.png and dst/NAME_00.png (8 bits, RGB),
split.json with the held-out photographs under "test" (no photograph is on both sides) and
pairs.json with what was done to each pair.

blur: src is the mean of frames that a camera takes on a smooth random path, after the GoPro set
(Nah et al., CVPR 2017): averaged in linear light (gamma 2.2), with shifts of parts of a pixel. dst
is the photograph, which lies at the mean of the path: the set takes the frame in the middle of it,
and how far that is from the mean (8 % of the path here) nothing in the blurred image tells. The rim
that a path reaches beyond is cut off, so that nothing is invented at borders.

tone: dst is one fixed change of colour and tone, the same for every photograph, so that it can be
learned.

blemish: dst is the photograph, src the same with stains, spots, hairs, scratches and dust, as a
retoucher removes them; --clean of the pairs have none, for a clean photograph is to be left alone.
With the usual settings of data.change they make up about 0.5 to 6 % of the pixels.

What a pair looks like depends on (seed, name of the photograph, variant) alone.

--vary makes few photographs stand for more: each variant of one that is not held out is zoomed,
turned, mirrored and recoloured before it is degraded. Unlike an augmentation of the pair this
leaves the degradation as it is, so that a brown spot stays one.
"""

from __future__ import annotations

import argparse
import logging
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import cli
from pipeline.config import nearest
from pipeline.progress import progress
from pipeline.records import DONE, UserError

logger = logging.getLogger(f"pipeline.{Path(__file__).stem}")

if TYPE_CHECKING:
    import numpy as np

GAMMA = 2.2
"""Exponent between the values of a file and light."""

KNOTS = 5
"""Points through which a camera path is drawn: it bends two or three times in an exposure."""

SPLINE_REACH = 4
"""Pixels beyond a path's end that still enter a cubic spline noticeably (0.268^4 = 0.5 %)."""

HELD_OUT = 0.2
"""Share of the photographs that is held out where none are named."""

HUE, LOCAL_CONTRAST, LOCAL_SIGMA = 25.0, 0.6, 6.0
"""What tone does: degrees of hue, gain of detail, and the size of detail in pixels."""

ZOOM, GAMMAS, SATURATION, GAIN = (0.5, 1.5), (0.6, 1.7), (0.2, 1.4), (0.75, 1.0)
"""What --vary draws from: enlargement, exponent of the values, factor of the saturation and of each
channel; the hue is any.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What every pair is made by.

    ``length``: pixels of a camera path, drawn between these; ``crop`` None: whole photographs.

    ``blemishes``: per megapixel, drawn between these (at ``scale`` 1: larger ones are fewer);
    ``clean``: share of pairs without any.
    """

    kind: str
    seed: int
    variants: int
    crop: tuple[int, int] | None
    frames: int
    length: tuple[float, float]
    blemishes: tuple[float, float]
    scale: float
    clean: float
    only: tuple[str, ...]
    vary: bool

    @property
    def margin(self) -> int:
        """Pixels cut off all around."""
        return math.ceil(self.length[1]) + SPLINE_REACH if self.kind == "blur" else 0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=cli.RawHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("photographs", type=Path, nargs="+", help="sharp photographs, files or folders")
    p.add_argument(
        "out", type=Path, help="folder to write; files that are there already are written anew"
    )
    p.add_argument(
        "--kind", choices=["blur", "tone", "blemish"], required=True, help="what is to be undone"
    )
    p.add_argument("--variants", type=int, default=1, help="pairs made of each photograph")
    p.add_argument(
        "--crop",
        type=int,
        nargs="+",
        metavar="N",
        help="height and width, or the edge, of a random part; default: all of it",
    )
    p.add_argument("--frames", type=int, default=31, help="blur: number of averaged frames")
    p.add_argument(
        "--length",
        type=float,
        nargs=2,
        default=(5.0, 25.0),
        metavar=("LOW", "HIGH"),
        help="blur: pixels of the path",
    )
    p.add_argument(
        "--blemishes",
        type=float,
        nargs=2,
        default=(20.0, 160.0),
        metavar=("LOW", "HIGH"),
        help="blemish: number per megapixel",
    )
    p.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help=(
            "blemish: size, 1 for photographs of about a megapixel; the number falls with its"
            " square"
        ),
    )
    p.add_argument(
        "--clean", type=float, default=0.1, help="blemish: share of pairs that have none"
    )
    p.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="KIND",
        help="blemish: of stain, spot, line and dust only these; default: all",
    )
    p.add_argument(
        "--vary",
        action="store_true",
        help="zoom, turn, mirror and recolour each variant that is to be trained on",
    )
    p.add_argument(
        "--held-out",
        nargs="+",
        metavar="NAME",
        help="photographs under 'test'; default: one in five, drawn by the seed",
    )
    p.add_argument("--seed", type=int, default=42, help="the same seed gives the same pairs")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), lambda **options: prepare(argparse.Namespace(**options)), argv)


def prepare(arguments: argparse.Namespace) -> int:
    """Write all pairs and say what was made.

    Raises UserError where an option or a photograph cannot be used.
    """
    from pipeline import files

    recipe = recipe_of(arguments)
    photographs = find(arguments.photographs)
    held_out = choose(list(photographs), arguments.held_out, recipe.seed)
    made: dict[str, Mapping[str, Any]] = {}
    for name, path in progress(photographs.items(), "making pairs", len(photographs)):
        made |= dict(
            write(
                name,
                path,
                replace(recipe, vary=recipe.vary and name not in held_out),
                arguments.out,
            )
        )
    sides = {
        side: [
            i for i, facts in made.items() if (facts["photograph"] in held_out) == (side == "test")
        ]
        for side in ("train", "test")
    }
    files.write_json(arguments.out / "pairs.json", {"recipe": recipe, "pairs": made})
    files.write_json(arguments.out / "split.json", sides)
    logger.info(
        f"{arguments.out}: {len(sides['train'])} pairs to train on, {len(sides['test'])} to test"
        f" ({', '.join(sorted(held_out)) or 'none'})"
    )
    logger.info(
        r"Folds that keep a photograph together: --set data.folds.by=group"
        r" data.folds.pattern='^(.+)_\d+$'"
    )
    return DONE


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Options, checked."""
    import blemishes

    crop = (
        None
        if arguments.crop is None
        else tuple(arguments.crop * (2 if len(arguments.crop) == 1 else 1))
    )
    (low, high), (few, many) = arguments.length, arguments.blemishes
    if crop is not None and (len(crop) != 2 or min(crop) < 1):
        raise UserError(f"--crop {arguments.crop}: give one positive number, or height and width.")
    if arguments.variants < 1 or (
        arguments.variants > 1 and arguments.kind == "tone" and crop is None and not arguments.vary
    ):
        raise UserError(
            f"--variants {arguments.variants}: at least 1; more than 1 of kind tone needs --crop or"
            " --vary, or they come out equal."
        )
    if arguments.frames < 3:
        raise UserError(f"--frames {arguments.frames}: at least 3, or there is no path.")
    if not 0 < low <= high:
        raise UserError(f"--length {low} {high}: must satisfy 0 < LOW <= HIGH.")
    if not 0 < few <= many < math.inf:
        raise UserError(
            f"--blemishes {few} {many}: must satisfy 0 < LOW <= HIGH. For pairs without any there"
            " is --clean."
        )
    if not 0 < arguments.scale < math.inf:
        raise UserError(f"--scale {arguments.scale}: must be above 0; 4 suits 24 megapixels.")
    if not 0 <= arguments.clean < 1:
        raise UserError(
            f"--clean {arguments.clean}: a share from 0 to below 1; where all pairs are clean there"
            " is nothing to learn."
        )
    same = {
        key: getattr(arguments, key)
        for key in ("kind", "seed", "variants", "frames", "scale", "clean", "vary")
    }
    if unknown := [kind for kind in arguments.only if kind not in blemishes.KINDS]:
        raise UserError(
            f"--only {unknown[0]!r}: no such kind of blemish."
            f" {nearest(unknown[0], blemishes.KINDS)}"
        )
    return Recipe(
        crop=crop, only=tuple(arguments.only), length=(low, high), blemishes=(few, many), **same
    )


def find(paths: Sequence[Path]) -> dict[str, Path]:
    """Photographs by name in natural order.

    Raises UserError for a missing path, two of one name, or none at all.
    """
    from pipeline import files
    from pipeline.data.listing import natural

    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder.")
        inside = (
            [
                p
                for p in path.iterdir()
                if p.is_file() and files.is_image(p) and not p.name.startswith(".")
            ]
            if path.is_dir()
            else [path]
        )
        for photograph in sorted(inside, key=natural):
            name = files.case_id(photograph)
            if name in found:
                raise UserError(
                    f"{photograph}: has the same name as {found[name]}. Rename one of them."
                )
            found[name] = photograph
    if not found:
        raise UserError(
            f"{', '.join(map(str, paths))}: no photograph. Give files or folders of"
            f" {', '.join(files.SUFFIXES)}."
        )
    return found


def choose(names: Sequence[str], held_out: Sequence[str] | None, seed: int) -> frozenset[str]:
    """Choose the photographs to hold out.

    Args:
        names: all photographs.
        held_out: those that the user names; None: a fifth, at least one, never all.
        seed: of the draw.

    Returns:
        Their names.

    Raises:
        UserError: where a name is unknown, or all are named.
    """
    import numpy as np

    if held_out is None:
        count = min(max(1, round(HELD_OUT * len(names))), len(names) - 1)
        return frozenset(np.random.default_rng(seed).permutation(sorted(names))[:count].tolist())
    for name in held_out:
        if name not in names:
            raise UserError(f"--held-out {name!r}: no such photograph. {nearest(name, names)}")
    if len(set(held_out)) == len(names):
        raise UserError("--held-out names every photograph: nothing is left to train on.")
    return frozenset(held_out)


def write(
    name: str, path: Path, recipe: Recipe, out: Path
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Write all variants of one photograph; yields their names and what was done."""
    import numpy as np

    from pipeline import files

    light = photograph_of(path)
    if min(light.shape[1:]) <= 2 * recipe.margin:
        raise UserError(
            f"{path}: {light.shape[1:]} pixels leave nothing inside a rim of {recipe.margin}. Take"
            " it away, or lower --length."
        )
    ideal = toned(light) if recipe.kind == "tone" else light
    for variant in range(recipe.variants):
        draw = np.random.default_rng([recipe.seed, zlib.crc32(name.encode()), variant])
        given, wanted = light, ideal
        if recipe.vary:
            given = varied(light, draw, recipe)
            wanted = toned(given) if recipe.kind == "tone" else given
        box = place(draw, given.shape[1:], recipe)
        source, facts = degraded(given[box], draw, recipe)
        inner = (slice(None), *(slice(recipe.margin, n - recipe.margin) for n in source.shape[1:]))
        files.write(out / "src" / f"{name}_{variant:02}.png", to_bytes(source[inner]))
        files.write(out / "dst" / f"{name}_{variant:02}.png", to_bytes(wanted[box][inner]))
        yield (
            f"{name}_{variant:02}",
            {"photograph": name, "box": [[s.start, s.stop] for s in box[1:]], **facts},
        )


def degraded(
    part: np.ndarray, draw: np.random.Generator, recipe: Recipe
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """The input of a pair, from a part ``(3, Y, X)`` of a photograph, and what was done to it."""
    import numpy as np

    if recipe.kind == "blur":
        path = camera_path(draw, recipe.frames, draw.uniform(*recipe.length))
        return blurred(part, path), {"path": np.round(path, 4)}
    return blemished(part, draw, recipe) if recipe.kind == "blemish" else (part, {})


def photograph_of(path: Path) -> np.ndarray:
    """A photograph as ``(3, Y, X)`` on 0..1, grey in three equal channels.

    Raises UserError for other numbers of channels.
    """
    import numpy as np

    from pipeline import files
    from pipeline.metrics.image import intensities

    image = intensities(files.read(path, 2)[0])
    if len(image) not in (1, 3):
        raise UserError(f"{path}: has {len(image)} channels; a photograph has 1 or 3. Convert it.")
    return np.clip(np.broadcast_to(image, (3, *image.shape[1:])), 0, 1)


def varied(image: np.ndarray, draw: np.random.Generator, recipe: Recipe) -> np.ndarray:
    """A random part of a photograph, varied in geometry and colour.

    Args:
        image: ``(3, Y, X)`` on 0..1.
        draw: random numbers.
        recipe: of the pairs.

    Returns:
        The part, turned by quarters, mirrored, zoomed to a crop and its rim, and recoloured.
    """
    import numpy as np
    from blemishes import between
    from skimage.transform import resize

    from pipeline.data.augment.colours import colour_matrix

    turned = np.rot90(image, int(draw.integers(4)), axes=(1, 2))
    mirrored = turned[:, :, ::-1] if draw.random() < 0.5 else turned
    factor, space = between(draw, *ZOOM), mirrored.shape[1:]
    cut = (
        space
        if recipe.crop is None
        else [round((c + 2 * recipe.margin) / factor) for c in recipe.crop]
    )
    part = mirrored[part_of(draw, space, cut)]
    size = 3, *(max(round(n * factor), 2 * recipe.margin + 1) for n in part.shape[1:])
    zoomed = resize(
        part.astype(np.float64),
        size,
        order=3 if factor > 1 else 1,
        mode="reflect",
        anti_aliasing=factor < 1,
    )
    values = np.clip(np.asarray(zoomed), 0, 1) ** between(draw, *GAMMAS)
    colours = (
        colour_matrix(draw.uniform(-math.pi, math.pi), draw.uniform(*SATURATION))
        * draw.uniform(*GAIN, 3)[:, None]
    )
    return np.clip(np.tensordot(colours, values, axes=1), 0, 1).astype(image.dtype)


def place(
    draw: np.random.Generator, space: Sequence[int], recipe: Recipe
) -> tuple[slice, slice, slice]:
    """A random part that leaves ``crop`` after the rim is cut off.

    Args:
        draw: random numbers.
        space: sides of the photograph in pixels; where it is smaller, the part is all of it.
        recipe: of the pairs.

    Returns:
        Slices of ``(C, Y, X)``.
    """
    return part_of(
        draw, space, space if recipe.crop is None else [c + 2 * recipe.margin for c in recipe.crop]
    )


def part_of(
    draw: np.random.Generator, space: Sequence[int], sizes: Sequence[int]
) -> tuple[slice, slice, slice]:
    """Slices of ``(C, *space)``: a random part of these sizes, or all of a shorter axis."""
    fitting = [min(n, size) for n, size in zip(space, sizes, strict=True)]
    starts = [int(draw.integers(0, n - size + 1)) for n, size in zip(space, fitting, strict=True)]
    y, x = (slice(start, start + size) for start, size in zip(starts, fitting, strict=True))
    return slice(None), y, x


def to_bytes(image: np.ndarray) -> np.ndarray:
    """0..1 as uint8, rounded."""
    import numpy as np

    return np.stack(
        [np.rint(np.clip(channel, 0, 1) * 255).astype(np.uint8) for channel in image]
    )  # one at a time: large photographs


def blemished(
    part: np.ndarray, draw: np.random.Generator, recipe: Recipe
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Copy a part of a photograph and draw blemishes onto it.

    Args:
        part: ``(3, Y, X)`` on 0..1.
        draw: random numbers.
        recipe: of the pairs. A part that is not to stay clean gets one blemish at least.

    Returns:
        The copy, and the number of each kind.
    """
    import blemishes

    if draw.random() < recipe.clean:
        return part, {"blemishes": dict.fromkeys(blemishes.KINDS, 0)}
    density = blemishes.between(draw, *recipe.blemishes) / recipe.scale**2
    source, count = part.copy(), max(1, int(draw.poisson(density * part[0].size / 1e6)))
    return source, {"blemishes": blemishes.add(source, count, draw, recipe.scale, recipe.only)}


def camera_path(draw: np.random.Generator, frames: int, length: float) -> np.ndarray:
    """Path of a camera: equal steps in time along a smooth random curve.

    Args:
        draw: random numbers.
        frames: number of steps.
        length: of the curve, in pixels.

    Returns:
        Shifts ``(frames, 2)`` in pixels (y, x), whose mean is 0.
    """
    import numpy as np
    from scipy.interpolate import CubicSpline

    # Steps that keep some of their direction: a hand drifts and does not jump.
    steps = np.cumsum(draw.normal(size=(KNOTS - 1, 2)), axis=0) + draw.normal(size=2)
    curve = CubicSpline(
        np.linspace(0, 1, KNOTS), np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    )
    arc = np.linalg.norm(np.diff(curve(np.linspace(0, 1, 1001)), axis=0), axis=1).sum()
    points = curve(np.linspace(0, 1, frames)) * (length / arc)
    return points - points.mean(axis=0)


def blurred(image: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Mean of the shifted frames of an image, taken in linear light.

    A shift by a cubic spline is a convolution of the spline's coefficients, and so is the mean of
    many: one kernel does them all.

    Args:
        image: ``(C, Y, X)`` on 0..1.
        path: shifts ``(frames, 2)`` in pixels.

    Returns:
        ``(C, Y, X)``; true where no frame reaches beyond the border.
    """
    import numpy as np
    from scipy.ndimage import spline_filter
    from scipy.signal import oaconvolve

    kernel = spline_kernel(path)
    light = [
        oaconvolve(spline_filter(channel.astype(np.float64) ** GAMMA, 3), kernel, mode="same")
        for channel in image
    ]
    return np.clip(np.stack(light), 0, 1) ** (1 / GAMMA)


def spline_kernel(path: np.ndarray) -> np.ndarray:
    """Kernel that turns cubic spline coefficients into the mean of shifted frames.

    Args:
        path: shifts ``(frames, 2)`` in pixels.

    Returns:
        ``(2 r + 1, 2 r + 1)``, centred.
    """
    import numpy as np
    from scipy.interpolate import BSpline

    basis = BSpline.basis_element(np.arange(-2, 3), extrapolate=False)
    reach = math.ceil(float(np.abs(path).max())) + 2
    at = np.arange(-reach, reach + 1)
    y, x = (np.nan_to_num(basis(at - path[:, axis, None])) for axis in (0, 1))
    return np.einsum("fy,fx->yx", y, x) / len(path)


def toned(image: np.ndarray) -> np.ndarray:
    """Change colour and tone by a fixed rule: a filmic curve, hues turned, detail raised.

    The curve is applied in linear light. Detail is what a Gaussian of ``LOCAL_SIGMA`` pixels takes
    away.

    Args:
        image: ``(3, Y, X)`` on 0..1.

    Returns:
        ``(3, Y, X)`` on 0..1.

    Source:
        The curve is K. Narkowicz's fit of ACES (2015).
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter

    from pipeline.data.augment.colours import colour_matrix

    light = image.astype(np.float64) ** GAMMA
    film = np.clip(
        light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14), 0, 1
    ) ** (1 / GAMMA)
    turned = np.einsum("ij,jyx->iyx", colour_matrix(math.radians(HUE), 1.0), film)
    luma = np.einsum("i,iyx->yx", np.array([0.2126, 0.7152, 0.0722]), turned)
    return np.clip(turned + LOCAL_CONTRAST * (luma - gaussian_filter(luma, LOCAL_SIGMA)), 0, 1)


if __name__ == "__main__":
    raise SystemExit(main())
