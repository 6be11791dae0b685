"""Evaluating targets on datasets, and keeping on disk what is finished until all is.

A finished evaluation is a file of its own, written atomically: the metrics, the confusion matrix, and the predictions
that pages show. Its name is a hash of what the result depends on. A changed checkpoint or option finds nothing, and an
evaluation is found whatever else the next command asks for.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovstrans.clip.weights import weights_sha256
from ovstrans.costs.latency import Latency
from ovstrans.costs.target import Target
from ovstrans.datasets.sample import Dataset, Sample
from ovstrans.errors import InputError, MismatchError, counted
from ovstrans.evaluation.evaluate import DatasetResult, evaluate, original_message, published_inference, rank_and_world
from ovstrans.evaluation.inference import Inference
from ovstrans.evaluation.metrics import DENOMINATORS, ConfusionMatrix
from ovstrans.files import hash_file, read_json, read_tensors, storage_fault, write_json, write_tensors
from ovstrans.frameworks.registry import classifier_for
from ovstrans.parsing import parse_json
from ovstrans.progress import ProgressCallback
from ovstrans.reports.report import Report, shorten_names
from ovstrans.training.distributed import World
from ovstrans.version import __version__
from ovstrans.vocabulary.vocabulary import Vocabulary, check_names

SCHEMA = "ovstrans.evaluation/1"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """Options of the evaluation; fields as the arguments of `bench`.

    Attributes:
        inference: How images are scored, if their size was asked for.
        keep_size: If True, images are scored at the size published for their data instead.
        tolerant: If True, a dataset that fails does not stop the others.
    """

    vocabulary: Vocabulary | None
    names: str
    inference: Inference
    keep_size: bool
    denominator: str
    panoptic: bool
    limit: int | None
    show: int
    tolerant: bool

    def __post_init__(self) -> None:
        check_names(self.names)
        if self.denominator not in DENOMINATORS:
            raise InputError(f"`denominator={self.denominator}`: unknown; use {' or '.join(DENOMINATORS)}")
        if self.panoptic and (self.inference.window or self.inference.flip):
            raise InputError("`panoptic=True`: is of whole images as they are; leave out `window` and `flip`")

    def key(self, name: str, dataset: Dataset, target: Target, world: World) -> dict[str, Any]:
        """Return what the evaluation of a target on a dataset depends on, as plain values."""
        return {
            "target": hash_weights(target),
            "options": dict(getattr(target.module, "options", {})),  # `settings` may have changed some
            "data": name,
            "folder": _find_folder(dataset),
            "images": len(dataset),
            "data_classes": list(dataset.vocabulary.names),
            "classes": self.vocabulary_on(dataset).to_json(),
            "names": self.names,
            "inference": self.inference_on(dataset).to_json(),
            "denominator": self.denominator,
            "panoptic": self.panoptic,
            "limit": self.limit,
            "show": self.show,
            "device": world.device.type,
            "version": __version__,
        }

    def inference_on(self, dataset: Dataset) -> Inference:
        """Return how images of a dataset are scored."""
        if not self.keep_size:
            return self.inference
        published, own = published_inference(dataset), self.inference
        return replace(published, window=own.window, stride=own.stride, flip=own.flip)

    def vocabulary_on(self, dataset: Dataset) -> Vocabulary:
        """Return the class names that a dataset is evaluated with."""
        if self.vocabulary is None:
            return dataset.vocabulary
        if len(self.vocabulary) != len(dataset.vocabulary):
            own = counted(len(self.vocabulary), "class", "classes")
            raise MismatchError(
                f"`vocabulary={self.vocabulary.name}`: has {own}, {dataset.name} has "
                f"{len(dataset.vocabulary)}; name them all, in the order of the data"
            )
        return self.vocabulary


@dataclass
class UnfinishedWork:
    """A folder of finished evaluations.

    Attributes:
        folder: The folder; made when there is something to write. None keeps nothing.
        resume: Use what the folder has. If False, everything is computed anew.
        written: Files of this command, to delete when all is done.
    """

    folder: Path | None
    resume: bool = False
    written: list[Path] = field(default_factory=list)

    def load_evaluation(self, key: Mapping[str, Any]) -> tuple[DatasetResult, dict[int, Tensor]] | None:
        """Return a finished evaluation: metrics, and predicted classes [H, W] by image; None if there is none.

        Args:
            key: What the result depends on, as plain values.
        """
        path = self._find(key, ".safetensors")
        if path is None:
            return None
        try:
            tensors, metadata = read_tensors(path)
            result = DatasetResult.from_json(parse_json(metadata["result"]))
            counts = tensors.pop("confusion")
        except (InputError, KeyError, ValueError) as error:
            logger.warning("%s: left out and computed anew (%s)", path, error)
            return None
        confusion = ConfusionMatrix(len(counts))
        confusion.counts = counts
        return replace(result, confusion=confusion), {int(name): value.long() for name, value in tensors.items()}

    def keep_evaluation(self, key: Mapping[str, Any], result: DatasetResult, predictions: Mapping[int, Tensor]) -> None:
        """Write a finished evaluation; a disk that refuses it is warned about, and costs no result."""
        if self.folder is None or result.confusion is None:
            return
        tensors = {str(index): prediction.to(torch.int32) for index, prediction in predictions.items()}
        tensors["confusion"] = result.confusion.counts
        metadata = {"format": SCHEMA, "key": json.dumps(key, default=str), "result": json.dumps(result.to_json())}
        with self._writing(key, ".safetensors") as path:
            write_tensors(path, tensors, metadata)

    def load_latency(self, key: Mapping[str, Any]) -> Latency | None:
        """Return a finished measurement of latency; None if there is none."""
        path = self._find(key, ".json")
        try:
            return None if path is None else Latency.from_json(read_json(path)["latency"])
        except (InputError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s: left out and measured anew (%s)", path, error)
            return None

    def keep_latency(self, key: Mapping[str, Any], latency: Latency) -> None:
        """Write a finished measurement, as `keep_evaluation` does."""
        if self.folder is not None:
            with self._writing(key, ".json") as path:
                write_json(path, {"schema": SCHEMA, "key": dict(key), "latency": latency.to_json()})

    def remove(self) -> None:
        """Delete the files of this command, and the folder if nothing else is in it."""
        for path in self.written:
            path.unlink(missing_ok=True)
        if self.folder is not None:
            with contextlib.suppress(OSError):  # the evaluations of another unfinished command, or no folder
                self.folder.rmdir()

    def _find(self, key: Mapping[str, Any], suffix: str) -> Path | None:
        """Return the file of a key that there is to resume."""
        if self.folder is None or not self.resume:
            return None
        path = self._path(key, suffix)
        if not path.is_file():
            return None
        self.written.append(path)
        return path

    @contextlib.contextmanager
    def _writing(self, key: Mapping[str, Any], suffix: str) -> Iterator[Path]:
        path = self._path(key, suffix)
        try:
            yield path
            self.written.append(path)
        except (InputError, OSError) as error:
            logger.warning("%s: an interrupted bench cannot go on after this result (%s)", path, error)

    def _path(self, key: Mapping[str, Any], suffix: str) -> Path:
        assert self.folder is not None
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        return self.folder / f"{digest[:24]}{suffix}"


def evaluate_targets(
    targets: Sequence[Target],
    work: Sequence[Mapping[str, Dataset]],
    reports: Sequence[Report],
    world: World,
    scoring: Scoring,
    folder: Path | None,
    unfinished: UnfinishedWork,
    progress: ProgressCallback | None,
) -> None:
    """Evaluate targets on their datasets, fill in the reports, and write pages of pictures into `folder`.

    A dataset that fails is evaluated for no later target; all its targets have the reason as `failed`.
    """
    from ovstrans.reports.pages import Pages

    pages, failed = Pages(), dict[str, str]()
    titles = shorten_names([target.name for target in targets])
    resumed = 0
    for target, title, own, report in zip(targets, titles, work, reports, strict=True):
        if own:
            target.module.to(world.device)
        for name, dataset in own.items():
            key = scoring.key(name, dataset, target, world) if world.main and unfinished.folder is not None else {}
            kept = unfinished.load_evaluation(key) if world.main and name not in failed else None
            kept = world.broadcast(kept) if unfinished.resume else None
            resumed += kept is not None
            if name not in failed:
                try:
                    title_on = f"{title} on {name}"
                    result, predictions = kept or _evaluate_on(dataset, target, world, scoring, progress, title_on)
                except InputError as error:  # on every rank, or on none
                    if not scoring.tolerant:
                        raise
                    failed[name] = original_message(error)
                else:
                    report.datasets[name] = result
                    if world.main and kept is None:
                        unfinished.keep_evaluation(key, result, predictions)
                    pages.add(name, dataset, title, result, predictions)
            if name in failed:
                report.failed[name] = failed[name]
        if own:
            target.module.to("cpu")
    if unfinished.resume and world.main:
        logger.info("%d of %d evaluations were done before", resumed, sum(map(len, work)))
    if world.main and folder is not None and scoring.show:
        try:
            for path in pages.save(folder):
                logger.info("wrote %s", path)
        except Exception as error:  # the figures are worth more
            reason = str(error) if isinstance(error, InputError) else storage_fault(error)
            if not reason:
                raise
            logger.warning("pictures left out: %s", reason)
            for report in reports:
                report.undrawn = reason


def _evaluate_on(
    dataset: Dataset,
    target: Target,
    world: World,
    scoring: Scoring,
    progress: ProgressCallback | None,
    title: str,
) -> tuple[DatasetResult, dict[int, Tensor]]:
    """Evaluate a target on a dataset.

    Returns:
        The metrics, and the predicted classes [H, W] of the images to show by their index.
    """
    from ovstrans.datasets.drawing import choose_evenly

    assert target.checkpoint is not None
    total = len(dataset) if scoring.limit is None else min(scoring.limit, len(dataset))
    shown, predictions = choose_evenly(total, scoring.show), dict[int, Tensor]()

    def keep(index: int, _sample: Sample, prediction: Tensor) -> None:
        if index in shown:
            predictions[index] = prediction

    result = evaluate(
        target.module,
        dataset,
        classifier_for(target.checkpoint, scoring.vocabulary_on(dataset), scoring.names).to(world.device),
        device=world.device,
        inference=scoring.inference_on(dataset),
        limit=scoring.limit,
        denominator=scoring.denominator,
        panoptic=scoring.panoptic,
        on_image=keep,
        progress=progress,
        task=f"evaluate {title}",
    )
    return result, _gather(predictions)


def _gather(predictions: dict[int, Tensor]) -> dict[int, Tensor]:
    """Merge the predictions of all ranks."""
    parts: list[Any] = [None] * rank_and_world()[1]
    if len(parts) == 1:
        return predictions
    torch.distributed.all_gather_object(parts, predictions)
    return {index: prediction for part in parts for index, prediction in part.items()}


def hash_weights(target: Target) -> str:
    """Return the sha256 of a target's file, or of its weights if it is from none; computed once a target."""
    if target.weights_hash is None:
        target.weights_hash = hash_file(target.path) if target.path else weights_sha256(target.module.state_dict())
    return target.weights_hash


def _find_folder(dataset: Dataset) -> str:
    """Return the folder that a dataset is read from; "" for generated images."""
    for part, attribute in (("description", "root"), ("location", "folder")):
        folder = getattr(getattr(dataset, part, None), attribute, None)
        if folder is not None:
            return str(Path(folder).resolve())
    return ""
