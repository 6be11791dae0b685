"""The counts that the paper's conventions combine, each made once, on meta tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ovstrans.costs.flops import count_flops
from ovstrans.costs.published.figures import FCCLIP, HAN, IMAGE_SIZE, TRAINING_SIZE, UNPADDED_SIZE
from ovstrans.costs.published.released_deeplab import ReleasedHead
from ovstrans.costs.target import Target, load_target
from ovstrans.costs.thop_rules import PTFLOPS, RuledCount, count_thop
from ovstrans.costs.training_step import TrainingStep, count_executed_step
from ovstrans.vocabulary.catalog import load_published_vocabulary

RECIPES: Mapping[str, str] = {HAN: "gkc-rn50-coco", FCCLIP: "fcclip-rn50-coco"}
"""Row of the paper's tables to the recipe of its model; DeepLab's model is in `released_deeplab`."""
BACKBONE = "RN50"
VOCABULARY = "coco-panoptic"

Key = tuple[str, str, str]
"""Row, variant and quantity of a printed figure."""


class Counts:
    """Counts of the paper's models, each made on first use.

    Names that end in `_thop` or `_ptflops` are by those counters' rules, the others by the counter of truth.
    """

    @cached_property
    def han(self) -> Target:
        """GKC; the paper's "Han et al." is a configuration of it."""
        return _recipe(HAN)

    @cached_property
    def fcclip(self) -> Target:
        """FC-CLIP with 250 queries."""
        return _recipe(FCCLIP)

    @cached_property
    def backbone(self) -> Target:
        """CLIP RN50 without its attention pool."""
        return load_target(BACKBONE)

    @cached_property
    def backbone_params(self) -> int:
        """Parameters of the backbone."""
        return count_entries(self.backbone.module)

    @cached_property
    def backbone_thop(self) -> int:
        """Operations of the backbone at test size."""
        return count_thop(self.backbone.module, IMAGE_SIZE).macs

    @cached_property
    def fcclip_thop(self) -> RuledCount:
        """Count of FC-CLIP at test size."""
        return count_thop(self.fcclip.module, IMAGE_SIZE, components=self.fcclip.components)

    @cached_property
    def deeplab_thop(self) -> RuledCount:
        """Count of the released DeepLab head at the size at which the printed figure fits."""
        return count_thop(self.deeplab_head, UNPADDED_SIZE)

    @cached_property
    def deeplab_head(self) -> nn.Module:
        """Head of the released DeepLab."""
        with torch.device("meta"):
            return ReleasedHead()

    @cached_property
    def crop_thop(self) -> RuledCount:
        """Count of GKC on a training crop."""
        return count_thop(self.han.module, TRAINING_SIZE, components=self.han.components)

    @cached_property
    def backbone_ptflops(self) -> int:
        """Operations of the backbone on a training crop."""
        return count_thop(self.backbone.module, TRAINING_SIZE, rules=PTFLOPS).macs

    @cached_property
    def layers(self) -> dict[str, int]:
        """MACs of each layer of the backbone on a training crop."""
        return {layer.name: layer.dense for layer in count_flops(self.backbone.module, TRAINING_SIZE).layers or ()}

    @cached_property
    def step(self) -> TrainingStep:
        """A training step of Han et al. as autograd runs it, nothing frozen, on training crops."""
        return count_executed_step(self.han.module, TRAINING_SIZE, components=self.han.components)

    @cached_property
    def han_head_parts(self) -> list[nn.Module]:
        """Parts of `sem_seg_head` in the released code: without the projection into CLIP's space."""
        module: Any = self.han.module
        return [module.head.pixel_decoder, module.head.transformer, module.classifier.query]


def _recipe(row: str) -> Target:
    return load_target(RECIPES[row], vocabulary=load_published_vocabulary(VOCABULARY))


def count_entries(*modules: nn.Module) -> int:
    """Count the parameters of modules."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
