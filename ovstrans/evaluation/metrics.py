"""The confusion matrix of a segmentation, and the metrics computed from it.

All metrics are in percent. Two denominators of mIoU are in use. They differ where a class is predicted that never
occurs in the ground truth; `Metrics` names the one it used and has the mean by both:

present  classes that occur in the ground truth (detectron2 since July 2022, FC-CLIP)
union    classes that occur there or are predicted anywhere, the latter with IoU 0 (DeOP)

Shapes: `H W` label map, `K` classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ovstrans.errors import InputError

DENOMINATORS = ("present", "union")

_CHUNK_PIXELS = 2**18


class ConfusionMatrix:
    """Counts pixels by true and predicted class.

    Args:
        num_classes: K.
        device: Where to count.

    Attributes:
        counts: int64 [K, K]; a row is a true class, a column a predicted one.

    Raises:
        InputError: If there is no class.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        if num_classes < 1:
            raise InputError("evaluation needs at least one class; this dataset has no labels")
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, prediction: Tensor, label: Tensor, *, ignore: int) -> None:
        """Count the pixels of one or more label maps.

        Works on a quarter of a megapixel at a time, which fits the CPU's cache and bounds memory. If it raises,
        nothing is counted.

        Args:
            prediction: Predicted classes, integers of any shape.
            label: True classes, integers of the same shape.
            ignore: Label of pixels to leave out.

        Raises:
            InputError: If a label is neither a class nor `ignore`.
            ValueError: If a predicted class does not exist, or the shapes differ.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, label {tuple(label.shape)}")
        if label.numel() == 0:
            return
        cells = self.num_classes**2
        found = torch.zeros(cells + 1, dtype=torch.int64, device=self.counts.device)
        predictions = torch.split(prediction.reshape(-1), _CHUNK_PIXELS)
        labels = torch.split(label.reshape(-1), _CHUNK_PIXELS)
        for predicted, true in zip(predictions, labels, strict=True):
            found += torch.bincount(self._cells(predicted, true, ignore), minlength=cells + 1)
        self.counts += found[:cells].view_as(self.counts)

    def _cells(self, prediction: Tensor, label: Tensor, ignore: int) -> Tensor:
        """Return each pixel's flat index in `counts`, int32; K*K (one past the last) for ignored pixels."""
        predicted, true = _to_int32(prediction, self.counts.device), _to_int32(label, self.counts.device)
        ignored = true == ignore
        predicted, true = predicted.masked_fill(ignored, 0), true.masked_fill(ignored, 0)
        value = _value_outside(true, self.num_classes)
        if value is not None:
            raise InputError(f"label value {value} is none of the {self.num_classes} classes and not ignored")
        value = _value_outside(predicted, self.num_classes)
        if value is not None:
            raise ValueError(f"predicted class {value} is none of {self.num_classes}")
        return true.mul_(self.num_classes).add_(predicted).masked_fill_(ignored, self.num_classes**2)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another part of the data."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"{other.num_classes} classes do not merge into {self.num_classes}")
        self.counts += other.counts.to(self.counts.device)

    def all_reduce(self) -> None:
        """Sum the counts over all ranks if torch.distributed is initialized."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.counts)


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class.

    Attributes:
        name: Display name of the class.
        iou: Intersection over union in percent; None if the class does not enter mIoU.
        accuracy: Percentage of its pixels that were recognised; None if it has no pixel in the ground truth.
        pixels: Pixels in the ground truth.
        predicted: Pixels predicted as this class.
        novel: Whether training never labelled the class.
    """

    name: str
    iou: float | None
    accuracy: float | None
    pixels: int
    predicted: int
    novel: bool


