"""Lay out DRIVE or CHASE_DB1, as their publishers pack them, for configs/vessels.yaml.

    python data_prep/prepare_vessels.py DOWNLOAD OUT

DOWNLOAD is the unpacked folder: DRIVE holds training/ and test/ with images/, 1st_manual/ and
mask/; CHASE_DB1 holds Image_01L.jpg, Image_01L_1stHO.png and so on. OUT gets images/ masks/ fov/
under equal names, second/ with the second observer's masks where there are any (the row to beat:
pipeline.evaluate --predictions OUT/second --labels OUT/masks --fov OUT/fov), and split.json.
CHASE_DB1 has no masks of the field of view: they are found in the red channel. Nothing in DOWNLOAD
is changed.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import cli
from pipeline.progress import progress
from pipeline.records import DONE, UserError

logger = logging.getLogger(f"pipeline.{Path(__file__).stem}")

if TYPE_CHECKING:
    import numpy as np

RED = 20
"""Red values up to this are the dark frame around the field of view of CHASE_DB1 (uint8)."""

CHASE_TRAIN = 20
"""Of CHASE_DB1's 28 images in order of name, these many first ones train and the rest test, as most
papers have it; no child is in both.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eye:
    """One image and the files that belong to it; ``fov`` None: to be found in the image."""

    name: str
    image: Path
    mask: Path | None
    second: Path | None
    fov: Path | None
    test: bool


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=str(__doc__),
        formatter_class=cli.RawHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("download", type=Path, help="unpacked folder of DRIVE or CHASE_DB1")
    p.add_argument(
        "out", type=Path, help="folder to lay out; files that are there already are written anew"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), lambda download, out: prepare(download, out), argv)


def prepare(download: Path, out: Path) -> int:
    """Write the layout and say what it holds.

    Raises UserError where the folder is neither data set or a file is missing.
    """
    from pipeline import files

    eyes = list(drive(download) if (download / "training").is_dir() else chase(download))
    if not eyes:
        raise UserError(
            f"{download}: neither DRIVE (training/images/21_training.tif) nor CHASE_DB1"
            " (Image_01L.jpg). Give the unpacked folder."
        )
    bare = [eye.name for eye in eyes if not eye.test and eye.mask is None]
    if bare:
        raise UserError(
            f"{download}: no first observer's mask for {', '.join(bare[:10])}. Unpack the download"
            " again."
        )
    for eye in progress(eyes, "laying out", len(eyes)):
        write(eye, out)
    names = {test: [eye.name for eye in eyes if eye.test == test] for test in (False, True)}
    files.write_json(out / "split.json", {"train": names[False], "test": names[True]})
    logger.info(
        f"{out}: {len(names[False])} images to train on, {len(names[True])} to test,"
        f" {sum(e.second is not None for e in eyes)} second masks"
    )
    return DONE


def drive(root: Path) -> Iterator[Eye]:
    """Eyes of DRIVE.

    Args:
        root: its folder. ``21_training.tif`` belongs to ``21_manual1.gif`` and
            ``21_training_mask.gif``; some packings lack the masks of the test images.

    Yields:
        One eye after the other.
    """
    for part in ("training", "test"):
        for image in sorted((root / part / "images").glob("*.tif")):
            number = image.stem.partition("_")[0]
            yield Eye(
                name=number,
                image=image,
                mask=_there(root / part / "1st_manual" / f"{number}_manual1.gif"),
                second=_there(root / part / "2nd_manual" / f"{number}_manual2.gif"),
                fov=_there(root / part / "mask" / f"{image.stem}_mask.gif"),
                test=part == "test",
            )


def chase(root: Path) -> Iterator[Eye]:
    """``Image_01L.jpg`` with ``Image_01L_1stHO.png`` and ``Image_01L_2ndHO.png``."""
    images = sorted(p for p in root.glob("*.jpg") if re.fullmatch(r"Image_\d+[LR]", p.stem))
    for n, image in enumerate(images):
        first, second = (_there(root / f"{image.stem}_{which}HO.png") for which in ("1st", "2nd"))
        yield Eye(
            name=image.stem, image=image, mask=first, second=second, fov=None, test=n >= CHASE_TRAIN
        )


def _there(path: Path) -> Path | None:
    return path if path.is_file() else None


def write(eye: Eye, out: Path) -> None:
    """All files of one image as PNG; masks as 0 and 255."""
    import numpy as np

    from pipeline import files

    image = files.read(eye.image, 2)[0]
    files.write(out / "images" / f"{eye.name}.png", image)
    for folder, path in (("masks", eye.mask), ("second", eye.second), ("fov", eye.fov)):
        if path is not None:
            mask = files.read(path, 2, labels=True)[0][0]
            if mask.shape != image.shape[1:]:
                raise UserError(
                    f"{path}: has shape {mask.shape}, its image {image.shape[1:]}. Unpack the"
                    " download again."
                )
            files.write(
                out / folder / f"{eye.name}.png",
                np.where(mask > mask.max() / 2, 255, 0).astype(np.uint8),
            )
    if eye.fov is None:
        files.write(
            out / "fov" / f"{eye.name}.png", np.where(field_of_view(image), 255, 0).astype(np.uint8)
        )


def field_of_view(image: np.ndarray) -> np.ndarray:
    """The lit disc of a fundus photograph ``(3, Y, X)``, uint8, as bool ``(Y, X)``.

    The largest region whose smoothed red channel exceeds RED, without holes and without protrusions
    under three pixels. Raises UserError where nothing is lit.
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter

    from pipeline import morphology

    lit = gaussian_filter(image[0].astype(np.float32), 1) > RED
    labels, count = morphology.components(lit)
    if not count:
        raise UserError(
            f"No red value exceeds {RED}: this is no fundus photograph in colour, so its field of"
            " view cannot be found."
        )
    largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return morphology.opening(morphology.fill_holes(largest.astype(np.uint8)), 3) != 0


if __name__ == "__main__":
    raise SystemExit(main())
