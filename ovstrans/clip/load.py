"""Loading a CLIP through open_clip: a bundled mini CLIP, a pretrained tag, or a file."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import open_clip
import torch
from open_clip.model import _build_vision_tower
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from ovstrans.clip import vit
from ovstrans.clip.backbone import encoder_kind
from ovstrans.clip.layers import backbone_shapes
from ovstrans.clip.models import (
    BUNDLED,
    BUNDLED_MODELS,
    DEFAULT_MODEL,
    WEIGHTS_FILE,
    bundled_config,
    bundled_folder,
    config_kind,
    model_config,
)
from ovstrans.clip.weights import (
    VISUAL,
    find_clip,
    fit_state,
    is_counter,
    read_weight_file,
    require_finite,
    weights_sha256,
)
from ovstrans.errors import InputError, MismatchError

_KIND_NAMES = {"resnet": "ResNet", "convnext": "ConvNeXt", "vit": "ViT"}
"""Kinds of image encoders as messages name them."""

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".pkl", ".ckpt")
"""Suffixes by which a name is that of a file of weights rather than a tag."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Clip:
    """A CLIP and what is known of it.

    Attributes:
        model: open_clip's module, in eval mode.
        name: open_clip model name.
        pretrained: open_clip tag, file, or "bundled"; "" for random weights.
        weights_sha256: Hash of the image encoder, see `clip.weights.weights_sha256`.
        image_size: Side of the images that the encoder was trained on, in pixels.
        mean: Mean of the RGB channels, for images in [0, 1].
        std: Standard deviation of the RGB channels.
        tokenizer: Turns texts into tokens [N, L].
        has_text: False if the weights file held no text encoder.
    """

    model: Any = field(repr=False)
    name: str
    pretrained: str
    weights_sha256: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokenizer: Callable[[list[str]], Tensor] = field(repr=False)
    has_text: bool = True

    @property
    def visual(self) -> Any:
        """The image encoder, under open_clip's name for it."""
        return self.model.visual

    @property
    def embed_dim(self) -> int:
        """Dimension E of the space that images and texts share."""
        return int(self.model.visual.output_dim)

    def describe(self) -> dict[str, Any]:
        """Return what a file made from this CLIP records of it."""
        return {
            "model": self.name,
            "pretrained": self.pretrained,
            "weights_sha256": self.weights_sha256,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }


class ModelInfo(NamedTuple):
    """Facts of an open_clip model that its configuration tells.

    Attributes:
        embed_dim: Dimension E of the space that images and texts share.
        image_size: Side of the images that it was trained on, in pixels.
        mean: Mean of the RGB channels, for images in [0, 1].
        std: Standard deviation of the RGB channels.
    """

    embed_dim: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_clip(model: str = DEFAULT_MODEL, pretrained: str | None = None, *, device: torch.device | str = "cpu") -> Clip:
    """Load a CLIP whose image encoder is a ModifiedResNet, a ConvNeXt or a ViT, in eval mode and float32.

    Args:
        model: open_clip model name, or `RN-mini` or `ViT-mini` for a bundled one.
        pretrained: An open_clip tag, whose weights come from the hub or its cache; or a file (`.safetensors` or a
            torch file) of a whole CLIP or of the image encoder alone. None takes the bundled weights for a bundled
            model and open_clip's first tag for any other. Where a file shows that its weights were trained with
            QuickGELU, the CLIP is named so (`RN50-quickgelu`); see `clip.activation`.
        device: Where the model goes.

    Raises:
        InputError: If the model or tag is unknown, the file cannot be read, the weights hold NaN or infinity, or the
            hub cannot be reached.
        MismatchError: If the weights are of another architecture.
    """
    config, preprocess = _config(model)
    source = _default_pretrained(model) if pretrained is None else pretrained
    tags = open_clip.list_pretrained_tags_by_model(model)
    is_file = (Path(source).exists() or Path(source).suffix in WEIGHT_SUFFIXES) and source not in (*tags, BUNDLED)
    if is_file:
        path = _weights_in(Path(source))
    elif model in BUNDLED_MODELS:
        if source != BUNDLED:
            raise InputError(f"`pretrained={source}`: no such file, and {model} has no tags but {BUNDLED!r}")
        path = bundled_folder(model) / WEIGHTS_FILE
        if not path.exists():
            raise InputError(
                f"`model={model}`: its weights are not part of this installation ({path}); "
                "install ovstrans again, or give a file as `pretrained`"
            )
    else:
        path, tag = _fetch(model, source, tags)
        config["quick_gelu"] = _quick_gelu(config, tag)
        preprocess = {**preprocess, **{key: tag[key] for key in ("mean", "std") if key in tag}}
    weights = read_weight_file(path)
    if is_file:
        from ovstrans.clip.activation import config_beside, model_for_file

        source = str(path.absolute())  # what is made of it may be used from another folder
        model = model_for_file(model, weights)
        config, preprocess = _config(model)
        own = config_beside(model, path).get("preprocess_cfg") or {}
        preprocess = {**preprocess, **{key: own[key] for key in ("mean", "std") if key in own}}
    state = weights.dense()
    clip = _build(model, config, preprocess)
    clip.pretrained = source
    clip.has_text = _load_into(clip.model, state, str(path))
    require_finite(clip.model.state_dict(), str(path))
    clip.weights_sha256 = weights_sha256(clip.visual.state_dict())
    clip.model.eval().to(device)
    return clip


