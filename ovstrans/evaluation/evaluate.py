"""Evaluation of a framework on a dataset: score the images, count a confusion matrix, compute metrics.

Predictions are compared with the ground truth at its own resolution, whatever size the model saw.

Shapes: `H W` ground truth, `h w` evaluation size, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ovstrans.datasets.augment import resize_image
from ovstrans.datasets.sample import Dataset, Sample
from ovstrans.errors import InputError, MismatchError, OvstransError, counted
from ovstrans.evaluation.inference import (
    Inference,
    classify_pixels,
    given_masks,
    images_per_batch,
    in_eval_mode,
    refuse_windows,
    score_images,
)
from ovstrans.evaluation.metrics import ConfusionMatrix, Metrics, compute_metrics, parse_metrics
from ovstrans.evaluation.panoptic import PanopticQuality, PanopticResult
from ovstrans.evaluation.video import VideoConsistency, VideoResult
from ovstrans.frameworks.scores import Scores
from ovstrans.progress import ProgressCallback, ProgressReporter

if TYPE_CHECKING:
    from ovstrans.clip.text import TextClassifier

OnImage = Callable[[int, Sample, Tensor], None]
"""Called with the index, the sample and the predicted classes, int64 [H, W] on the CPU."""


@dataclass(frozen=True, kw_only=True, repr=False)
class DatasetResult(Metrics):
    """Metrics of a framework on a dataset.

    Attributes:
        dataset: Name of the dataset.
        split: Its split.
        images: Number of images.
        inference: How they were scored.
        panoptic: Panoptic quality, if it was asked for and both dataset and framework have segments.
        video: Video consistency, if the dataset is of videos.
        confusion: The confusion matrix behind the metrics; None if the result was read from a report.
    """

    dataset: str
    split: str
    images: int
    inference: Inference
    panoptic: PanopticResult | None = None
    video: VideoResult | None = None
    confusion: ConfusionMatrix | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a report: plain values under the names of the literature."""
        entry = {
            "dataset": self.dataset,
            "split": self.split,
            "images": self.images,
            "size": self.inference.short_side,
            "inference": self.inference.to_json(),
            **super().to_json(),
        }
        if self.panoptic is not None:
            entry["panoptic"] = self.panoptic.to_json()
        if self.video is not None:
            entry["video"] = self.video.to_json()
        return entry

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DatasetResult:
        """Return the result that `to_json` described.

        Raises:
            InputError: If it is something else.
        """
        try:
            panoptic, video = value.get("panoptic"), value.get("video")
            return cls(
                dataset=value["dataset"],
                split=value["split"],
                images=value["images"],
                inference=Inference.from_json(value["inference"]),
                panoptic=None if panoptic is None else PanopticResult.from_json(panoptic),
                video=None if video is None else VideoResult.from_json(video),
                **parse_metrics(value),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not the metrics of a dataset ({type(error).__name__}: {error})") from error

    def __repr__(self) -> str:
        shown = {"mIoU": self.miou, "pACC": self.pacc, "hIoU": self.hiou}
        if self.panoptic is not None:
            shown["PQ"] = self.panoptic.all.pq
        figures = ", ".join(f"{name} {value:.2f} %" for name, value in shown.items() if value is not None)
        classes = counted(self.num_classes, "class", "classes")
        return (
            f"DatasetResult({self.dataset}:{self.split}, {counted(self.images, 'image')}, {classes} "
            f"({self.denominator}): {figures or 'nothing to measure'})"
        )


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
    panoptic: bool = False,
    on_image: OnImage | None = None,
    progress: ProgressCallback | None = None,
    task: str | None = None,
) -> DatasetResult:
    """Evaluate a framework on a dataset.

    Under torch.distributed the ranks share the images, and all return what a single process would: the composition of
    batches does not depend on the number of ranks. If one rank fails, all do.

    Args:
        framework: A `Framework` or anything with its `scores`, on `device` already. It runs in eval mode and is left
            in the mode it was in.
        dataset: Labelled data.
        text: Classifier of the dataset's vocabulary; None if the framework was trained with it.
        device: Where to compute.
        inference: How images are scored; None for the size that papers on this dataset use, else the images' own.
        limit: Evaluate on the first so many images; None for all.
        batch_size: Upper bound on the images of a batch; they are neighbours of one size, fewer if large.
        denominator: Classes that enter mIoU, "present" or "union"; see `evaluation.metrics`.
        panoptic: Also compute panoptic quality, if the dataset has panoptic ground truth and the framework finds
            segments.
        on_image: Called after each image.
        progress: Told of the images done, by all ranks together.
        task: Name of the work for `progress`; None for "evaluate NAME:SPLIT".

    Raises:
        InputError: If the dataset has no labels or no images, or `panoptic` is asked for with windows or flip.
        MismatchError: If the framework scores another number of classes than the dataset has.
    """
    total = len(dataset) if limit is None else min(limit, len(dataset))
    if total < 1:
        raise InputError(f"{dataset.name}:{dataset.split}: no image to evaluate on")
    if inference is None:
        inference = published_inference(dataset)
    if panoptic:
        refuse_windows(inference, "panoptic quality")
    sums = _Accumulators(framework, dataset, text, inference, device=device, panoptic=panoptic)
    rank, world = rank_and_world()
    reporter = ProgressReporter(progress, task or f"evaluate {dataset.name}:{dataset.split}", total, unit="images")
    with fail_together(), in_eval_mode(framework):
        for indices in _blocks(dataset, total, batch_size)[rank::world]:
            for batch in _batches(dataset, indices, inference, batch_size):
                images = torch.stack([image for _, _, image in batch])
                given = [
                    given_masks(framework, sample.name, sample.image, sample=sample, ignore=dataset.ignore)
                    for _, sample, _ in batch
                ]
                found = score_images(framework, images, text, device, inference, masks=given)
                for (index, sample, _), scores in zip(batch, found, strict=True):
                    prediction = sums.add(index, sample, scores)
                    if on_image is not None:
                        on_image(index, sample, prediction)
                    reporter.advance(min(world, total - reporter.done))
    sums.all_reduce()
    vocabulary = dataset.vocabulary
    metrics = compute_metrics(sums.confusion, vocabulary.names, novel=vocabulary.novel, denominator=denominator)
    return DatasetResult(
        dataset=dataset.name,
        split=dataset.split,
        images=total,
        inference=inference,
        panoptic=sums.panoptic_result(),
        video=None if sums.consistency is None else sums.consistency.result(),
        confusion=sums.confusion,
        **vars(metrics),
    )


