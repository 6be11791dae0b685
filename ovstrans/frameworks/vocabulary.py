"""Giving a trained framework another vocabulary: the open part of open-vocabulary segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.clip.load import Clip, load_clip, random_clip
from ovstrans.clip.text import TextClassifier, embed_vocabulary
from ovstrans.clip.weights import VISUAL
from ovstrans.data.vocabularies.class_names import AUTO, by_names
from ovstrans.data.vocabularies.templates import BARE, DATASET, template_set
from ovstrans.data.vocabularies.vocabulary import Vocabulary
from ovstrans.errors import MismatchError
from ovstrans.frameworks import registry


def text_clip(checkpoint: Checkpoint) -> Clip:
    """A CLIP whose text tower is the checkpoint's: the one it carries, else the recorded model's.

    Its image tower means nothing. Raises MismatchError where the carried tower is of another model,
    and as `load_clip` does where the recorded weights cannot be had.
    """
    recorded = checkpoint.clip
    if checkpoint.text_tower is None:
        return load_clip(recorded["model"], recorded["pretrained"] or None)
    clip = random_clip(recorded["model"], pretrained=recorded["pretrained"])
    wanted = {key: value for key, value in clip.model.state_dict().items() if not key.startswith(VISUAL)}
    for key, value in checkpoint.text_tower.items():
        if key not in wanted or wanted[key].shape != value.shape:
            raise MismatchError(f"text tower of the checkpoint: {key} does not fit {recorded['model']}")
    for key in wanted:
        if key not in checkpoint.text_tower and key != "attn_mask":
            raise MismatchError(f"text tower of the checkpoint: {key} of {recorded['model']} is missing")
    clip.model.load_state_dict({key: value.float() for key, value in checkpoint.text_tower.items()}, strict=False)
    return replace(clip, pretrained=recorded["pretrained"], weights_sha256=recorded["weights_sha256"])


def classifier_for(checkpoint: Checkpoint, vocabulary: Vocabulary, names: str = AUTO) -> TextClassifier:
    """The text classifier of `vocabulary` for a checkpoint's framework, worded and prompted as that asks.

    names: see `prompted`. Class names that come without prompts get those of the training, which matter: a model
    that learned from "a photo of a {}." scores half as well or less with bare names. The training vocabulary's own
    rows where names and templates are the same, so that neither text tower nor cache is needed; else embedded anew.
    Raises as `prompted` and `text_clip` do.
    """
    trained = checkpoint.vocabulary
    if vocabulary.templates == template_set(BARE):
        vocabulary = replace(vocabulary, templates=trained.templates)
    asked = prompted(vocabulary, checkpoint.framework, checkpoint.options, names)
    if (trained.classes, trained.templates) == (asked.classes, asked.templates):
        return TextClassifier(checkpoint.text_embeddings, checkpoint.text_owner, asked)
    return embed_vocabulary(text_clip(checkpoint), asked)


def prompted(vocabulary: Vocabulary, framework: str, options: Mapping[str, Any], names: str = AUTO) -> Vocabulary:
    """`vocabulary` with the class names and prompts that a framework asks for.

    names: which names of a class go into prompts, see `data.class_names`; "auto": as the framework was
    published, the synonyms for FC-CLIP, the authors' names cleaned for GKC and for DeepLabV3 as OpenTrans has it.
    Whatever it is, reports call the classes as the vocabulary does.

    The option `templates` names the prompts, else the framework's own choice does; "dataset" keeps the
    vocabulary's. Doing it twice changes nothing. Raises InputError for an unknown framework or name.
    """
    kind = registry.find(framework)
    chosen = options.get("templates", kind.templates)
    worded = kind.worded(vocabulary) if names == AUTO else by_names(vocabulary, names)
    return worded if chosen in (None, DATASET) else replace(worded, templates=template_set(chosen))
