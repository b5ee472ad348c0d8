"""Settings of Sphinx, which makes a site of this folder. ``make docs`` runs it, offline."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the package itself need not be installed

import pipeline  # noqa: E402

project = "imaging-pipeline"
author = "The imaging-pipeline contributors"
project_copyright = author
version = release = pipeline.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]

# The sidebar: pages by caption, with a short title or none of its own. It stands here and not in
# index.md, so that the front page is plain Markdown wherever it is read.
SIDEBAR = {
    "Begin": {"start": "First ten minutes", "results": "", "performance": ""},
    "Guides": {
        "guides/nnunet_user": "nnU-Net users",
        "guides/kaggle": "Kaggle: surface detection",
        "guides/monai": "MONAI developers",
        "guides/microscopy": "Microscopists",
        "guides/restoration": "Restoring images",
        "guides/cluster": "Clusters",
        "extending": "Parts of your own",
    },
    "How it works": {
        "plan": "Planning",
        "nnunet": "Parts of nnU-Net",
        "worlds": "Orientation and spacing",
        "labels": "Labels and regions",
        "stacks": "One big stack",
        "topology": "Topology",
        "images": "Pictures",
        "prediction": "Prediction and scoring",
        "tuning": "Tuning by class",
        "reliability": "Reliability",
        "architecture": "",
        "sources": "Source documents",
    },
    "Reference": {
        "commands": "",
        "reference/commands": "Every option",
        "reference/config": "Every key",
        "reference/configs": "",
        "files": "Files and formats",
        "reference/networks": "",
        "reference/losses": "",
        "reference/metrics": "",
        "reference/steps": "",
        "reference/augmentation": "",
        "reference/training": "",
    },
    "Python": {
        "library": "Using it from Python",
        "own_loop": "In your own MONAI loop",
        "reference/examples": "",
        "api/pipeline": "Public names",
        "api/losses": "",
        "api/metrics": "",
        "api/inferer": "",
        "api/networks": "",
        "api/postprocess": "",
        "api/records": "",
    },
}

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
nb_execution_mode = "off"  # notebooks are executed where they are written, and are read here

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]
python_maximum_signature_line_length = 88
add_module_names = False

highlight_language = "none"  # of blocks that name none
smartquotes = False  # options begin with two dashes

html_theme = "furo"
html_title = "imaging-pipeline"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"


NOTEBOOK = HERE / "notebook.ipynb"
EXAMPLE = HERE.parent / "examples" / NOTEBOOK.name
if EXAMPLE.is_file():  # a page must lie in this folder, and its links begin here
    cells = re.sub(r"\]\((\w[\w/]*\.\w+)\)", r"](../examples/\1)", EXAMPLE.read_text("utf-8"))
    NOTEBOOK.write_text(cells.replace("](../docs/", "]("), "utf-8")
    SIDEBAR["Python"]["notebook"] = "Notebook"


def toctrees() -> str:
    """The sidebar as Markdown for Sphinx."""
    parts = []
    for caption, pages in SIDEBAR.items():
        lines = "\n".join(f"{title} <{page}>" if title else page for page, title in pages.items())
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```")
    return "\n\n" + "\n\n".join(parts) + "\n"


def _prepare(app: Any, name: str, source: list[str]) -> None:
    """The sidebar, and links to files that could be pages and are none: the files themselves."""
    if name == "index":
        source[0] += toctrees()
    up = "../" * (name.count("/") + 1)
    source[0] = re.sub(rf"\]\(({re.escape(up)}[\w/.]+\.(?:md|ipynb))\)", r"](path:\1)", source[0])


def _as_written(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings before napoleon reads them.

    The glossary of the records stands in architecture.md, as tables. What stands before a colon in
    the text of an attribute is no type.
    """
    if name == "pipeline.records" and "Data:" in lines:
        del lines[lines.index("Data:") :]
    if what in ("attribute", "data", "property") and lines:
        lines.insert(0, "")


def setup(app: Any) -> None:
    app.connect("source-read", _prepare)
    app.connect("env-get-outdated", lambda *_: ["index"])  # the sidebar may have changed
    app.connect("autodoc-process-docstring", _as_written, priority=400)
