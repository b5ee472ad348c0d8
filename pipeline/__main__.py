"""``python -m pipeline`` and the command ``pipeline``: say what there is, or run a command.

``pipeline train ...`` and ``python -m pipeline train ...`` are ``python -m pipeline.train ...``.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pipeline
from pipeline import cli, invocation
from pipeline.config import nearest
from pipeline.records import DONE, WRONG

COMMANDS = {
    "plan": "look at a folder of images, and write a config for it with reasons",
    "train": "train the folds of a system by cross-validation",
    "predict": "predict whole images or volumes with trained folds",
    "evaluate": "score a folder of answers against a folder of labels",
    "tune": "choose post-processing on out-of-fold predictions",
    "ensemble": "fuse the predictions of several folds or runs",
    "submit": "pack a folder of answers into a checked submission",
    "report": "turn a run into one page with scores, curves and pictures",
    "serve": "answer images over HTTP",
    "list": "say what configs, networks, losses, metrics, steps there are",
}

USAGE = """usage: {program} COMMAND [options]

Segmentation and restoration of images and volumes; a system is one YAML file.

{commands}

{program} COMMAND --help says the options of one, {program} list what a config may name.
To begin with a folder of images and labels:
  {program} plan DIR --minutes 30
or to check config and data of a system that comes with the package, and start nothing:
  {program} train --config surface --data-dir DIR --dry-run

For research: no medical device."""


def main() -> int:
    """Run the command that the first word names, or print which commands there are.

    Returns:
        Exit code.
    """
    called, *words = sys.argv
    program = "python -m pipeline" if Path(called).name == Path(__file__).name else "pipeline"
    if words and words[0] in COMMANDS:
        module = importlib.import_module(f"pipeline.{words[0]}")
        sys.argv = [str(module.__file__), *words[1:]]
        invocation.come_from(program)
        return module.main()
    with cli.printing():
        if words == ["--version"]:
            print(f"pipeline {pipeline.__version__}")
            return DONE
        if not words or words[0] in ("-h", "--help", "help"):
            rows = (f"  {name:<10}{text}" for name, text in COMMANDS.items())
            print(USAGE.format(program=program, commands="\n".join(rows)))
            return DONE
        known = nearest(words[0], COMMANDS)
        print(
            f"error: there is no command {words[0]!r}. {known} {program} --help lists all.",
            file=sys.stderr,
        )
        return WRONG


if __name__ == "__main__":
    raise SystemExit(main())
