"""open_clip's ConvNeXt image encoders: a TimmModel, timm's trunk and a projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import open_clip
from open_clip.timm_model import TimmModel
from torch import nn


def is_convnext(config: Mapping[str, Any]) -> bool:
    """Whether the image encoder of an open_clip model configuration is a ConvNeXt."""
    return str(config["vision_cfg"].get("timm_model_name") or "").startswith("convnext")


def create_convnext(config: Mapping[str, Any]) -> nn.Module:
    """The tower alone, with random weights: timm is never asked for pretrained ones.

    Like a ResNet tower it tells in `output_dim` what dimension E it embeds in.
    """
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    encoder = TimmModel(
        vision.timm_model_name,
        config["embed_dim"],
        image_size=vision.image_size,
        pool=vision.timm_pool,
        proj=vision.timm_proj,
        proj_bias=vision.timm_proj_bias,
        drop=vision.timm_drop,
        drop_path=vision.timm_drop_path,
    )
    encoder.output_dim = config["embed_dim"]
    return encoder
