"""Deblurring without training, as the rows to beat: unsupervised Wiener and Richardson-Lucy of
scikit-image on the held-out pairs.

    python tests/benchmarks/deblur_classic.py --data DIR [--train 6] [--part 192] [--out FILE.json]

DIR is a folder of data_prep/make_pairs.py --kind blur or data_prep/prepare_gopro.py: src/, dst/ and
split.json. Nobody knows the blur of a photograph, so each method gets one guessed kernel for all:
the Gaussian or straight motion, the iterations and the space to work in (the file's values, or
light by gamma 2.2) that score the highest PSNR on the middle of ``--train`` training pairs; the
test pairs take no part in that choice. Images are mirrored at borders, channels restored one by
one, answers clipped and rounded to 8 bits and scored as pipeline.evaluate does. Both methods are
deterministic here: the sampler of unsupervised Wiener starts from a fixed seed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.metrics.image import intensities
from pipeline.records import NamedOptions
from pipeline.scoring.core import CaseArrays, Rules, Scores, mean
from pipeline.scoring.core import score as score_case

METRICS = (NamedOptions(name="psnr"), NamedOptions(name="ssim"), NamedOptions(name="mae"))
SIGMAS = (0.7, 1.0, 1.5, 2.0, 3.0)
LENGTHS, ANGLES = (5, 9, 15), (0, 45, 90, 135)
ITERATIONS = (3, 10, 30)
SPACES = {"values": 1.0, "light": 2.2}
"""Exponent applied before and taken back after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A method with all that is chosen for it."""

    name: str
    words: str
    restore: Callable[[np.ndarray], np.ndarray]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True)
    p.add_argument(
        "--train",
        type=int,
        default=6,
        help="training pairs that parameters are chosen on, spread over the list",
    )
    p.add_argument(
        "--part", type=int, default=192, help="edge of the middle part that they are chosen on"
    )
    p.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    arguments = p.parse_args()
    split = files.read_json(arguments.data / "split.json")
    some = split["train"][:: max(1, math.ceil(len(split["train"]) / arguments.train))]
    training = [
        tuple(middle(image, arguments.part) for image in pair(arguments.data, i)) for i in some
    ]
    rows: dict[str, dict] = {
        "do nothing": {"cases": {i: image_scores(*pair(arguments.data, i)) for i in split["test"]}}
    }
    for name, candidates in itertools.groupby(all_candidates(), key=lambda c: c.name):
        best = choose(list(candidates), training)
        began = time.monotonic()
        cases = {i: scored(best, *pair(arguments.data, i)) for i in split["test"]}
        seconds = (time.monotonic() - began) / max(1, len(cases))
        rows[name] = {
            "chosen": best.words,
            "chosen on": some,
            "seconds an image": seconds,
            "cases": cases,
        }
    for row in rows.values():
        row["mean"] = mean(row["cases"].values())
    print(table(rows, len(split["test"])))
    if arguments.out is not None:
        files.write_json(arguments.out, rows)


def pair(root: Path, case_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Blurred and sharp image of an id."""
    found = [
        next(p for p in (root / side).iterdir() if files.is_image(p) and files.stem(p) == case_id)
        for side in ("src", "dst")
    ]
    return files.read(found[0], 2)[0], files.read(found[1], 2)[0]


