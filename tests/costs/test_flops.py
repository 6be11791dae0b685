from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ovstrans.costs.flops import count_flops
from ovstrans.costs.params import Params, count_params, count_with_clip
from ovstrans.costs.target import load_target
from ovstrans.errors import InputError, MismatchError
from ovstrans.frameworks.registry import build_on_meta
from ovstrans.masks.mask import Mask
from ovstrans.vocabulary.vocabulary import Vocabulary


class Net(nn.Module):
    """A few convolutions, an attention-like product and a linear layer."""

    def __init__(self, convs: list[nn.Conv2d]) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*convs)
        self.head = nn.Linear(convs[-1].out_channels, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.backbone(images).flatten(2).transpose(1, 2)
        return self.head((tokens @ tokens.transpose(1, 2)) @ tokens)


@st.composite
def nets(draw: st.DrawFn) -> Net:
    convs, channels = [], 3
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([1, channels]))
        width = groups * draw(st.integers(1, 3))
        kernel = draw(st.sampled_from([1, 3]))
        convs.append(
            nn.Conv2d(
                channels,
                width,
                kernel,
                stride=draw(st.integers(1, 2)),
                padding=kernel // 2,
                dilation=draw(st.integers(1, 2)) if kernel == 1 else 1,
                groups=groups,
                bias=draw(st.booleans()),
            )
        )
        channels = width
    return Net(convs)


def brute(net: Net, images: Tensor, kept: dict[str, Tensor]) -> tuple[int, int]:
    """(dense, effective) MACs, by walking over output positions of every layer."""
    dense = effective = 0
    x = images
    for number, layer in enumerate(net.backbone):
        assert isinstance(layer, nn.Conv2d)
        y = layer(x)
        for _position in range(y.shape[0] * y.shape[2] * y.shape[3]):
            dense += layer.weight.numel()
            effective += int(kept.get(f"{number}.weight", torch.ones_like(layer.weight)).sum())
        x = y
    tokens, channels = x.shape[2] * x.shape[3], x.shape[1]
    products = x.shape[0] * (2 * tokens * tokens * channels + tokens * channels * 5)
    return dense + products, effective + products


