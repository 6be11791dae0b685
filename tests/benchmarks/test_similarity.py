"""Linear CKA: its invariances, and agreement with the kernel form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.clip.load import create_image_encoder
from ovstrans.errors import InputError, MismatchError
from tests.benchmarks.similarity import LinearCKA, backbone_similarity


def cka(one: torch.Tensor, other: torch.Tensor, pieces: int = 1) -> float:
    """CKA of features that arrive in pieces."""
    found = LinearCKA()
    for left, right in zip(one.chunk(pieces), other.chunk(pieces), strict=True):
        found.add(left, right)
    return found.value()


def kernel_cka(one: torch.Tensor, other: torch.Tensor) -> float:
    """The same from Gram matrices of samples, HSIC over HSIC (Kornblith et al., eq. 3 and 4)."""
    centre = torch.eye(len(one), dtype=torch.float64) - 1 / len(one)
    k, m = centre @ (one @ one.T) @ centre, centre @ (other @ other.T) @ centre
    return float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt())


@given(seed=st.integers(0, 10_000), n=st.integers(3, 30), a=st.integers(1, 6), b=st.integers(1, 6))
def test_agrees_with_the_kernel_form_in_any_pieces(seed: int, n: int, a: int, b: int) -> None:
    torch.manual_seed(seed)
    one, other = torch.randn(n, a, dtype=torch.float64) + 3, torch.randn(n, b, dtype=torch.float64)
    assert cka(one, other) == pytest.approx(kernel_cka(one, other), rel=1e-9, abs=1e-12)
    assert cka(one, other, pieces=3) == pytest.approx(cka(one, other), rel=1e-9, abs=1e-12)
    assert 0 <= cka(one, other) <= 1 + 1e-9


def test_is_blind_to_rotation_scale_and_shift_only() -> None:
    torch.manual_seed(0)
    one = torch.randn(200, 5, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert cka(one, 3 * one @ rotation + 7) == pytest.approx(1)
    assert cka(one, one * torch.tensor([10.0, 1, 1, 1, 1])) < 0.9
    assert cka(one, torch.randn(200, 5, dtype=torch.float64)) < 0.1


def test_constant_features_and_bad_input() -> None:
    assert math.isnan(cka(torch.ones(4, 2), torch.randn(4, 2)))
    with pytest.raises(MismatchError, match="3 samples on one side, 4"):
        LinearCKA().add(torch.zeros(3, 1), torch.zeros(4, 1))
    with pytest.raises(InputError, match="no samples"):
        LinearCKA().value()


def test_encoders_are_like_themselves_and_less_like_others() -> None:
    torch.manual_seed(0)
    one, other = create_image_encoder(), create_image_encoder()
    images = [torch.randn(2, 3, 64, 64) for _ in range(2)]
    same = backbone_similarity(one, one, images)
    assert list(same) == ["res2", "res3", "res4", "res5", "mean"]
    assert all(value == pytest.approx(1) for value in same.values())
    assert backbone_similarity(one, other, images)["res5"] < 0.999
