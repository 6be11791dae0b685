"""Extracts of WordNet 3.0 and their reader. See README.md in this folder."""

from __future__ import annotations

from importlib.resources import files as package_files


def read_lines(name: str) -> list[str]:
    """Return the lines of a data file of this folder, without comments and blank lines."""
    return parse_lines((package_files(__name__) / name).read_text(encoding="utf-8"))


def parse_lines(text: str) -> list[str]:
    """Return the lines of `text` that are neither blank nor comments (`#`)."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
