"""The wheel holds the package, its data files and the bundled CLIP, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ovstrans
from ovstrans.clip.models import BUNDLED_MODELS, bundled_models
from ovstrans.files import read_toml
from ovstrans.version import __version__

ROOT = Path(ovstrans.__file__).parents[1]
BUNDLED = "ovstrans/bundled/"


def listed(folder: Path) -> set[str]:
    """Return the files below a folder that belong to the source, relative to the repository."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    files = (path for path in files if path.suffix != ".so")  # built
    return {path.relative_to(ROOT).as_posix() for path in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the repository, without the network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("ovstrans", "checkpoints", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(out)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_the_bundled_clip(wheel: zipfile.ZipFile) -> None:
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    bundled = {name for name in found if name.startswith(BUNDLED)}
    kernels = {name for name in found if name.endswith(".so")}
    assert all(name.startswith("ovstrans/runtime/kernels") for name in kernels)
    assert found - bundled - kernels == listed(ROOT / "ovstrans")
    files = {name for name in listed(ROOT / "checkpoints") if name.count("/") == 2 and not name.endswith(".py")}
    assert {name.removeprefix(BUNDLED) for name in bundled} == {name.removeprefix("checkpoints/") for name in files}
    whole = {"README.md", "card.json", "open_clip_config.json", "open_clip_model.safetensors"}
    for model in bundled_models():
        folder = BUNDLED_MODELS[model]
        assert {f"{BUNDLED}{folder}/{name}" for name in whole} <= bundled


def test_what_makes_shipped_data_stays_out(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        assert not any(
            word in name for word in ("tests/", "makers", "train.py", "trainer", "contrastive", "__pycache__")
        ), name


def test_versions_agree(wheel: zipfile.ZipFile) -> None:
    assert any(name.startswith(f"ovstrans-{__version__}.dist-info/") for name in wheel.namelist())
    assert f"\n## {__version__} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_supported_python_is_a_classifier() -> None:
    project = read_toml(ROOT / "pyproject.toml")["project"]
    assert project["requires-python"] == ">=3.10,<3.14"
    minor = {int(text.rpartition(".")[2]) for text in project["classifiers"] if ":: Python :: 3." in text}
    assert minor == {10, 11, 12, 13}
