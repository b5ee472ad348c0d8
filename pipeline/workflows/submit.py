"""Check a folder of predictions against the test images, then pack it as a submission.

Data flow: check -> inference.submission.
"""

from __future__ import annotations

import logging
import math
import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.data import listing
from pipeline.grid import alignment, grid_of
from pipeline.inference import outputs, submission
from pipeline.inference.submission import SUFFIX, Answer, digest_of
from pipeline.progress import progress
from pipeline.records import UserError
from pipeline.stopping import stop
from pipeline.tasks import is_companion

logger = logging.getLogger(__name__)

SHOWN = 10
"""Findings of one kind that a message spells out; the rest are counted."""
SUGGESTIONS = {
    "test images unreadable": "Copy the test images again",
    "test ids twice": "Keep one file per id in the test folder",
    "unfit names": (
        "Rename the test image and predict it again: a submission holds names of UTF-8 text without"
        " control characters and backslashes"
    ),
    "missing": "Predict these test images too",
    "extra": "Remove these answers, or point --test-dir to their images",
    "ids twice": "Keep one file per id",
    "unreadable": "Predict these again",
    "wrong shape": "Predict these again from the test images given here",
    "wrong axes": "Predict these again from the test images given here",
    "wrong type": "Answers are uint8; write them with pipeline.predict",
    "wrong values": (
        "Answers hold 0 and 1 only; predict without --separate-instances, and take no"
        " _visualization files"
    ),
}
"""Every kind of fault, in the order in which they are reported, and what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What was written.

    Args:
        path: the file.
        answers: the checked predictions in it, sorted by id.
        sha256: digest of its bytes.
    """

    path: Path
    answers: tuple[Answer, ...]
    sha256: str


def write_submission(
    predictions: Path | str,
    test_dir: Path | str,
    out: Path | str = "submission.zip",
    format: str = "tiff-zip",  # noqa: A002 - the option's name
) -> Submission:
    """Check the predictions for all test images and pack them.

    Nothing is written unless each image has exactly one sound prediction.

    Args:
        predictions: folder of masks, ``ID.tif``: uint8, 0 and 1 only.
        test_dir: folder of the test images, which give the ids.
        out: file to write; an older submission is replaced.
        format: ``tiff-zip`` (a flat zip of ``ID.tif``) or ``rle-csv`` (columns ``id,rle``,
            see :func:`pipeline.inference.submission.encode_rle`).

    Returns:
        The submission that was written.

    Raises:
        UserError: with every fault of the predictions, and for an ``out`` that cannot be written or
            is something else than a submission.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import tifffile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     for folder in ("masks", "images"):
        ...         (Path(name) / folder).mkdir()
        ...         tifffile.imwrite(f"{name}/{folder}/case.tif", np.ones((4, 4), np.uint8))
        ...     made = write_submission(f"{name}/masks", f"{name}/images", f"{name}/out.zip")
        >>> made.answers[0].id, made.answers[0].foreground
        ('case', 16)
    """
    out_path = Path(out)
    require_place(out_path, format)
    return checked_and_packed(Path(predictions), Path(test_dir), out_path, format)


def require_place(out: Path, format: str) -> None:  # noqa: A002 - the option's name
    """Check that ``out`` can be written as a submission of a format.

    Args:
        out: file to write.
        format: ``tiff-zip`` or ``rle-csv``.

    Raises:
        UserError: where it cannot.
    """
    if format not in SUFFIX:
        raise UserError(f"format {format!r} is unknown. Choose one of {', '.join(SUFFIX)}.")
    if out.suffix.lower() != SUFFIX[format]:
        raise UserError(
            f"--out {out}: a submission of format {format} is a {SUFFIX[format]} file. Change one"
            " of the two."
        )
    if os.path.isdir(out):
        raise UserError(f"--out {out} is a folder. Name a file.")
    files.require_writable("--out", out.parent)
    if problem := outputs.too_long(out.parent, [out.name]):
        raise UserError(f"--out {out}: {problem}. Choose a shorter name.")


