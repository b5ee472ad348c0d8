"""The pages of docs/ and the README: links, commands, configs and paths that they name exist, YAML
is what the schema takes, and the generated pages are current.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from documents import ROOT, python_blocks

import pipeline
from pipeline import cli
from pipeline.__main__ import COMMANDS
from pipeline.config import ConfigError, Data, Predict, Train, from_dict, load, override, structure
from pipeline.data.augment import AUGMENT
from pipeline.data.normalise import NORMALISE
from pipeline.losses import LOSSES
from pipeline.metrics import METRICS
from pipeline.networks import NETWORKS
from pipeline.postprocess.table import POSTPROCESS
from pipeline.registry import Registry, function_of
from pipeline.training.optim import OPTIMIZERS, SCHEDULES
from pipeline.workflows.fuse import Spec

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(p for p in sorted(DOCS.rglob("*.md")) if "_build" not in p.parts)]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def outside_code(text: str) -> str:
    """A page without its blocks and spans of code."""
    return re.sub(r"`[^`\n]*`", "``", FENCE.sub("", text))


def module(path: Path) -> ModuleType:
    """A file that is no part of the package, as a module."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


# --- links ----------------------------------------------------------------------------------------


def slugs(text: str) -> set[str]:
    """Anchors of the headings, as code hosts and the site make them."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,4} (.+)$", FENCE.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def broken(page: Path, text: str) -> list[str]:
    """Links of a page that lead nowhere."""
    faults = []
    plain = re.sub(r"`[^`\n]*`", "code", FENCE.sub("", text))
    for link in re.findall(r"\]\(([^)\s]+)\)", plain):
        path, _, anchor = link.partition("#")
        if path.startswith(("http://", "https://", "mailto:")):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            faults.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in slugs(text_of(target)):
            faults.append(f"{link}: no such heading")
    return faults


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, text_of(page)) == []


def test_a_broken_link_would_be_found() -> None:
    page = DOCS / "index.md"
    text = "[a](start.md#the-demo) [b](start.md#no-such) [c](no.md) [d](https://example.org)"
    assert broken(page, text) == ["start.md#no-such: no such heading", "no.md: no such file"]


# --- commands -------------------------------------------------------------------------------------

ASSIGNMENTS = r"(?:[A-Z_]+=\S+ +)*"
COMMAND = re.compile(
    rf"^ *(?:\$ )?({ASSIGNMENTS}(?:python -m pipeline\b|pipeline\b(?! =)|python data_prep/"
    rf"|python tests/|torchrun |slurm/\w|sbatch |make |pip install ).*)$"
)


def lines_of(text: str) -> Iterator[str]:
    """Command lines in blocks of code, those that go on in the next line in one."""
    text = re.sub(r"^<!--.*?-->$", "", text, flags=re.MULTILINE)
    indented = re.findall(r"^    .+$", FENCE.sub("", text), re.MULTILINE)
    fenced = [
        body for _, kind, body in FENCE.findall(text) if kind in ("", "sh", "bash", "console")
    ]
    for body in [*fenced, "\n".join(indented)]:
        for line in re.sub(r"\\\n\s*", " ", body).splitlines():
            found = COMMAND.match(re.sub(r"\s+#\s.*$", "", line))
            if found:
                yield found[1].strip()


@functools.cache
def parser_of(name: str) -> argparse.ArgumentParser | None:
    """Parser of a command of the package or of a script; None for a script without one."""
    if name.startswith("data_prep/"):
        made = importlib.import_module(Path(name).stem)
        return made.parser() if hasattr(made, "parser") else None
    return importlib.import_module(f"pipeline.{name}").parser()


def fault_of(line: str) -> str:
    """What is wrong with a command line; empty: nothing."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        return str(error)
    variables = [w for w in words if re.match(r"[A-Z_]+=", w)]
    words = words[len(variables) :]
    if words[0].startswith("slurm/") or words[0] == "sbatch":
        return batch_fault(variables, words)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", text_of(ROOT / "Makefile"), re.MULTILINE)
        return "" if words[1] in targets else f"no target {words[1]}"
    if words[0] == "pip":
        return pip_fault(words)
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    return python_fault(words)


