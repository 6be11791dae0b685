"""The counter in the cases where counters go wrong: fused attention, products with vectors, dtypes, shared layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.costs.counter import count_macs
from ovstrans.costs.flops import count_flops
from ovstrans.costs.target import load_target
from ovstrans.frameworks.registry import build_on_meta
from tests.costs.reference import executed_macs

TOKENS, WIDTH = 12, 8
PROJECTIONS, PRODUCTS = 4 * TOKENS * WIDTH * WIDTH, 2 * TOKENS * TOKENS * WIDTH


class Attends(nn.Module):
    """Attention over the 12 rows of images [B, 3, 4, 8]."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1, 2)
        masked = {"attn_mask": torch.zeros(TOKENS, TOKENS, device=rows.device)} if self.how.get("masked") else {}
        return self.attention(rows, rows, rows, need_weights=self.how.get("need_weights", False), **masked)[0]


class Function(nn.Module):
    """A function of images as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def macs(module: nn.Module, shape: tuple[int, ...] = (1, 3, 4, 8)) -> int:
    return count_macs(module, shape).total


def resampling(function: Callable[[Tensor], Any], shape: tuple[int, ...] = (1, 3, 4, 8)) -> dict[str, int]:
    return {operation: count for (_, operation), count in count_macs(Function(function), shape).resampling.items()}


def test_attention_in_eval_mode_counts_its_products() -> None:
    """In eval mode without gradients the CPU runs attention as one operation that torch's counter cannot look into."""
    module = Attends().eval()
    with torch.no_grad():
        assert executed_macs(lambda: module(torch.zeros(1, 3, 4, 8))) == PROJECTIONS + PRODUCTS
        assert macs(module) == PROJECTIONS + PRODUCTS


@pytest.mark.parametrize("how", [{}, {"need_weights": True}, {"masked": True}, {"masked": True, "need_weights": True}])
def test_attention_in_all_its_forms(how: dict[str, bool]) -> None:
    assert macs(Attends(**how)) == PROJECTIONS + PRODUCTS


def test_transformer_encoder_layer() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, dim_feedforward=20, batch_first=True)
    module = nn.Sequential(nn.Flatten(1, 2), layer)
    assert macs(module) == PROJECTIONS + PRODUCTS + 2 * TOKENS * WIDTH * 20


@pytest.mark.parametrize("how", [{}, {"is_causal": True}, {"scale": 0.5}])
def test_fused_products(how: dict[str, Any]) -> None:
    """Dense, whatever a mask hides."""
    assert macs(Function(lambda images: F.scaled_dot_product_attention(images, images, images, **how))) == (
        3 * 2 * 4 * 4 * 8
    )


VECTORS: list[tuple[Callable[[Tensor], Tensor], int]] = [
    (lambda x: x[0, 0, 0] @ x[0, 0, 0], 8),
    (lambda x: torch.vdot(x[0, 0, 0], x[0, 0, 0]), 8),
    (lambda x: x[0, 0] @ x[0, 0, 0], 32),
    (lambda x: x[0] @ x[0, 0, 0], 96),
    (lambda x: torch.addmv(x[0, 0, :, 0], x[0, 0], x[0, 0, 0]), 32),
    (lambda x: torch.addbmm(x[0, 0, :, :4], x[0], x[0].mT), 3 * 4 * 4 * 8),
    (lambda x: torch.baddbmm(x[0, :, :, :4], x[0], x[0].mT), 3 * 4 * 4 * 8),
    (lambda x: F.linear(x[0, 0, 0], x[0, 1], x[0, 0, :, 0]), 32),
    (lambda x: torch.einsum("bchw,bqhw->bcq", x, x), 9 * 32),
    (lambda x: torch.tensordot(x, x, dims=([3], [3])), 12 * 12 * 8),
]


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_products_of_any_rank(number: int) -> None:
    function, expected = VECTORS[number]
    assert macs(Function(function)) == expected


def test_recurrent_layers() -> None:
    """Per step and row 4 gates of 7, from 8 inputs and 7 states."""
    assert macs(nn.Sequential(nn.Flatten(1, 2), nn.LSTM(WIDTH, 7, batch_first=True))) == TOKENS * 4 * 7 * (8 + 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_count_the_same(dtype: torch.dtype) -> None:
    framework = build_on_meta("deeplabv3", "RN-mini")
    before = count_flops(framework, (64, 96), components=framework.components())
    assert count_flops(framework.to(dtype), (64, 96), components=framework.components()) == before


def test_the_mode_of_the_caller_does_not_matter() -> None:
    target = load_target("RN-mini")
    expected = count_flops(target.module, (64, 64))
    for mode in (torch.inference_mode(), torch.enable_grad(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            assert count_flops(target.module, (64, 64)) == expected


def test_shared_layers_count_where_they_first_are() -> None:
    layer = nn.Conv2d(3, 3, 1, bias=False)
    assert count_macs(nn.Sequential(layer, nn.ReLU(), layer), (1, 3, 4, 8)).products == {"0": 2 * 32 * 9}


def test_a_module_that_fails_is_left_unchanged() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)).train()
    with pytest.raises(RuntimeError):
        count_macs(module, (1, 3, 4, 8))
    assert module.training and not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())
    assert not any(value.is_meta for value in module.parameters())


def grid(x: Tensor, *shape: int) -> Tensor:
    return torch.zeros(1, *shape, device=x.device)


SAMPLINGS: list[tuple[Callable[[Tensor], Any], dict[str, int]]] = [
    (lambda x: F.interpolate(x, (5, 6), mode="bilinear"), {"bilinear_resizing": 4 * 90}),
    (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), {"bilinear_resizing": 4 * 3 * 64 * 2}),
    (lambda x: F.interpolate(x, (4, 8), mode="bilinear"), {}),
    (lambda x: F.interpolate(x, (5, 6), mode="nearest"), {}),
    (lambda x: F.interpolate(x, (5, 6), mode="bicubic"), {"bicubic_resizing": 16 * 90}),
    (lambda x: F.interpolate(x[0], 5, mode="linear"), {"linear_resizing": 2 * 60}),
    (lambda x: F.interpolate(x[None], (2, 5, 6), mode="trilinear"), {"trilinear_resizing": 8 * 60}),
    (lambda x: F.grid_sample(x, grid(x, 5, 6, 2), align_corners=False), {"grid_sampling": 4 * 90}),
    (lambda x: F.grid_sample(x, grid(x, 5, 6, 2), mode="nearest", align_corners=False), {}),
    (lambda x: F.grid_sample(x, grid(x, 5, 6, 2), mode="bicubic", align_corners=False), {"grid_sampling": 16 * 90}),
    (lambda x: F.grid_sample(x[None], grid(x, 2, 5, 6, 3), align_corners=False), {"grid_sampling": 8 * 60}),
]


@pytest.mark.parametrize("number", range(len(SAMPLINGS)))
def test_resampling(number: int) -> None:
    function, expected = SAMPLINGS[number]
    assert resampling(function) == expected
    shapes = {tuple(function(torch.zeros(1, 3, 4, 8, device=device)).shape) for device in ("cpu", "meta")}
    assert len(shapes) == 1
    assert macs(Function(function)) == 0


def test_operations_after_resampling_see_its_shape() -> None:
    def function(images: Tensor) -> Tensor:
        raised = F.interpolate(images, (6, 10), mode="bilinear")
        sampled = F.grid_sample(raised, grid(raised, 7, 2, 2), align_corners=False)
        return torch.einsum("bchw,bqhw->bcq", sampled, sampled)

    assert macs(Function(function)) == 9 * 14
