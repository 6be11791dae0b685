"""How fast are the linear layers of a pruned ViT or ConvNeXt? The sparse runtime against torch's dense layers.

    python -m tests.benchmarks.linear_layers [--models ViT-B-16 convnext_base] [--sizes 224 512] [--sparsity 0.9]

Random weights, each layer pruned at random; one thread, CPU time, the least of interleaved rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from ovstrans.clip import vit
from ovstrans.clip.backbone import encode_stages, encoder_kind
from ovstrans.clip.layers import scope_layers
from ovstrans.clip.load import random_clip
from ovstrans.console import table
from ovstrans.runtime.choose import RuntimeChoice, attach_runtime, choose_runtime


def prune(encoder: nn.Module, sparsity: float, *, blocks: bool) -> None:
    """Set weights to zero at random, one by one or in blocks of 4 outputs."""
    for weight in scope_layers(encoder).values():
        kept = torch.rand(len(weight) // (4 if blocks else 1), *weight.shape[1:]) >= sparsity
        weight.data *= kept.repeat_interleave(4, 0) if blocks else kept


def main() -> None:
    """Time both runtimes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-16"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 512])
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for model in options.models:
        for name, blocks in (("element", False), ("4x1", True)):
            torch.manual_seed(0)
            encoder = random_clip(model).visual.eval()
            prune(encoder, options.sparsity, blocks=blocks)
            arms = {"dense": RuntimeChoice("dense", ""), "sparse": choose_runtime(encoder, "sparse")}
            print(f"{model}, {name}: {arms['sparse']}")
            for size in options.sizes:
                least = time_arms(encoder, arms, size, options.rounds)
                rows.append([f"{model} {name} {size}", *(f"{least[arm] * 1e3:.1f}" for arm in arms)])
                rows[-1].append(f"{least['dense'] / least['sparse']:.2f}")
    table(f"{options.sparsity:.0%} zeros", ["model", "dense ms", "sparse ms", "times as fast"], rows)


def time_arms(encoder: nn.Module, arms: dict[str, RuntimeChoice], size: int, rounds: int) -> dict[str, float]:
    """Return the least CPU seconds of a pass of the backbone by each runtime."""
    images = torch.randn(1, 3, size, size)
    encode: Callable[..., object] = encode_stages if encoder_kind(encoder) == "convnext" else vit.encode_tokens
    least = dict.fromkeys(arms, float("inf"))
    with torch.inference_mode():
        for _ in range(rounds):
            for name, choice in arms.items():
                attach_runtime(encoder, choice)
                start = time.thread_time()
                encode(encoder, images)
                least[name] = min(least[name], time.thread_time() - start)
    return least


if __name__ == "__main__":
    main()
