"""Write the pages of docs/reference/, from the code, and the generated parts of other pages.

    python docs/generate.py

The pages are committed; a test says whether they are current. Nothing else is read than the package
as it is imported, its docstrings, and the files of configs/ and examples/.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data_prep")]

from pipeline import records  # noqa: E402
from pipeline.__main__ import COMMANDS  # noqa: E402
from pipeline.config import schema  # noqa: E402
from pipeline.data.augment import AUGMENT  # noqa: E402
from pipeline.data.normalise import NORMALISE  # noqa: E402
from pipeline.inference.backends import BACKENDS  # noqa: E402
from pipeline.inference.fusion import FUSIONS  # noqa: E402
from pipeline.losses import LOSSES  # noqa: E402
from pipeline.losses.module import RANGE, takes_range  # noqa: E402
from pipeline.metrics import METRICS  # noqa: E402
from pipeline.metrics.competition import competition_score  # noqa: E402
from pipeline.metrics.entry import GIVEN  # noqa: E402
from pipeline.networks import NETWORKS  # noqa: E402
from pipeline.postprocess.table import POSTPROCESS  # noqa: E402
from pipeline.records import LossTerm, NamedOptions, UserError  # noqa: E402
from pipeline.registry import Registry, function_of  # noqa: E402
from pipeline.training.optim import OPTIMIZERS, SCHEDULES  # noqa: E402

NOTE = "<!-- Written by docs/generate.py. Change the code it is read from, not this page. -->\n\n"

SECTIONS = ("Args", "Returns", "Raises", "Source", "Example", "Yields")

# --- text -----------------------------------------------------------------------------------------


def inline(text: str) -> str:
    """Markdown of one paragraph of a docstring: roles and double backticks become code."""
    text = re.sub(r":\w+:`~[\w.]*?(\w+)`", r"``\1``", text)
    text = re.sub(r":\w+:`([^`]+)`", r"``\1``", text)
    parts = re.split(r"(``.+?``)", " ".join(text.split()))
    return "".join(
        f"`{part[2:-2]}`" if part.startswith("``") else re.sub(r"([*<_\\])", r"\\\1", part)
        for part in parts
    )


def prose(text: str) -> str:
    """Markdown of paragraphs; indented ones after a double colon are code."""
    out = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph and all(line.startswith("    ") for line in paragraph.splitlines()):
            out.append(f"```text\n{textwrap.dedent(paragraph)}\n```")
        elif paragraph.strip() != "::":
            out.append(inline(re.sub(r"\s*::$", ":", paragraph)))
    return "\n\n".join(out)


def sections(doc: str) -> dict[str, str]:
    """The parts of a docstring in Google's form; what stands before them is ``""``."""
    found: dict[str, list[str]] = {"": []}
    here = ""
    for line in doc.splitlines():
        heading = re.match(rf"({'|'.join(SECTIONS)}):\s*(.*)$", line)
        if heading:
            here = heading[1]
            found[here] = [heading[2]] if heading[2] else []
        else:
            found[here].append(line)
    return {
        name: "\n".join(lines[:1]) + "\n" + textwrap.dedent("\n".join(lines[1:]))
        if lines and not lines[0].startswith(" ")
        else textwrap.dedent("\n".join(lines))
        for name, lines in found.items()
    }


