from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ovstrans import files
from ovstrans.clip.load import create_image_encoder, random_clip
from ovstrans.errors import InputError, MismatchError
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training.initial_weights import initial_image_encoder, text_encoder

Tiny = Callable[..., FinetuneRecipe]


@pytest.mark.parametrize("beside", [True, False])
def test_pruned_starts_from_what_pruning_left(tiny: Tiny, tmp_path: Path, beside: bool) -> None:
    left = {key: value + 1 for key, value in create_image_encoder().state_dict().items()}
    path = tmp_path / ("mask.weights.safetensors" if beside else "other.safetensors")
    files.write_tensors(path, left, {})
    settings = tiny(init="pruned", mask=str(tmp_path / "mask.safetensors"), weights="" if beside else str(path))
    encoder = initial_image_encoder(random_clip(), settings)
    assert all(torch.equal(value, left[key]) for key, value in encoder.state_dict().items())


def test_random_follows_the_seed_and_leaves_the_generator(tiny: Tiny) -> None:
    clip = random_clip(seed=5)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = (
        initial_image_encoder(clip, tiny(init="random", seed=seed)).state_dict()["layer1.0.conv1.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, clip.visual.state_dict()["layer1.0.conv1.weight"])


def test_pruned_without_weights_says_what_to_give(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`init=pruned`: needs `weights`"):
        initial_image_encoder(random_clip(), tiny(init="pruned"))
    with pytest.raises(InputError, match=r"mask.weights.safetensors: no such file"):
        initial_image_encoder(random_clip(), tiny(init="pruned", mask=str(tmp_path / "mask.safetensors")))


def test_weights_of_another_architecture_name_the_tensor(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = create_image_encoder().state_dict()
    state["layer2.0.conv1.weight"] = torch.zeros(5, 5, 1, 1)
    files.write_tensors(path, state, {})
    with pytest.raises(MismatchError, match=r"layer2.0.conv1.weight has shape \[5, 5, 1, 1\]"):
        initial_image_encoder(random_clip(), tiny(init="pruned", weights=str(path)))
    del state["layer2.0.conv1.weight"]
    files.write_tensors(path, state, {})
    with pytest.raises(MismatchError, match=r"lacks 1 entry \(layer2.0.conv1.weight\)"):
        initial_image_encoder(random_clip(), tiny(init="pruned", weights=str(path)))


def test_damaged_weights_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    state = create_image_encoder().state_dict()
    state["layer2.0.conv1.weight"][0, 0] = float("nan")
    files.write_tensors(tmp_path / "w.safetensors", state, {})
    with pytest.raises(InputError, match="layer2.0.conv1.weight holds 1 values that are NaN"):
        initial_image_encoder(random_clip(), tiny(init="pruned", weights=str(tmp_path / "w.safetensors")))


def test_a_small_text_encoder_is_kept_without_loss() -> None:
    clip = random_clip()
    with torch.no_grad():
        clip.model.token_embedding.weight.copy_(clip.model.token_embedding.weight.half())
    kept = text_encoder(clip)
    assert kept is not None and not any(key.startswith("visual.") for key in kept)
    assert kept["token_embedding.weight"].dtype is torch.float16
    assert kept["text_projection"].dtype is torch.float32  # random values, not float16's
    state = clip.model.state_dict()
    assert all(torch.equal(value.to(state[key].dtype), state[key]) for key, value in kept.items())
    assert text_encoder(clip, limit=1000) is None
