"""The C program that compares the kernels with plain loops: every build, Arm under an emulator, and valgrind."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from ovstrans.runtime.build import SOURCE, WIDTHS, find_compiler, machine_widths
from ovstrans.runtime.library import find_kernels

PROGRAM = Path(__file__).with_name("check_kernels.c")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


def compile_program(path: Path, compiler: Sequence[str], width: int, *flags: str) -> Path:
    """Compile the program with the kernels of a width."""
    own = ("-O2", "-std=gnu11", "-pthread", *WARNINGS, f"-DWIDTH={width}", f"-I{SOURCE.parent}", str(PROGRAM))
    done = subprocess.run(
        [*compiler, *own, *flags, "-lm", "-o", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return path


def run_program(*command: str) -> str:
    """Run the program and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("threads: ") == 12
    return done.stderr


@pytest.fixture
def compiler() -> list[str]:
    found = find_compiler()
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.mark.parametrize("width", machine_widths())
def test_every_build_is_right(width: int, compiler: list[str], tmp_path: Path) -> None:
    kernels = find_kernels(width)
    if kernels is None or kernels.width != width:
        pytest.skip(f"this CPU has no vectors of {width} bytes")
    run_program(str(compile_program(tmp_path / "check", compiler, width, *WIDTHS[width])))


@pytest.mark.skipif(shutil.which(ARM_COMPILER) is None, reason="no compiler for Arm (gcc-aarch64-linux-gnu)")
def test_the_arm_build_compiles_and_is_right(tmp_path: Path) -> None:
    program = compile_program(tmp_path / "check", [ARM_COMPILER], 16, "-static")
    flags = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread", *WARNINGS, "-DWIDTH=16"]
    library = [ARM_COMPILER, *flags, str(SOURCE), "-o", str(tmp_path / "kernels16.so")]
    done = subprocess.run(library, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if shutil.which(ARM_EMULATOR) is None:
        pytest.skip("compiled; nothing to run it (qemu-user)")
    run_program(ARM_EMULATOR, str(program))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind")
def test_valgrind_finds_nothing(compiler: list[str], tmp_path: Path) -> None:
    program = compile_program(tmp_path / "check", compiler, 16, "-g", "-O1")
    # Threads that serve until the process ends are "possibly lost".
    leaks = ("--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite")
    said = run_program("valgrind", "--error-exitcode=9", *leaks, str(program))
    assert "ERROR SUMMARY: 0 errors" in said and "definitely lost: 0 bytes" in said
