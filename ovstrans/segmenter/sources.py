"""Which checkpoint `ovstrans predict` takes, which words, and the size that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ovstrans.files import OUTPUT_DIR

if TYPE_CHECKING:
    from ovstrans.checkpoints.file import Checkpoint
    from ovstrans.vocabulary.vocabulary import Vocabulary


def checkpoint_first(paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """The checkpoint file and the images; the run of `finetune` where the first path is an image or a folder of them.

    Raises InputError where there is no checkpoint or no image.
    """
    from ovstrans import console, files
    from ovstrans.datasets.images import IMAGE_SUFFIXES
    from ovstrans.errors import InputError
    from ovstrans.segmenter.inputs import VIDEO_SUFFIXES
    from ovstrans.training.run_folder import RunFolder

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


def load(path: Path) -> Checkpoint:
    """The checkpoint in a file; InputError that says what else it is."""
    from ovstrans.checkpoints.file import load_checkpoint
    from ovstrans.errors import InputError
    from ovstrans.interop.describe import describe_tensors

    try:
        return load_checkpoint(path)
    except InputError as error:
        try:
            kind = describe_tensors(path).kind
        except InputError:
            kind = ""
        if kind == "sparse checkpoint" or (not kind and path.suffix == ".safetensors"):
            raise
        raise InputError(
            f"{path}: not a checkpoint{kind and f', it holds: {kind}'}; give a run of `ovstrans finetune`, or the "
            "checkpoint in it"
        ) from error


def asked_vocabulary(classes: str | None, vocabulary: str | None) -> Vocabulary | None:
    """What `--classes` or `--vocabulary` say; None where neither is given."""
    from ovstrans.datasets.catalog import find_vocabulary
    from ovstrans.segmenter.class_list import classes_vocabulary

    if classes is not None:
        return classes_vocabulary(classes)
    return None if vocabulary is None else find_vocabulary(vocabulary)


def published_size(checkpoint: Checkpoint) -> tuple[int | None, int | None]:
    """Short and long side that papers evaluate at on the data that a checkpoint was trained on."""
    from ovstrans.datasets.published.registry import lookup_published

    known = lookup_published(str(checkpoint.recipe.get("data", {}).get("dataset", "")))
    return (None, None) if known is None or known[0].published_size is None else known[0].published_size
