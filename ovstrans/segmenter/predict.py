"""Segmenting image files and folders of them, and writing the predictions into a folder (`ovstrans predict`)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovstrans.checkpoints.file import find_checkpoint
from ovstrans.datasets.images import read_image
from ovstrans.environment import pick_device
from ovstrans.errors import InputError, counted
from ovstrans.evaluation.inference import Inference
from ovstrans.files import OUTPUT_DIR
from ovstrans.progress import ProgressCallback, ProgressReporter
from ovstrans.segmenter.classes import ClassNames, choose_vocabulary
from ovstrans.segmenter.coco import to_image_id
from ovstrans.segmenter.inputs import ImageFile, find_image_files
from ovstrans.segmenter.label_maps import class_shares
from ovstrans.segmenter.options import SegmentationOptions
from ovstrans.segmenter.prediction_writer import PredictionWriter
from ovstrans.segmenter.segmenter import SegmentationTask, Segmenter, Source
from ovstrans.vocabulary.vocabulary import AUTO, Vocabulary

SCHEMA = "ovstrans.predictions/1"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassShare:
    """A class that occurs in an image, and its share of the pixels, 0..1."""

    index: int
    name: str
    share: float


@dataclass(frozen=True)
class ImagePrediction:
    """Result of one image file: the classes found, and the files written.

    Attributes:
        file: The image.
        size: Height and width in pixels.
        files: The files of its predictions by what they are, such as label_map, overlay, segment_map.
        classes: The classes that occur, the largest first.
        image_id: Its id in COCO's files; None without segments.
        segments: Number of panoptic segments by class name; None if not asked for.
        instances: Number of distinct instances by class name; None if not asked for.
        window: Side of the windows that it was scored in; None for one piece, or if it was done before a resume.
        resumed: It was done before a resume.
    """

    file: Path
    size: tuple[int, int]
    files: Mapping[str, Path]
    classes: tuple[ClassShare, ...]
    image_id: int | str | None = None
    segments: Mapping[str, int] | None = None
    instances: Mapping[str, int] | None = None
    window: int | None = None
    resumed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a summary, as plain values."""
        entry: dict[str, Any] = {"file": str(self.file)}
        if self.image_id is not None:
            entry["image_id"] = self.image_id
        entry["size"] = list(self.size)
        entry |= {kind: str(path) for kind, path in self.files.items()}
        entry["classes"] = [vars(each) for each in self.classes]
        if self.segments is not None:
            entry["segments"] = dict(self.segments)
        if self.instances is not None:
            entry["instances"] = dict(self.instances)
        return entry if self.resumed else {**entry, "window": self.window}


@dataclass(frozen=True)
class FailedImage:
    """An image file that could not be read, and why."""

    file: Path
    error: str


