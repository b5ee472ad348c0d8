r"""Fuse the soft predictions of several folds or runs, case by case, and decide.

::

    python -m pipeline.ensemble --fold-dirs predictions/fold_0 predictions/fold_1 \
        --output predictions/ensemble
    python -m pipeline.ensemble --spec ensembles/NAME.yaml --input DIR \
        --output predictions/ensemble

Members are memory-mapped and summed slab by slab: memory does not depend on their number.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.records import DONE, PARTIAL


def parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m pipeline.ensemble``.

    Returns:
        A parser whose options are the arguments of :func:`ensemble`.
    """
    p = cli.parser("ensemble", "Fuse predictions of several folds or runs.")
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--fold-dirs",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders written by pipeline.predict --save-soft",
    )
    which.add_argument(
        "--spec", type=Path, help="ensembles/NAME.yaml: members, weights, fusion, post-processing"
    )
    p.add_argument("--output", type=Path, required=True, help="folder for the answers")
    p.add_argument(
        "--input",
        type=Path,
        nargs="+",
        metavar="PATH",
        help=(
            "image files and folders of images that members which are runs predict first, into"
            " OUTPUT/members; kept when run again"
        ),
    )
    p.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where --input is predicted; auto: CUDA where there is one, else the CPU",
    )
    p.add_argument(
        "--fusion",
        choices=["mean", "logit", "vote"],
        help=(
            "weighted mean of probabilities or of logits, or majority vote; default: the spec's,"
            " else mean"
        ),
    )
    p.add_argument(
        "--save-soft", action="store_true", help="also write the fused probabilities to soft/"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: words of the command line; None: ``sys.argv``.

    Returns:
        Exit code.
    """
    return cli.run(parser(), ensemble, argv)


def ensemble(
    *,
    fold_dirs: list[Path] | None,
    spec: Path | None,
    output: Path,
    input: list[Path] | None,  # noqa: A002 - the option's name
    device: str,
    fusion: str | None,
    save_soft: bool,
) -> int:
    """Fuse predictions.

    Args:
        fold_dirs: folders written by ``pipeline.predict --save-soft``; None: ``spec`` is given.
        spec: YAML file of an ensemble; None: ``fold_dirs`` are given.
        output: folder for the fused predictions.
        input: images that members which are runs predict first; None: nothing is predicted.
        device: ``auto``, ``cpu`` or ``cuda``, for ``input``.
        fusion: ``mean``, ``logit`` or ``vote``; None: that of the spec, else ``mean``.
        save_soft: also write the fused probabilities to ``soft/``.

    Returns:
        Exit code.
    """
    from pipeline.workflows import fuse

    wanted = fuse.load_spec(spec) if spec else fuse.of_folders(fold_dirs or [])
    wanted = dataclasses.replace(wanted, fusion=fusion or wanted.fusion)
    job = fuse.EnsembleJob(
        spec=wanted, output=output, inputs=input or (), device=device, save_soft=save_soft
    )
    predict = None
    if input:  # without, nothing here needs a network
        from pipeline.workflows.ensemble import predict_member as predict
    fused = fuse.fuse(job, predict)
    return PARTIAL if fused.failed else DONE


if __name__ == "__main__":
    raise SystemExit(main())
