"""Power-law fit p(x) ~ x^-alpha of a spectrum's tail x >= xmin, by maximum likelihood.

With eigenvalues x_0 <= ... <= x_{N-1}, tail start i and n = N - i eigenvalues in the tail (Clauset et al. 2009, eq. 3.1
and 3.9):

    alpha_i = 1 + n / sum_{j>=i} ln(x_j / x_i)
    D_i     = max_{j>=i} | 1 - (x_j / x_i)^(1 - alpha_i) - (j - i) / n |

D is the Kolmogorov-Smirnov (KS) distance; the tail start of smallest D gives xmin. As in OpenTrans, WeightWatcher and
the powerlaw package, the empirical distribution takes the values 0 to (n - 1) / n only, the largest eigenvalue is no
candidate for xmin, and of equal D the first wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovstrans.errors import InputError

Array = NDArray[np.float64]

XMIN_MODES = ("ks", "peak", "mid", "opentrans")
"""Ways to choose xmin.

- `ks`: the eigenvalue of smallest KS distance.
- `peak`: the same among the eigenvalues around the peak of the histogram of log10 x (TempBalance).
- `mid`: the median eigenvalue.
- `opentrans`: `peak` as published, where the window's lower bound is log10 of what it should be.
"""

# Window of `peak` around the left edge of the fullest bin, and the number of bins (OpenTrans, TempBalance).
_PEAK_LOW, _PEAK_HIGH, _PEAK_BINS = 0.95, 1.5, 100
# Tails whose mean log ratio is smaller are equal up to the rounding of float32 weights. Orthogonal matrices have such
# tails, and their fits have "alphas" of millions.
_FLAT = 1e-5
_EPS = float(np.finfo(np.float64).eps)
# Lower bounds are reduced by this, so that rounding cannot discard the true minimum.
_SLACK = 1e-13
# Places in the tail, as fractions of its length, at which D is bounded from below.
_PROBES = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.27, 0.34, 0.41, 0.48, 0.55, 0.62, 0.69, 0.76, 0.84, 0.92, 1.0])


@dataclass(frozen=True)
class PowerLaw:
    """A fitted power law, or the reason why there is none (then the numbers are None).

    Attributes:
        alpha: The exponent.
        xmin: The eigenvalue at which the tail starts.
        distance: D, the KS distance between the tail and the fit.
        start: Index of xmin among the eigenvalues fitted.
        tail: n, the number of eigenvalues from xmin on.
        reason: Why there is no fit; "" where there is one.
    """

    alpha: float | None = None
    xmin: float | None = None
    distance: float | None = None
    start: int | None = None
    tail: int | None = None
    reason: str = ""

    @property
    def sigma(self) -> float | None:
        """Standard error of alpha, (alpha - 1) / sqrt(n)."""
        if self.alpha is None or self.tail is None:
            return None
        root: float = self.tail**0.5
        return (self.alpha - 1) / root


def fit(values: Array, *, xmin: str = "ks", min_tail: int = 2) -> PowerLaw:
    """Fit a power law to the tail of a spectrum.

    Args:
        values: Positive eigenvalues [N], ascending.
        xmin: How to choose where the tail starts, one of XMIN_MODES.
        min_tail: Fewest eigenvalues that a tail may have, at least 2.

    Returns:
        The fit. Eigenvalues that are too few, or all equal, give a PowerLaw without numbers and with a reason.

    Raises:
        InputError: The mode is unknown, or `min_tail` is too small.
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
    sums = tail_log_sums(logs)
    usable = candidates[sums[candidates] > _EPS * (count - candidates)]
    if not len(usable):
        return PowerLaw(reason="the eigenvalues are equal")
    start, distance = _smallest_distance(logs, sums, usable)
    tail = count - start
    if sums[start] < _FLAT * tail:
        return PowerLaw(reason="the eigenvalues of the tail are equal up to rounding")
    alpha = 1.0 + tail / float(sums[start])
    return PowerLaw(alpha, float(values[start]), distance, start, tail)


def check_mode(xmin: str, min_tail: int = 2) -> None:
    """Check the options of a fit.

    Raises:
        InputError: `xmin` is not one of XMIN_MODES, or `min_tail` is below 2.
    """
    if xmin not in XMIN_MODES:
        raise InputError(f"`xmin={xmin}`: unknown; use {', '.join(XMIN_MODES)}")
    if min_tail < 2:
        raise InputError(f"`min_tail={min_tail}`: at least 2 eigenvalues are needed to fit")


def tail_log_sums(logs: Array) -> Array:
    """Compute S_i = sum_{j>=i} (l_j - l_i) for every tail start i, in O(N).

    As S_i = S_{i+1} + (N - 1 - i) (l_{i+1} - l_i): no term is negative, so nothing cancels.

    Args:
        logs: Natural logarithms [N] of the eigenvalues, ascending.

    Returns:
        The sums [N].
    """
    steps = np.diff(logs) * np.arange(len(logs) - 1, 0, -1)
    return np.append(np.cumsum(steps[::-1])[::-1], 0.0)


def _candidates(values: Array, logs: Array, xmin: str, min_tail: int) -> NDArray[np.intp]:
    """Return the indices that xmin may have under a mode."""
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
    inside: NDArray[np.intp] = every[(values[every] >= low) & (values[every] <= high)]
    return inside


def _smallest_distance(logs: Array, sums: Array, candidates: NDArray[np.intp]) -> tuple[int, float]:
    """Find the first candidate of smallest D exactly, computing D for only a few candidates.

    D is a maximum over the tail, so its terms at a few probes bound it from below. Candidates are taken by rising bound
    until the bound passes the best D found.

    Returns:
        The candidate and its D.
    """
    bounds = _lower_bounds(logs, sums, candidates) - _SLACK
    best_start, best = -1, np.inf
    for position in np.argsort(bounds, kind="stable"):
        if bounds[position] > best:
            break
        start = int(candidates[position])
        distance = _distance(logs, sums, start)
        if distance < best or (distance == best and start < best_start):
            best_start, best = start, distance
    return best_start, float(best)


def _lower_bounds(logs: Array, sums: Array, candidates: NDArray[np.intp]) -> Array:
    """Bound D of each candidate [C] from below, by its terms at _PROBES of the tail's length."""
    tails = len(logs) - candidates
    offsets = np.rint(_PROBES[:, None] * (tails - 1)).astype(np.intp)
    slopes = tails / sums[candidates]
    model = -np.expm1(-slopes * (logs[candidates + offsets] - logs[candidates]))
    bounds: Array = np.abs(model - offsets / tails).max(axis=0)
    return bounds


def _distance(logs: Array, sums: Array, start: int) -> float:
    """Compute D_i for the tail that begins at `start`."""
    tail = len(logs) - start
    model = -np.expm1((logs[start:] - logs[start]) * (-tail / sums[start]))
    return float(np.abs(model - np.arange(tail) / tail).max())
