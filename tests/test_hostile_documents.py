"""Documents that a user or an earlier command can have written: each refusal names path, key, rule
and way out, through commands.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, competition_folder
from safetensors.numpy import save_file

from pipeline import ensemble, evaluate, predict, report, submit, train, tune


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a run of two folds on it and a prediction of each; read-only by convention."""
    root = tmp_path_factory.mktemp("made")
    competition_folder(root / "data")
    (root / "tiny.yaml").write_text(TINY)
    words = [
        "--config",
        root / "tiny.yaml",
        "--data-dir",
        root / "data",
        "--out",
        root / "run",
        "--device",
        "cpu",
    ]
    assert train.main([str(w) for w in (*words, "--fold", "-1", "--set", "train.epochs=2")]) == 0
    for n in (0, 1):
        words = [
            "--checkpoint",
            root / "run" / f"fold_{n}",
            "--input",
            root / "data" / "test_images",
            "--save-soft",
        ]
        assert (
            predict.main([str(w) for w in (*words, "--output", root / f"p{n}", "--device", "cpu")])
            == 0
        )
    return root


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of it that may be damaged."""
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def dry(root: Path, *more: str) -> int:
    words = [
        "--config",
        root / "tiny.yaml",
        "--data-dir",
        root / "data",
        "--out",
        root / "new",
        "--device",
        "cpu",
        "--dry-run",
    ]
    return train.main([*map(str, words), *more])


# --- YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"train: {epochs: [1}", "not readable as YAML"),
        (b"name: !!set {a}", "the tag"),
        (b"name: !!binary aGFsbG8=", "the tag"),
        (b"? [1, 2]\n: 3", "keys are texts"),
        (b"null: 1", "is no text to YAML"),
        (b"name: a\nname: b", "stands twice"),
        (b"a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "anchors and aliases"),
        (b"a: " + b"[" * 5000, "levels"),
        (b"name: \x00", "not readable as YAML"),
        ("name: t\u00efny".encode("latin-1"), "no UTF-8 text"),
        ("name: tiny".encode("utf-16"), "no UTF-8 text"),
        (b"name:\n\t- a", "not readable as YAML"),
        (b"seed: " + b"9" * 100_000, "no value of the kind int"),
        (b"seed: 1:30", "a number to base 60"),
        (b"seed: 010", "a number to base 8"),
        (b"", "must hold 'key: value' lines"),
        (b"- a", "must hold 'key: value' lines"),
        (b"a: 1\n---\nb: 2", "single document"),
        (b"x: " + b"a" * 300_000, "at most 262,144"),
    ],
)
def test_a_config_that_is_none_is_refused(
    content: bytes, rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    assert train.main(["--config", str(path), "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert str(path) in told
    assert rule in told
    assert len(told) < 2000
    assert ensemble.main(["--spec", str(path), "--output", str(tmp_path / "out")]) == 2
    assert rule in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("train.epochs=[1", "not readable as YAML"),
        ("=1", "is not KEY=VALUE"),
        ("..=1", "is not KEY=VALUE"),
        ("losses.9.name=x", "no position in a list"),
        ("losses.\u00b2.name=x", "no position in a list"),
        ("seed.x=1", "has no keys"),
        ("a" + ".a" * 5000 + "=1", "levels"),
        ("seed=" + "9" * 5000, "no value of the kind int"),
        ("train.epochs=2020-01-01", "train.epochs"),
        ("data.folds.pattern='" + "(" * 900 + "a" + ")" * 900 + "'", "regular expression"),
        ("data.folds.count=1000000000", "must be at most 1000"),
    ],
)
def test_an_override_that_cannot_be_is_refused(
    text: str, rule: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry(made, "--set", text) == 2
    said = capsys.readouterr()
    assert rule in said.out + said.err
    assert "Traceback" not in said.out + said.err


def test_a_date_is_a_text_and_good_numbers_stay(made: Path) -> None:
    assert (
        dry(
            made,
            "--set",
            "name=2026-11-01",
            "--set",
            "train.optimizer.options.lr=1e-4",
            "--set",
            "seed=0x10",
        )
        == 0
    )


def test_options_of_the_normalisation_are_one_fault(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry(made, "--set", "data.normalise={name: percentile, options: {low: x}}") == 2
    said = capsys.readouterr()
    faults = [line for line in (said.out + said.err).splitlines() if "percentile" in line]
    assert len(faults) == 1
    assert "data.normalise" in faults[0]
    assert "option low is 'x', must be" in faults[0]


def test_a_pattern_that_never_ends_is_stopped(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.patterns.first_groups.__defaults__", (1.0,))
    for kind, old in (("images", "100"), ("labels", "100")):
        folder = own / "data" / f"train_{kind}"
        (folder / f"{old}.tif").rename(folder / f"{'a' * 60}b.tif")
    assert dry(own, "--set", "data.folds.pattern='^((a+)+)+$'") == 2
    said = capsys.readouterr()
    assert "data.folds.pattern" in said.out + said.err
    assert "repetition inside a repetition" in said.out + said.err


# --- CSV ------------------------------------------------------------------------------------------

HEAD = b"id,scroll_id\n100,a\n"


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (HEAD + b"101,\xe9\n", "byte 0xe9 in line 3"),
        (HEAD.decode().encode("utf-16"), "UTF-16"),
        (HEAD.decode().encode("utf-16-le"), "zero byte in line 1"),
        (HEAD + b"101\n", "1 values in line 3, but 2 columns"),
        (HEAD + b"101,b,c\n", "3 values in line 3, but 2 columns"),
        (HEAD + b'101,"b\n102,a\n', "from line 3 on"),
        (HEAD + b"101," + b"b" * 200_000 + b"\n", "from line 3 on"),
        (b"id,id\n100,a\n", "the column 'id' twice"),
        (HEAD.replace(b",", b";"), "semicolons between its columns"),
        (b"id,scroll_id\n", "no row"),
        (HEAD + b",b\n", "no id in line 3"),
        (HEAD + b"100,b\n", "two groups"),
    ],
)
def test_a_table_of_groups_that_is_none_names_its_line(
    content: bytes, rule: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "data" / "train.csv").write_bytes(content)
    assert dry(own) == 2
    said = capsys.readouterr()
    assert str(own / "data" / "train.csv") in said.out + said.err
    assert rule in said.out + said.err


def test_tables_of_spreadsheets_are_read(own: Path) -> None:
    """A byte order mark, blanks, Windows line ends, empty lines and empty cells behind the last
    column.
    """
    rows = "".join(f"{100 + n} , {'ab'[n % 2]} ,,\r\n" for n in range(6))
    (own / "data" / "train.csv").write_bytes(
        ("\ufeffid,scroll_id\r\n" + rows + "\r\n,,,\r\n").encode()
    )
    assert dry(own, "--set", "data.folds={count: 2, by: group}") == 0


@pytest.mark.parametrize(
    "content", [b"id\n9\xe9\n", "id\n900\n".encode("utf-16"), b"id,x\n900\n", b'id\n"900\n']
)
def test_a_test_table_that_is_none_is_said(
    content: bytes, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "data" / "test.csv").write_bytes(content)
    words = [
        "--predictions",
        own / "p0",
        "--test-dir",
        own / "data" / "test_images",
        "--out",
        own / "submission.zip",
    ]
    assert submit.main([str(w) for w in words]) == 0
    said = capsys.readouterr()
    assert f"{own / 'data' / 'test.csv'} " in said.out + said.err
    assert "it was not compared" in said.out + said.err


# --- JSON -----------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[str], bytes]] = {
    "cut": lambda text: text[: len(text) // 2].encode(),
    "empty": lambda text: b"",
    "list": lambda text: b"[]",
    "text": lambda text: b'"x"',
    "null": lambda text: b"null",
    "deep": lambda text: b"[" * 5000 + b"]" * 5000,
    "utf-8": lambda text: b'{"\xff": 1}',
    "twice": lambda text: b'{"a": 1, "a": 2}',
    "number": lambda text: b"9" * 10_000,
}


def evaluated(root: Path) -> int:
    oof = root / "run" / "fold_0" / "oof"
    return evaluate.main(
        ["--predictions", str(oof), "--labels", str(root / "data" / "train_labels"), "--partial"]
    )


def fused(root: Path) -> int:
    return ensemble.main(
        ["--fold-dirs", str(root / "p0"), str(root / "p1"), "--output", str(root / "fused")]
    )


def continued(root: Path) -> int:
    words = [
        "--config",
        root / "tiny.yaml",
        "--data-dir",
        root / "data",
        "--out",
        root / "run",
        "--device",
        "cpu",
    ]
    return train.main([str(w) for w in (*words, "--fold", "-1", "--set", "train.epochs=2")])


def predicted(root: Path) -> int:
    words = [
        "--checkpoint",
        root / "run",
        "--input",
        root / "data" / "test_images",
        "--output",
        root / "again",
        "--device",
        "cpu",
    ]
    return predict.main([str(w) for w in words])


def reported(root: Path) -> int:
    return report.main([str(root / "run")])


def tuned(root: Path) -> int:
    return tune.main([str(root / "run"), "--out", str(root / "tuned.yaml")])


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("run/fold_0/result.json", predicted),
        ("run/fold_0/result.json", continued),
        ("run/cases.json", continued),
        ("run/cases.json", tuned),
        ("run/splits.json", continued),
        ("run/splits.json", evaluated),
        ("run/environment.json", continued),
        ("run/summary.json", reported),
        ("p0/summary.json", fused),
        ("p0/soft/900.json", fused),
    ],
)
def test_a_damaged_document_is_named_with_its_way_out(
    name: str,
    command: Callable[[Path], int],
    damage: str,
    own: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = own / name
    path.write_bytes(DAMAGE[damage](path.read_text()))
    code = command(own)
    said = capsys.readouterr()
    assert code == (3 if "soft" in name else 2)  # the other case of that member is fused
    told = said.out if "soft" in name else said.err
    assert str(path) in told
    assert len(told) < 3000


@pytest.mark.parametrize(
    ("name", "change", "command", "rule"),
    [
        (
            "run/fold_0/result.json",
            {"status": 3},
            predicted,
            "status is 3, must be one of completed, failed, stopped",
        ),
        ("run/fold_0/result.json", {"fold": 1}, predicted, "fold is 1, but it lies in fold_0"),
        (
            "run/fold_0/result.json",
            {"cases": {"best": [1]}},
            continued,
            "cases.best is a list of 1, must be a mapping",
        ),
        (
            "run/fold_0/result.json",
            {"score": "x"},
            continued,
            "score is 'x', must be a finite number or null",
        ),
        (
            "run/cases.json",
            {"100": {"content": {"image": 3}}},
            tuned,
            "100.content.image is 3, must be a text or null",
        ),
        (
            "run/splits.json",
            {"folds": [{"train": 3, "val": []}]},
            continued,
            "folds.0.train is 3, must be a list",
        ),
        (
            "run/splits.json",
            {"folds": [{"train": [["a"]], "val": []}]},
            evaluated,
            "folds.0.train.0 is a list of 1, must be a text",
        ),
        (
            "run/summary.json",
            {"folds": [{"fold": "a", "status": "x"}]},
            reported,
            "folds.0.fold is 'a', must be a whole number",
        ),
        ("run/summary.json", {"cases": {"100": 3}}, reported, "cases.100 is 3, must be a mapping"),
        ("run/summary.json", {"out_of_fold": {"dice": "x"}}, reported, "out_of_fold.dice is 'x'"),
        (
            "p0/summary.json",
            {"files": [{"id": ["a"]}]},
            fused,
            "files.0.id is a list of 1, must be a text",
        ),
        (
            "p0/soft/900.json",
            {"geometry": {"format": "x", "meta": {}}},
            fused,
            "geometry.format is 'x', must be one of nifti, tiff",
        ),
        (
            "p0/soft/900.json",
            {"geometry": {"format": "tiff", "meta": {"resolution": 3}}},
            fused,
            "geometry.meta.resolution is 3",
        ),
        ("p0/soft/900.json", {"suffix": ".exe"}, fused, "suffix '.exe' is none of"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(
    name: str,
    change: dict[str, Any],
    command: Callable[[Path], int],
    rule: str,
    own: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = own / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert command(own) == (3 if "soft" in name else 2)
    said = capsys.readouterr()
    told = said.out if "soft" in name else said.err
    assert str(path) in told
    assert rule in told


def test_a_report_goes_on_without_what_is_damaged(own: Path) -> None:
    """Curves, cases and tuning are left out by name; the scores are there."""
    log = own / "run" / "fold_0" / "log.jsonl"
    log.write_text(
        "[" * 5000
        + '\n{"epoch": "x"}\n{"epoch": 0, "train_loss": "x", "lr": [1]}\n'
        + log.read_text()
    )
    (own / "run" / "cases.json").write_text('{"100": 3}')
    (own / "run" / "config.yaml").write_text("data: {folds: {count: 1000000000}}")
    (own / "run" / "tuning").mkdir()
    (own / "run" / "tuning" / "result.json").write_text(
        '{"metric": {"name": "dice"}, "rows": [{"name": 3}]}'
    )
    assert reported(own) == 0
    page = (own / "run" / "report.html").read_text()
    assert "2 unreadable lines are left out" in page
    assert "cases.json is missing or not readable: it 100 is 3, must be a mapping" in page
    assert "data.folds.count is 1000000000" in page
    assert "rows.0.name is 3" in page


# --- model files ----------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The model file with another header of this package."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + size])
    header = json.loads(outer["__metadata__"]["pipeline"])
    changed = change(header)
    outer["__metadata__"]["pipeline"] = (
        changed if isinstance(changed, str) else json.dumps(header if changed is None else changed)
    )
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda h: {**h, "config": "x"}, "config is 'x', must be a mapping"),
        (lambda h: {**h, "config": [1]}, "config is a list of 1, must be a mapping"),
        (lambda h: {**h, "config": None}, "config is None, must be a mapping"),
        (lambda h: '{"config": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deep"),
        (lambda h: {**h, "channels": 5}, "channels is 5"),
        (lambda h: {**h, "channels": [-1, 1]}, "channels"),
        (lambda h: {**h, "channels": ["a", 1]}, "channels"),
        (lambda h: {**h, "channels": [0, 0]}, "channels"),
        (lambda h: {**h, "channels": [10**9, 1]}, "channels"),
        (lambda h: {**h, "channels": [1, 5]}, "gives 1 output channels"),
        (lambda h: {**h, "fold": "a"}, "fold is 'a', must be a whole number"),
        (lambda h: {**h, "epoch": None}, "epoch is None"),
        (lambda h: {**h, "score": []}, "score is []"),
        (lambda h: {**h, "trained_on": 3}, "trained_on is 3"),
        (lambda h: {**h, "trained_on": {"spacing": "x"}}, "trained_on.spacing is 'x'"),
        (lambda h: {k: v for k, v in h.items() if k != "kind"}, "lacks the key kind"),
        (lambda h: "{}", "lacks the key config"),
        (lambda h: "[]", "header"),
        (
            lambda h: h["config"]["network"]["options"].update(channels=[1500] * 5),
            "weights do not fit",
        ),
        (
            lambda h: h["config"]["network"]["options"].update(channels=[10000] * 5),
            "weights, must be at most",
        ),
        (
            lambda h: h["config"].update(metrics=["dice"] * 100_000),
            "entries, must have at most 16,384",
        ),
        (
            lambda h: h["config"].update(postprocess=[{"name": "dust"}] * 1000),
            "postprocess has 1000 entries, must have at most 256",
        ),
        (
            lambda h: h["config"]["network"]["options"].update(channels=[4] * 1000),
            "at most 32 entries",
        ),
        (lambda h: h["config"]["network"]["options"].update(channels="x"), "channels"),
        (
            lambda h: h["config"].update(
                network={"name": "image_unet", "options": {"depth": 10**6}}
            ),
            "must be at most 16",
        ),
        (
            lambda h: h["config"]["data"].update(
                normalise={"name": "percentile", "options": {"low": "x"}}
            ),
            "option low is 'x'",
        ),
        (lambda h: h["config"]["predict"].update(patch=[10**6] * 3), "must be at most 32768"),
    ],
)
def test_a_model_whose_header_is_none_is_refused_before_memory_is_taken(
    change: Callable[[dict[str, Any]], Any],
    rule: str,
    own: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = own / "run" / "fold_0" / "best_model.safetensors"
    rewritten(path, change)
    words = [
        "--checkpoint",
        path,
        "--input",
        own / "data" / "test_images",
        "--output",
        own / "again",
        "--device",
        "cpu",
    ]
    assert predict.main([str(w) for w in words]) == 2
    told = capsys.readouterr().err
    assert rule in told
    assert str(path) in told
    assert len(told) < 3000


@pytest.mark.parametrize(
    "damage", ["cut", "header", "huge", "beyond", "zero tensors", "integers", "float8"]
)
def test_a_model_of_other_bytes_is_refused_by_name(
    damage: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own / "run" / "fold_0" / "best_model.safetensors"
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + size])
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "header":
        path.write_bytes(b"\xff" * 8 + content[8:])
    elif damage == "huge":
        path.write_bytes(struct.pack("<Q", 10**8) + content[8:])
    elif damage in ("zero tensors", "integers"):
        names = [k for k in outer if k != "__metadata__"]
        arrays = (
            {k: np.zeros(outer[k]["shape"], np.int32) for k in names}
            if damage == "integers"
            else {}
        )
        save_file(arrays, path, metadata=outer["__metadata__"])
    else:
        name = next(k for k in outer if k != "__metadata__")
        if damage == "beyond":
            outer[name]["data_offsets"][1] += 10**9
        else:
            outer[name]["dtype"] = "F8_E4M3"
        text = json.dumps(outer).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    words = [
        "--checkpoint",
        path,
        "--input",
        own / "data" / "test_images",
        "--output",
        own / "again",
        "--device",
        "cpu",
    ]
    assert predict.main([str(w) for w in words]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_description_of_very_many_channels_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, name in (("imagesTr", "a_0000.npy"), ("labelsTr", "a.npy")):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / name, np.zeros((4, 4, 4), np.uint8))
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {str(n): "x" for n in range(100_000)}})
    )
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = [
        "--config",
        tmp_path / "tiny.yaml",
        "--data-dir",
        tmp_path,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--dry-run",
    ]
    assert train.main([*map(str, words), "--set", "data.layout=nnunet"]) == 2
    told = "".join(capsys.readouterr())
    assert "has no channel 0001" in told
    assert told.count("has no channel") <= 8
