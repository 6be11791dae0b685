"""The rules against figures that thop and ptflops themselves gave.

Provenance: thop 0.1.1.post2209072238 and ptflops 0.7 run on the released CLIP backbone, GKC's, FC-CLIP's and
Mask2Former's heads with random weights, apart from this project; printed to 3 or 4 decimals of G, params to 3 of M.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from ovstrans.clip.text import TextClassifier
from ovstrans.costs import released_code
from ovstrans.costs.counter import run_on_meta
from ovstrans.costs.flops import count_flops
from ovstrans.costs.target import load_target
from ovstrans.costs.thop_rules import PTFLOPS, THOP, count_thop
from ovstrans.frameworks import registry
from ovstrans.frameworks.mask2former_head import HeadOutput
from ovstrans.frameworks.mask_framework import MaskFramework
from ovstrans.frameworks.registry import build_on_meta

PAPER, SMALL = (800, 1216), (512, 512)


class Mask2Former(MaskFramework):
    """The closed-vocabulary original: a linear class head of 133 classes and the void."""

    name: ClassVar[str] = "mask2former"
    defaults: ClassVar[Mapping[str, Any]] = MaskFramework.COMMON

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.backbone.attnpool = None
        self.class_embed = nn.Linear(self.options["width"], 134)

    def class_scores(self, found: HeadOutput, prediction: int, text: TextClassifier) -> Tensor:
        return self.class_embed(found.queries[prediction])


@pytest.fixture
def mask2former(monkeypatch: pytest.MonkeyPatch) -> MaskFramework:
    """On RN50, counted as its released code runs: classes at every prediction."""
    monkeypatch.setitem(registry._FRAMEWORKS, "mask2former", (__name__, "Mask2Former"))
    monkeypatch.setattr(released_code, "CLASSIFIES_EVERY_PREDICTION", frozenset({"mask2former"}))
    framework = build_on_meta("mask2former", "RN50")
    assert isinstance(framework, MaskFramework)
    return framework


@pytest.mark.parametrize(
    ("size", "rules", "giga"),
    [(SMALL, THOP, 28.3059), (PAPER, THOP, 105.0415), (SMALL, PTFLOPS, 28.2444), (PAPER, PTFLOPS, 104.8134)],
)
def test_the_backbone(size: tuple[int, int], rules: Any, giga: float) -> None:
    target = load_target("RN50")
    found = count_thop(target.module, size, components=target.components, rules=rules)
    assert round(found.macs / 1e9, 4) == giga
    assert list(found.components()) == ["trunk"]
    if rules is THOP:
        assert found.params == 23_527_264


def head(framework: MaskFramework, size: tuple[int, int]) -> tuple[float, float]:
    """(G, M of params) of everything outside the backbone."""
    parts = count_thop(framework, size, components=framework.components()).components()
    rest = [part for name, part in parts.items() if name != "trunk"]
    return round(sum(part["macs"] for part in rest) / 1e9, 3), round(sum(part["params"] for part in rest) / 1e6, 3)


@pytest.mark.parametrize(
    ("name", "size", "figures"),
    [("gkc", PAPER, (92.154, 15.047)), ("gkc", SMALL, (25.674, 15.047)), ("fcclip", PAPER, (95.013, 15.442))],
)
def test_the_heads(name: str, size: tuple[int, int], figures: tuple[float, float]) -> None:
    framework = build_on_meta(name, "RN50")
    assert isinstance(framework, MaskFramework)
    assert head(framework, size) == figures


def test_mask2former(mask2former: MaskFramework) -> None:
    assert head(mask2former, PAPER) == (92.182, 15.015)


def test_fcclip_as_the_paper_prints_it() -> None:
    found = count_thop(build_on_meta("fcclip", "RN50"), PAPER)
    assert round(found.params / 1e6, 2) == 38.97
    assert round(found.macs / 1e9, 3) == 200.055


def test_patterns_of_unseen_modules_match() -> None:
    """Every pattern names modules of a framework, and nothing but what it says."""
    frameworks = [build_on_meta(name, "RN50") for name in ("gkc", "fcclip")]
    names = [name for framework in frameworks for name, _ in framework.named_modules()]
    narrow = build_on_meta("gkc", "RN-mini", options={"width": 32, "queries": 2})
    hidden = {name: why for name, _ in narrow.named_modules() if (why := released_code.reason_unseen(narrow, name))}
    for pattern in released_code.UNSEEN:
        if pattern != "head.transformer.input_projections.*":
            assert any(released_code.fnmatchcase(name, pattern) for name in names), pattern
    assert not any(name.startswith("backbone") or "cross_attn" in name for name in hidden)
    assert released_code.reason_unseen(load_target("RN50").module, "head.pixel_decoder.mask_projection") is None


class Layers(nn.Module):
    """One run of each."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> None:
        for layer in self.layers:
            layer(images)


