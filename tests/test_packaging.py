"""What is installed: metadata and versions agree, and a wheel works from any folder."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from conftest import TINY, competition_folder
from documents import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import pipeline

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FACTS: dict[str, Any] = PROJECT["project"]
EXTRAS: dict[str, list[str]] = FACTS["optional-dependencies"]
PINS = dict(
    re.findall(
        r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
)
"""Tested versions by name."""

DIRECT = [
    Requirement(text) for text in (*FACTS["dependencies"], *itertools.chain(*EXTRAS.values()))
]


def script(name: str) -> ModuleType:
    """A script of the folder .ci."""
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- pyproject.toml -------------------------------------------------------------------------------


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_dependency_has_a_lower_bound(requirement: Requirement) -> None:
    assert [s for s in requirement.specifier if s.operator == ">="], requirement


def test_every_dependency_says_why_it_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text[text.index("\ndependencies") : text.index("[project.scripts]")]
    lines = [line for line in listed.splitlines() if re.search(r'"[\w.-]+(\[\w+\])?>=', line)]
    assert len(lines) == len(DIRECT)
    seen: set[str] = set()
    for line in lines:
        (name,) = re.findall(r'"([\w.-]+)[^"]*>=', line)
        assert "#" in line or name in seen or name in {"pytest"}, line
        seen.add(name)


def test_a_folder_called_pipeline_does_not_hide_the_package(tmp_path: Path) -> None:
    """Beside a clone of that name a script finds what is installed, editable or not."""
    (tmp_path / "pipeline").mkdir()
    code = "import pipeline as pl; print(pl.Predictor.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("Predictor\n", "")


def test_the_extra_of_the_pages_is_in_no_other() -> None:
    names = {k: {Requirement(t).name for t in texts} for k, texts in EXTRAS.items()}
    assert names["docs"] == {"sphinx", "myst-nb", "furo", "sphinx-copybutton", "matplotlib"}
    assert not [k for k, found in names.items() if k != "docs" and found & names["docs"]]


def test_the_extras_that_tests_need_are_in_dev_with_the_same_bounds() -> None:
    bounds = {r.name: str(r.specifier) for r in map(Requirement, EXTRAS["dev"])}
    shared = [
        r for k in ("cpu", "serve", "medical", "tracking") for r in map(Requirement, EXTRAS[k])
    ]
    assert {r.name for r in shared} - bounds.keys() == {"openvino", "wandb"}
    for r in shared:
        assert bounds.get(r.name, str(r.specifier)) == str(r.specifier)


def test_classifiers_name_the_supported_versions_of_python() -> None:
    named = {c.rpartition(" ")[2] for c in FACTS["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert f">={min(named, key=Version)}" == FACTS["requires-python"]


def test_the_licence_is_the_apache_licence_in_full() -> None:
    assert (FACTS["license"], FACTS["license-files"]) == ("Apache-2.0", ["LICENSE"])
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert all(f"\n   {n}. " in text for n in range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in text


def test_setup_names_every_package() -> None:
    """Folders without an __init__ would be missing from a wheel."""
    folders = {p.parent for p in (ROOT / "pipeline").rglob("*.py")}
    assert not [f for f in folders if not (f / "__init__.py").is_file()]


def test_no_text_installs_this_from_elsewhere() -> None:
    """The name pipeline is another project's, and nothing is published yet."""
    told = [
        *ROOT.glob("*.md"),
        *(p for f in ("pipeline", "docs", "configs", "data_prep") for p in (ROOT / f).rglob("*.*")),
    ]
    wrong = re.compile(r"pip install [^\n`]*\b(?<![./\w-])(pipeline|imaging-pipeline)\b(?!\.)")
    assert wrong.search('pip install "pipeline[cpu]"')
    for path in told:
        if path.suffix in {".md", ".py", ".yaml"} and "_build" not in path.parts:
            assert not wrong.search(path.read_text(encoding="utf-8")), path


# --- versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_the_tested_versions_are_allowed(requirement: Requirement) -> None:
    pin = PINS.get(canonicalize_name(requirement.name))
    if pin is None:  # extras that are too large, and the tool that builds
        assert requirement.name in {"openvino", "wandb", "setuptools"}
    else:
        assert requirement.specifier.contains(pin)


def test_constraints_hold_anywhere() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(PINS) > 100
    assert [*PINS] == sorted(PINS)
    assert not re.search(r"\+|@|https?:|file:|--", "\n".join(lines))
    assert "make constraints" in text


def test_constraints_are_made_of_names_and_versions() -> None:
    class Found:
        def __init__(self, name: str, version: str) -> None:
            self.metadata, self.version = {"Name": name}, version

    found = [Found("torch", "2.13.0+cpu"), Found("Jinja_2.x", "1"), Found("pip", "26")]
    assert script("constraints").pins(found) == ["jinja-2-x==1", "torch==2.13.0"]


def test_the_lowest_versions_follow_the_bounds() -> None:
    lowest = script("lowest").lowest()
    assert lowest["numpy"] == "2.1"
    assert lowest["simpleitk"] == "2.5.6"
    assert not {"ruff", "pyright", "setuptools", "sphinx"} & lowest.keys()
    for requirement in map(Requirement, FACTS["dependencies"]):
        assert requirement.specifier.contains(lowest[canonicalize_name(requirement.name)])
    assert script("lowest").lowest(["torch"]) == {**lowest, "torch": PINS["torch"]}
    with pytest.raises(ValueError, match="'tensorflow' is no direct dependency"):
        script("lowest").lowest(["tensorflow"])
    with pytest.raises(ValueError, match="'torch<3' has no lower bound"):
        list(script("lowest").lower_bounds(["torch<3"]))


