"""Panoptic quality: how well predicted segments match the true ones, class by class.

A predicted and a true segment of one class match where their IoU exceeds 1/2, so that each has one match
at most. Of a class with matches TP, unmatched predictions FP and unmatched truths FN

    PQ = sum of the matches' IoU / (TP + FP/2 + FN/2) = SQ * RQ
    SQ = sum of the matches' IoU / TP,   RQ = TP / (TP + FP/2 + FN/2)

(Kirillov et al., Panoptic Segmentation, CVPR 2019, eq. 1). Void and crowds as panopticapi has them, the
evaluator of COCO: pixels of no true segment leave the union of a match; an unmatched prediction is no FP
where more than half of it lies on such pixels and on a crowd of its class; a crowd is neither matched nor
missed.

Shapes: `H W` ground truth, `K` classes, `T` true and `P` predicted segments of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovstrans.datasets.sample import Segment, get_ignore_label
from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import Vocabulary


class PanopticQuality:
    """Adds up the matches of images; `report` makes percentages of them.

    vocabulary: its classes, and which of them are things.
    stats: float64 [4, K]: sum of the matches' IoU, TP, FP, FN.
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
        """Count one image.

        segment_map, truth_map: segment ids [H, W], integers; 0 is no segment.
        segments, truth_segments: what the ids are; areas are counted in the maps, not taken from there.
        A segment of the ignore label is void. A listed truth without pixels is missed, a listed
        prediction without pixels counts nowhere.

        Raises InputError for a truth with an id that is not listed, listed twice or of no class,
        ValueError for such a prediction, and for maps of unequal shape.
        """
        if segment_map.shape != truth_map.shape:
            raise ValueError(f"prediction is {tuple(segment_map.shape)}, ground truth {tuple(truth_map.shape)}")
        guess_ids, truth_ids, lengths = _runs(segment_map, truth_map)
        truths, truth_rows = self._rows(truth_ids, truth_segments, "ground truth", InputError)
        guesses, columns = self._rows(guess_ids, segments, "prediction", ValueError)
        shape = (len(truths) + 1, len(guesses) + 1)
        cells = truth_rows * shape[1] + columns
        overlap = np.bincount(cells, weights=lengths, minlength=shape[0] * shape[1]).reshape(shape)
        self._count(overlap, truths, guesses)

    def all_reduce(self) -> None:
        """Sum over the ranks of torch.distributed, where it runs."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.stats)

    def report(self) -> dict[str, Any]:
        """The measures in percent; None where there is nothing to measure.

        Returns PQ, SQ, RQ (means over the classes that are in the truth or predicted), the same of things
        (PQ_th, SQ_th, RQ_th) and of stuff (PQ_st, ...); classes, things, stuff (how many entered);
        per_class, a list in index order of {name, isthing, pq, sq, rq, tp, fp, fn}.
        """
        iou, found, wrong, missed = self.stats.cpu().numpy()
        weight = found + wrong / 2 + missed / 2
        entering = weight > 0
        some = np.where(entering, weight, 1)
        measures = {"pq": 100 * iou / some, "sq": 100 * iou / np.maximum(found, 1), "rq": 100 * found / some}
        isthing = np.isin(np.arange(len(self.vocabulary)), list(self.vocabulary.things))
        result: dict[str, Any] = {}
        for suffix, group in (("", entering), ("_th", entering & isthing), ("_st", entering & ~isthing)):
            for key, values in measures.items():
                result[key.upper() + suffix] = float(values[group].mean()) if group.any() else None
        return result | {
            "classes": int(entering.sum()),
            "things": int((entering & isthing).sum()),
            "stuff": int((entering & ~isthing).sum()),
            "per_class": [
                {"name": name, "isthing": bool(isthing[index])}
                | {key: float(values[index]) if entering[index] else None for key, values in measures.items()}
                | {"tp": int(found[index]), "fp": int(wrong[index]), "fn": int(missed[index])}
                for index, name in enumerate(self.vocabulary.names)
            ],
        }

    def _rows(
        self, ids: np.ndarray, segments: Sequence[Segment], what: str, error: type[Exception]
    ) -> tuple[list[Segment], np.ndarray]:
        """The segments of a class, and for every id the place of its own among them from 1; 0 is void."""
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

    def _count(self, overlap: np.ndarray, truths: Sequence[Segment], guesses: Sequence[Segment]) -> None:
        """Match the segments of an image by their common pixels [T + 1, P + 1], where row and column 0 are void."""
        true_class = np.array([segment.class_index for segment in truths], dtype=np.int64)
        guessed_class = np.array([segment.class_index for segment in guesses], dtype=np.int64)
        is_crowd = np.array([segment.iscrowd for segment in truths], dtype=bool)
        true_area, guessed_area = overlap.sum(axis=1)[1:], overlap.sum(axis=0)[1:]
        common, in_void = overlap[1:, 1:], overlap[0, 1:]

        union = true_area[:, None] + guessed_area - common - in_void
        match = (2 * common > union) & (true_class[:, None] == guessed_class) & ~is_crowd[:, None]
        true_row, guessed_row = match.nonzero()
        # as in panopticapi, the last listed of several crowds of a class stands for them all
        crowd_of = {segment.class_index: row for row, segment in enumerate(truths) if segment.iscrowd}
        in_crowd = np.array([common[crowd_of[c], row] if c in crowd_of else 0 for row, c in enumerate(guessed_class)])
        excused = 2 * (in_void + in_crowd) > guessed_area
        wrong = ~match.any(axis=0) & (guessed_area > 0) & ~excused
        missed = ~match.any(axis=1) & ~is_crowd

        classes = len(self.vocabulary)
        matched = true_class[true_row]
        iou = common[true_row, guessed_row] / union[true_row, guessed_row]
        self.stats += torch.from_numpy(
            np.stack(
                [
                    np.bincount(matched, weights=iou, minlength=classes),
                    np.bincount(matched, minlength=classes),
                    np.bincount(guessed_class[wrong], minlength=classes),
                    np.bincount(true_class[missed], minlength=classes),
                ]
            )
        ).to(self.stats.device)


def _runs(first: Tensor, second: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs, in C order, over which two maps keep their values: both values and the length of each.

    Segments are areas, so there are far fewer runs than pixels to look up.
    """
    one, other = (values.reshape(-1).cpu().numpy() for values in (first, second))
    if not one.size:
        return one, other, one
    starts = np.flatnonzero(np.concatenate([[True], (one[1:] != one[:-1]) | (other[1:] != other[:-1])]))
    return one[starts].astype(np.int64), other[starts].astype(np.int64), np.diff(starts, append=one.size)
