"""Imports point down the floors and never in a circle; --help of every command is quick and loads
nothing heavy.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"
COMMANDS = [
    "plan",
    "train",
    "predict",
    "ensemble",
    "submit",
    "evaluate",
    "tune",
    "report",
    "serve",
    "list",
]
FLOORS = {
    "records": 0,
    "invocation": 0,
    "registry": 0,
    "stopping": 0,
    "config": 1,
    "documents": 1,
    "progress": 1,
    "files": 2,
    "geometry": 2,
    "grid": 2,
    "colours": 2,
    "limits": 2,
    "plugins": 2,
    "morphology": 2,
    "data": 3,
    "runs": 3,
    "processes": 3,
    "networks": 4,
    "losses": 4,
    "metrics": 4,
    "tasks": 4,
    "postprocess": 4,
    "inference": 5,
    "scoring": 6,
    "training": 7,
    "tuning": 8,
    "planning": 8,
    "reporting": 8,
    "serving": 8,
    "workflows": 9,
    "cli": 10,
    "model_options": 10,
    **dict.fromkeys(COMMANDS, 11),
    "__main__": 11,
}
"""Every part of the package; one that is missing here fails."""
LAZY = {
    "torch": "1.5 s; scoring, fusing and submitting need the tasks without it",
    "SimpleITK": "an extra, 0.3 s, for DICOM",
    "mlflow": "an extra",
    "wandb": "an extra",
    "yaml": (
        "0.02 s, and every command imports config before it knows whether it is asked for --help"
        " only"
    ),
    "pydantic": "0.1 s; like yaml",
    "sklearn": "1 to 2 s, for a new split only",
    "pipeline.files.zarr": "zarr, 0.3 s, for data sets that hold any",
    "pipeline.files.lzw": "numba, 0.3 s, for TIFF files that are LZW-compressed",
    "pipeline.data._warping": "numba, for rotated and scaled patches",
    "pipeline.morphology._sheets": "numba, for repairs of sheets",
    "pipeline.morphology._tunnels": "numba, for Betti matching of masks that both have tunnels",
    "pipeline.morphology.matching": "numba, for the Betti loss",
}
"""What functions may import, a package or a module of this one, and why.

Times are those after numpy and torch.
"""


def modules() -> dict[str, Path]:
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in PACKAGE.rglob("*.py")
    }


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    return FLOORS[part(module)]


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports anywhere, functions and type checks included."""
    found = {m for node in ast.walk(_parsed(path)) for m in _imported(node, known)}
    return {m for m in found if m in known and m != "pipeline"}


def late_imports(tree: ast.Module, known: dict[str, Path]) -> dict[str, int]:
    """What functions import, modules of the package or of others, and in which line."""
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {
        m: node.lineno
        for f in functions
        for node in ast.walk(f)
        if isinstance(node, ast.stmt)
        for m in _imported(node, known)
    }


def _imported(node: ast.AST, known: dict[str, Path]) -> set[str]:
    """Full names of the modules that an import statement imports; nothing for other nodes."""
    if isinstance(node, ast.Import):
        return {a.name for a in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {
            f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module
            for a in node.names
        }
    return set()


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def climbs(module: str, imported: str) -> bool:
    """Up, or across to another part of the same floor."""
    here, there = floor(module), floor(imported)
    return there > here or (there == here and part(module) != part(imported))


def test_imports_point_down() -> None:
    known = modules()
    faults = [
        f"{m} imports {i}"
        for m, p in known.items()
        if m != "pipeline"
        for i in imports(p, known)
        if climbs(m, i)
    ]
    assert not faults, faults


def test_a_planted_climb_would_be_found() -> None:
    assert climbs("pipeline.files", "pipeline.training.loop")
    assert climbs("pipeline.losses", "pipeline.metrics.overlap")
    assert climbs("pipeline.submit", "pipeline.ensemble")
    assert not climbs("pipeline.training.loop", "pipeline.losses")


def test_no_cycles() -> None:
    known = modules()
    graph = {m: imports(p, known) for m, p in known.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in graph.get(module, ()):
                if other != module:
                    visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_imports_stand_at_the_top() -> None:
    """Libraries that load their parts at first use, as scipy and skimage do, are imported whole:
    ``scipy.ndimage.label(x)``.
    """
    known = modules()
    faults, needed = [], set()
    for module, path in known.items():
        for name, line in late_imports(_parsed(path), known).items():
            lazy = {name, name.split(".")[0]} & LAZY.keys()
            needed |= lazy
            if not lazy and not (floor(module) == 11 and module != "pipeline.__main__"):
                faults.append(f"{path.relative_to(ROOT)}:{line}: a function imports {name}")
    assert not faults, faults
    assert needed == LAZY.keys(), f"nothing imports {sorted(LAZY.keys() - needed)} late"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses_first(command: str) -> None:
    """At its top it imports what parses; one function, which gets the options by name, imports what
    works.
    """
    known = modules()
    tree = _parsed(known[f"pipeline.{command}"])
    top = {m for node in tree.body for m in _imported(node, known)} - {"pipeline"}
    light = {f"pipeline.{name}" for name in ("cli", "invocation", "model_options", "records")}
    assert {m for m in top if m in known} <= light
    workers = [
        f
        for f in tree.body
        if isinstance(f, ast.FunctionDef)
        and any(isinstance(n, ast.ImportFrom) for n in ast.walk(f))
    ]
    assert [f.name for f in workers] == [command]
    assert not [a for a in workers[0].args.args if "argparse" in ast.unparse(a)]


def test_nobody_below_a_command_knows_its_parser() -> None:
    heavy = [
        m
        for m, p in modules().items()
        if "argparse" in p.read_text(encoding="utf-8") and floor(m) < 10
    ]
    assert not heavy, heavy


OF_A_RUN = {
    *(
        "config.yaml",
        "cases.json",
        "splits.json",
        "environment.json",
        "baselines.json",
        "report.html",
        "error.txt",
        "tracking.json",
    ),
    *(
        "best_model.safetensors",
        "swa_model.safetensors",
        "checkpoint_latest",
        "log.jsonl",
        "training_log.txt",
        "tensorboard",
    ),
    *("previews", "oof", "scores.jsonl", "plugins.json"),
}
"""Names in a run folder that mean nothing elsewhere."""


def test_only_runs_knows_how_a_run_lies_on_disk() -> None:
    faults = []
    for module, path in modules().items():
        for node in ast.walk(_parsed(path)):
            if (
                isinstance(node, ast.Constant)
                and node.value in OF_A_RUN
                and module != "pipeline.runs"
            ):
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}")
    assert not faults, faults


def test_nobody_below_a_command_prints() -> None:
    """But for the console that prints what was logged, and the last words of a rank that ends at
    once.
    """
    faults = []
    for module, path in modules().items():
        if module in ("pipeline", "pipeline.progress") or floor(module) >= 10:
            continue
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "traceback.print_exc",
            ):
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not faults, faults


