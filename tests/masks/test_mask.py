from __future__ import annotations

import copy
import gc
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.mask import Mask, density_rows
from tests.masks.dummies import CLIP, MASKED, Compiled, Encoder, Framework, Wrapped, cut_values, make_mask

HOLDERS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "encoder": lambda: (encoder := Encoder(), encoder),
    "clip": lambda: (clip := CLIP(), clip.visual),
    "framework": lambda: (framework := Framework(), framework.backbone),
    "ddp": lambda: (wrapped := Wrapped(Framework()), wrapped.module.backbone),
    "ddp of a clip": lambda: (wrapped := Wrapped(CLIP()), wrapped.module.visual),
    "compiled encoder": lambda: (compiled := Compiled(Encoder()), compiled._orig_mod),
    "compiled inside": lambda: (outer := Framework(Compiled(Encoder())), outer.backbone._orig_mod),
    "ddp of compiled": lambda: (outer := Wrapped(Compiled(Framework())), outer.module._orig_mod.backbone),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_apply_zeroes_masked_weights_and_nothing_else(kind: str) -> None:
    mask = make_mask()
    holder, encoder = HOLDERS[kind]()
    before = {key: value.clone() for key, value in holder.state_dict().items()}
    assert sum(count for _, count in mask.violations(holder)) == mask.total - mask.kept
    mask.apply(holder)
    assert (cut_values(mask, encoder) == 0).all()
    assert mask.violations(holder) == []
    named = dict(encoder.named_parameters())
    masked = {id(named[key]): key for key in MASKED}
    for key, value in holder.state_dict(keep_vars=True).items():
        kept = mask.tensors[masked[id(value)]] if id(value) in masked else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[kept], before[key][kept]), key


def test_real_compiled_module() -> None:
    mask, encoder = make_mask(), Encoder()
    compiled = torch.compile(encoder, backend="eager")
    mask.apply(compiled)
    assert (cut_values(mask, encoder) == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_zeros_are_plain_zeros(bad: float) -> None:
    mask, encoder = make_mask(), Encoder()
    with torch.no_grad():
        encoder.layer1[0].conv1.weight.fill_(bad)
    count = int((~mask.tensors[MASKED[0]]).sum())
    assert mask.violations(encoder)[0] == (MASKED[0], count)
    mask.apply(encoder)
    cut = encoder.layer1[0].conv1.weight.detach()[~mask.tensors[MASKED[0]]]
    assert (cut == 0).all() and not torch.signbit(cut).any()


def test_layout_and_type_do_not_matter() -> None:
    mask = make_mask()
    encoder = Encoder().to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    mask.apply(encoder)
    assert (cut_values(mask, encoder) == 0).all() and mask.violations(encoder) == []


@pytest.mark.parametrize("prefix", ["", "visual.", "backbone.", "module.backbone.", "module.visual."])
def test_state_dict(prefix: str) -> None:
    mask = make_mask()
    state = {prefix + key: value.clone() for key, value in Encoder().state_dict().items()}
    mask.apply(state)
    assert all((state[prefix + key][~kept] == 0).all() for key, kept in mask.tensors.items())
    assert mask.violations(state) == []


def test_state_dict_of_a_clip_leaves_the_text_encoder_alone() -> None:
    clip = CLIP()
    text = clip.layer1[0].conv1.weight.clone()
    make_mask().apply(clip.state_dict())
    assert torch.equal(clip.layer1[0].conv1.weight, text)
    assert make_mask().violations(clip) == []


def test_missing_layer_is_named_and_nothing_is_changed() -> None:
    encoder = Encoder(blocks=1)
    before = copy.deepcopy(encoder.state_dict())
    with pytest.raises(MismatchError, match=r"made for dummy.*layer1\.1\.conv1\.weight is missing"):
        make_mask().apply(encoder)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_other_shape_is_named() -> None:
    encoder = Encoder()
    encoder.layer1[1].conv2 = nn.Conv2d(6, 5, 1)
    with pytest.raises(
        MismatchError, match=re.escape("layer1.1.conv2.weight has shape [5, 6, 1, 1] in this model, [4")
    ):
        make_mask(path="m.safetensors").violations(encoder)


def test_deeper_backbone_of_equal_shapes_is_another_architecture() -> None:
    from ovstrans.clip.layers import scope_layers
    from ovstrans.clip.load import create_image_encoder

    with torch.device("meta"):
        small, deep = create_image_encoder("RN50"), create_image_encoder("RN101")
    body = {f"{name}.weight": tuple(conv.shape) for name, conv in scope_layers(small).items()}
    mask = Mask({key: torch.ones(shape, dtype=torch.bool) for key, shape in body.items()}, model="RN50")
    mask.apply(small)
    with pytest.raises(MismatchError, match=r"layer3\.6\.conv1\.weight of this model is not in RN50"):
        mask.apply(deep)
    part = Mask({key: kept for key, kept in mask.tensors.items() if key.startswith("layer4")}, model="RN101")
    with pytest.raises(MismatchError, match=r"layer3\.6\.conv1\.weight is missing"):
        part.apply(small)
    small.attnpool = nn.Identity()  # frameworks drop it
    mask.apply(small)


@pytest.mark.parametrize("applied_to", ["RN-mini", "RN50"])
def test_a_mask_whose_tensors_are_not_those_of_the_model_it_names_fits_nothing(applied_to: str) -> None:
    from ovstrans.clip.load import create_image_encoder

    with torch.device("meta"):
        encoder = create_image_encoder(applied_to)
    right = tuple(encoder.get_parameter("layer1.0.conv2.weight").shape)
    mask = Mask({"layer1.0.conv2.weight": torch.ones(5, 4, 3, 3, dtype=torch.bool)}, model="RN-mini")
    with pytest.raises(
        MismatchError,
        match=re.escape(f"layer1.0.conv2.weight has shape {list(right)} in this model, [5, 4, 3, 3] in the mask"),
    ):
        mask.apply(encoder)


def test_other_weights_are_welcome_and_told_apart() -> None:
    mask = make_mask(weights_sha256="a" * 64)
    mask.apply(Encoder(seed=3))
    assert mask.made_from("a" * 64) and not mask.made_from("b" * 64)
    assert not make_mask().made_from("")


def test_bookkeeping() -> None:
    mask = Mask(
        {"a.weight": torch.tensor([[True, False], [False, False]]), "b.weight": torch.tensor([True, True])}, model="x"
    )
    assert (mask.kept, mask.total, mask.density, mask.sparsity) == (3, 6, 0.5, 0.5)
    assert mask.layer_densities() == {"a": 0.25, "b": 1.0}
    assert density_rows(mask) == [("a", (2, 2), 1, 4, 0.25), ("b", (2,), 2, 2, 1.0)]


@pytest.mark.parametrize("tensors", [{}, {"a": torch.ones(2)}, {"a": torch.ones(0, dtype=torch.bool)}])
def test_bad_tensors(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError):
        Mask(tensors, model="x")


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda mask: pickle.loads(pickle.dumps(mask))])
def test_copies_carry_the_bits_not_the_models(way: Callable[[Mask], Mask]) -> None:
    mask, encoder = make_mask(method="imp", recipe={"a": 1}), Encoder()
    mask.apply(encoder)
    twin = way(mask)
    assert all(torch.equal(twin.tensors[key], kept) for key, kept in mask.tensors.items())
    assert (twin.model, twin.method, twin.recipe) == ("dummy", "imp", {"a": 1})
    with (
        pytest.raises(InputError, match="before it was applied"),
        twin.held(torch.optim.SGD(encoder.parameters(), 0.1)),
    ):
        pass


