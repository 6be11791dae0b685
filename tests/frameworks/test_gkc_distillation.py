"""Distillation of regions on cases worked out by hand, and its limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ovstrans.frameworks.gkc_distillation import (
    METHODS,
    choose_regions,
    distillation_loss,
    distillation_terms,
    pair_terms,
    plain_terms,
)

counts = st.lists(st.integers(0, 5), min_size=1, max_size=4)


def unit(n: int, dim: int = 6, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def images(sizes: list[int], seed: int) -> list[Tensor]:
    return [unit(n, seed=100 * seed + number) for number, n in enumerate(sizes)]


def test_by_hand() -> None:
    """Two regions: the student sees x, x where CLIP sees x, y; names are 60 degrees apart, s = 2."""
    student = [torch.tensor([[1.0, 0.0], [1.0, 0.0]])]
    teacher = [torch.eye(2)]
    names = [torch.tensor([[1.0, 0.0], [0.5, 3**0.5 / 2]])]
    plain, pairs = distillation_terms("text-guided", student, teacher, names, 2.0)
    # (s t_a . s t_b) = 4 [[1, .5], [.5, 1]]; v_a . c_b = [[1, 0], [1, 0]]
    assert plain.tolist() == pytest.approx([0, 2])
    assert pairs.tolist() == pytest.approx([9, 4, 1, 16], rel=1e-5)
    loss = distillation_loss("text-guided", student, teacher, names, 2.0)
    assert loss.item() == pytest.approx((9 + 4 + 1 + 16 + 0 + 2) / 6, rel=1e-5)
    # c_a . c_b = [[1, 0], [0, 1]]
    _, pairs = distillation_terms("vision-guided", student, teacher)
    assert pairs.tolist() == pytest.approx([0, 0, 1, 1])
    assert distillation_loss("vision-guided", student, teacher).item() == pytest.approx((1 + 1 + 2) / 6)
    assert distillation_loss("plain", student, teacher).item() == pytest.approx(1)


def test_plain_terms_are_squared_distances() -> None:
    """Unit vectors 60 degrees apart differ by (0.5, -0.87), of squared length 1."""
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 3**0.5 / 2]])
    assert plain_terms([student], [teacher]).tolist() == pytest.approx([1.0])


def test_pairs_are_taken_within_an_image() -> None:
    student, teacher = images([2, 3], 1), images([2, 3], 2)
    pairs = pair_terms(student, teacher, teacher)
    apart = [pair_terms(student[i : i + 1], teacher[i : i + 1], teacher[i : i + 1]) for i in range(2)]
    assert len(pairs) == 4 + 9
    torch.testing.assert_close(pairs, torch.cat(apart))
    assert len(plain_terms(student, teacher)) == 5


@given(counts, st.integers(0, 99))
def test_a_student_equal_to_its_teacher_has_no_loss(sizes: list[int], seed: int) -> None:
    teacher = images(sizes, seed)
    for method in ("plain", "vision-guided"):
        assert distillation_loss(method, teacher, teacher).item() == pytest.approx(0, abs=1e-10)
    # Text-guided: where names are as far apart as what CLIP sees, as in a space turned by any rotation.
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)))
    names = [each @ turn for each in teacher]
    assert distillation_loss("text-guided", teacher, teacher, names, 1.0).item() == pytest.approx(0, abs=1e-10)


@given(st.lists(st.integers(2, 5), min_size=1, max_size=3), st.integers(0, 99))
def test_any_other_student_has_a_loss(sizes: list[int], seed: int) -> None:
    student, teacher = images(sizes, seed), images(sizes, seed + 100)
    for method in METHODS:
        assert distillation_loss(method, student, teacher, teacher).item() > 1e-3
    names = images(sizes, seed + 200)
    plain, pairs = distillation_terms("text-guided", teacher, teacher, names)
    assert plain.sum().item() == pytest.approx(0, abs=1e-10) and pairs.sum().item() > 1e-3


def test_the_text_scale_gets_a_gradient() -> None:
    teacher, names = images([4], 1), images([4], 2)
    scale = torch.tensor(1.0, requires_grad=True)
    distillation_loss("text-guided", teacher, teacher, names, scale).backward()
    assert scale.grad is not None and scale.grad.abs() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_no_region_gives_zero_and_gradients_of_zero(method: str) -> None:
    weight, scale = torch.randn(6, 6, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    nothing = [torch.zeros(0, 6) @ weight] * 2
    loss = distillation_loss(method, nothing, [torch.zeros(0, 6)] * 2, [torch.zeros(0, 6)] * 2, scale)
    loss.backward()
    assert loss.item() == 0 and weight.grad is not None and not weight.grad.any()


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="text-guided needs names"):
        distillation_loss("text-guided", [unit(2)], [unit(2)])
    with pytest.raises(ValueError, match="'L2'"):
        distillation_loss("L2", [unit(2)], [unit(2)], [unit(2)])


@given(counts, st.integers(1, 12), st.integers(0, 9))
def test_a_choice_of_regions_stays_with_its_images(sizes: list[int], most: int, seed: int) -> None:
    torch.manual_seed(seed)
    chosen = choose_regions(sizes, most)
    assert sum(map(len, chosen)) == min(most, sum(sizes))
    for count, each in zip(sizes, chosen, strict=True):
        assert each.dtype is torch.int64
        assert each.tolist() == sorted(set(each.tolist())) and all(0 <= index < count for index in each.tolist())
    if sum(sizes) <= most:
        assert [each.tolist() for each in chosen] == [list(range(count)) for count in sizes]


def test_the_choice_is_even_over_the_batch() -> None:
    torch.manual_seed(0)
    hits = torch.zeros(10)
    for _ in range(2000):
        first, second = choose_regions([3, 7], 4)
        hits[first] += 1
        hits[second + 3] += 1
    assert (hits / 2000 - 0.4).abs().max() < 0.05
