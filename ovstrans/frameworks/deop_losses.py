"""The losses of DeOP's anchors: the scores of all proposals together are compared with the label of each pixel.

Han et al. 2023 (arXiv 2304.01198), as released, except that pixels without a label carry no loss.

Shapes: `B` batch, `N` proposals, `C` classes and the non-object, the last, `H W` image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.backbone import full_precision

ALPHA = 0.25
"""Weight of positive targets in the focal loss; negative ones weigh 1 - ALPHA (Lin et al. 2017, sec. 3.2)."""
GAMMA = 2
"""Exponent of the focal loss (Lin et al. 2017)."""
SLOPE = 3.0
"""Slope and shift of the sigmoid that turns summed scores into probabilities: a sum of 1 gives 0.5 (released code)."""
FLOOR = 1e-4
"""Bounds of probabilities under the logarithm, from 0 and from 1 (released code)."""


def fuse(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Sum class probability times mask probability over proposals.

    Args:
        probabilities: [B, N, C].
        masks: Mask probabilities [B, N, H, W].

    Returns:
        [B, C, H, W]; above 1 where proposals overlap.
    """
    return torch.einsum("bnc,bnhw->bchw", probabilities, masks)


def pixel_losses(logits: Tensor, masks: Tensor, labels: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """Compute focal and dice loss of the fused scores.

    The fused scores S become s = sigmoid(3 S - 3). The focal loss is the mean over labelled pixels and all channels,
    the non-object's included, whose target is always 0. The dice loss takes all labelled pixels and all classes of an
    image together, without the non-object, and is averaged over images.

    Args:
        logits: Class logits [B, N, C] of the proposals, the non-object last.
        masks: Mask logits [B, N, *, *]; they are resized bilinearly to H x W before the sigmoid.
        labels: int64 [B, H, W], columns of the logits, or `ignored`.
        ignored: The label of pixels that carry no loss.

    Returns:
        (focal loss, dice loss), scalars; images without a labelled pixel count as 0.
    """
    with full_precision(logits):
        size = (int(labels.shape[-2]), int(labels.shape[-1]))
        inside = F.interpolate(masks.float(), size=size, mode="bilinear", align_corners=False).sigmoid()
        scores = (SLOPE * fuse(logits.float().softmax(-1), inside) - SLOPE).sigmoid()
        known = labels != ignored
        targets = F.one_hot(labels.where(known, 0), scores.shape[1]).permute(0, 3, 1, 2).to(scores.dtype)
        weight = known[:, None].to(scores.dtype)
        right = scores * targets + (1 - scores) * (1 - targets)
        alpha = ALPHA * targets + (1 - ALPHA) * (1 - targets)
        terms = -alpha * (1 - right) ** GAMMA * right.clamp(FLOOR, 1 - FLOOR).log()
        focal = (terms * weight).sum() / (weight.sum() * scores.shape[1]).clamp_min(1)
        found, wanted = ((each[:, :-1] * weight).flatten(1) for each in (scores, targets))
        ratio = (2 * (found * wanted).sum(1) + 1) / (found.sum(1) + wanted.sum(1) + 1)
        return focal, (1 - ratio).mean()
