"""Augmentation of labelled images, and the resizing of evaluation.

Every random choice comes from the generator that is passed in, so an augmented sample is a function
of its seed alone, and a resumed run sees what an uninterrupted one would have.

Shapes: `H W` image, `h w` crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ovstrans.datasets.sample import Sample
from ovstrans.errors import InputError

CLIP_MEAN = (123, 117, 104)
"""The mean RGB of CLIP's training images, 0..255: what lies around an image that is smaller than its crop."""

Transform = Callable[[Sample, torch.Generator], Sample]


@dataclass(frozen=True)
class Augment:
    """How training images vary.

    scale: smallest and largest factor of the size, drawn evenly.
    flip: chance of a horizontal flip.
    jitter: largest relative change of brightness, contrast and saturation; 0 is none.
    short_side: side that scale 1 means, in pixels; 0 keeps the image's own.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.0
    short_side: int = 0

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"augment.scale is {list(self.scale)}; two numbers above 0 are needed, the smaller first")
        if not 0 <= self.flip <= 1:
            raise InputError(f"augment.flip is {self.flip}; a chance from 0 to 1 is needed")
        if not 0 <= self.jitter < 1:
            raise InputError(f"augment.jitter is {self.jitter}; a number from 0 to below 1 is needed")
        if self.short_side < 0:
            raise InputError(f"augment.short_side is {self.short_side}; 0 (the image's own) or pixels are needed")

    def transform(self, size: int | tuple[int, int], ignore: int) -> Transform:
        """The transform that crops to `size` (a side, or h and w) and labels what it pads with `ignore`."""
        return AugmentedCrop(self, (size, size) if isinstance(size, int) else size, ignore)


@dataclass(frozen=True)
class AugmentedCrop:
    """Scale, crop, flip and jitter an image together with its label map (and segment map).

    The crop is cut out before it is scaled, so its cost does not depend on the size of the image.
    An image smaller than the crop is padded right and below: the image with CLIP's mean colour, the
    label with `ignore`, the segment map with 0.
    """

    augment: Augment
    size: tuple[int, int]
    ignore: int

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """A new sample of uint8 [3, h, w] and [h, w]; `segments` keep describing the whole image."""
        low, high = self.augment.scale
        factor = low + (high - low) * _draw(generator)
        height, width = sample.image.shape[-2:]
        if self.augment.short_side:
            factor *= self.augment.short_side / min(height, width)
        top, rows, out_rows = _window(height, self.size[0], factor, _draw(generator))
        left, columns, out_columns = _window(width, self.size[1], factor, _draw(generator))
        flipped = _draw(generator) < self.augment.flip

        def cut(pixels: Tensor, scale: Callable[[Tensor, tuple[int, int]], Tensor]) -> Tensor:
            window = pixels[..., top : top + rows, left : left + columns]
            scaled = scale(window, (out_rows, out_columns))
            return F.horizontal_flip(scaled) if flipped else scaled

        def pad(pixels: Tensor, fill: list[float]) -> Tensor:
            below, right = self.size[0] - out_rows, self.size[1] - out_columns
            return F.pad(pixels, [0, 0, right, below], fill=fill) if below or right else pixels.contiguous()

        def cut_map(labels: Tensor | None, fill: int) -> Tensor | None:
            return None if labels is None else pad(cut(labels[None], resize_labels), [float(fill)])[0]

        image = cut(sample.image, resize_image)
        if self.augment.jitter:
            image = _jitter(image, self.augment.jitter, generator)
        return replace(
            sample,
            image=pad(image, [float(value) for value in CLIP_MEAN]),
            label=cut_map(sample.label, self.ignore),
            segment_map=cut_map(sample.segment_map, 0),
        )


@dataclass(frozen=True)
class CenterCrop:
    """No augmentation: the short side to the crop's, and the middle of it. For batches of plain images."""

    size: tuple[int, int]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """A new sample of uint8 [3, h, w] and [h, w]."""
        height, width = sample.image.shape[-2:]
        factor = max(self.size[0] / height, self.size[1] / width)
        scaled = (max(self.size[0], round(height * factor)), max(self.size[1], round(width * factor)))

        def cut(labels: Tensor | None) -> Tensor | None:
            if labels is None:
                return None
            return F.center_crop(resize_labels(labels[None], scaled), list(self.size))[0].contiguous()

        return replace(
            sample,
            image=F.center_crop(resize_image(sample.image, scaled), list(self.size)).contiguous(),
            label=cut(sample.label),
            segment_map=cut(sample.segment_map),
        )


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image [3, H, W] at another size, bilinear with antialiasing; of the same type."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [1, H, W] at another size: each pixel takes the value at its centre, so nothing shifts."""
    if tuple(labels.shape[-2:]) == size:
        return labels
    # resize() of a Mask would use "nearest", which is off by up to half a pixel
    return F.resize_image(labels, list(size), interpolation=InterpolationMode.NEAREST_EXACT, antialias=False)


def compute_evaluation_size(
    height: int, width: int, short_side: int | None, max_side: int | None = None
) -> tuple[int, int]:
    """The size an image is evaluated at: short side brought to `short_side`, long one to at most `max_side`.

    None for `short_side` keeps the image's own size (still at most `max_side`). Halves are rounded up, as
    published evaluations do.
    """
    factor = 1.0 if short_side is None else short_side / min(height, width)
    if max_side is not None:
        factor = min(factor, max_side / max(height, width))
    return max(1, math.floor(height * factor + 0.5)), max(1, math.floor(width * factor + 0.5))


def _window(length: int, crop: int, factor: float, chance: float) -> tuple[int, int, int]:
    """Along one side: where the cut starts, its length in the image, and its length once scaled."""
    scaled = max(1, round(length * factor))
    if scaled <= crop:
        return 0, length, scaled
    taken = min(length, max(1, round(crop / factor)))
    return math.floor(chance * (length - taken + 1)), taken, crop


def _jitter(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    for adjust in (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation):
        image = adjust(image, 1.0 + strength * (2.0 * _draw(generator) - 1.0))
    return image


def _draw(generator: torch.Generator) -> float:
    """Evenly from [0, 1)."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))