class Sub(nn.Conv2d):
    """Another type."""


def test_rules_one_by_one() -> None:
    """On images [2, 3, 8, 12]: 576 numbers in."""
    cases: list[tuple[nn.Module, int]] = [
        (nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3), 2 * 6 * 4 * 6 * 1 * 9),
        (nn.ConvTranspose2d(3, 5, 2, stride=2, bias=False), 2 * 5 * 16 * 24 * 3 * 4),
        (nn.Linear(12, 7), 2 * 3 * 8 * 7 * 12),
        (nn.BatchNorm2d(3), 4 * 576),
        (nn.BatchNorm2d(3, affine=False), 2 * 576),
        (nn.LayerNorm(12), 4 * 576),
        (nn.AvgPool2d(2), 144),
        (nn.AdaptiveAvgPool2d(2), (4 * 6 + 1) * 24),
        (nn.Softmax(dim=-1), 48 * 35),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 11 * 4 * 576),
        (nn.ReLU(), 0),
    ]
    for layer, wanted in cases:
        found = count_thop(Layers([layer]), (8, 12), batch=2)
        assert [each.macs for each in found.layers] == [wanted], layer
        assert found.params == sum(each.numel() for each in layer.parameters())
    assert count_thop(Layers([Sub(3, 4, 1), nn.GroupNorm(3, 3), nn.Identity()]), (8, 12)).layers == ()


def test_attention_is_one_module_without_a_rule() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.after = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

        def forward(self, images: Tensor) -> Tensor:
            tokens = images.flatten(1, 2)
            return self.after(self.attention(tokens, tokens, tokens)[0])

    found = count_thop(Attends(), (4, 8))
    assert [(each.name, each.macs, each.params) for each in found.layers] == [("after", 12 * 8 * 5, 45)]


def test_ptflops_adds_biases() -> None:
    layers = Layers([nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AvgPool2d(4), nn.BatchNorm2d(3, affine=False)])
    found = count_thop(layers, (8, 8), rules=PTFLOPS)
    assert [each.macs for each in found.layers] == [64 * 4 * 3 + 64 * 4, 192, 192, 192]


def test_runs_add_up_and_what_never_runs_is_not_there() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.used(self.used(images))

    found = count_thop(Twice(), (4, 4))
    assert [(each.name, each.macs, each.params) for each in found.layers] == [("used", 2 * 16 * 9, 12)]


def test_what_only_released_code_runs() -> None:
    """Classes after every decoder layer, and CLIP's query once a mask: 3 masks, 4 positions at stride 32."""
    framework = build_on_meta("fcclip", "RN-mini", options={"width": 32, "queries": 3, "decoder_layers": 4})
    parts = framework.components()
    plain = count_flops(framework, (64, 64), components=parts).components
    with released_code.as_released(framework):
        released = count_flops(framework, (64, 64), components=parts).components
    pool: Any = framework.get_submodule("clip_head.attnpool")
    channels = pool.q_proj.in_features
    more = {name: released[name].dense - part.dense for name, part in plain.items()}
    assert {name: count for name, count in more.items() if count} == {
        "classifier": 4 * plain["classifier"].dense,
        "clip_head": 2 * channels * (channels + 4),
    }
    assert not any(module._forward_hooks for module in framework.modules())


def test_running_on_meta_leaves_no_trace() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).half().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run_on_meta(module, (1, 3, 4, 4))
    after = module.state_dict()
    assert module.training and module[0].weight.dtype == torch.float16
    assert all(torch.equal(after[name], value) and after[name].device.type == "cpu" for name, value in before.items())
