"""Command-line options that choose the networks of a prediction and how they are applied.

:class:`pipeline.inference.options.ModelOptions` has them by the same names.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from pipeline.records import ALL, FoldName

DEVICE = "where to compute; auto: CUDA where there is one, else the CPU"
"""Help text of ``--device``."""


def add_model_options(p: argparse.ArgumentParser) -> None:
    """Add these options to a parser.

    Args:
        p: parser of a command.
    """
    p.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="run folder (all folds), fold folder, or model file",
    )
    p.add_argument(
        "--folds",
        type=fold,
        nargs="+",
        metavar="N",
        help="which folds of the run, e.g. 0 1; all: the one model of all cases; default: every"
        " finished fold",
    )
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help=DEVICE)
    p.add_argument(
        "--backend",
        choices=["torch", "onnx", "openvino"],
        default="torch",
        help="what computes; the others need the extra cpu",
    )
    size = p.add_mutually_exclusive_group()
    size.add_argument(
        "--patch-size",
        type=int,
        nargs="+",
        metavar="N",
        help="tile size D H W; one number for all axes; default: as trained",
    )
    size.add_argument(
        "--whole", action="store_true", help="each image in one piece, whatever its size"
    )
    p.add_argument(
        "--overlap",
        type=int,
        help="voxels that neighbouring tiles share; default: as in the config",
    )
    p.add_argument(
        "--halo",
        type=_halo,
        metavar="N|auto",
        help="voxels at inner tile faces that are thrown away; auto: as far as the network"
        " sees; default: as in the config",
    )
    p.add_argument(
        "--norms",
        choices=["tile", "frozen", "exact"],
        help="statistics of group and instance norm: of each tile, or of the whole"
        " image; default: as in the config",
    )
    p.add_argument("--batch", type=int, help="tiles per forward pass; default: as in the config")
    p.add_argument(
        "--threshold",
        type=float,
        help="probability from which a voxel is foreground; default: as in the config",
    )
    p.add_argument(
        "--min-component-size",
        type=int,
        help="remove components with fewer voxels; 0: keep all; default: as in the config",
    )
    p.add_argument(
        "--max-hole-size",
        type=int,
        help="fill holes of up to this many voxels; 0: none; default: as in the config",
    )
    p.add_argument(
        "--kernel-size",
        type=int,
        help="edge of the closing kernel in voxels; 0: none; default: as in the config",
    )
    p.add_argument(
        "--separate-instances", action="store_true", help="label touching parts separately"
    )
    p.add_argument(
        "--tta",
        action="store_const",
        const=True,
        help="average over all flips, whatever the config says",
    )
    p.add_argument(
        "--scales",
        type=float,
        nargs="+",
        metavar="F",
        help="average over tiles resized by these factors, e.g. 0.75 1 1.25;"
        " default: as in the config",
    )
    p.add_argument(
        "--model",
        choices=["auto", "best", "swa", "last"],
        help="which weights of a fold; auto, the default: the better on its held-out cases",
    )
    p.add_argument(
        "--allow-missing-folds",
        action="store_true",
        help="predict with a run whose folds are not all complete",
    )


def fold(text: str) -> FoldName:
    """Type of options that name folds.

    Args:
        text: a whole number, or ``all``.

    Returns:
        The number, or ``all``.

    Raises:
        argparse.ArgumentTypeError: for another text.

    Example:
        >>> fold("3"), fold("all")
        (3, 'all')
    """
    try:
        return ALL if text == ALL else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no fold: give its number, or all: the one model of all cases"
        ) from None


def _halo(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else int(text)
