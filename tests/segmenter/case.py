"""Checkpoints at random weights, small enough for tests, and pictures to segment."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ovstrans.checkpoints.file import Checkpoint, save_checkpoint
from ovstrans.clip.load import Clip, random_clip
from ovstrans.clip.text import embed_vocabulary
from ovstrans.datasets.catalog import open_dataset
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Framework
from ovstrans.masks.mask import Mask

SMALL_HEAD = {
    "queries": 6,
    "width": 32,
    "heads": 2,
    "encoder_layers": 1,
    "encoder_ffn": 16,
    "decoder_layers": 1,
    "decoder_ffn": 16,
    "object_threshold": 0.0,
    "overlap_threshold": 0.0,
}
"""Options of FC-CLIP with a head at random: every query is to count."""


@lru_cache
def deeplab_checkpoint() -> Checkpoint:
    """DeepLabV3 on a random RN-mini under a random mask of density 0.5."""
    clip = random_clip()
    torch.manual_seed(0)
    framework = registry.build(
        "deeplabv3",
        encoder=clip.visual,
        mean=clip.mean,
        std=clip.std,
        text=embed_vocabulary(clip, open_dataset("scenes", split="val").vocabulary),
        options={"width": 8},
    )
    body = {name: p for name, p in framework.backbone.named_parameters() if p.dim() == 4 and name.startswith("layer")}
    mask = Mask({name: torch.rand(p.shape) < 0.5 for name, p in body.items()}, "RN-mini", method="random")
    mask.apply(framework)
    return _checkpoint_of(framework, clip, mask)


@lru_cache
def fcclip_checkpoint() -> Checkpoint:
    """FC-CLIP with a small head, all at random; of the scenes' classes only sand is stuff."""
    clip = random_clip()
    torch.manual_seed(0)
    scenes = open_dataset("scenes", split="val").vocabulary
    things = frozenset(range(len(scenes))) - {scenes.names.index("sand")}  # what a head at random takes all for, too
    text = embed_vocabulary(clip, replace(scenes, things=things))
    framework = registry.build(
        "fcclip", encoder=clip.visual, mean=clip.mean, std=clip.std, text=text, options=SMALL_HEAD
    ).eval()
    for name, parameter in framework.named_parameters():
        if name.endswith("non_object"):  # far from every class name, so that no query is taken for nothing
            parameter.data.copy_(-text.embeddings.mean(0))
        elif name.endswith("queries_features.weight"):  # and the queries differ
            parameter.data.mul_(9)
    return _checkpoint_of(framework, clip)


def _checkpoint_of(framework: Framework, clip: Clip, mask: Mask | None = None) -> Checkpoint:
    """Return what a run would leave of a framework on a CLIP, its text encoder inside."""
    return Checkpoint(
        framework=framework.name,
        options=framework.options,
        state=framework.state_dict(),
        mask=mask,
        text_embeddings=framework.text.embeddings,
        text_owner=framework.text.owner,
        vocabulary=framework.text.vocabulary,
        clip=clip.describe(),
        recipe={"data": {"dataset": "scenes:train", "size": 64}},
        provenance={"frozen": []},
        text_encoder={key: value for key, value in clip.model.state_dict().items() if not key.startswith("visual.")},
    )


def write_run(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a finished run with a checkpoint in it; return the checkpoint's file."""
    folder.mkdir(parents=True)
    save_checkpoint(folder / "checkpoint.safetensors", checkpoint)
    return folder / "checkpoint.safetensors"


def draw(path: str | Path, width: int = 80, height: int = 64, *, seed: int = 0) -> Path:
    """Write a picture of smooth noise."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return Path(path)
