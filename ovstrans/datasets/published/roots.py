"""Where datasets are looked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

VARIABLES = ("OVSTRANS_DATASETS", "DETECTRON2_DATASETS")
"""Environment variables that name folders of datasets, the first that is set and not empty counts."""
DEFAULT_ROOT = Path("datasets")
"""Looked in where nothing is named, below the working directory, as detectron2 does."""


def dataset_roots(root: Path | str | None = None) -> list[Path]:
    """The folders to look for datasets in, the first wins.

    root: what the user names (`--data-root`); None takes OVSTRANS_DATASETS, else DETECTRON2_DATASETS, else
    `./datasets`. Each may be several folders with the path separator of the system between them.
    """
    named = [str(root)] if root is not None else [os.environ.get(variable, "") for variable in VARIABLES]
    for text in named:
        folders = [Path(part).expanduser() for part in text.split(os.pathsep) if part.strip()]
        if folders:
            return folders
    return [DEFAULT_ROOT]


def looked_in(roots: Sequence[Path]) -> str:
    """The roots as a message names them, those that are not there marked."""
    return ", ".join(f"{root}" if root.is_dir() else f"{root} (no such folder)" for root in roots)
