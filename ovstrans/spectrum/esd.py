"""Empirical spectral density (ESD) of a layer: the eigenvalues of W Wᵀ, accurate to float64.

A convolution counts as one matrix per kernel position, and the eigenvalues of all positions are pooled, as OpenTrans,
TempBalance and WeightWatcher do. The Gram matrix of the smaller side is formed in float64, where products of float32
weights are exact, and given to LAPACK's `eigvalsh`. That is more accurate than a float32 SVD and about three times as
fast.

Shapes: `O I` outputs and inputs of a layer, `M <= N` the sides of a matrix.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ovstrans.errors import InputError

Array = NDArray[np.float64]

SCALINGS = ("published", "none", "fan")
"""Scalings of the eigenvalues.

- `published`: those of convolutions times 0.5, as in OpenTrans, TempBalance and WeightWatcher.
- `none`: as they are.
- `fan`: divided by N.
"""

ABSOLUTE_CUT = 1e-5
"""Eigenvalues up to this value do not enter the fit (OpenTrans and WeightWatcher)."""

FEW = 50
"""With fewer eigenvalues than this a fit says little (TempBalance leaves such layers out)."""

# Eigenvalues of a Gram matrix are off by about 1e-16 of the largest, so one that is smaller by this factor has six
# digits left. Where smaller ones are needed, the singular values of W are computed instead.
_GRAM_RANGE = 1e9
_PUBLISHED_CONV_FACTOR = 0.5
_DEVICE_BATCH_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Cut:
    """Lower limit of the eigenvalues that enter a fit.

    Attributes:
        absolute: The limit; eigenvalues up to it are left out.
        relative: The limit as a fraction of the layer's largest eigenvalue; replaces `absolute` if given.

    Raises:
        InputError: The limit is negative or not finite, or a relative one is not below 1.
    """

    absolute: float = ABSOLUTE_CUT
    relative: float | None = None

    def __post_init__(self) -> None:
        value = self.absolute if self.relative is None else self.relative
        if not (math.isfinite(value) and value >= 0) or (self.relative is not None and value >= 1):
            name = "cut" if self.relative is None else "relative_cut"
            raise InputError(f"`{name}={value}`: use a number of at least 0 (a relative cut below 1)")

    def level(self, largest: float) -> float:
        """Return the limit for a layer whose largest eigenvalue is `largest`."""
        return self.absolute if self.relative is None else self.relative * largest


@dataclass(frozen=True)
class _Matrix:
    """One kernel position of one layer.

    Attributes:
        layer: Name of the layer.
        values: View [M, N] of the weights, not yet in float64.
        factor: Scaling of the eigenvalues.
    """

    layer: str
    values: NDArray[np.floating]
    factor: float

    @property
    def cost(self) -> int:
        """Approximate number of multiplications of the Gram matrix and its tridiagonalisation."""
        small, large = self.values.shape
        return int(small * small * large + 2 * small * small * small)


def eigenvalues(
    weights: Mapping[str, torch.Tensor],
    *,
    scaling: str = "published",
    cut: Cut | None = None,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    on_layer: Callable[[], None] | None = None,
) -> dict[str, Array]:
    """Compute all eigenvalues of each layer.

    Args:
        weights: Layer name to matrix [O, I] or kernel [O, I, ...].
        scaling: One of SCALINGS.
        cut: Limit of the fit; eigenvalues above it are accurate however small they are.
        device: Where to compute. On the CPU threads take one matrix each, the largest first; on CUDA matrices of one
            shape are stacked.
        workers: Threads on the CPU; default the cores of this process.
        on_layer: Called whenever a layer is complete.

    Returns:
        Layer name to eigenvalues, ascending, none negative.

    Raises:
        InputError: A layer's weights are not finite, or are no matrix or kernel of floats; the layer is named.
    """
    if scaling not in SCALINGS:
        raise InputError(f"`scaling={scaling}`: unknown; use {', '.join(SCALINGS)}")
    cut = cut or Cut()
    matrices = [matrix for name, weight in weights.items() for matrix in _matrices(name, weight, scaling)]
    matrices.sort(key=lambda matrix: matrix.cost, reverse=True)
    pending = _PendingMatrices(matrices, on_layer)
    if torch.device(device).type == "cpu":
        found = _on_cores(matrices, cut, workers or _available_cores(), pending)
    else:
        found = _on_device(matrices, cut, torch.device(device), pending)
    pooled: dict[str, list[Array]] = {name: [] for name in weights}
    for matrix, values in zip(matrices, found, strict=True):
        pooled[matrix.layer].append(values)
    return {name: np.sort(np.concatenate(parts)) for name, parts in pooled.items()}


def above_cut(values: Array, cut: Cut) -> Array:
    """Return the eigenvalues that enter the fit.

    Numerical zeros never do. Where the cut would leave none, all but the numerical zeros do, as in OpenTrans.

    Args:
        values: Eigenvalues [N], ascending.
        cut: Their lower limit.
    """
    if not len(values) or values[-1] <= 0:
        return values[:0]
    zero = values[-1] * (len(values) * np.finfo(np.float64).eps) ** 2
    above: Array = values[values > max(cut.level(float(values[-1])), zero)]
    positive: Array = values[values > zero]
    return above if len(above) else positive


def _matrices(name: str, weight: torch.Tensor, scaling: str) -> list[_Matrix]:
    """Split a layer's weight into one matrix per kernel position."""
    if weight.ndim < 2 or not weight.is_floating_point():
        raise InputError(f"layer {name}: {weight.dtype} weights of shape {list(weight.shape)} have no spectrum")
    weight = weight.detach().cpu()
    if weight.dtype not in (torch.float32, torch.float64):
        weight = weight.float()
    outputs, inputs = weight.shape[:2]
    kernel = weight.reshape(outputs, inputs, -1).numpy()
    factor = {
        "published": _PUBLISHED_CONV_FACTOR if weight.ndim > 2 else 1.0,
        "none": 1.0,
        "fan": 1.0 / max(outputs, inputs, 1),
    }[scaling]
    slices = (kernel[:, :, position] for position in range(kernel.shape[2]))
    return [_Matrix(name, matrix if outputs <= inputs else matrix.T, factor) for matrix in slices]


