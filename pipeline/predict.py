"""Predict whole images or volumes with one model, a fold, or all folds of a run.

::

    python -m pipeline.predict --checkpoint runs/surface --input DIR --output predictions

Each volume is read once, whatever the number of folds. One bad file does not stop the others (exit
code 3).

Inputs of more than 2^27 numbers are read and written by blocks, so that memory follows a tile and a
slab and not the volume. Several tasks may share the work: each runs the same command with
``--shard I/N`` and computes its part of the blocks of all inputs into ``OUTPUT/blocks``; when they
have ended, the same command without ``--shard`` computes what is still missing, decides, writes the
predictions and removes the blocks. Only that last command writes predictions, so no two processes
ever write one file. Existing blocks are not computed again, whichever process was killed. The
predictions equal those of one process to the last bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import cli
from pipeline.model_options import add_model_options


def parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m pipeline.predict``.

    Returns:
        A parser whose options are the arguments of :func:`predict`.
    """
    p = cli.parser("predict", "Predict whole images or volumes, tile by tile.")
    p.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="image files and folders of images",
    )
    p.add_argument("--output", type=Path, required=True, help="folder for the answers")
    p.add_argument(
        "--save-soft",
        action="store_true",
        help="also write probabilities to soft/, for pipeline.ensemble",
    )
    p.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help=(
            "compute only part I (0 to N-1) of the blocks of all inputs and write no answer;"
            " afterwards, the same command without --shard writes the answers"
        ),
    )
    p.add_argument(
        "--blocks",
        choices=["auto", "always", "never"],
        default="auto",
        help=(
            "read and write by blocks, in memory that does not grow with the volume; auto: inputs"
            " of more than 2^27 numbers"
        ),
    )
    add_model_options(p)
    return p


def _shard(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdecimal() and number.isdecimal() and int(index) < int(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is no I/N with I from 0 to N-1, such as 0/4")
    return int(index), int(number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: words of the command line; None: ``sys.argv``.

    Returns:
        Exit code.
    """
    return cli.run(parser(), predict, argv)


def predict(
    *,
    input: list[Path],  # noqa: A002 - the option's name
    output: Path,
    save_soft: bool,
    shard: tuple[int, int] | None,
    blocks: str,
    **model: Any,
) -> int:
    """Predict files.

    Args:
        input: image files and folders of images.
        output: folder for the predictions.
        save_soft: also write probabilities to ``soft/``.
        shard: index and number of parts: compute only that part of the blocks; None: predict.
        blocks: ``auto``, ``always`` or ``never`` read and write by blocks.
        **model: fields of :class:`pipeline.inference.options.ModelOptions`.

    Returns:
        Exit code.
    """
    from pipeline.workflows.predict import ModelOptions, predict_files

    return predict_files(
        ModelOptions(**model), input, output, save_soft=save_soft, blocks=blocks, shard=shard
    ).code


if __name__ == "__main__":
    raise SystemExit(main())
