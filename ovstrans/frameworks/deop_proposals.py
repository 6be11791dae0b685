"""Proposals of DeOP: masks of anything, without a class; from a network of its own, or given from outside.

Han et al. 2023 (DeOP, arXiv 2304.01198), sec. 3: proposals and classification are decoupled, so masks may come from
any source. The network is the Mask2Former head on a convolutional CLIP encoder of its own.

Shapes: `B` batch, `N` proposals, `h w` grid of patches, `H W` image, `C` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ovstrans.clip.backbone import drop_head, encode_stages, stage_channels
from ovstrans.clip.load import create_image_encoder, load_clip
from ovstrans.datasets.proposals import find_masks, read_masks, split_ids
from ovstrans.errors import InputError
from ovstrans.frameworks.mask2former_head import FEATURES, HeadOutput, MaskHead
from ovstrans.frameworks.mask2former_losses import Criterion, Match, Targets, segment_count

NETWORK, TRUTH, FOLDER = "network", "truth", "folder:"
"""Sources of proposals: the network, the segments of the ground truth, or the prefix of a folder of files."""

CERTAIN = 15.0
"""Logit of a pixel inside a given mask: its probability is 1 in float32 to 3e-7."""


class ProposalNetwork(nn.Module):
    """Mask2Former's head on a convolutional image encoder, trained to find masks whatever their class.

    The encoder's BatchNorms keep their statistics, scale and shift, as published.

    Args:
        encoder: open_clip name of the CLIP whose image encoder is used, such as RN101.
        sizes: Sizes of the head, see `MaskHead`.

    Raises:
        InputError: The model is unknown, or has no feature maps at strides 4 to 32.
    """

    def __init__(self, encoder: str, **sizes: int) -> None:
        super().__init__()
        self.encoder = create_image_encoder(encoder)
        if hasattr(self.encoder, "transformer"):
            raise InputError(f"proposals: {encoder} is a ViT; a CLIP ResNet or ConvNeXt is needed, such as RN101")
        drop_head(self.encoder)
        for module in self.encoder.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
        channels = stage_channels(self.encoder)
        self.head = MaskHead([channels[name] for name in FEATURES], **sizes)

    def train(self, mode: bool = True) -> ProposalNetwork:
        """Set the mode; BatchNorms of the encoder stay in eval mode."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def load_pretrained(self, model: str, pretrained: str) -> None:
        """Load the weights of a CLIP into the encoder; "" for the model's default weights.

        Raises:
            InputError: The weights cannot be loaded.
        """
        state = load_clip(model, pretrained or None).visual.state_dict()
        own = self.encoder.state_dict()
        self.encoder.load_state_dict({key: value for key, value in state.items() if key in own})

    def forward(self, images: Tensor) -> HeadOutput:
        """Predict the mask logits [B, N, H / 4, W / 4] of normalised images [B, 3, H, W]."""
        return cast(HeadOutput, self.head(encode_stages(self.encoder, images)))


def proposal_losses(output: HeadOutput, labels: Tensor, ignored: int, criterion: Criterion) -> tuple[Tensor, Tensor]:
    """Compute the mask losses of proposals, summed over the predictions of the head.

    The targets of an image are the masks of its classes, one each. They are matched by the masks alone.

    Args:
        output: The predictions of the head.
        labels: int64 [B, H, W] of the padded image; any number per class, or `ignored`.
        ignored: The label of pixels that belong to no target.
        criterion: Matcher and losses.

    Returns:
        (binary cross entropy, dice loss), scalars.
    """
    targets = [_class_masks(label, ignored) for label in labels]
    count = segment_count(targets)
    total: list[Tensor] = []
    for masks in output.masks:
        # With one class of probability 1 for all, the matching cost of the class is the same for every pair.
        alike = masks.new_zeros(*masks.shape[:2], 2)
        matches: list[Match] = criterion.match(masks, alike, targets)
        total.append(torch.stack(criterion.mask_losses(masks, targets, matches, count)))
    mask, dice = torch.stack(total).sum(0)
    return mask, dice


