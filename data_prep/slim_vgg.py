"""Take the first layers of VGG16 out of its weight file, for the loss 'perceptual'.

    python data_prep/slim_vgg.py vgg16-397923af.pth [OUT.safetensors]

The file is https://download.pytorch.org/models/vgg16-397923af.pth; its hash is checked; of 528 MB 7
are kept. Without OUT the result goes to torch's cache, where the loss finds it by itself; with OUT,
name it in the config: losses: - {name: perceptual, options: {weights: OUT.safetensors}}. The
SHA-256 of the source is kept in the result's header.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.records import DONE, UserError

logger = logging.getLogger(f"pipeline.{Path(__file__).stem}")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=str(__doc__),
        formatter_class=cli.RawHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("source", type=Path, help="the published file of weights, vgg16-397923af.pth")
    p.add_argument(
        "out", type=Path, nargs="?", help="file to write, .safetensors; default: in torch's cache"
    )
    p.add_argument(
        "--deepest",
        default="relu3_3",
        metavar="LAYER",
        help="last layer to keep, relu1_1 to relu5_3",
    )
    p.add_argument(
        "--accept-other",
        action="store_true",
        help="take a file with another hash; its weights may expect other inputs",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(
        parser(),
        lambda source, out, deepest, accept_other: slim(source, out, deepest, accept_other),
        argv,
    )


def slim(source: Path, out: Path | None, deepest: str, accept_other: bool) -> int:
    """Write the slim file and say what it holds.

    Raises UserError for a wrong layer, name or source.
    """
    from pipeline.config import nearest
    from pipeline.losses import vgg

    if deepest not in vgg.LAYERS:
        raise UserError(f"--deepest {deepest} is no layer of VGG16. {nearest(deepest, vgg.LAYERS)}")
    if out is not None and out.suffix != ".safetensors":
        raise UserError(
            f"{out}: the result is a safetensors file; give it a name that ends in .safetensors."
        )
    if out is None and accept_other:
        raise UserError("--accept-other needs OUT: the cache is for the published weights only.")
    if not source.is_file():
        raise UserError(f"{source}: no such file. Fetch {vgg.URL}")
    weights, digest = vgg.read_pickled(
        source, deepest if out else vgg.deepest([deepest, vgg.USUAL]), accept_other
    )
    if not digest.startswith(vgg.HASH):
        logger.warning(
            f"{source} is not {vgg.NAME} (SHA-256 {digest[:8]}...); the loss brings images to the"
            " range of the latter"
        )
    out = out or vgg.slim_path(deepest)
    vgg.write_slim(out, weights, digest)
    logger.info(
        f"{out}: VGG16 up to {deepest}, {sum(w.numel() for w in weights.values()):,} weights,"
        f" {out.stat().st_size / 1e6:.1f} MB"
    )
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
