"""Importing the checkpoints of published code, and our own exports, as checkpoints of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ovstrans.checkpoints.file import TEXT_ENCODER, Checkpoint
from ovstrans.clip.load import load_clip, model_info
from ovstrans.clip.text import TextClassifier
from ovstrans.clip.weights import StateFit, WeightFile, fit_state
from ovstrans.errors import InputError
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.registry import text_clip, with_prompts
from ovstrans.interop.import_clip import NAME_THE_MODEL, PARTIAL, open_clip_name
from ovstrans.interop.origin import OURS, parse_origin
from ovstrans.interop.published_names import from_published, published_frameworks, rename_known
from ovstrans.masks.mask import Mask
from ovstrans.vocabulary.vocabulary import Vocabulary

PUBLISHED_CLIP = ("RN50", "openai")
"""The CLIP of a published checkpoint, unless the caller names another (that of all figures of GKC and OpenTrans)."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std that GKC's configuration normalises images by, though its backbone is CLIP's."""

_FIXED_CLASSES = "sem_seg_head.predictor.class_embed."
"""In Mask2Former a class head with a row per class. GKC has a square matrix under the same name."""

_LAYERS = {
    "encoder_layers": "head.pixel_decoder.encoder.layers.",
    "decoder_layers": "head.transformer.decoder.layers.",
}
_SIZES = {
    "width": ("head.pixel_decoder.level_embed", 1),
    "queries": ("head.transformer.queries_features.weight", 0),
    "encoder_ffn": (f"{_LAYERS['encoder_layers']}0.fc1.weight", 0),
    "decoder_ffn": (f"{_LAYERS['decoder_layers']}0.fc1.weight", 0),
}
"""Options of the head: the tensor and the dimension that tell each."""
_OFFSETS = f"{_LAYERS['encoder_layers']}0.self_attn.sampling_offsets.weight"
_OFFSETS_PER_HEAD = 3 * 4 * 2
"""Rows of a deformable attention's offsets per head: levels, points, coordinates."""
_NO_CLASSES = Vocabulary("none", ())


def import_checkpoint(
    file: WeightFile,
    *,
    framework: str | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    mask: Mask | None = None,
    partial: bool = False,
    seed: int = 0,
) -> tuple[Checkpoint, StateFit]:
    """Make a checkpoint of ours with the weights of a file.

    Args:
        file: The file. Sizes of the head are read off its tensors.
        framework: The framework; None takes what the file records.
        model: open_clip model that it is built on; None takes what the file records, or `PUBLISHED_CLIP`.
        pretrained: Tag or file of that model's weights, likewise.
        mask: Mask in force on the backbone, or None.
        partial: Leave what is missing as the framework starts: the backbone from the CLIP, the head drawn at random.
        seed: Seed of that.

    Returns:
        The checkpoint, whose text classifier is empty (see `embed_classes`), and how the file's entries compare with
        the framework's.

    Raises:
        InputError: If no framework is named, or it is unknown.
        MismatchError: If a shape is not the framework's, or something is missing without `partial`.
    """
    where = str(file.path)
    origin = parse_origin(file.origin, where)
    name = str(origin.get("framework", "")) or framework or ""
    if not name:
        known = ", ".join(published_frameworks())
        raise InputError(f"{where}: does not say what it is a checkpoint of; name it as `framework` ({known})")
    if framework not in (None, name):
        raise InputError(f"{where}: is a checkpoint of {name}, not of {framework}; leave `framework` out")
    recorded: Mapping[str, Any] = origin.get("clip") or {}
    clip = _clip(recorded, model, pretrained, name if not origin else None)
    state, unknown = _by_our_names(file.state, str(origin.get("names", name)), where)
    text = {key.removeprefix(TEXT_ENCODER): value for key, value in state.items() if key.startswith(TEXT_ENCODER)}
    state = {key: value for key, value in state.items() if not key.startswith(TEXT_ENCODER)}
    options = {**_optional_parts(name, state), **origin.get("options", {}), **head_options(name, state)}
    on_meta = registry.build_on_meta(name, clip["model"], options=options)
    fit = fit_state(state, on_meta.state_dict(), where, remedy=NAME_THE_MODEL)
    fit = replace(fit, unexpected=(*unknown, *fit.unexpected))
    if not partial:
        fit.require_complete(remedy=PARTIAL)
    start = _start(name, clip, options, seed) if fit.missing else on_meta
    checkpoint = Checkpoint(
        framework=name,
        options=start.options,
        state={key: _taken(fit, key, value) for key, value in start.state_dict().items()},
        mask=mask,
        text_embeddings=torch.zeros(0, model_info(clip["model"]).embed_dim),
        text_owner=torch.zeros(0, dtype=torch.int64),
        vocabulary=Vocabulary.from_json(origin["vocabulary"]) if "vocabulary" in origin else _NO_CLASSES,
        clip=clip,
        recipe=origin.get("recipe", {}),
        provenance={**origin.get("provenance", {}), "imported": file.path.name},
        text_encoder={key: value for key, value in text.items() if key != "attn_mask"} or None,
    )
    return checkpoint, fit