def published_inference(dataset: Dataset) -> Inference:
    """Return inference at the size that papers on this dataset use, or at the images' own."""
    short, long = dataset.published_size or (None, None)
    return Inference(short_side=short, long_side=long)


def _blocks(dataset: Dataset, total: int, batch_size: int) -> list[range]:
    """Split the first `total` images into what is dealt to ranks: whole videos, else blocks of `batch_size` images."""
    blocks: list[range] = []
    place = 0
    for video in (*sorted(dataset.videos, key=lambda video: video.start), range(total, total)):
        for first in range(place, video.start, batch_size):
            blocks.append(range(first, min(first + batch_size, video.start)))
        blocks.append(video)
        place = video.stop
    return [range(block.start, min(block.stop, total)) for block in blocks if block.start < min(block.stop, total)]


def _batches(
    dataset: Dataset, indices: Sequence[int], inference: Inference, batch_size: int
) -> Iterator[list[tuple[int, Sample, Tensor]]]:
    """Yield neighbours whose images resize to one size: index, sample, image uint8 [3, h, w]."""
    batch: list[tuple[int, Sample, Tensor]] = []
    for index in indices:
        sample = dataset[index]
        size = inference.size(int(sample.image.shape[-2]), int(sample.image.shape[-1]))
        if batch and (tuple(batch[0][2].shape[-2:]) != size or len(batch) >= images_per_batch(size, batch_size)):
            yield batch
            batch = []
        batch.append((index, sample, resize_image(sample.image, size)))
    if batch:
        yield batch


