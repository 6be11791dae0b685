"""Two small extracts of WordNet 3.0, the script that makes them, and their reader. See README.md beside this file."""

from __future__ import annotations

from importlib.resources import files as package_files


def read_lines(name: str) -> list[str]:
    """The lines of a data file of this folder, without comments and blank lines."""
    text = (package_files(__name__) / name).read_text(encoding="utf-8")
    return data_lines(text)


def data_lines(text: str) -> list[str]:
    """The lines of `text` that are neither blank nor comments (`#`)."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
