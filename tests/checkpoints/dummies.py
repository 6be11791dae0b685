"""A small checkpoint, with a mask in force."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.masks.mask import Mask
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.masks.dummies import Framework, make_mask

VOCABULARY = Vocabulary(
    "street", (("sky",), ("car", "automobile"), ("person",)), novel=frozenset({1}), templates=("a photo of a {}.",)
)
CLIP = {
    "model": "dummy",
    "pretrained": "tag",
    "weights_sha256": "b" * 64,
    "image_size": 64,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.1, 0.2, 0.3],
}


def make_checkpoint(mask: Mask | None = None, *, masked: bool = True, **fields: Any) -> Checkpoint:
    framework = Framework()
    if masked:
        mask = mask or make_mask(method="imp", weights_sha256="c" * 64, recipe={"rate": 0.1}, pretrained="tag")
        mask.apply(framework)
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "framework": "dummy",
        "options": {"output_stride": 16},
        "state": framework.state_dict(),
        "mask": mask,
        "text_embeddings": F.normalize(torch.randn(4, 8, generator=generator), dim=1),
        "text_owner": torch.tensor([0, 1, 1, 2]),
        "vocabulary": VOCABULARY,
        "clip": CLIP,
        "recipe": {"training": {"steps": 3}},
        "provenance": {"data": "scenes"},
        "text_encoder": {"token_embedding.weight": torch.randn(5, 2, generator=generator).half()},
    }
    return Checkpoint(**{**values, **fields})