def checked_and_packed(predictions: Path, test_dir: Path, out: Path, format: str) -> Submission:  # noqa: A002
    """Check the predictions for all test images and pack them; ``out`` was checked before.

    Args:
        predictions: folder of masks.
        test_dir: folder of the test images.
        out: file to write.
        format: ``tiff-zip`` or ``rle-csv``.

    Returns:
        The submission that was written.

    Raises:
        UserError: with every fault of the predictions, and where ``out`` is something else than
            a submission.
    """
    answers = check(predictions, test_dir)
    submission.require_replaceable(out)
    for line in table_differences(test_dir, [a.id for a in answers]):
        logger.warning(line)
    files.remove_stale_temps(out.parent, deep=False)
    submission.write(out, answers, format)
    made = Submission(path=out, answers=tuple(answers), sha256=files.sha256(out))
    _log_submission(made)
    return made


def _log_submission(made: Submission) -> None:
    """Log what was written."""
    voxels = sum(math.prod(a.shape) for a in made.answers)
    blank = [a.id for a in made.answers if a.foreground == 0]
    if blank:
        logger.warning(f"no foreground at all in {_listed(blank, 'answers')}")
    share = sum(a.foreground for a in made.answers) / voxels
    logger.info(
        f"{made.path}: {len(made.answers)} ids, foreground {share:.4%}, {made.path.stat().st_size}"
        " bytes"
    )
    logger.info(f"sha256 {made.sha256}")


# --- checks ---------------------------------------------------------------------------------------


def check(predictions: Path, test_dir: Path) -> list[Answer]:
    """Check that each test image has one prediction of equal shape, uint8, 0 and 1 only.

    Reads one volume at a time.

    Args:
        predictions: folder of masks.
        test_dir: folder of the test images.

    Returns:
        Checked predictions, sorted by id.

    Raises:
        UserError: with every fault found.
    """
    faults: dict[str, list[str]] = defaultdict(list)
    tests = _by_id(test_dir, "--test-dir", faults, "test ids twice")
    if not tests:
        inside = [
            p.name for p in sorted(test_dir.iterdir()) if os.path.isdir(p) and "test" in p.name
        ]
        raise UserError(
            f"--test-dir {test_dir} holds no images."
            + (f" Did you mean {test_dir / inside[0]}?" if inside else "")
        )
    # An id may end like a visualisation: then a test image has that name too.
    found = _by_id(predictions, "--predictions", faults, "ids twice", also=tests)
    outputs.require_finished(predictions, found)
    tests = _as_predicted(tests, found)
    faults["unfit names"] = [i for i in tests if _is_unfit(i)]
    _warn_of_case(tests)
    faults["missing"] = [i for i in tests if i not in found]
    faults["extra"] = [i for i in found if i not in tests]
    answers = []
    for name in progress([i for i in tests if i in found], "checking"):
        stop.raise_if_stopped()
        answer = _check_one(name, found[name], tests[name], faults)
        answers += [answer] if answer else []
    if any(faults.values()):
        raise UserError(_report(predictions, len(tests), faults))
    return answers


def _is_unfit(name: str) -> bool:
    """Whether a submission cannot hold an id.

    A zip names its files in UTF-8, and some readers take a backslash for a folder.
    """
    try:
        size = len(f"{name}.tif".encode())
    except UnicodeEncodeError:
        return True
    return (
        size > 255
        or "\\" in name
        or any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name)
    )


def _warn_of_case(ids: Collection[str]) -> None:
    """Warn of ids that differ in case only: some disks hold one file for them."""
    folded: dict[str, list[str]] = defaultdict(list)
    for name in ids:
        folded[name.casefold()].append(name)
    alike = [" and ".join(names) for names in folded.values() if len(names) > 1]
    if alike:
        logger.warning(
            "these differ in case only, and are one file where that does not count (Windows,"
            f" macOS): {_listed(alike)}"
        )


def _as_predicted(tests: dict[str, Path], found: Mapping[str, Path]) -> dict[str, Path]:
    """The test images by the ids of their predictions.

    Numbered files ``ID_0000, ID_0001`` are one case where predictions are called ``ID``.
    """
    groups = listing.channel_groups(tests)
    if groups is None or sum(i in found for i in groups) <= sum(i in found for i in tests):
        return tests
    return {name: numbers[0] for name, numbers in groups.items()}