@settings(max_examples=40, deadline=None)
@given(net=nets(), height=st.integers(3, 9), width=st.integers(3, 9), batch=st.integers(1, 2), seed=st.integers(0, 99))
def test_counts_match_brute_force(net: Net, height: int, width: int, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = {
        f"{number}.weight": torch.rand(layer.weight.shape, generator=generator) < 0.4
        for number, layer in enumerate(net.backbone)
        if number % 2 == 0
    }
    components = {"trunk": net.backbone, "head": net.head}
    flops = count_flops(net, (height, width), components=components, mask=Mask(kept, "net"), batch=batch)
    dense, effective = brute(net, torch.rand(batch, 3, height, width), kept)
    assert (flops.dense, flops.effective) == (dense, effective)
    parts = flops.components
    assert sum(part.effective for part in parts.values()) == effective
    assert {"trunk", "head"} <= set(parts) <= {"trunk", "head", "other"}
    params = count_params(net, components, mask=Mask(kept, "net"))
    assert params.total - params.nonzero == sum(int((~one).sum()) for one in kept.values())


def test_counting_leaves_the_module_alone() -> None:
    net = Net([nn.Conv2d(3, 4, 3)]).train()
    net.head.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    count_flops(net, (8, 8))
    assert net.training and not net.head.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_mask_scales_encoder_layers_exactly() -> None:
    target = load_target("deeplabv3")
    generator = torch.Generator().manual_seed(0)
    convs = {name: p for name, p in target.module.backbone.named_parameters() if p.dim() == 4 and name[:5] == "layer"}
    kept = {name: torch.rand(p.shape, generator=generator) < 0.1 for name, p in convs.items()}
    mask = Mask(kept, "RN-mini")
    plain = count_flops(target.module, (64, 96), components=target.components)
    masked = count_flops(target.module, (64, 96), components=target.components, mask=mask)
    assert masked.dense == plain.dense
    for one, other in zip(plain.layers or (), masked.layers or (), strict=True):
        share = float(kept[f"{one.name}.weight"].float().mean()) if f"{one.name}.weight" in kept else 1.0
        assert other.effective == pytest.approx(one.dense * share, rel=1e-6)
    parts = masked.components
    assert parts["trunk"].effective < 0.5 * parts["trunk"].dense
    assert parts["aspp"].effective == parts["aspp"].dense
    params = count_params(target.module, target.components, mask=mask)
    gone = sum(int((~one).sum()) for one in kept.values())
    assert params.nonzero == params.total - gone == params.trainable
    assert params.components["trunk"].nonzero == params.components["trunk"].total - gone
    assert Params.from_json(params.to_json()) == params


def test_a_foreign_mask_is_refused() -> None:
    target = load_target("RN50")
    with pytest.raises(MismatchError, match=r"layer1\.0\.conv1\.weight"):
        count_flops(
            target.module, (64, 64), mask=Mask({"layer1.0.conv1.weight": torch.ones(2, 2, 1, 1, dtype=torch.bool)}, "")
        )
    with pytest.raises(MismatchError, match=r"strange\.weight"):
        count_params(target.module, mask=Mask({"strange.weight": torch.ones(2, dtype=torch.bool)}, ""))


def test_frozen_layers_do_not_train() -> None:
    target = load_target("RN50")
    found = count_params(target.module, target.components, frozen=["conv2", "layer1.0.downsample.0"])
    assert found.total - found.trainable == 32 * 32 * 9 + 64 * 256
    with pytest.raises(MismatchError, match=r"freeze plan: layer layer9\.0"):
        count_params(target.module, frozen=["layer9.0"])


def test_text_rows_count() -> None:
    few = build_on_meta("deeplabv3", "RN-mini", vocabulary=Vocabulary.from_names("few", ["a", "b, c"]))
    many = build_on_meta("deeplabv3", "RN-mini", vocabulary=Vocabulary.from_names("many", ["a", "b", "c", "d", "e"]))
    found = [
        count_flops(one, (64, 64), components=one.components()).components["classifier"].dense for one in (few, many)
    ]
    positions, dim = (64 // 16) ** 2, few.embed_dim
    assert found == [positions * dim * 4, positions * dim * 6]  # rows and the non-object


def test_fvcore_adds_norms_and_misses_nothing_here() -> None:
    target = load_target("deeplabv3", device="cpu")
    ours = count_flops(target.module, (64, 64), components=target.components)
    theirs = count_flops(target.module, (64, 64), components=target.components, counter="fvcore")
    by_name = {layer.name: layer.dense for layer in theirs.layers or ()}
    convs = [layer for layer in ours.layers or () if "conv" in layer.name]
    assert convs and all(by_name[layer.name] == layer.dense for layer in convs)
    norms = sum(value for name, value in by_name.items() if ".bn" in name or name.startswith("bn"))
    assert norms > 0 and theirs.dense > ours.dense
    assert sorted(theirs.components) == sorted(ours.components)


def test_bad_input() -> None:
    target = load_target("RN-mini")
    with pytest.raises(InputError, match="`counter=thop`: unknown; use torch, fvcore or thop-rules"):
        count_flops(target.module, (64, 64), counter="thop")
    with pytest.raises(InputError, match="without weights"):
        count_flops(target.module, (64, 64), counter="fvcore")
    with pytest.raises(InputError, match="0x64"):
        count_flops(target.module, (0, 64))


@pytest.mark.parametrize("size", [(1, 1), (10, 10), (10, 640), (640, 10)])
@pytest.mark.parametrize(("model", "least"), [("RN-mini", 32), ("convnext_base", 32)])
def test_an_image_too_small_is_bad_input(model: str, least: int, size: tuple[int, int]) -> None:
    """The message names a size that does work."""
    target = load_target(model)
    with pytest.raises(InputError, match=rf"`image_size={size[0]}x{size[1]}`: too small .* at least {least}x{least}"):
        count_flops(target.module, size)
    assert count_flops(target.module, (least, least)).dense > 0


@pytest.mark.parametrize("counter", ["fvcore", "thop-rules"])
def test_every_counter_says_that_an_image_is_too_small(counter: str) -> None:
    target = load_target("RN-mini", device="cpu")
    with pytest.raises(InputError, match="too small"):
        count_flops(target.module, (10, 10), counter=counter)


def test_errors_that_no_size_explains_stay_what_they_are() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        count_flops(Broken(), (10, 10))


@pytest.mark.parametrize("name", ["RN50", "deeplabv3", "fcclip", "gkc"])
def test_params_with_all_of_clip(name: str) -> None:
    """OpenAI's RN50 has 102,007,137 parameters; a framework on it has these, and its own."""
    target = load_target(name, model=None if name == "RN50" else "RN50")
    own = sum(parameter.numel() for parameter in target.module.parameters())
    whole = count_with_clip(target.module, "RN50")
    assert whole is not None and whole >= 102_007_137
    if name == "RN50":
        assert whole == 102_007_137 > own == 23_527_264
    else:
        outside = {key for key, _ in target.module.named_parameters() if not key.startswith(("backbone.", "clip_"))}
        heads = sum(p.numel() for key, p in target.module.named_parameters() if key in outside)
        assert whole - 102_007_137 <= heads  # nothing of CLIP is counted twice
    assert count_with_clip(target.module, "no model") is None
