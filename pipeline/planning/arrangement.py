"""Which data set lies in a folder: from names, headers and a few files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config, Data, Patch
from pipeline.data import cases as case_finder
from pipeline.records import LossTerm, NamedOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """A data set, and the config with which its cases are found and examined."""

    root: Path
    config: Config
    """Layout, folders, axes, task and how labels are read; the rest has no meaning."""
    notes: tuple[str, ...] = ()
    """What was decided, and why."""


def preliminary(data: dict, task: str = "labels") -> Config:
    """A config with which cases can be found and examined."""
    dims = data.get("dims", 3)
    return Config(
        name="plan",
        task=task,
        data=Data(
            **{
                "normalise": NamedOptions(name="none"),
                "patch": Patch(size=(1,) * dims),
                **data,
            }
        ),
        network=NamedOptions(name="unet"),
        losses=(LossTerm(name="dice"),),
    )


def arrange(root: Path) -> Arrangement:
    data = {
        "layout": "nnunet",
        "root": str(root),
        "dims": 3,
        "ignore_label": case_finder.ignore_label(root),
    }
    return Arrangement(root=root, config=preliminary(data))
