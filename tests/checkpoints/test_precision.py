"""Checkpoints with weights in half the bytes: they load as float32 and stay masked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ovstrans.checkpoints.file import load_checkpoint, save_checkpoint
from ovstrans.checkpoints.precision import VALUES, convert_values
from ovstrans.errors import InputError
from tests.checkpoints.dummies import make_checkpoint


@pytest.mark.parametrize("values", list(VALUES))
def test_weights_are_stored_in_the_type(values: str, tmp_path: Path) -> None:
    before = make_checkpoint()
    converted, rounding = convert_values(before, values)
    save_checkpoint(tmp_path / "x.safetensors", converted)
    found = load_checkpoint(tmp_path / "x.safetensors")
    error = rounding.rms
    assert error == 0 if values == "fp32" else 0 < error < {"fp16": 1e-3, "bf16": 1e-2, "int8": 1e-2}[values]
    for key, value in before.state.items():
        matrix = value.dim() >= 2 and value.is_floating_point()
        restored = torch.float32 if values == "int8" else VALUES[values]
        assert found.state[key].dtype == (restored if matrix else value.dtype)
        step = float(value.abs().max()) / 127 if values == "int8" and matrix else 2e-6
        torch.testing.assert_close(found.state[key].to(value.dtype), value, rtol=1e-2, atol=step / 2)
    assert found.mask is not None
    assert not found.mask.violations(found.state)


def test_weights_beyond_the_type_are_refused() -> None:
    checkpoint = make_checkpoint()
    key = next(key for key, value in checkpoint.state.items() if value.dim() >= 2 and value.is_floating_point())
    large = replace(checkpoint, state={**checkpoint.state, key: torch.full_like(checkpoint.state[key], 1e5)})
    with pytest.raises(InputError, match=f"`values=fp16`: {key}"):
        convert_values(large, "fp16")
    assert convert_values(large, "bf16")[1].rms < 1e-2


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(InputError, match="`values=fp8`: unknown; use fp32, fp16, bf16, int8"):
        convert_values(make_checkpoint(), "fp8")
