"""The order of the rooms: a module imports from its own room and from those below, never from one above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ovstrans

ORDER = (
    "cli",
    "reports",
    "segmenter",
    "pruning",
    "training",
    "interop",
    "evaluation",
    "costs",
    "frameworks",
    "runtime",
    "spectrum",
    "checkpoints",
    "masks",
    "clip",
    "datasets",
    "vocabulary",
    "recipes",
)
"""Every room, the highest first. Modules outside a room (console, errors, files, ...) are below all of them."""
PACKAGE = Path(ovstrans.__file__).parent
FRONT_DOORS = {"__init__.py", "__main__.py"}
"""Modules of the top level that hand on what the rooms have."""


def imported(path: Path) -> Iterator[str]:
    """Dotted names of ours that a module imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "ovstrans":
            yield from (f"ovstrans.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def rank(room: str) -> int:
    """Height of a room; 0 for what is in none."""
    return len(ORDER) - ORDER.index(room) if room in ORDER else 0


def test_every_room_has_its_place() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ORDER)


def test_no_import_reaches_up() -> None:
    reaching = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] in FRONT_DOORS:
            continue
        for name in imported(path):
            words = name.split(".")
            if words[0] == "ovstrans" and len(words) > 1 and rank(words[1]) > rank(parts[0]):
                reaching.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not reaching, "\n".join(reaching)
