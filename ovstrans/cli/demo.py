"""`ovstrans demo`: the whole method on the bundled model and generated scenes, step by step, in a few minutes."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ovstrans.cli import INTERRUPTED, common

ARMS = ("dense", "random", "imp")
"""The models compared. All are fine-tuned alike; only the mask differs."""

_INTRO = """\
ovstrans makes open-vocabulary segmentation cheap in two ways that transfer between frameworks: a sparse subnetwork
of the CLIP image encoder (a mask), and a freeze plan from the spectrum of its layers. This demo runs both on the
bundled mini CLIP and generated scenes, by the commands that you would type yourself."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="Fine-tuning steps of each arm.")] = 120,
    rounds: Annotated[int, typer.Option("--round-steps", min=0, help="Distillation steps a pruning round.")] = 8,
    images: Annotated[int, typer.Option(min=1, help="Test images.")] = 100,
    seed: common.Seed = 0,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Prune, analyze, fine-tune and bench the bundled model: dense, under a random mask and under an IMP mask."""
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console, files

    files.check_output(out, force=force, directory=True)
    began = time.monotonic()
    switches = ["--force", *(["--quiet"] if quiet else []), *(["--debug"] if debug else [])]
    shared = ["--seed", str(seed), *switches]
    masks = {arm: out / f"{arm}.safetensors" for arm in ARMS[1:]}
    console.say(f"{_INTRO}\n")

    console.say(
        ": remove 90 % of the backbone's weights, the smallest first, 10 % of the rest in each round.",
        heading="1. Prune",
    )
    console.say("   Between rounds the sparse image encoder learns from the dense one, on images without labels.")
    pruned = ["--steps", str(rounds), *shared]
    _call("prune", "--out", masks["imp"], *pruned)
    console.say("   For comparison: as many zeros in each layer at random places, and as much distillation.")
    _call("prune", "--method", "random", "--like", masks["imp"], "--out", masks["random"], *pruned)

    console.say("")
    console.say(
        ": fit a power law to the eigenvalues of every layer. A small alpha (a heavy tail)", heading="2. Analyze"
    )
    console.say("   means a well-trained layer: the plan freezes those below the median.")
    _call("analyze", "--out", out / "alpha.json", "--plot", *switches)

    console.say("")
    console.say(
        ": DeepLabV3 on 400 labelled scenes, three times. The mask is in force at every step,", heading="3. Fine-tune"
    )
    console.say("   frozen layers do not change, and pixels are classified by CLIP's text embeddings.")
    for arm in ARMS:
        chosen: list[Any] = ["--mask", masks[arm], "--init", "pruned"] if arm in masks else ["--no-mask"]
        run = ["--plan", out / "alpha.json", "--steps", steps, "--out", out / "runs" / arm]
        _call("finetune", *chosen, *run, *shared)

    console.say("")
    console.say(": parameters, multiply-accumulates and mIoU, with one counter for all.", heading="4. Bench")
    console.say("   Novel classes have no labels in training; here the model is given their names.")
    _call(
        "bench", *(out / "runs" / arm for arm in ARMS), "--data", "scenes:test", "--limit", images,
        "--json", out / "report.json", "--pictures", out / "pictures", *switches,
    )  # fmt: skip
    minutes = (time.monotonic() - began) / 60
    console.say(f"\n{_verdict(out / 'report.json')}")
    console.say(f"Done in {minutes:.1f} minutes. Everything is in {out}/:")
    for path, what in _contents(out):
        console.say(f"  {path}  {what}")


def _call(*arguments: Any) -> None:
    """Show a command line and run it in this process. An error of the command ends the demo."""
    from ovstrans import console
    from ovstrans.cli.main import invoke

    words = [str(argument) for argument in arguments]
    console.say(f"$ ovstrans {shlex.join(words)}")
    if invoke(words) == INTERRUPTED:
        raise KeyboardInterrupt  # typer returns it as a status


def _verdict(report: Path) -> str:
    """Return one sentence with the mIoU of the three models."""
    dense, random, imp = (entry["datasets"] for entry in json.loads(report.read_text())["reports"])
    values = [next(iter(entries.values()))["mIoU"] for entries in (dense, random, imp)]
    return (
        f"mIoU with all weights {values[0]:.1f}, with a tenth of them chosen by IMP {values[2]:.1f}, "
        f"at random {values[1]:.1f} (one seed and a short run; the studies in the documentation have more)."
    )


def _contents(out: Path) -> list[tuple[str, str]]:
    """Return paths of the main results and what each is."""
    page = out / "pictures" / "scenes-test.png"
    return [
        (str(out / "imp.safetensors"), "the mask: one bit per weight, for any framework"),
        (str(out / "imp.png"), "density of every layer"),
        (str(out / "alpha.json"), "alpha of every layer and the freeze plan"),
        (str(out / "runs" / "imp" / "checkpoint.safetensors"), "the sparse checkpoint"),
        (str(out / "report.json"), "params, MACs and mIoU of the three"),
        (str(page), "predictions beside the ground truth: look at this one"),
    ]
