"""The power law p(x) ~ x^-alpha of a spectrum's tail x >= xmin: alpha, xmin, and how well it fits.

With eigenvalues ascending, tail start i and n = N - i tail values (Clauset et al. 2009):

    alpha_i = 1 + n / sum_{j>=i} ln(x_j / x_i)
    D_i     = max_{j>=i} | 1 - (x_j / x_i)^(1 - alpha_i) - (j - i) / n |

The empirical distribution takes the values 0 to (n-1)/n only, as in OpenTrans, WeightWatcher and
powerlaw; the largest value is no candidate for xmin; of equal D the first wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovstrans.errors import InputError

Array = NDArray[np.float64]

XMIN_MODES = ("ks", "peak", "mid", "opentrans")
"""ks: smallest D of all; peak: of those around the histogram's peak; mid: the median eigenvalue;
opentrans: `peak` as published, whose lower bound is compared on the wrong scale."""

# Window of `peak` around the left edge of the fullest bin, and its bins (OpenTrans, TempBalance).
_PEAK_LOW, _PEAK_HIGH, _PEAK_BINS = 0.95, 1.5, 100
# A tail whose logarithms spread less than this on average is equal up to the rounding of float32
# weights: orthogonal matrices end here, with "alphas" of millions.
_FLAT = 1e-5
_EPS = float(np.finfo(np.float64).eps)
# Bounds are lowered by this, so that rounding cannot discard the true minimum.
_SLACK = 1e-13
_PROBES = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.27, 0.34, 0.41, 0.48, 0.55, 0.62, 0.69, 0.76, 0.84, 0.92, 1.0])


@dataclass(frozen=True)
class PowerLaw:
    """A fit, or the reason in words why there is none (then the numbers are None)."""

    alpha: float | None = None
    xmin: float | None = None
    distance: float | None = None  # D, the Kolmogorov-Smirnov distance
    start: int | None = None  # index of xmin in the eigenvalues fitted
    tail: int | None = None  # n, the eigenvalues from xmin on
    reason: str = ""

    @property
    def sigma(self) -> float | None:
        """Standard error of alpha, (alpha - 1) / sqrt(n)."""
        if self.alpha is None or self.tail is None:
            return None
        return (self.alpha - 1) / self.tail**0.5


def fit(values: Array, *, xmin: str = "ks", min_tail: int = 2) -> PowerLaw:
    """Fit positive, ascending `values` [N] with xmin by one of XMIN_MODES.

    Tails of fewer than `min_tail` values (at least 2) are not considered. A degenerate spectrum gives
    a PowerLaw without numbers and with a reason.
    """
    check_mode(xmin, min_tail)
    count = len(values)
    if count == 0:
        return PowerLaw(reason="all eigenvalues are zero")
    if count == 1:
        return PowerLaw(reason="only one eigenvalue")
    if count < min_tail:
        return PowerLaw(reason=f"only {count} eigenvalues, a tail of {min_tail} is asked for")
    logs = np.log(values)
    candidates = _candidates(values, logs, xmin, min_tail)
    if not len(candidates):
        return PowerLaw(reason=f"no xmin of mode {xmin} leaves a tail of {min_tail}")
    spreads = tail_spreads(logs)
    usable = candidates[spreads[candidates] > _EPS * (count - candidates)]
    if not len(usable):
        return PowerLaw(reason="the eigenvalues are equal")
    start, distance = _smallest_distance(logs, spreads, usable)
    tail = count - start
    if spreads[start] < _FLAT * tail:
        return PowerLaw(reason="the eigenvalues of the tail are equal up to rounding")
    alpha = 1.0 + tail / float(spreads[start])
    return PowerLaw(alpha, float(values[start]), distance, start, tail)


def check_mode(xmin: str, min_tail: int = 2) -> None:
    """Raise InputError for a mode that does not exist or a tail too short to fit."""
    if xmin not in XMIN_MODES:
        raise InputError(f"xmin {xmin!r}: unknown; use {', '.join(XMIN_MODES)}")
    if min_tail < 2:
        raise InputError(f"minimum tail {min_tail}: at least 2 eigenvalues are needed to fit")


def tail_spreads(logs: Array) -> Array:
    """S_i = sum_{j>=i} (l_j - l_i) for every i, in O(N).

    Summed as S_i = S_{i+1} + (N - 1 - i) (l_{i+1} - l_i): no term is negative, so nothing cancels.
    """
    steps = np.diff(logs) * np.arange(len(logs) - 1, 0, -1)
    return np.append(np.cumsum(steps[::-1])[::-1], 0.0)


def _candidates(values: Array, logs: Array, xmin: str, min_tail: int) -> NDArray[np.intp]:
    count = len(values)
    if xmin == "mid":
        return np.array([count // 2] if count - count // 2 >= min_tail else [], dtype=np.intp)
    every = np.arange(count - min_tail + 1)
    if xmin == "ks":
        return every
    decades = logs / np.log(10.0)
    heights, edges = np.histogram(decades, bins=_PEAK_BINS, range=(decades[0], decades[-1]))
    peak = 10.0 ** edges[int(np.argmax(heights))]
    low, high = _PEAK_LOW * peak, _PEAK_HIGH * peak
    if xmin == "opentrans":
        low = np.log10(low)  # as published: a logarithm, yet compared with the eigenvalue itself
    return every[(values[every] >= low) & (values[every] <= high)]


def _smallest_distance(logs: Array, spreads: Array, candidates: NDArray[np.intp]) -> tuple[int, float]:
    """The first candidate of smallest D, and D, exactly, without computing most of them.

    D is a maximum over the tail, so its value at a few probes bounds it from below: candidates are
    taken by rising bound until the bound passes the best D found.
    """
    bounds = _lower_bounds(logs, spreads, candidates) - _SLACK
    best_start, best = -1, np.inf
    for position in np.argsort(bounds, kind="stable"):
        if bounds[position] > best:
            break
        start = int(candidates[position])
        distance = _distance(logs, spreads, start)
        if distance < best or (distance == best and start < best_start):
            best_start, best = start, distance
    return best_start, float(best)


def _lower_bounds(logs: Array, spreads: Array, candidates: NDArray[np.intp]) -> Array:
    """A lower bound of D for each candidate [C], from the tail values at _PROBES of its length."""
    tails = len(logs) - candidates
    offsets = np.rint(_PROBES[:, None] * (tails - 1)).astype(np.intp)
    slopes = tails / spreads[candidates]
    model = -np.expm1(-slopes * (logs[candidates + offsets] - logs[candidates]))
    return np.abs(model - offsets / tails).max(axis=0)


def _distance(logs: Array, spreads: Array, start: int) -> float:
    tail = len(logs) - start
    model = -np.expm1((logs[start:] - logs[start]) * (-tail / spreads[start]))
    return float(np.abs(model - np.arange(tail) / tail).max())
