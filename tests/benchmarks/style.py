"""The form of the package in figures, beside those of code bases that are good to read.

    python tests/benchmarks/style.py [TREE ...]

A tree is a checkout; without one it is this checkout. Nothing is imported or run: all figures come
from the syntax trees. "fn" counts every ``def``, its docstring included. "public" is a name without
an underscore at the top of a module or of a public class. Figures of the others: measured on
snapshots of 2025 and 2026 with the same rules.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = 100
NESTED = (ast.If, ast.For, ast.While, ast.With, ast.Try)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# name, files, fn med/p90/max, fn > 50, nested >= 4, args p90/max, typed, chain and cycles,
# test:code
ANCHORS = """
nanoGPT          8    10/25/55     4 %   0.0 %   2/4    0 %   1, none       0
nanochat        29    10/47/147    9 %   4.9 %   5/10   8 %   6, one of 2   0.16
TorchIO v2      88    11/35/121    3 %   0.1 %   4/17  98 %  12, none       0.66
torchtitan      27    12/43/552    7 %   1.4 %   4/14  54 %   8, none       -
fastMRI         22    17/65/192   12 %   1.9 %   5/22  61 %   7, one of 2   0.24
surface-dist.    3    25/71/155   12 %   0.0 %   3/3    0 %   2, none       0.43
equinox         72     7/40/428    7 %   1.0 %   5/15  31 %  16, one of 2   0.55
nnU-Net v2     189    13/58/262   12 %   5.0 %   6/15  42 %  10, none       0.02
MONAI 1.6.1    437    15/54/316   11 %   2.4 %   7/34  70 %  23, 7 knots    -
"""


@dataclass
class Form:
    """What is counted in the modules of one package."""

    files: int = 0
    lines: list[int] = field(default_factory=list)
    """Lines of each file."""
    columns: list[int] = field(default_factory=list)
    """Columns of each line."""
    lengths: list[int] = field(default_factory=list)
    """Lines of each function."""
    nesting: list[int] = field(default_factory=list)
    arguments: list[int] = field(default_factory=list)
    typed: list[bool] = field(default_factory=list)
    late: int = 0
    """Imports inside functions."""
    statements: int = 0
    public: list[dict[str, bool]] = field(default_factory=list)
    """Of each public function: which parts its docstring has or does not need."""


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """Arguments without self and cls."""
    a = node.args
    found = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
    return [x for x in found if x.arg not in ("self", "cls")]


def depth(node: ast.AST) -> int:
    """How deep blocks lie in blocks, not counting those of functions inside."""
    inner = (c for c in ast.iter_child_nodes(node) if not isinstance(c, FUNCTIONS))
    return isinstance(node, NESTED) + max((depth(c) for c in inner), default=0)


def is_described(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a docstring is due: overloads have none, and a property is described as a value."""
    names = {ast.unparse(d).split(".")[-1] for d in node.decorator_list}
    return not names & {"overload", "property", "cached_property", "setter"}


