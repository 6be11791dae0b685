"""A tiny FC-CLIP and batches to train it on."""

from __future__ import annotations

from typing import Any

import torch

from ovstrans.clip.load import Clip
from ovstrans.clip.text import TextClassifier
from ovstrans.datasets.segments import Segments
from ovstrans.frameworks.base import Batch
from ovstrans.frameworks.fcclip import FCCLIP
from tests.frameworks.golden_case import SMALL

TINY = {**SMALL, "encoder_layers": 1, "decoder_layers": 2, "points": 64}


def make(clip: Clip, text: TextClassifier, **options: Any) -> FCCLIP:
    """In eval mode, its backbone trainable."""
    torch.manual_seed(0)
    framework = FCCLIP(
        encoder=clip.visual, mean=clip.mean, std=clip.std, text=text, options={"trunk": "train", **TINY, **options}
    )
    return framework.eval()


def segments(*boxes: tuple[int, int, int, int, int], size: tuple[int, int] = (64, 64)) -> Segments:
    """Segments of (class, top, left, bottom, right)."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (_, top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return Segments(masks, torch.tensor([box[0] for box in boxes], dtype=torch.int64), torch.arange(len(boxes)))


def batch_of(*found: Segments) -> Batch:
    """Random images of 64 pixels with these segments."""
    images = torch.rand(len(found), 3, 64, 64, generator=torch.Generator().manual_seed(4))
    return Batch(images, segments=found)


USUAL = batch_of(segments((0, 0, 0, 32, 64), (2, 32, 0, 64, 30)), segments((3, 10, 10, 50, 64)))
NOTHING = segments()
