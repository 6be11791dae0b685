"""Loading a CLIP through open_clip: the bundled RN-mini, a pretrained tag, or a file."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

import ovstrans
from ovstrans import console
from ovstrans.clip.convnext import create_convnext, is_convnext
from ovstrans.clip.weights import VISUAL, read_state_dict, require_finite, weights_sha256
from ovstrans.errors import InputError, MismatchError, did_you_mean

DEFAULT_MODEL = "RN-mini"
"""The mini CLIP that ships with the package (see `checkpoints/rn-mini/README.md`)."""

BUNDLED = "bundled"
"""Name of the weights that ship with the package."""

_FIRST = {"ResNet": "conv1.weight", "ConvNeXt": "trunk.stem.0.weight"}
"""The first weight of either kind of image encoder."""


@dataclass
class Clip:
    """A CLIP and what is known of it.

    model: open_clip's module, in eval mode.  name: open_clip model name.  pretrained: tag, file or
    "bundled" ("" for random weights).  weights_sha256: hash of the image encoder, see
    `weights.weights_sha256`.  image_size: pixels the tower was trained at.  mean, std: of RGB in
    [0, 1].  tokenizer: texts to tokens [N, L].  has_text: False where the file held no text encoder.
    """

    model: Any
    name: str
    pretrained: str
    weights_sha256: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokenizer: Callable[[list[str]], Tensor]
    has_text: bool = True

    @property
    def visual(self) -> Any:
        """The image encoder."""
        return self.model.visual

    @property
    def embed_dim(self) -> int:
        """Dimension E of the space that images and texts share."""
        return self.model.visual.output_dim

    def describe(self) -> dict[str, Any]:
        """What a file made from this CLIP records of it."""
        return {
            "model": self.name,
            "pretrained": self.pretrained,
            "weights_sha256": self.weights_sha256,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def load_clip(model: str = DEFAULT_MODEL, pretrained: str | None = None, *, device: torch.device | str = "cpu") -> Clip:
    """A CLIP with a ModifiedResNet or ConvNeXt image encoder, in eval mode and float32.

    pretrained: an open_clip tag (weights come from the hub or its cache), a file (`.safetensors` or a
    state dict; of a whole CLIP or of the image encoder alone), or None for the bundled weights of
    RN-mini and open_clip's first tag of any other model. Raises InputError for an unknown model or
    tag, an unreadable file, damaged weights, or when the hub cannot be reached; MismatchError where the
    weights are of another architecture.
    """
    config, preprocess = _config(model)
    source = _default_pretrained(model) if pretrained is None else pretrained
    is_file = Path(source).exists() or Path(source).suffix in (".safetensors", ".pt", ".pth", ".bin", ".pkl")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if is_file and source not in tags and source != BUNDLED:
        path = Path(source)
    elif model == DEFAULT_MODEL:
        if source != BUNDLED:
            raise InputError(f"--pretrained {source}: no such file, and {model} has no tags but {BUNDLED!r}")
        path = bundled_folder() / "open_clip_model.safetensors"
        if not path.exists():
            raise InputError(f"{path}: the bundled weights are missing; install ovstrans again")
    else:
        path, tag = _fetch(model, source, tags)
        config["quick_gelu"] = _quick_gelu(config, tag)
        preprocess = {**preprocess, **{key: tag[key] for key in ("mean", "std") if key in tag}}
    state = read_state_dict(path)
    clip = _build(model, config, preprocess)
    clip.pretrained = source
    clip.has_text = _load_into(clip.model, state, str(path))
    require_finite(clip.model.state_dict(), str(path))
    clip.weights_sha256 = weights_sha256(clip.visual.state_dict())
    clip.model.eval().to(device)
    return clip


def random_clip(model: str = DEFAULT_MODEL, seed: int = 0, *, pretrained: str = "") -> Clip:
    """The architecture with random weights drawn from `seed`: for tests, baselines, and weights to come.

    pretrained: the tag that those have, if any; it may want another activation than the model's own
    configuration says (OpenAI's RN50: QuickGELU).
    """
    config, preprocess = _config(model)
    if pretrained in open_clip.list_pretrained_tags_by_model(model):
        config["quick_gelu"] = _quick_gelu(config, open_clip.get_pretrained_cfg(model, pretrained))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = _build(model, config, preprocess)
    clip.weights_sha256 = weights_sha256(clip.visual.state_dict())
    clip.model.eval()
    return clip


def create_image_encoder(model: str = DEFAULT_MODEL) -> nn.Module:
    """The image encoder alone, with random weights; inside `with torch.device("meta")` it takes no memory."""
    config, _ = _config(model)
    if is_convnext(config):
        return create_convnext(config)
    vision = config["vision_cfg"]
    width, size = vision["width"], vision["image_size"]
    heads = width * 32 // vision.get("head_width", 64)
    return ModifiedResNet(vision["layers"], config["embed_dim"], heads, image_size=size, width=width)


def create_clip(model: str = DEFAULT_MODEL) -> Any:
    """open_clip's module of both towers, with random weights; inside `with torch.device("meta")` it takes no memory."""
    config, preprocess = _config(model)
    return _build(model, config, preprocess).model


def model_info(model: str) -> tuple[int, int, tuple[float, ...], tuple[float, ...]]:
    """(embedding dimension, image size, mean, std) of a model, without building it."""
    config, preprocess = _config(model)
    return (
        config["embed_dim"],
        config["vision_cfg"]["image_size"],
        tuple(preprocess["mean"]),
        tuple(preprocess["std"]),
    )


def model_names() -> list[str]:
    """Models whose image encoder is a ModifiedResNet or a ConvNeXt, the bundled one first."""
    known = open_clip.list_models()
    resnets = [name for name in known if name.startswith("RN")]
    return [DEFAULT_MODEL, *resnets, *(name for name in known if is_convnext(open_clip.get_model_config(name)))]


def bundled_folder() -> Path:
    """Where the bundled RN-mini is: inside the installed package, or in the checkout beside it."""
    package = Path(ovstrans.__file__).parent
    for folder in (package / "bundled" / "rn-mini", package.parent / "checkpoints" / "rn-mini"):
        if (folder / "open_clip_config.json").exists():
            return folder
    raise InputError("the bundled RN-mini is missing; install ovstrans again")


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Keep open_clip's own log lines and the hub's progress bars out of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _config(model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model configuration, preprocessing) of a name; InputError where it is unknown or of another kind."""
    preprocess: dict[str, Any] = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    if model == DEFAULT_MODEL:
        both = json.loads((bundled_folder() / "open_clip_config.json").read_text())
        return both["model_cfg"], {**preprocess, **both["preprocess_cfg"]}
    config = open_clip.get_model_config(model)
    if config is None:
        hint = did_you_mean(model, model_names())
        raise InputError(f"model {model!r}: unknown; {hint}known are {', '.join(model_names())}")
    if not (is_convnext(config) or isinstance(config["vision_cfg"].get("layers"), (list, tuple))):
        raise InputError(
            f"model {model!r}: its image encoder is not a ModifiedResNet or a ConvNeXt; "
            f"models that work are {', '.join(model_names())}"
        )
    config = copy.deepcopy(config)
    config["vision_cfg"]["timm_model_pretrained"] = False  # weights come from a CLIP, never from timm's hub
    return config, preprocess


def _quick_gelu(config: Mapping[str, Any], tag: Mapping[str, Any]) -> bool:
    """Whether weights of that tag, put into that model, want QuickGELU."""
    return bool(tag.get("quick_gelu", config.get("quick_gelu", False)))


def _default_pretrained(model: str) -> str:
    if model == DEFAULT_MODEL:
        return BUNDLED
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tags:
        raise InputError(f"model {model}: open_clip knows no weights of it; give a file with --pretrained FILE")
    return tags[0]


def _fetch(model: str, tag: str, tags: list[str]) -> tuple[Path, Mapping[str, Any]]:
    """The local file of a tag, downloaded where it is not cached yet, and the tag's settings."""
    if tag not in tags:
        known = f"tags are {', '.join(tags)}" if tags else "it has none; give a file"
        raise InputError(f"--pretrained {tag}: neither a file nor a tag of {model}; {known}")
    settings = open_clip.get_pretrained_cfg(model, tag)
    console.say(f"fetching {model} ({tag}) ...")  # a download takes its time, and so does finding no network
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with quiet_logging():
            return Path(open_clip.download_pretrained(settings)), settings
    except Exception as error:  # the hub's client raises many kinds
        where = settings.get("hf_hub") or settings.get("url")
        raise InputError(
            f"--pretrained {tag}: the weights of {model} ({where}) could not be fetched "
            f"({type(error).__name__}); with no network, download them elsewhere and give the file"
        ) from error


@lru_cache(maxsize=4)
def _tokenizer(context_length: int) -> Callable[[list[str]], Tensor]:
    return open_clip.SimpleTokenizer(context_length=context_length)


def _build(model: str, config: Mapping[str, Any], preprocess: Mapping[str, Any]) -> Clip:
    wanted = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in config}
    with quiet_logging():
        module = open_clip.CLIP(**wanted)
    module.visual.output_dim = config["embed_dim"]  # a TimmModel does not say so itself
    return Clip(
        model=module,
        name=model,
        pretrained="",
        weights_sha256="",
        image_size=config["vision_cfg"]["image_size"],
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        tokenizer=_tokenizer(config["text_cfg"].get("context_length", 77)),
    )


