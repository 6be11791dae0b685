"""Does the mask matter? IMP against random masks, and a dense trunk, over several seeds.

    python -m tests.benchmarks.transfer --out FOLDER [--seeds 3] [--arms dense,imp,...] [--data scenes]
        [--test scenes:test] [--recipe deeplabv3-mini] [--set KEY=VALUE ...] [--prune-set KEY=VALUE ...]
        [--init pruned|pretrained]

Arms: dense, imp, random (uniform), random-matched (IMP's densities), scratch (a dense trunk that starts
from random weights). Every arm goes through the program's own commands, as separate processes with
files between them. All arms of a comparison have the same initialisation and the same number of steps;
with `--init pruned` the random masks are distilled for as many steps as IMP's rounds take together.
What is already there is not run again, so an interrupted study goes on where it stopped. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ARMS = ("dense", "imp", "random", "random-matched")


def call(*arguments: object) -> None:
    """One `ovstrans` command; its output goes to the terminal, a failure ends the study."""
    print("$ ovstrans", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "ovstrans.cli.main", *map(str, arguments), "--quiet"], check=True)


def settings(values: list[str]) -> list[str]:
    """`--set` pairs for a command line."""
    return [word for value in values for word in ("--set", value)]


def prune(arm: str, seed: int, options: argparse.Namespace) -> list[object]:
    """Make the arm's mask where it is missing; returns the options that `finetune` needs for it."""
    if arm in ("dense", "scratch"):
        return ["--no-mask", "--init", "random" if arm == "scratch" else "pretrained"]
    mask = options.out / f"{arm}-{seed}.safetensors"
    common = ["--seed", seed, "--out", mask, *settings(options.prune_set)]
    sparsity = ["--sparsity", options.sparsity]
    if not mask.exists():
        if arm == "imp":
            call("prune", "--method", "imp", *sparsity, *common)
        else:
            matched = ["--like", options.out / f"imp-{seed}.safetensors"]
            amount = matched if arm == "random-matched" else sparsity
            steps = ["--steps", 0] if options.init == "pretrained" else []
            call("prune", "--method", "random", *amount, *steps, *common)
    return ["--mask", mask, "--init", options.init]


def run_arm(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Prune, fine-tune and evaluate one arm with one seed; returns its report."""
    report = options.out / f"{arm}-{seed}.report.json"
    if not report.exists():
        chosen = prune(arm, seed, options)
        run = options.out / f"{arm}-{seed}"
        if not (run / "checkpoint.safetensors").exists():
            call(
                "finetune", "--data", options.data, "--recipe", options.recipe, "--seed", seed, "--no-plan", *chosen,
                *settings(options.set), "--force", "--out", run,
            )  # fmt: skip
        tests = [word for data in options.test for word in ("--data", data)]
        call("bench", run, *tests, "--json", report)
    return json.loads(report.read_text())


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--sparsity", default="0.9")
    parser.add_argument("--data", default="scenes:train")
    parser.add_argument("--test", action="append", default=[])
    parser.add_argument("--recipe", default="deeplabv3-mini")
    parser.add_argument("--init", default="pruned", choices=("pruned", "pretrained"))
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--prune-set", action="append", default=[])
    options = parser.parse_args()
    options.test = options.test or ["scenes:test"]
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for arm in options.arms.split(","):
            report = run_arm(arm, seed, options)
            results.setdefault(arm, []).append(report)
    print(f"\n{options.seeds} seeds, {platform.machine()}, {(time.monotonic() - began) / 60:.0f} min\n")
    print_table(results)


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    """A row per arm and test set: mean and standard deviation over seeds."""
    print("| arm | data | mIoU | base | novel | nonzero params | effective MACs |")
    print("|---|---|---|---|---|---|---|")
    for arm, reports in results.items():
        for data in reports[0]["datasets"]:
            entries = [report["datasets"][data] for report in reports]
            cells = []
            for key in ("mIoU", "base", "novel"):
                values = [entry[key] for entry in entries if entry.get(key) is not None]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "-")
            nonzero = reports[0]["params"]["nonzero"] / 1e6
            macs = reports[0]["flops"]["effective"] / 1e9
            print(f"| {arm} | {data} | {' | '.join(cells)} | {nonzero:.2f} M | {macs:.3f} G |")


if __name__ == "__main__":
    main()
