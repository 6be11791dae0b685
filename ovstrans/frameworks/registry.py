"""The frameworks by name: build one, restore one from a checkpoint, and give it another vocabulary.

The module of a framework is imported when it is first needed, because some import large libraries.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.clip.load import Clip, create_image_encoder, is_missing_file, load_clip, model_info, random_clip
from ovstrans.clip.severance import parse_blocks
from ovstrans.clip.text import TextClassifier
from ovstrans.clip.weights import VISUAL, fit_state
from ovstrans.errors import InputError, MismatchError, MissingFileError, did_you_mean
from ovstrans.frameworks.base import Framework
from ovstrans.masks.mask import Mask
from ovstrans.recipes.load import override
from ovstrans.vocabulary.vocabulary import AUTO, BARE, DATASET, Vocabulary, get_templates, use_class_names

_FRAMEWORKS = {
    "deeplabv3": ("ovstrans.frameworks.deeplabv3", "DeepLabV3"),
    "deop": ("ovstrans.frameworks.deop", "DeOP"),
    "fcclip": ("ovstrans.frameworks.fcclip", "FCCLIP"),
    "gkc": ("ovstrans.frameworks.gkc", "GKC"),
}
"""Module and class of each framework."""


def list_frameworks() -> list[str]:
    """Return the names of all frameworks, sorted."""
    return sorted(_FRAMEWORKS)


def default_options(name: str) -> dict[str, Any]:
    """Return the options of a framework with their default values.

    Raises:
        InputError: There is no framework of that name.
    """
    return dict(framework_class(name).defaults)


def framework_class(name: str) -> type[Framework]:
    """Import the class of a framework.

    Raises:
        InputError: There is no framework of that name.
    """
    if name not in _FRAMEWORKS:
        hint = did_you_mean(name, _FRAMEWORKS)
        raise InputError(f"framework {name!r}: unknown; {hint}known are {', '.join(list_frameworks())}")
    module, class_name = _FRAMEWORKS[name]
    return cast("type[Framework]", getattr(importlib.import_module(module), class_name))


def build(
    name: str,
    *,
    encoder: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    text: TextClassifier,
    options: Mapping[str, Any] | None = None,
) -> Framework:
    """Build a framework with a copy of the image encoder and a randomly initialised head.

    Args:
        name: Name of the framework.
        encoder: A CLIP image encoder.
        mean: Mean of each RGB channel in [0, 1] that CLIP was trained with.
        std: Standard deviation of each channel, likewise.
        text: The text classifier of the training vocabulary.
        options: Options that differ from `default_options`.

    Raises:
        InputError: The name or an option is unknown, or a value is not permitted.
        MismatchError: The image encoder and the text embeddings are not of one CLIP.
    """
    return framework_class(name)(encoder=encoder, mean=mean, std=std, text=text, options=options)


def build_on_meta(
    name: str,
    model: str,
    *,
    options: Mapping[str, Any] | None = None,
    vocabulary: Vocabulary | None = None,
    device: str = "meta",
) -> Framework:
    """Build a framework on an open_clip model without trained weights: its names and shapes, for counting.

    Args:
        name: Name of the framework.
        model: open_clip name of the CLIP.
        options: Options of the framework.
        vocabulary: Class names; as the framework prompts them, they are the rows of its classifier. None for a single
            class.
        device: Where to build it; "meta" takes no memory.

    Raises:
        InputError: If the name, the model or an option is unknown.
    """
    dim, _, mean, std = model_info(model)
    vocabulary = with_prompts(vocabulary or Vocabulary("none", (("object",),)), name, options or {})
    owner = [number for number, synonyms in enumerate(vocabulary.classes) for _ in synonyms]
    with torch.random.fork_rng(devices=[]), torch.device(device):
        rows = torch.zeros(len(owner), dim)
        text = TextClassifier(rows, torch.tensor(owner, dtype=torch.long), vocabulary)
        return build(name, encoder=create_image_encoder(model), mean=mean, std=std, text=text, options=options)


def restore(checkpoint: Checkpoint, settings: Sequence[str] = ()) -> Framework:
    """Rebuild the framework of a checkpoint with its weights and text classifier, in eval mode.

    Draws no random numbers that the caller would notice, and shares no memory with the checkpoint.

    Args:
        checkpoint: The trained framework.
        settings: Other values of the framework's `inference_options`, as `model.OPTION=VALUE`.

    Raises:
        InputError: A setting is not one of inference, or its value is not permitted.
        MismatchError: The mask serves severed blocks that are not severed. Or a tensor is missing, unexpected, or of
            another shape than the recorded options call for.
    """
    clip, options = checkpoint.clip, change_options(checkpoint, settings)
    _require_agreement(checkpoint, options)
    with torch.device("meta"):
        encoder = create_image_encoder(clip["model"])
    text = TextClassifier(checkpoint.text_embeddings, checkpoint.text_owner, checkpoint.vocabulary)
    with torch.random.fork_rng(devices=[]):
        framework = build(
            checkpoint.framework,
            encoder=encoder,
            mean=clip["mean"],
            std=clip["std"],
            text=text,
            options=options,
        )
    if checkpoint.mask is not None:
        check_severed(checkpoint.mask, framework)
    _fit(checkpoint, framework.state_dict())
    framework.load_state_dict({key: _copy(value) for key, value in checkpoint.state.items()}, assign=True)
    return framework.eval()


def change_options(checkpoint: Checkpoint, settings: Sequence[str]) -> dict[str, Any]:
    """Return the options of a checkpoint with other values for some that matter to inference alone.

    Args:
        checkpoint: The trained framework.
        settings: `model.OPTION=VALUE`, the value as in TOML.

    Raises:
        InputError: A setting is something else; the message names those that can be changed.
    """
    able = sorted(framework_class(checkpoint.framework).inference_options)
    for setting in settings:
        name = setting.partition("=")[0].strip()
        if not name.startswith("model.") or name.removeprefix("model.") not in able:
            can = f"only {', '.join(f'model.{option}' for option in able)} can" if able else "nothing can"
            raise InputError(f"`{setting}`: {can} be changed in a trained {checkpoint.framework}; train another for it")
    return dict(override({"model": checkpoint.options}, settings)["model"]) if settings else checkpoint.options


def _require_agreement(checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
    """Check that a checkpoint has the tensors that its options call for, before memory is taken for them.

    Only options beyond their defaults can ask for more than a framework usually takes.

    Raises:
        InputError: An option is not permitted.
        MismatchError: A tensor is missing, unexpected, or of another shape.
    """
    name, model = checkpoint.framework, checkpoint.clip["model"]
    defaults = default_options(name)
    larger = [key for key, value in options.items() if isinstance(value, int) and value > _as_int(defaults.get(key))]
    if larger:
        framework = build_on_meta(name, model, options=options)
        _fit(checkpoint, framework.state_dict())


def _as_int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _fit(checkpoint: Checkpoint, model: Mapping[str, Tensor]) -> None:
    """Raise MismatchError if the tensors of a checkpoint are not those of a framework."""
    fit = fit_state(
        checkpoint.state,
        model,
        f"checkpoint of {checkpoint.framework} on {checkpoint.clip['model']}",
        optional=lambda key: False,
        remedy="the file and its recorded options do not belong together",
    )
    fit.require_complete()
    fit.require_known()


def _copy(value: Tensor) -> Tensor:
    """Copy a tensor, in float32 unless it is a counter."""
    return value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()


def check_severed(mask: Mask, framework: Framework) -> None:
    """Check that a mask that serves DeOP alone is used with it.

    Args:
        mask: Any mask.
        framework: The framework that it is to be applied to.

    Raises:
        MismatchError: The mask prunes the queries and keys of blocks that the framework does not sever.
    """
    if not mask.severed:
        return
    missing = set(parse_blocks(mask.severed)) - set(framework.severed_blocks)
    if missing:
        raise MismatchError(
            f"{mask.title}: made with `severed={mask.severed}`, so it serves deop alone, with these blocks severed; "
            f"{framework.name} uses the queries and keys of block {min(missing)}"
        )


def with_prompts(vocabulary: Vocabulary, framework: str, options: Mapping[str, Any], names: str = AUTO) -> Vocabulary:
    """Choose the class names and prompt templates that a framework embeds.

    Applying it twice changes nothing. Reports call the classes as the vocabulary does in any case.

    Args:
        vocabulary: The classes with all their names.
        framework: Name of the framework.
        options: Options of the framework. `templates` names the prompt templates, "dataset" keeps the vocabulary's;
            without it the framework's own choice applies.
        names: Which names of a class are embedded (see `vocabulary.vocabulary`). "auto" is what the framework was
            published with: all synonyms for FC-CLIP, the dataset authors' names, cleaned, for GKC and DeepLabV3.

    Raises:
        InputError: The framework, the templates or `names` are unknown.
    """
    cls = framework_class(framework)
    templates = options.get("templates", cls.templates)
    named = cls.format_class_names(vocabulary) if names == AUTO else use_class_names(vocabulary, names)
    return named if templates in (None, DATASET) else replace(named, templates=get_templates(templates))


def classifier_for(checkpoint: Checkpoint, vocabulary: Vocabulary, names: str = AUTO) -> TextClassifier:
    """Make the text classifier of a vocabulary for the framework of a checkpoint.

    Class names and templates are those of `with_prompts`. A vocabulary without templates gets the ones of training:
    a model trained with "a photo of a {}." scores half as well or less with bare names. If names and templates are
    those of training, the recorded embeddings are used and no text encoder is needed.

    Args:
        checkpoint: The trained framework; of its state only the framework's `text_keys` are needed.
        vocabulary: The classes to score.
        names: Which names of a class are embedded; see `with_prompts`.

    Raises:
        InputError: As `with_prompts`, or the text encoder's weights cannot be loaded.
        MismatchError: As `text_clip`.
    """
    trained = checkpoint.vocabulary
    if vocabulary.templates == get_templates(BARE):
        vocabulary = replace(vocabulary, templates=trained.templates)
    prompted = with_prompts(vocabulary, checkpoint.framework, checkpoint.options, names)
    if (trained.classes, trained.templates) == (prompted.classes, prompted.templates):
        return TextClassifier(checkpoint.text_embeddings, checkpoint.text_owner, prompted)
    return framework_class(checkpoint.framework).embed_vocabulary(text_clip(checkpoint), prompted, checkpoint.state)


def text_clip(checkpoint: Checkpoint) -> Clip:
    """Load the CLIP whose text encoder embedded the class names of a checkpoint.

    The text encoder is the one in the checkpoint, or else that of the recorded CLIP. The image encoder is not the
    checkpoint's and must not be used.

    Raises:
        MismatchError: The text encoder in the checkpoint is not of the recorded model.
        InputError: The checkpoint holds none, and the recorded weights cannot be loaded.
    """
    recorded = checkpoint.clip
    if checkpoint.text_encoder is None:
        if is_missing_file(recorded["pretrained"]):
            raise MissingFileError(
                f"{recorded['pretrained']}: no such file; {checkpoint.path or 'the checkpoint'} records it as the CLIP "
                "that embeds class names; give it as `pretrained`"
            )
        return load_clip(recorded["model"], recorded["pretrained"] or None)
    clip = random_clip(recorded["model"], pretrained=recorded["pretrained"])
    text_state = {key: value for key, value in clip.model.state_dict().items() if not key.startswith(VISUAL)}
    where = f"text encoder of the checkpoint, on {recorded['model']}"
    fit = fit_state(checkpoint.text_encoder, text_state, where, optional=lambda key: key == "attn_mask")
    fit.require_complete()
    fit.require_known()
    clip.model.load_state_dict({key: value.float() for key, value in checkpoint.text_encoder.items()}, strict=False)
    return replace(clip, pretrained=recorded["pretrained"], weights_sha256=recorded["weights_sha256"])
