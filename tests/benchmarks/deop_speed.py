"""DeOP's single pass of CLIP against a pass for every proposal: the same model, image size, proposals and device.

    python -m tests.benchmarks.deop_speed [--clip ViT-B-16] [--proposals 100] [--size 512x512] [--rounds 3]
        [--threads N] [--device cpu] [--json FILE]

Random weights: speed does not depend on them. Times are seconds, on a CPU of processor time. Both ways classify the
same masks, blobs of which none is empty, so the two-stream way makes a crop of every one. Passes alternate, after one
of each that is not counted; text embeddings are made once, before. The parts of a pass are timed one after another on
the same inputs: what both ways share (proposal network, fusion to pixels), and what sets them apart.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.load import create_image_encoder, model_info
from ovstrans.clip.text import TextClassifier
from ovstrans.costs.target import parse_size
from ovstrans.frameworks.deop import DeOP
from ovstrans.frameworks.deop_crops import encode_crops
from ovstrans.frameworks.deop_proposals import Proposals
from ovstrans.frameworks.mask2former_inference import QueryScores
from ovstrans.vocabulary.catalog import load_published_vocabulary


def build(clip: str, proposals: int, encoder: str) -> DeOP:
    """The published DeOP with random weights, on the classes of COCO-Stuff."""
    dim, _, mean, std = model_info(clip)
    vocabulary = DeOP.format_class_names(load_published_vocabulary("coco-stuff"))
    rows = F.normalize(torch.randn(len(vocabulary), dim), dim=1)
    text = TextClassifier(rows, torch.arange(len(vocabulary)), vocabulary)
    torch.manual_seed(0)
    options = {"queries": proposals, "proposal_encoder": encoder, "severed": [-1]}
    return DeOP(encoder=create_image_encoder(clip), mean=mean, std=std, text=text, options=options).eval()


def blobs(count: int, size: tuple[int, int]) -> Tensor:
    """Mask logits [1, N, H / 4, W / 4]: discs of 3 to 30 % of the image's side in radius."""
    draws = torch.Generator().manual_seed(1)
    height, width = size[0] // 4, size[1] // 4
    centre = torch.rand(count, 2, 1, 1, generator=draws)
    radius = 0.03 + 0.27 * torch.rand(count, 1, 1, generator=draws)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    distance = ((rows - centre[:, 0]).square() + (columns - centre[:, 1]).square()).sqrt()
    return (60 * (radius - distance))[None]


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds that work takes, and its result: on a CPU of processor time, which other work on it hardly changes."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start, result


def median(times: list[float]) -> float:
    return statistics.median(times)


def measure(framework: DeOP, size: tuple[int, int], count: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Times in seconds: of each part, and of a whole pass in both ways."""
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2)).to(device)
    prepared, proposals = framework.prepare(images), Proposals(blobs(count, size).to(device))
    text, side = framework.text, int(framework.backbone.image_size[0])  # type: ignore[index, union-attr]
    features = framework.dense_features(prepared, proposals)
    grid = (int(features.shape[-2]), int(features.shape[-1]))
    inside = proposals.inside(grid)
    assert framework.anchors is not None and framework.proposals is not None

    def classify(probabilities: Tensor) -> Tensor:
        scores = QueryScores(probabilities[0], proposals.masks[0], size, size)
        return torch.cat([scores.best(first, last).classes for first, last in scores.bands()])

    def one_pass() -> Tensor:
        return framework.class_logits(prepared, proposals, text).softmax(-1)

    def two_stream() -> Tensor:
        framework.options["two_stream"] = True
        try:
            return framework._probabilities(prepared, proposals, text)
        finally:
            framework.options["two_stream"] = False

    parts: dict[str, Callable[[], Any]] = {
        "proposal network": lambda: framework.proposals(prepared),  # type: ignore[misc]
        "one pass: CLIP, the whole image": lambda: framework.dense_features(prepared, proposals),
        "one pass: anchors and scores": lambda: framework.classifier(framework.anchors(features, inside), text),  # type: ignore[misc]
        "two-stream: crops through CLIP": lambda: encode_crops(framework.backbone, prepared, proposals.masks, side),
        "fusion to pixels": lambda: classify(probabilities),
    }
    times: dict[str, list[float]] = {"one pass": [], "two-stream": []}
    with torch.inference_mode():
        probabilities = one_pass()
        two_stream()
        for _ in range(rounds):
            times["one pass"].append(timed(one_pass, device)[0])
            times["two-stream"].append(timed(two_stream, device)[0])
        taken = {name: [timed(work, device)[0] for _ in range(rounds)] for name, work in parts.items()}
    shared = median(taken["proposal network"]) + median(taken["fusion to pixels"])
    one, two = median(times["one pass"]), median(times["two-stream"])
    return {
        "classification": {"one pass": one, "two-stream": two, "ratio": two / one},
        "whole image": {"one pass": one + shared, "two-stream": two + shared, "ratio": (two + shared) / (one + shared)},
        "parts": {name: median(each) for name, each in taken.items()},
        "rounds": times,
    }


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clip", default="ViT-B-16")
    parser.add_argument("--encoder", default="RN101", help="of the proposal network")
    parser.add_argument("--proposals", type=int, default=100)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    size, device = parse_size(given.size), torch.device(given.device)
    assert size is not None
    with torch.inference_mode():
        framework = build(given.clip, given.proposals, given.encoder).to(device)
        result = measure(framework, size, given.proposals, given.rounds, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    result |= {
        "clip": given.clip,
        "proposals": given.proposals,
        "size": list(size),
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for kind in ("classification", "whole image"):
        own = result[kind]
        print(f"{kind:16} {own['one pass']:8.3f} s   {own['two-stream']:8.3f} s   {own['ratio']:.1f} times")
    for part, seconds in result["parts"].items():
        print(f"  {part:34} {seconds:8.3f} s")
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
