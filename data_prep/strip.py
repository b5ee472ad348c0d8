"""Draw held-out cases of a run as one picture, to put beside its numbers.

    python data_prep/strip.py RUN --cases 2 --out strip.png
    python data_prep/strip.py ANSWERS --inputs SRC --targets DST --ids a b --out strip.png

Of labels image, truth, prediction and errors; of images input, target, output, error, and masks
where there are any. Cases are taken at even quantiles of the score: typical ones, neither the best
nor the worst. --ids names others. With --inputs and --targets, the answers of pipeline.predict to
images that no fold has seen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.records import FAILED, WRONG, UserError


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="folder that pipeline.train wrote"
        ", or answers of pipeline.predict to images of --inputs",
    )
    made.add_argument("--inputs", type=Path, metavar="DIR", help="folder of the images")
    made.add_argument("--targets", type=Path, metavar="DIR", help="what they should become")
    made.add_argument("--cases", type=int, default=2, metavar="N", help="how many (default: 2)")
    made.add_argument("--ids", nargs="+", metavar="ID", help="these cases instead")
    made.add_argument(
        "--crop",
        type=int,
        metavar="N",
        help="show a window of N pixels where most is to see; 0: the whole picture; default: a"
        " window of large images, the whole of labels",
    )
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG to write")
    return made


def main() -> int:
    options = parser()
    given = options.parse_args()
    if given.cases < 1:
        options.error(f"--cases is {given.cases}, must be at least 1")
    unseen = given.inputs is not None
    if unseen != (given.targets is not None) or (unseen and not given.ids):
        options.error("--inputs, --targets and --ids are given together, for a folder of answers")
    if given.out.suffix.lower() != ".png":
        options.error(f"--out is {given.out}; what is written is a PNG: name it .png")

    from pipeline.reporting.figures import pairs_picture, strip_picture
    from pipeline.runs import RunFolder

    try:
        if unseen:
            folders = (given.inputs, given.targets, given.run)
            out = pairs_picture(*folders, given.ids, given.out, given.crop)
        else:
            wanted = given.ids or given.cases
            out = strip_picture(RunFolder(given.run), given.out, wanted, given.crop)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    except OSError as error:  # a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
