"""Reading what `export` is given: an object or file of ours, or a file of another program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ovstrans import files
from ovstrans.checkpoints import file as checkpoint_file
from ovstrans.checkpoints.file import Checkpoint, find_checkpoint, load_checkpoint
from ovstrans.clip.activation import model_for_file
from ovstrans.clip.load import Clip
from ovstrans.clip.weights import StateFit, WeightFile, read_weight_file
from ovstrans.environment import bake_pruning
from ovstrans.errors import InputError
from ovstrans.interop.import_clip import MaskedClip, clip_from_weights, clip_of_mask, mask_clip
from ovstrans.interop.import_framework import PUBLISHED_CLIP, embed_classes, import_checkpoint
from ovstrans.interop.import_mask import find_mask, mask_from_zeros, mask_of_pruned_weights, split_mask
from ovstrans.interop.origin import parse_origin, recorded_mask
from ovstrans.masks import file as mask_file
from ovstrans.masks.file import WEIGHTS_FORMAT, load_mask
from ovstrans.masks.mask import Mask
from ovstrans.masks.origin import same_architecture
from ovstrans.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class ImportOptions:
    """Statements of the caller about a source; None leaves a question to the source.

    Attributes:
        model: open_clip model.
        pretrained: Tag or file of its weights.
        framework: Framework that a file of other code is a checkpoint of.
        mask: Mask that its weights are under.
        vocabulary: Classes that it was trained with.
        body_only: Of `weight_mask` entries, take only those of layer1 to layer4.
        partial: Take what fits, and start the rest as training does.
        seed: Seed of what is drawn at random then.
    """

    model: str | None = None
    pretrained: str | None = None
    framework: str | None = None
    mask: Mask | None = None
    vocabulary: Vocabulary | None = None
    body_only: bool = True
    partial: bool = False
    seed: int = 0

    def refuse(self, source: str, *names: str) -> None:
        """Raise InputError if one of `names` was given though the source settles it."""
        for name in names:
            if getattr(self, name) not in (None, False):
                raise InputError(f"`{name}`: {source} says this by itself; leave it out")


@dataclass(frozen=True)
class ExportSource:
    """A source opened for export.

    Attributes:
        content: A checkpoint, a CLIP under its mask, or a mask.
        fit: How the file's entries compare with the model's, if it was a file of weights.
        ignored: Entries of the file that are no weights.
    """

    content: Checkpoint | MaskedClip | Mask
    fit: StateFit | None = None
    ignored: tuple[str, ...] = ()


def open_source(source: Path | Clip | Mask | Checkpoint, format: str, options: ImportOptions) -> ExportSource:
    """Read a source for a format.

    Args:
        source: An object of ours, a file, or the folder of a run.
        format: "mask" looks for the mask in it, "sparse" also embeds the class names, "dense" and "detectron2" take
            the weights: a framework's, or a CLIP's under its mask.
        options: What the caller says of the source.

    Raises:
        InputError: If a file is broken, could run code, or lacks what is needed, or an option does not suit the
            source.
        MismatchError: If the weights do not fit the model.
    """
    name = str(source) if isinstance(source, Path) else f"the {type(source).__name__}"
    content = _read(find_checkpoint(source)) if isinstance(source, Path) else source
    if isinstance(content, Clip):
        content = replace(content, model=bake_pruning(content.model))
    if isinstance(content, WeightFile):
        return _open_external(content, format, options)
    if isinstance(content, Checkpoint):
        options.refuse(name, "framework", "partial", "mask", "vocabulary", "model", "pretrained")
        if format != "mask":
            return ExportSource(content)
        if content.mask is None:
            raise InputError(f"{name}: was trained without a mask; there is none to write")
        return ExportSource(content.mask)
    if isinstance(content, Mask):
        options.refuse(name, "framework", "partial", "mask", "vocabulary")
        return ExportSource(content if format == "mask" else clip_of_mask(content, options.model, options.pretrained))
    options.refuse(name, "framework", "partial", "vocabulary", "model", "pretrained")
    if format != "mask":
        return ExportSource(mask_clip(content, options.mask))
    if options.mask is not None:
        return ExportSource(options.mask)
    encoder = content.visual.state_dict()
    return ExportSource(mask_from_zeros(encoder, name, model=content.name, pretrained=content.pretrained))


def _read(path: Path) -> Checkpoint | Mask | WeightFile:
    found = files.read_metadata(path).get("format") if path.suffix == ".safetensors" else None
    if found in checkpoint_file.FORMATS:
        return load_checkpoint(path)
    return load_mask(path) if found == mask_file.FORMAT else read_weight_file(path)


def _open_external(file: WeightFile, format: str, options: ImportOptions) -> ExportSource:
    where = str(file.path)
    origin = parse_origin(file.origin, where)
    recorded = origin.get("clip") or file.metadata
    model = options.model or recorded.get("model") or PUBLISHED_CLIP[0]
    same = same_architecture(model, recorded.get("model", ""))
    pretrained = options.pretrained or (recorded.get("pretrained") if same else None) or None
    if not origin and not options.framework and file.metadata.get("format") != WEIGHTS_FORMAT:
        model = model_for_file(model, file)
    mask = options.mask or recorded_mask(origin, file.state, where)
    body_only = options.body_only
    if format == "mask":
        mask = mask or find_mask(file.state, where, model=model, pretrained=pretrained or "", body_only=body_only)
        return ExportSource(mask, ignored=file.ignored)
    state, own = split_mask(file.state, where, model=model, pretrained=pretrained or "", body_only=body_only)
    file, mask = replace(file, state=state), mask or own
    if options.framework or origin.get("framework"):
        checkpoint, fit = import_checkpoint(
            file,
            framework=options.framework,
            model=options.model,
            pretrained=options.pretrained,
            mask=mask,
            partial=options.partial,
            seed=options.seed,
        )
        checkpoint = embed_classes(checkpoint, options.vocabulary) if format == "sparse" else checkpoint
        return ExportSource(checkpoint, fit, file.ignored)
    mask = mask or mask_of_pruned_weights(file.metadata, file.state, where)
    clip = clip_from_weights(file.state, where, model=model, pretrained=pretrained, mask=mask, partial=options.partial)
    return ExportSource(clip, clip.fit, file.ignored)
