r"""Score a folder of predictions against a folder of labels or of target images.

::

    python -m pipeline.evaluate --predictions DIR --labels DIR --metrics dice surface_dice \
        --out scores.json
    python -m pipeline.evaluate --predictions DIR --labels DST --metrics psnr ssim \
        --inputs SRC --out scores.json
    python -m pipeline.evaluate --predictions DIR --labels DST --metrics psnr ssim retouch \
        --inputs SRC --change by=colour threshold=8

Images are scored as their files have them, each divided by the largest value of its integer type
(floats: as they are).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import cli


def parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m pipeline.evaluate``.

    Returns:
        A parser whose options are the arguments of :func:`evaluate`.
    """
    p = cli.parser(
        "evaluate",
        "Score a folder of answers against a folder of labels, or of images against their targets.",
    )
    p.add_argument(
        "--predictions", type=Path, required=True, help="folder of answers, ID.tif and the like"
    )
    p.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="folder of labels, or of target images, with the same ids",
    )
    p.add_argument(
        "--metrics",
        nargs="+",
        default=["dice", "surface_dice", "components"],
        metavar="NAME",
        help=(
            "entries of METRICS, all of labels or all of images (psnr, ssim, mae, retouch); options"
            " behind a colon: ssim:kernel=3d"
        ),
    )
    p.add_argument(
        "--inputs",
        type=Path,
        help=(
            "images: folder of the inputs with the same ids, for the row 'do nothing' and the gain"
            " over it; retouch: also for the mask"
        ),
    )
    p.add_argument(
        "--change",
        nargs="+",
        metavar="KEY=VALUE",
        help=(
            "retouch: how the mask of what was to change is made from input and target, as under"
            " data.change of a config"
        ),
    )
    p.add_argument(
        "--masks",
        type=Path,
        help=(
            "retouch: folder of predicted masks, grey 0..255, for mask_dice; default:"
            " PREDICTIONS/masks where it is there"
        ),
    )
    p.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="split.json: only the ids under its 'test' are scored",
    )
    p.add_argument(
        "--soft",
        type=Path,
        help=(
            "folder of probabilities, for roc_auc and pr_auc; default: PREDICTIONS/soft where it is"
            " there"
        ),
    )
    p.add_argument(
        "--fov",
        type=Path,
        help=(
            "folder of field-of-view masks with the same ids: metrics inside it and over the full"
            " image"
        ),
    )
    p.add_argument(
        "--padded",
        type=int,
        nargs="+",
        metavar="N",
        help="with --fov: also over the image with background up to this size",
    )
    p.add_argument(
        "--binarise",
        type=float,
        metavar="X",
        help=(
            "values above X are foreground: labels kept as JPEG or as greys, answers that are"
            " probabilities"
        ),
    )
    p.add_argument(
        "--partial",
        action="store_true",
        help=(
            "score the labels that have an answer, and say how many have none; a fold's oof/ needs"
            " no option: its cases are known"
        ),
    )
    p.add_argument(
        "--workers",
        type=int,
        help="cases scored at a time; default: one a core, fewer where memory is short",
    )
    p.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    p.add_argument(
        "--ignore-label",
        default="auto",
        help=(
            "label value that is not counted; none; auto: as the predictions' summary.json or the"
            " labels' dataset.json says, else 2 with the metric competition, else none"
        ),
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: words of the command line; None: ``sys.argv``.

    Returns:
        Exit code.
    """
    return cli.run(parser(), evaluate, argv)


def evaluate(
    *, metrics: list[str], change: list[str] | None, out: Path | None, **options: Any
) -> int:
    """Score predictions and print a table.

    Args:
        metrics: entries of METRICS, with options behind a colon.
        change: ``KEY=VALUE`` of ``data.change``, for ``retouch``; None: not given.
        out: JSON file for all numbers; None: none is written.
        **options: further fields of :class:`pipeline.workflows.evaluate.Request`.

    Returns:
        Exit code.
    """
    from pipeline.metrics.names import read_metric
    from pipeline.reporting import tables
    from pipeline.workflows import evaluate as workflow

    request = workflow.Request(
        metrics=[read_metric(text) for text in metrics], change=change, out=out, **options
    )
    scores = workflow.evaluate(request)
    print(tables.of_evaluation(scores))
    return workflow.code_of(scores)


if __name__ == "__main__":
    raise SystemExit(main())
