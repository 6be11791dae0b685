"""Deciding by a file of weights whether its CLIP computes GELU or QuickGELU (x sigmoid(1.702 x)).

open_clip goes by the model's name (`RN50-quickgelu`) or by the tag of the weights (`openai`). A file has neither, and
run with the other activation a CLIP still works, only worse. What tells, in this order:

- the open_clip_config.json beside the file, as hubs have it, if it is of this architecture;
- what our own exports and pruned weights record;
- entries of the state dict that OpenAI's archives alone have;
- the code of a TorchScript archive, which is read and not run;
- the names of the modules that torch recorded: those of OpenAI's code differ from open_clip's;
- the model in the name of a run of open_clip's training;
- the hub's name of the repository in the path of a cached file;
- the hash of the file, compared with those in the addresses of open_clip's tags;
- the precision: OpenAI's weights are half, but for norms and embeddings.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch

from ovstrans.clip.weights import WeightFile, find_clip
from ovstrans.files import read_json
from ovstrans.parsing import parse_json

_OPENAI_ENTRIES = {"input_resolution", "context_length", "vocab_size"}
_FIRST_BLOCK = "transformer.resblocks.0."
_QUICK = "-quickgelu"
_CHUNK = 1 << 22

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileActivation:
    """The activation that a file of weights was trained with, as far as the file tells.

    Attributes:
        quick_gelu: True for QuickGELU, False for GELU, None if nothing tells.
        reason: What told it, in words.
    """

    quick_gelu: bool | None
    reason: str = ""


def quickgelu_name(model: str) -> str:
    """Return the name of a model with QuickGELU; the name itself if open_clip has none."""
    name = f"{model}{_QUICK}"
    return name if name in open_clip.list_models() else model


def model_for_file(model: str, file: WeightFile) -> str:
    """Return the name under which a model computes what the weights in a file were trained with.

    A name that says QuickGELU stays. A notice tells what was decided, or a warning that nothing could be.

    Args:
        model: open_clip model.
        file: The weights.
    """
    name = quickgelu_name(model)
    if name == model or not _matters(file) or not _has_quick_tag(model):
        return model
    found = find_activation(model, file)
    if found.quick_gelu:
        logger.info("%s: run with QuickGELU, as %s: %s", file.path, name, found.reason)
        return name
    if found.quick_gelu is None:
        logger.warning(
            "%s: nothing tells whether these weights were trained with GELU or QuickGELU, and %s runs them with GELU; "
            "OpenAI's want QuickGELU: name the model %s for them",
            file.path,
            model,
            name,
        )
    return model


def find_activation(model: str, file: WeightFile) -> FileActivation:
    """Return which activation the weights in a file were trained with, as far as the file tells.

    Args:
        model: open_clip model that they are for.
        file: The weights.
    """
    for quick, reason in _findings(model, file):
        if quick is not None:
            return FileActivation(quick, reason)
    return FileActivation(None)


def config_beside(model: str, path: Path) -> dict[str, Any]:
    """Return the open_clip_config.json beside a file, {} if there is none of this architecture.

    Args:
        model: open_clip model.
        path: The file, as it was named: a hub's cache links to it from the folder with the configuration.
    """
    try:
        found = read_json(path.with_name("open_clip_config.json"))
        theirs, own = found["model_cfg"], open_clip.get_model_config(model) or {}
        same = all(theirs.get(part) == own.get(part) for part in ("embed_dim",)) and all(
            theirs["vision_cfg"].get(key) == own["vision_cfg"].get(key) for key in ("layers", "width", "patch_size")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return found if same else {}


def _findings(model: str, file: WeightFile) -> Iterator[tuple[bool | None, str]]:
    """Yield (QuickGELU or not or None, what tells it), the surest first."""
    config = config_beside(model, file.path)
    if config:
        yield bool(config["model_cfg"].get("quick_gelu", False)), "the open_clip_config.json beside it says so"
    yield _recorded(file), "it records the CLIP that it was made from"
    if set(file.extras) >= _OPENAI_ENTRIES:
        yield True, "it is in OpenAI's format"
    if file.code:
        yield _code_activation(file), "its code, which was not run, computes it"
    yield _module_activation(file), "the names of its modules are those of OpenAI's code"
    run = re.search(r"-model_(.+?)-lr_", file.run_name)
    if run:
        yield run[1].endswith(_QUICK), f"its training run trained {run[1]}"
    for tag, settings in _tags(model).items():
        repository = str(settings.get("hf_hub") or "").strip("/").replace("/", "--")
        if repository and f"models--{repository}" in file.path.absolute().parts:
            yield bool(settings.get("quick_gelu")), f"it is open_clip's {tag} in the cache of the hub"
    yield from _by_hash(model, file.path)
    if _openai_precision(file):
        yield True, "it is half precision but for norms and embeddings, as OpenAI's weights are"


def _recorded(file: WeightFile) -> bool | None:
    """Return what our exports and pruned weights record; None if they name no tag."""
    clip: Mapping[str, Any] = file.metadata
    if file.origin:
        try:
            clip = parse_json(file.origin)["clip"]
        except (ValueError, KeyError, TypeError):
            return None
    name, tag = (str(clip.get(key) or "") for key in ("model", "pretrained"))
    if name.endswith(_QUICK):
        return True
    settings = _tags(name).get(tag)
    return None if settings is None else bool(settings.get("quick_gelu", False))


def _code_activation(file: WeightFile) -> bool | None:
    """Return the activation in the code of a TorchScript archive."""
    if re.search(r"\bgelu\(", file.code):
        return False
    constants = [value.item() for value in file.state.values() if value.dim() == 0 and value.is_floating_point()]
    return True if "1.702" in file.code or any(abs(value - 1.702) < 1e-3 for value in constants) else None


def _module_activation(file: WeightFile) -> bool | None:
    """Return True if the modules have the names of OpenAI's code, whose blocks lack open_clip's layer scales."""
    names = {name.replace("module.", "").replace("_orig_mod.", "") for name in file.modules}
    return True if f"{_FIRST_BLOCK}mlp.gelu" in names and f"{_FIRST_BLOCK}ls_1" not in names else None


def _by_hash(model: str, path: Path) -> Iterator[tuple[bool | None, str]]:
    """Yield the activation of the tag whose address has the hash of the file: 64 digits, or the first 8 of them."""
    known = {}
    for tag, settings in _tags(model).items():
        match = re.search(r"/([0-9a-f]{64})/|-([0-9a-f]{8})\.pt$", str(settings.get("url") or ""))
        if match:
            known[match[1] or match[2]] = (tag, bool(settings.get("quick_gelu", False)))
    if not known:
        return
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    for length in (64, 8):
        found = known.get(digest.hexdigest()[:length])
        if found is not None:
            yield found[1], f"it is the file of open_clip's tag {found[0]}"


def _openai_precision(file: WeightFile) -> bool:
    """Return whether the tensors have the types in which OpenAI publishes its weights."""
    state = find_clip(file.state, str(file.path))
    kept = {"token_embedding.weight", "positional_embedding", "ln_final.weight"}
    halved = {
        "text_projection",
        "transformer.resblocks.0.mlp.c_fc.weight",
        "transformer.resblocks.0.attn.in_proj_weight",
    }
    if not kept | halved <= set(state):
        return False
    types = {name: {state[key].dtype for key in keys} for name, keys in (("kept", kept), ("halved", halved))}
    return types == {"kept": {torch.float32}, "halved": {torch.float16}}


def _matters(file: WeightFile) -> bool:
    """Return whether an activation is computed with the weights: by a text encoder, or a ViT."""
    return any(".resblocks." in key or key.startswith("resblocks.") for key in file.state)


def _has_quick_tag(model: str) -> bool:
    config = open_clip.get_model_config(model) or {}
    quick = any(settings.get("quick_gelu") for settings in _tags(model).values())
    return quick and not config.get("quick_gelu", False)


def _tags(model: str) -> dict[str, Mapping[str, Any]]:
    """Return open_clip's settings of a model's weights, by tag."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    return {tag: open_clip.get_pretrained_cfg(model, tag) for tag in tags}
