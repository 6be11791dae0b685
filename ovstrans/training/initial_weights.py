"""What a run starts from: the image encoder's weights, the layers to freeze, the text encoder to keep."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ovstrans import files
from ovstrans.clip.load import Clip, create_image_encoder
from ovstrans.clip.weights import VISUAL, fit_state, read_state_dict, require_finite
from ovstrans.errors import InputError
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training.state import derive_seed

TEXT_ENCODER_LIMIT = 10_000_000
"""Parameters up to which a checkpoint takes the text encoder along by default."""


def pruned_weights_path(mask: Path | str) -> Path:
    """Where `prune` puts the pruned weights of a mask: `mask.safetensors` to `mask.weights.safetensors`."""
    mask = Path(mask)
    return mask.with_name(f"{mask.stem}.weights.safetensors")


def initial_image_encoder(clip: Clip, settings: FinetuneRecipe) -> nn.Module:
    """The image encoder to start from, on the CPU.

    `pretrained`: CLIP's own weights. `pruned`: those that pruning left, from `run.weights` or beside the
    mask. `random`: drawn from the seed, the baseline without pretraining. Raises InputError for a
    missing or damaged file, MismatchError for another architecture.
    """
    run = settings.run
    if run.init == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(run.seed, "tower"))
            return create_image_encoder(clip.name).eval()
    if run.init == "pretrained":
        return clip.visual
    if not run.weights and not run.mask:
        raise InputError(
            "--init pruned needs --weights FILE, or --mask FILE with the weights that prune wrote beside it"
        )
    path = Path(run.weights) if run.weights else pruned_weights_path(run.mask)
    if not path.exists():
        raise InputError(
            f"{path}: no such file; --init pruned reads the weights that prune wrote (or give --weights FILE)"
        )
    state = read_state_dict(path)
    if any(key.startswith(VISUAL) for key in state):
        state = {key.removeprefix(VISUAL): value for key, value in state.items() if key.startswith(VISUAL)}
    load_image_encoder(clip.visual, state, str(path))
    return clip.visual


def load_image_encoder(encoder: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load an image encoder's state dict; MismatchError names the first tensor that does not fit."""
    fit = fit_state(state, encoder.state_dict(), origin)
    fit.require_complete()
    require_finite(fit.state, origin)
    encoder.load_state_dict(fit.state, strict=False)


def plan_layers(settings: FinetuneRecipe) -> list[str]:
    """The layers that the plan file of the run freezes; none without one."""
    from ovstrans.spectrum.file import load_plan

    return list(load_plan(files.existing_file(settings.run.plan)).frozen) if settings.run.plan else []


def text_encoder(clip: Clip, limit: int = TEXT_ENCODER_LIMIT) -> dict[str, Tensor] | None:
    """The text encoder's tensors if it is small, else None.

    Float32 tensors whose values are all float16 values are kept as those, without loss.
    """
    state = {key: value for key, value in clip.model.state_dict().items() if not key.startswith(VISUAL)}
    if not clip.has_text or sum(value.numel() for value in state.values()) > limit:
        return None
    return {key: _halved(value.detach().cpu()) for key, value in state.items()}


def _halved(value: Tensor) -> Tensor:
    if value.dtype is torch.float32 and torch.equal(value.half().float(), value):
        return value.half()
    return value
