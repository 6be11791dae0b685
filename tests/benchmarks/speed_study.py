"""Masks made for speed: mIoU against measured latency and MACs, by granularity and allocation, over seeds.

    python -m tests.benchmarks.speed_study --out FOLDER [--seeds 3] [--sparsities 0.8,0.9,0.95]
        [--arms dense,2:4,element-global,4x1-macs,...] [--steps 250] [--test scenes:test] [--image-size 480x360]
        [--rounds 20] [--plot PNG] [--markdown FILE] [--set KEY=VALUE ...] [--prune-set KEY=VALUE ...]

An arm is `dense`, `2:4` (at its half), or GRANULARITY-ALLOCATION, at each sparsity. `macs` gets as many MACs as weights
are left in the other arms, at 90 % a tenth. Masks of the bundled RN-mini come from iterative pruning, so arms of one
sparsity are distilled for the same number of steps. DeepLabV3 is then fine-tuned on each from the pruned weights, by
the same recipe for the same steps, and evaluated. Latency is measured last, arm after arm: the median of whole passes
of batch 1 by the sparse runtime with one thread, in turns with the dense pass of the same model, whose time the
speed-up refers to. Every step goes through the program's own commands, as separate processes with files between them.
What is there is not run again, so an interrupted study goes on where it stopped, and several processes can share the
work of one folder by `--only-seed`. Prints a Markdown table and draws one plot.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovstrans.figures import COLORS, INK, new_figure, save_figure, tidy
from tests.benchmarks.study import (
    Report,
    call,
    cell,
    changes,
    parse,
    print_heading,
    read_report,
    scores,
    table_lines,
    trained,
)

GRANULARITIES = ("element", "4x1")
ALLOCATIONS = ("global", "uniform", "macs", "alpha")
ARMS = ("dense", "2:4", *(f"{granularity}-{allocation}" for granularity in GRANULARITIES for allocation in ALLOCATIONS))
MARKERS = {"element": "o", "4x1": "s"}
HEAD = ("mask", "zeros", "mIoU", "base", "novel", "hIoU", "ms", "speed-up", "backbone speed-up", "MACs", "MACs left")


@dataclass(frozen=True)
class Arm:
    """An arm at a sparsity; the sparsity of `dense` is 0, that of `2:4` a half."""

    name: str
    sparsity: float

    @property
    def file(self) -> str:
        """Start of the names of its files."""
        name = self.name.replace(":", "to")
        return name if self.name in ("dense", "2:4") else f"{name}-{100 * self.sparsity:g}"

    def prune_options(self) -> list[object]:
        """Options of `prune`."""
        if self.name == "2:4":
            return ["--granularity", "2:4"]
        granularity, allocation = self.name.split("-")
        amount = ["--macs", f"{1 - self.sparsity:.6g}"] if allocation == "macs" else ["--sparsity", self.sparsity]
        return ["--granularity", granularity, "--allocation", allocation, *amount]


def parse_arms(names: str, sparsities: str) -> list[Arm]:
    """Arms by name at every sparsity, those of a fixed sparsity once."""
    arms = []
    for name in names.split(","):
        if name not in ARMS:
            raise SystemExit(f"--arms: {name} is none of {', '.join(ARMS)}")
        fixed = {"dense": [0.0], "2:4": [0.5]}.get(name)
        arms += [Arm(name, sparsity) for sparsity in fixed or map(float, sparsities.split(","))]
    return arms


def run_arm(arm: Arm, seed: int, options: argparse.Namespace) -> Report:
    """Prune, fine-tune and evaluate an arm with one seed; what is there is not run again."""
    chosen: list[object] = ["--no-mask"]
    name = f"{arm.file}-{seed}"
    if arm.name != "dense":
        mask = options.out / f"{name}.safetensors"
        if not mask.exists():
            amount = [*arm.prune_options(), "--seed", seed, *changes(options.prune_set)]
            state = mask.with_name(f"{mask.stem}.resume.pt")
            call("prune", *amount, "--no-plot", "--out", mask, *(["--resume"] if state.exists() else []))
        chosen = ["--mask", mask, "--init", "pruned"]
    steps = ["--steps", options.steps] if options.steps else []
    arguments = ["--recipe", "deeplabv3-mini", "--seed", seed, "--no-plan", *steps, *chosen, *changes(options.set)]
    return trained(options.out, name, arguments, options.test)


def measure(arm: Arm, seed: int, options: argparse.Namespace) -> Report:
    """Measure the latency of an arm; its checkpoint must still be there."""
    name = f"{arm.file}-{seed}"
    report = options.out / f"{name}.latency.json"
    if not report.exists():
        how = ["--latency", "--runtime", "sparse", "--rounds", options.rounds, "--image-size", options.image_size]
        call("bench", options.out / name, "--data", "none", *how, "--json", report)
    return read_report(report, options.out)


def times(report: Report) -> dict[str, float]:
    """Milliseconds of a pass and how many times as fast as the dense pass of the same model, whole and backbone."""
    arms = report["latency"]["arms"]
    dense, fast = arms["dense"], arms.get("sparse", arms["dense"])
    backbone = [arm["median_s"] * (arm["backbone_share"] or 1.0) for arm in (dense, fast)]
    return {
        "ms": 1e3 * fast["median_s"],
        "speedup": dense["median_s"] / fast["median_s"],
        "backbone": backbone[0] / backbone[1],
    }


def row(arm: Arm, reports: Sequence[Report], latencies: Sequence[Report], data: str) -> list[str]:
    """Cells of an arm in the table."""
    timed = [times(each) for each in latencies]
    zeros = [100 * (1 - each["params"]["nonzero"] / each["params"]["total"]) for each in reports]
    flops = [each["flops"] for each in latencies]
    left = [100 * each["effective"] / each["dense"] for each in flops]
    return [
        arm.name if arm.name in ("dense", "2:4") else f"{arm.name} {100 * arm.sparsity:g} %",
        f"{cell(zeros)} %",
        *scores(reports, data),
        cell([each["ms"] for each in timed]),
        cell([each["speedup"] for each in timed], 2),
        cell([each["backbone"] for each in timed], 2),
        f"{statistics.mean(each['effective'] for each in flops) / 1e9:.3f} G",
        f"{cell(left)} %",
    ]


def draw(results: dict[Arm, tuple[list[Report], list[Report]]], data: str, path: Path) -> None:
    """Draw mIoU, base and novel over latency: a line over the sparsities for each granularity and allocation."""
    figure = new_figure(11.0, 4.4)
    names = list(dict.fromkeys(arm.name for arm in results))
    for number, (key, title) in enumerate((("mIoU", "mIoU"), ("base", "base"), ("novel", "novel"))):
        axes = figure.add_subplot(1, 3, number + 1)
        for name in names:
            points = []
            for arm, (reports, latencies) in results.items():
                values = [report["datasets"][data].get(key) for report in reports]
                if arm.name == name and all(value is not None for value in values):
                    points.append((statistics.mean(times(each)["ms"] for each in latencies), statistics.mean(values)))
            granularity, _, allocation = name.partition("-")
            color = COLORS[ALLOCATIONS.index(allocation)] if allocation else INK
            marker = MARKERS.get(granularity, "*" if name == "dense" else "^")
            style = {"linestyle": "--" if granularity == "4x1" else "-", "linewidth": 1.2, "markersize": 5}
            points.sort()
            axes.plot([x for x, _ in points], [y for _, y in points], color=color, marker=marker, label=name, **style)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("ms a pass, whole segmenter", fontsize=9)
        axes.set_ylabel("%" if number == 0 else "", fontsize=9)
        tidy(axes, grid="both")
    figure.axes[0].legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def main() -> None:
    """Run the study, print its table and draw its plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-seed", type=int, help="Run this seed alone, without table and plot.")
    parser.add_argument("--sparsities", default="0.8,0.9,0.95")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--steps", type=int, default=0, help="Steps of fine-tuning; default the recipe's.")
    parser.add_argument("--image-size", default="480x360", help="Of the latency and the MACs.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--plot", type=Path, help="Default speed.png in FOLDER.")
    parser.add_argument("--markdown", type=Path, help="Also write the table to this file.")
    options = parse(parser)
    began = time.monotonic()
    arms = parse_arms(options.arms, options.sparsities)
    seeds = range(options.seeds) if options.only_seed is None else [options.only_seed]
    reports: dict[Arm, list[Report]] = {}
    for seed in seeds:
        for arm in arms:
            reports.setdefault(arm, []).append(run_arm(arm, seed, options))
    if options.only_seed is not None:
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    results = {arm: (reports[arm], [measure(arm, seed, options) for seed in seeds]) for arm in arms}
    print_heading(options.seeds, (time.monotonic() - began) / 60)
    data = next(iter(reports[arms[0]][0]["datasets"]))
    lines = table_lines(HEAD, [row(arm, *found, data) for arm, found in results.items()])
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(results, data, options.plot or options.out / "speed.png")


if __name__ == "__main__":
    main()
