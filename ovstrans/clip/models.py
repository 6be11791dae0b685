"""The models by name: their configurations, and which of open_clip's can be pruned.

Shell completion reads this module, so nothing here imports torch or open_clip before a function needs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import ovstrans
from ovstrans.errors import InputError, did_you_mean

DEFAULT_MODEL = "RN-mini"
"""The mini CLIP that ships with the package (see `checkpoints/rn-mini/README.md`)."""

BUNDLED_MODELS = {DEFAULT_MODEL: "rn-mini", "ViT-mini": "vit-mini"}
"""Models whose weights ship with the package, with their folders. They know generated scenes, not photographs."""

WEIGHTS_FILE = "open_clip_model.safetensors"
"""Name of the weights in the folder of a bundled model."""

BUNDLED = "bundled"
"""Name of the weights that ship with the package."""

KINDS = ("resnet", "convnext", "vit")
"""Kinds of image encoders that can be pruned."""

_TIMM_VITS = ("vit_base_", "vit_large_", "vit_so400m_", "vit_giantopt_", "eva_", "eva02_")
"""Beginnings of the names of timm's plain ViTs: those of MobileCLIP and SigLIP, and EVA's."""


_REFUSED = {
    "fastvit": "a hybrid whose convolutions are merged from several branches after training",
    "vitamin": "a hybrid of convolutions and attention",
    "swin": "whose windows are shifted from block to block",
    "vit_relpos": "whose relative positions fit one image size",
    "vit_pe_core": "whose positions turn queries and keys in a way that masks are not tested with",
}
"""Beginnings of the names of other image encoders, and what sets them apart."""


def config_kind(config: Mapping[str, Any]) -> Literal["resnet", "convnext", "vit", ""]:
    """Return the kind of image encoder of an open_clip model configuration; "" for one that cannot be pruned."""
    vision = config["vision_cfg"]
    timm = str(vision.get("timm_model_name") or "")
    if timm.startswith("convnext"):
        return "convnext"
    if timm:
        return "vit" if timm.startswith(_TIMM_VITS) else ""
    if isinstance(vision.get("layers"), (list, tuple)):
        return "resnet"
    return "" if vision.get("attentional_pool") else "vit"


def unsupported_reason(config: Mapping[str, Any]) -> str:
    """Return why the CLIP of an open_clip model configuration cannot be used here; "" if it can.

    The one place that decides: `load_clip`, `list_models` and shell completion all ask here.
    """
    vision, text = config["vision_cfg"], config.get("text_cfg", {})
    if "multimodal_cfg" in config:
        return "it is a CoCa, whose text decoder is not supported"
    if not config_kind(config):
        name = str(vision.get("timm_model_name"))
        known = next((what for start, what in _REFUSED.items() if name.startswith(start)), "")
        return f"its image encoder is {name}{known and f', {known}'}"
    if text.get("hf_model_name"):
        return f"its text encoder is {text['hf_model_name']} of Hugging Face, not CLIP's transformer"
    return ""


def find_config(model: str) -> dict[str, Any] | None:
    """Return a copy of the configuration of a model, supported or not; None if it is unknown."""
    if model in BUNDLED_MODELS:
        config: dict[str, Any] = bundled_config(model)["model_cfg"]
        return config
    return _open_clip_configs().get(model)


def model_config(model: str) -> dict[str, Any]:
    """Return a copy of the configuration of a model that is supported.

    Raises:
        InputError: The model is unknown or not supported.
    """
    found = find_config(model)
    if found is None:
        hint = did_you_mean(model, model_names())
        raise InputError(f"`model={model}`: unknown; {hint}`ovstrans models list` names those that work")
    reason = unsupported_reason(found)
    if reason:
        raise InputError(f"`model={model}`: cannot be pruned, {reason}; `ovstrans models list` names those that work")
    return found


def model_names() -> list[str]:
    """Return the models that can be loaded, the bundled one first."""
    found = _open_clip_configs()
    return [*bundled_models(), *(name for name, config in found.items() if not unsupported_reason(config))]


def read_model_names() -> list[str]:
    """Return `model_names` from the files of open_clip, without importing it, which takes seconds.

    Models that a program registers with open_clip are not among them.
    """
    spec = find_spec("open_clip")
    folders = spec.submodule_search_locations if spec is not None else None
    names = []
    for path in sorted(Path(folders[0], "model_configs").glob("*.json")) if folders else ():
        config = json.loads(path.read_text(encoding="utf-8"))
        if "vision_cfg" in config and not unsupported_reason(config):
            names.append(path.stem)
    return [*bundled_models(), *names]


def all_model_names() -> list[str]:
    """Return the bundled models and every model that open_clip knows, also those that cannot be loaded here."""
    return [*bundled_models(), *_open_clip_configs()]


def bundled_models() -> list[str]:
    """Return the bundled models whose weights are there; a checkout may have the configuration of one alone."""
    return [name for name in BUNDLED_MODELS if (bundled_folder(name) / WEIGHTS_FILE).exists()]


def bundled_folder(model: str = DEFAULT_MODEL) -> Path:
    """Return the folder of a bundled model: in the installed package, or in the checkout beside it."""
    package, name = Path(ovstrans.__file__).parent, BUNDLED_MODELS[model]
    for folder in (package / "bundled" / name, package.parent / "checkpoints" / name):
        if (folder / "open_clip_config.json").exists():
            return folder
    raise InputError(f"the bundled {model} is missing; install ovstrans again")


def bundled_config(model: str = DEFAULT_MODEL) -> dict[str, Any]:
    """Return what a bundled model's open_clip_config.json holds: `model_cfg` and `preprocess_cfg`."""
    found: dict[str, Any] = json.loads((bundled_folder(model) / "open_clip_config.json").read_text(encoding="utf-8"))
    return found


def _open_clip_configs() -> dict[str, dict[str, Any]]:
    """Return copies of the configurations that open_clip knows by name, those that a program registered included."""
    import open_clip

    return {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