def python_fault(words: list[str]) -> str:
    """What is wrong with a command of the package or a script."""
    if words[:2] == ["python", "-m"]:
        words = [*words[2].split(".", 1), *words[3:]]
    elif words[0] == "python":
        if not (ROOT / words[1]).is_file():
            return f"no file {words[1]}"
        if words[1].startswith("tests/"):
            return ""
        words = ["", *words[1:]]
    if len(words) == 1 or words[1] in ("COMMAND", "--help"):
        return ""
    if words[0] == "pipeline" and words[1] not in COMMANDS:
        return f"no command {words[1]}"
    parser = parser_of(words[1])
    return "" if parser is None else parse_fault(parser, words[2:])


def parse_fault(parser: argparse.ArgumentParser, words: list[str]) -> str:
    """What a parser says of the words; also overrides that no config has."""
    if "--help" in words:
        return ""
    said: list[str] = []

    def error(message: str) -> None:
        said.append(message)
        raise argparse.ArgumentError(None, message)

    parser.error = error  # type: ignore[method-assign,assignment]
    try:
        found = parser.parse_args(cli.dashes(words))
    except argparse.ArgumentError:
        return said[0]
    return config_fault(found)


def config_fault(found: argparse.Namespace) -> str:
    """What is wrong with the config that a command names, with its overrides."""
    config = str(getattr(found, "config", None))
    named = f"configs/{config}.yaml"  # one that comes with the package, by its name
    config = named if (ROOT / named).is_file() else config
    try:
        if config.startswith("configs/"):
            load(ROOT / config, getattr(found, "set", ()))
        else:
            data = dict(MINIMAL)
            for text in getattr(found, "set", ()):
                override(data, text)
            from_dict(data)
    except ConfigError as error:
        return str(error)
    return ""


def batch_fault(variables: list[str], words: list[str]) -> str:
    """What is wrong with a line that submits to Slurm."""
    script = next((w for w in words if w.startswith("slurm/")), "")
    if not (ROOT / script).is_file():
        return f"no file {script}"
    known = "".join(text_of(p) for p in (ROOT / "slurm").glob("*.s*"))
    names = [v.split("=")[0] for v in variables]
    unknown = [n for n in names if not re.search(rf"\b{n}\b", known)]
    return f"no script reads {', '.join(unknown)}" if unknown else ""


def pip_fault(words: list[str]) -> str:
    """What is wrong with an installation: the package comes from a path, and extras exist."""
    extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    for word in words[2:]:
        name, _, some = word.rstrip("]").partition("[")
        if name in ("pipeline", "imaging-pipeline"):
            return f"{word} is not published"
        missing = set(filter(None, some.split(","))) - set(extras)
        if missing:
            return f"no extras {missing}"
    return ""


def optional(line: str) -> str:
    """A usage line with everything that may be left out."""
    return re.sub(r"(?<=\s)\[(?=[-\w])|(?<=[\w.])\](?=\s|$)", "", line)


@every_page
def test_command_lines_parse(page: Path) -> None:
    usage = page.parent.name == "reference"
    lines = [optional(line) if usage else line for line in lines_of(text_of(page))]
    faults = {line: fault for line in lines if (fault := fault_of(line))}
    assert faults == {}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("pipeline train --confg x.yaml", "unrecognized arguments"),
        ("pipeline trian --config x.yaml", "no command trian"),
        ("python -m pipeline.predict --checkpoint r --input i --output o --norms some", "invalid"),
        ("pipeline train --config configs/none.yaml", "no such config file"),
        ("pipeline train --config configs/demo.yaml --set train.epoch=3", "epochs"),
        ("python data_prep/make_pairs.py A B --kind fog", "invalid choice"),
        ("SHARD=3 slurm/submit_all.sh", "no script reads SHARD"),
        ("make coffee", "no target coffee"),
        ('pip install "pipeline[medical]"', "not published"),
    ],
)
def test_a_wrong_command_would_be_found(line: str, fault: str) -> None:
    parser_of.cache_clear()
    assert fault in fault_of(line)


