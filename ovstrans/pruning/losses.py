"""Distillation losses: how the pruned student is kept close to its frozen teacher.

This module has the interface of a loss, the loss that needs images only, and the table of all losses by name. Those
that compare segments are in `pruning.region_losses`. A new loss is a subclass of `Distillation` and a line in `LOSSES`.

Shapes: `B` batch, `C` channels, `H W` image, `h w` feature map, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip import vit
from ovstrans.clip.backbone import encode_dense, encode_stages, encoder_kind, project_pooled
from ovstrans.clip.load import Clip
from ovstrans.clip.text import TextClassifier
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, TargetRequirements
from ovstrans.recipes.schema import FEATURES, SEGMENT_LOSSES

COMPARED_STAGES = ("res3", "res4", "res5")
"""The stages of a ResNet or ConvNeXt that are compared. Of a ViT it is the tokens after a half, three quarters and all
of its blocks: maps of growing depth too."""

REGION_OPTIONS: Mapping[str, str] = {"region": "pooled", "teacher_region": "pooled"}
"""Options of text-guided and vision-guided distillation that `semantic` lacks; see `pruning.region_losses`."""


class Distillation(nn.Module):
    """Interface of a distillation loss.

    The loss is called with student, teacher and batch: two image encoders, and normalised images [B, 3, H, W] with the
    targets that `target_requirements` names. It returns weighted losses by name, whose sum is minimised. The teacher
    is in eval mode; the loss must run it without gradients. Parameters of the loss are trained and saved along.
    """

    target_requirements: TargetRequirements = TargetRequirements()
    uses_names: bool = True
    """Whether class names of segments enter the loss. Otherwise segments of novel classes are given too."""
    backbone_rate: float = 1.0
    """Factor on the learning rate of the student, for losses whose own head starts at random."""

    def forward(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of one batch."""
        raise NotImplementedError

    def training_outputs(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> list[Tensor]:
        """Compute what the losses start from, for normalised images, to estimate a step; must run on meta tensors.

        Override it if the losses need more memory than the features of all stages.
        """
        return list(encode_stages(student, images).values())


class FeatureDistillation(Distillation):
    """Distance of features, from images only: zero for a student that equals its teacher.

    Args:
        dense: Weight of 1 - cosine between the CLIP embeddings of every position; 0 leaves the term out.
        pooled: Weight of 1 - cosine between the image embeddings.
        stages: Weight of the squared error of the features in `COMPARED_STAGES`. The error of each is divided by the
            mean square of the teacher's features, so that all stages count the same.
    """

    def __init__(self, dense: float = 1.0, pooled: float = 1.0, stages: float = 1.0) -> None:
        super().__init__()
        self.dense, self.pooled, self.stages = dense, pooled, stages

    def forward(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the losses `dense`, `pooled` and `stages` whose weight is not 0."""
        return self._compare(student, teacher, batch.images)

    def training_outputs(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> list[Tensor]:
        """Compute the losses."""
        return list(self._compare(student, teacher, images).values())

    def _compare(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            wanted = self._features(teacher, images)
        found = self._features(student, images)
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
        if encoder_kind(encoder) == "vit":
            return {name: feature.float() for name, feature in self._vit_features(encoder, images).items()}
        features = encode_stages(encoder, images)
        if self.dense:
            features["dense"] = encode_dense(encoder, features["res5"])
        if self.pooled:
            features["pooled"] = pooled_embedding(encoder, features["res5"])
        # Losses are computed in float32 whatever the features came in.
        return {name: feature.float() for name, feature in features.items()}

    def _vit_features(self, encoder: nn.Module, images: Tensor) -> dict[str, Tensor]:
        tokens = vit.encode_tokens(encoder, images)
        depth = len(tokens)
        depths = (-(-depth // 2), -(-3 * depth // 4), depth)
        features = {name: tokens[after - 1] for name, after in zip(COMPARED_STAGES, depths, strict=True)}
        if self.dense:
            before_last = tokens[-2] if depth > 1 else vit.embed_patches(encoder, images)
            features["dense"] = vit.embed_patch_map(encoder, before_last, images)
        if self.pooled:
            features["pooled"] = vit.pool_tokens(encoder, tokens[-1])
        return features


def pooled_embedding(encoder: nn.Module, res5: Tensor) -> Tensor:
    """Return the image embedding [B, E], not normalised, of a feature map res5 [B, C, h, w].

    If the map has another size than the attention pool was trained with, the positional embeddings of the pool are
    interpolated, as is usual for CLIP at other resolutions. A ConvNeXt averages over maps of any size.
    """
    if encoder_kind(encoder) == "convnext":
        return project_pooled(encoder, cast(Any, encoder).trunk.norm_pre(res5).mean((-2, -1)))
    pool = cast(nn.Module, encoder.attnpool)
    positions = cast(Tensor, pool.positional_embedding)
    height, width = res5.shape[-2:]
    side = round((positions.shape[0] - 1) ** 0.5)
    if (height, width) == (side, side):
        return cast(Tensor, pool(res5))
    grid = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid.float(), (height, width), mode="bicubic", align_corners=False).to(positions.dtype)
    resized = torch.cat([positions[:1], resized.flatten(2).squeeze(0).t()])
    return cast(Tensor, torch.func.functional_call(pool, {"positional_embedding": resized}, (res5,)))


def _cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean of 1 - cosine along dimension 1."""
    return (1.0 - F.cosine_similarity(one, other, dim=1)).mean()


def _relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error over the mean square of the teacher's features."""
    return F.mse_loss(found, wanted) / wanted.square().mean().clamp_min(torch.finfo(torch.float32).tiny)


def _make_feature_loss(clip: Clip, options: Mapping[str, Any], text: TextClassifier | None) -> Distillation:
    return FeatureDistillation(**options)


def _make_region_loss(name: str, clip: Clip, options: Mapping[str, Any], text: TextClassifier | None) -> Distillation:
    from ovstrans.pruning.region_losses import make_region_loss  # transformers takes seconds to import

    if text is None:
        raise InputError(f"`distill={name}`: compares segments; give labelled `data`")
    return make_region_loss(name, clip, text, options)


LOSSES: dict[str, Callable[[Clip, Mapping[str, Any], TextClassifier | None], Distillation]] = {
    FEATURES: _make_feature_loss,
    **{name: partial(_make_region_loss, name) for name in SEGMENT_LOSSES},
}
"""Name of a loss to its factory, which gets the CLIP that is pruned, the options of the loss and, if the data are
labelled, the text classifier of their vocabulary."""


def make_distillation(
    name: str, clip: Clip, options: Mapping[str, Any], text: TextClassifier | None = None
) -> Distillation:
    """Make a distillation loss.

    Args:
        name: A name in `LOSSES`.
        clip: CLIP that is pruned, with its text encoder.
        options: Options of the loss: weights of terms, sizes of a head.
        text: Text classifier of the vocabulary of the data, for losses that compare segments.

    Raises:
        InputError: The name or an option is unknown, or `text` is missing.
    """
    if name not in LOSSES:
        raise InputError(f"`distill={name}`: unknown; losses are {', '.join(LOSSES)}")
    try:
        return LOSSES[name](clip, options, text)
    except TypeError as error:
        raise InputError(f"`distill={name}`: has no such option ({error})") from error