def middle(image: np.ndarray, edge: int) -> np.ndarray:
    starts = [max(0, (n - edge) // 2) for n in image.shape[1:]]
    return image[:, starts[0] : starts[0] + edge, starts[1] : starts[1] + edge]


def all_candidates() -> list[Candidate]:
    """Every method with every kernel and setting, methods one after the other."""
    found = []
    for (words, kernel), (space, gamma) in itertools.product(kernels().items(), SPACES.items()):
        where = f"{words}, in {space}"
        wiener = functools.partial(restored, method=unsupervised_wiener, kernel=kernel, gamma=gamma)
        found.append(Candidate(name="unsupervised Wiener", words=where, restore=wiener))
        for times in ITERATIONS:
            lucy = functools.partial(
                restored,
                method=functools.partial(richardson_lucy, times=times),
                kernel=kernel,
                gamma=gamma,
            )
            found.append(
                Candidate(
                    name="Richardson-Lucy", words=f"{where}, {times} iterations", restore=lucy
                )
            )
    return sorted(found, key=lambda c: c.name)


def kernels() -> dict[str, np.ndarray]:
    """Guessed kernels by their words, each of odd edge and sum 1."""
    found = {}
    for sigma in SIGMAS:
        y, x = np.mgrid[-10:11, -10:11]
        found[f"Gaussian of sigma {sigma:g}"] = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    for length, angle in itertools.product(LENGTHS, ANGLES):
        kernel = np.zeros((21, 21))
        for t in np.linspace(-(length - 1) / 2, (length - 1) / 2, 16 * length):
            kernel[
                round(10 + t * math.sin(math.radians(angle))),
                round(10 + t * math.cos(math.radians(angle))),
            ] += 1
        found[f"motion of {length} pixels at {angle} degrees"] = kernel
    return {words: kernel / kernel.sum() for words, kernel in found.items()}


def restored(
    image: np.ndarray,
    method: Callable[[np.ndarray, np.ndarray], np.ndarray],
    kernel: np.ndarray,
    gamma: float,
) -> np.ndarray:
    """A blurred image ``(C, Y, X)`` as its file has it, restored, as uint8."""
    rim = 2 * (len(kernel) // 2)
    wide = np.pad(
        intensities(image).astype(np.float64) ** gamma,
        ((0, 0), (rim, rim), (rim, rim)),
        mode="symmetric",
    )
    light = np.stack([method(channel, kernel) for channel in wide])[:, rim:-rim, rim:-rim]
    return np.rint(np.clip(light, 0, 1) ** (1 / gamma) * 255).astype(np.uint8)


def unsupervised_wiener(channel: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Orieux, Giovannelli & Rodet 2010: noise and prior are estimated from the image."""
    from skimage.restoration import unsupervised_wiener

    return np.asarray(unsupervised_wiener(channel, kernel, clip=False, rng=0)[0])


def richardson_lucy(channel: np.ndarray, kernel: np.ndarray, times: int) -> np.ndarray:
    from skimage.restoration import richardson_lucy

    return richardson_lucy(channel, kernel, num_iter=times, clip=False, filter_epsilon=1e-6)


def choose(candidates: Sequence[Candidate], pairs: Sequence[tuple[np.ndarray, ...]]) -> Candidate:
    """The candidate of the highest mean PSNR."""

    def quality(candidate: Candidate) -> float:
        return float(
            np.mean(
                [
                    image_scores(candidate.restore(src), dst, METRICS[:1])["psnr"]
                    for src, dst in pairs
                ]
            )
        )

    return max(candidates, key=quality)


def scored(candidate: Candidate, src: np.ndarray, dst: np.ndarray) -> Scores:
    return image_scores(candidate.restore(src), dst)


def image_scores(
    image: np.ndarray, target: np.ndarray, metrics: tuple[NamedOptions, ...] = METRICS
) -> Scores:
    return score_case(CaseArrays(answer=image, target=target), Rules(metrics=metrics))


def table(rows: dict[str, dict], count: int) -> str:
    names = [m.name for m in METRICS]
    lines = [
        f"| {count} held-out images | " + " | ".join(names) + " | chosen on training pairs |",
        "|---" * (len(names) + 2) + "|",
    ]
    for name, row in rows.items():
        numbers = " | ".join(f"{row['mean'][n]:.4f}" for n in names)
        lines.append(
            f"| {name} | {numbers} | {json.dumps(row['chosen'])[1:-1] if 'chosen' in row else ''} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
