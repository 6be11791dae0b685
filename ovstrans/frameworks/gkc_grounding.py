"""Caption grounding, a loss of GKC: within a batch, tell which caption belongs to which image.

Han et al. 2023 (GKC, arXiv 2303.09181); the loss is that of Zareian et al. 2021 (OVR-CNN, arXiv 2011.10678) with cosine
distances. The nouns of a caption and the regions of an image are aligned by attention, and the distance of caption and
image is the mean distance of what is aligned.

Shapes: `B` images, `M` nouns of a caption, `N` regions of an image, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ovstrans.clip.backbone import full_precision


def grounding_loss(nouns: Sequence[Tensor], regions: Sequence[Tensor], scale: Tensor | float) -> Tensor:
    """Compute how badly captions and images of a batch are told apart.

    1. Each noun attends to the regions of an image by the softmax of scaled cosines. Its distance to the image is the
       sum over regions of attention times scaled (1 - cosine). The mean over nouns is the distance of the caption.
    2. The same from regions to nouns gives a second matrix [B, B] of distances.
    3. Each matrix gives two cross entropies: of choosing the caption of an image and the image of a caption, at logits
       that are negative distances. The loss is the mean of the four.

    An image without nouns or without regions takes no part; in the published code it would be nearest to everything.

    Args:
        nouns: Of each image the embeddings of its caption's nouns, [M, E], of any length.
        regions: Of each image the embeddings of its regions, [N, E], of any length.
        scale: The inverse temperature.

    Returns:
        A scalar in nats: ln B if nothing can be told apart; 0 with gradients of 0 for fewer than two images.
    """
    pairs = [(noun, region) for noun, region in zip(nouns, regions, strict=True) if len(noun) and len(region)]
    if len(pairs) < 2:
        return torch.cat(list(regions)).float().sum() * 0.0 + torch.as_tensor(scale) * 0.0
    with full_precision(regions[0]):
        noun_rows, has_noun = _pad_units([noun for noun, _ in pairs])
        region_rows, has_region = _pad_units([region for _, region in pairs])
        cosine = torch.einsum("ime,jne->ijmn", noun_rows, region_rows)
        similarity, distance = scale * cosine, scale * (1 - cosine)
        exists = has_noun[:, None, :, None] & has_region[None, :, None, :]
        weight = exists.float()
        similarity = similarity.masked_fill(~exists, torch.finfo(similarity.dtype).min)
        from_nouns = (similarity.softmax(3) * weight * distance).sum((2, 3)) / has_noun.sum(1)[:, None]
        from_regions = (similarity.softmax(2) * weight * distance).sum((2, 3)) / has_region.sum(1)[None, :]
        own = torch.arange(len(pairs), device=cosine.device)
        logits = [-each for distances in (from_nouns, from_regions) for each in (distances, distances.t())]
        return torch.stack([F.cross_entropy(each, own) for each in logits]).mean()


def _pad_units(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Normalise rows and pad them with zeros to one length L.

    Returns:
        float32 [B, L, E], and bool [B, L], which rows exist.
    """
    unit = [F.normalize(each.float(), dim=1) for each in rows]
    exists = [torch.ones(len(each), dtype=torch.bool, device=each.device) for each in rows]
    return pad_sequence(unit, batch_first=True), pad_sequence(exists, batch_first=True)
