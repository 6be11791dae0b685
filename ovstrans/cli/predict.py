"""`ovstrans predict`: segment images by any class names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ovstrans.cli import common
from ovstrans.cli import inference_options as scoring
from ovstrans.cli import predict_options as options
from ovstrans.files import OUTPUT_DIR

if TYPE_CHECKING:
    from ovstrans.segmenter.predict import Predictions

_SHOWN = 20
"""Classes in the table, at most."""


def predict(
    paths: options.Paths,
    classes: options.Classes = None,
    vocabulary: options.VocabularyName = None,
    names: scoring.Names = "auto",
    short_side: scoring.ShortSide = None,
    long_side: scoring.LongSide = None,
    window: options.Window = None,
    stride: scoring.Stride = None,
    flip: scoring.Flip = False,
    settings: options.Settings = None,
    pretrained: options.Pretrained = None,
    confidence: options.Confidence = False,
    overlay: options.Overlay = True,
    panoptic: options.Panoptic = False,
    instances: options.Instances = False,
    things: options.Things = None,
    runtime: options.Runtime = "auto",
    resume: options.Resume = False,
    out: options.Out = OUTPUT_DIR / "predict",
    json: common.Json = None,
    device: common.Device = "auto",
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Segment images by any class names.

    Writes DIR/labels (class numbers, indexed PNG with a palette; 16-bit gray beyond 255 classes), DIR/overlays
    (pictures for people) and DIR/classes.json (what the numbers mean); with --panoptic and --instances segments too.
    A broken image is named and left out; exit status 2.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console
    from ovstrans.errors import InputError
    from ovstrans.segmenter.predict import predict as predict_images

    files_of_out = [out / f"{name}.json" for name in ("classes", "panoptic", "instances")]
    common.check_json(json, force=force, outputs=files_of_out)
    source, images = split_paths(paths)
    with console.progress_bar() as progress:
        predictions = predict_images(
            source,
            images,
            classes=classes,
            vocabulary=vocabulary,
            names=names,
            short_side=short_side,
            long_side=long_side,
            window=window,
            stride=stride,
            flip=flip,
            confidence=confidence,
            overlay=overlay,
            panoptic=panoptic,
            instances=instances,
            things=things,
            runtime=runtime,
            resume=resume,
            force=force,
            out=out,
            device=device,
            settings=settings or (),
            pretrained=pretrained,
            progress=progress,
        )
    if json != "-" and predictions.images:
        show(predictions)
    common.emit_json(json, predictions.to_json(), force=True)
    for failed in predictions.failed[:-1]:
        console.error(failed.error)
    if predictions.failed:
        raise InputError(predictions.failed[-1].error)


def split_paths(paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Split the arguments into the run or checkpoint and the images.

    The first is taken for an image or a folder of images if it looks like one; the run of `finetune` is used then.

    Raises:
        InputError: If there is no checkpoint or no image.
    """
    from ovstrans import console
    from ovstrans.datasets.images import IMAGE_SUFFIXES
    from ovstrans.errors import InputError, MissingFileError
    from ovstrans.segmenter.inputs import VIDEO_SUFFIXES, hint_at_quotes
    from ovstrans.training.run_folder import RunFolder

    first, run = paths[0], RunFolder(paths[0])
    if first.is_dir():
        is_checkpoint = run.recipe.exists() or run.checkpoint.exists()
    else:
        is_checkpoint = first.suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    if is_checkpoint:
        if not first.exists() and hint_at_quotes(first):
            raise MissingFileError(f"{first}: no such run, checkpoint or image{hint_at_quotes(first)}")
        if len(paths) == 1:
            raise InputError(f"{first}: no images given; name images, or folders of them, after the checkpoint")
        return first, list(paths[1:])
    run = RunFolder(OUTPUT_DIR / "run")
    if not run.checkpoint.exists():
        kind = "a folder without a checkpoint" if first.is_dir() else "an image"
        raise InputError(
            f"{first}: {kind}, and no checkpoint before it; name a run or checkpoint first, or make {run.path} with "
            "`ovstrans finetune`"
        )
    console.say(f"checkpoint: {run.checkpoint}")
    return run.path, list(paths)


def show(predictions: Predictions) -> None:
    """Show a table of the classes that were found, the largest first."""
    from ovstrans import console

    images, names = predictions.images, predictions.vocabulary.names
    pixels = sum(image.size[0] * image.size[1] for image in images)
    total: dict[int, list[float]] = {index: [0, 0.0] for index in range(len(names))}
    for image in images:
        for found in image.classes:
            entry = total[found.index]
            entry[0] += 1
            entry[1] += found.share * image.size[0] * image.size[1]
    counts = _sum_counts(predictions)
    order = sorted(total, key=lambda index: (-total[index][1], index))
    rows = [
        [
            names[index],
            index,
            int(total[index][0]),
            f"{100 * total[index][1] / pixels:.1f}",
            *(count[names[index]] for count in counts.values()),
        ]
        for index in order[:_SHOWN]
    ]
    more = ""
    if len(order) > _SHOWN:
        absent = sum(not total[index][0] for index in order[_SHOWN:])
        more = f"; {common.counted(len(order) - _SHOWN, 'more class', 'more classes')}, {absent} of them in no image"
    number = common.counted(len(images), "image")
    caption = f"{number} in {predictions.seconds:.1f} s, written to {predictions.out}{more}"
    console.table("predict", ["class", "index", "images", "pixels %", *counts], rows, caption=caption)


def _sum_counts(predictions: Predictions) -> dict[str, Counter[str]]:
    """Sum segments and instances over the images, by class name; those that were asked for."""
    counts: dict[str, Counter[str]] = {}
    for image in predictions.images:
        for kind, found in (("segments", image.segments), ("instances", image.instances)):
            if found is not None:
                counts.setdefault(kind, Counter()).update(found)
    return counts
