"""What the studies share: the program's own commands as separate processes, results kept, tables of means.

What is already there is not run again, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Report = dict[str, Any]


def call(*arguments: object) -> None:
    """One `ovstrans` command; its output goes to the terminal, a failure ends the study."""
    print("$ ovstrans", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "ovstrans.cli.main", *map(str, arguments), "--quiet"], check=True)


def parse(parser: argparse.ArgumentParser, *, tests: bool = True) -> argparse.Namespace:
    """Add the options of every study that prunes and fine-tunes, parse the command line, and make the folder.

    tests: whether the study takes the datasets to evaluate on.
    """
    parser.add_argument("--out", type=Path, required=True)
    if tests:
        parser.add_argument("--test", action="append", default=[])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--prune-set", action="append", default=[])
    options = parser.parse_args()
    if tests:
        options.test = options.test or ["scenes:test"]
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def changes(values: Sequence[str]) -> list[str]:
    """`--set` pairs for a command line."""
    return [word for value in values for word in ("--set", value)]


def trained(out: Path, name: str, arguments: Sequence[object], tests: Sequence[str], *, keep: bool = True) -> Report:
    """Fine-tune one arm into `out/name` and evaluate it; returns its report.

    arguments: of `finetune`, without --out.  tests: datasets.  keep: whether the run folder stays.
    """
    report, run = out / f"{name}.report.json", out / name
    if not report.exists():
        if not (run / "checkpoint.safetensors").exists():
            call("finetune", *arguments, "--force", "--out", run)
        call("bench", run, *[word for data in tests for word in ("--data", data)], "--json", report)
    if not keep and run.exists():
        (run / "checkpoint.safetensors").unlink(missing_ok=True)
    return read_report(report, out)


def read_report(report: Path, out: Path) -> Report:
    """A report; what it says of the machine is reduced to the kind, also in its file."""
    found: Report = json.loads(report.read_text().replace(f"{out}/", ""))  # whose folder it was is nobody's business
    if found["environment"]["platform"] != platform.machine():
        found["environment"]["platform"] = platform.machine()
        report.write_text(json.dumps(found, indent=2) + "\n")
    return found


def step_seconds(log: Path) -> list[float]:
    """Processor seconds of each step of a run, which other work on the machine hardly changes."""
    return [json.loads(line)["processor_seconds"] for line in log.read_text().splitlines()]


def cell(values: Sequence[float | None], digits: int = 1) -> str:
    """`mean ± standard deviation`, of one value without the latter; `-` of none."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{spread}"


def scores(reports: Sequence[Report], data: str) -> list[str]:
    """Cells of mIoU, base and novel mIoU and their harmonic mean on a dataset."""
    entries = [report["datasets"][data] for report in reports]
    return [cell([entry.get(key) for entry in entries]) for key in ("mIoU", "base", "novel", "hIoU")]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table."""
    print("\n".join(table_lines(head, rows)))


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def print_heading(seeds: int, minutes: float) -> None:
    """What the figures come from."""
    print(f"\n{seeds} seeds, {platform.machine()}, {minutes:.0f} min\n")


def size_cells(report: Mapping[str, Any]) -> list[str]:
    """Cells of nonzero parameters and effective MACs."""
    return [f"{report['params']['nonzero'] / 1e6:.2f} M", f"{report['flops']['effective'] / 1e9:.3f} G"]
