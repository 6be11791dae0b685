"""What an installed package holds: every folder of modules, and every file that is no module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ovstrans
from ovstrans.data.tables import read_toml

TOP = Path(ovstrans.__file__).parent


def setuptools() -> dict[str, Any]:
    return read_toml(TOP.parent / "pyproject.toml")["tool"]["setuptools"]


def package(folder: Path) -> str:
    return ".".join(folder.relative_to(TOP.parent).parts)


def test_every_package_is_listed() -> None:
    elsewhere = set(setuptools()["package-dir"])
    assert {package(path.parent) for path in TOP.rglob("__init__.py")} == set(setuptools()["packages"]) - elsewhere


def test_every_data_file_is_packaged() -> None:
    patterns = setuptools()["package-data"]
    files = [path for path in TOP.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {"ade20k-150.toml", "nouns.txt", "LICENSE.txt", "prune-mini.toml"} <= {path.name for path in files}
    for path in files:
        assert any(path.match(pattern) for pattern in patterns.get(package(path.parent), [])), path
