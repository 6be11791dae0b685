"""Zero-shot segmentation by the image encoder alone: every position's CLIP embedding is compared with class names.

    python -m tests.benchmarks.zero_shot MASK [MASK ...] [--test scenes:test] [--images N] [--json FILE]

For each mask two encoders are evaluated, without training anything: `weights`, the pruned weights beside the mask, and
`mask`, CLIP's own weights under it, whose BatchNorm statistics are recomputed on images (`--calibration`). Without a
mask, the dense CLIP. Scores are those of the last feature map, resized to the image. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ovstrans.clip.backbone import encode_positions, recalibrate_norms
from ovstrans.clip.load import Clip, load_clip
from ovstrans.clip.text import TextClassifier, cosine_scores, embed_vocabulary
from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.sample import Dataset
from ovstrans.evaluation.evaluate import DatasetResult, evaluate
from ovstrans.frameworks.base import Framework
from ovstrans.masks.file import load_mask, load_weights, pruned_weights_path
from ovstrans.pruning.rounds import Images

SIZE = 160
"""Side of the images, as in the mini recipes of the frameworks."""


class ZeroShot(Framework):
    """An image encoder with its own head as a segmenter."""

    name: ClassVar[str] = "zero-shot"

    def components(self) -> dict[str, nn.Module]:
        """Return the image encoder."""
        return {"trunk": self.backbone}

    def logits(self, images: Tensor, text: TextClassifier | None = None) -> Tensor:
        """Compute scaled cosines [B, K, h, w] of every position with every class."""
        return cosine_scores(encode_positions(self.backbone, self.prepare(images)), text or self.text, 100.0)


def evaluate_encoder(encoder: nn.Module, clip: Clip, test: Dataset, images: int | None = None) -> DatasetResult:
    """Evaluate an image encoder on a dataset; `clip` gives text encoder and normalisation."""
    text = embed_vocabulary(clip, test.vocabulary)
    framework = ZeroShot(encoder=encoder, mean=clip.mean, std=clip.std, text=text)
    return evaluate(framework, test, limit=images)


def pruned_encoders(path: Path, clip: Clip, calibration: str = "scenes:unlabelled") -> dict[str, nn.Module]:
    """Return the encoder with the pruned weights beside a mask, and CLIP's own under the mask, recalibrated."""
    weights = copy.deepcopy(clip.visual)
    weights.load_state_dict(load_weights(pruned_weights_path(path))[0])
    own = copy.deepcopy(clip.visual)
    load_mask(path).apply(own)
    dataset = open_dataset(calibration, split="unlabelled", size=SIZE, labels=False)
    views = Images(dataset, batch=32, size=SIZE, seed=0, limit=256, workers=0)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (clip.mean, clip.std))
    recalibrate_norms(own, ((views.views(step) - mean) / std for step in range(8)))
    return {"weights": weights, "mask": own}


def measure(path: Path | None, test: str, images: int | None, calibration: str) -> dict[str, dict[str, Any]]:
    """Return the entries of a report for each encoder of a mask; None for the dense CLIP."""
    clip = load_clip("RN-mini" if path is None else load_mask(path).model)
    encoders: Mapping[str, nn.Module] = (
        {"dense": clip.visual} if path is None else pruned_encoders(path, clip, calibration)
    )
    dataset = open_dataset(test, split="test", size=SIZE)
    return {name: evaluate_encoder(each, clip, dataset, images).to_json() for name, each in encoders.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("masks", nargs="*", type=Path)
    parser.add_argument("--test", default="scenes:test")
    parser.add_argument("--images", type=int, help="the first N images only")
    parser.add_argument("--calibration", default="scenes:unlabelled", help="images for BatchNorm statistics")
    parser.add_argument("--json", type=Path, help="write what was measured")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    print("| mask | encoder | mIoU | base | novel |\n| --- | --- | --- | --- | --- |")
    for path in options.masks or [None]:
        entries = measure(path, options.test, options.images, options.calibration)
        found["" if path is None else path.stem] = entries
        for name, entry in entries.items():
            scores = " | ".join(f"{entry[key]:.1f}" for key in ("mIoU", "base", "novel"))
            print(f"| {'-' if path is None else path.stem} | {name} | {scores} |", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