def arguments(text: str) -> dict[str, str]:
    """Meaning of each argument of a section ``Args``."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", text.strip("\n")):
        name, _, says = entry.partition(":")
        found[name.strip().lstrip("*")] = says
    return found


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |" for cells in lines
    )


def value(x: Any) -> str:
    """A default as YAML has it."""
    if x is None or isinstance(x, bool):
        return {None: "null", True: "true", False: "false"}[x]
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{k}: {value(v)}" for k, v in x.items()) + "}"
    if isinstance(x, NamedOptions):
        return f"{{name: {x.name}, options: {value(x.options)}}}" if x.options else x.name
    if isinstance(x, list | tuple):
        return "[" + ", ".join(map(value, x)) + "]"
    text = str(x)
    if isinstance(x, float) and "e" in text and "." not in text:
        return text.replace("e", ".0e")  # 1e-05 would be a text in YAML
    return text


TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def kind(hint: Any) -> str:
    """A type in words."""
    if hint in TYPES:
        return TYPES[hint]
    if dataclasses.is_dataclass(hint):
        return _RECORDS[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(f"`{value(x)}`" for x in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("`null`" if x is type(None) else kind(x) for x in inner)
    if origin is tuple:
        many = f"list of {plural(kind(inner[0]))}" if inner[-1] is ... else ""
        return many or "[" + ", ".join(map(kind, inner)) + "]"
    if origin is not None and issubclass(origin, Mapping):
        return "mapping" if inner[1] is Any else f"{kind(inner[0])} to {kind(inner[1])}"
    if origin is not None:
        return f"list of {plural(kind(inner[0]))}"
    return getattr(hint, "__name__", str(hint))


def plural(words: str) -> str:
    """The plural of a type in words, up to its first ``or``."""
    first, *rest = words.split(" or ")
    many = {"an entry": "entries", "a loss term": "loss terms", "text": "texts"}
    ends = f"{first}s" if first.endswith("number") else many.get(first, first)
    return " or ".join([ends, *map(plural, rest)]) if not first.startswith("`") else words


_RECORDS: dict[Any, str] = {NamedOptions: "an entry", LossTerm: "a loss term"}

# --- the config -----------------------------------------------------------------------------------


def field_texts(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass, from its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    return {
        node.target.id: inspect.cleandoc(str(after.value.value))
        for node, after in itertools.pairwise(tree.body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; ``dataclasses.MISSING``: there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def section_of(hint: Any) -> type | None:
    """The dataclass of a section; None for a value."""
    options = typing.get_args(hint) or (hint,)
    found = [x for x in options if dataclasses.is_dataclass(x) and x not in _RECORDS]
    return typing.cast(type, found[0]) if found else None


def keys(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, Any, str, type | None]]:
    """``(key, type, default, text, section)`` of every key, sections before what they hold."""
    hints, texts = typing.get_type_hints(cls), field_texts(cls)
    for field in dataclasses.fields(cls):
        hint, inner = hints[field.name], section_of(hints[field.name])
        text = texts.get(field.name, "")
        yield prefix + field.name, hint, default_of(field), text, inner
        if inner is not None:
            yield from keys(inner, f"{prefix}{field.name}.")


def key_text(key: str, hint: Any, default: Any, text: str, inner: type | None) -> str:
    """One key of the page."""
    none = type(None) in typing.get_args(hint)
    if inner is not None:
        facts = "A section, or `null`" if none else "A section"
        own = inspect.getdoc(inner) or ""
        said = re.sub(r"^Section ``[\w.]+``: ", "", own.split("\n\n")[0])
        said = f"{said[:1].upper()}{said[1:]}"
        text = said if said == text else f"{said}\n\n{text}"
        facts += ". Default: `null`." if default is None else "."
    elif default is dataclasses.MISSING:
        facts = f"{kind(hint)[:1].upper()}{kind(hint)[1:]}. Has no default: it must be given."
    else:
        facts = f"{kind(hint)[:1].upper()}{kind(hint)[1:]}. Default: `{value(default)}`."
    return f"{'##' if '.' not in key else '###'} `{key}`\n\n*{facts}*\n\n{prose(text)}\n"


def defaults_yaml(cls: type, indent: int = 0) -> str:
    """A whole config with the defaults of every key; sections that are off are comments."""
    hints, lines, pad = typing.get_type_hints(cls), [], "  " * indent
    for field in dataclasses.fields(cls):
        inner, default = section_of(hints[field.name]), default_of(field)
        if default is dataclasses.MISSING:
            example = {"name": "NAME", "network": "unet", "losses": "[dice]", "path": "FILE"}
            lines.append(f"{pad}{field.name}: {example[field.name]}")
        elif inner is not None and default is not None:
            lines += [f"{pad}{field.name}:", defaults_yaml(inner, indent + 1)]
        else:
            lines.append(f"{pad}{field.name}: {value(default)}")
    return "\n".join(lines)


ENTRY_FORMS = """
**An entry** names a network, an augmentation, a metric or a step of its table, with options:
`{name: hd95, options: {...}}`, or the bare name where there are none. Their pages:
[networks](networks.md), [losses](losses.md), [metrics](metrics.md), [steps](steps.md),
[augmentation and normalisation](augmentation.md), [optimisers and schedules](training.md).
"""


def loss_term() -> str:
    """The keys of a loss term."""
    says = {
        "name": "entry of LOSSES",
        "target": "what it compares with: a target of `data.targets`, or `mask` of `data.change`",
        "head": "output of the network",
        "weight": "factor in the sum",
        "options": "of the loss",
    }
    rows = [
        (f"`{f.name}`", says[f.name], "" if d is dataclasses.MISSING else f"`{value(d)}`")
        for f in dataclasses.fields(LossTerm)
        for d in [default_of(f)]
    ]
    return "**A loss term** has these keys:\n\n" + table(("key", "", "default"), rows) + "\n"


def config_page() -> str:
    """Every key."""
    found = list(keys(schema.Config))
    begin = (
        "# Config: every key\n\nA system is one YAML file. Only `name`, `network` and `losses` have"
        " no default. An unknown key is refused\nwith the nearest one; `python -m pipeline.train"
        " --config FILE --data-dir DIR --dry-run` lists every\nfault at once, and `--set"
        " train.epochs=10` of the command line overrides a value.\n"
    )
    whole = f"## All defaults\n\n```yaml\n{defaults_yaml(schema.Config)}\n```\n"
    body = "\n".join(key_text(*entry) for entry in found)
    return "\n".join([begin, ENTRY_FORMS.strip(), "", loss_term(), whole, body])


# --- tables of entries ----------------------------------------------------------------------------


def option_rows(run: Callable[..., Any], given: tuple[str, ...]) -> list[tuple[str, ...]]:
    """``(name, type, default, meaning)`` of each option of a function."""
    said = arguments(sections(inspect.getdoc(run) or "").get("Args", ""))
    try:
        hints = typing.get_type_hints(run)
    except NameError:  # types that are imported for checkers only
        hints = {}
    return [
        (
            f"`{p.name}`",
            kind(hints.get(p.name, p.annotation)),
            "" if p.default is p.empty else f"`{value(p.default)}`",
            re.sub(r"\bNone\b", "`null`", inline(said.get(p.name, ""))),
        )
        for p in inspect.signature(run).parameters.values()
        if p.name not in given and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]


def options(run: Callable[..., Any], given: tuple[str, ...]) -> str:
    """The options of an entry as a table; without a column that would be empty."""
    rows = option_rows(run, given)
    if not rows:
        return "No options.\n"
    head: tuple[str, ...] = ("option", "type", "default", "")
    if not any(row[3] for row in rows):
        head, rows = head[:3], [row[:3] for row in rows]
    return table(head, rows) + "\n"


def entry_text(
    name: str,
    run: Callable[..., Any],
    facts: list[str],
    given: tuple[str, ...],
) -> str:
    """An entry of a page: what it is, what it fits, its options, where it is from."""
    doc = sections(document(name, run))
    parts = [f"## `{name}`", prose(doc[""])]
    parts += ["; ".join(facts) + "."] if facts else []
    parts.append(options(run, given))
    if doc.get("Source"):
        parts.append("Source: " + inline(doc["Source"]))
    return "\n\n".join(p.strip("\n") for p in parts if p.strip()) + "\n"


def document(name: str, run: Callable[..., Any]) -> str:
    """The docstring of an entry."""
    if run is METRICS["competition"].compute:
        run = competition_score  # which says what the metric is
    return inspect.getdoc(run) or SHORT.get(name, "")


def overview(registry: Mapping[str, Any]) -> str:
    """A line for each entry."""
    rows = []
    for name, entry in registry.items():
        first = document(name, function_of(entry)).split("\n\n")[0]
        rows.append((f"[`{name}`](#{name})", inline(first)))
    return table(("name", ""), rows) + "\n"


SHORT = {
    "adam": "Adam (`torch.optim.Adam`).",
    "adamw": "AdamW (`torch.optim.AdamW`).",
    "sgd": "SGD with momentum (`torch.optim.SGD`); the defaults are nnU-Net's.",
    "step": "The rate times `factor` after every `every` epochs.",
    "constant": "One rate.",
}


def aliases(registry: Registry[Any]) -> str:
    """Other names of a table's entries."""
    if not registry.aliases:
        return ""
    rows = [
        (f"`{name}`", f"`{a.name}`", ", ".join(f"`{k}` for `{v}`" for k, v in a.options.items()))
        for name, a in registry.aliases.items()
    ]
    return "## Other names\n\n" + table(("name", "is", "options"), rows) + "\n"