def embed_classes(checkpoint: Checkpoint, vocabulary: Vocabulary | None = None) -> Checkpoint:
    """Return the checkpoint with a text classifier, prompted as its framework asks.

    Args:
        checkpoint: The checkpoint.
        vocabulary: What it was trained with; None takes what the file recorded.

    Raises:
        InputError: If neither is there, or the text encoder's weights cannot be had.
    """
    vocabulary = vocabulary or checkpoint.vocabulary
    if not len(vocabulary):
        raise InputError(
            f"{checkpoint.provenance.get('imported', checkpoint.framework)}: does not say what classes it was "
            "trained with; give them as `vocabulary`"
        )
    prompted = with_prompts(vocabulary, checkpoint.framework, checkpoint.options)
    framework = registry.framework_class(checkpoint.framework)
    text = framework.embed_vocabulary(text_clip(checkpoint), prompted, checkpoint.state)
    return replace(checkpoint, text_embeddings=text.embeddings, text_owner=text.owner, vocabulary=text.vocabulary)


def head_options(framework: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of a framework that its tensors tell: of fcclip and gkc, the sizes of the head.

    Args:
        framework: Name of the framework.
        state: Tensors by our names.

    Returns:
        Options by name; {} if the head is not in `state`.
    """
    if framework not in published_frameworks():
        return {}
    found: dict[str, Any] = {
        option: state[key].shape[axis]
        for option, (key, axis) in _SIZES.items()
        if key in state and state[key].dim() > axis
    }
    counts = {option: _count(state, prefix) for option, prefix in _LAYERS.items()}
    found.update((option, count) for option, count in counts.items() if count)
    offsets = state.get(_OFFSETS)
    return found if offsets is None else {**found, "heads": offsets.shape[0] // _OFFSETS_PER_HEAD}


def _optional_parts(framework: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options that say which parts GKC has for its training, read off the parts."""
    if framework != "gkc" or "classifier.query.weight" not in state:
        return {}
    students = any(key.startswith("training_only.students.") for key in state)
    scaled = "training_only.text_scale" in state
    if not students:
        return {"distill_from": "embedding"} if scaled else {"distill": "none"}
    return {} if scaled else {"distill": "plain"}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Count the layers that are numbered after `prefix`."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for key in state if (match := pattern.match(key))})


def _by_our_names(state: Mapping[str, Tensor], names: str, where: str) -> tuple[dict[str, Tensor], list[str]]:
    if names == OURS:
        return dict(state), []
    classes = state.get(f"{_FIXED_CLASSES}weight")
    if classes is not None and len(set(classes.shape)) > 1:
        fixed = [key for key in state if key.startswith(_FIXED_CLASSES)]
        rest = {key: value for key, value in state.items() if key not in fixed}
        renamed, unknown = rename_known(rest, from_published(names), where)
        return renamed, [*unknown, *fixed]
    return rename_known(state, from_published(names), where)


def _clip(
    recorded: Mapping[str, Any], model: str | None, pretrained: str | None, published: str | None
) -> dict[str, Any]:
    """Return what the checkpoint records of its CLIP.

    Args:
        recorded: What the file records.
        model: As for `import_checkpoint`.
        pretrained: As for `import_checkpoint`.
        published: The framework, of a file that is not ours.
    """
    if recorded and model in (None, recorded.get("model")) and pretrained in (None, recorded.get("pretrained")):
        return dict(recorded)
    name = model or PUBLISHED_CLIP[0]
    tag = pretrained or (PUBLISHED_CLIP[1] if model is None else "")
    name = open_clip_name(name, tag)
    info = model_info(name)
    mean, std = info.mean, info.std
    if published == "gkc":
        mean, std = _IMAGENET
    about = {"model": name, "pretrained": tag, "weights_sha256": "", "image_size": info.image_size}
    return {**about, "mean": list(mean), "std": list(std)}


def _start(name: str, clip: Mapping[str, Any], options: Mapping[str, Any], seed: int) -> Framework:
    """Build the framework as training starts it."""
    loaded = load_clip(clip["model"], clip["pretrained"] or None)
    text = TextClassifier(torch.zeros(0, loaded.embed_dim), torch.zeros(0, dtype=torch.long), _NO_CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registry.build(
            name, encoder=loaded.visual, mean=clip["mean"], std=clip["std"], text=text, options=options
        )


def _taken(fit: StateFit, key: str, value: Tensor) -> Tensor:
    """Return the file's tensor, or else the framework's own, of which only a counter may be a meta tensor."""
    if key in fit.state:
        return fit.state[key]
    return torch.zeros_like(value, device="cpu") if value.is_meta else value.detach()
