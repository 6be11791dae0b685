"""An installed package holds every folder of modules, and every file that is no module."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools

import ovstrans
from ovstrans.files import read_toml

TOP = Path(ovstrans.__file__).parent


def package(folder: Path) -> str:
    return ".".join(folder.relative_to(TOP.parent).parts)


def test_every_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(TOP.parent)
    runpy.run_path("setup.py")
    assert {package(path.parent) for path in TOP.rglob("__init__.py")} == set(given["packages"]) - set(
        given["package_dir"]
    )


def test_every_data_file_is_packaged() -> None:
    patterns = read_toml(TOP.parent / "pyproject.toml")["tool"]["setuptools"]["package-data"]
    files = [path for path in TOP.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {"ade20k-150.toml", "nouns.txt", "LICENSE.txt", "prune-mini.toml"} <= {path.name for path in files}
    for path in files:
        assert any(path.match(pattern) for pattern in patterns.get(package(path.parent), [])), path