def refused(attempt: Callable[[], Any]) -> bool:
    """Whether something cannot be done."""
    try:
        attempt()
    except (UserError, ValueError, RuntimeError, AssertionError, IndexError):
        return True
    return False


def networks_page() -> str:
    """Every network."""
    given = ("in_channels", "out_channels", "dims")
    parts = []
    for name, entry in NETWORKS.items():
        fits = [
            f"{d}D"
            for d in (2, 3)
            if not refused(lambda: _on_meta(entry.build, d))  # noqa: B023 - called at once
        ]
        facts = [f"Dimensions: {' and '.join(fits)}", _heads(entry.build, int(fits[0][0]))]
        parts.append(entry_text(name, entry.build, facts, given))
    begin = (
        "# Networks\n\nWhat `network:` may name. Channels in and out follow from the data. Heads"
        " are the outputs that loss terms name; `main`\nis the one that predictions use.\n\n"
        + overview(NETWORKS)
    )
    return "\n".join([begin, *parts])


def _on_meta(build: Callable[..., Any], dims: int) -> Any:
    with torch.device("meta"):
        return build(in_channels=3, out_channels=3, dims=dims)


def _heads(build: Callable[..., Any], dims: int) -> str:
    net = _on_meta(build, dims)
    heads = ", ".join(f"`{h}`" for h in net.heads)
    return f"heads with the default options: {heads}"


