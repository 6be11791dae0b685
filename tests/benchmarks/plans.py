"""Which layers are worth training? Freeze plans against each other, with and without a mask.

    python -m tests.benchmarks.plans --out FOLDER [--seeds 3] [--frameworks deeplabv3,gkc]
        [--plans none,random,largest,median,warm-up] [--backbones dense,imp] [--set KEY=VALUE ...] [--time]

none: everything trains. random: half of the layers at random. largest: the half with the largest
alpha. median: the half with the smallest, the method's. warm-up: that plan made after a fifth of the
steps. Beside mIoU: training MACs of a step and an image as autograd runs them, seconds a step, and the
linear CKA of the fine-tuned backbone's features with CLIP's. Goes on where it stopped; prints a
Markdown table.

With --time, processor seconds a step are measured last, apart from the training runs: a few steps of every arm in
turn, the same batches in all, several rounds; of each step the fastest round, of those the mean. After its
warm-up that arm is the median plan's (the layers chosen may differ), so it is not timed again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from tests.benchmarks.study import (
    Report,
    call,
    cell,
    changes,
    print_heading,
    print_table,
    scores,
    step_seconds,
    trained,
)

TEST = "scenes:test"
RULES = {"random": "random:{half}", "largest": "largest", "median": "median"}
IMAGES, BATCH = 64, 16
"""Images that CKA compares features on, and how many at a time."""
ROUNDS, STEPS, SKIPPED = 3, 8, 2
"""Of the timing: rounds over all arms, steps of each, and how many of those at the start do not count."""


def plan(name: str, seed: int, steps: int, options: argparse.Namespace) -> list[object]:
    """The options that `finetune` needs for a plan, its file made where it is missing."""
    if name == "none":
        return ["--no-plan"]
    if name == "warm-up":
        return ["--no-plan", "--plan-after", steps // 5, "--freeze", "median"]
    file = options.out / (f"plan-{name}-{seed}.json" if name == "random" else f"plan-{name}.json")
    if not file.exists():
        half = len(json.loads(median_file(options).read_text())["plan"]["frozen"])
        call("analyze", "--freeze", RULES[name].format(half=half), "--seed", seed, "--out", file)
    return ["--plan", file]


def median_file(options: argparse.Namespace) -> Path:
    """The median plan, which says what half is."""
    file = options.out / "plan-median.json"
    if not file.exists():
        call("analyze", "--freeze", "median", "--out", file)
    return file


def with_similarity(report: Report, name: str, options: argparse.Namespace) -> Report:
    """The report with `cka` of the run's backbone, computed where it is missing."""
    if "cka" not in report:
        import torch

        from ovstrans.checkpoints.file import load_checkpoint
        from ovstrans.clip.load import load_clip
        from ovstrans.datasets.catalog import open_dataset
        from ovstrans.frameworks.registry import restore
        from tests.benchmarks.similarity import backbone_similarity

        framework = restore(load_checkpoint(options.out / name / "checkpoint.safetensors"))
        data = open_dataset(TEST, split="test", size=160)
        images = torch.stack([data[index].image for index in range(IMAGES)]).float() / 255
        batches = framework.prepare(images).split(BATCH)
        report["cka"] = backbone_similarity(framework.backbone, load_clip().visual, batches)
        (options.out / f"{name}.report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def timings(arms: Mapping[str, Sequence[object]], options: argparse.Namespace) -> dict[str, float]:
    """The mean step of each arm in seconds, kept in `timings.json`."""
    file = options.out / "timings.json"
    if not file.exists():
        rounds: dict[str, list[list[float]]] = {name: [] for name in arms}
        for _, (name, arguments) in product(range(ROUNDS), arms.items()):
            run = options.out / "timed"
            call("finetune", *arguments, "--steps", STEPS, "--force", "--out", run)
            rounds[name].append(step_seconds(run / "log.jsonl")[SKIPPED:])
        means = {name: round(statistics.mean(map(min, zip(*found, strict=True))), 4) for name, found in rounds.items()}
        file.write_text(json.dumps(means, indent=2) + "\n")
    return json.loads(file.read_text())


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frameworks", default="deeplabv3,gkc")
    parser.add_argument("--plans", default="none,random,largest,median,warm-up")
    parser.add_argument("--backbones", default="dense,imp")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    from ovstrans.recipes.load import load_recipe

    began = time.monotonic()
    mask = options.out / "imp.safetensors"
    if "imp" in options.backbones and not mask.exists():
        call("prune", "--out", mask)
    results: dict[tuple[str, str, str], list[Report]] = {}
    arms: dict[str, Sequence[object]] = {}
    cases = product(range(options.seeds), options.frameworks.split(","), options.backbones.split(","))
    for seed, framework, backbone in cases:
        masked = ["--no-mask"] if backbone == "dense" else ["--mask", mask, "--init", "pruned"]
        steps = load_recipe(f"{framework}-mini", options.set)["training"]["steps"]
        for rule in options.plans.split(","):
            name = f"{framework}-{backbone}-{rule}-{seed}"
            arguments = [
                framework, "--seed", seed, *masked, *plan(rule, seed, steps, options), *changes(options.set),
            ]  # fmt: skip
            report = with_similarity(trained(options.out, name, arguments, [TEST]), name, options)
            results.setdefault((framework, backbone, rule), []).append(report)
            if rule != "warm-up":
                arms.setdefault("-".join((framework, backbone, rule)), arguments)
            (options.out / name / "checkpoint.safetensors").unlink(missing_ok=True)
    seconds = timings(arms, options) if options.time else {}
    print_heading(options.seeds, (time.monotonic() - began) / 60)
    print_table(
        ["framework", "trunk", "frozen", "mIoU", "base", "novel", "hIoU", "training MACs", "CPU s/step", "CKA"],
        [
            [
                *key,
                *scores(reports, TEST),
                f"{statistics.mean(report['training']['executed']['total'] for report in reports) / 1e9:.3f} G",
                f"{seconds['-'.join(key)]:.3f}" if "-".join(key) in seconds else "-",
                cell([report["cka"]["mean"] for report in reports], 3),
            ]
            for key, reports in results.items()
        ],
    )


if __name__ == "__main__":
    main()
