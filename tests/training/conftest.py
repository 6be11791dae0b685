"""A CLIP of random weights in a file, and settings of a run that takes a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ovstrans import files
from ovstrans.clip.layers import scope_layers
from ovstrans.clip.load import random_clip
from ovstrans.masks.file import save_mask
from ovstrans.masks.mask import Mask
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training.finetune import finetune
from ovstrans.training.resolve import choose_recipe
from ovstrans.training.run_folder import Run

TINY = (
    "data.size=64",
    "data.images=6",
    "augment.crop=64",
    "training.batch=4",
    "training.steps=6",
    "training.save_every=100",
    "schedule.warmup=2",
    "model.width=8",
    "model.output_stride=32",
    "model.dropout=0.5",
    "optimizer.backbone_rate=1.0",
)


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RN-mini with random weights, as a file of a whole CLIP."""
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    files.write_tensors(path, random_clip(seed=1).model.state_dict(), {})
    return path


@pytest.fixture(scope="session")
def mask_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mask of RN-mini's body, about nine tenths zeros."""
    generator = torch.Generator().manual_seed(2)
    convs = scope_layers(random_clip().visual)
    tensors = {f"{name}.weight": torch.rand(conv.shape, generator=generator) > 0.9 for name, conv in convs.items()}
    path = tmp_path_factory.mktemp("mask") / "mask.safetensors"
    save_mask(path, Mask(tensors, model="RN-mini", method="random"))
    return path


@pytest.fixture
def tiny(clip_file: Path) -> Callable[..., FinetuneRecipe]:
    """FinetuneRecipe of six steps at 64 pixels; changes and arguments as of `choose_recipe`."""

    def make(*changes: str, **given: object) -> FinetuneRecipe:
        arguments = {"pretrained": str(clip_file), **given}
        return choose_recipe(settings=(*TINY, "training.precision=fp32", *changes), **arguments)  # type: ignore[arg-type]

    return make


def train(recipe: FinetuneRecipe, out: Path, **options: Any) -> Run:
    """Run a recipe on the CPU."""
    return finetune(recipe=recipe, out=out, device="cpu", **options)
