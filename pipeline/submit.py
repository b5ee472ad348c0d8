"""Pack a folder of answers into a checked submission: a flat zip of ``ID.tif``, or a table of run lengths.

python -m pipeline.submit --predictions DIR --test-dir DIR --out submission.zip
python -m pipeline.submit --spec ensembles/NAME.yaml --test-dir DIR --out submission.zip     # predict and fuse first

Nothing is written unless every test volume has exactly one sound answer. Equal answers give equal bytes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import math
import os
import sys
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import cli
from pipeline.cli import say
from pipeline.records import DONE, UserError

if TYPE_CHECKING:
    import numpy as np

TIME = (1980, 1, 1, 0, 0, 0)
"""Of every member of a zip, so that its bytes depend on nothing else; it also tells a submission from a user's archive of images."""
SHOWN = 10
"""Findings of one kind that a message spells out; the rest are counted."""
READ_BACK = "what was written reads back differently; no submission was kept. Check disk and memory of this machine, then run again."
SUFFIX = {"tiff-zip": ".zip", "rle-csv": ".csv"}
CURES = {
    "test images unreadable": "Copy the test images again",
    "test ids twice": "Keep one file per id in the test folder",
    "unfit names": "Rename the test image and predict it again: a submission holds names of UTF-8 text without control characters and backslashes",
    "missing": "Predict these test images too",
    "extra": "Remove these answers, or point --test-dir to their images",
    "ids twice": "Keep one file per id",
    "unreadable": "Predict these again",
    "wrong shape": "Predict these again from the test images given here",
    "wrong axes": "Predict these again from the test images given here",
    "wrong type": "Answers are uint8; write them with pipeline.predict",
    "wrong values": "Answers hold 0 and 1 only; predict without --separate-instances, and take no _visualization files",
}
"""Every kind of fault, in the order in which they are told, and what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One checked answer: its file, the shape ``(*S)`` of its mask, how many voxels are 1, and the SHA-256 of the mask's bytes."""

    id: str
    path: Path
    shape: tuple[int, ...]
    foreground: int
    digest: str


def parser() -> argparse.ArgumentParser:
    p = cli.parser("submit", "Pack a folder of answers into a checked submission.")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--predictions", type=Path, metavar="DIR", help="folder of answers, ID.tif")
    source.add_argument("--spec", type=Path, metavar="FILE", help="ensemble to run on the test images first, see pipeline.ensemble")
    p.add_argument("--test-dir", type=Path, required=True, metavar="DIR", help="folder of the test images; they say which ids there are")
    p.add_argument("--out", type=Path, default=Path("submission.zip"), metavar="FILE", help="file to write; an older one is replaced")
    p.add_argument(
        "--work", type=Path, metavar="DIR", help="with --spec: folder for its answers; default: <out without suffix>_predictions"
    )
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="with --spec")
    p.add_argument(
        "--format",
        choices=sorted(SUFFIX, reverse=True),
        default="tiff-zip",
        help="tiff-zip: flat <id>.tif; rle-csv: columns id,rle with 'start length' pairs, counted from 1 in C order (last axis fastest)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), submit, argv)


def submit(arguments: argparse.Namespace) -> int:
    """The whole command; returns its exit code."""
    from pipeline import files
    from pipeline.inference import outputs

    out: Path = arguments.out
    if out.suffix.lower() != SUFFIX[arguments.format]:
        raise UserError(
            f"--out {out}: a submission of format {arguments.format} is a {SUFFIX[arguments.format]} file. Change one of the two."
        )
    if os.path.isdir(out):
        raise UserError(f"--out {out} is a folder. Name a file.")
    files.require_writable("--out", out.parent)
    if problem := outputs.too_long(out.parent, [out.name]):
        raise UserError(f"--out {out}: {problem}. Choose a shorter name.")
    if arguments.spec is not None:
        require_replaceable(out)  # before hours of prediction
    answers = check(arguments.predictions or _run_ensemble(arguments), arguments.test_dir)
    require_replaceable(out)
    for line in table_differences(arguments.test_dir, [a.id for a in answers]):
        say(f"warning: {line}")
    files.sweep(out.parent, deep=False)
    (write_zip if arguments.format == "tiff-zip" else write_rle)(out, answers)
    _tell(out, answers, files.sha256(out))
    return DONE


def require_replaceable(out: Path) -> None:
    """Raise UserError where ``out`` is there and no submission: a flat zip of ID.tif as they are written here, or a table id,rle."""
    special = os.path.exists(out) and not os.path.isfile(out)  # a pipe would wait for ever
    if special or (os.path.lexists(out) and not (_is_table(out) if out.suffix.lower() == ".csv" else _is_flat_zip(out))):
        raise UserError(f"--out {out} is there and no submission, which could be replaced. Name another file, or move it away.")


def _is_flat_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile):
        return False
    flat = all(m.filename.endswith(".tif") and "/" not in m.filename and "\\" not in m.filename for m in members)
    return bool(members) and flat and all(m.date_time == TIME for m in members)


