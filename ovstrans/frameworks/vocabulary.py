"""Giving a trained framework another vocabulary: the open part of open-vocabulary segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.clip.load import Clip, load_clip, random_clip
from ovstrans.clip.text import TextClassifier, embed_vocabulary
from ovstrans.clip.weights import VISUAL
from ovstrans.errors import MismatchError
from ovstrans.frameworks import registry
from ovstrans.vocabulary.class_names import AUTO, by_names
from ovstrans.vocabulary.templates import BARE, DATASET, template_set
from ovstrans.vocabulary.vocabulary import Vocabulary


def text_clip(checkpoint: Checkpoint) -> Clip:
    """A CLIP whose text encoder is the checkpoint's: the one it carries, else the recorded model's.

    Its image encoder means nothing. Raises MismatchError where the carried tower is of another model,
    and as `load_clip` does where the recorded weights cannot be had.
    """
    recorded = checkpoint.clip
    if checkpoint.text_encoder is None:
        return load_clip(recorded["model"], recorded["pretrained"] or None)
    clip = random_clip(recorded["model"], pretrained=recorded["pretrained"])
    wanted = {key: value for key, value in clip.model.state_dict().items() if not key.startswith(VISUAL)}
    for key, value in checkpoint.text_encoder.items():
        if key not in wanted or wanted[key].shape != value.shape:
            raise MismatchError(f"text encoder of the checkpoint: {key} does not fit {recorded['model']}")
    for key in wanted:
        if key not in checkpoint.text_encoder and key != "attn_mask":
            raise MismatchError(f"text encoder of the checkpoint: {key} of {recorded['model']} is missing")
    clip.model.load_state_dict({key: value.float() for key, value in checkpoint.text_encoder.items()}, strict=False)
    return replace(clip, pretrained=recorded["pretrained"], weights_sha256=recorded["weights_sha256"])


def classifier_for(checkpoint: Checkpoint, vocabulary: Vocabulary, names: str = AUTO) -> TextClassifier:
    """The text classifier of `vocabulary` for a checkpoint's framework, worded as the framework words its own.

    names: see `with_prompts`. Class names that come without prompts get those of the training, which matter: a model
    that learned from "a photo of a {}." scores half as well or less with bare names. The training vocabulary's own
    rows where names and templates are the same, so that neither text encoder nor cache is needed; else embedded anew.
    Raises as `with_prompts` and `text_clip` do.
    """
    trained = checkpoint.vocabulary
    if vocabulary.templates == template_set(BARE):
        vocabulary = replace(vocabulary, templates=trained.templates)
    asked = with_prompts(vocabulary, checkpoint.framework, checkpoint.options, names)
    if (trained.classes, trained.templates) == (asked.classes, asked.templates):
        return TextClassifier(checkpoint.text_embeddings, checkpoint.text_owner, asked)
    return embed_vocabulary(text_clip(checkpoint), asked)


def with_prompts(vocabulary: Vocabulary, framework: str, options: Mapping[str, Any], names: str = AUTO) -> Vocabulary:
    """`vocabulary` with the class names and prompts that a framework asks for.

    names: which names of a class go into prompts, see `datasets.class_names`; "auto": as the framework was
    published, the synonyms for FC-CLIP, the authors' names cleaned for GKC and for DeepLabV3 as OpenTrans has it.
    Whatever it is, reports call the classes as the vocabulary does.

    The option `templates` names the prompts, else the framework's own choice does; "dataset" keeps the
    vocabulary's. Doing it twice changes nothing. Raises InputError for an unknown framework or name.
    """
    kind = registry.find(framework)
    chosen = options.get("templates", kind.templates)
    formatted = kind.format_class_names(vocabulary) if names == AUTO else by_names(vocabulary, names)
    return formatted if chosen in (None, DATASET) else replace(formatted, templates=template_set(chosen))
