"""Pack a folder of predictions into a checked submission.

A flat zip of ``ID.tif``, or a table of run lengths::

    python -m pipeline.submit --predictions DIR --test-dir DIR --out submission.zip
    # predict and fuse first
    python -m pipeline.submit --spec ensembles/NAME.yaml --test-dir DIR --out submission.zip

Nothing is written unless every test volume has exactly one valid prediction. Equal predictions give
equal bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.records import DONE


def parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m pipeline.submit``.

    Returns:
        A parser whose options are the arguments of :func:`submit`.
    """
    p = cli.parser("submit", "Pack a folder of answers into a checked submission.")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--predictions", type=Path, metavar="DIR", help="folder of answers, ID.tif")
    source.add_argument(
        "--spec",
        type=Path,
        metavar="FILE",
        help="ensemble to run on the test images first, see pipeline.ensemble",
    )
    p.add_argument(
        "--test-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the test images; they say which ids there are",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("submission.zip"),
        metavar="FILE",
        help="file to write; an older one is replaced",
    )
    p.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="with --spec: folder for its answers; default: <out without suffix>_predictions",
    )
    p.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where --spec is predicted; auto: CUDA where there is one, else the CPU",
    )
    p.add_argument(
        "--format",
        choices=["tiff-zip", "rle-csv"],
        default="tiff-zip",
        help=(
            "tiff-zip: flat <id>.tif; rle-csv: columns id,rle with 'start length' pairs, counted"
            " from 1 in C order (last axis fastest)"
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
    return cli.run(parser(), submit, argv)


def submit(
    *,
    predictions: Path | None,
    spec: Path | None,
    test_dir: Path,
    out: Path,
    work: Path | None,
    device: str,
    format: str,  # noqa: A002 - the option's name
) -> int:
    """Write a submission.

    Args:
        predictions: folder of predictions; None: ``spec`` is given.
        spec: ensemble to run on the test images first; None: ``predictions`` is given.
        test_dir: folder of the test images, which define the ids.
        out: file to write.
        work: with ``spec``: folder for its predictions; None: beside ``out``.
        device: with ``spec``: ``auto``, ``cpu`` or ``cuda``.
        format: ``tiff-zip`` or ``rle-csv``.

    Returns:
        Exit code.
    """
    if spec is not None:
        from pipeline.workflows.submit_ensemble import submit_ensemble

        submit_ensemble(spec, test_dir, out, format, work=work, device=device)
    elif predictions is not None:  # packing needs no network
        from pipeline.workflows.submit import write_submission

        write_submission(predictions, test_dir, out, format)
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
