"""`ovstrans predict`: what a checkpoint sees in images, in words of the user's choice.

Here is what happens, in order; the options are in `predict_options`, what to start from in `predict_checkpoint`,
segments in `predict_segments`, the table at the end in `predict_show`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovstrans.cli import common, predict_segments
from ovstrans.cli import inference_options as looking
from ovstrans.cli import predict_options as options
from ovstrans.cli.predict_show import show
from ovstrans.files import OUTPUT_DIR
from ovstrans.segmenter.sources import asked_vocabulary, checkpoint_first, load, published_size

if TYPE_CHECKING:
    from ovstrans.clip.text import TextClassifier
    from ovstrans.evaluation.inference import Inference
    from ovstrans.segmenter.folder import PredictionFolder
    from ovstrans.segmenter.inputs import Picture

SCHEMA = "ovstrans.predictions/1"

LARGEST = 2**22
"""Pixels of an image that is predicted as a whole: more would take gigabytes of features."""


def predict(
    paths: options.Paths,
    classes: options.Classes = None,
    vocabulary: options.VocabularyName = None,
    names: looking.Names = "auto",
    short_side: looking.ShortSide = None,
    long_side: looking.LongSide = None,
    window: options.Window = None,
    stride: looking.Stride = None,
    flip: looking.Flip = False,
    confidence: options.Confidence = False,
    overlay: options.Overlay = True,
    panoptic: predict_segments.Panoptic = False,
    instances: predict_segments.Instances = False,
    things: predict_segments.Things = None,
    resume: options.Resume = False,
    out: options.Out = OUTPUT_DIR / "predict",
    json: common.Json = None,
    device: common.Device = "auto",
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Segment images by any words.

    Writes DIR/labels (class numbers, indexed PNG with a palette; 16-bit gray beyond 255 classes), DIR/overlays (for
    the eye) and DIR/classes.json (what the numbers mean); with --panoptic and --instances segments too. A broken image
    is named and left out; exit status 2.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console
    from ovstrans.errors import InputError
    from ovstrans.evaluation.inference import Inference
    from ovstrans.segmenter.folder import PredictionFolder
    from ovstrans.segmenter.inputs import find_pictures
    from ovstrans.vocabulary.prompts import check_names

    check_names(names)
    if classes is not None and vocabulary is not None:
        raise InputError("--classes and --vocabulary: give one of them")
    if resume and force:
        raise InputError("--resume and --force: one keeps what is there, the other replaces it; give one of them")
    segments = predict_segments.SegmentOptions(panoptic, instances, things, window, flip)
    place = common.pick_device(device)
    common.check_json(json, force=force)
    source, images = checkpoint_first(paths)
    folder = PredictionFolder(out, overlays=overlay, confidence=confidence)
    folder.check(resume=resume, force=force)
    pictures = find_pictures(images, out=out)
    asked = asked_vocabulary(classes, vocabulary)
    inference = Inference(short_side or None, long_side, window, stride, flip)

    from ovstrans.frameworks import registry
    from ovstrans.frameworks.registry import classifier_for

    checkpoint = load(source)
    segments.check(source, checkpoint)
    if short_side is None and long_side is None:
        short, long = published_size(checkpoint)
        inference = replace(inference, short_side=short, long_side=long)
    words = checkpoint.vocabulary if asked is None else asked
    if len(words) == 1:
        console.say(f"a single class, so every pixel will be {words.names[0]!r}; name what else there is")
    countable = predict_segments.countable(words, checkpoint.vocabulary, things)
    if segments and (unknown := predict_segments.told(words, countable, segments)):
        console.say(unknown)
    text = classifier_for(checkpoint, words, names).to(place)
    framework = registry.restore(checkpoint).to(place)
    settings = {"inference": inference.to_json(), "names": names}
    folder.begin(
        words,
        checkpoint=source,
        settings=settings,
        resume=resume,
        panoptic=countable.panoptic if panoptic else None,
        instances=countable.instances if instances else None,
    )
    start = time.perf_counter()
    entries, failed = _predict_all(framework, pictures, text, folder, inference, place)
    summary = {
        "schema": SCHEMA,
        "checkpoint": str(source),
        "out": str(out),
        "vocabulary": words.name,
        "classes": list(words.names),
        "inference": inference.to_json(),
        **folder.of_all_images(),
        "seconds": round(time.perf_counter() - start, 3),
        "images": entries,
        "failed": [{"file": str(path), "error": str(error)} for path, error in failed],
    }
    if json != "-" and entries:
        show(summary)
    common.emit_json(json, summary, force=True)
    if not entries:
        folder.abandon()
    for _, error in failed[:-1]:
        console.error(str(error))
    if failed:
        raise failed[-1][1]


def _predict_all(
    framework: Any,
    pictures: Sequence[Picture],
    text: TextClassifier,
    folder: PredictionFolder,
    inference: Inference,
    device: Any,
) -> tuple[list[dict[str, Any]], list[tuple[Path, Exception]]]:
    """Predict and write image by image: the summaries, and the images that could not be read."""
    from ovstrans import console
    from ovstrans.datasets.images import read_image
    from ovstrans.errors import InputError
    from ovstrans.evaluation.inference import predict_image as look

    entries: list[dict[str, Any]] = []
    failed: list[tuple[Path, Exception]] = []
    done = sum(folder.has(picture.name) for picture in pictures)
    if done:
        console.say(f"{folder.path}: {done} of {len(pictures)} images are done already")
    said = False
    with _resumable(folder, pictures), console.progress("predict", len(pictures), unit="images") as progress:
        for picture in pictures:
            seen: dict[str, Any] = {"file": str(picture.path)}
            if folder.has(picture.name):
                entries.append(seen | folder.entry(picture.name))
            else:
                try:
                    image = read_image(picture.path)
                except InputError as error:
                    failed.append((picture.path, error))
                else:
                    mine = _fitting(inference, image, whole=folder.segmented)
                    if mine != inference and not said:
                        said = True
                        console.say(_windowed(picture.path, image, mine))
                    with _enough_memory(picture.path, whole=folder.segmented):
                        found = look(
                            framework,
                            image,
                            text,
                            device=device,
                            inference=mine,
                            confidence=folder.confidence,
                            panoptic=folder.book.panoptic,
                            instances=folder.book.instances,
                        )
                    folder.write(picture.name, image, found)
                    entries.append(seen | folder.entry(picture.name, found.classes) | {"window": mine.window})
            progress.advance()
    return entries, failed


def _fitting(inference: Inference, image: Any, *, whole: bool) -> Inference:
    """The inference of an image uint8 [3, H, W] that is too large to be looked at at its size: in windows.

    whole: smaller instead, since segments are of whole images.
    """
    height, width = inference.size(*(int(side) for side in image.shape[-2:]))
    if inference.window is not None or height * width <= LARGEST:
        return inference
    if not whole:
        return replace(inference, window=options.WINDOW)
    return replace(inference, long_side=max(1, int(max(height, width) * math.sqrt(LARGEST / (height * width)))))


def _windowed(path: Path, image: Any, inference: Inference) -> str:
    sides = tuple(int(side) for side in image.shape[-2:])
    if inference.window is None:
        (height, width), (high, wide) = sides, inference.size(*sides)
        return (
            f"{path}: {width}x{height} is looked at as {wide}x{high}, as is all beyond {LARGEST / 2**20:.0f} "
            "megapixels where segments are asked for; --long-side chooses"
        )
    height, width = replace(inference, window=None).size(*sides)
    return (
        f"{path}: {width}x{height} is looked at in windows of {inference.window} pixels, as is all beyond "
        f"{LARGEST / 2**20:.0f} megapixels; --window chooses, --long-side makes it smaller instead"
    )


@contextmanager
def _resumable(folder: PredictionFolder, pictures: Sequence[Picture]) -> Iterator[None]:
    """When the block ends, what is done is whole; where it ends early, say what is and how to go on."""
    from ovstrans import console

    try:
        yield
        folder.finish()
    except BaseException:
        folder.finish()
        folder.abandon()
        done = sum(folder.has(picture.name) for picture in pictures)
        if done:
            console.warn(
                f"{folder.path}: {done} of {len(pictures)} images are done and whole; "
                "go on with the same command and --resume"
            )
        raise


@contextmanager
def _enough_memory(path: Path, *, whole: bool) -> Iterator[None]:
    """InputError in place of what torch raises where memory does not suffice."""
    import torch

    from ovstrans.errors import InputError

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error):
            remedy = "make it smaller (--long-side 1024)" if whole else "use windows (--window 512), or --long-side"
            raise InputError(f"{path}: the memory does not suffice for it; {remedy}") from error
        raise
