"""`ovstrans predict`: what a checkpoint sees in images, in words of the user's choice."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovstrans.cli import common, looking, predict_segments
from ovstrans.cli.looking import LOOK, WORDS
from ovstrans.files import OUTPUT_DIR

if TYPE_CHECKING:
    from ovstrans.checkpoints.file import Checkpoint
    from ovstrans.clip.text import TextClassifier
    from ovstrans.data.vocabularies.vocabulary import Vocabulary
    from ovstrans.evaluation.inference import Inference
    from ovstrans.evaluation.prediction_folder import PredictionFolder
    from ovstrans.evaluation.prediction_inputs import Picture

SCHEMA = "ovstrans.predictions/1"

LARGEST = 2**22
"""Pixels of an image that is predicted as a whole: more would take gigabytes of features."""
WINDOW = 1024
"""Side of the windows that larger images are predicted in."""

_SHOWN = 20

_OUTPUT = "Output"
Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="[CHECKPOINT] IMAGE",
        help="A run or checkpoint (by default the run of `finetune`), then images and folders of images or video "
        "frames, sub-folders included.",
        show_default=False,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar='"A, B, ..."',
        help="What to tell apart, in any words; by default what the checkpoint was trained on.",
        rich_help_panel=WORDS,
    ),
]
VocabularyName = Annotated[
    str | None,
    typer.Option(
        "--vocabulary",
        metavar="FILE|NAME",
        help="The same from a file (one class a line, or .toml), or of a published dataset (ade20k-150).",
        rich_help_panel=WORDS,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"Look through overlapping windows of this side; {WINDOW} by default for images beyond 4 megapixels.",
        rich_help_panel=LOOK,
    ),
]
Confidence = Annotated[
    bool,
    typer.Option(
        "--confidence",
        help="Also write how sure the model is: gray pictures, 0..255 for 0..1.",
        rich_help_panel=_OUTPUT,
    ),
]
Overlay = Annotated[
    bool,
    typer.Option("--overlay/--no-overlay", help="Write the images under their classes.", rich_help_panel=_OUTPUT),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where the same command was interrupted.", rich_help_panel=_OUTPUT)
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.", rich_help_panel=_OUTPUT)]


def predict(
    paths: Paths,
    classes: Classes = None,
    vocabulary: VocabularyName = None,
    names: looking.Names = "auto",
    short_side: looking.ShortSide = None,
    long_side: looking.LongSide = None,
    window: Window = None,
    stride: looking.Stride = None,
    flip: looking.Flip = False,
    confidence: Confidence = False,
    overlay: Overlay = True,
    panoptic: predict_segments.Panoptic = False,
    instances: predict_segments.Instances = False,
    things: predict_segments.Things = None,
    resume: Resume = False,
    out: Out = OUTPUT_DIR / "predict",
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
    from ovstrans.data.vocabularies.class_names import check_names
    from ovstrans.errors import InputError
    from ovstrans.evaluation.inference import Inference
    from ovstrans.evaluation.prediction_folder import PredictionFolder
    from ovstrans.evaluation.prediction_inputs import find_pictures

    check_names(names)
    if classes is not None and vocabulary is not None:
        raise InputError("--classes and --vocabulary: give one of them")
    if resume and force:
        raise InputError("--resume and --force: one keeps what is there, the other replaces it; give one of them")
    segments = predict_segments.Asked(panoptic, instances, things, window, flip)
    place = common.pick_device(device)
    common.check_json(json, force=force)
    source, images = _checkpoint_first(paths)
    folder = PredictionFolder(out, overlays=overlay, confidence=confidence)
    folder.check(resume=resume, force=force)
    pictures = find_pictures(images, out=out)
    asked = _vocabulary(classes, vocabulary)
    inference = Inference(short_side or None, long_side, window, stride, flip)

    from ovstrans.frameworks import registry
    from ovstrans.frameworks.vocabulary import classifier_for

    checkpoint = _load(source)
    segments.check(source, checkpoint)
    if short_side is None and long_side is None:
        short, long = _published_size(checkpoint)
        inference = replace(inference, short_side=short, long_side=long)
    words = checkpoint.vocabulary if asked is None else asked
    if len(words) == 1:
        console.say(f"a single class, so every pixel will be {words.names[0]!r}; name what else there is")
    countable = predict_segments.countable(words, checkpoint.vocabulary, things)
    if segments and (unknown := predict_segments.told(words, countable, segments)):
        console.say(unknown)
    text = classifier_for(checkpoint, words, names).to(place)
    framework = registry.restore(checkpoint).to(place)
    settings = {"inference": inference.as_json(), "names": names}
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
        "inference": inference.as_json(),
        **folder.of_all_images(),
        "seconds": round(time.perf_counter() - start, 3),
        "images": entries,
        "failed": [{"file": str(path), "error": str(error)} for path, error in failed],
    }
    if json != "-" and entries:
        _show(summary)
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
    from ovstrans.data.images import read_image
    from ovstrans.errors import InputError
    from ovstrans.evaluation.inference import predict as look

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
        return replace(inference, window=WINDOW)
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


def _checkpoint_first(paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """The checkpoint file and the images; the run of `finetune` where the first path is an image or a folder of them.

    Raises InputError where there is no checkpoint or no image.
    """
    from ovstrans import console, files
    from ovstrans.data.images import IMAGE_SUFFIXES
    from ovstrans.errors import InputError
    from ovstrans.evaluation.prediction_inputs import VIDEO_SUFFIXES
    from ovstrans.training.run import RunFolder

    first, rest = paths[0], list(paths[1:])
    run = RunFolder(first)
    if first.is_dir():
        given = run.recipe.exists() or run.checkpoint.exists()
    else:
        given = first.suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    if not given:
        run, rest = RunFolder(OUTPUT_DIR / "run"), list(paths)
        if not run.checkpoint.exists():
            kind = "a folder without a checkpoint" if first.is_dir() else "an image"
            raise InputError(
                f"{first}: {kind}, but which checkpoint is to look at it? Name one before it, "
                f"or make {run.path} with `ovstrans finetune`"
            )
        console.say(f"checkpoint: {run.checkpoint}")
    if not rest:
        raise InputError(f"{first}: and which images? Name images, or folders of them, behind it")
    if given and not first.is_dir():
        return files.existing_file(first), rest
    return run.require_checkpoint(), rest


def _load(path: Path) -> Checkpoint:
    """The checkpoint in a file; InputError that says what else it is."""
    from ovstrans.checkpoints.file import load_checkpoint
    from ovstrans.cli.inspect import describe
    from ovstrans.errors import InputError

    try:
        return load_checkpoint(path)
    except InputError as error:
        try:
            kind = describe(path)[0].kind
        except InputError:
            kind = ""
        if kind == "sparse checkpoint" or (not kind and path.suffix == ".safetensors"):
            raise
        raise InputError(
            f"{path}: not a checkpoint{kind and f', it holds: {kind}'}; give a run of `ovstrans finetune`, or the "
            "checkpoint in it"
        ) from error


def _vocabulary(classes: str | None, vocabulary: str | None) -> Vocabulary | None:
    from ovstrans.cli.words import classes_vocabulary
    from ovstrans.cost.request import named_vocabulary

    if classes is not None:
        return classes_vocabulary(classes)
    return None if vocabulary is None else named_vocabulary(vocabulary)


def _published_size(checkpoint: Checkpoint) -> tuple[int | None, int | None]:
    """Short and long side that papers evaluate at on the data that a checkpoint was trained on."""
    from ovstrans.data.published.registry import named

    known = named(str(checkpoint.recipe.get("data", {}).get("dataset", "")))
    return (None, None) if known is None or known[0].published_size is None else known[0].published_size


def _show(summary: dict[str, Any]) -> None:
    """The classes that were found, the largest first, and where the files are."""
    from ovstrans import console

    images = summary["images"]
    pixels = sum(height * width for height, width in (image["size"] for image in images))
    total: dict[int, list[float]] = {}
    for image in images:
        for found in image["classes"]:
            entry = total.setdefault(found["index"], [0, 0.0])
            entry[0] += 1
            entry[1] += found["share"] * image["size"][0] * image["size"][1]
    counts = _counted(images)
    for name in (name for count in counts.values() for name in count):
        total.setdefault(summary["classes"].index(name), [0, 0.0])
    order = sorted(total, key=lambda index: (-total[index][1], index))
    rows = [
        [
            summary["classes"][index],
            index,
            int(total[index][0]),
            f"{100 * total[index][1] / pixels:.1f}",
            *(count[summary["classes"][index]] for count in counts.values()),
        ]
        for index in order[:_SHOWN]
    ]
    more = f"; {len(order) - _SHOWN} classes more" if len(order) > _SHOWN else ""
    count = "1 image" if len(images) == 1 else f"{len(images)} images"
    caption = f"{count} in {summary['seconds']:.1f} s, written to {summary['out']}{more}"
    console.table("predict", ["class", "index", "images", "pixels %", *counts], rows, caption=caption)


def _counted(images: Sequence[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Segments and sure instances by class name, summed over images, where they were asked for."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("segments", "instances") if kind in images[0]}
    for image in images:
        for kind, count in counts.items():
            count.update(image[kind])
    return counts
