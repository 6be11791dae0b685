"""A CLIP of RN-mini's size that OpenAI might have published, and its weights in the formats that OpenAI's have."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import pretrained as open_clip_tags
from safetensors.torch import save_file
from torch import Tensor, nn

from ovstrans.clip.load import random_clip
from ovstrans.clip.models import bundled_config

MODEL, QUICK = "RN-tiny", "RN-tiny-quickgelu"
HALVED = (
    "conv",
    "c_fc",
    "c_proj",
    "in_proj",
    "out_proj",
    "q_proj",
    "k_proj",
    "v_proj",
    "downsample.0",
    "text_projection",
)


def register(folder: Path, patch: pytest.MonkeyPatch, url: str = "") -> None:
    """Let open_clip know the model, as it knows RN50: GELU by its configuration, QuickGELU by the tag `openai`."""
    config = bundled_config()["model_cfg"]
    patch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    patch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    (folder / "configs").mkdir()
    for name, extra in ((MODEL, {}), (QUICK, {"quick_gelu": True})):
        (folder / "configs" / f"{name}.json").write_text(json.dumps({**config, **extra}))
    open_clip.add_model_config(folder / "configs")
    tag = {"openai": {"url": url, "hf_hub": "timm/tiny_clip.openai/", "quick_gelu": True}}
    patch.setattr(open_clip_tags, "_PRETRAINED", {**open_clip_tags._PRETRAINED, MODEL: tag, QUICK: tag})


def reference() -> Any:
    """The CLIP, with QuickGELU and random weights that half precision represents."""
    clip = random_clip(QUICK, seed=5)
    with torch.no_grad():
        for parameter in clip.model.parameters():
            parameter.copy_(parameter.mul(1.5).half().float())
    return clip


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state as OpenAI publishes it: half precision but for norms and embeddings."""
    return {key: value.half() if any(part in key for part in HALVED) else value for key, value in state.items()}


def archive(path: Path) -> None:
    """A TorchScript archive with the entries and types of OpenAI's."""
    model = copy.deepcopy(reference().model)
    for name, number in (("input_resolution", 96), ("context_length", 24), ("vocab_size", 49408)):
        vars(model).pop(name, None)  # open_clip has it as a number
        model.register_buffer(name, torch.tensor(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = torch.zeros(1, 24, dtype=torch.long)
        traced = torch.jit.trace_module(model, {"forward": (torch.zeros(1, 3, 96, 96), tokens)}, check_trace=False)
    types = halved(dict(model.state_dict()))
    for name, parameter in traced.named_parameters():
        parameter.data = parameter.data.to(types[name].dtype)
    traced.save(str(path))


def state_of_openais_code(path: Path) -> None:
    """What `torch.save(clip.load("RN50", "cpu")[0].state_dict())` writes: float32, and the names of the modules."""
    state = OrderedDict(reference().model.state_dict())
    names = [name for name, _ in reference().model.named_modules() if ".ls_" not in name]
    state._metadata = OrderedDict((name.replace(".act", ".relu"), {"version": 1}) for name in names)  # type: ignore
    torch.save(state, path)


def half_state(path: Path) -> None:
    torch.save(halved(dict(reference().model.state_dict())), path)


def state_with_extras(path: Path) -> None:
    extras = {"input_resolution": torch.tensor(96), "context_length": torch.tensor(24), "vocab_size": torch.tensor(9)}
    save_file({**halved(dict(reference().model.state_dict())), **extras}, path)


def plain(path: Path) -> None:
    """Nothing tells that these are OpenAI's weights."""
    save_file(dict(reference().model.state_dict()), path)


def converted(path: Path) -> None:
    """The safetensors file of a hub, with its configuration beside it."""
    plain(path)
    config = bundled_config()
    config["model_cfg"]["quick_gelu"] = True
    path.with_name("open_clip_config.json").write_text(json.dumps(config))


def in_the_cache_of_the_hub(path: Path) -> Path:
    folder = path.parent / "hub" / "models--timm--tiny_clip.openai" / "snapshots" / "4d7a"
    folder.mkdir(parents=True)
    plain(folder / "open_clip_model.safetensors")
    return folder / "open_clip_model.safetensors"


def training_run(path: Path) -> None:
    state = {f"module.{key}": value for key, value in reference().model.state_dict().items()}
    torch.save({"epoch": 1, "name": f"2026_01_02-model_{QUICK}-lr_0.001", "state_dict": state}, path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def uses_quick_gelu(model: nn.Module) -> bool:
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())
