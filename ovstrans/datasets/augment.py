"""Augmentation of labelled images, and resizing for evaluation.

All randomness comes from the generator that is passed in. An augmented sample therefore depends on its seed alone, and
a resumed run sees the same samples as an uninterrupted one.

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
from ovstrans.environment import require_memory
from ovstrans.errors import InputError

CLIP_MEAN = (123, 117, 104)
"""Mean RGB of CLIP's training images, 0 to 255. Pads an image that is smaller than its crop."""

Transform = Callable[[Sample, torch.Generator], Sample]
"""A function that augments a sample with the randomness of a generator."""


@dataclass(frozen=True)
class Augment:
    """Settings of the augmentation of training images; see `AugmentedCrop`.

    Attributes:
        scale: Smallest and largest factor by which an image is scaled, drawn uniformly.
        flip: Probability of a horizontal flip.
        jitter: Largest relative change of brightness, contrast and saturation; 0 for none.
        short_side: Short side of the image at scale 1, in pixels; 0 for the image's own.

    Raises:
        InputError: A value is out of range.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.0
    short_side: int = 0

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"`augment.scale={list(self.scale)}`: must be two numbers above 0, the smaller first")
        if not 0 <= self.flip <= 1:
            raise InputError(f"`augment.flip={self.flip}`: must be a probability from 0 to 1")
        if not 0 <= self.jitter < 1:
            raise InputError(f"`augment.jitter={self.jitter}`: must be at least 0 and below 1")
        if self.short_side < 0:
            raise InputError(
                f"`augment.short_side={self.short_side}`: must be a number of pixels, or 0 for the image's"
            )

    def transform(self, size: int | tuple[int, int], ignore: int) -> Transform:
        """Return the transform that augments a sample and crops it.

        Args:
            size: Side of the crop, or its height and width, in pixels.
            ignore: Label of padding.
        """
        return AugmentedCrop(self, (size, size) if isinstance(size, int) else size, ignore)


@dataclass(frozen=True)
class AugmentedCrop:
    """Scales, crops, flips and jitters an image together with its label map and segment map.

    The crop is cut out before it is scaled, so its cost does not depend on the size of the image. An image smaller than
    the crop is padded on the right and at the bottom: the image with `CLIP_MEAN`, the label map with `ignore`, the
    segment map with 0.

    Attributes:
        augment: The settings.
        size: Height and width of the crop.
        ignore: Label of padding.
    """

    augment: Augment
    size: tuple[int, int]
    ignore: int

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return a new sample with image uint8 [3, h, w], maps [h, w], and the `segments` of the whole image."""
        low, high = self.augment.scale
        factor = low + (high - low) * _draw(generator)
        height, width = sample.image.shape[-2:]
        if self.augment.short_side:
            factor *= self.augment.short_side / min(height, width)
        top, rows, out_rows = _window(height, self.size[0], factor, _draw(generator))
        left, columns, out_columns = _window(width, self.size[1], factor, _draw(generator))
        flip = _draw(generator) < self.augment.flip

        def cut(pixels: Tensor, scale: Callable[[Tensor, tuple[int, int]], Tensor]) -> Tensor:
            window = pixels[..., top : top + rows, left : left + columns]
            scaled = scale(window, (out_rows, out_columns))
            return F.horizontal_flip(scaled) if flip else scaled

        def pad(pixels: Tensor, fill: list[float]) -> Tensor:
            bottom, right = self.size[0] - out_rows, self.size[1] - out_columns
            return F.pad(pixels, [0, 0, right, bottom], fill=fill) if bottom or right else pixels.contiguous()

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
    """Scales an image to cover the crop and cuts out its center. Not random: for batches of images as they are.

    Attributes:
        size: Height and width of the crop.
    """

    size: tuple[int, int]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return a new sample with image uint8 [3, h, w] and maps [h, w]."""
        height, width = sample.image.shape[-2:]
        factor = max(self.size[0] / height, self.size[1] / width)
        scaled = (max(self.size[0], round(height * factor)), max(self.size[1], round(width * factor)))

        def cut(labels: Tensor | None) -> Tensor | None:
            if labels is None:
                return None
            cropped: Tensor = F.center_crop(resize_labels(labels[None], scaled), list(self.size))[0]
            return cropped.contiguous()

        return replace(
            sample,
            image=F.center_crop(resize_image(sample.image, scaled), list(self.size)).contiguous(),
            label=cut(sample.label),
            segment_map=cut(sample.segment_map),
        )


_LARGE = 16_000_000
"""Pixels above which the memory is checked before an image is resized."""
_RESIZING_BYTES = 30
"""Memory that a resized image takes in bytes a pixel: as bytes, as float32, and normalised."""


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image [3, H, W] bilinearly with antialiasing; the dtype stays the same."""
    if tuple(image.shape[-2:]) == size:
        return image
    if size[0] * size[1] > _LARGE:
        what = f"resizing an image to {size[1]}x{size[0]} pixels takes"
        require_memory(
            _RESIZING_BYTES * size[0] * size[1], "cpu", what=what, remedy="lower `short_side` or `long_side`"
        )
    resized: Tensor = F.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize label maps [1, H, W]: each pixel takes the value at its center, so that nothing shifts."""
    if tuple(labels.shape[-2:]) == size:
        return labels
    # resize() of a Mask would use NEAREST, which shifts by up to half a pixel
    nearest = InterpolationMode.NEAREST_EXACT
    resized: Tensor = F.resize_image(labels, list(size), interpolation=nearest, antialias=False)
    return resized


def compute_evaluation_size(
    height: int, width: int, short_side: int | None, max_side: int | None = None
) -> tuple[int, int]:
    """Return the height and width at which an image is evaluated.

    The image is scaled until its short side is `short_side`, or less if its long side would exceed `max_side`. Sides
    are rounded, halves up, as in detectron2.

    Args:
        height: Height of the image.
        width: Width of the image.
        short_side: Short side at evaluation; None keeps the image's own.
        max_side: Largest long side at evaluation; None for no limit.
    """
    factor = 1.0 if short_side is None else short_side / min(height, width)
    if max_side is not None:
        factor = min(factor, max_side / max(height, width))
    return max(1, math.floor(height * factor + 0.5)), max(1, math.floor(width * factor + 0.5))


def _window(length: int, crop: int, factor: float, chance: float) -> tuple[int, int, int]:
    """Choose the window that a crop takes along one axis of the image.

    Args:
        length: Length of the image.
        crop: Length of the crop.
        factor: Scale.
        chance: Where the window lies, from 0 (start) to 1 (end).

    Returns:
        Start of the window, its length in the image, and its length after scaling.
    """
    scaled = max(1, round(length * factor))
    if scaled <= crop:
        return 0, length, scaled
    window = min(length, max(1, round(crop / factor)))
    return math.floor(chance * (length - window + 1)), window, crop


def _jitter(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    for adjust in (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation):
        image = adjust(image, 1.0 + strength * (2.0 * _draw(generator) - 1.0))
    return image


def _draw(generator: torch.Generator) -> float:
    """Draw a number uniformly from [0, 1)."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))
