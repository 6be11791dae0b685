from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.errors import InputError
from ovstrans.pruning.methods import kept_counts, target_count


def test_rn50_body() -> None:
    total = 23_445_504
    target = target_count(total, 0.9)
    counts = kept_counts(total, target, 0.1)
    assert target == 2_344_550
    assert len(counts) == 22  # 0.9^21 = 10.94 %, 0.9^22 = 9.85 %
    assert counts[0] == round(0.9 * total)
    assert counts[20] / total == pytest.approx(0.9**21, rel=1e-5)
    assert counts[-1] == target


@given(st.integers(1, 10**7), st.floats(0, 0.999), st.floats(0.001, 0.999))
def test_counts_fall_to_the_target(total: int, sparsity: float, rate: float) -> None:
    target = max(1, round((1 - sparsity) * total))
    counts = kept_counts(total, target, rate)
    assert counts[-1] == target
    steps = [total, *counts]
    for before, after in itertools.pairwise(steps):
        assert after < before or before == target
        assert before - after <= max(1, math.ceil(rate * before))


@given(st.integers(1, 10**7), st.floats(0, 0.9999))
def test_target_is_the_rounded_rest(total: int, sparsity: float) -> None:
    expected = round((1 - sparsity) * total)
    if expected:
        assert target_count(total, sparsity) == expected
    else:
        with pytest.raises(InputError, match="leaves none"):
            target_count(total, sparsity)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 90.0, math.nan])
def test_sparsity_out_of_range(sparsity: float) -> None:
    with pytest.raises(InputError, match="`sparsity="):
        target_count(1000, sparsity)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5, math.nan])
def test_rate_out_of_range(rate: float) -> None:
    with pytest.raises(InputError, match="`rate="):
        kept_counts(1000, 100, rate)


def test_nothing_to_prune_is_one_round() -> None:
    assert kept_counts(100, 100, 0.1) == [100]
