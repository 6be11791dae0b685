"""The counter against layers computed number by number: the same results, the same number of MACs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention as DeformableAttention,
)

from ovstrans.costs.flops import Flops, count_flops
from tests.costs import naive
from tests.costs.naive import Array, Tally

CHANNELS = 3


class Step(nn.Module):
    """One step of a random network, images to images [B, C, H, W] or tokens [B, C, L]; and the same by hand."""

    def by_hand(self, tally: Tally, x: Array) -> Array:
        raise NotImplementedError


def array(value: Tensor | None) -> Array | None:
    return None if value is None else value.detach().numpy()


class Conv(Step):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def by_hand(self, tally: Tally, x: Array) -> Array:
        conv: Any = self.conv
        numbers = conv.stride[0], conv.padding[0], conv.dilation[0], conv.groups
        return naive.convolve(tally, x, array(conv.weight), array(conv.bias), *numbers)


class Transposed(Step):
    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def by_hand(self, tally: Tally, x: Array) -> Array:
        conv: Any = self.conv
        numbers = conv.stride[0], conv.padding[0], conv.groups
        return naive.convolve_transposed(tally, x, array(conv.weight), array(conv.bias), *numbers)


class Linear(Step):
    """Over the last axis of any rank: of images, of rows [n, W], or of a single vector [W]."""

    def __init__(self, made: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.rank, self.linear = rank, nn.LazyLinear(made, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[(0,) * (4 - self.rank)])[(None,) * (4 - self.rank)]

    def by_hand(self, tally: Tally, x: Array) -> Array:
        inner = x[(0,) * (4 - self.rank)]
        return naive.linear(tally, inner, array(self.linear.weight), array(self.linear.bias))[(None,) * (4 - self.rank)]


class Attention(Step):
    """nn.MultiheadAttention over pixels: their own, or those of half the images' rows."""

    def __init__(self, channels: int, heads: int, cross: bool, need_weights: bool) -> None:
        super().__init__()
        self.cross, self.need_weights = cross, need_weights
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        seen = tokens[:, : len(tokens[0]) // 2 + 1] if self.cross else tokens
        made, _ = self.attention(tokens, seen, seen, need_weights=self.need_weights)
        return made.transpose(1, 2).unflatten(2, x.shape[2:])

    def by_hand(self, tally: Tally, x: Array) -> Array:
        batch, channels, height, width = x.shape
        own: Any = self.attention
        tokens = x.reshape(batch, channels, -1).swapaxes(1, 2)
        seen = tokens[:, : tokens.shape[1] // 2 + 1] if self.cross else tokens
        weights, biases = np.split(array(own.in_proj_weight), 3), np.split(array(own.in_proj_bias), 3)
        query, key, value = (
            naive.linear(tally, given, weight, bias).reshape(batch, given.shape[1], own.num_heads, -1).swapaxes(1, 2)
            for given, weight, bias in zip((tokens, seen, seen), weights, biases, strict=True)
        )
        made = naive.attend(tally, query, key, value).swapaxes(1, 2).reshape(batch, -1, channels)
        out = naive.linear(tally, made, array(own.out_proj.weight), array(own.out_proj.bias))
        return out.swapaxes(1, 2).reshape(batch, channels, height, width)


class Sdpa(Step):
    """torch's fused attention between rows of pixels, with a mask or without."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool, device=x.device).tril() if self.masked else None
        return F.scaled_dot_product_attention(x, x, x, attn_mask=kept)

    def by_hand(self, tally: Tally, x: Array) -> Array:
        kept = np.tril(np.ones((x.shape[2], x.shape[2]), dtype=bool)) if self.masked else None
        return naive.attend(tally, x, x, x, kept)


class Einsum(Step):
    """A contraction of the images with themselves; it ends a network."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, x)

    def by_hand(self, tally: Tally, x: Array) -> Array:
        return naive.einsum(tally, self.equation, x, x)


class Resize(Step):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False)

    def by_hand(self, tally: Tally, x: Array) -> Array:
        return naive.resize(tally, x, self.size)


class Sample(Step):
    """At positions that the first two columns of the images give."""

    def forward(self, x: Tensor) -> Tensor:
        return F.grid_sample(x, self.positions(x), align_corners=False)

    def by_hand(self, tally: Tally, x: Array) -> Array:
        return naive.sample(tally, x, self.positions(torch.from_numpy(x)).numpy())

    @staticmethod
    def positions(x: Tensor) -> Tensor:
        return 1.3 * torch.stack([x[:, 0].cos(), x[:, 0].sin()], -1)


class Net(nn.Sequential):
    """Steps one after the other; `backbone` is what masks would be about."""


@dataclass(frozen=True)
class Case:
    net: Net
    shape: tuple[int, int, int, int]
    seed: int


@st.composite
def convs(draw: st.DrawFn, channels: int) -> tuple[Step, int]:
    groups = draw(st.sampled_from([1, channels]))
    made = groups * draw(st.integers(1, 2))
    kernel, bias = draw(st.integers(1, 3)), draw(st.booleans())
    if draw(st.booleans()):
        dilation = draw(st.integers(1, 2))
        padding = dilation * (kernel - 1)  # never smaller than the kernel's reach
        stride = draw(st.integers(1, 3))
        return Conv(nn.Conv2d(channels, made, kernel, stride, padding, dilation, groups, bias)), made
    stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, (kernel - 1) // 2))
    return Transposed(nn.ConvTranspose2d(channels, made, kernel, stride, padding, 0, groups, bias)), made


EQUATIONS = ("bchw,bdhw->bcd", "bchw,bqhw->bqcw", "bchw,bciw->bhi", "bchw,bcij->bhwij", "bchw,bchw->b")
"""Of images with themselves."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    steps: list[Step] = []
    channels = CHANNELS
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["conv", "conv", "attention", "sdpa", "resize", "sample"]))
        step: Step
        if kind == "conv":
            step, channels = draw(convs(channels))
        elif kind == "attention":
            heads = draw(st.sampled_from([head for head in range(1, channels + 1) if channels % head == 0]))
            step = Attention(channels, heads, draw(st.booleans()), draw(st.booleans()))
        elif kind == "sdpa":
            step = Sdpa(draw(st.booleans()))
        elif kind == "resize":
            step = Resize((draw(st.integers(1, 5)), draw(st.integers(1, 5))))
        else:
            step = Sample()
        steps.append(step)
    last = draw(st.sampled_from(["nothing", "linear", "einsum"]))
    if last == "linear":
        steps.append(Linear(draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.booleans())))
    elif last == "einsum":
        steps.append(Einsum(draw(st.sampled_from(EQUATIONS))))
    net = Net(*steps).double().eval()
    size = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    return Case(net, (draw(st.integers(1, 2)), CHANNELS, *size), draw(st.integers(0, 99)))


def counts(flops: Flops) -> tuple[int, int | None]:
    return flops.dense, None if flops.resampling is None else flops.resampling.total


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_random_networks(case: Case) -> None:
    torch.manual_seed(case.seed)
    images = torch.randn(case.shape, dtype=torch.float64)
    with torch.no_grad():
        expected = case.net(images).numpy()
    tally, x = Tally(), images.numpy()
    for step in case.net:
        # torch runs a contraction over a single number as a plain product, which is no MAC.
        assume(not isinstance(step, Einsum) or min(x.shape[1:]) > 1)
        x = step.by_hand(tally, x)  # type: ignore[operator, unused-ignore]
    np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-9)
    batch, _, height, width = case.shape
    assert counts(count_flops(case.net, (height, width), batch=batch)) == (tally.products, tally.resampling)


LABELS = "abcdef"


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[int], list[int]]:
    """Any two-operand contraction: labels of both and of the result, of either and of the result, and summed ones."""
    kinds = [draw(st.sampled_from(["both", "first", "second", "summed"])) for _ in range(draw(st.integers(0, 4)))]
    kinds.append("summed")
    sizes = {label: draw(st.integers(2, 3)) for label, _ in zip(LABELS, kinds, strict=False)}
    where = dict(zip(LABELS, kinds, strict=False))
    shuffled = [
        draw(st.permutations([label for label, kind in where.items() if kind in chosen]))
        for chosen in (("both", "first", "summed"), ("both", "second", "summed"), ("both", "first", "second"))
    ]
    one, two, out = ("".join(labels) for labels in shuffled)
    return f"{one},{two}->{out}", [sizes[label] for label in one], [sizes[label] for label in two]


@settings(max_examples=40, deadline=None)
@given(case=equations(), seed=st.integers(0, 99))
def test_any_einsum(case: tuple[str, list[int], list[int]], seed: int) -> None:
    equation, first, second = case

    def run(images: Tensor) -> Tensor:
        pool = images.flatten()
        return torch.einsum(
            equation,
            *(pool[: int(np.prod(shape))].reshape(shape) for shape in (first, second)),
        )

    torch.manual_seed(seed)
    images = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    operands = [images.numpy().ravel()[: int(np.prod(shape))].reshape(shape) for shape in (first, second)]
    tally = Tally()
    np.testing.assert_allclose(naive.einsum(tally, equation, *operands), run(images).numpy(), rtol=1e-9, atol=1e-9)
    assert counts(count_flops(Function(run), (9, 9))) == (tally.products, 0)


class Function(nn.Module):
    """A function of images as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


class Deformable(nn.Module):
    """Deformable attention of `transformers`, between pixels of two levels."""

    SIZES = ((3, 4), (2, 2))

    def __init__(self, heads: int, points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(4 * heads, heads, len(self.SIZES), points)

    def forward(self, images: Tensor) -> Tensor:
        count = sum(height * width for height, width in self.SIZES)
        tokens = images.flatten(1)[:, : count * self.attention.d_model].unflatten(1, (count, -1))
        centres = torch.full((len(images), count, len(self.SIZES), 2), 0.5, device=images.device, dtype=images.dtype)
        return self.attention(
            hidden_states=tokens,
            encoder_hidden_states=tokens,
            reference_points=centres,
            spatial_shapes_list=list(self.SIZES),
        )[0]

    def by_hand(self, tally: Tally, images: Array) -> Array:
        own: Any = self.attention
        count, heads, points = sum(height * width for height, width in self.SIZES), own.n_heads, own.n_points
        batch, width = len(images), own.d_model
        tokens = images.reshape(batch, -1)[:, : count * width].reshape(batch, count, width)

        def project(layer: nn.Linear) -> Array:
            return naive.linear(tally, tokens, array(layer.weight), array(layer.bias))

        values = project(own.value_proj).reshape(batch, count, heads, -1)
        offsets = project(own.sampling_offsets).reshape(batch, count, heads, len(self.SIZES), points, 2)
        weights = np.exp(project(own.attention_weights)).reshape(batch, count, heads, -1)
        weights = (weights / weights.sum(-1, keepdims=True)).reshape(batch, count, heads, len(self.SIZES), points)
        made = np.zeros((batch, count, heads, values.shape[-1]))
        first = 0
        for level, (height, wide) in enumerate(self.SIZES):
            plane = values[:, first : first + height * wide].reshape(batch, height, wide, heads, -1)
            first += height * wide
            for head in range(heads):
                at = 0.5 + offsets[:, :, head, level] / np.array([wide, height])  # [B, count, points, 2]
                seen = naive.sample(tally, plane[:, :, :, head].transpose(0, 3, 1, 2), 2 * at - 1)
                for image, channel, query in np.ndindex(batch, values.shape[-1], count):
                    pairs = zip(weights[image, query, head, level], seen[image, channel, query], strict=True)
                    made[image, query, head, channel] += tally.blend([(float(w), float(v)) for w, v in pairs])
        return naive.linear(
            tally, made.reshape(batch, count, width), array(own.output_proj.weight), array(own.output_proj.bias)
        )


@pytest.mark.parametrize(("heads", "points", "batch"), [(1, 2, 1), (2, 3, 2)])
def test_deformable_attention(heads: int, points: int, batch: int) -> None:
    torch.manual_seed(0)
    net = Deformable(heads, points).double().eval()
    nn.init.normal_(net.attention.sampling_offsets.weight)
    images = torch.randn(batch, 3, 8, 8, dtype=torch.float64)
    tally = Tally()
    with torch.no_grad():
        np.testing.assert_allclose(net.by_hand(tally, images.numpy()), net(images).numpy(), rtol=1e-9, atol=1e-9)
    found = count_flops(net, (8, 8), batch=batch)
    assert counts(found) == (tally.products, tally.resampling)
    assert {each.operation for each in found.resampling_layers or ()} == {"deformable_sampling", "deformable_weighting"}
    assert {each.name for each in found.resampling_layers or ()} == {"attention"}
