"""Inference at evaluation size: from an image to the class of each pixel.

As papers evaluate, an image is resized, scored, and compared at its full size. Scores are made and compared a band of
rows at a time (see `frameworks.scores`), so memory does not grow with classes times pixels.

Shapes: `B` batch, `H W` image, `h w` evaluation size, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ovstrans.clip.backbone import full_precision
from ovstrans.costs.estimate import check_forward
from ovstrans.datasets.augment import compute_evaluation_size, resize_image
from ovstrans.datasets.sample import Sample, Segment
from ovstrans.environment import eval_mode
from ovstrans.errors import InputError
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.frameworks.scores import FlippedScores, MapScores, MeanScores, Scores, WindowScores
from ovstrans.progress import ProgressCallback, ProgressReporter

if TYPE_CHECKING:
    from ovstrans.clip.text import TextClassifier

ORDERS = ("published", "masks", "scores")

_FEW = 8
"""Windows of an image up to which their progress is not told."""

BATCH_PIXELS = 2**20
"""Upper bound on the pixels of a batch of more than one image; about one image of the published 800 x 1333."""


@dataclass(frozen=True)
class Inference:
    """Options of scoring images: their size, sliding windows, flip, precision.

    Attributes:
        short_side: Resize images to this short side in pixels; None for their own.
        long_side: Upper bound on the long side of the resized image; None for none.
        window: Side of square sliding windows in pixels; None scores whole images.
        stride: Distance between windows in pixels; None for 2/3 of the window. Windows that would leave the image are
            moved inside.
        flip: Average the scores with those of the mirrored image.
        amp: Autocast the forward pass to this type; None for float32.
        order: For frameworks that sum over masks: "masks" upsamples the masks and then sums, "scores" upsamples the
            sums, "published" does what the framework's authors do on the data at hand. With windows always the sums.

    Raises:
        InputError: If a size or the order is out of range.
    """

    short_side: int | None = None
    long_side: int | None = None
    window: int | None = None
    stride: int | None = None
    flip: bool = False
    amp: torch.dtype | None = None
    order: str = "published"

    def __post_init__(self) -> None:
        for name in ("short_side", "long_side", "window", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"`{name}={value}`: at least 1 pixel is needed")
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise InputError(f"`stride={self.stride}`: needs a `window` at least as large")
        if self.order not in ORDERS:
            raise InputError(f"inference order {self.order!r}: unknown; use {', '.join(ORDERS)}")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image is resized to."""
        return compute_evaluation_size(height, width, self.short_side, self.long_side)

    def upsamples_masks(self, framework: Any, panoptic: bool) -> bool:
        """Return whether masks are upsampled before they are summed over queries.

        Args:
            framework: Its `panoptic_masks_first` says what "published" means.
            panoptic: Whether the data have panoptic ground truth.
        """
        if self.order == "published":
            return panoptic and bool(getattr(framework, "panoptic_masks_first", False))
        return self.order == "masks"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values for reports, `amp` by its name."""
        amp = None if self.amp is None else str(self.amp).removeprefix("torch.")
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "amp": amp}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Inference:
        """Return the settings that `to_json` described."""
        amp = value.get("amp")
        return cls(**{**value, "amp": None if amp is None else getattr(torch, amp)})


@dataclass(frozen=True)
class Prediction:
    """Prediction of a framework for an image; tensors are on the CPU.

    Attributes:
        classes: int64 [H, W], the best class of each pixel.
        confidence: float32 [H, W] in 0..1, or None. For frameworks that sum over masks the best class's share of the
            sum of all class scores, for others its probability in a softmax over the classes.
        panoptic: Segment map int32 [H, W] (0: no segment) and its segments; None unless asked for.
        instances: The things, highest score first; None unless asked for.
    """

    classes: Tensor
    confidence: Tensor | None = None
    panoptic: tuple[Tensor, list[Segment]] | None = None
    instances: Instances | None = None


def predict_image(
    framework: Any,
    image: Tensor,
    text: TextClassifier | None = None,
    *,
    device: torch.device | str = "cpu",
    inference: Inference = Inference(),
    size: tuple[int, int] | None = None,
    confidence: bool = False,
    panoptic: Collection[int] | None = None,
    instances: Collection[int] | None = None,
    masks: Tensor | None = None,
    progress: ProgressCallback | None = None,
    name: str = "image",
) -> Prediction:
    """Predict the class of every pixel of one image.

    Args:
        framework: A `Framework` or anything with its `scores`, on `device` already. It runs in eval mode and is left
            in the mode it was in.
        image: uint8 [3, H, W].
        text: Classifier of the classes to tell apart; None for those the framework was trained with.
        device: Where to compute.
        inference: How the image is scored.
        size: Height and width of the prediction; None for the image's own.
        confidence: Also give each pixel's confidence.
        panoptic: Indices of the classes that are things; not None also gives panoptic segments (of a
            `MaskFramework`).
        instances: Indices of the classes that are things; not None also gives instances (of a `MaskFramework`).
        masks: Masks bool [N, H, W] that the framework is to classify (see `given_masks`); None for its own.
        progress: Told of the windows done, if there are many.
        name: What the progress calls the image.

    Raises:
        InputError: If the scores are NaN, segments are asked for with windows or flip, or masks cannot be taken.
    """
    wants_segments = panoptic is not None or instances is not None
    if wants_segments:
        refuse_windows(inference, "segments")
    height, width = (int(side) for side in image.shape[-2:])
    with in_eval_mode(framework):
        resized = resize_image(image, inference.size(height, width))
        told = _tell_windows(progress, name, inference, (int(resized.shape[-2]), int(resized.shape[-1])))
        scores = score_images(framework, resized[None], text, device, inference, masks=[masks], told=told)[0]
        scores = scores.resize(
            size or (height, width), masks_first=inference.upsamples_masks(framework, panoptic=False)
        )
        prediction = classify_pixels(scores, confidence=confidence)
        if not wants_segments:
            return prediction
        with torch.inference_mode():
            if panoptic is not None:
                segment_map, segments = framework.panoptic_from_scores(scores, text, things=panoptic)
                prediction = replace(prediction, panoptic=(segment_map.cpu(), segments))
            if instances is not None:
                found: Instances = framework.instances_from_scores(scores, text, things=instances)
                on_cpu = Instances(found.scores.cpu(), found.classes.cpu(), found.masks.cpu())
                prediction = replace(prediction, instances=on_cpu)
        return prediction


def refuse_windows(inference: Inference, wanted: str) -> None:
    """Raise InputError for windows or flip, which panoptic and instance inference do not have.

    Args:
        inference: How images are scored.
        wanted: What was asked for, to begin the message with.
    """
    if inference.window or inference.flip:
        raise InputError(f"{wanted}: not possible with windows or a mirrored image; leave out `window` and `flip`")


def classify_pixels(scores: Scores, *, confidence: bool = False) -> Prediction:
    """Choose the best class of every pixel, the lower index of equal ones.

    Args:
        scores: Scores of an image, at the size that is wanted.
        confidence: Also give each pixel's confidence.

    Raises:
        InputError: If the scores are NaN.
    """
    has_nan = torch.zeros((), dtype=torch.bool, device=scores.device)
    classes = torch.empty(scores.size, dtype=torch.int64)
    shares = torch.empty(scores.size) if confidence else None
    with torch.inference_mode(), full_precision(torch.empty(0, device=scores.device)):
        for first, last in scores.bands():
            best = scores.best(first, last, confidence=confidence)
            has_nan |= best.scores.isnan().any()
            classes[first:last] = best.classes
            if shares is not None:
                shares[first:last] = cast(Tensor, best.confidence)
    if bool(has_nan):
        raise InputError("the model's scores are not numbers (NaN); its weights are damaged, or its precision too low")
    return Prediction(classes, shares)


def given_masks(
    framework: Any, name: str, image: Tensor, *, sample: Sample | None = None, ignore: int = 255
) -> Tensor | None:
    """Return the masks that a framework takes beside an image [3, H, W]; see `Framework.given_masks`."""
    if not hasattr(framework, "given_masks"):
        return None
    size = (int(image.shape[-2]), int(image.shape[-1]))
    found: Tensor | None = framework.given_masks(name, size, sample, ignore)
    return found


def score_images(
    framework: Any,
    images: Tensor,
    text: TextClassifier | None,
    device: torch.device | str,
    inference: Inference,
    *,
    masks: Sequence[Tensor | None] = (),
    told: Callable[[int], None] | None = None,
) -> list[Scores]:
    """Score a batch of images.

    Args:
        framework: As for `predict_image`.
        images: uint8 [B, 3, h, w], at evaluation size already.
        text: As for `predict_image`.
        device: Where to compute.
        inference: Windows, flip and precision; its sizes are not used.
        masks: Masks of each image that the framework is to classify, bool [N, *, *]; None for its own.
        told: Called with the number of windows each time that some are scored.

    Returns:
        The scores of each image, of size (h, w).

    Raises:
        InputError: If masks are given with windows, or to a framework that finds its own only.
    """
    given = [each for each in masks if each is not None]
    if given and inference.window is not None:
        raise InputError("given masks: of whole images; leave out `window`")
    if given and not hasattr(framework, "given_masks"):
        raise InputError(f"given masks: {type(framework).__name__} takes none")

    def forward(pixels: Tensor, own: Sequence[Tensor] = ()) -> list[Scores]:
        """Score whole images or windows, uint8 [B, 3, *, *]."""
        with torch.inference_mode(), _autocast(device, inference.amp):
            _check_memory(framework, tuple(pixels.shape), text, device, inference)
            batch = pixels.to(device).float().div_(255)
            return list(framework.scores(batch, text, masks=own) if own else _scores(framework, batch, text))

    def score(pixels: Tensor, own: Sequence[Tensor] = ()) -> list[Scores]:
        if inference.window is None:
            return forward(pixels, own)
        return [_score_windows(image, inference, forward, told) for image in pixels]

    scores = score(images, given)
    if not inference.flip:
        return scores
    mirrored = [FlippedScores(each) for each in score(images.flip(-1), [each.flip(-1) for each in given])]
    return [MeanScores(pair) for pair in zip(scores, mirrored, strict=True)]


def _check_memory(
    framework: Any,
    shape: tuple[int, ...],
    text: TextClassifier | None,
    device: torch.device | str,
    inference: Inference,
) -> None:
    """Refuse images that are too large for the memory before they are scored."""
    if isinstance(framework, torch.nn.Module) and hasattr(framework, "scores"):
        remedy = "lower `short_side` or `long_side`, or score it in windows, `window=512`"
        check_forward(
            framework,
            shape,
            device,
            lambda twin, images: twin.scores(images, text),
            half=inference.amp is not None,
            remedy=remedy if inference.window is None else "lower `window`",
        )


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along a side: every `stride` pixels, the last moved back to end with the side."""
    if window >= length:
        return [0]
    return [*range(0, length - window, stride), length - window]