def _on_cores(matrices: Sequence[_Matrix], cut: Cut, workers: int, pending: _PendingMatrices) -> list[Array]:
    """Compute the eigenvalues of each matrix in threads on the CPU."""
    from threadpoolctl import threadpool_limits

    # One BLAS thread each: with its own threads in every worker the cores are oversubscribed.
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(max_workers=workers) as pool:
        futures = {pool.submit(_gram_eigenvalues, matrix, cut): matrix for matrix in matrices}
        try:
            for future in as_completed(futures):
                future.result()
                pending.finish(futures[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _gram_eigenvalues(matrix: _Matrix, cut: Cut) -> Array:
    """Compute eigenvalues from the Gram matrix, or by SVD where those of the Gram matrix lack digits."""
    values = np.ascontiguousarray(matrix.values, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        gram = values @ values.T
        finite = bool(np.isfinite(np.trace(gram)))
    _check_finite(matrix, finite)
    found = np.linalg.eigvalsh(gram) * matrix.factor
    return _svd_eigenvalues(matrix) if _needs_svd(found, cut) else np.maximum(found, 0.0)


def _svd_eigenvalues(matrix: _Matrix) -> Array:
    values = np.ascontiguousarray(matrix.values, dtype=np.float64)
    found: Array = np.square(np.linalg.svd(values, compute_uv=False)[::-1]) * matrix.factor
    return found


def _needs_svd(found: Array, cut: Cut) -> bool:
    """Return whether eigenvalues that the fit needs may be too small, beside the largest, for a Gram matrix."""
    largest = float(found[-1]) if len(found) else 0.0
    level = cut.level(largest)
    # If none is above the cut, the layer is kept down to its numerical zeros (see `above_cut`).
    return largest > 0 and (largest <= level or largest > level * _GRAM_RANGE)


def _check_finite(matrix: _Matrix, finite: bool) -> None:
    """Raise InputError unless the Gram matrix was finite; the message tells bad weights from too large ones."""
    if finite:
        return
    bad = matrix.values.size - int(np.isfinite(matrix.values).sum())
    if bad:
        raise InputError(f"layer {matrix.layer}: {bad} weights are NaN or infinite; use weights that are not damaged")
    raise InputError(f"layer {matrix.layer}: its weights are too large to square in float64; scale them down")


def _on_device(matrices: Sequence[_Matrix], cut: Cut, device: torch.device, pending: _PendingMatrices) -> list[Array]:
    """Compute the eigenvalues of each matrix on a device, those of one shape in batches."""
    found: list[Array] = [np.empty(0)] * len(matrices)
    shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        shapes[matrix.values.shape].append(index)
    for (small, large), indices in shapes.items():
        batch = max(1, _DEVICE_BATCH_BYTES // (8 * small * (small + large)))
        for start in range(0, len(indices), batch):
            chunk = indices[start : start + batch]
            stack = torch.stack([torch.from_numpy(np.ascontiguousarray(matrices[i].values)) for i in chunk])
            stack = stack.to(device).double()
            gram = stack @ stack.mT
            finite = gram.diagonal(dim1=1, dim2=2).sum(1).isfinite().tolist()
            for index, sound in zip(chunk, finite, strict=True):
                _check_finite(matrices[index], sound)
            for index, values in zip(chunk, torch.linalg.eigvalsh(gram).cpu().numpy(), strict=True):
                scaled = values * matrices[index].factor
                by_svd = _needs_svd(scaled, cut)
                found[index] = _svd_eigenvalues(matrices[index]) if by_svd else np.maximum(scaled, 0.0)
                pending.finish(matrices[index])
    return found


class _PendingMatrices:
    """Counts the unfinished matrices of each layer, and calls back when a layer's last one is finished."""

    def __init__(self, matrices: Sequence[_Matrix], on_layer: Callable[[], None] | None) -> None:
        self._left: dict[str, int] = defaultdict(int)
        self._on_layer = on_layer
        for matrix in matrices:
            self._left[matrix.layer] += 1

    def finish(self, matrix: _Matrix) -> None:
        self._left[matrix.layer] -= 1
        if self._on_layer is not None and not self._left[matrix.layer]:
            self._on_layer()


def _available_cores() -> int:
    """Return how many cores this process may use: fewer than the machine has under Slurm or in a container."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
