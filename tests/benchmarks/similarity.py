"""How alike the features of two backbones are: linear centred kernel alignment.

Kornblith et al. 2019 (arXiv 1905.00414), sec. 3; OpenTrans compares fine-tuned backbones with CLIP by it.
Samples are the positions of all images, features are channels; sums are kept in float64, so any
number of images takes the memory of a few C x C matrices.

Shapes: `B` batch, `C` channels, `h w` feature map, `n` positions.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ovstrans.clip.backbone import encode_stages
from ovstrans.errors import InputError, MismatchError

COMPARED = ("res2", "res3", "res4", "res5")


class LinearCKA:
    """Linear CKA of two sets of features of the same samples, added to piece by piece."""

    def __init__(self) -> None:
        self._samples = 0
        self._sums: tuple[Tensor, Tensor] | None = None
        self._products: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, one: Tensor, other: Tensor) -> None:
        """Features [n, C] and [n, C'] of n further samples; MismatchError where their numbers differ."""
        if len(one) != len(other):
            raise MismatchError(f"CKA: {len(one)} samples on one side, {len(other)} on the other; both need the same")
        one, other = one.double(), other.double()
        sums, products = (one.sum(0), other.sum(0)), (one.T @ one, other.T @ other, one.T @ other)
        if self._sums is not None and self._products is not None:
            sums = (self._sums[0] + sums[0], self._sums[1] + sums[1])
            old = self._products
            products = (old[0] + products[0], old[1] + products[1], old[2] + products[2])
        self._sums, self._products = sums, products
        self._samples += len(one)

    def value(self) -> float:
        """||X'Y||^2 / (||X'X|| ||Y'Y||) of the centred features: 1 for equal up to rotation and scale, 0 for
        unrelated ones. NaN where one side never varies; InputError without samples."""
        if self._sums is None or self._products is None:
            raise InputError("CKA: no samples; add features first")
        x, y = self._sums

        def centred(product: Tensor, left: Tensor, right: Tensor) -> Tensor:
            return torch.linalg.norm(product - torch.outer(left, right) / self._samples)

        xx, yy, xy = self._products
        return float(centred(xy, x, y) ** 2 / (centred(xx, x, x) * centred(yy, y, y)))


def backbone_similarity(one: nn.Module, other: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Linear CKA of two image encoders of one architecture at res2 to res5, and `mean` of the four.

    batches: normalised images [B, 3, H, W], on the encoders' device. Where one encoder's map is finer
    (another output stride) it is averaged down to the other's.
    """
    found = {name: LinearCKA() for name in COMPARED}
    for encoder in (one, other):
        encoder.eval()
    with torch.inference_mode():
        for images in batches:
            left, right = encode_stages(one, images), encode_stages(other, images)
            for name in COMPARED:
                height, width = min(left[name].shape[-2:], right[name].shape[-2:])
                size = (int(height), int(width))
                pooled = [nn.functional.adaptive_avg_pool2d(each[name].float(), size) for each in (left, right)]
                found[name].add(*(each.flatten(2).transpose(1, 2).flatten(0, 1) for each in pooled))
    values = {name: each.value() for name, each in found.items()}
    return values | {"mean": sum(values.values()) / len(values)}