def random_clip(model: str = DEFAULT_MODEL, seed: int = 0, *, pretrained: str = "") -> Clip:
    """Build a CLIP with random weights: for tests, baselines, and weights that are loaded afterwards.

    Args:
        model: As for `load_clip`.
        seed: Seed of the weights.
        pretrained: Tag of the weights to come, if any. They may need another activation than the model's own
            configuration has (OpenAI's RN50: QuickGELU).
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
    """Build the image encoder alone, with random weights.

    Inside `with torch.device("meta")` it takes no memory.
    """
    config, _ = _config(model)
    vision = config["vision_cfg"]
    if vision.get("timm_model_name"):
        return _create_timm(config)
    if config_kind(config) == "vit":
        encoder: nn.Module = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
        return encoder
    width, size = vision["width"], vision["image_size"]
    heads = width * 32 // vision.get("head_width", 64)
    return cast(nn.Module, ModifiedResNet(vision["layers"], config["embed_dim"], heads, image_size=size, width=width))


def create_clip(model: str = DEFAULT_MODEL) -> Any:
    """Build open_clip's module of image and text encoder, with random weights.

    Inside `with torch.device("meta")` it takes no memory.
    """
    config, preprocess = _config(model)
    return _build(model, config, preprocess).model


def model_info(model: str) -> ModelInfo:
    """Return facts of a model without building it; InputError if it is unknown."""
    config, preprocess = _config(model)
    return ModelInfo(
        config["embed_dim"],
        config["vision_cfg"]["image_size"],
        tuple(preprocess["mean"]),
        tuple(preprocess["std"]),
    )


@lru_cache(maxsize=8)
def model_shapes(model: str) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of a model's backbone weights by name, or None if the model is unknown.

    See `clip.layers.backbone_shapes`.
    """
    if not model:
        return None
    try:
        with torch.device("meta"):
            encoder = create_image_encoder(model)
    except InputError:
        return None
    return backbone_shapes(dict(encoder.named_parameters()))


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence open_clip's log lines while the block runs."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _config(model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (model configuration, preprocessing); InputError if the model is unknown or of another kind."""
    config = model_config(model)
    config["vision_cfg"]["timm_model_pretrained"] = False  # weights come from a CLIP, never from timm's hub
    own = bundled_config(model)["preprocess_cfg"] if model in BUNDLED_MODELS else _common_statistics(model)
    return config, {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, **own}


def _common_statistics(model: str) -> dict[str, Any]:
    """Return mean and std of a model's images, if all its tags have the same; SigLIP's, for one, are not CLIP's."""
    tags = [open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)]
    found = {(tuple(tag.get("mean") or ()), tuple(tag.get("std") or ())) for tag in tags}
    mean, std = next(iter(found)) if len(found) == 1 else ((), ())
    return {"mean": mean, "std": std} if mean and std else {}


def _create_timm(config: Mapping[str, Any]) -> nn.Module:
    """Build a ConvNeXt or ViT of timm with random weights; timm is never asked for pretrained ones."""
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    encoder: nn.Module = TimmModel(
        vision.timm_model_name,
        config["embed_dim"],
        image_size=vision.image_size,
        pool=vision.timm_pool,
        proj=vision.timm_proj,
        proj_bias=vision.timm_proj_bias,
        drop=vision.timm_drop,
        drop_path=vision.timm_drop_path,
    )
    return _complete(encoder, config)


def _complete(encoder: Any, config: Mapping[str, Any]) -> nn.Module:
    """Give an image encoder what others of its kind have, in place: its output width, any image size for a ViT."""
    encoder.output_dim = config["embed_dim"]
    if config["vision_cfg"].get("timm_model_name") and config_kind(config) == "vit":
        vit.allow_any_size(encoder)
    return cast(nn.Module, encoder)


