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
import time

from tests.benchmarks.study import Report, call, changes, parse, print_heading, print_table, scores, size_cells, trained

ARMS = ("dense", "imp", "random", "random-matched")


def prune(arm: str, seed: int, options: argparse.Namespace) -> list[object]:
    """Make the arm's mask where it is missing; returns the options that `finetune` needs for it."""
    if arm in ("dense", "scratch"):
        return ["--no-mask", "--init", "random" if arm == "scratch" else "pretrained"]
    mask = options.out / f"{arm}-{seed}.safetensors"
    common = ["--seed", seed, "--out", mask, *changes(options.prune_set)]
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


def run_arm(arm: str, seed: int, options: argparse.Namespace) -> Report:
    """Prune, fine-tune and evaluate one arm with one seed; returns its report."""
    arguments = [
        "--data", options.data, "--recipe", options.recipe, "--seed", seed, "--no-plan",
        *prune(arm, seed, options), *changes(options.set),
    ]  # fmt: skip
    return trained(options.out, f"{arm}-{seed}", arguments, options.test)


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--sparsity", default="0.9")
    parser.add_argument("--data", default="scenes:train")
    parser.add_argument("--recipe", default="deeplabv3-mini")
    parser.add_argument("--init", default="pruned", choices=("pruned", "pretrained"))
    options = parse(parser)
    began = time.monotonic()
    results: dict[str, list[Report]] = {}
    for seed in range(options.seeds):
        for arm in options.arms.split(","):
            results.setdefault(arm, []).append(run_arm(arm, seed, options))
    print_heading(options.seeds, (time.monotonic() - began) / 60)
    print_table(
        ["arm", "data", "mIoU", "base", "novel", "hIoU", "nonzero params", "effective MACs"],
        [
            [arm, data, *scores(reports, data), *size_cells(reports[0])]
            for arm, reports in results.items()
            for data in reports[0]["datasets"]
        ],
    )


if __name__ == "__main__":
    main()
