"""Bringing in the checkpoints of published code, and our own exports, as checkpoints of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ovstrans.checkpoints.file import TEXT_ENCODER, Checkpoint
from ovstrans.clip.load import load_clip, model_info
from ovstrans.clip.text import TextClassifier, embed_vocabulary
from ovstrans.clip.weights import StateFit, fit_state
from ovstrans.errors import InputError
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.registry import text_clip, with_prompts
from ovstrans.interop.export import from_upstream, upstream_names
from ovstrans.interop.foreign import Foreign
from ovstrans.interop.matching import rename
from ovstrans.interop.origin import OURS, read_about
from ovstrans.interop.plain_clip import NAME_THE_MODEL, PARTIAL, open_clip_name
from ovstrans.masks.mask import Mask
from ovstrans.vocabulary.vocabulary import Vocabulary

PUBLISHED_CLIP = ("RN50", "openai")
"""The CLIP of a published checkpoint, where the user names no other (all of GKC's and OpenTrans' figures)."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std that GKC's configuration normalises images by, though its trunk is CLIP's."""

_FIXED_CLASSES = "sem_seg_head.predictor.class_embed."
"""In Mask2Former a class head with a row per class; GKC keeps a square matrix under the same name."""

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
"""Options of the head: the tensor and the dimension that show each."""
_OFFSETS = f"{_LAYERS['encoder_layers']}0.self_attn.sampling_offsets.weight"
_NO_CLASSES = Vocabulary("none", ())
_POINTS = 3 * 4 * 2
"""Rows of a deformable attention's offsets per head: levels, points, coordinates."""


def import_checkpoint(
    foreign: Foreign,
    *,
    framework: str | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    mask: Mask | None = None,
    partial: bool = False,
    seed: int = 0,
) -> tuple[Checkpoint, StateFit]:
    """A checkpoint of ours with the weights of a file, and how its entries compare with the framework's.

    framework: name; model, pretrained: the CLIP it is built on; None takes what the file records, and
    of files that record nothing `PUBLISHED_CLIP`. Sizes of the head are read off the tensors.  mask: in force on
    the backbone, or None.  The checkpoint's text classifier is empty, see `with_text`.

    partial: what is missing stays as the framework starts, trunk from the CLIP, head drawn from `seed`.
    Without it MismatchError says what is missing; a shape other than the framework's is one either way.
    Raises InputError where no framework is named, or it is unknown.
    """
    where = str(foreign.path)
    about = read_about(foreign.about, where)
    name = str(about.get("framework", "")) or framework or ""
    if not name:
        known = ", ".join(upstream_names())
        raise InputError(f"{where}: does not say what it is a checkpoint of; name it with --framework ({known})")
    if framework not in (None, name):
        raise InputError(f"{where}: is a checkpoint of {name}, not of {framework}; leave --framework out")
    recorded: Mapping[str, Any] = about.get("clip") or {}
    clip = _clip(recorded, model, pretrained, name if not about else None)
    state, unknown = _by_our_names(foreign.state, str(about.get("names", name)), where)
    text = {key.removeprefix(TEXT_ENCODER): value for key, value in state.items() if key.startswith(TEXT_ENCODER)}
    state = {key: value for key, value in state.items() if not key.startswith(TEXT_ENCODER)}
    options = {**_optional_parts(name, state), **about.get("options", {}), **head_options(name, state)}
    blank = registry.build_on_meta(name, clip["model"], options=options)
    imported = fit_state(state, blank.state_dict(), where, remedy=NAME_THE_MODEL)
    imported = replace(imported, unexpected=(*unknown, *imported.unexpected))
    if not partial:
        imported.require_complete(remedy=PARTIAL)
    start = _start(name, clip, options, seed) if imported.missing else blank
    whole = {key: _taken(imported, key, value) for key, value in start.state_dict().items()}
    checkpoint = Checkpoint(
        framework=name,
        options=start.options,
        state=whole,
        mask=mask,
        text_embeddings=torch.zeros(0, model_info(clip["model"])[0]),
        text_owner=torch.zeros(0, dtype=torch.int64),
        vocabulary=Vocabulary.from_json(about["vocabulary"]) if "vocabulary" in about else _NO_CLASSES,
        clip=clip,
        recipe=about.get("recipe", {}),
        provenance={**about.get("provenance", {}), "imported": foreign.path.name},
        text_encoder={key: value for key, value in text.items() if key != "attn_mask"} or None,
    )
    return checkpoint, imported


