"""Properties of everything that reads a document: whatever stands in it, the reader works or raises
UserError, and nothing else.

Documents are mutated from real ones: leaves and branches are replaced by odd values, bytes are cut,
changed and repeated.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, competition_folder, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import config, documents, files, limits, train
from pipeline.data import folds
from pipeline.files.documents import problem
from pipeline.inference import models, soft
from pipeline.inference.outputs import read_summary
from pipeline.networks.outline import bounded
from pipeline.records import NamedOptions, UserError
from pipeline.reporting import build
from pipeline.reporting.runs import load as load_report
from pipeline.runs import FoldFolder, RunFolder
from pipeline.training import checkpoint
from pipeline.workflows.ensemble import Spec

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
MANY = settings(max_examples=examples(60), suppress_health_check=list(HealthCheck))
FEW = settings(max_examples=examples(10), suppress_health_check=list(HealthCheck))
SOME = settings(max_examples=examples(20), suppress_health_check=list(HealthCheck))

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**9, -(10**9), 2**63, 10**40, 1e308, -0.5, 0.5, 1e-320]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=6),
    st.sampled_from(
        ["dice", "unet", "auto", "labels", "a" * 3000, "..", "/dev/null", "1:30", "\x00", "best"]
    ),
)
odd = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be replaced: every value of a document, inner ones too."""
    yield path
    for key, item in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from places(item, (*path, key))


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """The document with one to three values replaced, removed, or repeated under another key."""
    found = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from([p for p in places(found) if p] or [("",)]))
        at = found
        for key in parents:
            at = at[key]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if how == "remove":
            at.pop(last, None) if isinstance(at, dict) else at.pop(last)
        elif how == "add" and isinstance(at, dict):
            at[draw(st.text(max_size=6))] = draw(odd)
        elif isinstance(at, dict | list):
            at[last] = draw(odd)
        if not found:
            break
    return found


@st.composite
def mutilated(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of which some are changed, cut out, repeated or put in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(found)))
        end = draw(st.integers(start, min(len(found), start + 40)))
        new = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from(
                    [b"[" * 200, b"{", b"&a ", b"*a", b"!!", b"9" * 50, b"\xff\xfe", b"- "]
                ),
            )
        )
        found[start:end] = new
    return bytes(found)


def works_or_user_error(work: Callable[[], object], *named: str) -> None:
    """Run; a refusal is a UserError of bearable length that names the file."""
    try:
        work()
    except UserError as error:
        text = str(error)
        assert len(text) < 20_000
        assert all(name in text for name in named), text


# --- YAML -----------------------------------------------------------------------------------------


