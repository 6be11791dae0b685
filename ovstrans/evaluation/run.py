"""Evaluating a framework on a dataset: images one after another, a confusion matrix at the end.

Predictions are compared at the resolution of the ground truth, whatever size the model saw.

Shapes: `B` batch, `H W` ground truth, `h w` evaluation size, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.data.augment import evaluation_size, resize_image
from ovstrans.data.sample import Dataset, Sample
from ovstrans.errors import InputError, MismatchError
from ovstrans.evaluation.metrics import Confusion, metrics

if TYPE_CHECKING:
    from ovstrans.clip.text import TextClassifier

OnImage = Callable[[int, Sample, Tensor], None]
"""Called with the index, the sample and the predicted classes, int64 [H, W] on the CPU."""

_BATCH_NUMBERS = 2**25
_CHUNK_NUMBERS = 2**24


class Segmenter(Protocol):
    """What is needed of a framework: class scores [B, K, h, w] of images [B, 3, h, w] in [0, 1]."""

    def segment(self, images: Tensor, text: TextClassifier | None = None) -> Tensor: ...


def evaluate(
    framework: Segmenter,
    dataset: Dataset,
    text: TextClassifier | None = None,
    *,
    device: torch.device | str = "cpu",
    size: int | None = None,
    max_size: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    amp: torch.dtype | None = None,
    denominator: str = "present",
    on_image: OnImage | None = None,
) -> dict[str, Any]:
    """The report entry of one dataset: dataset, split, images, size, and the entries of `metrics`.

    framework: on `device` already; evaluated in eval mode and left in the mode it was in.
    text: the classifier of the dataset's vocabulary; None where the framework was trained with it.
    size, max_size: short and long side that images are resized to; None keeps their own.
    limit: only the first so many images.  batch_size: of neighbours of one size, fewer if large.
    amp: autocast to this type.  Under torch.distributed each rank takes its share, all return the sum.

    Raises InputError for a dataset without labels or images, MismatchError where the framework scores
    another number of classes than the dataset has.
    """
    total = len(dataset) if limit is None else min(limit, len(dataset))
    if total < 1:
        raise InputError(f"{dataset.name}:{dataset.split}: no image to evaluate on")
    vocabulary = dataset.vocabulary
    confusion = Confusion(len(vocabulary), device=device)
    rank, world = _rank()
    with _evaluating(framework), torch.inference_mode(), _autocast(device, amp):
        for batch in _batches(dataset, range(rank, total, world), batch_size, size, max_size):
            scores = _scores(framework, torch.stack([image for _, _, image in batch]), text, device)
            if scores.shape[1] != len(vocabulary):
                raise MismatchError(
                    f"the model scores {scores.shape[1]} classes, {dataset.name} has {len(vocabulary)}; "
                    "give it the text embeddings of this dataset's vocabulary"
                )
            for (index, sample, _), score in zip(batch, scores, strict=True):
                label = _label(sample, dataset)
                prediction = classes_at(score, (int(label.shape[0]), int(label.shape[1])))
                confusion.add(prediction, label.to(prediction.device), ignore=dataset.ignore)
                if on_image is not None:
                    on_image(index, sample, prediction.cpu())
    confusion.all_reduce()
    report = {"dataset": dataset.name, "split": dataset.split, "images": total, "size": size}
    return report | metrics(confusion, vocabulary.names, novel=vocabulary.novel, denominator=denominator)


def predict(
    framework: Segmenter,
    image: Tensor,
    text: TextClassifier | None = None,
    *,
    device: torch.device | str = "cpu",
    size: int | None = None,
    max_size: int | None = None,
    amp: torch.dtype | None = None,
) -> Tensor:
    """The predicted class of every pixel, int64 [H, W] on the CPU, of an image uint8 [3, H, W]."""
    height, width = (int(side) for side in image.shape[-2:])
    with _evaluating(framework), torch.inference_mode(), _autocast(device, amp):
        resized = resize_image(image, evaluation_size(height, width, size, max_size))
        scores = _scores(framework, resized[None], text, device)
        return classes_at(scores[0], (height, width)).cpu()


def classes_at(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The best class of every pixel at another size: scores [K, h, w] to int64 [H, W].

    The scores, not the classes, are resized (bilinear), a few classes at a time, so that K full-size
    maps never exist at once. Equal scores go to the lower class.
    """
    if tuple(scores.shape[-2:]) == size:
        return scores.argmax(dim=0)
    step = max(1, _CHUNK_NUMBERS // (size[0] * size[1]))
    best = torch.full(size, -torch.inf, device=scores.device)
    classes = torch.zeros(size, dtype=torch.int64, device=scores.device)
    for first in range(0, len(scores), step):
        part = scores[None, first : first + step].float()
        part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)[0]
        value, index = part.max(dim=0)
        better = value > best
        best = torch.where(better, value, best)
        classes = torch.where(better, index + first, classes)
    return classes


def _batches(
    dataset: Dataset, indices: Sequence[int], batch_size: int, size: int | None, max_size: int | None
) -> Iterator[list[tuple[int, Sample, Tensor]]]:
    """Neighbours whose images resize to one size: index, sample, image uint8 [3, h, w]."""
    held: list[tuple[int, Sample, Tensor]] = []
    for index in indices:
        sample = dataset[index]
        height, width = (int(side) for side in sample.image.shape[-2:])
        shape = evaluation_size(height, width, size, max_size)
        room = min(batch_size, _BATCH_NUMBERS // (len(dataset.vocabulary) * shape[0] * shape[1]))
        if held and (len(held) >= room or held[0][2].shape[-2:] != shape):
            yield held
            held = []
        held.append((index, sample, resize_image(sample.image, shape)))
    if held:
        yield held


def _scores(framework: Segmenter, images: Tensor, text: TextClassifier | None, device: torch.device | str) -> Tensor:
    """Class scores [B, K, h, w] of uint8 images [B, 3, h, w]; InputError where they are NaN."""
    scores = framework.segment(images.to(device).float().div_(255), text)
    if bool(scores.sum().isnan()):
        raise InputError("the model's scores are not numbers (NaN); its weights are damaged, or its precision too low")
    return scores


def _label(sample: Sample, dataset: Dataset) -> Tensor:
    if sample.label is None:
        raise InputError(f"{dataset.name}:{dataset.split}: {sample.name} has no label; evaluate on labelled data")
    return sample.label


class _evaluating(AbstractContextManager["_evaluating"]):
    """Eval mode inside, the mode it was in afterwards."""

    def __init__(self, framework: Any) -> None:
        self.module = framework if isinstance(framework, torch.nn.Module) else None
        self.modes = {m: m.training for m in self.module.modules()} if self.module is not None else {}

    def __enter__(self) -> _evaluating:
        if self.module is not None:
            self.module.eval()
        return self

    def __exit__(self, *_: object) -> None:
        for module, training in self.modes.items():
            module.training = training


def _autocast(device: torch.device | str, amp: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if amp is None else torch.autocast(torch.device(device).type, dtype=amp)


def _rank() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
