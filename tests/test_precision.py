from __future__ import annotations

import pytest
import torch

from ovstrans.environment import images_to_device, native_bf16, pick_precision, to_device
from ovstrans.errors import InputError


def test_off_computes_in_float32() -> None:
    precision = pick_precision("fp32", "cpu")
    with precision.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype, precision.name, precision.scaler().is_enabled()) == (torch.float32, "float32", False)


def test_bf16_multiplies_in_bfloat16_and_needs_no_scaler() -> None:
    precision = pick_precision("bf16", "cpu")
    with precision.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype, precision.name, precision.scaler().is_enabled()) == (torch.bfloat16, "bfloat16", False)


@pytest.mark.parametrize("native", [True, False])
def test_auto_takes_bfloat16_only_where_it_is_native(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovstrans.environment.native_bf16", lambda device: native)
    assert pick_precision("auto", "cpu").dtype == (torch.bfloat16 if native else None)


def test_native_bf16_is_false_where_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert native_bf16("cpu") is False


@pytest.mark.parametrize(("amp", "words"), [("fp16", "CUDA"), ("fp8", "auto, fp32, bf16, fp16")])
def test_what_cannot_work_is_refused(amp: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        pick_precision(amp, "cpu")


def test_place_keeps_values_and_changes_the_layout() -> None:
    conv = torch.nn.Conv2d(3, 4, 3)
    before = conv.weight.detach().clone()
    to_device(conv, "cpu")
    images = torch.rand(2, 3, 8, 8)
    placed = images_to_device(images, "cpu")
    assert torch.equal(conv.weight, before) and torch.equal(placed, images)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert placed.is_contiguous(memory_format=torch.channels_last)
