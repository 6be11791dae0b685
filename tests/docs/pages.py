"""Reading the documentation: pages, their code blocks, and the scripts that make parts of them."""

from __future__ import annotations

import re
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
README = ROOT / "README.md"

_FENCE = re.compile(r'^( *)```(\w+)(?: title="([^"]*)")?[^\n]*\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: The file it is in.
        language: The word after the fence.
        title: Its title, "" where it has none.
        text: Its lines, without the indentation of the fence.
    """

    page: Path
    language: str
    title: str
    text: str


def pages() -> list[Path]:
    """Return every Markdown page of the documentation, the README, and the guide for contributors."""
    return [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the code blocks of a page in one of the languages."""
    return [
        Block(page, language, title, re.sub(f"^{indent}", "", text, flags=re.MULTILINE))
        for indent, language, title, text in _FENCE.findall(page.read_text(encoding="utf-8"))
        if language in languages
    ]


def load_script(name: str) -> dict[str, Any]:
    """Run a file of docs/scripts and return its names."""
    return runpy.run_path(str(DOCS / "scripts" / f"{name}.py"))
