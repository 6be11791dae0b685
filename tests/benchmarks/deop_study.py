"""DeOP on the bundled ViT-mini, and whether one mask serves DeOP and GKC: dense, IMP and random masks, over seeds.

    python -m tests.benchmarks.deop_study --out FOLDER [--seeds 3] [--sparsity 0.8] [--arms dense,imp,random]
        [--targets deop,deop-no-anchors,gkc] [--test scenes:test] [--set KEY=VALUE ...] [--prune-set KEY=VALUE ...]

Masks are made of ViT-mini once for each seed, and every target is trained on it with each of them. Targets: `deop`;
`deop-no-anchors`, whose masks are averaged over CLIP's map; `gkc` on the same ViT. DeOP is evaluated with its own
proposals and, apart, with the segments of the ground truth, which tells naming from finding. Every arm goes through the
program's own commands, as separate processes with files between them; what is there is not run again. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import time

from tests.benchmarks.study import (
    Report,
    call,
    changes,
    parse,
    print_heading,
    print_table,
    read_report,
    scores,
    size_cells,
    trained,
)

MODEL = "ViT-mini"
TARGETS = {
    "deop": ("deop-mini", ()),
    "deop-no-anchors": ("deop-mini", ("model.anchors=false",)),
    "gkc": ("gkc-mini", ("model.clip=ViT-mini",)),
}
"""Recipe and settings of each target."""
ORACLE = ("deop", "deop-no-anchors")
"""Targets that are evaluated with the true masks too."""


def mask_options(arm: str, seed: int, options: argparse.Namespace) -> list[object]:
    """Make the mask of an arm where it is missing; returns the options of `finetune` for it."""
    if arm == "dense":
        return ["--no-mask"]
    mask = options.out / f"{arm}-{seed}.safetensors"
    if not mask.exists():
        common = ["--sparsity", options.sparsity, "--seed", seed, "--out", mask, *changes(options.prune_set)]
        call("prune", MODEL, "--method", arm, *common)
    return ["--mask", mask, "--init", "pruned"]


def evaluate_oracle(name: str, options: argparse.Namespace) -> Report:
    """Evaluate a run with the true masks; its checkpoint must still be there."""
    report = options.out / f"{name}.oracle.json"
    if not report.exists():
        data = [word for each in options.test for word in ("--data", each)]
        call("bench", options.out / name, *data, "--set", "model.proposals=truth", "--json", report)
    return read_report(report, options.out)


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sparsity", default="0.8")
    parser.add_argument("--arms", default="dense,imp,random")
    parser.add_argument("--targets", default=",".join(TARGETS))
    options = parse(parser)
    began = time.monotonic()
    results: dict[tuple[str, str, str], list[Report]] = {}
    for seed in range(options.seeds):
        for arm in options.arms.split(","):
            given = mask_options(arm, seed, options)
            for target in options.targets.split(","):
                recipe, settings = TARGETS[target]
                name = f"{target}-{arm}-{seed}"
                arguments = [
                    "--recipe",
                    recipe,
                    "--seed",
                    seed,
                    "--no-plan",
                    *given,
                    *changes([*settings, *options.set]),
                ]
                own = trained(options.out, name, arguments, options.test)
                results.setdefault((target, arm, "own"), []).append(own)
                if target in ORACLE:
                    results.setdefault((target, arm, "true"), []).append(evaluate_oracle(name, options))
    print_heading(options.seeds, (time.monotonic() - began) / 60)
    print_table(
        ["framework", "mask", "proposals", "data", "mIoU", "base", "novel", "hIoU", "nonzero params", "effective MACs"],
        [
            [target, arm, masks, data, *scores(reports, data), *size_cells(reports[0])]
            for (target, arm, masks), reports in results.items()
            for data in reports[0]["datasets"]
        ],
    )


if __name__ == "__main__":
    main()
