"""The contract of frameworks: options, batches, padding and resizing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovstrans.datasets.segments import Segments
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, Framework
from ovstrans.frameworks.options import resolve_options


def test_options_are_checked() -> None:
    defaults = {"width": 256, "dropout": 0.5, "kind": "none", "rates": [6, 12]}
    assert resolve_options("f", defaults, {"dropout": 0}) == {**defaults, "dropout": 0.0}
    assert resolve_options("f", defaults, {"rates": (1, 2)})["rates"] == [1, 2]
    with pytest.raises(InputError, match=r"no option 'widht'; did you mean 'width'"):
        resolve_options("f", defaults, {"widht": 3})
    for wrong in ({"width": 1.5}, {"width": True}, {"kind": 3}, {"dropout": "much"}):
        with pytest.raises(InputError, match=r"is needed, like"):
            resolve_options("f", defaults, wrong)


def test_batch_moves_together() -> None:
    batch = Batch(torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), ignore=7).to("meta")
    assert batch.images.is_meta and batch.labels is not None and batch.labels.is_meta
    assert batch.ignore == 7
    segments = Segments(torch.ones(1, 4, 4, dtype=torch.bool), torch.zeros(1).long(), torch.ones(1).long())
    moved = Batch(torch.rand(1, 3, 4, 4), segments=(segments,)).to("meta").segments
    assert moved is not None and moved[0].masks.is_meta and moved[0].classes.is_meta
    assert Batch(torch.rand(1, 3, 4, 4)).to("cpu").labels is None


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([4, 8, 16, 32]))
def test_resize_undoes_padding(height: int, width: int, stride: int) -> None:
    """A ramp over the padded image, sampled at the cells' centres, comes back in its place."""
    full = (-(-height // 32) * 32, -(-width // 32) * 32)
    across = (torch.arange(full[1] // stride) + 0.5) * stride
    ramp = across.repeat(full[0] // stride, 1)[None, None]
    out = Framework.resize(ramp, (height, width))[0, 0]
    assert out.shape == (height, width)
    expected = (torch.arange(width) + 0.5).clamp(float(across[0]), float(across[-1]))
    torch.testing.assert_close(out, expected.expand(height, width), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_maps_of_the_target_size_are_not_interpolated(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 3, 64, 96).to(kind)
    copied = torch.nn.functional.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=False)
    monkeypatch.setattr("torch.nn.functional.interpolate", None)
    for size in (None, (50, 70)):
        assert torch.equal(Framework.resize(logits, (50, 70), size), copied[..., :50, :70])


def test_resize_to_another_size() -> None:
    logits = torch.randn(1, 2, 3, 3)
    assert Framework.resize(logits, (80, 70), (160, 141)).shape == (1, 2, 160, 141)
    torch.testing.assert_close(Framework.resize(logits, (80, 70), (80, 70)), Framework.resize(logits, (80, 70)))
