"""Evaluating a framework on a dataset: images one after another, a confusion matrix at the end.

Predictions are compared at the resolution of the ground truth, whatever size the model saw.

Shapes: `H W` ground truth, `h w` evaluation size, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ovstrans.datasets.augment import resize_image
from ovstrans.datasets.sample import Dataset, Sample
from ovstrans.errors import InputError, MismatchError
from ovstrans.evaluation.inference import Inference, batch_room, evaluating, predict_from, score_images
from ovstrans.evaluation.metrics import Confusion, metrics
from ovstrans.evaluation.panoptic import PanopticQuality
from ovstrans.evaluation.ranks import fail_together, rank_and_world
from ovstrans.evaluation.video import VideoConsistency
from ovstrans.frameworks.scores import Scores

if TYPE_CHECKING:
    from ovstrans.clip.text import TextClassifier

OnImage = Callable[[int, Sample, Tensor], None]
"""Called with the index, the sample and the predicted classes, int64 [H, W] on the CPU."""


def evaluate(
    framework: Any,
    dataset: Dataset,
    text: TextClassifier | None = None,
    *,
    device: torch.device | str = "cpu",
    inference: Inference | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    denominator: str = "present",
    on_image: OnImage | None = None,
    on_confusion: Callable[[Confusion], None] | None = None,
    panoptic: bool = False,
) -> dict[str, Any]:
    """The report entry of one dataset: dataset, split, images, size, inference, and the entries of `metrics`.

    framework: a `Framework` or anything with its `scores`, on `device` already; evaluated in eval mode and left in
    the mode it was in.
    text: the classifier of the dataset's vocabulary; None where the framework was trained with it.
    inference: how images are looked at; None at the size that papers on this dataset have, else at their own.
    limit: only the first so many images.  batch_size: of neighbours of one size, fewer if large.
    on_confusion: called once, with the counts of all images.
    panoptic: also panoptic quality, as the entry `panoptic`, where the dataset has its truth and the framework
    finds segments. Of datasets of videos the entry `video` has their consistency.

    Under torch.distributed every image is one rank's, and all ranks return what a single process would: what is
    batched with what does not depend on the number of ranks. Where a rank fails, all do.

    Raises InputError for a dataset without labels or images, MismatchError where the framework scores
    another number of classes than the dataset has.
    """
    total = len(dataset) if limit is None else min(limit, len(dataset))
    if total < 1:
        raise InputError(f"{dataset.name}:{dataset.split}: no image to evaluate on")
    if inference is None:
        inference = published_inference(dataset)
    if panoptic and (inference.window or inference.flip):
        raise InputError("panoptic quality is of whole images as they are; evaluate it without windows and flip")
    tally = _Tally(framework, dataset, text, inference, device=device, panoptic=panoptic)
    rank, world = rank_and_world()
    with fail_together(), evaluating(framework):
        for indices in _shares(dataset, total, batch_size)[rank::world]:
            for batch in _batches(dataset, indices, inference, batch_size):
                images = torch.stack([image for _, _, image in batch])
                found = score_images(framework, images, text, device, inference)
                for (index, sample, _), scores in zip(batch, found, strict=True):
                    prediction = tally.add(index, sample, scores)
                    if on_image is not None:
                        on_image(index, sample, prediction)
    tally.all_reduce()
    if on_confusion is not None:
        on_confusion(tally.confusion)
    report = {"dataset": dataset.name, "split": dataset.split, "images": total}
    return {**report, "size": inference.short_side, "inference": inference.as_json(), **tally.report(denominator)}


def published_inference(dataset: Dataset) -> Inference:
    """Inference at the size that papers on this dataset have, or at the images' own."""
    short, long = dataset.published_size or (None, None)
    return Inference(short_side=short, long_side=long)


