"""Panoptic quality (PQ): how well predicted segments match the true ones, class by class.

A predicted and a true segment of the same class match if their IoU exceeds 1/2; each has at most one match. For a
class with TP matches, FP unmatched predictions and FN unmatched true segments

    PQ = sum of the matches' IoU / (TP + FP/2 + FN/2) = SQ * RQ
    SQ = sum of the matches' IoU / TP,   RQ = TP / (TP + FP/2 + FN/2)

(Kirillov et al., Panoptic Segmentation, CVPR 2019, eq. 1). Void and crowds are treated as in panopticapi, COCO's
evaluator: void pixels, those of no true segment, do not count in the union of a match; an unmatched prediction is no
FP if more than half of it lies on void and on a crowd of its class; a crowd is neither matched nor missed.

Shapes: `H W` ground truth, `K` classes, `T` true and `P` predicted segments of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovstrans.datasets.sample import Segment, get_ignore_label
from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Quality:
    """Panoptic, segmentation and recognition quality in percent; None where there is nothing to measure."""

    pq: float | None
    sq: float | None
    rq: float | None


@dataclass(frozen=True)
class ClassQuality:
    """Panoptic quality of one class.

    Attributes:
        name: Display name of the class.
        isthing: Whether the class is countable.
        pq: Panoptic quality in percent; None if the class is neither in the ground truth nor predicted. `sq` and `rq`
            likewise.
        sq: Segmentation quality.
        rq: Recognition quality.
        tp: Matches.
        fp: Unmatched predictions.
        fn: Unmatched true segments.
    """

    name: str
    isthing: bool
    pq: float | None
    sq: float | None
    rq: float | None
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True)
class PanopticResult:
    """Panoptic quality on a dataset: means over the classes that are in the ground truth or predicted.

    Attributes:
        all: Means over all classes.
        things: Means over the countable classes.
        stuff: Means over the other classes.
        num_classes: Number of classes that enter `all`.
        num_things: Number of classes that enter `things`.
        num_stuff: Number of classes that enter `stuff`.
        per_class: Quality of each class, in index order.
    """

    all: Quality
    things: Quality
    stuff: Quality
    num_classes: int
    num_things: int
    num_stuff: int
    per_class: tuple[ClassQuality, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a report: PQ, SQ, RQ, the same with _th for things and _st for stuff, and the rest."""
        means = {
            f"{key.upper()}{suffix}": value
            for name, suffix in _GROUPS.items()
            for key, value in asdict(getattr(self, name)).items()
        }
        counts = {"classes": self.num_classes, "things": self.num_things, "stuff": self.num_stuff}
        return {**means, **counts, "per_class": [asdict(each) for each in self.per_class]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PanopticResult:
        """Return the result that `to_json` described; KeyError or TypeError if it is something else."""
        groups = {
            name: Quality(*(value[f"{key}{suffix}"] for key in ("PQ", "SQ", "RQ"))) for name, suffix in _GROUPS.items()
        }
        return cls(
            **groups,
            num_classes=value["classes"],
            num_things=value["things"],
            num_stuff=value["stuff"],
            per_class=tuple(ClassQuality(**each) for each in value["per_class"]),
        )


_GROUPS = {"all": "", "things": "_th", "stuff": "_st"}
"""Attribute of `PanopticResult` to the suffix of its keys in a report."""


class PanopticQuality:
    """Accumulates matches of segments over images.

    Args:
        vocabulary: The classes, with the countable ones as its `things`.
        device: Where the sums are kept.

    Attributes:
        stats: float64 [4, K]: sum of the matches' IoU, TP, FP, FN.

    Raises:
        InputError: If the vocabulary is empty.
    """

    def __init__(self, vocabulary: Vocabulary, *, device: torch.device | str = "cpu") -> None:
        if not len(vocabulary):
            raise InputError("evaluation needs at least one class; this dataset has no labels")
        self.vocabulary = vocabulary
        self._ignore = get_ignore_label(len(vocabulary))
        self.stats = torch.zeros(4, len(vocabulary), dtype=torch.float64, device=device)

    def add(
        self,
        segment_map: Tensor,
        segments: Sequence[Segment],
        truth_map: Tensor,
        truth_segments: Sequence[Segment],
    ) -> None:
        """Count the segments of one image.

        A segment of the ignore label is void. A listed true segment without pixels counts as missed; a listed
        prediction without pixels does not count.

        Args:
            segment_map: Predicted segment ids, integers [H, W]; 0 is no segment.
            segments: The predicted segments. Areas are counted in the maps, not taken from here.
            truth_map: True segment ids, integers [H, W].
            truth_segments: The true segments.

        Raises:
            InputError: If a true id is not listed, listed twice, or of no class.
            ValueError: If a predicted id is, or the maps differ in shape.
        """
        if segment_map.shape != truth_map.shape:
            raise ValueError(f"prediction is {tuple(segment_map.shape)}, ground truth {tuple(truth_map.shape)}")
        predicted_ids, true_ids, lengths = _runs(segment_map, truth_map)
        true, rows = self._rows(true_ids, truth_segments, "ground truth", InputError)
        predicted, columns = self._rows(predicted_ids, segments, "prediction", ValueError)
        shape = (len(true) + 1, len(predicted) + 1)
        cells = rows * shape[1] + columns
        overlap = np.bincount(cells, weights=lengths, minlength=shape[0] * shape[1]).reshape(shape)
        self._count(overlap, true, predicted)

    def all_reduce(self) -> None:
        """Sum over all ranks if torch.distributed is initialized."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.stats)

    def result(self) -> PanopticResult:
        """Return the quality over all images so far."""
        iou, tp, fp, fn = self.stats.cpu().numpy()
        weight = tp + fp / 2 + fn / 2
        entering = weight > 0
        divisor = np.where(entering, weight, 1)
        measures = {"pq": 100 * iou / divisor, "sq": 100 * iou / np.maximum(tp, 1), "rq": 100 * tp / divisor}
        isthing = np.isin(np.arange(len(self.vocabulary)), list(self.vocabulary.things))

        def mean(group: np.ndarray) -> Quality:
            return Quality(*(float(values[group].mean()) if group.any() else None for values in measures.values()))

        return PanopticResult(
            all=mean(entering),
            things=mean(entering & isthing),
            stuff=mean(entering & ~isthing),
            num_classes=int(entering.sum()),
            num_things=int((entering & isthing).sum()),
            num_stuff=int((entering & ~isthing).sum()),
            per_class=tuple(
                ClassQuality(
                    name=name,
                    isthing=bool(isthing[index]),
                    **{key: float(values[index]) if entering[index] else None for key, values in measures.items()},
                    tp=int(tp[index]),
                    fp=int(fp[index]),
                    fn=int(fn[index]),
                )
                for index, name in enumerate(self.vocabulary.names)
            ),
        )

    def _rows(
        self, ids: np.ndarray, segments: Sequence[Segment], what: str, error: type[Exception]
    ) -> tuple[list[Segment], np.ndarray]:
        """Return the segments that have a class, and each id's place among them, from 1 on (0: void)."""
        place = {0: 0}
        kept: list[Segment] = []
        for segment in segments:
            if segment.id <= 0:
                raise error(f"panoptic {what}: segment id {segment.id} is not positive")
            if segment.id in place:
                raise error(f"panoptic {what}: segment id {segment.id} is listed twice")
            if segment.class_index == self._ignore:
                place[segment.id] = 0
                continue
            if not 0 <= segment.class_index < len(self.vocabulary):
                raise error(
                    f"panoptic {what}: segment {segment.id} has class {segment.class_index}, "
                    f"none of {len(self.vocabulary)}"
                )
            kept.append(segment)
            place[segment.id] = len(kept)
        listed = np.array(sorted(place), dtype=np.int64)
        rank = np.searchsorted(listed, ids).clip(max=len(listed) - 1)
        unlisted = listed[rank] != ids
        if unlisted.any():
            raise error(f"panoptic {what}: segment id {ids[unlisted][0]} is in the map and not listed")
        return kept, np.array([place[identity] for identity in listed.tolist()])[rank]

    def _count(self, overlap: np.ndarray, true: Sequence[Segment], predicted: Sequence[Segment]) -> None:
        """Match the segments of an image by their common pixels [T + 1, P + 1]; row and column 0 are void."""
        true_class = np.array([segment.class_index for segment in true], dtype=np.int64)
        predicted_class = np.array([segment.class_index for segment in predicted], dtype=np.int64)
        is_crowd = np.array([segment.iscrowd for segment in true], dtype=bool)
        true_area, predicted_area = overlap.sum(axis=1)[1:], overlap.sum(axis=0)[1:]
        common, in_void = overlap[1:, 1:], overlap[0, 1:]

        union = true_area[:, None] + predicted_area - common - in_void
        match = (2 * common > union) & (true_class[:, None] == predicted_class) & ~is_crowd[:, None]
        row, column = match.nonzero()
        # as in panopticapi: of several crowds of a class only the last listed counts
        crowd_of = {segment.class_index: row for row, segment in enumerate(true) if segment.iscrowd}
        in_crowd = np.array(
            [common[crowd_of[c], place] if c in crowd_of else 0 for place, c in enumerate(predicted_class)]
        )
        excused = 2 * (in_void + in_crowd) > predicted_area
        wrong = ~match.any(axis=0) & (predicted_area > 0) & ~excused
        missed = ~match.any(axis=1) & ~is_crowd

        classes = len(self.vocabulary)
        matched = true_class[row]
        iou = common[row, column] / union[row, column]
        self.stats += torch.from_numpy(
            np.stack(
                [
                    np.bincount(matched, weights=iou, minlength=classes),
                    np.bincount(matched, minlength=classes),
                    np.bincount(predicted_class[wrong], minlength=classes),
                    np.bincount(true_class[missed], minlength=classes),
                ]
            )
        ).to(self.stats.device)


def _runs(first: Tensor, second: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the runs, in C order, over which both maps are constant: the value in each map and the length.

    Segments are areas, so there are far fewer runs than pixels to look up.
    """
    one, other = (values.reshape(-1).cpu().numpy() for values in (first, second))
    if not one.size:
        return one, other, one
    starts = np.flatnonzero(np.concatenate([[True], (one[1:] != one[:-1]) | (other[1:] != other[:-1])]))
    return one[starts].astype(np.int64), other[starts].astype(np.int64), np.diff(starts, append=one.size)