def test_mask_does_not_keep_models_alive() -> None:
    import weakref

    mask, encoder = make_mask(), Encoder()
    mask.apply(encoder)
    ghost = weakref.ref(encoder)
    del encoder
    gc.collect()
    assert ghost() is None
    mask.mask_gradients()


def test_gradients_before_clipping() -> None:
    mask, framework = make_mask(), Framework()
    mask.apply(framework)
    framework(torch.ones(2, 3, 5, 5)).square().sum().backward()
    framework.backbone.layer1[0].conv1.weight.grad.fill_(float("nan"))
    mask.mask_gradients()
    for key, kept in mask.tensors.items():
        gradient = dict(framework.backbone.named_parameters())[key].grad
        assert (gradient[~kept] == 0).all()
    assert framework.backbone.layer1[1].conv1.weight.grad.count_nonzero() > 0


def test_equal_masks_compare_equal() -> None:
    mask = make_mask(method="imp", path="a.safetensors")
    assert mask == make_mask(method="imp", path="b.safetensors") and hash(mask) == hash(make_mask(method="imp"))
    assert mask != make_mask(seed=2, method="imp") and mask != make_mask(method="random")
    assert mask != make_mask(method="imp", recipe={"rate": 0.1}) and mask != "mask"
    fewer = {key: kept for key, kept in mask.tensors.items() if "conv1" in key}
    assert mask != Mask(fewer, model="dummy", method="imp")


def test_repr_is_a_few_lines() -> None:
    mask = make_mask(method="imp", pretrained="tag", path="m.safetensors")
    lines = repr(mask).splitlines()
    assert lines[0] == f"Mask: {mask.sparsity:.2%} of 480 weights are zero, in 4 tensors"
    assert len(lines) == 4 and "dummy tag" in lines[1] and "imp" in lines[2] and "m.safetensors" in lines[3]