def public(body: Sequence[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods that others may call."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public(node.body)
        elif isinstance(node, FUNCTIONS) and not node.name.startswith("_") and is_described(node):
            yield node


def parts(node: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, bool]:
    """Whether the docstring has what its function needs; True where it needs none."""
    text = ast.get_docstring(node) or ""
    gives = node.returns is not None and ast.unparse(node.returns) not in ("None", "NoReturn")
    raises = any(isinstance(n, ast.Raise) and n.exc is not None for n in ast.walk(node))
    return {
        "text": bool(text),
        "Args": not arguments(node) or "Args:" in text,
        "Returns": not gives or "Returns:" in text or "Yields:" in text,
        "Raises": not raises or "Raises:" in text,
    }


PARTS = ("text", "Args", "Returns", "Raises")


def measure(package: Path) -> Form:
    """Count in all modules below ``package``."""
    form = Form()
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        form.files += 1
        form.lines.append(len(text.splitlines()))
        form.columns += [len(line) for line in text.splitlines()]
        form.statements += sum(isinstance(n, ast.stmt) for n in ast.walk(tree))
        for node in (n for n in ast.walk(tree) if isinstance(n, FUNCTIONS)):
            given = arguments(node)
            form.lengths.append((node.end_lineno or node.lineno) - node.lineno + 1)
            form.nesting.append(depth(node))
            form.arguments.append(len(given))
            form.typed.append(node.returns is not None and all(a.annotation for a in given))
            form.late += sum(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(node))
        form.public += [parts(n) for n in public(tree.body)]
    return form


def imports(package: Path) -> dict[str, set[str]]:
    """Which modules each module names in an import at its top."""
    root = package.parent
    paths = {".".join(p.relative_to(root).with_suffix("").parts): p for p in package.rglob("*.py")}
    known = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        wanted: set[str] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {n if n in known else node.module for n in names}
        found[name] = {w for w in wanted if w in known and w != name}
    return found


def chain(graph: dict[str, set[str]]) -> tuple[int, int]:
    """Imports in the longest chain, and how many modules lie on a cycle."""
    reached: dict[str, set[str]] = {}
    for name in graph:
        stack, seen = [name], set()
        while stack:
            for other in graph[stack.pop()] - seen:
                seen.add(other)
                stack.append(other)
        reached[name] = seen
    cyclic = {name for name, others in reached.items() if name in others}
    levels: dict[str, int] = {}
    for name in sorted(graph, key=lambda n: len(reached[n])):
        below = [levels[o] + 1 for o in graph[name] if o in levels and o not in cyclic]
        levels[name] = max(below, default=0)
    return max(levels.values(), default=0), len(cyclic)


def spread(values: Sequence[int]) -> str:
    """Median, 90th percentile and largest."""
    ordered = sorted(values)
    return "/".join(str(ordered[int(q * (len(ordered) - 1))]) for q in (0.5, 0.9, 1))


def share(flags: Sequence[bool]) -> str:
    return f"{100 * sum(flags) / max(len(flags), 1):.1f} %"


def rows(tree: Path) -> dict[str, str]:
    """The figures of a checkout, by name."""
    package = tree / "pipeline"
    form = measure(package)
    longest, cyclic = chain(imports(package))
    tests = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in tree.glob("tests/*.py"))
    return {
        "files": f"{form.files}",
        "lines": f"{sum(form.lines):,}",
        "statements": f"{form.statements:,}",
        "lines of a file med/p90/max": spread(form.lines),
        "fn": f"{len(form.lengths):,}",
        "fn lines med/p90/max": spread(form.lengths),
        "fn above 50 lines": share([n > 50 for n in form.lengths]),
        "fn nested 4 or deeper": share([n >= 4 for n in form.nesting]),
        "arguments med/p90/max": spread(form.arguments),
        "fn above 5 arguments": f"{sum(n > 5 for n in form.arguments)}",
        "fully typed": share(form.typed),
        f"lines above {COLUMNS} columns": share([n > COLUMNS for n in form.columns]),
        "longest line": f"{max(form.columns)}",
        "imports inside functions": f"{form.late}",
        "longest chain of imports": f"{longest}",
        "modules on a cycle": f"{cyclic}",
        "public fn": f"{len(form.public):,}",
        **{f"  with {k} or no need of it": share([p[k] for p in form.public]) for k in PARTS},
        "test lines by code line": f"{tests / max(sum(form.lines), 1):.2f}",
    }


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    p.add_argument("tree", type=Path, nargs="*", default=[Path(__file__).resolve().parents[2]])
    trees = p.parse_args().tree
    found = [rows(tree) for tree in trees]
    width = max(map(len, found[0]))
    print(" " * width + "".join(f"{tree.resolve().name:>16}" for tree in trees))
    for name in found[0]:
        print(f"{name:<{width}}" + "".join(f"{row[name]:>16}" for row in found))
    print("\nothers: files, fn lines, fn > 50, nested >= 4, args p90/max, typed, chain, test:code")
    print(ANCHORS.strip("\n"))


if __name__ == "__main__":
    main()
