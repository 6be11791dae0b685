"""Compile the kernels: `python -m ovstrans.runtime.build` in a checkout; installing from source does it by itself.

setup.py runs this file before the package is installed, so it imports nothing but the standard library.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")

_X86 = ("x86_64", "AMD64")
_COMPILERS = ("cc", "gcc", "clang")

FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra")
WIDTHS: Mapping[int, tuple[str, ...]] = {64: ("-mavx512f", "-mavx512dq", "-mfma"), 32: ("-mavx2", "-mfma"), 16: ()}
"""Native vector widths in bytes, and the compiler flags of each; an Arm CPU has the last one only."""


def library_name(width: int) -> str:
    """Return the file name of the library of a width."""
    return f"kernels{width}.so"


def machine_widths(machine: str | None = None) -> list[int]:
    """Return the widths that can be built for a kind of CPU, by default this one."""
    return list(WIDTHS) if (machine or platform.machine()) in _X86 else [16]


def find_compiler() -> list[str] | None:
    """Return the command of the C compiler: the variable CC, else cc, gcc or clang; None without one."""
    asked = shlex.split(os.environ.get("CC", ""))
    if asked:
        return asked if shutil.which(asked[0]) else None
    return next(([found] for found in map(shutil.which, _COMPILERS) if found), None)


def build(
    folder: Path,
    *,
    flags: Sequence[str] = (),
    widths: Sequence[int] | None = None,
    log: Callable[[str], object] = print,
) -> list[Path]:
    """Compile the library of every width. It never fails: without a compiler there are no libraries.

    Args:
        folder: Where to write them.
        flags: Flags in addition.
        widths: Native vector widths; those of this CPU's kind by default.
        log: Told what could not be built, and why.

    Returns:
        The libraries that were built.
    """
    compiler = find_compiler()
    if compiler is None:
        log("no C compiler (CC, cc, gcc, clang): the sparse runtime is left out, models run dense")
        return []
    built: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    for width in machine_widths() if widths is None else widths:
        path = folder / library_name(width)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        command = [*compiler, *FLAGS, *WIDTHS[width], *flags, f"-DWIDTH={width}", str(SOURCE), "-o", str(draft)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            log(f"{compiler[0]}: {error.strerror}; the sparse runtime is left out, models run dense")
            return built
        if done.returncode:
            log(f"{path.name}: not built ({' '.join(done.stderr.split())[-300:]})")
            draft.unlink(missing_ok=True)
            continue
        draft.replace(path)
        built.append(path)
    return built


if __name__ == "__main__":
    sys.exit(0 if build(SOURCE.parent) else 1)
