"""From an image to the class of each of its pixels, as papers evaluate: resized, scored, compared at full size.

Memory does not grow with the number of classes times pixels: scores are made and compared a band of
rows at a time, see `frameworks.scores`.

Shapes: `B` batch, `H W` image, `h w` evaluation size, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ovstrans.clip.precision import full_precision
from ovstrans.datasets.augment import compute_evaluation_size, resize_image
from ovstrans.datasets.sample import Segment
from ovstrans.errors import InputError
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.frameworks.scores import FlippedScores, MapScores, MeanScores, Scores, WindowScores

if TYPE_CHECKING:
    from ovstrans.clip.text import TextClassifier

ORDERS = ("published", "masks", "scores")

BATCH_PIXELS = 2**20
"""Pixels of a batch, if it has more than one image: about one of the published 800 x 1333."""


@dataclass(frozen=True)
class Inference:
    """How an image is looked at.

    short_side, long_side: what it is resized to, in pixels: its short side to the one, its long side to at most
    the other; None for its own.  window: side of square windows that it is scored in; None for whole images.
    stride: from window to window, 2/3 of it unless given; windows at the border are moved inside.
    flip: the mean with the scores of its mirror image.  amp: autocast of the forward pass to this type.
    order: of frameworks that sum over masks: "masks" resizes those and then sums, "scores" resizes the sums;
    "published" is what each framework does on the data at hand. With windows always the sums.

    Raises InputError for sizes that are none.
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
                raise InputError(f"inference: {name.replace('_', ' ')} is {value}; at least 1 pixel is needed")
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise InputError(f"inference: a stride of {self.stride} needs a window at least as large")
        if self.order not in ORDERS:
            raise InputError(f"inference: order {self.order!r}: unknown; use {', '.join(ORDERS)}")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image is resized to."""
        return compute_evaluation_size(height, width, self.short_side, self.long_side)

    def masks_first(self, framework: Any, panoptic: bool) -> bool:
        """Whether masks are resized before their class sum; panoptic: whether the data have panoptic truth."""
        if self.order == "published":
            return panoptic and bool(getattr(framework, "panoptic_masks_first", False))
        return self.order == "masks"

    def as_json(self) -> dict[str, Any]:
        """For reports: the fields, the type by its name."""
        amp = None if self.amp is None else str(self.amp).removeprefix("torch.")
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "amp": amp}


@dataclass(frozen=True)
class Prediction:
    """What is seen in an image, on the CPU.

    classes: int64 [H, W].  confidence: float32 [H, W], the winner's share in 0..1, or None: of frameworks that
    sum over masks its part of all classes' scores, of the others its probability in a softmax over classes.
    panoptic: segment map int32 [H, W] (0: none) and its segments.  instances: the things, the surest first; both None
    unless asked for.
    """

    classes: Tensor
    confidence: Tensor | None = None
    panoptic: tuple[Tensor, list[Segment]] | None = None
    instances: Instances | None = None


def predict(
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
) -> Prediction:
    """The class of every pixel of an image uint8 [3, H, W], at its own size or at `size` (height, width).

    framework: on `device` already; used in eval mode and left in the mode it was in.  text: the classifier
    of the classes to tell apart; None for those it was trained with.
    panoptic, instances: the classes that are things, where those are asked for of a `MaskFramework`.

    Raises InputError where the scores are not numbers, or segments are asked for of windows or with a mirror image.
    """
    segments = panoptic is not None or instances is not None
    if segments and (inference.window or inference.flip):
        raise InputError("segments are of whole images as they are; look without windows and flip")
    height, width = (int(side) for side in image.shape[-2:])
    with evaluating(framework):
        resized = resize_image(image, inference.size(height, width))
        scores = score_images(framework, resized[None], text, device, inference)[0]
        found = scores.at(size or (height, width), masks_first=inference.masks_first(framework, panoptic=False))
        seen = predict_from(found, confidence=confidence)
        if not segments:
            return seen
        with torch.inference_mode():
            if panoptic is not None:
                segment_map, listed = framework.panoptic_from_scores(found, text, things=panoptic)
                seen = replace(seen, panoptic=(segment_map.cpu(), listed))
            if instances is not None:
                things: Instances = framework.instances_from_scores(found, text, things=instances)
                on_cpu = Instances(things.scores.cpu(), things.classes.cpu(), things.masks.cpu())
                seen = replace(seen, instances=on_cpu)
        return seen


def predict_from(scores: Scores, *, confidence: bool = False) -> Prediction:
    """The best class of every pixel, at the size of the scores; of equal ones the lower.

    Raises InputError where the scores are not numbers.
    """
    broken = torch.zeros((), dtype=torch.bool, device=scores.device)
    parts = []
    with torch.inference_mode(), full_precision(torch.empty(0, device=scores.device)):
        for first, last in scores.bands():
            best = scores.best(first, last, share=confidence)
            broken |= best.values.isnan().any()
            parts.append(best)
    if bool(broken):
        raise InputError("the model's scores are not numbers (NaN); its weights are damaged, or its precision too low")
    classes = torch.cat([part.classes for part in parts]).cpu()
    share = torch.cat([part.share for part in parts if part.share is not None]).cpu() if confidence else None
    return Prediction(classes, share)


def score_images(
    framework: Any,
    images: Tensor,
    text: TextClassifier | None,
    device: torch.device | str,
    inference: Inference,
) -> list[Scores]:
    """Per image its scores, of images uint8 [B, 3, h, w] at evaluation size already."""

    def look(pixels: Tensor) -> list[Scores]:
        """Whole images or windows, uint8 [B, 3, *, *]."""
        with torch.inference_mode(), _autocast(device, inference.amp):
            return list(_scores(framework, pixels.to(device).float().div_(255), text))

    def whole(pixels: Tensor) -> list[Scores]:
        if inference.window is None:
            return look(pixels)
        return [_windowed(image, inference, look) for image in pixels]

    found = whole(images)
    if not inference.flip:
        return found
    mirrored = [FlippedScores(scores) for scores in whole(images.flip(-1))]
    return [MeanScores(pair) for pair in zip(found, mirrored, strict=True)]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side of `length`: every `stride`, the last one moved to end with the side."""
    if window >= length:
        return [0]
    return [*range(0, length - window, stride), length - window]