def images_per_batch(size: tuple[int, int], most: int) -> int:
    """Return how many images of a size (height, width) are scored at once, at most `most`."""
    return max(1, min(most, BATCH_PIXELS // (size[0] * size[1])))


def in_eval_mode(framework: Any) -> AbstractContextManager[None]:
    """Return a context in which a framework that is a module is in eval mode."""
    return eval_mode(framework) if isinstance(framework, torch.nn.Module) else nullcontext()


def _scores(framework: Any, images: Tensor, text: TextClassifier | None) -> Sequence[Scores]:
    """Return the scores of anything with `scores`, as a `Framework` has, or else with `segment`."""
    if hasattr(framework, "scores"):
        return framework.scores(images, text)  # type: ignore[no-any-return]
    size = (int(images.shape[-2]), int(images.shape[-1]))
    return [MapScores(maps, size) for maps in framework.segment(images, text)]


def _score_windows(
    image: Tensor,
    inference: Inference,
    forward: Callable[[Tensor], list[Scores]],
    told: Callable[[int], None] | None,
) -> WindowScores:
    """Return the scores of an image uint8 [3, h, w] made of those of its windows."""
    size = (int(image.shape[-2]), int(image.shape[-1]))
    window, tops, lefts = _place_windows(inference, size)
    together = images_per_batch(window, len(lefts))

    def score_row(top: int) -> list[Scores]:
        found: list[Scores] = []
        for first in range(0, len(lefts), together):
            some = lefts[first : first + together]
            found += forward(torch.stack([image[:, top : top + window[0], left : left + window[1]] for left in some]))
            if told is not None:
                told(len(some))
        return found

    return WindowScores(size, window, tops, lefts, score_row)


def _place_windows(inference: Inference, size: tuple[int, int]) -> tuple[tuple[int, int], list[int], list[int]]:
    """Return height and width of the windows of an image, their first rows and their first columns."""
    assert inference.window is not None
    window = (min(inference.window, size[0]), min(inference.window, size[1]))
    stride = inference.stride or max(1, inference.window * 2 // 3)
    return window, window_starts(size[0], window[0], stride), window_starts(size[1], window[1], stride)


def _tell_windows(
    progress: ProgressCallback | None, name: str, inference: Inference, size: tuple[int, int]
) -> Callable[[int], None] | None:
    """Return what counts the windows of an image of this size; None if they are few."""
    if progress is None or inference.window is None:
        return None
    _, tops, lefts = _place_windows(inference, size)
    total = len(tops) * len(lefts) * (2 if inference.flip else 1)
    return ProgressReporter(progress, f"windows of {name}", total, unit="windows").advance if total > _FEW else None


def _autocast(device: torch.device | str, amp: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if amp is None else torch.autocast(torch.device(device).type, dtype=amp)
