"""Small ViTs of every kind, with random weights."""

import torch
from open_clip.timm_model import TimmModel
from torch import nn

from ovstrans.clip.load import create_image_encoder
from ovstrans.clip.vit import allow_any_size


def small_vit(kind: str, seed: int = 0) -> nn.Module:
    """Return a small ViT: open_clip's, or one of timm's: plain, with an attention pool, with rotary positions."""
    torch.manual_seed(seed)
    if kind == "open_clip":
        encoder = create_image_encoder("ViT-mini")
    elif kind == "map":
        encoder = TimmModel("vit_tiny_patch16_224", 192, pool="map", proj="none")
    elif kind == "eva":
        encoder = TimmModel("eva02_tiny_patch14_224", 32, pool="token", proj="linear")
    else:
        encoder = TimmModel("vit_tiny_patch16_224", 32, pool="token", proj="linear")
    if kind != "open_clip":
        allow_any_size(encoder)
    return encoder.eval()


KINDS = ("open_clip", "plain", "map", "eva")