def batch_room(size: tuple[int, int], most: int) -> int:
    """How many images of a size are looked at together, at most `most`."""
    return max(1, min(most, BATCH_PIXELS // (size[0] * size[1])))


@contextmanager
def evaluating(framework: Any) -> Iterator[None]:
    """Eval mode inside, the mode it was in afterwards."""
    modules = list(framework.modules()) if isinstance(framework, torch.nn.Module) else []
    modes = [module.training for module in modules]
    if modules:
        modules[0].eval()
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training


def _scores(framework: Any, images: Tensor, text: TextClassifier | None) -> Sequence[Scores]:
    """Of anything that has `scores`, as a `Framework` has, or at least `segment`."""
    if hasattr(framework, "scores"):
        return framework.scores(images, text)  # type: ignore[no-any-return]
    size = (int(images.shape[-2]), int(images.shape[-1]))
    return [MapScores(maps, size) for maps in framework.segment(images, text)]


def _windowed(image: Tensor, inference: Inference, look: Callable[[Tensor], list[Scores]]) -> WindowScores:
    """Scores of an image uint8 [3, h, w] from windows of it."""
    assert inference.window is not None
    size = (int(image.shape[-2]), int(image.shape[-1]))
    window = (min(inference.window, size[0]), min(inference.window, size[1]))
    stride = inference.stride or max(1, inference.window * 2 // 3)
    lefts = window_starts(size[1], window[1], stride)
    together = batch_room(window, len(lefts))

    def row(top: int) -> list[Scores]:
        parts = torch.stack([image[:, top : top + window[0], left : left + window[1]] for left in lefts])
        return [scores for part in parts.split(together) for scores in look(part)]

    return WindowScores(size, window, window_starts(size[0], window[0], stride), lefts, row)


def _autocast(device: torch.device | str, amp: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if amp is None else torch.autocast(torch.device(device).type, dtype=amp)
