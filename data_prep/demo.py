"""Run the whole chain of commands on synthetic scrolls, in a few minutes on a CPU.

    python data_prep/demo.py [--out demo]

Five folds are trained, the post-processing is tuned, the folds are an ensemble; a submission, a
report and a picture are written. Each step is one of the package's commands, printed before it
runs; run again, it continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from pipeline import cli

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("competition", "dice", "components")


def command(*words: object) -> None:
    """Print and run one command from the repository root.

    Args:
        words: the command line.

    Raises:
        SystemExit: with the command's exit code where it fails.
    """
    text = [str(w) for w in words]
    print(f"\n$ python {' '.join(text)}", flush=True)
    code = subprocess.run([sys.executable, *text], cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(code)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=cli.RawHelpFormatter, allow_abbrev=False
    )
    p.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for everything that the demo writes"
    )
    return p


def main() -> None:
    out = parser().parse_args().out
    began = time.monotonic()
    data, run, predictions = out / "data", out / "run", out / "predictions"
    command("data_prep/synthetic_scroll.py", data, "--size", 64, "--train", 15, "--test", 3)
    command(
        "-m",
        "pipeline.train",
        "--config",
        "configs/demo.yaml",
        "--data-dir",
        data,
        "--out",
        run,
        "--fold",
        -1,
    )
    command(
        "-m",
        "pipeline.predict",
        "--checkpoint",
        run,
        "--input",
        data / "test_images",
        "--output",
        predictions / "default",
        "--save-soft",
    )
    command("-m", "pipeline.tune", run, "--out", out / "tuned.yaml")
    spec = ("--spec", out / "tuned.yaml", "--input", data / "test_images")
    command("-m", "pipeline.ensemble", *spec, "--output", predictions / "tuned")
    for name in ("default", "tuned"):
        folders = ("--predictions", predictions / name, "--labels", data / "test_labels")
        command(
            "-m",
            "pipeline.evaluate",
            *folders,
            "--metrics",
            *METRICS,
            "--out",
            out / f"test_{name}.json",
        )
    images = ("--test-dir", data / "test_images")
    command(
        "-m",
        "pipeline.submit",
        "--predictions",
        predictions / "tuned",
        *images,
        "--out",
        out / "submission.zip",
    )
    command("-m", "pipeline.report", run)
    finish(out, run, time.monotonic() - began)


def finish(out: Path, run: Path, seconds: float) -> None:
    """The closing table, and one picture of the run."""
    from pipeline.reporting.figures import summary_picture
    from pipeline.reporting.tables import of_training
    from pipeline.runs import RunFolder

    print("\n" + of_training(json.loads((ROOT / run / "summary.json").read_text())))
    tuning = {
        r["name"]: r
        for r in json.loads((ROOT / run / "tuning" / "result.json").read_text())["rows"]
    }
    rows = {f"out of fold, {name}": row["mean"] for name, row in tuning.items()}
    for name in ("default", "tuned"):
        rows[f"test volumes, five folds, {name}"] = json.loads(
            (ROOT / out / f"test_{name}.json").read_text()
        )["mean"]
    names = ("competition", "toposcore", "surface_dice", "voi_score", "dice")
    print(f"{'':<52}" + "".join(f"{n:>14}" for n in names))
    for name, means in rows.items():
        print(
            f"{name:<52}"
            + "".join(f"{means[n]:>14.4f}" if n in means else f"{'-':>14}" for n in names)
        )
    over = tuning["tuned (nested)"]["gains"]["the run's own"]
    print(
        f"gain of tuning, chosen without the group that it is scored on: {over['mean']:+.4f}, 95 %"
        f" from {over['low']:+.4f} to {over['high']:+.4f}"
    )
    summary_picture(RunFolder(ROOT / run), ROOT / out / "demo.png")
    print(
        f"\nsubmission: {out / 'submission.zip'}\n"
        f"report:     {run / 'report.html'}\n"
        f"picture:    {out / 'demo.png'}\n"
        f"time:       {seconds / 60:.1f} minutes",
        flush=True,
    )


if __name__ == "__main__":
    main()