LOSS_TASKS = {"labels": "labels", "soft": "soft masks", "image": "images"}


def losses_page() -> str:
    """Every loss."""
    parts = []
    for name, entry in LOSSES.items():
        kinds = ", ".join(LOSS_TASKS[t] for t in entry.targets)
        facts = [f"Targets: {kinds}", f"dimensions: {_loss_dims(name)}"]
        if entry.map:
            only = " with " + ", ".join(f"`{k}: {v}`" for k, v in entry.map_if.items())
            facts.append(f"reads the map `{entry.map}`" + (only if entry.map_if else ""))
        parts.append(entry_text(name, entry.make, facts, ()))
    begin = (
        "# Losses\n\nWhat a loss term may name, for any head. In your own training code:"
        " `pl.Loss(NAME, **options)`, see\n[own_loop.md](../own_loop.md), where losses of images"
        f" take `range`, black and white (`{value(RANGE)}`).\n\n" + overview(LOSSES)
    )
    return "\n".join([begin, *parts])


def _loss_dims(name: str) -> str:
    """The dimensions in which a loss can be computed, by trying."""
    if name == "perceptual":  # its weights are a file of the user's
        return "2D"
    fits = [f"{d}D" for d in (2, 3) if not refused(lambda: _loss_once(name, d))]  # noqa: B023
    return " and ".join(fits)


