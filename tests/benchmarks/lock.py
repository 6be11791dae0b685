"""Time and memory of checking a lock of costs, interpreter start included.

    python -m tests.benchmarks.lock [--lock tests/reports/costs.lock.json] [--repeat 3] [--json report.json]

Each round is a process of its own, `ovstrans bench --check LOCK`, as CI runs it; beside it, in the same
round, one that only imports what counting needs, so that the rest of the time is counting. The limits are
those of the project: 20 s and 1.5 GiB for all recipes at 800x1216.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "reports" / "costs.lock.json"
MOST_SECONDS, MOST_BYTES = 20.0, 1.5 * 2**30
_IMPORTS = "import ovstrans.reports.lock, ovstrans.frameworks.fcclip, ovstrans.frameworks.gkc"
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, kilobytes elsewhere


@dataclass(frozen=True)
class Run:
    """seconds: on the clock.  cpu_seconds: of all threads.  peak_bytes: resident.  status: exit status."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    status: int


def timed(command: list[str]) -> Run:
    """A process from start to end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, busy = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    return Run(seconds, busy, usage.ru_maxrss * _RSS_UNIT, process.returncode)


def main() -> int:
    """Print the table; 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lock", type=Path, default=LOCK)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    check = [sys.executable, "-m", "ovstrans.cli.main", "bench", "--check", str(arguments.lock), "--quiet"]
    arms = {"check": check, "imports alone": [sys.executable, "-c", _IMPORTS]}
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    for _ in range(arguments.repeat):
        for name, command in arms.items():
            runs[name].append(timed(command))
            if runs[name][-1].status:
                print(f"{name}: exit status {runs[name][-1].status}")
                return 1
    report: dict[str, Any] = {"targets": len(json.loads(arguments.lock.read_text())["targets"])}
    for name, values in runs.items():
        report[name] = summary = {
            "runs": [vars(run) for run in values],
            "median_s": statistics.median(run.seconds for run in values),
            "cpu_s": min(run.cpu_seconds for run in values),
            "peak_bytes": max(run.peak_bytes for run in values),
        }
        times = f"median {summary['median_s']:6.2f} s, least processor time {summary['cpu_s']:6.2f} s"
        print(f"{name:14s} {times}, {summary['peak_bytes'] / 2**30:.2f} GiB")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    within = report["check"]["median_s"] <= MOST_SECONDS and report["check"]["peak_bytes"] <= MOST_BYTES
    limits = f"{MOST_SECONDS:.0f} s, {MOST_BYTES / 2**30:.1f} GiB"
    print(f"{report['targets']} targets, limits of {limits}: {'kept' if within else 'NOT KEPT'}")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