def test_a_planted_late_import_would_be_found() -> None:
    text = (
        "import json\n"
        "\ndef outer():\n"
        "    async def inner():\n"
        "        if json:\n"
        "            from pipeline.files import lzw, read\n"
        "    import os.path\n"
    )
    assert late_imports(ast.parse(text), modules()) == {
        "pipeline.files.lzw": 6,
        "pipeline.files": 6,
        "os.path": 7,
    }


def test_the_package_never_imports_data_prep() -> None:
    assert not [
        p for p in PACKAGE.rglob("*.py") if "data_prep" in {n.split(".")[0] for n in _absolute(p)}
    ]


def _absolute(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return names | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}


def test_nothing_unsafe_is_called() -> None:
    """No pickle, no eval, no torch.load, no yaml.load but the safe one in config."""
    faults = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")]:
        names = _absolute(path)
        faults += [
            f"{path}: imports {n}"
            for n in names & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        ]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                unsafe = name in {
                    "eval",
                    "exec",
                    "torch.load",
                    "os.system",
                    "yaml.unsafe_load",
                } or name.endswith("extractall")
                unsafe = unsafe or (name == "yaml.load" and path.name != "strict_yaml.py")
                unsafe = unsafe or any(
                    k.arg == "allow_pickle" and ast.unparse(k.value) != "False"
                    for k in node.keywords
                )
                # The published VGG16 file is a pickle; torch's restricted reader takes tensors out
                # of it and runs nothing.
                tensors_only = any(
                    k.arg == "weights_only" and ast.unparse(k.value) == "True"
                    for k in node.keywords
                )
                unsafe = unsafe and not (
                    name == "torch.load" and path.name == "vgg.py" and tensors_only
                )
                faults += [f"{path}:{node.lineno}: {name}"] if unsafe else []
    assert not faults, faults


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command: str) -> None:
    """The 0.3 s are measured by tests/benchmarks; what makes them possible is tested here."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{command}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('pipeline.{command}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'monai', 'numpy', 'scipy', 'tifffile', 'pydantic', 'yaml'} & "
        "set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_command_line_is_a_contract() -> None:
    """Options that other people's scripts rest on."""
    import importlib

    wanted = {
        "train": (
            "--config --data-dir --fold --out --continue-on-error --dry-run --set --device --fresh"
        ),
        "predict": (
            "--checkpoint --input --output --patch-size --whole --overlap --threshold"
            " --min-component-size --max-hole-size --kernel-size --separate-instances --tta"
            " --scales --save-soft --device --backend"
        ),
        "ensemble": "--fold-dirs --spec --output --input",
        "evaluate": "--predictions --labels --metrics --out",
        "submit": "--predictions --spec --test-dir --out --format",
        "serve": (
            "--checkpoint --host --port --max-bytes --max-pixels --concurrent --waiting --backend"
            " --device"
        ),
        "tune": "--metric --space --by --out --force --workers",
        "list": "",
    }
    for command, options in wanted.items():
        parser = importlib.import_module(f"pipeline.{command}").parser()
        have = {s for a in parser._actions for s in a.option_strings}
        assert {*options.split(), "--plugin"} <= have, command