def _by_id(
    folder: Path,
    option: str,
    faults: Mapping[str, list[str]],
    kind: str,
    also: Mapping[str, Path] | None = None,
) -> dict[str, Path]:
    """Images directly in ``folder`` by id, sorted.

    Visualisations and overlays are left out unless ``also`` names them.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{option} {folder}: no such folder.")
    found: dict[str, Path] = {}
    for path in sorted(listing.images(folder)):
        name = files.case_id(path)
        if also is not None and is_companion(name) and name not in also:
            continue
        if name in found:
            faults[kind].append(f"{name} ({found[name].name}, {path.name})")
        found.setdefault(name, path)
    return dict(sorted(found.items()))


def _check_one(name: str, path: Path, test: Path, faults: Mapping[str, list[str]]) -> Answer | None:
    """Check one prediction against its test image's header.

    None, with a line in ``faults``, when something is wrong.
    """
    try:
        dims = files.dims_of(test)
    except files.FileError as error:
        faults["test images unreadable"].append(f"{name} ({error.problem})")
        return None
    wanted, got = files.probe(test, dims), files.probe(path, dims)
    if got.problem:
        faults["unreadable"].append(f"{name} ({got.problem})")
        return None
    if got.shape != (1, *wanted.shape[1:]):
        faults["wrong shape"].append(
            f"{name} (is {_size(got.shape)}, test image {_size((1, *wanted.shape[1:]))})"
        )
    elif problem := _axes_problem(path, test, dims):
        faults["wrong axes"].append(f"{name} ({problem})")
    if got.dtype != "uint8":
        faults["wrong type"].append(f"{name} ({got.dtype})")
        return None
    try:
        mask = files.read(path, dims, labels=True)[0][0]
    except files.FileError as error:
        faults["unreadable"].append(f"{name} ({error.problem})")
        return None
    if mask.max() > 1:
        faults["wrong values"].append(f"{name} ({_values(mask)})")
    return Answer(
        id=name,
        path=path,
        shape=mask.shape,
        foreground=int(mask.sum(dtype="int64")),
        digest=digest_of(mask),
    )


def _axes_problem(path: Path, test: Path, dims: int) -> str | None:
    """What is wrong with the orientation or position of a prediction of the right shape."""
    try:
        grid, wanted_grid = (grid_of(files.geometry(p, dims), dims) for p in (path, test))
        size = files.probe(test, dims).shape[1:]
    except files.FileError as error:
        return error.problem
    if grid.family != wanted_grid.family:
        return f"{path.name} and {test.name} order their axes differently"
    found = alignment(grid, size, wanted_grid, size)
    return (
        None
        if found is not None and found.identity
        else "lies elsewhere in the world than its test image, or otherwise"
    )


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[1:] if shape[0] == 1 else shape))


def _values(mask: np.ndarray) -> str:
    """The first values of a mask, in words."""
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    return (
        "holds "
        + ", ".join(map(str, values[:5]))
        + (f" and {len(values) - 5} more" if len(values) > 5 else "")
    )


def _report(predictions: Path, tests: int, faults: Mapping[str, list[str]]) -> str:
    """All faults as text, a line for each kind."""
    lines = [f"{predictions}: not fit for submission, nothing was written ({tests} test images)."]
    for kind, suggestion in SUGGESTIONS.items():
        if faults.get(kind):
            lines.append(f"  {kind}: {_listed(faults[kind])}. {suggestion}.")
    return "\n".join(lines)


def _listed(names: Sequence[str], what: str = "") -> str:
    """``12 answers: a, b, c ... (2 more)``."""
    more = f" ... ({len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return f"{len(names)} {what}".strip() + ": " + ", ".join(names[:SHOWN]) + more


def table_differences(test_dir: Path, ids: Sequence[str]) -> list[str]:
    """Differences between the test images and ``test.csv`` in or beside their folder.

    The files decide: a table may be older than they are.

    Args:
        test_dir: folder of the test images.
        ids: their ids.

    Returns:
        Sentences to warn with; none without a table.
    """
    folders = test_dir, Path(os.path.realpath(test_dir)).parent
    path = next((f / "test.csv" for f in folders if os.path.isfile(f / "test.csv")), None)
    if path is None:
        return []
    try:
        header, rows = files.read_table(path, ("id",))
    except files.FileError as error:
        return [f"{path} {error.problem}; it was not compared. {error.suggestion}"]
    if "id" not in header or not rows:
        return [f"{path} has no rows with a column id; it was not compared"]
    listed = dict.fromkeys(unicodedata.normalize("NFC", row.values["id"]) for row in rows)
    known = set(ids)
    without_file, without_row = (
        [i for i in listed if i not in known],
        [i for i in ids if i not in listed],
    )
    lines = (
        [f"{path} names ids without a test image: {_listed(without_file)}"] if without_file else []
    )
    return lines + (
        [f"{path} lacks ids of test images: {_listed(without_row)}"] if without_row else []
    )
