"""``python -m pipeline``: list the commands, or run one.

``python -m pipeline train ...`` is ``python -m pipeline.train ...``.
"""

from __future__ import annotations

import importlib
import sys

from pipeline import cli
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
}

USAGE = """usage: python -m pipeline COMMAND [options]

{commands}

python -m pipeline COMMAND --help lists the options of one. To begin, check config and data \
without starting anything:
python -m pipeline train --config configs/surface.yaml --data-dir DIR --dry-run"""


def main() -> int:
    """Run the command that the first word names, or print which commands there are.

    Returns:
        Exit code.
    """
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        module = importlib.import_module(f"pipeline.{words[0]}")
        sys.argv = [str(module.__file__), *words[1:]]
        return module.main()
    with cli.printing():
        if not words or words[0] in ("-h", "--help", "help"):
            print(
                USAGE.format(
                    commands="\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
                )
            )
            return DONE
        known = nearest(words[0], COMMANDS)
        print(
            f"error: there is no command {words[0]!r}. {known} python -m pipeline --help lists"
            " all.",
            file=sys.stderr,
        )
        return WRONG


if __name__ == "__main__":
    raise SystemExit(main())
