"""Distillation losses: what the pruned student keeps in common with its frozen teacher.

The contract of a loss, and the one that needs images alone; those that look at segments are in
`region_losses`, and `losses` knows all of them by name.

Shapes: `B` batch, `C` channels, `H W` image, `h w` feature map, `E` embedding.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.backbone import encode_dense, encode_stages, encoder_kind, project_pooled
from ovstrans.frameworks.base import Batch, TargetRequirements

COMPARED_STAGES = ("res3", "res4", "res5")


class Distillation(nn.Module):
    """The contract of a distillation loss.

    Called with (student, teacher, batch): two image encoders and a batch whose images [B, 3, H, W] are
    normalised and which has what `target_requirements` names. Returns named losses, already weighted; their sum is
    minimised. The teacher is in eval mode and must be run without gradients. A loss may own parameters
    of its own: they are trained and saved along.
    """

    target_requirements: TargetRequirements = TargetRequirements()

    def forward(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The losses of one batch."""
        raise NotImplementedError


class FeatureDistillation(Distillation):
    """Agreement of features, from images alone: zero for a student that equals its teacher.

    dense: 1 - cosine between the CLIP embeddings of every position.  pooled: 1 - cosine between the
    image embeddings.  stages: squared error of res3, res4 and res5, each over its own mean square in
    the teacher, so that every stage counts alike.  Each argument is the weight of its term (0 = off).
    """

    def __init__(self, dense: float = 1.0, pooled: float = 1.0, stages: float = 1.0) -> None:
        super().__init__()
        self.dense, self.pooled, self.stages = dense, pooled, stages

    def forward(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`dense`, `pooled` and `stages`, those whose weight is not 0."""
        with torch.no_grad():
            wanted = self._features(teacher, batch.images)
        found = self._features(student, batch.images)
        losses: dict[str, Tensor] = {}
        if self.dense:
            losses["dense"] = self.dense * _cosine_distance(found["dense"], wanted["dense"])
        if self.pooled:
            losses["pooled"] = self.pooled * _cosine_distance(found["pooled"], wanted["pooled"])
        if self.stages:
            errors = [_relative_error(found[name], wanted[name]) for name in COMPARED_STAGES]
            losses["stages"] = self.stages * torch.stack(errors).mean()
        return losses

    def _features(self, encoder: nn.Module, images: Tensor) -> dict[str, Tensor]:
        features = encode_stages(encoder, images)
        if self.dense:
            features["dense"] = encode_dense(encoder, features["res5"])
        if self.pooled:
            features["pooled"] = pooled_embedding(encoder, features["res5"])
        # Losses are computed in float32 whatever the features came in.
        return {name: feature.float() for name, feature in features.items()}


def pooled_embedding(encoder: nn.Module, res5: Tensor) -> Tensor:
    """The image embedding [B, E], not normalised, from res5 [B, C, h, w] of any size.

    Where the map is not the one the attention pool was trained on, its positional embeddings are
    interpolated, as CLIP's are for other resolutions. A ConvNeXt averages whatever map there is.
    """
    if encoder_kind(encoder) == "convnext":
        return project_pooled(encoder, cast(Any, encoder).trunk.norm_pre(res5).mean((-2, -1)))
    pool = cast(nn.Module, encoder.attnpool)
    positions = cast(Tensor, pool.positional_embedding)
    height, width = res5.shape[-2:]
    side = round((positions.shape[0] - 1) ** 0.5)
    if (height, width) == (side, side):
        return pool(res5)
    grid = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid.float(), (height, width), mode="bicubic", align_corners=False).to(positions.dtype)
    resized = torch.cat([positions[:1], resized.flatten(2).squeeze(0).t()])
    return torch.func.functional_call(pool, {"positional_embedding": resized}, (res5,))


def _cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean of 1 - cosine along dimension 1."""
    return (1.0 - F.cosine_similarity(one, other, dim=1)).mean()


def _relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(found, wanted) / wanted.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