def _shares(dataset: Dataset, total: int, batch_size: int) -> list[range]:
    """What is dealt out to ranks: whole videos, and blocks of `batch_size` of the images outside of them."""
    shares: list[range] = []
    place = 0
    for video in (*sorted(dataset.videos, key=lambda video: video.start), range(total, total)):
        for first in range(place, video.start, batch_size):
            shares.append(range(first, min(first + batch_size, video.start)))
        shares.append(video)
        place = video.stop
    return [range(share.start, min(share.stop, total)) for share in shares if share.start < min(share.stop, total)]


def _batches(
    dataset: Dataset, indices: Sequence[int], inference: Inference, batch_size: int
) -> Iterator[list[tuple[int, Sample, Tensor]]]:
    """Neighbours whose images resize to one size: index, sample, image uint8 [3, h, w]."""
    held: list[tuple[int, Sample, Tensor]] = []
    for index in indices:
        sample = dataset[index]
        size = inference.size(int(sample.image.shape[-2]), int(sample.image.shape[-1]))
        if held and (tuple(held[0][2].shape[-2:]) != size or len(held) >= batch_room(size, batch_size)):
            yield held
            held = []
        held.append((index, sample, resize_image(sample.image, size)))
    if held:
        yield held


class _Tally:
    """What is counted of each image: pixels by class, segments where asked for, frames of videos.

    Raises InputError and MismatchError as `evaluate` says.
    """

    def __init__(
        self,
        framework: Any,
        dataset: Dataset,
        text: TextClassifier | None,
        inference: Inference,
        *,
        device: torch.device | str,
        panoptic: bool,
    ) -> None:
        self.framework, self.dataset, self.text, self.inference = framework, dataset, text, inference
        self.confusion = Confusion(len(dataset.vocabulary), device=device)
        segments = panoptic and hasattr(framework, "panoptic_from_scores")
        self.quality = PanopticQuality(dataset.vocabulary, device=device) if segments else None
        self.consistency = VideoConsistency() if len(dataset.videos) else None
        self.video_of = {index: number for number, video in enumerate(dataset.videos) for index in video}

    def add(self, index: int, sample: Sample, scores: Scores) -> Tensor:
        """Count an image; returns its classes, int64 [H, W] on the CPU."""
        dataset, label, truth_map = self.dataset, sample.label, sample.segment_map
        if label is None:
            raise InputError(f"{dataset.name}:{dataset.split}: {sample.name} has no label; evaluate on labelled data")
        if scores.num_classes != len(dataset.vocabulary):
            raise MismatchError(
                f"the model scores {scores.num_classes} classes, {dataset.name} has {len(dataset.vocabulary)}; "
                "give it the text embeddings of this dataset's vocabulary"
            )
        order = self.inference.masks_first(self.framework, panoptic=truth_map is not None)
        at_truth = scores.at((int(label.shape[0]), int(label.shape[1])), masks_first=order)
        prediction = predict_from(at_truth).classes
        self.confusion.add(prediction, label, ignore=dataset.ignore)
        if self.quality is not None and truth_map is not None:
            segment_map, segments = self.framework.panoptic_from_scores(at_truth, self.text)
            self.quality.add(segment_map, segments, truth_map, sample.segments)
        if self.consistency is not None and index in self.video_of:
            try:
                self.consistency.add(self.video_of[index], prediction, label, dataset.ignore)
            except MismatchError as error:
                raise MismatchError(
                    f"{dataset.name}:{dataset.split}: {sample.name}: {error}; `ovstrans data check {dataset.name}` "
                    "has the paths"
                ) from error
        return prediction

    def all_reduce(self) -> None:
        """Sum over the ranks of torch.distributed, where it runs."""
        for each in (self.confusion, self.quality, self.consistency):
            if each is not None:
                each.all_reduce()

    def report(self, denominator: str) -> dict[str, Any]:
        """The measures: the entries of `metrics`, and `panoptic` and `video` where they apply."""
        vocabulary = self.dataset.vocabulary
        report = metrics(self.confusion, vocabulary.names, novel=vocabulary.novel, denominator=denominator)
        if self.quality is not None and bool(self.quality.stats.any()):  # otherwise no image had panoptic truth
            report["panoptic"] = self.quality.report()
        if self.consistency is not None:
            report["video"] = self.consistency.report()
        return report
