"""Does one mask serve several frameworks? DeepLabV3, FC-CLIP and GKC under masks that were made once.

    python -m tests.benchmarks.frameworks --out FOLDER [--seeds 3] [--frameworks deeplabv3,fcclip,gkc]
        [--arms dense,imp,random] [--distill features] [--init pruned] [--set KEY=VALUE ...]

One IMP mask of the mini CLIP and one random mask of the same sparsity, each with the weights that the
same number of distillation steps left (or, with `--init pretrained`, CLIP's own), then every framework by
its mini recipe under each mask and dense, with each seed. Goes on where it stopped; prints a Markdown table.
Reports of published tables are in `tests/benchmarks/results/`: copied into FOLDER, they need not be made again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tests.benchmarks.study import Report, call, changes, print_heading, print_table, scores, size_cells, trained

TEST = "scenes:test"


def make_mask(arm: str, options: argparse.Namespace) -> list[object]:
    """The arm's mask, made where it is missing; returns the options that `finetune` needs for it."""
    if arm == "dense":
        return ["--no-mask", "--init", "pretrained"]
    mask = options.out / f"{arm}.safetensors"
    if not mask.exists():
        amount = ["--like", options.out / "imp.safetensors"] if arm == "random-matched" else ["--sparsity", 0.9]
        method = "imp" if arm == "imp" else "random"
        call("prune", "--method", method, *amount, "--distill", options.distill, "--out", mask)
    return ["--mask", mask, "--init", options.init]


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frameworks", default="deeplabv3,fcclip,gkc")
    parser.add_argument("--arms", default="dense,imp,random")
    parser.add_argument("--distill", default="features")
    parser.add_argument("--init", default="pruned", choices=["pruned", "pretrained"])
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    results: dict[tuple[str, str], list[Report]] = {}
    for seed in range(options.seeds):
        for framework in options.frameworks.split(","):
            for arm in options.arms.split(","):
                arguments = [framework, "--seed", seed, "--no-plan", *make_mask(arm, options), *changes(options.set)]
                report = trained(options.out, f"{framework}-{arm}-{seed}", arguments, [TEST], keep=seed == 0)
                results.setdefault((framework, arm), []).append(report)
    print_heading(options.seeds, (time.monotonic() - began) / 60)
    print_table(
        ["framework", "trunk", "mIoU", "base", "novel", "hIoU", "nonzero params", "effective MACs"],
        [
            [framework, arm, *scores(reports, TEST), *size_cells(reports[0])]
            for (framework, arm), reports in results.items()
        ],
    )


if __name__ == "__main__":
    main()
