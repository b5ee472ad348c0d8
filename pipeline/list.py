"""Say what there is: configs, networks, losses, metrics and the other tables, a line an entry.

The names that a config may use, with their options as YAML::

    python -m pipeline.list                          # which tables there are
    python -m pipeline.list networks losses
    python -m pipeline.list configs                  # systems that come with the package
    python -m pipeline.list losses --plugin mine.py  # with the entries of a plugin
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline import cli
from pipeline.records import DONE, UserError

TABLES = {
    "configs": "systems that come with the package: train --config NAME",
    "networks": "network: of a config",
    "losses": "losses:",
    "metrics": "metrics:, and evaluate --metrics NAME",
    "steps": "postprocess:, steps from probabilities to labels",
    "augment": "data.augment:",
    "normalisations": "data.normalise:",
    "optimizers": "train.optimizer:",
    "schedules": "train.schedule:, the learning rate over the epochs",
    "fusions": "ensemble --fusion NAME",
}
"""What may be listed, and where its names are used."""


def parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m pipeline.list``.

    Returns:
        A parser whose options are the arguments of :func:`list`.
    """
    p = cli.parser(
        "list",
        "Say what there is, a line an entry: its name, what it is, its options with their defaults"
        " (? must be given, ... is longer than a line).",
    )
    p.add_argument(
        "tables",
        nargs="*",
        metavar="TABLE",
        help=f"{', '.join(TABLES)}; without one: what each of these is",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: words of the command line; None: ``sys.argv``.

    Returns:
        Exit code.
    """
    return cli.run(parser(), list, argv)


def list(*, tables: Sequence[str]) -> int:  # noqa: A001 - the command's name
    """Print the entries of tables, or which tables there are.

    Args:
        tables: names out of :data:`TABLES`.

    Returns:
        Exit code.

    Raises:
        UserError: for a table that does not exist.
    """
    from pipeline.config import first_comment, nearest, shipped_configs

    tables = [table.lower() for table in tables]
    for table in tables:
        if table not in TABLES:
            raise UserError(f"there is no table {table!r}. {nearest(table, TABLES)}")
    if not tables:
        print("\n".join(f"{name:<16}{text}" for name, text in TABLES.items()))
    for table in tables:
        if len(tables) > 1:
            print(f"{table}:")
        if table == "configs":
            configs = shipped_configs()
            width = max(map(len, configs), default=0) + 2
            for name, path in configs.items():
                print(f"{name:<{width}}{first_comment(path)}")
        else:
            from pipeline.workflows import listing  # torch and MONAI, which configs need not

            print("\n".join(listing.lines(table)))
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
