"""The whole way in a few minutes on a CPU: synthetic scrolls, five folds, ensemble, submission, report.

    python data_prep/demo.py [--out demo]

Each step is one of the package's commands, printed before it runs; run again, it continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def command(*words: object) -> None:
    """Print and run one command from the repository root; a failure ends the demo with its exit code."""
    text = [str(w) for w in words]
    print(f"\n$ python {' '.join(text)}", flush=True)
    code = subprocess.run([sys.executable, *text], cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything that the demo writes")
    out = parser.parse_args().out
    began = time.monotonic()
    data, run, predictions = out / "data", out / "run", out / "predictions"
    command("data_prep/synthetic_scroll.py", data, "--size", 64, "--train", 15, "--test", 3)
    command("-m", "pipeline.train", "--config", "configs/demo.yaml", "--data-dir", data, "--out", run, "--fold", -1)
    for fold in range(5):
        command(
            "-m",
            "pipeline.predict",
            "--checkpoint",
            run / f"fold_{fold}",
            "--input",
            data / "test_images",
            "--output",
            predictions / f"fold_{fold}",
            "--save-soft",
        )
    command("-m", "pipeline.ensemble", "--fold-dirs", *(predictions / f"fold_{n}" for n in range(5)), "--output", predictions / "ensemble")
    command(
        "-m",
        "pipeline.evaluate",
        "--predictions",
        predictions / "ensemble",
        "--labels",
        data / "test_labels",
        "--out",
        out / "test_scores.json",
    )
    command(
        "-m",
        "pipeline.submit",
        "--predictions",
        predictions / "ensemble",
        "--test-dir",
        data / "test_images",
        "--out",
        out / "submission.zip",
    )
    command("-m", "pipeline.report", run)
    finish(out, run, time.monotonic() - began)


def finish(out: Path, run: Path, seconds: float) -> None:
    """The closing table."""
    from pipeline.train import table

    summary = json.loads((ROOT / run / "summary.json").read_text())
    test = json.loads((ROOT / out / "test_scores.json").read_text())
    print("\n" + table(summary))
    names = list(summary["out_of_fold"])
    print(f"{'test volumes, five folds fused':<59}" + "".join(f"{test['mean'].get(n, float('nan')):>17.4f}" for n in names))
    print(f"\nsubmission: {out / 'submission.zip'}\nreport:     {run / 'report.html'}\ntime:       {seconds / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
