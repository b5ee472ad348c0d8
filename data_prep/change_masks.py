"""Write the change masks that training makes from pairs as pictures to look at.

    python data_prep/change_masks.py SRC DST OUT --config configs/retouch.yaml
    python data_prep/change_masks.py SRC DST OUT --by colour --threshold 4

SRC and DST are folders of images before and after, paired by equal names. OUT gets ID.png, the mask
from 0 to 255, and ID_overlay.jpg, the image before with the mask tinted; files of these names that
are there already are written anew. The settings are those of data.change in the config, else its
defaults; an option replaces one of them. A file without its counterpart, a damaged one or a pair of
two sizes is listed and refused before anything is written. Nothing in SRC or DST is changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import prepare_gopro

from pipeline import cli, config
from pipeline.progress import progress
from pipeline.records import DONE, UserError

logger = logging.getLogger(f"pipeline.{Path(__file__).stem}")

if TYPE_CHECKING:
    import numpy as np

STRENGTH = 0.6
"""Share of the tint where the mask is full."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=cli.RawHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("src", type=Path, help="folder of images before retouching")
    p.add_argument("dst", type=Path, help="folder of images after it, of the same names")
    p.add_argument("out", type=Path, help="folder to write")
    p.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML whose data.change is taken, or the name of one that comes with the package, e.g."
        " retouch; default: each option's own default",
    )
    usual = config.Change()
    p.add_argument(
        "--by",
        choices=["value", "colour"],
        help=f"what is compared; default: as in the config, else {usual.by}",
    )
    for name, kind, text in (
        ("magnifier", float, "factor of the difference"),
        ("threshold", float, "a pixel has changed above this, in levels of 0..255"),
        ("opening", int, "radius in pixels of the opening that removes specks"),
        ("dilation", int, "radius in pixels by which what is left grows"),
        ("blur", float, "standard deviation in pixels of the soft edge"),
    ):
        p.add_argument(
            f"--{name}",
            type=kind,
            help=f"{text}; default: as in the config, else {getattr(usual, name):g}",
        )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), lambda **options: write_masks(argparse.Namespace(**options)), argv)


def write_masks(arguments: argparse.Namespace) -> int:
    """Write all masks and say how much of each pair they cover.

    Raises UserError with every file that cannot be used.
    """
    settings = settings_of(arguments)
    pairs = pairs_of(arguments.src, arguments.dst, arguments.out)
    logger.info(", ".join(f"{key} {value}" for key, value in dataclasses.asdict(settings).items()))
    shares: dict[str, float] = {}
    for pair in progress(pairs, "making masks", len(pairs)):
        shares[pair.id] = write_mask(pair, settings, arguments.out)
        logger.info(f"{pair.id}: {share_text(shares[pair.id])}")
    logger.info(f"\n{summary(shares)}\n{arguments.out}: {len(pairs)} masks, each with an overlay")
    return DONE


def settings_of(arguments: argparse.Namespace) -> config.Change:
    """``data.change`` of the config, else the defaults, with what options replace.

    Raises UserError where the config makes no mask.
    """
    settings: config.Change | None = config.Change()
    if arguments.config is not None:
        settings = config.load(config.find_config(arguments.config)).data.change
        if settings is None:
            raise UserError(
                f"{arguments.config}: data.change is null, so training makes no mask. Set it, {{}}"
                " for the usual settings."
            )
    given = {
        key: getattr(arguments, key)
        for key in dataclasses.asdict(settings)
        if getattr(arguments, key) is not None
    }
    return dataclasses.replace(settings, **given)


def pairs_of(src: Path, dst: Path, out: Path) -> list[prepare_gopro.Pair]:
    """Pairs by equal name, checked by their headers.

    Raises UserError with all faults, and where ``out`` is a folder of inputs.
    """
    if out.resolve() in (src.resolve(), dst.resolve()):
        raise UserError(
            f"{out}: is a folder of inputs, which masks of the same names would overwrite. Give"
            " another one."
        )
    pairs, faults = prepare_gopro.matched(src, dst)
    faults += [fault for pair in pairs for fault in prepare_gopro.unequal(pair)]
    if faults:
        more = (
            [f"... {len(faults) - prepare_gopro.SHOWN} more"]
            if len(faults) > prepare_gopro.SHOWN
            else []
        )
        raise UserError(
            "\n  ".join(
                [
                    f"{len(faults)} faults, nothing was written:",
                    *faults[: prepare_gopro.SHOWN],
                    *more,
                ]
            )
        )
    return pairs


def write_mask(pair: prepare_gopro.Pair, settings: config.Change, out: Path) -> float:
    """Write mask and overlay of a pair.

    Args:
        pair: the image before and after.
        settings: ``data.change``.
        out: folder of the pictures.

    Returns:
        Share of pixels that count as changed: a mask of ``change.LEVEL`` or more.
    """
    from pipeline import colours, files
    from pipeline.data import change

    image, target = (files.read(path, 2)[0] for path in (pair.src, pair.dst))
    soft = change.difference_mask(image, target, settings)
    files.write(out / f"{pair.id}.png", colours.to_bytes(soft))
    files.write(out / f"{pair.id}_overlay.jpg", overlay(image, soft))
    return float((soft >= change.LEVEL).mean())


def overlay(image: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """Tint an image by a mask.

    Args:
        image: ``(C, Y, X)`` as its file has it.
        soft: difference mask ``(1, Y, X)``, 0 to 1.

    Returns:
        RGB ``(3, Y, X)``, uint8.
    """
    import numpy as np

    from pipeline import colours
    from pipeline.metrics.image import intensities

    channels = image if len(image) == 3 else np.repeat(image[:1], 3, axis=0)
    tint = STRENGTH * soft[0]
    # Channel by channel: the floats of a whole large photograph are many.
    return np.stack(
        [
            colours.to_bytes((1 - tint) * intensities(c) + tint * (level / 255))
            for c, level in zip(channels, colours.GREEN, strict=True)
        ]
    )


def share_text(share: float) -> str:
    return f"{100 * share:.2f} %" if share else "empty"


def summary(shares: Mapping[str, float]) -> str:
    """A table of how the shares of changed pixels spread over the pairs."""
    import numpy as np

    values = 100 * np.array(list(shares.values()))
    rows = [("pairs", f"{len(values)}"), ("empty masks", f"{np.count_nonzero(values == 0)}")]
    rows += [
        (f"changed, {name}", f"{f(values):.2f} %")
        for name, f in (("least", np.min), ("median", np.median), ("mean", np.mean))
    ]
    rows += [("changed, most", f"{values.max():.2f} %")]
    return "\n".join(f"{name:<16}{value:>10}" for name, value in rows)


if __name__ == "__main__":
    raise SystemExit(main())
