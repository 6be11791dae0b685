from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ovstrans import files
from ovstrans.clip.load import create_image_encoder, random_clip
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.file import save_weights
from ovstrans.masks.mask import Mask
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training.initial_weights import initial_image_encoder, text_encoder

Tiny = Callable[..., FinetuneRecipe]
FIRST = "layer1.0.conv1.weight"


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


def test_pruned_weights_must_belong_to_the_mask(tiny: Tiny, tmp_path: Path) -> None:
    def mask_of(seed: int, density: float, origin: str = "a" * 64) -> Mask:
        draw = torch.Generator().manual_seed(seed)
        kept = torch.rand(dense["layer1.0.conv1.weight"].shape, generator=draw) < density
        return Mask({"layer1.0.conv1.weight": kept}, model="RN-mini", weights_sha256=origin)

    dense = {key: value.float() for key, value in create_image_encoder().state_dict().items()}
    mask = mask_of(0, 0.5)
    left = dict(dense)
    left["layer1.0.conv1.weight"] = (dense["layer1.0.conv1.weight"] + 1).masked_fill(~mask.tensors[FIRST], 0)
    path = tmp_path / "w.safetensors"
    save_weights(path, left, mask)
    settings = tiny(init="pruned", weights=str(path))
    encoder = initial_image_encoder(random_clip(), settings, mask=mask)
    assert torch.equal(encoder.state_dict()[FIRST], left[FIRST])
    for other, words in (
        (mask_of(1, 0.5), r"does not belong to .*: \d+ of the \d+ weights of layer1.0.conv1.weight that the mask cuts"),
        (mask_of(0, 0.9), "weights that the mask keeps are zero, as another mask left them"),
        (mask_of(0, 0.5, "b" * 64), "made from weights aaaaaaaaaaaa, the mask from bbbbbbbbbbbb"),
    ):
        with pytest.raises(MismatchError, match=words):
            initial_image_encoder(random_clip(), settings, mask=other)
    with pytest.raises(MismatchError, match="that the mask cuts are not zero"):
        initial_image_encoder(random_clip(), tiny(init="pruned", weights="given"), dense, mask)
