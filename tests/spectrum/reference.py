"""Slow and plain: what the fast code must agree with. Written from the formulas, sharing no code."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch


def brute_force(values: np.ndarray, starts: range | None = None) -> tuple[int, float, float] | None:
    """(start, alpha, D) of the first smallest D over all tail starts, every D in full; None without a fit."""
    values = np.asarray(values, dtype=np.float64)
    logs = np.log(values)
    best: tuple[int, float, float] | None = None
    for start in starts if starts is not None else range(len(values) - 1):
        tail = len(values) - start
        spread = math.fsum(logs[start:] - logs[start])
        if spread <= tail * np.finfo(np.float64).eps:
            continue
        alpha = 1 + tail / spread
        fitted = 1 - np.exp((1 - alpha) * (logs[start:] - logs[start]))
        distance = float(np.abs(fitted - np.arange(tail) / tail).max())
        if best is None or distance < best[2]:
            best = (start, alpha, distance)
    return best


def positions(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The matrix [O, I] of each kernel position."""
    flat = weight.reshape(*weight.shape[:2], -1)
    return (flat[:, :, position] for position in range(flat.shape[2]))


def svd_spectrum(weight: torch.Tensor, factor: float) -> np.ndarray:
    """Eigenvalues by float64 SVD of each kernel position, pooled and ascending."""
    parts = [np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2 for matrix in positions(weight)]
    return np.sort(np.concatenate(parts)) * factor


def published_loop(weight: torch.Tensor) -> tuple[float, int]:
    """(alpha, tail) as the published estimators compute it: float32 SVD, then a loop over every xmin."""
    factor = 0.5 if weight.ndim > 2 else 1.0
    batch = torch.stack(list(positions(weight.float())))
    values = (torch.linalg.svdvals(batch * factor**0.5) ** 2).flatten().sort().values
    if (values > 1e-5).any():
        values = values[values > 1e-5]
    logs, count = values.log(), len(values)
    alphas, distances = torch.zeros(count - 1), torch.ones(count - 1)
    for start in range(count - 1):
        tail = count - start
        alpha = 1 + tail / (logs[start:].sum() - tail * logs[start])
        alphas[start] = alpha
        if alpha > 1:
            fitted = 1 - (values[start:] / values[start]) ** (1 - alpha)
            distances[start] = (fitted - torch.arange(tail) / tail).abs().max()
    start = int(distances.argmin())
    return float(alphas[start]), count - start
