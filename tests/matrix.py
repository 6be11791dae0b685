"""Run the fast half of the suite on the oldest and the newest dependencies that pyproject.toml allows.

    python tests/matrix.py [--python python3.10 ...] [--versions oldest newest] [--keep] [--dry-run]

Each combination of an interpreter and a set of versions gets a virtual environment of its own in `.matrix/`, about
5.5 GB large, which is removed once its tests pass. The oldest set takes torch, torchvision, transformers and
open_clip at their lower bounds in pyproject.toml; the newest lets pip choose. Interpreters that are missing are
skipped, with a line that says so. The exit status is 1 where any combination failed, or none could run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".matrix"
INTERPRETERS = ("python3.10", "python3.13")
VERSIONS = ("oldest", "newest")
BOUNDED = ("torch", "torchvision", "transformers", "open_clip_torch")
"""The dependencies whose counts, names and bytes the project relies on."""
FAST_HALF = (
    "tests/checkpoints",
    "tests/clip",
    "tests/costs",
    "tests/evaluation",
    "tests/frameworks",
    "tests/interop",
    "tests/masks",
    "tests/reports",
    "tests/spectrum",
    "tests/docs/test_formats.py",
    "tests/test_stable_files.py",
)
"""Counts, locks, file bytes, and everything that compares with published code."""


def find_interpreter(name: str) -> str | None:
    """Return the path of an interpreter that runs, from PATH or among pyenv's versions; None where there is none."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    version = name.removeprefix("python")
    for candidate in (shutil.which(name), *sorted(map(str, versions.glob(f"{version}.*/bin/{name}")))):
        # A shim of pyenv is found on PATH and yet runs nothing where its version is not selected.
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def lower_bounds() -> list[str]:
    """Return `name==version` of every bounded dependency at its lower bound."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = {name: re.search(rf'"{name}>=([\d.]+)', text) for name in BOUNDED}
    missing = [name for name, match in found.items() if match is None]
    if missing:
        raise SystemExit(f"pyproject.toml: no lower bound of {', '.join(missing)}")
    return [f"{name}=={_full(match[1])}" for name, match in found.items() if match]


def _full(version: str) -> str:
    return version + ".0" * (2 - version.count("."))


def run_combination(interpreter: str, versions: str, *, keep: bool, dry_run: bool) -> str:
    """Make an environment and run the tests in it; return what came of it in a word or two."""
    name = Path(interpreter).name
    folder = ENVIRONMENTS / f"{name}-{versions}"
    shutil.rmtree(folder, ignore_errors=True)
    python = str(folder / "bin" / "python")
    _call([interpreter, "-m", "venv", str(folder)])
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in lower_bounds()) if versions == "oldest" else "")
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "-c", str(constraints)]
    if dry_run:
        outcome = "resolves" if _call([*install, "--dry-run", f"{ROOT}[test]"]) else "does not resolve"
        shutil.rmtree(folder, ignore_errors=True)
        return outcome
    if not _call([*install, "-e", f"{ROOT}[test]"]):
        return "does not install"
    _call([python, "-c", _SHOW_VERSIONS])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    paths = [path for path in FAST_HALF if (ROOT / path).exists()]
    passed = _call([python, "-m", "pytest", "-n", "2", "--dist", "worksteal", *paths], environment)
    if passed and not keep:
        shutil.rmtree(folder)
    return "passed" if passed else "FAILED"


_SHOW_VERSIONS = f"""
from importlib.metadata import version
print(", ".join(f"{{name}} {{version(name)}}" for name in {(*BOUNDED, "numpy")!r}), flush=True)
"""


def _call(words: list[str], environment: dict[str, str] | None = None) -> bool:
    return subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode == 0


def main() -> int:
    """Run every combination and print a table of outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=list(INTERPRETERS), help="names of interpreters")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("--keep", action="store_true", help="keep the environments of combinations that passed")
    parser.add_argument("--dry-run", action="store_true", help="only check that pip finds versions that fit")
    options = parser.parse_args()
    outcomes: list[tuple[str, str, str]] = []
    for name in options.python:
        interpreter = find_interpreter(name)
        if interpreter is None:
            print(f"{name}: not installed here, skipped", flush=True)
            continue
        for versions in options.versions:
            began = time.monotonic()
            print(f"== {name}, {versions} versions", flush=True)
            outcome = run_combination(interpreter, versions, keep=options.keep, dry_run=options.dry_run)
            outcomes.append((name, versions, f"{outcome} after {time.monotonic() - began:.0f} s"))
    print(*(f"{name:12}{versions:10}{outcome}" for name, versions, outcome in outcomes), sep="\n")
    return 0 if outcomes and all("passed" in each[2] or "resolves" in each[2] for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