def test_hooks_check_with_the_tested_versions() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (local,) = yaml.safe_load(text)["repos"]
    assert local["repo"] == "local"
    wanted = [w for hook in local["hooks"] for w in hook.get("additional_dependencies", [])]
    assert f"ruff=={PINS['ruff']}" in wanted
    assert all(w == f"ruff=={PINS['ruff']}" for w in wanted if w.startswith("ruff"))
    assert {h["entry"].split()[0] for h in local["hooks"]} >= {"ruff", ".venv/bin/pyright"}
    assert all("==" in w for w in wanted)


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == pipeline.__version__
    assert citation["license"] == FACTS["license"]
    assert citation["repository-code"] == FACTS["urls"]["Homepage"]
    assert {"cff-version", "message", "title", "authors", "type"} <= citation.keys()
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = Version(pipeline.__version__)
    headings = re.findall(r"^## (\S+)", changes, re.MULTILINE)
    assert headings[0] == ("Unreleased" if version.is_devrelease else version.base_version)


# --- a wheel --------------------------------------------------------------------------------------


def built(folder: Path) -> Path:
    """A wheel of a copy of this checkout, without a network: setuptools leaves files behind."""
    source = folder / "source"
    for name in ("pipeline", "configs"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").write_text("")
    words = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    pip(*words, str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone())
    assert done.returncode == 0, done.stdout + done.stderr


def alone() -> dict[str, str]:
    """The environment without what points to this checkout."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment that holds the wheel, and sees the dependencies of this one.

    A path in a .pth file is no site folder: editable installs there are not seen.
    """
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    pip(
        "--python", str(folder / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel)
    )
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(program: Path, *words: str, cwd: Path) -> str:
    command = [str(program), *words]
    done = subprocess.run(
        command, cwd=cwd, env=alone(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_holds_what_is_needed_and_no_more(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.startswith(f"imaging_pipeline-{pipeline.__version__}-py3-none-any")
    shipped = {f"pipeline/_configs/{p.name}" for p in (ROOT / "configs").iterdir()}
    assert shipped == {n for n in names if n.startswith("pipeline/_configs/")}
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "pipeline").rglob("*.py")} == {
        n for n in names if n.endswith(".py")
    }
    assert "pipeline/py.typed" in names
    assert [n for n in names if n.endswith(".dist-info/licenses/LICENSE")]
    assert not [n for n in names if "test" in n.split("/")[0]]
    (about,) = [n for n in names if n.endswith(".dist-info/METADATA")]
    told = metadata.PathDistribution(zipfile.Path(wheel, about.removesuffix("METADATA"))).metadata
    assert told["Name"] == "imaging-pipeline"
    assert told["License-Expression"] == "Apache-2.0"
    assert len(told.get_all("Project-URL") or []) == len(FACTS["urls"])


@pytest.mark.slow
def test_an_installed_wheel_works_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    python, command = installed / "python", installed / "pipeline"
    where = run(python, "-c", "import pipeline; print(pipeline.__file__)", cwd=tmp_path)
    assert Path(where).is_relative_to(installed.parent)
    assert run(command, cwd=tmp_path).startswith("usage: pipeline COMMAND [options]")
    rows = run(command, "list", "configs", cwd=tmp_path).splitlines()
    assert [row.split()[0] for row in rows] == sorted(p.stem for p in (ROOT / "configs").iterdir())
    assert run(python, "-m", "pipeline.list", "configs", cwd=tmp_path).splitlines() == rows
    data = competition_folder(tmp_path / "data", shape=(32, 32, 32))
    words = ("train", "--config", "demo", "--data-dir", str(data), "--dry-run")
    told = run(command, *words, cwd=tmp_path)
    assert re.search(r"Config demo: \S+/site-packages/pipeline/_configs/demo\.yaml", told)
    code = "import pipeline as pl; print(pl.load_config('vessels').name)"
    assert run(python, "-c", code, cwd=tmp_path).splitlines()[-1] == "vessels"
    text = TINY.replace("epochs: 3", "epochs: 1").replace("average: {start: 1, lr: 5.0e-3}", "")
    (tmp_path / "tiny.yaml").write_text(text)
    words = ("train", "--config", "tiny", "--data-dir", str(data), "--fold", "0")
    run(command, *words, "--device", "cpu", cwd=tmp_path)
    assert (tmp_path / "runs" / "tiny" / "fold_0" / "result.json").is_file()


@pytest.mark.slow
def test_an_editable_install_finds_the_configs_of_its_clone(wheel: Path, tmp_path: Path) -> None:
    clone, folder = wheel.parent / "source", tmp_path / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    words = ["install", "--no-deps", "--no-index", "--no-build-isolation", "--editable"]
    pip("--python", str(python), *words, str(clone))
    rows = run(folder / "bin" / "pipeline", "list", "configs", cwd=tmp_path).splitlines()
    assert len(rows) == len(list((ROOT / "configs").iterdir()))
    code = "from pipeline.config import find_config; print(find_config('surface'))"
    assert run(python, "-c", code, cwd=tmp_path).split() == [str(clone / "configs/surface.yaml")]