def _class_masks(label: Tensor, ignored: int) -> Targets:
    values = torch.unique(label)
    masks = label[None] == values[values != ignored][:, None, None]
    return Targets(masks.float(), torch.zeros(len(masks), dtype=torch.long, device=label.device))


@dataclass(frozen=True)
class Proposals:
    """Masks to classify.

    Attributes:
        masks: Mask logits [B, N, *, *] of the padded image.
        given: Whether they were given from outside, with certain pixels, or predicted.
    """

    masks: Tensor
    given: bool = False

    def inside(self, grid: tuple[int, int]) -> Tensor:
        """Return how much of each patch is inside each mask, [B, N, h, w] in 0..1.

        As released, probabilities are interpolated, bilinear. Masks given at full size are averaged over each patch
        instead: interpolation would look at 4 of its pixels.
        """
        probabilities = self.masks.float().sigmoid()
        if self.given:
            return F.adaptive_avg_pool2d(probabilities, grid)
        return F.interpolate(probabilities, size=grid, mode="bilinear", align_corners=False)

    def grid_logits(self, grid: tuple[int, int]) -> Tensor:
        """Return mask logits to sever patches with: as predicted, or of given masks those of `inside`."""
        return self.inside(grid).logit(eps=1e-6) if self.given else self.masks


def given_proposals(masks: Tensor, padded: tuple[int, int]) -> Proposals:
    """Make proposals of masks that are given for one image.

    Args:
        masks: bool [N, H, W], N at least 1.
        padded: Height and width of the padded image, whose upper left part the image is.
    """
    height, width = masks.shape[-2:]
    inside = F.pad(masks, (0, padded[1] - width, 0, padded[0] - height))
    return Proposals(torch.where(inside, CERTAIN, -CERTAIN)[None], given=True)


def match_queries(given: Tensor, own: Tensor) -> Tensor:
    """Find for each given mask the network's proposal that overlaps it most, by soft intersection over union.

    Args:
        given: Probabilities [B, N, h, w].
        own: Probabilities [B, Q, h, w] of the network's proposals.

    Returns:
        int64 [B, N], indices of proposals.
    """
    given, own = given.flatten(2), own.flatten(2)
    shared = given @ own.transpose(1, 2)
    union = given.sum(2)[:, :, None] + own.sum(2)[:, None] - shared
    return (shared / union.clamp_min(1e-6)).argmax(2)


def check_source(source: str, where: str) -> None:
    """Raise InputError if a source of proposals is not one of those above."""
    if source not in (NETWORK, TRUTH) and not (source.startswith(FOLDER) and source != FOLDER):
        raise InputError(f"{where} = {source!r}; use {NETWORK!r}, {TRUTH!r} or '{FOLDER}PATH'")


def find_given(source: str, name: str, size: tuple[int, int], label: Any, segment_map: Any, ignore: int) -> Tensor:
    """Return the masks of an image from its ground truth or from a folder of files.

    Args:
        source: "truth", or "folder:PATH".
        name: Name of the image.
        size: Height and width of the image.
        label: Its label map [H, W], or None.
        segment_map: Its segment map [H, W], or None; it comes before the label map.
        ignore: The label that belongs to no mask.

    Returns:
        bool [N, H, W].

    Raises:
        InputError: There is no ground truth, or no file.
    """
    if source != TRUTH:
        return read_masks(find_masks(Path(source.removeprefix(FOLDER)), name), size)
    if segment_map is not None:
        return torch.from_numpy(split_ids(segment_map.numpy()))
    if label is None:
        raise InputError(f"{name}: no ground truth to take proposals from; use other proposals than {TRUTH!r}")
    ids = label.long() + 1
    return torch.from_numpy(split_ids(torch.where(label.long() == ignore, 0, ids).numpy()))


def resize_given(masks: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
    """Resize masks bool [N, *, *] of each image to another size, nearest; small ones may become empty."""
    return [
        F.interpolate(each[None].float(), size=size, mode="nearest-exact")[0] > 0.5 if len(each) else each
        for each in masks
    ]
