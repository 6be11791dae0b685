"""Weights as int8: the rounding, what it costs, and files that do not agree with themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from ovstrans.checkpoints.file import load_checkpoint, save_checkpoint
from ovstrans.checkpoints.precision import convert_values
from ovstrans.checkpoints.quantize import quantize, to_int8
from ovstrans.errors import InputError, MismatchError
from tests.checkpoints.dummies import make_checkpoint
from tests.checkpoints.test_file import assert_same
from tests.masks.dummies import MASKED, tamper

KEY = f"backbone.{MASKED[0]}"


def test_each_channel_has_a_scale_of_its_own() -> None:
    value = torch.tensor([[1.27, -0.5, 0.004], [0.0, 0.0, 0.0], [-254.0, 1.0, 100.9]])
    rounded, found = quantize(value)
    assert found.scales.tolist() == pytest.approx([0.01, 0.0, 2.0])
    integers = to_int8(rounded, found.scales, "x")
    assert integers.tolist() == [[127, -50, 0], [0, 0, 0], [-127, 0, 50]]
    assert rounded[2].tolist() == [-254.0, 0.0, 100.0]
    size = float(value.abs()[value != 0].mean())
    assert found.largest == pytest.approx(1.0 / size) and found.mean == pytest.approx((0.004 + 1.0 + 0.9) / 6 / size)


def test_zeros_of_the_mask_stay_zeros_and_the_error_is_small(tmp_path: Path) -> None:
    before = make_checkpoint()
    converted, rounding = convert_values(before, "int8")
    save_checkpoint(tmp_path / "x.safetensors", converted)
    found = load_checkpoint(tmp_path / "x.safetensors")
    assert found.mask is not None and not found.mask.violations(found.state)
    assert_same(found.state, converted.state)
    assert found.quantized == converted.quantized and set(found.quantized) == set(rounding.layers)
    for key, one in found.quantized.items():
        assert rounding.layers[key] == (one.largest, one.mean) and 0 <= one.mean <= one.largest < 0.02
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        assert file.get_tensor(f"{KEY}.values").dtype == "int8" and file.get_tensor(f"{KEY}.scales").dtype == "float32"
    save_checkpoint(tmp_path / "again.safetensors", found)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()
    again, none = convert_values(found, "fp32")
    assert none.rms == 0 and not again.quantized


def test_a_state_that_has_changed_since_is_not_written(tmp_path: Path) -> None:
    converted, _ = convert_values(make_checkpoint(), "int8")
    converted.state["head.weight"] = converted.state["head.weight"] * 1.01
    with pytest.raises(MismatchError, match=r"head\.weight: has changed since it was rounded"):
        save_checkpoint(tmp_path / "x.safetensors", converted)
    assert not list(tmp_path.iterdir())
    with pytest.raises(MismatchError):
        to_int8(torch.tensor([[5.0]]), torch.zeros(1), "x")


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    checkpoint = make_checkpoint()
    checkpoint.state["head.weight"][0] = bad
    with pytest.raises(InputError, match=r"`values=int8`: head\.weight has weights that are not finite"):
        convert_values(checkpoint, "int8")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "head.weight.scales"}, r"head\.weight\.scales is missing"),
        (lambda t: {k: v for k, v in t.items() if k != "head.weight"}, r"head\.weight is missing"),
        (lambda t: {**t, "head.weight": t["head.weight"].float()}, "said to be int8 and is not"),
        (lambda t: {**t, "head.weight.scales": t["head.weight.scales"][:-1]}, "a float32 for each output channel"),
        (lambda t: {**t, "head.weight.scales": t["head.weight.scales"].double()}, "a float32 for each"),
        (lambda t: {**t, "head.weight.scales": -t["head.weight.scales"]}, "no scales"),
        (lambda t: {**t, "head.weight.scales": t["head.weight.scales"] * float("nan")}, "no scales"),
    ],
)
def test_bad_tensors(change: Callable[[Any], Any], says: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.safetensors", convert_values(make_checkpoint(), "int8")[0])
    bad = tamper(tmp_path / "x.safetensors", tmp_path / "bad.safetensors", tensors=change)
    with pytest.raises(InputError, match=says) as caught:
        load_checkpoint(bad)
    assert str(caught.value).startswith(str(bad))


@pytest.mark.parametrize("entry", [None, [], {"largest": 1.0}, {"largest": "a", "mean": 0.1}])
def test_bad_errors(entry: Any, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.safetensors", convert_values(make_checkpoint(), "int8")[0])
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        coding = json.loads(file.metadata()["coding"])
    coding["int8"]["head.weight"] = entry
    bad = tamper(tmp_path / "x.safetensors", tmp_path / "b.safetensors", metadata={"coding": json.dumps(coding)})
    with pytest.raises(InputError, match=r"no errors of head\.weight"):
        load_checkpoint(bad)
