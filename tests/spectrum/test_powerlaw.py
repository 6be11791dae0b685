"""The fit: known power laws come back, the fast search equals brute force, degenerate spectra say why."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovstrans.errors import InputError
from ovstrans.spectrum import powerlaw
from tests.spectrum.reference import brute_force


def pareto(alpha: float, count: int, xmin: float = 1.0, seed: int = 0) -> np.ndarray:
    """Samples of p(x) ~ x^-alpha, x >= xmin, ascending, by inverting the distribution."""
    uniform = np.random.default_rng(seed).random(count)
    return np.sort(xmin * (1 - uniform) ** (-1 / (alpha - 1)))


@settings(max_examples=20, deadline=None)
@given(st.floats(1.5, 6), st.floats(-4, 3), st.integers(1, 10_000))
def test_a_known_power_law_is_recovered(alpha: float, decade: float, seed: int) -> None:
    law = powerlaw.fit(pareto(alpha, 2000, xmin=10**decade, seed=seed))
    assert law.alpha is not None and law.sigma is not None
    assert law.alpha == pytest.approx(alpha, abs=max(6 * law.sigma, 0.1 * (alpha - 1)))
    assert law.distance is not None and law.distance < 0.05


def test_a_power_law_tail_above_a_bulk_is_found() -> None:
    bulk = np.random.default_rng(1).uniform(0.01, 1.0, 3000)
    law = powerlaw.fit(np.sort(np.concatenate([bulk, pareto(3.0, 1500, xmin=1.0, seed=2)])))
    assert law.alpha == pytest.approx(3.0, abs=0.25)
    assert law.xmin is not None and 0.7 < law.xmin < 2.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.sampled_from(["ks", "peak", "mid"]))
def test_alpha_does_not_depend_on_scale(seed: int, scale: float, mode: str) -> None:
    values = np.sort(np.random.default_rng(seed).lognormal(size=80))
    one, other = powerlaw.fit(values, xmin=mode), powerlaw.fit(values * scale, xmin=mode)
    if one.tail == other.tail:  # a bin's edge may fall on the other side of a value in `peak`
        assert other.alpha == pytest.approx(one.alpha, rel=1e-9)
    else:
        assert mode == "peak"


@st.composite
def spectra(draw: st.DrawFn) -> np.ndarray:
    """Positive arrays of many kinds; a third of them rounded, so that they contain ties."""
    count = draw(st.integers(2, 120))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["lognormal", "pareto", "uniform", "wishart"]))
    if kind == "lognormal":
        values = generator.lognormal(sigma=draw(st.floats(0.1, 4)), size=count)
    elif kind == "pareto":
        values = 1 + generator.pareto(draw(st.floats(0.3, 5)), size=count)
    elif kind == "uniform":
        values = generator.uniform(0.1, 1, size=count)
    else:
        values = np.linalg.svd(generator.normal(size=(count, 2 * count)), compute_uv=False) ** 2
    if draw(st.integers(0, 2)) == 0:
        values = np.maximum(np.round(values, 1), 0.1)
    return np.sort(values)


@settings(max_examples=200, deadline=None)
@given(spectra())
def test_the_pruned_search_equals_brute_force(values: np.ndarray) -> None:
    expected, law = brute_force(values), powerlaw.fit(values)
    if expected is None or expected[1] > 1e5:
        assert law.alpha is None and law.reason
        return
    start, alpha, distance = expected
    assert law.xmin == values[start]
    assert law.start == start and law.tail == len(values) - start
    assert law.alpha == pytest.approx(alpha, rel=1e-9)
    assert law.distance == pytest.approx(distance, rel=1e-9, abs=1e-14)


def test_the_pruned_search_equals_brute_force_on_a_large_spectrum() -> None:
    values = np.sort(np.random.default_rng(3).lognormal(sigma=2.0, size=1200))
    start, alpha, _ = brute_force(values) or (0, 0.0, 0.0)
    law = powerlaw.fit(values)
    assert law.start == start and law.alpha == pytest.approx(alpha, rel=1e-11)


def test_the_search_computes_few_distances_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    exact = powerlaw._distance
    monkeypatch.setattr(powerlaw, "_distance", lambda *args: calls.append(1) or exact(*args))
    powerlaw.fit(np.sort(np.random.default_rng(0).lognormal(size=2000)))
    assert len(calls) < 200


def test_golden_values_by_hand() -> None:
    # x = 1, 2, 4, 8: mid starts at x = 4, tail 4, 8: alpha = 1 + 2 / ln 2
    law = powerlaw.fit(np.array([1.0, 2.0, 4.0, 8.0]), xmin="mid")
    assert (law.xmin, law.tail, law.start) == (4.0, 2, 2)
    assert law.alpha == pytest.approx(1 + 2 / math.log(2))
    assert law.sigma == pytest.approx(2 / math.log(2) / math.sqrt(2))
    # D: at x = 8, fitted 1 - 2^(1 - alpha) = 1 - e^-2 against 1/2 below it
    assert law.distance == pytest.approx(1 - math.exp(-2) - 0.5)
    # ks: a tail of n doublings has the spread n (n - 1) / 2 ln 2, so step s is fitted by 1 - e^(-2s / (n-1))
    worst = [max(abs(1 - math.exp(-2 * s / (n - 1)) - s / n) for s in range(n)) for n in (4, 3, 2)]
    best = powerlaw.fit(np.array([1.0, 2.0, 4.0, 8.0]))
    assert best.distance == pytest.approx(min(worst))
    assert best.start == int(np.argmin(worst))


def _peak(values: np.ndarray) -> float:
    """Left edge of the fullest of 100 bins of log10 x, counted one by one."""
    decades = [math.log10(value) for value in values]
    width = (decades[-1] - decades[0]) / 100
    counts = [0] * 100
    for decade in decades:
        counts[min(int((decade - decades[0]) / width), 99)] += 1
    return 10 ** (decades[0] + counts.index(max(counts)) * width)


def _search(values: np.ndarray, low: float, high: float) -> tuple[int, float, float]:
    """Brute force over the xmin between `low` and `high`."""
    inside = [index for index in range(len(values) - 1) if low <= values[index] <= high]
    expected = brute_force(values, range(inside[0], inside[-1] + 1))
    assert expected is not None
    return expected


def test_peak_looks_around_the_fullest_bin_and_opentrans_at_all_below() -> None:
    differ = 0
    for seed in range(20):
        values = pareto(1.5, 150, 1e-4, seed=seed)
        peak = _peak(values)
        around = _search(values, 0.95 * peak, 1.5 * peak)
        # as published: the lower bound is a logarithm, here below zero, and excludes nothing
        below = _search(values, math.log10(0.95 * peak), 1.5 * peak)
        assert math.log10(0.95 * peak) < 0 and below[2] <= around[2]
        differ += around[0] != below[0]
        for mode, expected in (("peak", around), ("opentrans", below)):
            law = powerlaw.fit(values, xmin=mode)
            assert law.start == expected[0], (mode, seed)
            assert law.alpha == pytest.approx(expected[1], rel=1e-9)
            assert law.distance == pytest.approx(expected[2], rel=1e-9)
    assert differ


def test_opentrans_bound_excludes_when_the_peak_is_large() -> None:
    # peak near 900: log10(0.95 x 900) = 2.93, so eigenvalues up to 2.9 are no candidates
    low = np.geomspace(0.5, 2.9, 200)
    values = np.sort(np.concatenate([low, pareto(2.0, 200, 2.9, seed=3), np.linspace(1000, 1001, 80)]))
    peak = _peak(values)
    assert 850 < peak < 1002
    expected = _search(values, math.log10(0.95 * peak), 1.5 * peak)
    assert expected[0] != _search(values, 0.0, 1.5 * peak)[0]
    assert powerlaw.fit(values, xmin="opentrans").start == expected[0]


def test_a_minimum_tail_limits_the_search() -> None:
    values = np.sort(np.random.default_rng(8).lognormal(size=200))
    free, held = powerlaw.fit(values), powerlaw.fit(values, min_tail=150)
    assert free.tail is not None and free.tail < 150
    assert held.tail is not None and held.tail >= 150
    expected = brute_force(values, range(51))
    assert expected is not None and held.start == expected[0]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "all eigenvalues are zero"),
        ([2.0], "only one eigenvalue"),
        ([3.0, 3.0, 3.0], "the eigenvalues are equal"),
        (list(1 + 1e-7 * np.linspace(0, 1, 40)), "equal up to rounding"),
    ],
)
@pytest.mark.parametrize("mode", powerlaw.XMIN_MODES)
def test_degenerate_spectra_give_a_reason_and_no_number(values: list[float], reason: str, mode: str) -> None:
    law = powerlaw.fit(np.array(values), xmin=mode)
    assert reason in law.reason or (mode in ("mid", "peak", "opentrans") and law.reason)
    assert (law.alpha, law.xmin, law.distance, law.tail, law.sigma) == (None,) * 5


def test_too_few_for_the_minimum_tail_is_a_reason() -> None:
    assert "a tail of 50 is asked for" in powerlaw.fit(np.arange(1.0, 10.0), min_tail=50).reason
    assert "tail of 8" in powerlaw.fit(np.arange(1.0, 10.0), xmin="mid", min_tail=8).reason


def test_two_eigenvalues_are_enough() -> None:
    law = powerlaw.fit(np.array([1.0, math.e]))
    assert law.alpha == pytest.approx(3.0) and law.tail == 2


def test_near_ties_at_the_top_do_not_win() -> None:
    values = np.append(pareto(2.5, 300, seed=4), [1e4, 1e4 * (1 + 1e-12)])
    law = powerlaw.fit(np.sort(values))
    assert law.alpha is not None and law.alpha < 4


@pytest.mark.parametrize(("mode", "tail"), [("best", 2), ("ks", 1)])
def test_unknown_modes_and_tails_are_refused(mode: str, tail: int) -> None:
    with pytest.raises(InputError):
        powerlaw.fit(np.arange(1.0, 9.0), xmin=mode, min_tail=tail)


@settings(max_examples=30, deadline=None)
@given(spectra())
def test_tail_log_sums_match_direct_sums(values: np.ndarray) -> None:
    logs = np.log(values)
    direct = [math.fsum(logs[start:] - logs[start]) for start in range(len(logs))]
    assert powerlaw.tail_log_sums(logs) == pytest.approx(direct, rel=1e-10, abs=1e-300)
