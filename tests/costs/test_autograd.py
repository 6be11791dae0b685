"""Products of forward and backward passes by layer, against closed forms and against torch's own total."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.costs.autograd import StepMacs, trace_step
from tests.costs.reference import executed_macs


def output(module: nn.Module, images: Tensor) -> Sequence[Tensor]:
    return [module(images)]


def sums(macs: dict[str, StepMacs]) -> tuple[int, int]:
    """(forward, backward)."""
    return (
        sum(each.forward for each in macs.values()),
        sum(each.input_gradient + each.weight_gradient for each in macs.values()),
    )


def dispatched(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """(forward, backward) of a real pass over real tensors, by torch's counter alone."""
    made: list[Tensor] = []
    forward = executed_macs(lambda: made.append(module(torch.zeros(shape))))
    return forward, executed_macs(made[0].sum().backward)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, ...], list[int], list[bool]]:
    """(convolutions, shape of their images, MACs of each in closed form, which of them train)."""
    batch, channels, side = draw(st.integers(1, 3)), 4, draw(st.integers(7, 12))
    shape = (batch, channels, side, side)
    layers: list[nn.Module] = []
    macs = []
    for _ in range(draw(st.integers(1, 4))):
        width = draw(st.sampled_from([4, 8]))
        groups = draw(st.sampled_from([1, 2, 4]))
        kernel, stride, dilation = draw(st.sampled_from([(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2)]))
        padding = dilation * (kernel // 2)
        layers.append(nn.Conv2d(channels, width, kernel, stride, padding, dilation, groups, bias=draw(st.booleans())))
        side = (side - 1) // stride + 1
        macs.append(batch * width * side * side * (channels // groups) * kernel * kernel)
        channels = width
    trains = [draw(st.booleans()) for _ in layers]
    for layer, train in zip(layers, trains, strict=True):
        layer.requires_grad_(train)
    return nn.Sequential(*layers), shape, macs, trains


@given(stacks())
def test_random_convolutions(case: tuple[nn.Sequential, tuple[int, ...], list[int], list[bool]]) -> None:
    """A weight gradient where the layer trains, an input gradient where one before it does."""
    module, shape, macs, trains = case
    found = trace_step(module, shape, output)
    for number, (own, train) in enumerate(zip(macs, trains, strict=True)):
        expected = StepMacs(own, own if any(trains[:number]) else 0, own if train else 0)
        assert found[str(number)] == expected
    if any(trains) and all(layer.groups == 1 for layer in module if isinstance(layer, nn.Conv2d)):
        assert sums(found) == dispatched(module, shape)


@given(batch=st.integers(1, 3), tokens=st.integers(2, 6), heads=st.sampled_from([1, 2]), masked=st.booleans())
def test_attention(batch: int, tokens: int, heads: int, masked: bool) -> None:
    """Projections have weight gradients; scores and their use have two input gradients each."""
    width = 8

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(width, width)
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

        def forward(self, rows: Tensor) -> Any:
            rows = self.first(rows)
            mask = torch.zeros(tokens, tokens, device=rows.device) if masked else None
            return self.attention(rows, rows, rows, attn_mask=mask)[0]

    module = Attending()
    found = trace_step(module, (batch, tokens, width), output)
    projections, mixing = 4 * batch * tokens * width * width, 2 * batch * tokens * tokens * width
    assert found["first"] == StepMacs(projections // 4, 0, projections // 4)
    assert found["attention"] == StepMacs(projections + mixing, projections + 2 * mixing, projections)
    assert sums(found) == dispatched(module, (batch, tokens, width))


@given(rows=st.integers(1, 5), names=st.integers(1, 5), learned=st.booleans())
def test_products_outside_layers(rows: int, names: int, learned: bool) -> None:
    """A product with the module's own parameter has a weight gradient, one with a buffer has none."""

    class Scoring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(6, 4)
            self.register_buffer("text", torch.zeros(names, 4))
            self.extra = nn.Parameter(torch.ones(4), requires_grad=learned)

        def forward(self, images: Tensor) -> Tensor:
            text = torch.cat([self.text, F.normalize(self.extra, dim=0)[None]])
            return torch.einsum("bre,ke->brk", self.embed(images), text)

    module = Scoring()
    found = trace_step(module, (2, rows, 6), output)
    product = 2 * rows * (names + 1) * 4
    assert found[""] == StepMacs(product, product, product if learned else 0)
    assert sums(found) == dispatched(module, (2, rows, 6))


def test_learned_queries_are_an_input() -> None:
    """A linear layer that is given parameters of another module has an input gradient."""

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Embedding(5, 4)
            self.project = nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.project(self.queries.weight) + images.sum()

    found = trace_step(Asking(), (1, 3, 2, 2), output)
    assert found["project"] == StepMacs(60, 60, 60)


def test_grouped_weight_gradients_are_not_overcounted() -> None:
    """As many as in the forward pass; torch 2.15's own formula has `groups` times that."""
    module = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1))
    found = trace_step(module, (1, 8, 5, 5), output)
    assert found["0"] == StepMacs(8 * 9 * 25, 0, 8 * 9 * 25)


def test_transposed_convolution() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 2, 2, stride=2))
    found = trace_step(module, (2, 3, 5, 5), output)
    macs = 2 * 25 * 4 * 2 * 4
    assert found["1"] == StepMacs(macs, macs, macs)
    assert sums(found) == dispatched(module, (2, 3, 5, 5))


def test_a_branch_without_part_in_the_outputs_has_no_backward_pass() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            self.unused(images)
            return self.used(images)

    found = trace_step(Branching(), (1, 3, 4, 4), output)
    assert found["unused"] == StepMacs(192, 0, 0)
    assert found["used"] == StepMacs(192, 0, 192)


def test_a_norm_that_trains_keeps_input_gradients_alive() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    convs = {"0.weight", "0.bias", "2.weight", "2.bias"}
    alive = trace_step(module, (2, 3, 4, 4), output, frozen_params=convs)
    assert alive["2"] == StepMacs(512, 512, 0)
    still = trace_step(module, (2, 3, 4, 4), output, frozen_params={*convs, "1.weight", "1.bias"})
    assert still["2"] == StepMacs(512, 0, 0)
    assert still["3"] == StepMacs(256, 0, 256)


def test_nothing_trains() -> None:
    module = nn.Conv2d(3, 4, 1).requires_grad_(False)
    assert trace_step(module, (1, 3, 4, 4), output) == {"": StepMacs(192, 0, 0)}


def test_shared_parameters_and_modes_are_left_alone() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    module[1].weight = module[0].weight
    weight = module[0].weight.detach().clone()
    with torch.inference_mode():
        found = trace_step(module, (1, 3, 4, 4), output)
    assert sums(found) == (288, 144 * 3)
    assert torch.equal(module[0].weight, weight) and module[0].weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_does_not_matter(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    assert trace_step(module.to(dtype), (2, 3, 6, 6), output) == trace_step(module.float(), (2, 3, 6, 6), output)