def with_text(checkpoint: Checkpoint, vocabulary: Vocabulary | None = None) -> Checkpoint:
    """The checkpoint with the text classifier of `vocabulary`, with_prompts as its framework asks.

    vocabulary: what it was trained with; None: what the file recorded. Raises InputError where neither is
    there, and as `text_clip` does.
    """
    vocabulary = vocabulary or checkpoint.vocabulary
    if not len(vocabulary):
        raise InputError(
            f"{checkpoint.provenance.get('imported', checkpoint.framework)}: does not say what classes it was "
            "trained with; give them with --vocabulary FILE"
        )
    text = embed_vocabulary(text_clip(checkpoint), with_prompts(vocabulary, checkpoint.framework, checkpoint.options))
    return replace(checkpoint, text_embeddings=text.embeddings, text_owner=text.owner, vocabulary=text.vocabulary)


def head_options(framework: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of a framework that its tensors final_steps; {} where the head is not in `state`.

    state: by our names. Of `fcclip` and `gkc` these are the sizes of the head.
    """
    if framework not in upstream_names():
        return {}
    found: dict[str, Any] = {
        option: state[key].shape[axis]
        for option, (key, axis) in _SIZES.items()
        if key in state and state[key].dim() > axis
    }
    counts = {option: _count(state, prefix) for option, prefix in _LAYERS.items()}
    found.update((option, count) for option, count in counts.items() if count)
    offsets = state.get(_OFFSETS)
    return found if offsets is None else {**found, "heads": offsets.shape[0] // _POINTS}


def _optional_parts(framework: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options that say which parts GKC has for its training, read off the parts."""
    if framework != "gkc" or "classifier.query.weight" not in state:
        return {}
    students = any(key.startswith("training_only.students.") for key in state)
    scaled = "training_only.text_scale" in state
    if not students:
        return {"distill_from": "embedding"} if scaled else {"distill": "none"}
    return {} if scaled else {"distill": "plain"}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many layers are numbered after `prefix`."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for key in state if (match := pattern.match(key))})


def _by_our_names(state: Mapping[str, Tensor], names: str, where: str) -> tuple[dict[str, Tensor], list[str]]:
    if names == OURS:
        return dict(state), []
    classes = state.get(f"{_FIXED_CLASSES}weight")
    if classes is not None and len(set(classes.shape)) > 1:
        fixed = [key for key in state if key.startswith(_FIXED_CLASSES)]
        renamed, unknown = rename(
            {key: value for key, value in state.items() if key not in fixed}, from_upstream(names), where
        )
        return renamed, [*unknown, *fixed]
    return rename(state, from_upstream(names), where)


def _clip(
    recorded: Mapping[str, Any], model: str | None, pretrained: str | None, published: str | None
) -> dict[str, Any]:
    """What a checkpoint records of its CLIP. published: the framework, of a file that is none of ours."""
    if recorded and model in (None, recorded.get("model")) and pretrained in (None, recorded.get("pretrained")):
        return dict(recorded)
    name = model or PUBLISHED_CLIP[0]
    tag = pretrained or (PUBLISHED_CLIP[1] if model is None else "")
    name = open_clip_name(name, tag)
    _, size, mean, std = model_info(name)
    if published == "gkc":
        mean, std = _IMAGENET
    about = {"model": name, "pretrained": tag, "weights_sha256": "", "image_size": size}
    return {**about, "mean": list(mean), "std": list(std)}


def _start(name: str, clip: Mapping[str, Any], options: Mapping[str, Any], seed: int) -> Framework:
    """The framework as training would start it."""
    loaded = load_clip(clip["model"], clip["pretrained"] or None)
    text = TextClassifier(torch.zeros(0, loaded.embed_dim), torch.zeros(0, dtype=torch.long), _NO_CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registry.build(
            name, encoder=loaded.visual, mean=clip["mean"], std=clip["std"], text=text, options=options
        )


def _taken(imported: StateFit, key: str, value: Tensor) -> Tensor:
    """The file's tensor; else the framework's own, of which only a counter may be a meta tensor."""
    if key in imported.state:
        return imported.state[key]
    return torch.zeros_like(value, device="cpu") if value.is_meta else value.detach()
