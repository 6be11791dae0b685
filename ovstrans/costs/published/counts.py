"""What the paper's conventions are made of, each part counted once, on meta tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ovstrans.costs.flops import count_flops
from ovstrans.costs.published.figures import FCCLIP, HAN, IMAGE_SIZE, TRAINING_SIZE, UNPADDED_SIZE
from ovstrans.costs.published.released_deeplab import ReleasedHead
from ovstrans.costs.target import Target, resolve
from ovstrans.costs.thop_rules import PTFLOPS, RuledCount, count_thop
from ovstrans.costs.training_step import TrainingFlops, executed_training
from ovstrans.vocabulary.catalog import load_published_vocabulary

RECIPES: Mapping[str, str] = {HAN: "gkc-rn50-coco", FCCLIP: "fcclip-rn50-coco"}
"""The models of the rows, by recipe; DeepLab's is `released_deeplab`."""
TRUNK = "RN50"
VOCABULARY = "coco-panoptic"

Key = tuple[str, str, str]
"""Row, variant and quantity of a figure."""


class Counts:
    """What the conventions are made of, each counted once. thop and ptflops figures are theirs, the rest is true."""

    @cached_property
    def han(self) -> Target:
        """GKC, of which the paper's "Han et al." is a configuration."""
        return _recipe(HAN)

    @cached_property
    def fcclip(self) -> Target:
        """FC-CLIP with 250 queries."""
        return _recipe(FCCLIP)

    @cached_property
    def trunk(self) -> Target:
        """CLIP RN50 without its attention pool."""
        return resolve(TRUNK)

    @cached_property
    def trunk_params(self) -> int:
        """Its parameters."""
        return numel(self.trunk.module)

    @cached_property
    def trunk_thop(self) -> int:
        """The trunk at test size."""
        return count_thop(self.trunk.module, IMAGE_SIZE).macs

    @cached_property
    def fcclip_thop(self) -> RuledCount:
        """FC-CLIP at test size."""
        return count_thop(self.fcclip.module, IMAGE_SIZE, components=self.fcclip.components)

    @cached_property
    def deeplab_thop(self) -> RuledCount:
        """The released head at the size it fits at."""
        return count_thop(self.deeplab_head, UNPADDED_SIZE)

    @cached_property
    def deeplab_head(self) -> nn.Module:
        """The released head."""
        with torch.device("meta"):
            return ReleasedHead()

    @cached_property
    def crop_thop(self) -> RuledCount:
        """GKC on a training crop."""
        return count_thop(self.han.module, TRAINING_SIZE, components=self.han.components)

    @cached_property
    def trunk_ptflops(self) -> int:
        """The trunk on a training crop."""
        return count_thop(self.trunk.module, TRAINING_SIZE, rules=PTFLOPS).macs

    @cached_property
    def layers(self) -> dict[str, int]:
        """MACs of the trunk's layers on a crop."""
        return {layer.name: layer.dense for layer in count_flops(self.trunk.module, TRAINING_SIZE).layers}

    @cached_property
    def step(self) -> TrainingFlops:
        """What autograd runs of Han et al.'s training, nothing frozen, of one crop."""
        return executed_training(self.han.module, TRAINING_SIZE, components=self.han.components)

    @cached_property
    def han_head_parts(self) -> list[nn.Module]:
        """`sem_seg_head` of the released code: without the projection into CLIP's space."""
        module: Any = self.han.module
        return [module.head.pixel_decoder, module.head.transformer, module.classifier.query]


def _recipe(row: str) -> Target:
    return resolve(RECIPES[row], vocabulary=load_published_vocabulary(VOCABULARY))


def numel(*modules: nn.Module) -> int:
    """Parameters of modules."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
