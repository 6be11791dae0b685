"""Further metrics of a spectrum, by the names that WeightWatcher gave them.

All are taken over every eigenvalue, including those too small for the power-law fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metrics:
    """Metrics of one spectrum with eigenvalues x; None without an eigenvalue above zero, or without an alpha.

    Attributes:
        alpha_weighted: alpha log10(max x).
        log_alpha_norm: log10 sum(x^alpha).
        log_norm: log10 sum(x), the logarithm of the squared Frobenius norm.
        log_spectral_norm: log10(max x), the logarithm of the squared spectral norm.
        stable_rank: sum(x) / max x.
        entropy: Entropy of x / sum(x) divided by ln(rank), between 0 and 1; None for rank one.
    """

    alpha_weighted: float | None = None
    log_alpha_norm: float | None = None
    log_norm: float | None = None
    log_spectral_norm: float | None = None
    stable_rank: float | None = None
    entropy: float | None = None


def measure(values: Array, alpha: float | None) -> Metrics:
    """Compute the metrics of one spectrum.

    Args:
        values: Eigenvalues [N], ascending, none negative.
        alpha: Exponent of the power law fitted to them; None without a fit.
    """
    positive = values[values > 0]
    if not len(positive):
        return Metrics()
    largest, total = float(positive[-1]), float(positive.sum())
    log_largest = float(np.log10(largest))
    return Metrics(
        alpha_weighted=None if alpha is None else alpha * log_largest,
        # In logarithms: x^alpha overflows for the alphas of thousands that near-ties give.
        log_alpha_norm=None if alpha is None else float(logsumexp(alpha * np.log(positive)) / np.log(10.0)),
        log_norm=float(np.log10(total)),
        log_spectral_norm=log_largest,
        stable_rank=total / largest,
        entropy=_entropy(values, largest),
    )


def _entropy(values: Array, largest: float) -> float | None:
    """Return -sum(p ln p) / ln(rank), where the rank counts eigenvalues above rounding; None for rank one."""
    share = values[values > largest * len(values) * np.finfo(np.float64).eps]
    if len(share) < 2:
        return None
    share = share / share.sum()
    return float(-(share * np.log(share)).sum() / np.log(len(share)))
