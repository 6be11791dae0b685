"""Numbers that describe a spectrum beside the power law, by the names WeightWatcher gave them.

All are taken over every eigenvalue, those below the cut too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metrics:
    """Metrics of one spectrum; None where a layer has none (no eigenvalue above zero, no alpha)."""

    alpha_weighted: float | None = None  # alpha log10(largest)
    log_alpha_norm: float | None = None  # log10 sum(x^alpha)
    log_norm: float | None = None  # log10 sum(x), the squared Frobenius norm
    log_spectral_norm: float | None = None  # log10(largest), the squared spectral norm
    stable_rank: float | None = None  # sum(x) / largest
    entropy: float | None = None  # of x / sum(x), as a share of ln(rank)


def measure(values: Array, alpha: float | None) -> Metrics:
    """Metrics of ascending eigenvalues [N], none negative, and of the exponent fitted to them."""
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
    """-sum(p ln p) / ln(rank), the rank counting eigenvalues above rounding; None for rank one."""
    share = values[values > largest * len(values) * np.finfo(np.float64).eps]
    if len(share) < 2:
        return None
    share = share / share.sum()
    return float(-(share * np.log(share)).sum() / np.log(len(share)))