def _load_into(module: nn.Module, state: dict[str, Tensor], origin: str) -> bool:
    """Load a whole CLIP, or an image encoder alone; returns whether the text encoder was there."""
    wanted = module.state_dict()
    kind, anchor = next(item for item in _FIRST.items() if VISUAL + item[1] in wanted)
    encoder_only = VISUAL + anchor not in state
    if encoder_only:
        if anchor not in state:
            raise MismatchError(
                f"{origin}: no image encoder of a CLIP {kind} in it (neither {VISUAL}{anchor} nor {anchor})"
            )
        state = {VISUAL + key: value for key, value in state.items()}
    for key, value in state.items():
        if key in wanted and wanted[key].shape != value.shape:
            expected, found = list(wanted[key].shape), list(value.shape)
            raise MismatchError(f"{origin}: {key} has shape {found}, the model needs {expected}: another architecture")
    optional = {key for key in wanted if key.endswith("num_batches_tracked")} | {"attn_mask"}
    if encoder_only:
        optional |= {key for key in wanted if not key.startswith(VISUAL)}
    missing = [key for key in wanted if key not in state and key not in optional]
    unexpected = [key for key in state if key not in wanted and key not in optional]
    if missing or unexpected:
        first, word = (missing[0], "is missing") if missing else (unexpected[0], "is not the model's")
        raise MismatchError(f"{origin}: {first} {word}: another architecture")
    module.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in state.items() if key in wanted},
        strict=False,
    )
    return not encoder_only
