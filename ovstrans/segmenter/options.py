"""The options of `Segmenter.segment` and `predict`, and remedies for large images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.datasets.published.registry import lookup_published
from ovstrans.errors import InputError
from ovstrans.evaluation.inference import Inference, refuse_windows
from ovstrans.frameworks.registry import framework_class, list_frameworks
from ovstrans.segmenter.classes import ClassNames
from ovstrans.vocabulary.vocabulary import AUTO, check_names

LARGEST = 2**22
"""Pixels of the largest image that is segmented in one piece; a larger one would take gigabytes of features."""

DEFAULT_WINDOW = 1024
"""Side of the windows for larger images."""


@dataclass(frozen=True)
class SegmentationOptions:
    """Options of a segmentation, checked.

    Attributes:
        names: Which names of a class go into prompts, see `vocabulary.vocabulary`.
        confidence: Also give each pixel's confidence.
        panoptic: Also give panoptic segments.
        instances: Also give instances.
        things: Names of the countable classes; None for what is known of them.
        short_side: Resize images to this short side in pixels; 0 for the image's own. None for that of the papers on
            the training data if `long_side` is None too, else the image's own.
        long_side: Upper bound on the long side of the resized image; None for none.
        window: Side of sliding windows; None scores images in one piece if they are not too large.
        stride: Distance between windows; None for 2/3 of the window.
        flip: Average the scores with those of the mirrored image.

    Raises:
        InputError: If an option is out of range, or two do not go together.
    """

    names: str = AUTO
    confidence: bool = False
    panoptic: bool = False
    instances: bool = False
    things: ClassNames | None = None
    short_side: int | None = None
    long_side: int | None = None
    window: int | None = None
    stride: int | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        check_names(self.names)
        inference = self._inference
        if self.wants_segments:
            refuse_windows(inference, f"`{self._segments_option}`")
        elif self.things is not None:
            raise InputError("`things`: applies to segments; give `panoptic` or `instances`, or leave it out")

    @property
    def wants_segments(self) -> bool:
        """True if panoptic segments or instances are wanted."""
        return self.panoptic or self.instances

    def inference_for(self, checkpoint: Checkpoint) -> Inference:
        """Return how images are scored by a checkpoint."""
        if self.short_side is not None or self.long_side is not None:
            return self._inference
        known = lookup_published(str(checkpoint.recipe.get("data", {}).get("dataset", "")))
        short, long = (known[0].published_size if known else None) or (None, None)
        return replace(self._inference, short_side=short, long_side=long)

    def check_framework(self, framework: str, source: object) -> None:
        """Raise InputError if segments are asked for and a framework does not find any.

        Args:
            framework: Its name.
            source: Where the checkpoint is from, for the message.
        """
        if self.wants_segments and not _finds_segments(framework):
            able = [name for name in list_frameworks() if _finds_segments(name)]
            raise InputError(
                f"{source}: {framework} classifies pixels and finds no segments; `{self._segments_option}` needs a run "
                f"of {' or '.join(able)}"
            )

    @property
    def _segments_option(self) -> str:
        return "panoptic" if self.panoptic else "instances"

    @property
    def _inference(self) -> Inference:
        return Inference(self.short_side or None, self.long_side, self.window, self.stride, self.flip)


def fit_to_memory(inference: Inference, size: tuple[int, int], *, whole: bool) -> Inference:
    """Return inference that takes acceptable memory for an image: in windows, or at a smaller size.

    Args:
        inference: How images are scored.
        size: Height and width of the image.
        whole: The image must be scored in one piece, as panoptic and instance inference need it.
    """
    height, width = inference.size(*size)
    if inference.window is not None or height * width <= LARGEST:
        return inference
    if not whole:
        return replace(inference, window=DEFAULT_WINDOW)
    return replace(inference, long_side=max(1, int(max(height, width) * math.sqrt(LARGEST / (height * width)))))


def describe_fit(name: object, size: tuple[int, int], fitted: Inference) -> str:
    """Return a notice that an image is too large to be scored in one piece at its size.

    Args:
        name: The image, for the message.
        size: Its height and width.
        fitted: What `fit_to_memory` returned.
    """
    limit = f"{LARGEST / 2**20:.0f} megapixels"
    if fitted.window is None:
        (height, width), (reduced_height, reduced_width) = size, fitted.size(*size)
        return (
            f"{name}: {width}x{height} is reduced to {reduced_width}x{reduced_height}, as are all images beyond "
            f"{limit} when segments are wanted; `long_side` chooses the size"
        )
    height, width = replace(fitted, window=None).size(*size)
    return (
        f"{name}: {width}x{height} is scored in windows of {fitted.window} pixels, as are all images beyond {limit}; "
        "`window` chooses their size, `long_side` reduces the image instead"
    )


@contextmanager
def explain_memory_errors(name: object, *, whole: bool) -> Iterator[None]:
    """Turn errors about a lack of memory into an InputError that says what to do.

    Args:
        name: The image, for the message.
        whole: The image must be scored in one piece.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error):
            remedy = "reduce it (`long_side=1024`)" if whole else "use windows (`window=512`), or `long_side`"
            raise InputError(f"{name}: not enough memory for this image; {remedy}") from error
        raise


def _finds_segments(framework: str) -> bool:
    return hasattr(framework_class(framework), "panoptic_from_scores")
