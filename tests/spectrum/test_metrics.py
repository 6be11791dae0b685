"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ovstrans.spectrum.metrics import Metrics, measure


def test_golden_values_by_hand() -> None:
    found = measure(np.array([1.0, 2.0, 5.0]), 2.0)
    assert found.alpha_weighted == pytest.approx(2 * math.log10(5))
    assert found.log_alpha_norm == pytest.approx(math.log10(1 + 4 + 25))
    assert found.log_norm == pytest.approx(math.log10(8))
    assert found.log_spectral_norm == pytest.approx(math.log10(5))
    assert found.stable_rank == pytest.approx(1.6)
    shares = [1 / 8, 2 / 8, 5 / 8]
    assert found.entropy == pytest.approx(-sum(p * math.log(p) for p in shares) / math.log(3))


def test_an_alpha_of_thousands_does_not_overflow() -> None:
    found = measure(np.array([10.0, 1000.0]), 4000.0)
    assert found.log_alpha_norm == pytest.approx(12000.0)


def test_equal_eigenvalues_have_entropy_one_and_full_stable_rank() -> None:
    found = measure(np.full(7, 0.3), None)
    assert found.entropy == pytest.approx(1.0) and found.stable_rank == pytest.approx(7.0)
    assert found.alpha_weighted is None and found.log_alpha_norm is None


def test_zeros_and_rounding_do_not_count_for_the_rank() -> None:
    clean, dirty = measure(np.array([1.0, 3.0]), 2.0), measure(np.array([0.0, 1e-17, 1.0, 3.0]), 2.0)
    assert dirty.entropy == pytest.approx(clean.entropy)
    assert dirty.log_norm == pytest.approx(clean.log_norm)


def test_nothing_to_measure() -> None:
    assert measure(np.zeros(4), None) == Metrics()
    assert measure(np.array([0.0, 2.0]), None).entropy is None
