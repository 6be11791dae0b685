"""2:4 for sparse tensor cores: layout and layers, on a CPU, where the kernels themselves cannot run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.sparse import _semi_structured_conversions as conversions

import ovstrans
from ovstrans.errors import InputError
from ovstrans.masks.granularity import Groups
from ovstrans.runtime.semi_structured import (
    PointwiseLinear,
    check_place,
    convert_layers,
)


def prune(module: nn.Module) -> None:
    """Prune every weight that can hold it by 2:4."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            groups = Groups(tuple(layer.weight.shape), "2:4")
            keys = layer.weight.detach().abs().reshape(-1)
            layer.weight.data *= groups.expand(groups.protected(keys))


def compress_and_back(matrix: Tensor) -> Tensor:
    """Compress as torch does for CUTLASS, and decompress."""
    values, places = conversions.sparse_semi_structured_from_dense_cutlass(matrix)
    assert values.shape == (matrix.shape[0], matrix.shape[1] // 2)
    back: Tensor = conversions.sparse_semi_structured_to_dense_cutlass(values, places)
    assert torch.equal(back, matrix)
    return back


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layers_give_what_the_masked_dense_ones_give(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(64, 32, 1), nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 64, 1, bias=False), nn.Conv2d(64, 32, 1, 2)
    )
    prune(module)
    module.to(dtype)
    dense, maps = copy.deepcopy(module), torch.randn(2, 64, 6, 5).to(dtype)
    found = convert_layers(module, compress_and_back)
    assert found.sparse == ["0", "2"] and set(found.dense) == {"1", "3"}
    assert isinstance(module[0], PointwiseLinear) and isinstance(module[2], PointwiseLinear)
    assert torch.allclose(module(maps), dense(maps), atol=1e-2, rtol=1e-2)
    linear = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 30), nn.Linear(64, 32))
    prune(linear[:2])
    linear.to(dtype)
    before, rows = linear[0](maps.new_ones(3, 128)), maps.new_ones(3, 128)
    found = convert_layers(linear, compress_and_back)
    assert found.sparse == ["0"] and torch.equal(linear[0](rows), before)
    assert found.dense == {
        "1": "size 30x64: multiples of 32 and 64 are needed", "2": "its weights are not pruned by 2:4",
    }  # fmt: skip


def test_weights_that_attention_multiplies_itself_stay_dense() -> None:
    block = nn.MultiheadAttention(64, 2)
    prune(block)
    assert convert_layers(block, compress_and_back).dense == {"out_proj": "an attention multiplies by it itself"}


def test_the_device_and_the_dtype_are_checked() -> None:
    with pytest.raises(InputError, match="run on NVIDIA GPUs, the module is on cpu"):
        ovstrans.to_semi_structured(nn.Linear(64, 32).half())
    with FakeTensorMode():
        check_place(torch.empty(32, 64, dtype=torch.float16, device="cuda"))
        with pytest.raises(InputError, match="in float16 or bfloat16, the module is in float32"):
            check_place(torch.empty(32, 64, device="cuda"))
