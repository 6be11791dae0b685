"""All models by name: which can be pruned, how large they are, and which weights open_clip has of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from typing import Any

from ovstrans.clip.models import (
    BUNDLED,
    BUNDLED_MODELS,
    KINDS,
    all_model_names,
    config_kind,
    find_config,
    unsupported_reason,
)
from ovstrans.errors import InputError, did_you_mean

SIZES_FILE = "model_sizes.json"
"""File with the sizes of open_clip's models, so that listing them builds none. `tests.makers.model_sizes` writes it."""


@dataclass(frozen=True)
class ModelStatus:
    """A model, and whether it can be pruned.

    Attributes:
        name: open_clip name.
        image_size: Side of the images that it was trained on, in pixels.
        image_encoder: Parameters of the image encoder; None for a model that is not supported.
        prunable: Weights of the body, which `prune` ranks by default; None for a model that is not supported.
        tags: Weights that `pretrained` takes by name.
        unsupported: Reason why the model cannot be pruned; "" for one that can.
    """

    name: str
    image_size: int
    image_encoder: int | None
    prunable: int | None
    tags: tuple[str, ...]
    unsupported: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `ovstrans models list --json`."""
        entry = {**asdict(self), "tags": list(self.tags), "supported": not self.unsupported}
        return {key: value for key, value in entry.items() if key != "name"}


def list_models(pattern: str | None = None, *, unsupported: bool = False) -> list[ModelStatus]:
    """Return the models that can be pruned, by kind: ResNets, ConvNeXts and ViTs, the bundled ones first of each.

    Args:
        pattern: Only models whose name matches, such as `RN50` or `convnext*`; those that are not supported are among
            them.
        unsupported: Also those that are not supported, each with the reason.

    Raises:
        InputError: No model matches the pattern.
    """
    names = all_model_names()
    if pattern is not None:
        chosen = [name for name in names if fnmatchcase(name, pattern)]
        if not chosen:
            hint = did_you_mean(pattern, names)
            raise InputError(f"`pattern={pattern}`: matches no model; {hint}leave it out to list all")
        names, unsupported = chosen, True
    configs = {name: find_config(name) or {} for name in names}
    wanted = [name for name, config in configs.items() if unsupported or not unsupported_reason(config)]
    return [_status(name, configs[name]) for name in sorted(wanted, key=lambda name: _place(configs[name]))]


def count_sizes(model: str) -> tuple[int, int]:
    """Build the image encoder of a model on meta tensors; return its parameters and the prunable weights of its body.

    Raises:
        InputError: The model is unknown or not supported.
    """
    import torch

    from ovstrans.clip.layers import scope_layers
    from ovstrans.clip.load import create_image_encoder

    with torch.device("meta"):
        encoder = create_image_encoder(model)
    prunable = sum(weight.numel() for weight in scope_layers(encoder).values())
    return sum(parameter.numel() for parameter in encoder.parameters()), prunable


def _place(config: Mapping[str, Any]) -> int:
    """Return the place of a model in the list by its kind; those that are not supported come last."""
    return len(KINDS) if unsupported_reason(config) else KINDS.index(config_kind(config))


def _status(model: str, config: Mapping[str, Any]) -> ModelStatus:
    reason, size = unsupported_reason(config), config["vision_cfg"]["image_size"]
    tags = _tags(model)
    if reason:
        return ModelStatus(model, size, None, None, tags, reason)
    encoder, prunable = _recorded_sizes().get(model) or count_sizes(model)
    return ModelStatus(model, size, encoder, prunable, tags)


def _tags(model: str) -> tuple[str, ...]:
    if model in BUNDLED_MODELS:
        return (BUNDLED,)
    import open_clip

    return tuple(open_clip.list_pretrained_tags_by_model(model))


@lru_cache(maxsize=1)
def _recorded_sizes() -> dict[str, tuple[int, int]]:
    """Return the sizes in the shipped file. A model that it lacks, such as a registered one, is built to be counted."""
    text = (files("ovstrans.clip") / SIZES_FILE).read_text(encoding="utf-8")
    return {name: (encoder, prunable) for name, (encoder, prunable) in json.loads(text)["models"].items()}