def test_commands_in_sentences_have_options_that_exist() -> None:
    faults = []
    for page in PAGES:
        for span in re.findall(r"`((?:python -m )?pipeline[. ]\w+ [^`\n]+)`", text_of(page)):
            words = re.sub(r"^(?:python -m )?pipeline[. ]", "", span).split()
            if words[0] not in COMMANDS:
                continue
            parser = parser_of(words[0])
            assert parser is not None
            known = parser._option_string_actions
            given = [w.split("=")[0].rstrip(",;.") for w in words if w.startswith("--")]
            faults += [f"{page.name}: {span}: {w}" for w in given if w not in known]
    assert faults == []


# --- paths ----------------------------------------------------------------------------------------

NAMED = re.compile(
    r"(?<![\w/.])((?:configs|docs|tests|slurm|data_prep|examples|pipeline)/[\w./-]*\w)(::\w+)?"
)
PLACEHOLDERS = ("configs/mine.yaml",)


@every_page
def test_paths_that_are_named_exist(page: Path) -> None:
    missing = []
    for path, test in NAMED.findall(text_of(page)):
        name = path.split("/")[-1]
        if path in PLACEHOLDERS or re.match(r"[A-Z_]+(\.\w+)?$", name):
            continue
        file = ROOT / path
        if not file.exists() and not list(file.parent.glob(f"{name}.*")):
            missing.append(path)
        elif test and f"def {test[2:]}(" not in text_of(file):
            missing.append(path + test)
    assert missing == []


# --- YAML -----------------------------------------------------------------------------------------

MINIMAL: dict[str, Any] = {"name": "page", "network": "unet", "losses": ["dice"]}

TABLES: dict[str, Registry[Any]] = {
    "network": NETWORKS,
    "losses": LOSSES,
    "metrics": METRICS,
    "postprocess": POSTPROCESS,
    "augment": AUGMENT,
    "normalise": NORMALISE,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}


def entry_faults(data: Any) -> Iterator[str]:
    """Names and options of entries that their tables do not have."""
    if not isinstance(data, Mapping):
        return
    for key, value in data.items():
        if key in TABLES:
            for entry in value if isinstance(value, list) else [value]:
                yield from entry_fault(TABLES[key], entry)
        else:
            yield from entry_faults(value)


def entry_fault(table: Registry[Any], entry: Any) -> Iterator[str]:
    named: dict[str, Any] = {"name": entry} if isinstance(entry, str) else entry
    name, options = table.resolve(named["name"], named.get("options", {}))
    if name not in table:
        yield f"no {table.kind} {name}"
        return
    known = {*inspect.signature(function_of(table[name])).parameters, "mm3"}
    yield from (f"{table.kind} {name} has no option {o}" for o in options if o not in known)


def yaml_fault(text: str) -> str:
    """What is wrong with a block of YAML: a config, sections of one, or an ensemble."""
    data = yaml.safe_load(text)
    faults = list(entry_faults(data))
    if faults:
        return faults[0]
    try:
        if "members" in data:
            structure(data, Spec, "page")
        elif {"name", "network", "losses"} <= set(data):
            from_dict(data)
        else:
            section_check(data)
    except ConfigError as error:
        return str(error)
    return ""


def section_check(data: Mapping[str, Any]) -> None:
    """Read each section by itself; a fragment need not make a whole config."""
    kinds = {"data": Data, "train": Train, "predict": Predict}
    for key, value in data.items():
        if key in kinds:
            size = {"size": [8, 8]} if value.get("dims") == 2 and "patch" not in value else None
            structure({**value, **({"patch": size} if size else {})}, kinds[key], f"page: {key}")
        else:
            from_dict({**MINIMAL, key: value})


@every_page
def test_yaml_is_what_the_schema_takes(page: Path) -> None:
    text = text_of(page)
    blocks = [body for _, kind, body in FENCE.findall(text) if kind == "yaml"]
    faults = {block: fault for block in blocks if (fault := yaml_fault(block))}
    assert faults == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("losses: [dise]", "no loss dise"),
        ("data: {clases: 3}", "classes"),
        ("train: {epochs: 0}", "at least 1"),
        ("postprocess: [{name: dust, options: {under: 3}}]", "no option under"),
        ("members: [{run: a, wait: 2}]", "weight"),
        ("name: a\nnetwork: unet\nlosses: [dice]\nepochs: 3", "epochs"),
    ],
)
def test_wrong_yaml_would_be_found(text: str, fault: str) -> None:
    assert fault in yaml_fault(text)


