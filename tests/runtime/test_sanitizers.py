"""The kernels under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ovstrans.runtime.build import build, find_compiler

ROOT = Path(__file__).parents[2]
FLAGS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def sanitizer_libraries() -> list[str]:
    """Paths of the sanitizers' libraries, which must be loaded first; none where the compiler has none."""
    compiler = find_compiler()
    if compiler is None:
        return []
    paths = []
    for name in ("libasan.so", "libubsan.so"):
        done = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        if not Path(done.stdout.strip()).is_absolute():
            return []
        paths.append(done.stdout.strip())
    return paths


def run_checked(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `checked_run` with more environment variables."""
    command = [sys.executable, "-m", "tests.runtime.checked_run", str(folder), *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=variables)


@pytest.mark.slow
def test_no_sanitizer_finds_anything(tmp_path: Path) -> None:
    libraries = sanitizer_libraries()
    if not libraries:
        pytest.skip("no compiler with sanitizers")
    assert build(tmp_path, flags=FLAGS)
    preload = {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = run_checked(tmp_path, **preload)
    assert done.returncode == 0, done.stderr[-3000:]
