"""Draws docs/assets/arms.png: images of `scenes:test`, their labels, and the predictions of three models.

    python docs/scripts/arms_picture.py --runs FOLDER [--steps 40] [--images 4,18,22]

The models are DeepLabV3 on RN-mini with all weights, with a random tenth and with the tenth that IMP keeps, as in the
study `tests.benchmarks.transfer` with seed 0, but for the number of steps. Those that are missing in FOLDER are trained
first, which takes some minutes on two idle cores; nothing is evaluated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ovstrans.datasets.scenes.dataset import Scenes

ROOT = Path(__file__).parents[2]
ARMS = {"dense-0": "all weights", "random-0": "a random tenth", "imp-0": "the tenth IMP keeps"}
SIZE, GAP, TITLE = 160, 6, 24


def train(runs: Path, steps: int) -> None:
    """Train the arms that are missing."""
    runs.mkdir(parents=True, exist_ok=True)
    shared = ["--sparsity", "0.9", "--seed", "0"]
    for arm in ARMS:
        mask = runs / f"{arm}.safetensors"
        if not arm.startswith("dense") and not mask.exists():
            call("prune", "--method", arm.removesuffix("-0"), *shared, "--out", mask)
        if not (runs / arm / "checkpoint.safetensors").exists():
            chosen = ["--no-mask"] if arm.startswith("dense") else ["--mask", mask, "--init", "pruned"]
            recipe = f"--data scenes:train --recipe deeplabv3-mini --seed 0 --no-plan --steps {steps}".split()
            call("finetune", *recipe, *chosen, "--force", "--out", runs / arm)


def call(*words: object) -> None:
    """Run a command of ovstrans."""
    subprocess.run([sys.executable, "-m", "ovstrans", *map(str, words), "--quiet"], check=True)


def predict(run: Path, images: list[Path], out: Path) -> list[Image.Image]:
    """Return the predicted classes of images as coloured pictures."""
    call("predict", run, *images, "--out", out)
    return [Image.open(out / "labels" / image.name).convert("RGB") for image in images]


def draw(rows: list[list[Image.Image]], titles: list[str]) -> Image.Image:
    """Return a sheet with a column for each title."""
    width, height = len(titles) * (SIZE + GAP) - GAP, TITLE + len(rows) * (SIZE + GAP) - GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        x = column * (SIZE + GAP)
        pen.text((x + SIZE // 2, TITLE // 2 - 2), title, fill="black", font=font, anchor="mm")
        for row, pictures in enumerate(rows):
            sheet.paste(pictures[column], (x, TITLE + row * (SIZE + GAP)))
    return sheet


def main() -> None:
    """Train, predict and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40, help="fine-tuning steps; the study takes 250")
    parser.add_argument("--images", default="4,18,22", help="numbers of images in scenes:test")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets" / "arms.png")
    options = parser.parse_args()
    train(options.runs, options.steps)
    scenes = Scenes("test", size=SIZE)
    samples = [scenes[int(number)] for number in options.images.split(",")]
    palette = np.array(scenes.vocabulary.palette(), dtype=np.uint8)
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.png" for number in range(len(samples))]
        photos = [Image.fromarray(sample.image.permute(1, 2, 0).numpy()) for sample in samples]
        for photo, path in zip(photos, paths, strict=True):
            photo.save(path)
        truths = [Image.fromarray(palette[sample.label.numpy()]) for sample in samples if sample.label is not None]
        predicted = [predict(options.runs / arm, paths, Path(folder) / arm) for arm in ARMS]
    rows = [list(row) for row in zip(photos, truths, *predicted, strict=True)]
    sheet = draw(rows, ["image", "labels", *ARMS.values()])
    sheet.quantize(256, dither=Image.Dither.NONE).save(options.out, optimize=True)
    print(f"wrote {options.out} ({options.out.stat().st_size // 1024} kB)")


if __name__ == "__main__":
    main()
