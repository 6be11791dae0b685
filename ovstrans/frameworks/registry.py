"""The frameworks by name: building one, and bringing one back from its checkpoint.

A framework's module is imported when it is asked for: some bring libraries that take their time.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.clip.load import Clip, create_image_encoder, load_clip, random_clip
from ovstrans.clip.text import TextClassifier, embed_vocabulary
from ovstrans.clip.weights import VISUAL, fit_state
from ovstrans.errors import InputError, did_you_mean
from ovstrans.frameworks.base import Framework
from ovstrans.vocabulary.prompts import AUTO, BARE, DATASET, get_templates, use_class_names
from ovstrans.vocabulary.vocabulary import Vocabulary

_FRAMEWORKS = {
    "deeplabv3": ("ovstrans.frameworks.deeplabv3", "DeepLabV3"),
    "fcclip": ("ovstrans.frameworks.fcclip", "FCCLIP"),
    "gkc": ("ovstrans.frameworks.gkc", "GKC"),
}
"""Name to module and class."""


def list_frameworks() -> list[str]:
    """The names that `build` knows, sorted."""
    return sorted(_FRAMEWORKS)


def default_options(name: str) -> dict[str, Any]:
    """A framework's options with their default values; InputError for an unknown name."""
    return dict(framework_class(name).defaults)


def framework_class(name: str) -> type[Framework]:
    """The class of a framework; InputError for an unknown name."""
    if name not in _FRAMEWORKS:
        hint = did_you_mean(name, _FRAMEWORKS)
        raise InputError(f"framework {name!r}: unknown; {hint}known are {', '.join(list_frameworks())}")
    module, kind = _FRAMEWORKS[name]
    return getattr(importlib.import_module(module), kind)


def build(
    name: str,
    *,
    encoder: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    text: TextClassifier,
    options: Mapping[str, Any] | None = None,
) -> Framework:
    """A framework around a copy of `encoder`, its head at random; see `Framework.__init__`.

    Raises InputError for an unknown name or option.
    """
    return framework_class(name)(encoder=encoder, mean=mean, std=std, text=text, options=options)


def restore(checkpoint: Checkpoint) -> Framework:
    """The framework that a checkpoint holds, weights and text classifier in place, in eval mode.

    Raises MismatchError naming the first tensor that is missing, not expected, or of another shape.
    """
    clip = checkpoint.clip
    with torch.device("meta"):
        encoder = create_image_encoder(clip["model"])
    text = TextClassifier(checkpoint.text_embeddings, checkpoint.text_owner, checkpoint.vocabulary)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not ours to use up
        framework = build(
            checkpoint.framework,
            encoder=encoder,
            mean=clip["mean"],
            std=clip["std"],
            text=text,
            options=checkpoint.options,
        )
    _check_fit(framework, checkpoint)
    own = {key: _own_copy(value) for key, value in checkpoint.state.items()}
    framework.load_state_dict(own, assign=True)
    return framework.eval()


def _own_copy(value: Tensor) -> Tensor:
    """A float32 copy (counters keep their kind), so that training on never touches the checkpoint."""
    return value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()


def _check_fit(framework: Framework, checkpoint: Checkpoint) -> None:
    fit = fit_state(
        checkpoint.state,
        framework.state_dict(),
        f"checkpoint of {framework.name} on {checkpoint.clip['model']}",
        optional=lambda key: False,
        remedy="the file and its recorded options do not belong together",
    )
    fit.require_complete()
    fit.require_known()


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
    where = f"text encoder of the checkpoint, on {recorded['model']}"
    fit = fit_state(checkpoint.text_encoder, wanted, where, optional=lambda key: key == "attn_mask")
    fit.require_complete()
    fit.require_known()
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
    if vocabulary.templates == get_templates(BARE):
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
    kind = framework_class(framework)
    chosen = options.get("templates", kind.templates)
    formatted = kind.format_class_names(vocabulary) if names == AUTO else use_class_names(vocabulary, names)
    return formatted if chosen in (None, DATASET) else replace(formatted, templates=get_templates(chosen))