def _loss_once(name: str, dims: int) -> None:
    import pipeline as pl

    entry = LOSSES[name]
    small: dict[str, Any] = {"levels": 1} if name == "ms_ssim" else {}
    channels = 3 if "image" in entry.targets else 1
    x = torch.rand(1, channels, *[16] * dims)
    y = (x > 0.5).float() if channels == 1 else x.flip(-1)
    more = {"source": y} if entry.map == "mask" and takes_range(name) else {}
    if dims == 3 and more:
        more = {"mask": x[:, :1]}
    pl.Loss(name, **small)(x, y, **more)


def metrics_page() -> str:
    """Every metric."""
    parts = []
    for name, entry in METRICS.items():
        facts = [f"Task: {entry.task}", f"better: {entry.better or 'neither, a count'}"]
        facts += [f"reads {' and '.join(sorted(entry.needs))}"] if entry.needs else []
        facts += ["in millimetres where files carry a unit, else voxels"] if entry.length else []
        named = ", ".join(f"`{v}`" for v in sorted(entry.volumes))
        facts += [f"in ml where files carry a unit, else voxels: {named}"] if named else []
        facts += ["also pooled over all cases"] if entry.pooled is not None else []
        parts.append(entry_text(name, entry.compute, facts, GIVEN))
    begin = (
        "# Metrics\n\nWhat `metrics:` of a config, `pipeline.evaluate --metrics`, `pipeline.tune"
        " --metric`, `pl.score` and `pl.Metric` may name.\nOn a command line options stand behind a"
        " colon: `surface_dice:tolerance=2`. Of several classes `NAME` is the mean over\nthem and"
        " `NAME_1`, `NAME_2`, … are those of each class. For your own validation code:"
        " [own_loop.md](../own_loop.md).\n\n" + overview(METRICS)
    )
    return "\n".join([begin, *parts])


SEES = {
    "local": "works row by row",
    "components": "works over slabs with the same result",
    "whole": "needs the whole array in memory",
}
DECIDES = {"one": "of one channel", "several": "of several channels", "any": "of any channels"}


def steps_page() -> str:
    """Every post-processing step."""
    parts = []
    for name, step in POSTPROCESS.items():
        facts = (
            [f"Decides: takes probabilities {DECIDES[step.decides]}, gives labels"]
            if step.decides
            else ["Takes labels, gives labels"]
        )
        by_options = "whether it needs the whole array follows from its options"
        facts.append(by_options if callable(step.sees) else SEES[step.sees])
        facts.append(f"`pipeline.tune` {'tries it' if step.search else 'leaves it out'}")
        facts += [f"`mm3` may stand for `{step.volume.name}`"] if step.volume else []
        parts.append(entry_text(name, step.run, facts, _first(step.run)))
    begin = (
        "# Post-processing steps\n\nWhat `postprocess:` of a config or of an ensemble may name, in"
        " any order that makes sense; the order here is the usual one.\nAt most the first one"
        " decides. What they do to answers: [topology](../topology.md), class by class:"
        " [tuning](../tuning.md).\n\n" + overview(POSTPROCESS)
    )
    return "\n".join([begin, *parts, aliases(POSTPROCESS)])


