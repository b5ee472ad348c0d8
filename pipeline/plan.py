"""Look at a folder of images and labels, decide, and write a config with a reason for each value.

::

    python -m pipeline.plan DIR                                # for the device at hand
    python -m pipeline.plan DIR --budget cpu --minutes 30      # all folds trained in half an hour
    python -m pipeline.plan DIR --preset resenc-l              # nnU-Net's rules
    python -m pipeline.train --config NAME.yaml --fold -1

Every file is read once, and one training step is measured. The YAML is there to be read and edited.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.invocation import called
from pipeline.records import DONE, UserError


def parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m pipeline.plan``.

    Returns:
        A parser whose options are the arguments of :func:`plan`.
    """
    p = cli.parser("plan", "Look at a folder of images, and write a config for it with reasons.")
    p.add_argument(
        "data_dir",
        type=Path,
        metavar="DIR",
        help="data set folder: nnU-Net's, the competition's, or folders of images and targets",
    )
    p.add_argument(
        "--preset",
        metavar="NAME",
        help="nnU-Net's rules, reproduced: plain, resenc-m, resenc-l, resenc-xl; default: those"
        " that fit the budget, for a CPU our own",
    )
    p.add_argument(
        "--budget",
        metavar="MEMORY",
        help="cpu, or the memory of a GPU such as 8G, 24G, 80G; default: the device at hand",
    )
    p.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="wall time of train --fold -1, caching and scoring included; default: nnU-Net's"
        " length, on a CPU 60",
    )
    p.add_argument(
        "--configuration",
        metavar="NAME",
        help="2d, 3d_fullres or 3d_lowres; default: chosen, with the reason",
    )
    p.add_argument("--images", metavar="NAME", help="folder of images in DIR; default: found")
    p.add_argument(
        "--targets", metavar="NAME", help="folder of labels or target images in DIR; default: found"
    )
    p.add_argument("--name", help="name of the system; default: that of the folder")
    p.add_argument("--out", type=Path, metavar="FILE", help="YAML to write; default: NAME.yaml")
    p.add_argument(
        "--force", action="store_true", help="replace --out although somebody made or changed it"
    )
    p.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where a step is measured; auto: CUDA where there is one, else the CPU",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: words of the command line; None: ``sys.argv``.

    Returns:
        Exit code.
    """
    return cli.run(parser(), plan, argv)


def plan(
    *,
    data_dir: Path,
    preset: str | None,
    budget: str | None,
    minutes: float | None,
    configuration: str | None,
    images: str | None,
    targets: str | None,
    name: str | None,
    out: Path | None,
    force: bool,
    device: str,
) -> int:
    """Plan a data set, print the plan and write it.

    Args:
        data_dir: data set folder.
        preset: nnU-Net's rules.
        budget: memory to plan for.
        minutes: wall time of training all folds.
        configuration: which of nnU-Net's configurations.
        images: folder of images in ``data_dir``.
        targets: folder of their labels or target images.
        name: of the system.
        out: YAML to write; None: ``NAME.yaml``.
        force: replace what somebody made or changed.
        device: to measure on.

    Returns:
        Exit code.
    """
    from pipeline.workflows import plan as workflow

    path = workflow.default_out(name, data_dir) if out is None else out
    workflow.guard(path, force)
    try:
        made = workflow.plan_dataset(
            data_dir,
            preset=preset,
            budget=budget,
            minutes=minutes,
            configuration=configuration,
            images=images,
            targets=targets,
            name=name,
            device=device,
            progress=True,
            on_facts=print,
        )
    except workflow.MinutesError as error:
        fingerprint = workflow.write_plan(error.plan, path, force)
        print(workflow.described(error.plan))
        raise UserError(
            f"{error} Wrote the plan that takes the least time, {path}, and {fingerprint} (facts)."
        ) from None
    fingerprint = workflow.write_plan(made, path, force)
    print(workflow.described(made))
    print(f"\nWrote {path} and {fingerprint} (facts). Read the first, change what you like, then:")
    print(f"{called('train')} --config {shlex.quote(str(path))} --fold -1")
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