@dataclass(frozen=True)
class Metrics:
    """Metrics of a semantic segmentation, in percent; None where there is nothing to measure.

    Attributes:
        miou: Mean IoU by `denominator`.
        denominator: "present" or "union": the classes that enter `miou`.
        miou_present: Mean IoU over the classes in the ground truth.
        miou_union: Mean IoU over the classes in the ground truth or among the predictions.
        num_classes: Number of classes that enter `miou`.
        per_class: Metrics of each class, in index order.
        fwiou: IoU weighted by the pixels of each class (frequency-weighted IoU).
        macc: Mean accuracy over the classes in the ground truth.
        pacc: Percentage of pixels that are right.
        miou_base: Mean IoU over the base classes; None without a base/novel split.
        miou_novel: Mean IoU over the novel classes; None without a split.
        hiou: Harmonic mean of `miou_base` and `miou_novel`; None without a split.
    """

    miou: float | None
    denominator: str
    miou_present: float | None
    miou_union: float | None
    num_classes: int
    per_class: tuple[ClassMetrics, ...]
    fwiou: float | None
    macc: float | None
    pacc: float | None
    miou_base: float | None
    miou_novel: float | None
    hiou: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the entries of a report: plain values under the names of the literature."""
        values = {key: getattr(self, name) for name, key in _JSON_KEYS.items()}
        return {**values, "per_class": [asdict(each) for each in self.per_class]}


_JSON_KEYS = {
    "miou": "mIoU",
    "denominator": "denominator",
    "miou_present": "mIoU_present",
    "miou_union": "mIoU_union",
    "num_classes": "classes",
    "per_class": "per_class",
    "fwiou": "fwIoU",
    "macc": "mACC",
    "pacc": "pACC",
    "miou_base": "base",
    "miou_novel": "novel",
    "hiou": "hIoU",
}
"""Attribute of `Metrics` to its key in a report, in the report's order."""


def parse_metrics(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Metrics` from what `Metrics.to_json` wrote.

    Raises:
        KeyError, TypeError: If it is something else.
    """
    values = {name: value[key] for name, key in _JSON_KEYS.items()}
    return {**values, "per_class": tuple(ClassMetrics(**each) for each in value["per_class"])}


def compute_metrics(
    confusion: ConfusionMatrix | Tensor,
    names: Sequence[str] | None = None,
    *,
    novel: Collection[int] = (),
    denominator: str = "present",
) -> Metrics:
    """Compute the metrics of a confusion matrix.

    Args:
        confusion: The matrix, or its counts [K, K].
        names: Names of the K classes; their indices if None.
        novel: Indices of the classes whose mean is reported apart.
        denominator: "present" or "union", see the module's text.

    Raises:
        InputError: If the denominator is unknown.
    """
    if denominator not in DENOMINATORS:
        raise InputError(f"`denominator={denominator}`: unknown; use {' or '.join(DENOMINATORS)}")
    counts = (confusion.counts if isinstance(confusion, ConfusionMatrix) else confusion).cpu()
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
    miou_base = _mean(iou, chosen & ~is_novel) if novel else None
    miou_novel = _mean(iou, chosen & is_novel) if novel else None
    return Metrics(
        miou=_mean(iou, chosen),
        denominator=denominator,
        miou_present=_mean(iou, entering["present"]),
        miou_union=_mean(iou, entering["union"]),
        num_classes=int(chosen.sum()),
        per_class=tuple(
            ClassMetrics(
                name=name,
                iou=float(iou[index]) if chosen[index] else None,
                accuracy=float(accuracy[index]) if present[index] else None,
                pixels=int(truth[index]),
                predicted=int(predicted[index]),
                novel=bool(is_novel[index]),
            )
            for index, name in enumerate(labels)
        ),
        fwiou=float((truth * iou).sum() / pixels) if pixels else None,
        macc=_mean(accuracy, present),
        pacc=float(100 * right.sum() / pixels) if pixels else None,
        miou_base=miou_base,
        miou_novel=miou_novel,
        hiou=harmonic_mean(miou_base, miou_novel),
    )


def harmonic_mean(first: float | None, second: float | None) -> float | None:
    """Return 2ab / (a + b); 0 if both are 0, None if either is None."""
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second else 0.0


def _mean(values: Tensor, where: Tensor) -> float | None:
    return float(values[where].mean()) if where.any() else None


def _to_int32(values: Tensor, device: torch.device) -> Tensor:
    """Return the values as int32 on the device, clamped to its range."""
    limits = torch.iinfo(torch.int32)
    if values.dtype == torch.int64:
        low, high = (int(bound) for bound in values.aminmax())
        if low < limits.min or high > limits.max:  # rare: clamping costs as much as counting
            values = values.clamp(limits.min, limits.max)
    return values.to(device, torch.int32)


def _value_outside(values: Tensor, count: int) -> int | None:
    """Return a value that is not in 0..count-1, or None if there is none."""
    low, high = (int(bound) for bound in values.aminmax())
    return low if low < 0 else high if high >= count else None