@dataclass(frozen=True, repr=False)
class Predictions:
    """Result of `predict`.

    Attributes:
        checkpoint: The checkpoint's file; None if it is from no file.
        out: The folder with the predictions.
        vocabulary: The classes that were told apart.
        inference: How images were scored.
        files: Files about all images, by what they are: panoptic, instances.
        seconds: Time for all images.
        images: What was found in each image.
        failed: The images that could not be read.
    """

    checkpoint: Path | None
    out: Path
    vocabulary: Vocabulary
    inference: Inference
    files: Mapping[str, Path]
    seconds: float
    images: tuple[ImagePrediction, ...]
    failed: tuple[FailedImage, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return {
            "schema": SCHEMA,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "out": str(self.out),
            "vocabulary": self.vocabulary.name,
            "classes": list(self.vocabulary.names),
            "inference": self.inference.to_json(),
            **{kind: str(path) for kind, path in self.files.items()},
            "seconds": round(self.seconds, 3),
            "images": [image.to_json() for image in self.images],
            "failed": [{"file": str(failed.file), "error": failed.error} for failed in self.failed],
        }

    def __repr__(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        classes = counted(len(self.vocabulary), "class", "classes")
        return f"Predictions({counted(len(self.images), 'image')}, {classes}{failed}, written to {self.out})"


def predict(
    source: Segmenter | Source,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    classes: ClassNames | None = None,
    vocabulary: Vocabulary | str | None = None,
    names: str = AUTO,
    short_side: int | None = None,
    long_side: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    flip: bool = False,
    confidence: bool = False,
    overlay: bool = True,
    panoptic: bool = False,
    instances: bool = False,
    things: ClassNames | None = None,
    resume: bool = False,
    force: bool = False,
    out: Path | str = OUTPUT_DIR / "predict",
    device: torch.device | str = "auto",
    runtime: str = "auto",
    settings: Sequence[str] = (),
    pretrained: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> Predictions:
    """Segment image files and folders of them, and write the predictions into a folder.

    `segmenter.label_maps` and `segmenter.coco` document the files. If the work is interrupted, what is done so far is
    whole, and a warning on the logger says how to go on. An image that cannot be read is left out and listed in the
    result.

    Args:
        source: A `Segmenter`, or what `Segmenter.load` takes.
        images: Image files and folders of images, sub-folders included.
        classes: The classes to tell apart, as for `Segmenter.segment`; None for those of the training.
        vocabulary: In place of `classes`, a vocabulary, the name of a published one, or a file.
        names: As for `Segmenter.segment`; and so `short_side` to `flip`, `panoptic`, `instances`, `things`.
        short_side: See `names`.
        long_side: See `names`.
        window: See `names`.
        stride: See `names`.
        flip: See `names`.
        confidence: Also write confidence maps.
        overlay: Also write pictures for people.
        panoptic: Also write panoptic segments.
        instances: Also write instances.
        things: See `names`.
        resume: Go on with an interrupted call that had the same arguments.
        force: Replace the predictions that are in `out`.
        out: The folder to write.
        device: Where to compute, unless `source` is a `Segmenter`.
        runtime: As for `Segmenter.load`, unless `source` is a `Segmenter`.
        settings: As for `Segmenter.load`, unless `source` is a `Segmenter`.
        pretrained: As for `Segmenter.load`, unless `source` is a `Segmenter`.
        progress: Told of the images done.

    Raises:
        InputError: If an argument is not valid, two do not go together, nothing can be written, there is nothing to
            resume, or the memory does not suffice for an image.
    """
    options = SegmentationOptions(
        names=names,
        confidence=confidence,
        panoptic=panoptic,
        instances=instances,
        things=things,
        short_side=short_side,
        long_side=long_side,
        window=window,
        stride=stride,
        flip=flip,
    )
    if resume and force:
        raise InputError("`resume` and `force`: one keeps what is there, the other replaces it; give one of them")
    if not isinstance(source, Segmenter):
        pick_device(device)
        source = find_checkpoint(Path(source)) if isinstance(source, (str, os.PathLike)) else source
    writer = PredictionWriter(Path(out), overlay=overlay, confidence=confidence)
    writer.check(resume=resume, force=force)
    paths = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    if not paths:
        raise InputError("`images`: names no image; give image files, or folders of them")
    image_files = find_image_files([Path(path) for path in paths], out=Path(out))
    chosen = choose_vocabulary(classes, vocabulary)

    if isinstance(source, Segmenter):
        segmenter = source
    else:
        segmenter = Segmenter.load(source, device=device, runtime=runtime, settings=settings, pretrained=pretrained)
    task = SegmentationTask(segmenter, chosen, options)
    writer.begin(
        task.vocabulary,
        checkpoint={"path": "" if segmenter.path is None else str(segmenter.path), "sha256": segmenter.sha256},
        settings={"inference": task.inference.to_json(), "names": names},
        resume=resume,
        panoptic=task.panoptic_things,
        instances=task.instance_things,
    )
    start = time.perf_counter()
    done, failed = _predict_images(task, image_files, writer, progress)
    if not done:
        writer.remove_if_empty()
    return Predictions(
        checkpoint=segmenter.path,
        out=Path(out),
        vocabulary=task.vocabulary,
        inference=task.inference,
        files=writer.common_files(),
        seconds=time.perf_counter() - start,
        images=tuple(done),
        failed=tuple(failed),
    )


def _predict_images(
    task: SegmentationTask,
    image_files: Sequence[ImageFile],
    writer: PredictionWriter,
    progress: ProgressCallback | None,
) -> tuple[list[ImagePrediction], list[FailedImage]]:
    """Segment and write image by image, but for those that are done already."""
    predictions: list[ImagePrediction] = []
    failed: list[FailedImage] = []
    done_before = sum(writer.has(image.name) for image in image_files)
    if done_before:
        logger.info("%s: %d of %d images are done already", writer.folder, done_before, len(image_files))
    reporter = ProgressReporter(progress, "predict", len(image_files), done=done_before, unit="images")
    with _finishing(writer, image_files):
        for image in image_files:
            if writer.has(image.name):
                labels = writer.read_labels(image.name)
                predictions.append(_describe(image, labels, writer, resumed=True))
                continue
            try:
                pixels = read_image(image.path)
            except InputError as error:
                failed.append(FailedImage(image.path, str(error)))
            else:
                prediction, inference = task.predict(pixels, image.path, progress=progress)
                writer.write(image.name, pixels, prediction)
                predictions.append(_describe(image, prediction.classes, writer, window=inference.window))
            reporter.advance()
    return predictions, failed


def _describe(
    image: ImageFile, labels: Tensor, writer: PredictionWriter, *, window: int | None = None, resumed: bool = False
) -> ImagePrediction:
    """Describe the predictions of an image that are written; labels: int64 [H, W]."""
    names = writer.vocabulary.names
    segments = writer.coco.count_segments(image.name, writer.vocabulary)
    instances = writer.coco.count_instances(image.name, writer.vocabulary)
    return ImagePrediction(
        file=image.path,
        size=(int(labels.shape[0]), int(labels.shape[1])),
        files=writer.image_files(image.name),
        classes=tuple(ClassShare(index, names[index], share) for index, share in class_shares(labels)),
        image_id=None if segments is None and instances is None else to_image_id(image.name),
        segments=segments,
        instances=instances,
        window=window,
        resumed=resumed,
    )


@contextmanager
def _finishing(writer: PredictionWriter, image_files: Sequence[ImageFile]) -> Iterator[None]:
    """Finish the files when the block ends; if it ends early, log how many images are done and how to go on."""
    try:
        yield
        writer.finish()
    except BaseException:
        writer.finish()
        writer.remove_if_empty()
        done = sum(writer.has(image.name) for image in image_files)
        if done:
            logger.warning(
                "%s: %d of %d images are done; give the same options and `resume=True` to go on",
                writer.folder,
                done,
                len(image_files),
            )
        raise