def _is_table(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.readline(16).strip() == b"id,rle"
    except OSError:
        return False


def _run_ensemble(arguments: argparse.Namespace) -> Path:
    """Run the ensemble of ``--spec`` on the test images; returns the folder of its answers."""
    from pipeline import ensemble

    work = arguments.work or arguments.out.with_name(f"{arguments.out.stem}_predictions")
    options = {"--spec": arguments.spec, "--input": arguments.test_dir, "--output": work, "--device": arguments.device}
    ensemble.ensemble(ensemble.parser().parse_args([str(word) for pair in options.items() for word in pair]))
    return work


def _tell(out: Path, answers: Sequence[Answer], digest: str) -> None:
    voxels = sum(math.prod(a.shape) for a in answers)
    blank = [a.id for a in answers if a.foreground == 0]
    if blank:
        say(f"warning: no foreground at all in {_listed(blank, 'answers')}")
    say(f"{out}: {len(answers)} ids, foreground {sum(a.foreground for a in answers) / voxels:.4%}, {out.stat().st_size} bytes")
    say(f"sha256 {digest}")


# --- what is there, and whether it is right ----------------------------------------------------------------------------


def check(predictions: Path, test_dir: Path) -> list[Answer]:
    """Checked answers, sorted by id: one for each image in ``test_dir``, equal in shape, uint8, 0 and 1 only.

    Reads one volume at a time. Raises UserError with every fault found.
    """
    from pipeline.inference import outputs

    faults: dict[str, list[str]] = defaultdict(list)
    tests = _by_id(test_dir, "--test-dir", faults, "test ids twice")
    if not tests:
        inside = [p.name for p in sorted(test_dir.iterdir()) if os.path.isdir(p) and "test" in p.name]
        raise UserError(f"--test-dir {test_dir} holds no images." + (f" Did you mean {test_dir / inside[0]}?" if inside else ""))
    # An id may well end like a visualisation; then the test image says so.
    found = _by_id(predictions, "--predictions", faults, "ids twice", also=tests)
    outputs.require_finished(predictions, found, say)
    tests = _as_predicted(tests, found)
    faults["unfit names"] = [i for i in tests if _is_unfit(i)]
    _tell_alike(tests)
    faults["missing"] = [i for i in tests if i not in found]
    faults["extra"] = [i for i in found if i not in tests]
    answers = []
    for name in cli.progress([i for i in tests if i in found], "checking"):
        cli.stop.check()
        answer = _checked(name, found[name], tests[name], faults)
        answers += [answer] if answer else []
    if any(faults.values()):
        raise UserError(_report(predictions, len(tests), faults))
    return answers


def _is_unfit(name: str) -> bool:
    """Whether a submission cannot hold an id: a zip names its files in UTF-8, and a backslash makes a folder of it for some readers."""
    try:
        size = len(f"{name}.tif".encode())
    except UnicodeEncodeError:
        return True
    return size > 255 or "\\" in name or any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name)


def _tell_alike(ids: Collection[str]) -> None:
    """Warn of ids that some disks take for one."""
    folded: dict[str, list[str]] = defaultdict(list)
    for name in ids:
        folded[name.casefold()].append(name)
    alike = [" and ".join(names) for names in folded.values() if len(names) > 1]
    if alike:
        say(f"warning: these differ in case only, and are one file where that does not count (Windows, macOS): {_listed(alike)}")


def _as_predicted(tests: dict[str, Path], found: Mapping[str, Path]) -> dict[str, Path]:
    """The test images by the ids of their answers: numbered files ``ID_0000, ID_0001`` are one case where answers are called ``ID``."""
    from pipeline.data import cases

    groups = cases.channel_groups(tests)
    if groups is None or sum(i in found for i in groups) <= sum(i in found for i in tests):
        return tests
    return {name: numbers[0] for name, numbers in groups.items()}


