"""What `export` is given: a file of ours, or one of another program, as what can be written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ovstrans import files
from ovstrans.checkpoints import file as checkpoint_file
from ovstrans.checkpoints.file import Checkpoint
from ovstrans.clip.weights import StateFit
from ovstrans.errors import InputError
from ovstrans.interop.foreign import Foreign, read_foreign
from ovstrans.interop.import_framework import PUBLISHED_CLIP, import_checkpoint, with_text
from ovstrans.interop.origin import read_about, recorded_image_encoder, recorded_mask
from ovstrans.interop.plain_clip import (
    PlainClip,
    clip_from_weights,
    mask_in,
    masked_clip,
    pruned_mask,
    without_masks,
)
from ovstrans.masks import file as mask_file
from ovstrans.masks.mask import Mask
from ovstrans.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class ImportOptions:
    """What the user says of a source; None where it is to speak for itself.

    model, pretrained: the CLIP.  framework: what a file of other code is of.  mask: that its weights are
    under.  vocabulary: it was trained with.  body: of `weight_mask` entries take those of layer1 to layer4
    only.  partial: take what fits.  seed: of what is drawn at random then.
    """

    model: str | None = None
    pretrained: str | None = None
    framework: str | None = None
    mask: Mask | None = None
    vocabulary: Vocabulary | None = None
    body: bool = True
    partial: bool = False
    seed: int = 0

    def refuse(self, path: Path, *names: str) -> None:
        """InputError where one of `names` was given though the file settles it."""
        for name in names:
            if getattr(self, name) not in (None, False):
                raise InputError(f"--{name}: {path} says this by itself; leave it out")


@dataclass(frozen=True)
class ExportInput:
    """found: what can be written.  imported: how a file's entries and the model's compare.
    ignored: entries of the file that are no weights."""

    found: Checkpoint | PlainClip | Mask
    imported: StateFit | None = None
    ignored: tuple[str, ...] = ()


def open_source(path: Path, kind: str, wish: ImportOptions) -> ExportInput:
    """Read a file for a format.

    kind: "mask" finds the mask in it, "sparse" also the text classifier, "dense" and "detectron2" the
    weights: a framework's, or those of a CLIP under its mask. Raises InputError for a file that is
    broken, could run code, or lacks what is needed; MismatchError where it does not fit.
    """
    metadata = files.read_metadata(path) if path.suffix == ".safetensors" else {}
    if metadata.get("format") == checkpoint_file.FORMAT:
        wish.refuse(path, "framework", "partial", "mask", "vocabulary", "model", "pretrained")
        checkpoint = checkpoint_file.load_checkpoint(path)
        if kind == "mask" and checkpoint.mask is None:
            raise InputError(f"{path}: was trained without a mask; there is none to write")
        return ExportInput(checkpoint.mask if kind == "mask" and checkpoint.mask else checkpoint)
    if metadata.get("format") == mask_file.FORMAT:
        wish.refuse(path, "framework", "partial", "mask", "vocabulary")
        mask = mask_file.load_mask(path)
        return ExportInput(mask if kind == "mask" else masked_clip(mask, wish.model, wish.pretrained))
    return _open_foreign(read_foreign(path), kind, wish)


def _open_foreign(foreign: Foreign, kind: str, wish: ImportOptions) -> ExportInput:
    where = str(foreign.path)
    about = read_about(foreign.about, where)
    recorded = about.get("clip") or foreign.metadata
    model = wish.model or recorded.get("model") or PUBLISHED_CLIP[0]
    same = model == recorded.get("model")
    pretrained = wish.pretrained or (recorded.get("pretrained") if same else None) or None
    mask = wish.mask or recorded_mask(about, recorded_image_encoder(foreign.state), where)
    of: dict[str, Any] = {"model": model, "pretrained": pretrained or "", "body": wish.body}
    if kind == "mask":
        return ExportInput(mask or mask_in(foreign.state, where, **of), ignored=foreign.ignored)
    state, own = without_masks(foreign.state, where, **of)
    foreign, mask = replace(foreign, state=state), mask or own
    if wish.framework or about.get("framework"):
        checkpoint, imported = import_checkpoint(
            foreign,
            framework=wish.framework,
            model=wish.model,
            pretrained=wish.pretrained,
            mask=mask,
            partial=wish.partial,
            seed=wish.seed,
        )
        checkpoint = with_text(checkpoint, wish.vocabulary) if kind == "sparse" else checkpoint
        return ExportInput(checkpoint, imported, foreign.ignored)
    mask = mask or pruned_mask(foreign.metadata, foreign.state, where)
    clip = clip_from_weights(foreign.state, where, model=model, pretrained=pretrained, mask=mask, partial=wish.partial)
    return ExportInput(clip, clip.imported, foreign.ignored)