# --- generated pages, sidebar, references ---------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    before = list(sys.path)
    try:
        return module(DOCS / "generate.py")
    finally:
        sys.path[:] = before


def test_generated_pages_are_current(generate: ModuleType) -> None:
    """Otherwise run: python docs/generate.py"""
    pages = generate.pages()
    stale = [
        str(path)
        for path, text in pages.items()
        if text.rstrip("\n") != text_of(DOCS / path).rstrip("\n")
    ]
    assert stale == []
    reference = {p.relative_to(DOCS) for p in (DOCS / "reference").glob("*.md")}
    assert reference <= set(pages)


def test_a_new_entry_makes_a_page_stale(generate: ModuleType) -> None:
    with SCHEDULES.restored() as entries:
        entries["further"] = entries["constant"]
        assert generate.training_page() not in text_of(DOCS / "reference" / "training.md")


def test_every_key_is_in_the_reference(generate: ModuleType) -> None:
    page = text_of(DOCS / "reference" / "config.md")
    for key, _, _, text, _ in generate.keys(generate.schema.Config):
        assert f" `{key}`\n" in page, key
        assert text or key in ("data", "data.folds", "data.patch", "train", "predict", *NO_TEXT), (
            key
        )


NO_TEXT = ("train.stop", "train.validate")


def test_the_sidebar_has_every_page_once() -> None:
    named = re.search(r"^SIDEBAR = (\{.*?^\})", text_of(DOCS / "conf.py"), re.MULTILINE | re.DOTALL)
    assert named is not None
    listed = [page for pages in ast.literal_eval(named[1]).values() for page in pages]
    there = {
        str(p.relative_to(DOCS).with_suffix(""))
        for p in DOCS.rglob("*")
        if p.suffix in (".md", ".rst") and "_build" not in p.parts
    }
    assert len(listed) == len(set(listed))
    assert {*listed, "index"} == there


def test_every_public_name_is_in_the_reference() -> None:
    page = text_of(DOCS / "api" / "pipeline.rst")
    documented = re.findall(r"^\.\. auto\w+:: pipeline\.(\w+)$", page, re.MULTILINE)
    assert sorted(documented) == sorted(pipeline.__all__)


ROLE = re.compile(r":(?:py:)?(?:mod|func|class|data|meth|attr|exc):`~?([\w.]+)`")


def resolves(name: str, inside: ModuleType) -> bool:
    """Whether a name of a docstring is one of its module, a public one, or a whole path."""
    if name in pipeline.__all__:
        return True
    parts = name.split(".")
    for home in (inside, *(vars(inside).values())):
        if (isinstance(home, ModuleType) and home is inside) or inspect.isclass(home):
            found: Any = home
            for part in parts:
                found = getattr(found, part, None) if found is not None else None
            if found is not None:
                return True
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_references_in_docstrings_resolve() -> None:
    faults = []
    for info in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if info.name.endswith("__main__"):
            continue
        inside = importlib.import_module(info.name)
        text = text_of(Path(str(inside.__file__)))
        for name in ROLE.findall(re.sub(r"^ *>>> .*$", "", text, flags=re.MULTILINE)):
            if not resolves(name, inside):
                faults.append(f"{info.name}: {name}")
    assert faults == []


# --- what the pages say and do not say ------------------------------------------------------------


def test_blocks_that_are_not_run_are_few_and_have_a_reason() -> None:
    reasons = [(p.name, reason) for p in PAGES for reason, _ in python_blocks(p) if reason]
    assert len(reasons) <= 6, reasons
    assert all(len(reason) > 10 for _, reason in reasons)


def test_the_warning_is_where_it_belongs() -> None:
    for page in ("index.md", "guides/nnunet_user.md"):
        assert "Not a medical device" in text_of(DOCS / page)


def test_no_page_installs_what_is_not_published() -> None:
    for page in PAGES:
        assert not re.search(r"pip install \"?(imaging-)?pipeline\b", text_of(page)), page