@MANY
@given(st.sampled_from(CONFIGS).flatmap(lambda path: mutilated(path.read_bytes())))
def test_bytes_of_a_config(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    works_or_user_error(lambda: config.load(path), str(path))
    works_or_user_error(
        lambda: config.structure(config.read_yaml(path), Spec, str(path)), str(path)
    )


@MANY
@given(st.sampled_from(CONFIGS).flatmap(lambda path: changed(yaml.safe_load(path.read_text()))))
def test_values_of_a_config(document: Any) -> None:
    def work() -> None:
        found = config.from_dict(document, "here")
        assert all(p.text for p in limits.problems(found))
        assert not [p for p in limits.problems(limits.clipped(found)) if p.keys[0] in limits.COUNTS]

    if isinstance(document, dict):
        works_or_user_error(work, "here")


@MANY
@given(
    st.text(max_size=40)
    | st.tuples(
        st.sampled_from(["train.epochs", "losses.0", "a.b", "network"]), st.text(max_size=20)
    ).map("=".join)
)
def test_overrides(text: str) -> None:
    data = config.read_yaml(CONFIGS[0])
    works_or_user_error(lambda: config.override(data, text), "--set")


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two folds, which tests change and put right again."""
    root = tmp_path_factory.mktemp("fuzzed")
    competition_folder(root / "data", cases=4)
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
        "--fold",
        "-1",
    ]
    assert (
        train.main(
            [str(w) for w in (*words, "--set", "train.epochs=2", "--set", "train.average=null")]
        )
        == 0
    )
    (root / "soft").mkdir()
    array = min((root / "run" / "fold_0" / "oof" / "soft").glob("*.npy"))
    shutil.copy(array, root / "soft" / "case.npy")
    shutil.copy(array.with_suffix(".json"), root / "soft" / "case.json")
    summary = {
        "files": [{"id": "100", "status": "done"}],
        "models": ["m"],
        "postprocess": [{"name": "threshold", "options": {}}],
        "inputs": 1,
    }
    files.write_json(root / "summary.json", summary)
    return root


READERS: dict[str, Callable[[Path], object]] = {
    "run/fold_0/result.json": lambda root: (
        FoldFolder(root / "run" / "fold_0").result(),
        FoldFolder(root / "run" / "fold_0").scores(),
    ),
    "run/cases.json": lambda root: RunFolder(root / "run").listing(),
    "run/environment.json": lambda root: RunFolder(root / "run").metrics_version(),
    "run/splits.json": lambda root: folds.load_or_plan(
        root / "run" / "splits.json", list, ["100", "101", "102", "103"]
    ),
    "run/summary.json": lambda root: build(root / "run"),
    "soft/case.json": lambda root: soft.load(root / "soft", "case"),
    "summary.json": lambda root: read_summary(root),
}


@pytest.mark.parametrize("name", READERS)
@SOME
@given(data=st.data())
def test_documents_of_a_run(name: str, run: Path, data: st.DataObject) -> None:
    path = run / name
    good = path.read_bytes()
    document = data.draw(changed(json.loads(good)))
    content = data.draw(st.one_of(st.just(json.dumps(document).encode()), mutilated(good)))
    try:
        path.write_bytes(content)
        works_or_user_error(lambda: READERS[name](run), path.name[:4])
    finally:
        path.write_bytes(good)


@FEW
@given(data=st.data())
def test_what_a_report_can_do_without(run: Path, data: st.DataObject) -> None:
    """A damaged log, listing or config leaves a gap; the page is made all the same."""
    name = data.draw(st.sampled_from(["fold_0/log.jsonl", "cases.json", "config.yaml"]))
    path = run / "run" / name
    good = path.read_bytes()
    try:
        path.write_bytes(data.draw(mutilated(good)))
        assert load_report(run / "run").summary
        assert build(run / "run")
    finally:
        path.write_bytes(good)


def as_file(path: Path, outer: dict[str, Any], header: Any, rest: bytes) -> None:
    text = json.dumps({**outer, "__metadata__": {"pipeline": json.dumps(header)}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def parts(content: bytes) -> tuple[dict[str, Any], Any, bytes]:
    """Tensors, this package's header and the numbers of a safetensors file."""
    size = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + size])
    return outer, json.loads(outer.pop("__metadata__")["pipeline"]), content[8 + size :]


@SOME
@given(data=st.data())
def test_model_files(run: Path, data: st.DataObject) -> None:
    path = run / "model.safetensors"
    content = (run / "run" / "fold_0" / "best_model.safetensors").read_bytes()
    outer, header, rest = parts(content)
    how = data.draw(st.sampled_from(["header", "header", "tensors", "bytes"]))
    if how == "header":
        as_file(path, outer, data.draw(changed(header)), rest)
    elif how == "tensors":
        as_file(path, data.draw(changed(outer)), header, rest)
    else:
        path.write_bytes(data.draw(mutilated(content)))
    works_or_user_error(lambda: models.build(models.load_model(path), str(path)), str(path))


@SOME
@given(data=st.data())
def test_states(run: Path, data: st.DataObject) -> None:
    """A fold goes on from a state, or says which one cannot be; the dry run says the same."""
    source = max((run / "run" / "fold_0" / "checkpoint_latest").glob("*.safetensors"))
    outer, header, rest = parts(source.read_bytes())
    folder = run / "states"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "new.safetensors"
    as_file(path, outer, data.draw(changed(header)), rest)
    path.rename(
        folder / f"epoch_00002-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.safetensors"
    )
    works_or_user_error(lambda: checkpoint.load_fold(folder), str(folder))


# --- tables and schemas ---------------------------------------------------------------------------


@MANY
@given(mutilated(b'id,scroll_id\n100,a\n101,b\n102,"c,d"\n'))
def test_tables(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_bytes(content)
    works_or_user_error(lambda: files.read_table(path, ("id", "scroll_id")), str(path))


@MANY
@given(
    odd,
    st.sampled_from(
        [
            documents.Result,
            documents.Listing,
            documents.RunSummary,
            documents.SoftMetaJson,
            documents.StateHeader,
        ]
    ),
)
def test_schemas_answer_for_anything(value: Any, schema: Any) -> None:
    found = problem(value, schema)
    assert found is None or 0 < len(found) < 1000


def test_seeds_of_torch_stay() -> None:
    """Outlines of models draw no random number: what is trained afterwards does not depend on who
    looked.
    """
    torch.manual_seed(3)
    before = torch.get_rng_state()
    bounded(NamedOptions(name="unet", options={"channels": [4, 4, 8, 8, 8]}), 1, 1, 3)
    assert torch.equal(before, torch.get_rng_state())
