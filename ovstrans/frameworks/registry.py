"""The frameworks by name: building one, and bringing one back from its checkpoint.

A framework's module is imported when it is asked for: some bring libraries that take their time.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.clip.load import create_image_encoder
from ovstrans.clip.text import TextClassifier
from ovstrans.errors import InputError, MismatchError, did_you_mean
from ovstrans.frameworks.base import Framework

_FRAMEWORKS = {
    "deeplabv3": ("ovstrans.frameworks.deeplabv3", "DeepLabV3"),
    "fcclip": ("ovstrans.frameworks.fcclip", "FCCLIP"),
    "gkc": ("ovstrans.frameworks.gkc", "GKC"),
}
"""Name to module and class."""


def names() -> list[str]:
    """The names that `build` knows, sorted."""
    return sorted(_FRAMEWORKS)


def defaults(name: str) -> dict[str, Any]:
    """A framework's options with their default values; InputError for an unknown name."""
    return dict(find(name).defaults)


def find(name: str) -> type[Framework]:
    """The class of a framework; InputError for an unknown name."""
    if name not in _FRAMEWORKS:
        hint = did_you_mean(name, _FRAMEWORKS)
        raise InputError(f"framework {name!r}: unknown; {hint}known are {', '.join(names())}")
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
    return find(name)(encoder=encoder, mean=mean, std=std, text=text, options=options)


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
    wanted, found = framework.state_dict(), checkpoint.state
    what = f"checkpoint of {framework.name} on {checkpoint.clip['model']}"
    for key, value in wanted.items():
        if key not in found:
            raise MismatchError(f"{what}: {key} is missing; the file and its recorded options do not belong together")
        if found[key].shape != value.shape:
            raise MismatchError(
                f"{what}: {key} has shape {list(found[key].shape)}, {list(value.shape)} is needed; "
                "the file and its recorded options do not belong together"
            )
    for key in found:
        if key not in wanted:
            raise MismatchError(
                f"{what}: {key} is not part of this framework; the file and its recorded options do not belong together"
            )
