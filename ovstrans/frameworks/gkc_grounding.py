"""Caption grounding: of a batch, which caption belongs to which image?

Han et al. 2023 (GKC, arXiv 2303.09181), whose loss is that of Zareian et al. 2021 (OVR-CNN, arXiv
2011.10678) with cosine distances: the nouns of a caption and the regions of an image are softly aligned,
and the distance of a caption and an image is what is left between the aligned.

Shapes: `B` images, `M` nouns of a caption, `N` regions of an image, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ovstrans.clip.backbone import full_precision


def grounding_loss(words: Sequence[Tensor], regions: Sequence[Tensor], scale: Tensor | float) -> Tensor:
    """How badly captions and images find each other, in nats; ln B where all look alike.

    words: per image the embeddings of its caption's nouns, [M, E].  regions: per image those of its
    regions, [N, E]; both of any length.  scale: the inverse temperature.

    Each noun attends to the regions of an image by the softmax of scaled cosines, and its distance to
    the image is the mean of scaled 1 - cosine under that attention; the mean over the nouns is the
    distance of caption and image. The same is done from regions to nouns. Of either matrix of distances
    [B, B] the loss is the cross entropy of choosing the caption of an image and the image of a caption;
    the mean of the four is returned.

    An image without nouns or without regions takes no part (as published it would be nearest to
    everything). 0, with gradients of 0, for fewer than two images.
    """
    pairs = [(noun, region) for noun, region in zip(words, regions, strict=True) if len(noun) and len(region)]
    if len(pairs) < 2:
        return torch.cat(list(regions)).float().sum() * 0.0 + torch.as_tensor(scale) * 0.0
    with full_precision(regions[0]):
        nouns, named = _padded([noun for noun, _ in pairs])
        places, taken = _padded([region for _, region in pairs])
        cosine = torch.einsum("ime,jne->ijmn", nouns, places)
        similarity, distance = scale * cosine, scale * (1 - cosine)
        inside = named[:, None, :, None] & taken[None, :, None, :]
        weight = inside.float()
        similarity = similarity.masked_fill(~inside, torch.finfo(similarity.dtype).min)
        from_words = (similarity.softmax(3) * weight * distance).sum((2, 3)) / named.sum(1)[:, None]
        from_regions = (similarity.softmax(2) * weight * distance).sum((2, 3)) / taken.sum(1)[None, :]
        own = torch.arange(len(pairs), device=cosine.device)
        choices = [-each for cost in (from_words, from_regions) for each in (cost, cost.t())]
        return torch.stack([F.cross_entropy(logits, own) for logits in choices]).mean()


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Unit rows [B, L, E] of float32, zeros after the end of each, and which are there, bool [B, L]."""
    unit = [F.normalize(each.float(), dim=1) for each in rows]
    there = [torch.ones(len(each), dtype=torch.bool, device=each.device) for each in rows]
    return pad_sequence(unit, batch_first=True), pad_sequence(there, batch_first=True)
