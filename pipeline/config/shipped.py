"""Configs that come with the package, and how ``--config NAME`` finds them.

Only what a user types is looked up by name. A path that stands in a run or in a model file never
is: those are read by :func:`pipeline.config.load`, which opens the file that it is given.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.binding import nearest
from pipeline.config.errors import ConfigError
from pipeline.invocation import called

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]

HOME = "configs"
"""Folder of the configs in a clone, and of a user's own below the working folder."""

SUFFIX = ".yaml"

MOST = 10
"""Files that a message names."""


@functools.cache
def shipped_configs() -> Mapping[str, Path]:
    """List the configs that come with the package.

    They lie in ``pipeline/_configs`` where it is installed from a wheel, and in ``configs`` beside
    ``pipeline`` in a clone.

    Returns:
        Files by name, sorted.

    Example:
        >>> sorted(shipped_configs())[:3]
        ['ct_organs', 'ct_regions', 'deblur']
    """
    inside = PACKAGE / "_configs"
    folder = inside if inside.is_dir() else PACKAGE.parent / HOME
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def first_comment(path: Path) -> str:
    """Read what the first line of a config says about it.

    Args:
        path: a YAML file.

    Returns:
        Its text without ``#``, up to three spaces that set a command apart; empty where the file
        does not begin with a comment.
    """
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    return line.lstrip("# ").split("   ")[0].strip() if line.startswith("#") else ""


def find_config(given: Path | str) -> Path:
    """Find the file that a user means by a path or by the name of a config.

    A file that exists always wins: first the path itself, then with ``.yaml``, then below
    ``configs`` of the working folder. Else ``surface``, ``surface.yaml`` and
    ``configs/surface.yaml`` are the one that comes with the package. Whatever is not the path
    itself is logged.

    Args:
        given: path or name.

    Returns:
        The file.

    Raises:
        ConfigError: where there is none; it names the nearest one.

    Example:
        >>> find_config("demo").name
        'demo.yaml'
    """
    path = Path(given)
    if _taken(path):
        return path
    found = next((other for other in _nearby(path) if _taken(other)), None)
    if found is None and (name := _name(path)) is not None:
        found = shipped_configs().get(name)
    if found is None:
        raise ConfigError(_unknown(path))
    logger.info(f"Config {given}: {found}")
    return found


def _taken(path: Path) -> bool:
    """Whether something is there that the user must have meant, readable or not."""
    return os.path.lexists(path) and not os.path.isdir(path)


def _name(path: Path) -> str | None:
    """Name of the config that a path may stand for; None for a path elsewhere."""
    if path.is_absolute() or path.parent not in (Path(), Path(HOME)):
        return None
    return path.name.removesuffix(SUFFIX)


def _nearby(path: Path) -> list[Path]:
    """Files of the user that a name may stand for, best first."""
    if not path.name:
        return []
    yaml = path.with_name(path.name.removesuffix(SUFFIX) + SUFFIX)
    return [yaml, Path(HOME) / yaml] if path.parent == Path() else [yaml]


def _unknown(path: Path) -> str:
    """What to say of a path that is no file and no name."""
    found = path.parent.glob(f"*{SUFFIX}") if os.path.isdir(path.parent) else []
    here = sorted(p for p in found if not p.name.startswith("."))
    more = f" and {len(here) - MOST} more" if len(here) > MOST else ""
    own = (
        f" The folder {path.parent} holds {', '.join(map(str, here[:MOST]))}{more}." if here else ""
    )
    known = nearest(path.name.removesuffix(SUFFIX), shipped_configs())
    return (
        f"{path}: no such config file, and none of that name comes with the package. {known}{own}"
        f" {called('list')} {HOME} says what each is."
    )
