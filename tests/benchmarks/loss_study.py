"""Which loss makes the mask? Every distillation loss on the same images, seen by zero-shot scores and by frameworks.

    python -m tests.benchmarks.loss_study --out FOLDER [--seeds 0,1,2] [--arms none,features,...] [--data scenes:train]
        [--frameworks deeplabv3] [--inits pruned,pretrained] [--steps N] [--prune-set KEY=VALUE ...]
        [--set KEY=VALUE ...]

Arms: `none` (iterative magnitude, no distillation), `features`, `text-guided` and `vision-guided` with regions pooled
in student and teacher, `text-guided-crop` (the teacher sees crops), `text-guided-query` (the published head, crops) and
`semantic`. All learn from the same images, in batches of the same number and size. Each mask is measured twice without
training, by `tests.benchmarks.zero_shot`, then the frameworks are fine-tuned by their mini recipes, once from the
pruned weights and once from CLIP's own under the mask. `none` leaves CLIP's weights, so both starts are the same there.

Every arm goes through the program's own commands, as separate processes with files between them. What is already there
is not run again; the seeds follow each other, all arms of a seed first. Prints Markdown tables of what is finished.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.study import Report, call, cell, changes, parse, print_heading, print_table, scores, trained

QUERY = ("distill.region=query", "distill.teacher_region=crop")
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("features", ("prune.steps=0",)),
    "features": ("features", ()),
    "text-guided": ("text-guided", ()),
    "text-guided-crop": ("text-guided", ("distill.teacher_region=crop",)),
    "text-guided-query": ("text-guided", QUERY),
    "vision-guided": ("vision-guided", ()),
    "semantic": ("semantic", ()),
}
"""Loss and settings of each arm."""
DEFAULT = "none,features,text-guided,text-guided-query,vision-guided,semantic"
SIZE, BATCH = 128, 16
"""Images of every arm, those of the recipe for regions."""
INITS = {"pruned": "pruned weights", "pretrained": "mask alone"}
TEST = "scenes:test"


def prune(arm: str, seed: int, options: argparse.Namespace) -> Path:
    """Make the mask of an arm where it is missing."""
    mask: Path = options.out / f"{arm}-{seed}.safetensors"
    if not mask.exists():
        loss, settings = ARMS[arm]
        seen = ["--data", options.data, "--image-size", SIZE, "--batch", BATCH]
        given = changes([*settings, *options.prune_set])
        call("prune", "--distill", loss, *seen, "--seed", seed, "--no-plot", "--out", mask, *given)
    return mask


def zero_shot(mask: Path) -> dict[str, Any]:
    """Measure a mask without training, where that is not there yet."""
    report = mask.with_suffix(".zero-shot.json")
    if not report.exists():
        command = [sys.executable, "-m", "tests.benchmarks.zero_shot", str(mask), "--json", str(report)]
        subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads(report.read_text())[mask.stem]
    return found


def fine_tune(arm: str, seed: int, init: str, framework: str, mask: Path, options: argparse.Namespace) -> Report:
    """Fine-tune a framework under a mask and evaluate it."""
    steps = ["--steps", options.steps] if options.steps else []
    arguments = [framework, "--mask", mask, "--init", init, "--no-plan", "--seed", seed, *steps, *changes(options.set)]
    return trained(options.out, f"{framework}-{arm}-{init}-{seed}", arguments, [TEST], keep=False)


def main() -> None:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=DEFAULT)
    parser.add_argument("--data", default="scenes:train")
    parser.add_argument("--frameworks", default="deeplabv3", help='e.g. deeplabv3,fcclip,gkc; "" for zero-shot alone')
    parser.add_argument("--inits", default=",".join(INITS))
    parser.add_argument("--steps", type=int, default=0, help="of fine-tuning; default the recipe's")
    options = parse(parser, tests=False)
    began = time.monotonic()
    seeds, arms = [int(seed) for seed in options.seeds.split(",")], options.arms.split(",")
    frameworks, inits = list(filter(None, options.frameworks.split(","))), options.inits.split(",")
    unseen: dict[str, list[dict[str, Any]]] = {}
    tuned: dict[tuple[str, str, str], list[Report]] = {}
    for seed in seeds:
        masks = {arm: prune(arm, seed, options) for arm in arms}
        for arm, mask in masks.items():
            unseen.setdefault(arm, []).append(zero_shot(mask))
        for framework in frameworks:
            for init in inits:
                for arm, mask in masks.items():
                    if arm == "none" and init == "pruned" and "pretrained" in inits:
                        continue  # CLIP's weights again
                    report = fine_tune(arm, seed, init, framework, mask, options)
                    tuned.setdefault((framework, init, arm), []).append(report)
        print_tables(unseen, tuned, seed + 1, began)


def print_tables(
    unseen: dict[str, list[dict[str, Any]]],
    tuned: dict[tuple[str, str, str], list[Report]],
    seeds: int,
    began: float,
) -> None:
    """Print what is finished."""
    print_heading(seeds, (time.monotonic() - began) / 60)
    keys = ("mIoU", "novel")
    print_table(
        ["loss", *(f"{name}: {key}" for name in ("weights", "mask") for key in keys)],
        [
            [arm, *(cell([each[name][key] for each in found]) for name in ("weights", "mask") for key in keys)]
            for arm, found in unseen.items()
        ],
    )
    print()
    print_table(
        ["framework", "start", "loss", "mIoU", "base", "novel", "hIoU"],
        [[frame, INITS[init], arm, *scores(found, TEST)] for (frame, init, arm), found in tuned.items()],
    )


if __name__ == "__main__":
    main()
