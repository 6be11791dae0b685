"""Eigenvalues against float64 SVDs, pooling, scalings, cuts, and weights that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovstrans.errors import InputError
from ovstrans.spectrum import esd
from tests.spectrum.reference import svd_spectrum


def _weight(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_a_convolution_pools_the_matrices_of_its_kernel_positions(
    outputs: int, inputs: int, height: int, width: int, seed: int
) -> None:
    weight = _weight(outputs, inputs, height, width, seed=seed)
    found = esd.eigenvalues({"conv": weight})["conv"]
    assert len(found) == height * width * min(outputs, inputs)
    assert found == pytest.approx(svd_spectrum(weight, 0.5), rel=1e-8, abs=1e-13)
    assert (np.diff(found) >= 0).all() and (found >= 0).all()


def test_known_eigenvalues() -> None:
    # rows of lengths 3 and 4, orthogonal: singular values 3 and 4
    matrix = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    weights = {"linear": matrix, "tall": matrix.T, "conv": matrix[:, :, None, None]}
    assert {key: list(values) for key, values in esd.eigenvalues(weights).items()} == {
        "linear": [9.0, 16.0],
        "tall": [9.0, 16.0],
        "conv": [4.5, 8.0],
    }
    assert list(esd.eigenvalues(weights, scaling="none")["conv"]) == [9.0, 16.0]
    assert esd.eigenvalues(weights, scaling="fan")["conv"] == pytest.approx([3.0, 16 / 3])


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    weights = {f"layer{i}": _weight(40 + i, 30, 3, 3, seed=i) for i in range(4)}
    one, three = (esd.eigenvalues(weights, workers=workers) for workers in (1, 3))
    assert list(one) == list(weights)
    assert all((one[name] == three[name]).all() for name in weights)


def test_batches_on_a_device_agree_with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # `meta`-like detour: the batched route runs on the CPU too, here with batches of a few matrices
    monkeypatch.setattr(esd, "_DEVICE_BATCH_BYTES", 8 * 20 * 52 * 2)
    weights = {"a": _weight(32, 20, 3, 3), "b": _weight(20, 32), "c": _weight(5, 7)}
    cut = esd.Cut()
    matrices = [matrix for name, weight in weights.items() for matrix in esd._matrices(name, weight, "published")]
    reports: list[int] = []
    pending = esd._PendingMatrices(matrices, lambda: reports.append(1))
    found = esd._on_device(matrices, cut, torch.device("cpu"), pending)
    for matrix, values in zip(matrices, found, strict=True):
        assert values == pytest.approx(esd._gram_eigenvalues(matrix, cut), rel=1e-10)
    assert len(reports) == len(weights)


def test_every_layer_is_reported_once_done() -> None:
    reports: list[int] = []
    esd.eigenvalues({"a": _weight(4, 4, 3, 3), "b": _weight(4, 4)}, on_layer=lambda: reports.append(1))
    assert len(reports) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_taken_at_their_value(dtype: torch.dtype) -> None:
    weight = _weight(6, 9).to(dtype)
    found = esd.eigenvalues({"linear": weight})["linear"]
    assert found == pytest.approx(svd_spectrum(weight.double(), 1.0), rel=1e-10)


def test_a_range_too_wide_for_a_gram_matrix_keeps_its_digits() -> None:
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.normal(size=(6, 6)))[0] for _ in range(2))
    singular = np.array([1e5, 1e2, 1.0, 1e-1, 3e-2, 1e-2])
    weight = torch.from_numpy(left * singular @ right)
    found = esd.eigenvalues({"linear": weight})["linear"]
    assert found == pytest.approx(np.sort(singular**2), rel=1e-6)
    # the Gram route alone is far off, so this test can fail
    gram = np.linalg.eigvalsh(weight.numpy() @ weight.numpy().T)
    assert abs(gram[0] / 1e-4 - 1) > 1e-4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("device", ["cpu", "batched"])
def test_weights_that_are_not_finite_name_their_layer(bad: float, device: str) -> None:
    weight = _weight(8, 8, 3, 3)
    weight[1, 2, 0, 1] = bad
    weights = {"layer1.0.conv1": _weight(8, 8), "layer1.0.conv2": weight}
    with pytest.raises(InputError, match=r"layer1\.0\.conv2: 1 weights are NaN or infinite"):
        if device == "cpu":
            esd.eigenvalues(weights)
        else:
            matrices = [m for name, weight in weights.items() for m in esd._matrices(name, weight, "none")]
            esd._on_device(matrices, esd.Cut(), torch.device("cpu"), esd._PendingMatrices(matrices, None))


def test_weights_too_large_to_square_are_not_called_nan() -> None:
    with pytest.raises(InputError, match="too large to square"):
        esd.eigenvalues({"huge": torch.full((2, 2), 1e200, dtype=torch.float64)})


@pytest.mark.parametrize("weight", [torch.ones(5), torch.ones(3, 3, dtype=torch.int8)])
def test_what_has_no_spectrum_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(InputError, match="layer odd: .* have no spectrum"):
        esd.eigenvalues({"odd": weight})


def test_unknown_scaling_is_refused() -> None:
    with pytest.raises(InputError, match="published, none, fan"):
        esd.eigenvalues({}, scaling="half")


def test_the_cut_is_exclusive_and_absolute_or_relative() -> None:
    values = np.array([0.0, 1e-6, 1e-5, 2e-5, 1.0, 4.0])
    assert list(esd.above_cut(values, esd.Cut())) == [2e-5, 1.0, 4.0]
    assert list(esd.above_cut(values, esd.Cut(relative=0.25))) == [4.0]
    assert list(esd.above_cut(values, esd.Cut(absolute=0.0))) == [1e-6, 1e-5, 2e-5, 1.0, 4.0]


def test_a_layer_wholly_under_the_cut_is_kept_but_for_zeros() -> None:
    assert list(esd.above_cut(np.array([0.0, 1e-8, 3e-8]), esd.Cut())) == [1e-8, 3e-8]
    assert len(esd.above_cut(np.zeros(3), esd.Cut())) == 0


def test_a_relative_cut_makes_the_kept_count_independent_of_scale() -> None:
    weight = _weight(30, 30)
    weight[20:] *= 1e-3
    counts = set()
    for scale in (1.0, 1e-2, 1e-4):
        values = esd.eigenvalues({"linear": weight * scale}, cut=esd.Cut(relative=1e-4))["linear"]
        counts.add(len(esd.above_cut(values, esd.Cut(relative=1e-4))))
    assert len(counts) == 1 and counts.pop() < 30


@pytest.mark.parametrize(
    "options",
    [{"absolute": -1.0}, {"absolute": float("nan")}, {"relative": 1.0}, {"relative": -0.1}],
)
def test_cuts_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="cut"):
        esd.Cut(**options)


def test_zero_filters_give_zero_eigenvalues_not_noise_in_the_fit() -> None:
    weight = _weight(16, 32, 3, 3)
    weight[8:] = 0  # half of the filters pruned
    values = esd.eigenvalues({"conv": weight})["conv"]
    assert (values[:72] < 1e-12).all()
    assert len(esd.above_cut(values, esd.Cut())) == 72
