"""CLIP's own head, taken off the image encoder and kept frozen: what CLIP thinks of the image inside a mask.

Shapes: `B` batch, `Q` queries, `C` channels, `h w` feature map, `E` embedding.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from ovstrans.clip.backbone import drop_head, encoder_kind
from ovstrans.clip.pooling import encode_masks
from ovstrans.errors import InputError


class ClipHead(nn.Module):
    """Frozen head of a CLIP image encoder: the attention pool of a ResNet, norm and projection of a ConvNeXt or ViT.

    The modules keep the names that they have in the image encoder, which `clip.pooling` looks for.

    Args:
        encoder: The image encoder. Its head is removed, in place.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        source = cast(Any, encoder)
        if encoder_kind(encoder) == "convnext":
            self.trunk = nn.ModuleDict({"norm_pre": source.trunk.norm_pre, "head": source.trunk.head})
            self.head = source.head
        elif encoder_kind(encoder) == "vit":
            if getattr(source, "ln_post", None) is None or source.attn_pool is not None:
                raise InputError("CLIP's own head: of ViTs, only open_clip's own with a class token are supported")
            self.ln_post, self.proj = source.ln_post, source.proj
        else:
            self.attnpool = source.attnpool
        drop_head(encoder)
        self.requires_grad_(False)

    def embed_masks(self, res5: Tensor, masks: Tensor) -> Tensor:
        """Compute CLIP's embedding of the image inside each mask; see `clip.pooling.encode_masks`.

        Args:
            res5: Features [B, C, h, w].
            masks: Mask logits [B, Q, *, *] of any size.

        Returns:
            [B, Q, E], not normalised.
        """
        return encode_masks(self, res5, masks)
