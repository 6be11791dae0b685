"""The confusion matrix of a segmentation, and the measures that follow from it.

All measures are in percent. Two denominators of mIoU are in use and differ where some class never
occurs in the ground truth; a report names the one it used:

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

        Raises InputError for a label that is neither a class nor `ignore`, ValueError for a prediction
        that is no class.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, label {tuple(label.shape)}")
        counted = label != ignore
        truth = label[counted].to(self.counts.device, torch.int64)
        guess = prediction[counted].to(self.counts.device, torch.int64)
        if truth.numel() == 0:
            return
        k = self.num_classes
        low, high = (int(value) for value in truth.aminmax())
        if low < 0 or high >= k:
            raise InputError(f"label value {low if low < 0 else high} is none of the {k} classes and not ignored")
        low, high = (int(value) for value in guess.aminmax())
        if low < 0 or high >= k:
            raise ValueError(f"predicted class {low if low < 0 else high} is none of {k}")
        self.counts += torch.bincount(truth * k + guess, minlength=k * k).view(k, k)

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

    Returns mIoU; denominator; classes (how many entered mIoU); per_class, a list of {name, iou, pixels}
    in index order (iou None where the class does not enter mIoU); fwIoU (IoU weighted by pixels of ground
    truth); mACC (mean over present classes of the part recognised); pACC (pixels right); base, novel
    (their mIoU) and hIoU (harmonic mean of both), None without a split.
    """
    if denominator not in DENOMINATORS:
        raise InputError(f"denominator {denominator!r}: unknown; use {' or '.join(DENOMINATORS)}")
    counts = confusion.counts if isinstance(confusion, Confusion) else confusion
    counts = counts.to("cpu", torch.float64)
    right, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    union = truth + predicted - right
    iou = 100 * right / union.clamp(min=1)
    present = truth > 0
    entering = present if denominator == "present" else union > 0
    pixels = float(truth.sum())

    is_novel = torch.zeros(len(counts), dtype=torch.bool)
    is_novel[list(novel)] = True
    base_iou = _mean(iou, entering & ~is_novel) if novel else None
    novel_iou = _mean(iou, entering & is_novel) if novel else None
    labels = [str(index) for index in range(len(counts))] if names is None else list(names)
    return {
        "mIoU": _mean(iou, entering),
        "denominator": denominator,
        "classes": int(entering.sum()),
        "per_class": [
            {"name": name, "iou": float(iou[index]) if entering[index] else None, "pixels": int(truth[index])}
            for index, name in enumerate(labels)
        ],
        "fwIoU": float((truth * iou).sum() / pixels) if pixels else None,
        "mACC": _mean(100 * right / truth.clamp(min=1), present),
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
