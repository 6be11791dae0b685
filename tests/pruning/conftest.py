"""A CLIP small enough to prune in a blink, and images for it."""

from __future__ import annotations

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from ovstrans.clip.load import Clip
from ovstrans.clip.weights import weights_sha256
from ovstrans.datasets.sample import Sample
from ovstrans.pruning.prune import choose_recipe
from ovstrans.recipes.schema import PruneRecipe
from ovstrans.vocabulary.vocabulary import Vocabulary


class Pictures:
    """Smooth random images as a dataset."""

    name, split, ignore = "pictures", "all", 255
    vocabulary = Vocabulary("none", ())

    def __init__(self, count: int = 12, height: int = 40, width: int = 56) -> None:
        coarse = torch.rand(count, 3, 5, 7, generator=torch.Generator().manual_seed(1))
        self.images = (255 * nn.functional.interpolate(coarse, (height, width), mode="bilinear")).byte()
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        return Sample(image=self.images[index], name=str(index))


def small_clip(seed: int = 0) -> Clip:
    """One bottleneck a stage, width 8, 32 pixels; BatchNorm statistics as after training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=4, image_size=32, width=8)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                module.momentum = None
        encoder.train()
        with torch.no_grad():
            for _ in range(4):
                encoder(torch.randn(16, 3, 32, 32))
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1
    whole = nn.Module()
    whole.visual = encoder.eval()
    return Clip(
        whole, "", "", weights_sha256(encoder.state_dict()), 32, (0.5,) * 3, (0.25,) * 3, lambda texts: torch.empty(0)
    )


def small_settings(*changes: str) -> PruneRecipe:
    """Three rounds of three steps, in float32 unless told otherwise."""
    base = [
        "prune.sparsity=0.8",
        "prune.rate=0.5",
        "prune.steps=3",
        "prune.final_steps=0",
        "training.batch=4",
        "data.size=32",
        "augment.crop=32",
        "data.images=0",
    ]
    return choose_recipe(settings=[*base, "training.precision='fp32'", "schedule.warmup=0", *changes])


@pytest.fixture
def clip() -> Clip:
    return small_clip()


@pytest.fixture
def pictures() -> Pictures:
    return Pictures()