class _Accumulators:
    """Sums over images: the confusion matrix, and matched segments and video windows where they apply."""

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
        self.confusion = ConfusionMatrix(len(dataset.vocabulary), device=device)
        segments = panoptic and hasattr(framework, "panoptic_from_scores")
        self.quality = PanopticQuality(dataset.vocabulary, device=device) if segments else None
        self.consistency = VideoConsistency() if len(dataset.videos) else None
        self.video_of = {index: number for number, video in enumerate(dataset.videos) for index in video}

    def add(self, index: int, sample: Sample, scores: Scores) -> Tensor:
        """Add an image; return its predicted classes, int64 [H, W] on the CPU.

        Raises:
            InputError, MismatchError: As `evaluate` does.
        """
        dataset, label, truth_map = self.dataset, sample.label, sample.segment_map
        if label is None:
            raise InputError(f"{dataset.name}:{dataset.split}: {sample.name} has no label; evaluate on labelled data")
        if scores.num_classes != len(dataset.vocabulary):
            raise MismatchError(
                f"the model scores {scores.num_classes} classes, {dataset.name} has {len(dataset.vocabulary)}; "
                "give it the text embeddings of this dataset's vocabulary"
            )
        masks_first = self.inference.upsamples_masks(self.framework, panoptic=truth_map is not None)
        at_truth = scores.resize((int(label.shape[0]), int(label.shape[1])), masks_first=masks_first)
        prediction = classify_pixels(at_truth).classes
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
                    "names the files"
                ) from error
        return prediction

    def all_reduce(self) -> None:
        """Sum over all ranks if torch.distributed is initialized."""
        for each in (self.confusion, self.quality, self.consistency):
            if each is not None:
                each.all_reduce()

    def panoptic_result(self) -> PanopticResult | None:
        """Return the panoptic quality; None if no image had panoptic ground truth."""
        if self.quality is None or not bool(self.quality.stats.any()):
            return None
        return self.quality.result()


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) if torch.distributed is not initialized."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class OtherRankFailed(InputError):
    """Raised on a rank because another rank met bad input.

    Attributes:
        reason: The other rank's message.
    """

    def __init__(self, rank: int, other: int, reason: str) -> None:
        super().__init__(f"rank {rank} stops, since rank {other} failed: {reason}")
        self.reason = reason


def original_message(error: InputError) -> str:
    """Return the message of the rank that met the bad input."""
    return error.reason if isinstance(error, OtherRankFailed) else str(error)


@contextmanager
def fail_together() -> Iterator[None]:
    """Make all ranks fail if one fails inside the block, so that none waits for it forever.

    The failing rank raises its own error, the others an OvstransError that quotes the first one. Either all ranks
    raise an InputError or none does, so a caller that catches InputError and goes on does so on every rank.
    """
    rank, world = rank_and_world()
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if world == 1:
            raise
        failure = error
    if world == 1:
        return
    messages: list[tuple[str, bool] | None] = [None] * world
    mine = None if failure is None else (str(failure) or type(failure).__name__, isinstance(failure, InputError))
    torch.distributed.all_gather_object(messages, mine)
    failed = [(other, *message) for other, message in enumerate(messages) if message is not None]
    bugs = [(other, message) for other, message, bad_input in failed if not bad_input]
    if failure is not None and (not bugs or not isinstance(failure, InputError)):
        raise failure
    for other, message in bugs:
        raise OvstransError(f"rank {rank} stops, since rank {other} failed: {message}") from failure
    for other, message, _ in failed:
        raise OtherRankFailed(rank, other, message)
