"""Draw held-out cases of a run as one picture, to put beside its numbers.

    python data_prep/strip.py RUN --cases 2 --out strip.png

Of labels image, truth, prediction and errors; of images input, target, output, error, and masks
where there are any. Cases are taken at even quantiles of the score: typical ones, neither the best
nor the worst. --ids names others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.records import WRONG, UserError


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that pipeline.train wrote")
    parser.add_argument("--cases", type=int, default=2, metavar="N", help="how many; default: 2")
    parser.add_argument("--ids", nargs="+", metavar="ID", help="these cases instead")
    parser.add_argument(
        "--crop",
        type=int,
        metavar="N",
        help="show a window of N pixels where most is to see; 0: the whole picture; default: a"
        " window of large images, the whole of labels",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG to write")
    given = parser.parse_args()
    if given.cases < 1:
        parser.error(f"--cases is {given.cases}, must be at least 1")

    from pipeline.reporting.figures import strip_picture
    from pipeline.runs import RunFolder

    try:
        out = strip_picture(RunFolder(given.run), given.out, given.ids or given.cases, given.crop)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