def _by_id(
    folder: Path, option: str, faults: Mapping[str, list[str]], kind: str, also: Mapping[str, Path] | None = None
) -> dict[str, Path]:
    """Images directly in ``folder`` by id, sorted; visualisations and overlays are none unless ``also`` names them."""
    from pipeline import files
    from pipeline.data import cases
    from pipeline.tasks import is_companion

    if not os.path.isdir(folder):
        raise UserError(f"{option} {folder}: no such folder.")
    found: dict[str, Path] = {}
    for path in sorted(cases.images(folder)):
        name = files.case_id(path)
        if also is not None and is_companion(name) and name not in also:
            continue
        if name in found:
            faults[kind].append(f"{name} ({found[name].name}, {path.name})")
        found.setdefault(name, path)
    return dict(sorted(found.items()))


def _checked(name: str, path: Path, test: Path, faults: Mapping[str, list[str]]) -> Answer | None:
    """Check one answer against its test image's header; None, with a line in ``faults``, when something is wrong."""
    from pipeline import files

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
        faults["wrong shape"].append(f"{name} (is {_size(got.shape)}, test image {_size((1, *wanted.shape[1:]))})")
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
    return Answer(id=name, path=path, shape=mask.shape, foreground=int(mask.sum(dtype="int64")), digest=_digest(mask))


def _axes_problem(path: Path, test: Path, dims: int) -> str | None:
    """What is wrong with how an answer of the right shape lies in the world; None where it lies as its test image does."""
    from pipeline import files
    from pipeline.grid import alignment, grid_of

    try:
        here, there = (grid_of(files.geometry(p, dims), dims) for p in (path, test))
        size = files.probe(test, dims).shape[1:]
    except files.FileError as error:
        return error.problem
    if here.family != there.family:
        return f"{path.name} and {test.name} order their axes differently"
    way = alignment(here, size, there, size)
    return None if way is not None and way.identity else "lies elsewhere in the world than its test image, or otherwise"


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[1:] if shape[0] == 1 else shape))


def _values(mask: np.ndarray) -> str:
    import numpy as np

    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    return "holds " + ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def _digest(mask: np.ndarray) -> str:
    return hashlib.sha256(mask.tobytes()).hexdigest()


def _report(predictions: Path, tests: int, faults: Mapping[str, list[str]]) -> str:
    lines = [f"{predictions}: not fit for submission, nothing was written ({tests} test images)."]
    for kind, cure in CURES.items():
        if faults.get(kind):
            lines.append(f"  {kind}: {_listed(faults[kind])}. {cure}.")
    return "\n".join(lines)


def _listed(names: Sequence[str], what: str = "") -> str:
    """``12 answers: a, b, c ... (2 more)``."""
    more = f" ... ({len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return f"{len(names)} {what}".strip() + ": " + ", ".join(names[:SHOWN]) + more


def table_differences(test_dir: Path, ids: Sequence[str]) -> list[str]:
    """What ``test.csv`` in or beside the folder says otherwise. The files decide: a table may be older than they are."""
    from pipeline.files import FileError, read_table

    folders = test_dir, Path(os.path.realpath(test_dir)).parent
    path = next((f / "test.csv" for f in folders if os.path.isfile(f / "test.csv")), None)
    if path is None:
        return []
    try:
        header, rows = read_table(path, ("id",))
    except FileError as error:
        return [f"{path} {error.problem}; it was not compared. {error.cure}"]
    if "id" not in header or not rows:
        return [f"{path} has no rows with a column id; it was not compared"]
    listed = dict.fromkeys(unicodedata.normalize("NFC", row.values["id"]) for row in rows)
    known = set(ids)
    without_file, without_row = [i for i in listed if i not in known], [i for i in ids if i not in listed]
    lines = [f"{path} names ids without a test image: {_listed(without_file)}"] if without_file else []
    return lines + ([f"{path} lacks ids of test images: {_listed(without_row)}"] if without_row else [])


# --- the zip -----------------------------------------------------------------------------------------------------------


def write_zip(out: Path, answers: Sequence[Answer]) -> None:
    """Write a flat zip of ``ID.tif``, sorted by id, whole or not at all; it takes its name only after it has been read back.

    Members are re-encoded from the masks and stored with one fixed time and mode, so that the bytes depend on nothing else.
    """
    from pipeline import files

    with files.whole(out) as temp:
        with zipfile.ZipFile(temp, "w") as archive:
            for answer, mask in _masks(answers, "packing"):
                archive.writestr(_member(answer.id), encode_tiff(mask))
        _verify_zip(temp, answers)


def _masks(answers: Sequence[Answer], what: str) -> Iterator[tuple[Answer, np.ndarray]]:
    """Each answer with its mask ``(*S)``, one in memory at a time. Raises UserError for a file that changed since the check."""
    from pipeline import files

    for answer in cli.progress(sorted(answers, key=lambda a: a.id), what, len(answers)):
        cli.stop.check()
        mask = files.read(answer.path, len(answer.shape), labels=True)[0][0]
        if mask.shape != answer.shape or _digest(mask) != answer.digest:
            raise UserError(f"{answer.path} changed while the submission was written. Let the prediction finish, then run again.")
        yield answer, mask


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{name}.tif", date_time=TIME)
    info.create_system = 3  # Unix, whatever this machine is: else the same answers give other bytes on Windows
    info.external_attr = 0o100644 << 16
    return info


