"""Where the parts of a dataset are on disk, as a layout has them or as people unpack archives.

Archives are often unpacked into folders of their own: `val2017/val2017`, `gtFine_trainvaltest/gtFine`,
`VOCtrainval_11-May-2012/VOCdevkit`. Such folders in between are looked into if a path is not where a layout has it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ovstrans.errors import InputError

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2")
_ENTRIES_SHOWN = 5
_SIMILAR = 0.7
"""Least similarity (difflib) of names that may be misspelt."""


def find_part(folder: Path, paths: Sequence[str]) -> Path | None:
    """Return the first of several paths below a dataset folder that exists; None if none does.

    A path is also found below a folder that its archive was unpacked into: one whose name contains the path's first
    part, as `gtFine_trainvaltest` for `gtFine/val`. A folder that only holds a folder of its own name stands for that.

    Args:
        folder: The dataset folder.
        paths: Relative paths of a file or folder, the usual one first.
    """
    for path in paths:
        if (folder / path).exists():
            return _unwrap(folder / path)
    for path in paths:
        for wrapper in _list_wrappers(folder, Path(path).parts[0] if path != "." else ""):
            if (wrapper / path).exists():
                return _unwrap(wrapper / path)
    return None


def find_named(root: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield the folders below a root that may be a dataset folder although it is not directly there by its name.

    First those in a folder of any name or of their own, then those whose own name begins like the dataset's.

    Args:
        root: Where datasets are looked for.
        names: Possible paths of the dataset folder below a root.
    """
    children = [child for child in list_folders(root) if os.access(root / child, os.R_OK | os.X_OK)]
    for name in names:
        yield from (_unwrap(root / child / name) for child in children if _is_folder(root / child / name))
        if _is_folder(root / name):
            yield _unwrap(root / name)
    for name in names:
        start = Path(name).name
        for child in children:
            if child != start and child.lower().startswith(start.lower()) and not is_other_edition(child, names):
                yield _unwrap(root / child)


def is_other_edition(name: str, names: Sequence[str]) -> bool:
    """Return whether a folder name is that of another edition of a dataset, such as VOC2007 for VOC2012."""
    own = [Path(each).name for each in names]
    return name not in own and any(re.sub(r"\d+", "", name) == re.sub(r"\d+", "", each) != each for each in own)


def list_folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, sorted, without hidden ones; empty if it does not exist."""
    return _list_entries(folder, folders_only=True)


def describe_neighbours(folder: Path, paths: Sequence[str]) -> str:
    """Say what is there in place of paths that do not exist: entries of similar names, else the nearest folder's.

    Args:
        folder: The dataset folder.
        paths: Relative paths of which none exists.

    Returns:
        Such as "there is coco/annotations/panoptic_val2017.zip", or "" if there is nothing.
    """
    around: list[tuple[Path, list[str]]] = []
    for path in paths:
        parent, name = _deepest_parent(folder, path)
        entries = _list_entries(parent)
        alike = {
            entry.lower(): entry
            for entry in entries
            if Path(name).suffix or _is_folder(parent / entry) or entry.lower().endswith(_ARCHIVES)
        }
        similar = difflib.get_close_matches(name.lower(), alike, n=1, cutoff=_SIMILAR)
        if similar:
            is_archive = similar[0].endswith(_ARCHIVES)
            return f"there is {parent / alike[similar[0]]}{', unpack it' if is_archive else ''}"
        around.append((parent, entries))
    for parent, entries in around:
        if entries:
            return f"{parent} holds {shorten(entries)}"
    return ""


def shorten(names: Sequence[str]) -> str:
    """Join the first few of some names, and say how many more there are."""
    more = f" and {len(names) - _ENTRIES_SHOWN} more" if len(names) > _ENTRIES_SHOWN else ""
    return ", ".join(names[:_ENTRIES_SHOWN]) + more


def _deepest_parent(folder: Path, path: str) -> tuple[Path, str]:
    """Return the deepest folder on the way to a path that exists, and the name that is missing in it."""
    parent = folder
    for part in Path(path).parts:
        if not (parent / part).is_dir():
            return parent, part
        parent = parent / part
    return parent.parent, parent.name


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder; one that may not be looked at is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _unwrap(path: Path) -> Path:
    """Return the folder of the same name in a folder that holds no files; else the path itself."""
    while _is_folder(path / path.name) and len(_list_entries(path)) == len(list_folders(path)):
        path = path / path.name
    return path


def _list_wrappers(folder: Path, word: str) -> list[Path]:
    """List the folders in a folder whose names contain a word between separators."""
    pattern = re.compile(rf"(^|[_\-. ]){re.escape(word)}([_\-. ]|$)", re.IGNORECASE)
    names = [name for name in list_folders(folder) if word and pattern.search(name)]
    return [folder / name for name in names if os.access(folder / name, os.R_OK | os.X_OK)]


def _list_entries(folder: Path, *, folders_only: bool = False) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and (not folders_only or _is_folder(Path(entry.path)))
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        raise InputError(
            f"{folder}: no permission to read this folder; grant it, or move the folder elsewhere"
        ) from error
