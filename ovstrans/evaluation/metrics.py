"""The confusion matrix of a segmentation, and the measures that follow from it.

All measures are in percent. Two denominators of mIoU are in use and differ where some class is
predicted that never occurs in the ground truth; a report names the one it used and gives the mean by both:

present  classes that occur in the ground truth (detectron2 since July 2022, FC-CLIP)
union    classes that occur there or are predicted anywhere, the latter with IoU 0 (DeOP)

Shapes: `H W` label map, `K` classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ovstrans.errors import InputError

DENOMINATORS = ("present", "union")

_CHUNK_PIXELS = 2**18


class Confusion:
    """Counts of pixels by true and predicted class.

    counts: int64 [K, K], row = ground truth, column = prediction.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        if num_classes < 1:
            raise InputError("evaluation needs at least one class; this dataset has no labels")
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, prediction: Tensor, label: Tensor, *, ignore: int) -> None:
        """Count one or more label maps, integers of one shape; pixels labelled `ignore` count nowhere.

        Works through a quarter of a megapixel at a time: that stays in the cache, and memory does not grow.
        Raises InputError for a label that is neither a class nor `ignore`, ValueError for a prediction
        that is no class; nothing is counted then.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, label {tuple(label.shape)}")
        if label.numel() == 0:
            return
        cells = self.num_classes**2
        found = torch.zeros(cells + 1, dtype=torch.int64, device=self.counts.device)
        guesses, truths = prediction.reshape(-1).split(_CHUNK_PIXELS), label.reshape(-1).split(_CHUNK_PIXELS)
        for guess, truth in zip(guesses, truths, strict=True):
            found += torch.bincount(self._cells(guess, truth, ignore), minlength=cells + 1)
        self.counts += found[:cells].view_as(self.counts)

    def _cells(self, prediction: Tensor, label: Tensor, ignore: int) -> Tensor:
        """The flat index in `counts` of every pixel, int32, or one behind the last where it is ignored."""
        guess, truth = _narrow(prediction, self.counts.device), _narrow(label, self.counts.device)
        ignored = truth == ignore
        guess, truth = guess.masked_fill(ignored, 0), truth.masked_fill(ignored, 0)
        value = _outside(truth, self.num_classes)
        if value is not None:
            raise InputError(f"label value {value} is none of the {self.num_classes} classes and not ignored")
        value = _outside(guess, self.num_classes)
        if value is not None:
            raise ValueError(f"predicted class {value} is none of {self.num_classes}")
        return truth.mul_(self.num_classes).add_(guess).masked_fill_(ignored, self.num_classes**2)

    def merge(self, other: Confusion) -> None:
        """Add the counts of another part of the data."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"{other.num_classes} classes do not merge into {self.num_classes}")
        self.counts += other.counts.to(self.counts.device)

    def all_reduce(self) -> None:
        """Sum over the ranks of torch.distributed, where it runs."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.counts)


def metrics(
    confusion: Confusion | Tensor,
    names: Sequence[str] | None = None,
    *,
    novel: Collection[int] = (),
    denominator: str = "present",
) -> dict[str, Any]:
    """The measures of a confusion matrix, in percent; None where there is nothing to measure.

    names: of the classes, for `per_class`; their indices otherwise.  novel: classes whose mean is
    reported apart.

    Returns mIoU; denominator; mIoU_present and mIoU_union (mIoU by either denominator); classes (how many
    entered mIoU); per_class, a list in index order of {name, iou (None where the class does not enter
    mIoU), accuracy (part of its pixels recognised, None where it has none), pixels (of ground truth),
    predicted (pixels), novel}; fwIoU (IoU weighted by pixels of ground truth); mACC (mean accuracy of the
    present classes); pACC (pixels right); base, novel (their mIoU) and hIoU (harmonic mean of both), None
    without a split.
    """
    if denominator not in DENOMINATORS:
        raise InputError(f"denominator {denominator!r}: unknown; use {' or '.join(DENOMINATORS)}")
    counts = (confusion.counts if isinstance(confusion, Confusion) else confusion).cpu()
    labels = [str(index) for index in range(len(counts))] if names is None else list(names)
    if len(labels) != len(counts):
        raise ValueError(f"{len(labels)} names for {len(counts)} classes")
    right, truth, predicted = (part.double() for part in (counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)))
    iou = 100 * right / (truth + predicted - right).clamp(min=1)
    accuracy = 100 * right / truth.clamp(min=1)
    present = truth > 0
    entering = {"present": present, "union": present | (predicted > 0)}
    chosen = entering[denominator]
    pixels = float(truth.sum())

    is_novel = torch.zeros(len(counts), dtype=torch.bool)
    is_novel[list(novel)] = True
    base_iou = _mean(iou, chosen & ~is_novel) if novel else None
    novel_iou = _mean(iou, chosen & is_novel) if novel else None
    return {
        "mIoU": _mean(iou, chosen),
        "denominator": denominator,
        "mIoU_present": _mean(iou, entering["present"]),
        "mIoU_union": _mean(iou, entering["union"]),
        "classes": int(chosen.sum()),
        "per_class": [
            {
                "name": name,
                "iou": float(iou[index]) if chosen[index] else None,
                "accuracy": float(accuracy[index]) if present[index] else None,
                "pixels": int(truth[index]),
                "predicted": int(predicted[index]),
                "novel": bool(is_novel[index]),
            }
            for index, name in enumerate(labels)
        ],
        "fwIoU": float((truth * iou).sum() / pixels) if pixels else None,
        "mACC": _mean(accuracy, present),
        "pACC": float(100 * right.sum() / pixels) if pixels else None,
        "base": base_iou,
        "novel": novel_iou,
        "hIoU": harmonic_mean(base_iou, novel_iou),
    }


def harmonic_mean(first: float | None, second: float | None) -> float | None:
    """2ab / (a + b); 0 where both are 0, None where either is None."""
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second else 0.0


def _mean(values: Tensor, where: Tensor) -> float | None:
    return float(values[where].mean()) if where.any() else None


def _narrow(values: Tensor, device: torch.device) -> Tensor:
    """The values as int32 on the device; those that do not fit become the nearest that does."""
    limits = torch.iinfo(torch.int32)
    if values.dtype == torch.int64:
        low, high = (int(bound) for bound in values.aminmax())
        if low < limits.min or high > limits.max:  # rare: clamping costs as much as counting
            values = values.clamp(limits.min, limits.max)
    return values.to(device, torch.int32)


def _outside(values: Tensor, count: int) -> int | None:
    """A value that is not in 0..count-1, or None."""
    low, high = (int(bound) for bound in values.aminmax())
    return low if low < 0 else high if high >= count else None