def encode_tiff(mask: np.ndarray) -> bytes:
    """A uint8 array ``(Z, Y, X)`` or ``(Y, X)`` as TIFF, one LZW page per slice as in the competition's own masks."""
    import tifffile

    buffer = io.BytesIO()
    # Written page by page: as one array, three columns would pass for colours.
    with tifffile.TiffWriter(buffer) as tif:
        for page in mask.reshape(-1, *mask.shape[-2:]):
            tif.write(page, photometric="minisblack", compression="lzw", rowsperstrip=page.shape[0], metadata=None, software=False)
    return buffer.getvalue()


def decode_tiff(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The array that :func:`encode_tiff` was given."""
    import numpy as np
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        return np.stack([page.asarray() for page in tif.pages]).reshape(shape)


def _verify_zip(path: Path, answers: Sequence[Answer]) -> None:
    """Read everything back: names and order, checksums, and every mask to the last voxel."""
    with zipfile.ZipFile(path) as archive:
        names = [f"{a.id}.tif" for a in answers]
        good = archive.namelist() == names
        for answer in answers if good else ():
            cli.stop.check()
            # Reading a member compares its CRC.
            good = good and _digest(decode_tiff(archive.read(f"{answer.id}.tif"), answer.shape)) == answer.digest
    if not good:
        raise UserError(READ_BACK)


# --- run lengths -------------------------------------------------------------------------------------------------------


def encode_rle(mask: np.ndarray) -> str:
    """``start length`` pairs of the runs of non-zero voxels, separated by single spaces.

    Voxels are counted from 1 through the flat array in C order: the last axis (X) runs fastest, then Y, then Z.
    Runs are ascending and as long as possible. An empty mask is an empty string.

    >>> import numpy as np
    >>> encode_rle(np.array([[0, 1, 1], [1, 0, 1]]))
    '2 3 6 1'
    """
    import numpy as np

    flat = np.concatenate([[False], mask.ravel() != 0, [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    starts, ends = edges[::2], edges[1::2]
    return " ".join(map(str, np.stack([starts + 1, ends - starts], axis=1).ravel().tolist()))


def decode_rle(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 mask ``shape`` that :func:`encode_rle` was given. Raises UserError for text that is no such list.

    >>> decode_rle("2 3 6 1", (2, 3)).tolist()
    [[0, 1, 1], [1, 0, 1]]
    """
    import numpy as np

    words = text.split()
    if len(words) % 2 or not all(word.isascii() and word.isdigit() and len(word) < 19 for word in words):
        raise UserError(f"run lengths {text[:40]!r} are not pairs of whole numbers 'start length'.")
    starts, lengths = np.array([int(word) for word in words], np.int64).reshape(-1, 2).T
    ends = starts + lengths
    size = math.prod(shape)
    if len(starts) and (starts[0] < 1 or lengths.min() < 1 or ends[-1] > size + 1 or (starts[1:] <= ends[:-1]).any()):
        raise UserError(f"run lengths {text[:40]!r} overlap, are not ascending, or leave the {size} voxels of shape {shape}.")
    steps = np.zeros(size + 1, np.int8)
    steps[starts - 1] += 1
    steps[ends - 1] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).astype(np.uint8).reshape(shape)


def write_rle(out: Path, answers: Sequence[Answer]) -> None:
    """Write a table ``id,rle`` sorted by id, see :func:`encode_rle`; whole or not at all, and read back before it takes its name."""
    from pipeline import files

    with files.whole(out) as temp:
        with temp.open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["id", "rle"])
            for answer, mask in _masks(answers, "packing"):
                table.writerow([answer.id, encode_rle(mask)])
        _verify_rle(temp, answers)


def _verify_rle(path: Path, answers: Sequence[Answer]) -> None:
    with _long_fields(), path.open(newline="", encoding="utf-8") as stream:
        table = csv.reader(stream)
        good = next(table) == ["id", "rle"]
        for answer, row in zip(answers, table, strict=True):
            cli.stop.check()
            good = good and row[0] == answer.id and _digest(decode_rle(row[1], answer.shape)) == answer.digest
    if not good:
        raise UserError(READ_BACK)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read fields of any length; a volume's run lengths take megabytes."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


if __name__ == "__main__":
    raise SystemExit(main())
