"""Building and finding the kernels; without a compiler everything else works."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ovstrans.runtime import library
from ovstrans.runtime.build import SOURCE, build, library_name, machine_widths
from ovstrans.runtime.library import WIDTH_VARIABLE, find_kernels

ROOT = Path(__file__).parents[2]


def test_without_a_compiler_nothing_is_built_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    told: list[str] = []
    assert build(tmp_path, log=told.append) == []
    assert "no C compiler" in told[0]
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    assert find_kernels() is None


def test_a_compiler_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    told: list[str] = []
    assert build(tmp_path, log=told.append) == []
    assert len(told) == len(machine_widths())
    assert not list(tmp_path.iterdir())


def test_the_width_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in machine_widths():
        monkeypatch.setenv(WIDTH_VARIABLE, str(width))
        found = find_kernels()
        assert found is not None
        assert found.width <= width
    monkeypatch.setenv(WIDTH_VARIABLE, "0")
    assert find_kernels() is None


def test_a_missing_width_gives_a_narrower_one(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(built / library_name(16), tmp_path)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    found = find_kernels()
    assert found is not None
    assert found.width == 16


def test_a_broken_library_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in machine_widths():
        (tmp_path / library_name(width)).write_bytes(b"not a library")
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    assert find_kernels() is None


def test_the_source_is_readable() -> None:
    lines = SOURCE.read_text().splitlines()
    assert len(lines) <= 700
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "riscv64"])
def test_other_cpus_have_one_width(machine: str) -> None:
    assert machine_widths(machine) == [16]


def test_the_arm_path_compiles(tmp_path: Path) -> None:
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if compiler is None:
        pytest.skip("no cross compiler for Arm (package gcc-aarch64-linux-gnu)")
    command = [
        compiler,
        "-O3",
        "-std=gnu11",
        "-fPIC",
        "-shared",
        "-pthread",
        "-DWIDTH=16",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    subprocess.run([*command, str(SOURCE), "-o", str(tmp_path / "arm.so")], check=True)


def test_the_source_has_no_warnings(tmp_path: Path) -> None:
    assert len(build(tmp_path, flags=["-Werror"])) == len(machine_widths())


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [True, False], ids=["with a compiler", "without"])
def test_a_wheel_is_built_either_way(compiler: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("ovstrans", "checkpoints"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    if not compiler:
        monkeypatch.setenv("CC", "no-such-compiler")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
    ]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    names = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("ovstrans/runtime/")}
    libraries = {library_name(width) for width in machine_widths()}
    assert names & libraries == (libraries if compiler else set())
    assert "kernels.c" in names
