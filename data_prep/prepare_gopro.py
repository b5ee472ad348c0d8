r"""Lay out the GoPro set (Nah et al., CVPR 2017), or any two folders of images, as pairs.

    python data_prep/prepare_gopro.py DOWNLOAD OUT
    python data_prep/prepare_gopro.py --src DIR --dst DIR OUT      # pairs by equal names

The pairs are for configs/deblur.yaml and image_to_image.yaml. DOWNLOAD holds
train/GOPR0372_07_00/{blur,blur_gamma,sharp}/000047.png and test/... alike. OUT gets src/ID.png
(blurred) and dst/ID.png (sharp), hard links where the file system can, else copies, and split.json.
Ids of GoPro are SCENE_FRAME; folds that keep a scene together: data.folds.by=group
data.folds.pattern='^(.+)_\d+$'. A file without its counterpart, a damaged one or a pair of two
sizes is listed and refused. Nothing in DOWNLOAD is changed.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import cli
from pipeline.progress import progress
from pipeline.records import DONE, UserError

logger = logging.getLogger(f"pipeline.{Path(__file__).stem}")

SHOWN = 20
"""Faults that are printed; the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two images of one id."""

    id: str
    src: Path
    dst: Path
    test: bool = False


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=cli.RawHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DOWNLOAD OUT",
        help="unpacked GoPro set and folder to lay out; only OUT with --src",
    )
    p.add_argument("--src", type=Path, help="folder of inputs, instead of DOWNLOAD")
    p.add_argument("--dst", type=Path, help="folder of targets with the same names")
    p.add_argument(
        "--blur",
        choices=["blur_gamma", "blur"],
        default="blur_gamma",
        help="GoPro: which blurred images; blur_gamma: averaged in linear light",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), lambda **options: prepare(argparse.Namespace(**options)), argv)


def prepare(arguments: argparse.Namespace) -> int:
    """Link or copy all pairs and say what there is.

    Raises UserError with every file that cannot be paired, before anything is written.
    """
    from pipeline import files

    pairs, faults = _asked(arguments)
    faults = faults or [fault for pair in pairs for fault in unequal(pair)]
    if faults:
        more = f"\n  ... {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(
            "\n  ".join([f"{len(faults)} faults, nothing was written:", *faults[:SHOWN]]) + more
        )
    out = arguments.folders[-1]
    linked = 0
    for pair in progress(pairs, "laying out", len(pairs)):
        linked += sum(
            lay(source, out / side / f"{pair.id}{source.suffix}")
            for side, source in (("src", pair.src), ("dst", pair.dst))
        )
    sides = {
        side: [p.id for p in pairs if p.test == (side == "test")] for side in ("train", "test")
    }
    files.write_json(out / "split.json", sides)
    logger.info(
        f"{out}: {len(sides['train'])} pairs to train on, {len(sides['test'])} to test; {linked}"
        f" files linked, {2 * len(pairs) - linked} copied"
    )
    return DONE


def _asked(arguments: argparse.Namespace) -> tuple[list[Pair], list[str]]:
    """Pairs and faults of the folders that the command names."""
    given = [arguments.src, arguments.dst]
    if (None in given) != (given == [None, None]) or len(arguments.folders) != (
        2 if given == [None, None] else 1
    ):
        raise UserError("Give DOWNLOAD and OUT, or --src DIR --dst DIR and OUT.")
    if given == [None, None]:
        return gopro(arguments.folders[0], arguments.blur)
    return matched(arguments.src, arguments.dst)


def gopro(root: Path, blur: str) -> tuple[list[Pair], list[str]]:
    """Pairs of the download and its unpaired files; the official split.

    Raises UserError where the folder is not that set.
    """
    inner = root / "GOPRO_Large"
    root = inner if inner.is_dir() else root
    pairs, faults = [], []
    for part in ("train", "test"):
        for scene in sorted(
            p for p in (root / part).glob("*") if (p / "sharp").is_dir() or (p / blur).is_dir()
        ):
            found, lost = matched(
                scene / blur, scene / "sharp", prefix=f"{scene.name}_", test=part == "test"
            )
            pairs += found
            faults += lost
    if not pairs and not faults:
        raise UserError(
            f"{root}: no train/SCENE/{blur}/000001.png with train/SCENE/sharp beside it. Give the"
            " unpacked GOPRO_Large, or --src and --dst."
        )
    return pairs, faults + [
        f"{i}: is in train and in test"
        for i, times in Counter(p.id for p in pairs).items()
        if times > 1
    ]


def matched(
    src: Path, dst: Path, prefix: str = "", test: bool = False
) -> tuple[list[Pair], list[str]]:
    """Pairs of two folders by equal name, in natural order.

    Args:
        src, dst: folders of blurred and of sharp images.
        prefix: put before each id.
        test: whether the pairs are test images.

    Returns:
        The pairs, and a line for every file that has no counterpart or not exactly one.
    """
    from pipeline.data.listing import natural

    (one, faults), (other, more) = listed(src), listed(dst)
    faults = [*faults, *more]
    faults += [
        f"{one[name]}: no file of this name in {dst}"
        for name in sorted(set(one) - set(other), key=natural)
    ]
    faults += [
        f"{other[name]}: no file of this name in {src}"
        for name in sorted(set(other) - set(one), key=natural)
    ]
    both = sorted(set(one) & set(other), key=natural)
    return [
        Pair(id=prefix + name, src=one[name], dst=other[name], test=test) for name in both
    ], faults


def listed(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Images of a folder by name without suffix, and what is wrong with the folder."""
    from pipeline import files

    if not folder.is_dir():
        return {}, [f"{folder}: no such folder"]
    found: dict[str, Path] = {}
    faults = []
    for path in sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and files.is_image(p) and not p.name.startswith(".")
    ):
        name = files.case_id(path)
        if name in found:
            faults.append(f"{path}: has the same name as {found[name].name}")
        found.setdefault(name, path)
    return found, faults if found else [*faults, f"{folder}: holds no image"]


def unequal(pair: Pair) -> list[str]:
    """What is wrong with a pair by its files' headers: damage, or two sizes."""
    from pipeline import files

    probes = {path: files.probe(path, 2) for path in (pair.src, pair.dst)}
    damaged = [f"{path}: {probe.problem}" for path, probe in probes.items() if probe.problem]
    one, other = probes.values()
    if not damaged and one.shape != other.shape:
        return [f"{pair.src}: has shape {one.shape}, {pair.dst} has {other.shape}"]
    return damaged


def lay(source: Path, target: Path) -> bool:
    """Put a file at ``target``, whole or not at all; returns whether it is a hard link."""
    from pipeline import files

    if target.exists() and target.samefile(source):
        return True
    with files.whole(target) as temp:
        try:
            os.link(source.resolve(), temp)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temp)
            return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