def _quick_gelu(config: Mapping[str, Any], tag: Mapping[str, Any]) -> bool:
    """Return whether a model with the weights of a tag uses QuickGELU."""
    return bool(tag.get("quick_gelu", config.get("quick_gelu", False)))


def is_missing_file(pretrained: str) -> bool:
    """Return whether `pretrained` names a file of weights, rather than a tag, that is not there."""
    return Path(pretrained).suffix in WEIGHT_SUFFIXES and not Path(pretrained).exists()


def _weights_in(path: Path) -> Path:
    """Return the weights in the folder of a model, as hubs have it; the path itself if it is a file."""
    if not path.is_dir():
        return path
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    raise InputError(
        f"`pretrained={path}`: is a folder without open_clip_model.safetensors; give the file of the weights"
    )


def _default_pretrained(model: str) -> str:
    if model in BUNDLED_MODELS:
        return BUNDLED
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tags:
        raise InputError(f"`model={model}`: open_clip has no weights of it; give a file as `pretrained`")
    return str(tags[0])


def _fetch(model: str, tag: str, tags: list[str]) -> tuple[Path, Mapping[str, Any]]:
    """Return the local file of a tag, downloaded if it is not cached yet, and the tag's settings."""
    if tag not in tags:
        known = f"tags are {', '.join(tags)}" if tags else "it has none; give a file"
        raise InputError(f"`pretrained={tag}`: neither a file nor a tag of {model}; {known}")
    settings = open_clip.get_pretrained_cfg(model, tag)
    logger.info("fetching %s (%s) ...", model, tag)  # a download takes its time, and so does finding no network
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with _quiet_logging():
            return Path(open_clip.download_pretrained(settings)), settings
    except Exception as error:  # the hub's client raises many kinds
        where = settings.get("hf_hub") or settings.get("url")
        raise InputError(
            f"`pretrained={tag}`: the weights of {model} ({where}) could not be fetched "
            f"({type(error).__name__}); with no network, download them elsewhere and give the file"
        ) from error


@lru_cache(maxsize=4)
def _tokenizer(context_length: int) -> Callable[[list[str]], Tensor]:
    tokenizer: Callable[[list[str]], Tensor] = open_clip.SimpleTokenizer(context_length=context_length)
    return tokenizer


class _HubTokenizer:
    """A tokenizer whose vocabulary is on Hugging Face's hub, fetched when the first text comes."""

    def __init__(self, model: str, name: str) -> None:
        self.model, self.name = model, name
        self._tokenizer: Callable[[list[str]], Tensor] | None = None

    def __call__(self, texts: list[str]) -> Tensor:
        if self._tokenizer is None:
            try:
                with _quiet_logging():
                    self._tokenizer = open_clip.get_tokenizer(self.model)
            except Exception as error:  # the hub's client raises many kinds
                raise InputError(
                    f"`model={self.model}`: its tokenizer {self.name} could not be fetched ({type(error).__name__}); "
                    "class names need it, pruning and analysis do not"
                ) from error
        return self._tokenizer(texts)


def _build(model: str, config: Mapping[str, Any], preprocess: Mapping[str, Any]) -> Clip:
    keys = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias")
    arguments = {key: config[key] for key in keys if key in config}
    with _quiet_logging():
        module = (open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP)(**arguments)
    _complete(module.visual, config)
    text = config["text_cfg"]
    hub_name = text.get("hf_tokenizer_name")
    return Clip(
        model=module,
        name=model,
        pretrained="",
        weights_sha256="",
        image_size=config["vision_cfg"]["image_size"],
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        tokenizer=_HubTokenizer(model, hub_name) if hub_name else _tokenizer(text.get("context_length", 77)),
    )


def _load_into(module: nn.Module, state: dict[str, Tensor], where: str) -> bool:
    """Load a whole CLIP, or an image encoder alone, into open_clip's module.

    Returns:
        Whether the state held the text encoder.
    """
    needed = module.state_dict()
    state = find_clip(state, where)
    named = (key.removeprefix(VISUAL) for key in needed if key.startswith(VISUAL))
    first = next(key for key in named if key.endswith(".weight"))
    kind = _KIND_NAMES[encoder_kind(cast(nn.Module, module.visual))]
    encoder_only = VISUAL + first not in state
    if encoder_only:
        if first not in state:
            raise MismatchError(
                f"{where}: no image encoder of a CLIP {kind} in it (neither {VISUAL}{first} nor {first})"
            )
        state = {VISUAL + key: value for key, value in state.items()}
    fit = fit_state(
        state, needed, where, optional=lambda key: is_counter(key) or (encoder_only and not key.startswith(VISUAL))
    )
    fit.require_complete()
    fit.require_known()
    module.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in fit.state.items()}, strict=False
    )
    return not encoder_only