def _first(run: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(list(inspect.signature(run).parameters)[:1])


def augmentation_page() -> str:
    """Augmentations and normalisations."""
    parts = [entry_text(name, entry.make, [], ("keys",)) for name, entry in AUGMENT.items()]
    scales = [
        entry_text(
            name,
            entry.fit,
            ["For labels and images" if entry.of_images else "For task labels"],
            _first(entry.fit),
        ).replace("## ", "### ", 1)
        for name, entry in NORMALISE.items()
    ]
    begin = (
        "# Augmentation and normalisation\n\nWhat `data.augment` may name. Entries are applied in"
        " their order, each with its own probability `p`; geometry moves image and\ntargets alike,"
        " intensity changes the image alone, unless `both: true`. nnU-Net's list:"
        " [nnunet.md](../nnunet.md#augmentation).\n\n" + overview(AUGMENT)
    )
    middle = (
        "## Normalisation\n\nWhat `data.normalise` may name, once for all channels or a list with"
        " one for each.\n"
    )
    return "\n".join([begin, *parts, middle, *scales])


def training_page() -> str:
    """Optimisers, schedules, fusions and backends."""
    made = [
        entry_text(name, entry.make, [], ("parameters", "optimizer", "epochs"))
        for name, entry in (*OPTIMIZERS.items(), *SCHEDULES.items())
    ]
    made = [m.replace("## ", "### ", 1) for m in made]
    first, then = made[: len(OPTIMIZERS)], made[len(OPTIMIZERS) :]
    fusion = {
        "mean": "weighted mean of probabilities, or of images",
        "logit": "weighted mean of logits, then probabilities again",
        "vote": "weighted majority of the members' decisions",
    }
    runs = {
        "torch": "PyTorch, the default",
        **{name: f"needs {', '.join(('onnx', *b.packages))}" for name, b in BACKENDS.items()},
    }
    return "\n".join(
        [
            "# Optimisers, schedules, fusion, backends\n",
            "## Optimisers\n\n`train.optimizer`\n",
            *first,
            "## Schedules\n\n`train.schedule`, stepped once an epoch\n",
            *then,
            "## Fusion\n\n`pipeline.ensemble --fusion`, `fusion:` of an ensemble file\n",
            table(("name", ""), [(f"`{n}`", fusion[n]) for n in FUSIONS]) + "\n",
            "## Backends\n\n`--backend` of `pipeline.predict` and `pipeline.serve`\n",
            table(("name", ""), [(f"`{n}`", text) for n, text in runs.items()]) + "\n",
        ]
    )


# --- commands -------------------------------------------------------------------------------------


def parser_rows(parser: ArgumentParser) -> list[tuple[str, str]]:
    """``(option, meaning)`` of a parser."""
    formatter = parser._get_formatter()
    rows = []
    for action in parser._actions:
        if "--help" in action.option_strings:
            continue
        names = ", ".join(f"`{s}`" for s in action.option_strings)
        value = formatter._format_args(action, _metavar(action))
        shown = f"{names} `{value}`" if names and value else names or f"`{_metavar(action)}`"
        says = formatter._expand_help(action) if action.help else ""
        hidden = " or ".join(f"`{c}`" for c in action.choices or ()) if action.metavar else ""
        rows.append((shown, "; ".join(t for t in (_escaped(says), hidden) if t)))
    return rows


def _metavar(action: Any) -> str:
    return str(action.metavar or action.dest.upper())


def _escaped(text: str) -> str:
    return re.sub(r"([*<_])", r"\\\1", " ".join(text.split()))


def commands_page() -> str:
    """Every command with its options."""
    parts = [
        "# Options of every command\n\n`pipeline train` is `python -m pipeline.train`. `-` and `_`"
        " are the same in names of options. What commands are for, read and\nleave:"
        " [commands.md](../commands.md).\n"
    ]
    for name in COMMANDS:
        module = importlib.import_module(f"pipeline.{name}")
        parts.append(command_text(f"pipeline {name}", module))
    parts.append("## Scripts of data_prep/\n")
    for path in sorted((ROOT / "data_prep").glob("*.py")):
        module = importlib.import_module(path.stem)
        if hasattr(module, "parser"):
            text = command_text(f"python data_prep/{path.name}", module)
            parts.append(text.replace("## ", "### ", 1))
    return "\n".join(parts)


def command_text(title: str, module: Any) -> str:
    """A command: what its module says, and its options."""
    rows = parser_rows(module.parser())
    doc = prose(inspect.getdoc(module) or "").replace("```text\n", "```sh\n")
    return f"## `{title}`\n\n{doc}\n\n{table(('option', ''), rows)}\n"


# --- configs and examples -------------------------------------------------------------------------


def configs_page() -> str:
    """The first comment of every config."""
    rows = []
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = " ".join(
            line.lstrip("# ") for line in itertools.takewhile(lambda t: t.startswith("#"), lines)
        )
        link = f"[`configs/{path.name}`](../../configs/{path.name})"
        rows.append((link, _escaped(re.split(r"(?<=\.)\s(?=\S)|\s{2,}", comment)[0])))
    return (
        "# Configs\n\nOne YAML a system. Copy one and change names and numbers, or let"
        " [`pipeline plan`](../plan.md) write one for your data.\n\n"
        + table(("file", ""), rows)
        + "\n"
    )


def examples_page() -> str:
    """The first sentence of every example."""
    rows = []
    home = ROOT / "examples"
    for path in [*sorted(home.glob("*.py")), *sorted(home.glob("plugins/*.py"))]:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.append((_link(path), inline(doc.split("\n\n")[0])))
    for path in sorted(home.glob("*.ipynb")):
        rows.append((_link(path), "a notebook, executed, with pictures"))
    found = table(("file", ""), rows) if rows else "There are none yet."
    return (
        "# Examples\n\nComplete files that the tests run; each script makes small data of its own"
        f" unless it is given a folder.\n\n{found}\n"
    )


def _link(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    return f"[`{name}`](../../{name})"


# --- all ------------------------------------------------------------------------------------------

PICTURE = (
    "![A held-out case of the demo: image, truth, prediction and errors; below, the losses and the"
    " validation Dice of five folds](images/demo.png)"
)


def filled(page: str, mark: str, content: str) -> str:
    """A page with what stands between ``<!-- mark -->`` and ``<!-- end of mark -->`` replaced."""
    text = (HERE / page).read_text(encoding="utf-8")
    inside = f"{content}\n" if content else ""
    parts = re.split(rf"(<!-- (?:end of )?{mark} -->\n?)", text)
    if len(parts) != 5:
        raise ValueError(f"{page}: needs <!-- {mark} --> and <!-- end of {mark} --> once each.")
    return "".join([*parts[:2], inside, *parts[3:]])


def glossary() -> str:
    """The words of the package, from the docstring of its records."""
    text, parts = inspect.getdoc(records) or "", []
    for head, body in re.findall(r"^(\w[^\n]*):\n((?:    .*\n?)+)", text, re.MULTILINE):
        words = arguments(textwrap.dedent(body))
        rows = [(f"**{word}**", inline(says)) for word, says in words.items()]
        parts.append(f"{head}:\n\n{table(('word', 'meaning'), rows)}")
    return "\n\n".join(parts)


def pages() -> dict[Path, str]:
    """Every generated page by its path below this folder."""
    made = {
        "commands": commands_page,
        "config": config_page,
        "configs": configs_page,
        "examples": examples_page,
        "networks": networks_page,
        "losses": losses_page,
        "metrics": metrics_page,
        "steps": steps_page,
        "augmentation": augmentation_page,
        "training": training_page,
    }
    torch.manual_seed(0)
    np.random.seed(0)
    found = {Path("reference", f"{name}.md"): NOTE + make() for name, make in made.items()}
    picture = PICTURE if (HERE / "images" / "demo.png").is_file() else ""
    return found | {
        Path("index.md"): filled("index.md", "picture", picture),
        Path("architecture.md"): filled("architecture.md", "glossary", glossary()),
    }


def main() -> int:
    """Write every page that has changed."""
    for path, text in pages().items():
        file = HERE / path
        text = text.rstrip("\n") + "\n"
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(f"wrote docs/{path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
