"""The two-stream baseline: CLIP looks at a crop of every proposal, one forward pass each.

That is how masks were classified before DeOP (Xu et al. 2022, "SimBaseline", arXiv 2112.14757, sec. 3.3, and others),
and what its single pass replaces.

Shapes: `B` batch, `N` proposals, `S` side of a crop, `H W` image, `E` embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

THRESHOLD = 0.5
"""Mask probability above which a pixel belongs to the crop (released code)."""

CHUNK = 50
"""Crops that are encoded at once."""


def encode_crops(encoder: nn.Module, images: Tensor, masks: Tensor, side: int) -> Tensor:
    """Embed the crop of every proposal.

    A crop is the tight box around the mask, with CLIP's mean colour outside the mask, resized to a square, bicubic.

    Args:
        encoder: A CLIP image encoder that embeds images.
        images: Normalised images [B, 3, H, W], in which the mean colour is 0.
        masks: Mask logits [B, N, *, *] over the same area.
        side: S.

    Returns:
        Embeddings [B, N, E], not normalised; zeros for an empty mask, which no crop is made of. On meta tensors, which
        have no values, every proposal has a crop.
    """
    batch, count = masks.shape[:2]
    if images.is_meta:
        rows: Tensor = encoder(images.new_empty(batch * count, 3, side, side))
        return rows.reshape(batch, count, -1)
    size = (int(images.shape[-2]), int(images.shape[-1]))
    crops, places = [], []
    for row, (image, logits) in enumerate(zip(images, masks, strict=True)):
        inside = F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]
        for number, mask in enumerate(inside.sigmoid() > THRESHOLD):
            if bool(mask.any()):
                crops.append(crop(image, mask, side))
                places.append(row * count + number)
    embeddings = [encoder(torch.stack(crops[first : first + CHUNK])) for first in range(0, len(crops), CHUNK)]
    width = embeddings[0].shape[1] if embeddings else int(encoder.output_dim)  # type: ignore[arg-type]
    result = images.new_zeros(batch * count, width)
    if embeddings:
        found = torch.cat(embeddings)
        result = result.to(found.dtype).index_copy(0, torch.tensor(places, device=images.device), found)
    return result.reshape(batch, count, -1)


def crop(image: Tensor, mask: Tensor, side: int) -> Tensor:
    """Cut the tight box of a mask bool [H, W] out of an image [3, H, W] and resize it to [3, S, S]."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    inside = image[:, box[0], box[1]] * mask[box]
    return F.interpolate(inside[None], size=(side, side), mode="bicubic", align_corners=False)[0]
