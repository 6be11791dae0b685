"""Caption grounding on cases worked out by hand and against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ovstrans.frameworks.gkc_grounding import grounding_loss


def turned(*degrees: float) -> Tensor:
    """Unit vectors of the plane at these angles, [n, 2]."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], 1)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_by_one(words: list[Tensor], regions: list[Tensor], scale: float) -> float:
    """The loss written out, without a batch: every caption against every image, one noun and region at a time."""
    costs = {"words": [], "regions": []}
    for caption in words:
        rows = {"words": [], "regions": []}
        for image in regions:
            cosine = [[float(F.cosine_similarity(w, r, dim=0)) for r in image] for w in caption]
            for kind, table in (("words", cosine), ("regions", [list(column) for column in zip(*cosine, strict=True)])):
                total = 0.0
                for line in table:
                    powers = [math.exp(scale * c) for c in line]
                    total += sum(p / sum(powers) * scale * (1 - c) for p, c in zip(powers, line, strict=True))
                rows[kind].append(total / len(table))
        for kind, row in rows.items():
            costs[kind].append(row)
    parts = []
    for table in costs.values():
        for lines in (table, [list(column) for column in zip(*table, strict=True)]):
            parts += [math.log(sum(math.exp(-c) for c in line)) + line[i] for i, line in enumerate(lines)]
    return sum(parts) / len(parts)


def test_one_noun_and_one_region_by_hand() -> None:
    """Cosines [[1, 0.5], [0, cos 30]] at scale 2: distances 2 (1 - cosine), both ways the same."""
    loss = grounding_loss([turned(0), turned(90)], [turned(0), turned(60)], 2.0)
    costs = [[0.0, 1.0], [2.0, 2 - math.sqrt(3)]]
    rows = [math.log(math.exp(-line[0]) + math.exp(-line[1])) + line[i] for i, line in enumerate(costs)]
    columns = [math.log(math.exp(-costs[0][i]) + math.exp(-costs[1][i])) + costs[i][i] for i in range(2)]
    assert loss.item() == pytest.approx((sum(rows) + sum(columns)) / 4, abs=1e-6)


def test_attention_prefers_the_nearest_by_hand() -> None:
    """Noun at 0 degrees, regions at 0 and 90: weights e^s and 1, and the region at 90 has no other noun."""
    scale = 3.0
    near = math.exp(scale) / (math.exp(scale) + 1)
    from_words = scale * (1 - near)
    from_regions = scale * (0 + 1) / 2
    other_words = other_regions = scale * 2  # the other image shows the opposite
    back = {  # the other caption, at 180 degrees: of the first image as far as it can be, or one right angle
        "words": (math.exp(-scale) * 2 * scale + scale) / (math.exp(-scale) + 1),
        "regions": (2 * scale + scale) / 2,
    }
    expected = []
    for own, across, returned in (
        (from_words, other_words, back["words"]),
        (from_regions, other_regions, back["regions"]),
    ):
        table = [[own, across], [returned, 0.0]]
        for lines in (table, [list(column) for column in zip(*table, strict=True)]):
            expected += [math.log(sum(math.exp(-c) for c in line)) + line[i] for i, line in enumerate(lines)]
    loss = grounding_loss([turned(0), turned(180)], [turned(0, 90), turned(180)], scale)
    assert loss.item() == pytest.approx(sum(expected) / 8, abs=1e-6)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=2, max_size=4), st.integers(0, 99))
def test_matches_a_loop_over_pairs(sizes: list[tuple[int, int]], seed: int) -> None:
    words = [some(nouns, 6, seed=seed + 10 * number) for number, (nouns, _) in enumerate(sizes)]
    regions = [some(regions, 6, seed=seed + 10 * number + 1) for number, (_, regions) in enumerate(sizes)]
    loss = grounding_loss(words, regions, 4.0).item()
    assert loss == pytest.approx(one_by_one(words, regions, 4.0), rel=1e-4)
    stretched = grounding_loss([3 * each for each in words], [each / 7 for each in regions], 4.0).item()
    assert stretched == pytest.approx(loss, rel=1e-4)


@given(st.integers(2, 9), st.floats(0.5, 50))
def test_identical_images_cost_the_log_of_the_batch_size(images: int, scale: float) -> None:
    """The published start: 2 x ln 7 = 3.89 with 7 images and a weight of 2."""
    words = [torch.ones(1 + number % 3, 4) for number in range(images)]
    regions = [torch.ones(1 + number % 4, 4) for number in range(images)]
    assert grounding_loss(words, regions, scale).item() == pytest.approx(math.log(images), rel=1e-4)
    assert 2 * math.log(7) == pytest.approx(3.89, abs=0.005)


def test_matching_captions_cost_nothing() -> None:
    own = list(torch.eye(5)[:, None])
    assert grounding_loss(own, own, 50.0).item() < 1e-6
    assert grounding_loss(own, own[::-1], 50.0).item() > 10


def test_images_without_nouns_or_regions_take_no_part() -> None:
    words = [some(number, 8, seed=number) for number in (2, 3, 1)]
    regions = [some(number, 8, seed=10 + number) for number in (4, 2, 3)]
    alone = grounding_loss(words, regions, 5.0)
    nothing = torch.zeros(0, 8)
    more = grounding_loss(
        [words[0], nothing, words[1], some(2, 8), words[2]],
        [regions[0], some(3, 8), regions[1], nothing, regions[2]],
        5.0,
    )
    assert more.item() == alone.item()


@pytest.mark.parametrize("nouns", [(0, 0), (2, 0)])
def test_fewer_than_two_images_give_zero_and_gradients_of_zero(nouns: tuple[int, int]) -> None:
    scale = torch.tensor(5.0, requires_grad=True)
    regions = [some(3, 4).requires_grad_(), some(2, 4).requires_grad_()]
    loss = grounding_loss([some(number, 4) for number in nouns], regions, scale)
    loss.backward()
    assert loss.item() == 0 and scale.grad == 0
    assert all(each.grad is not None and not each.grad.any() for each in regions)


def test_gradients_are_finite_at_any_length() -> None:
    scale = torch.tensor(100.0, requires_grad=True)
    regions = [some(number, 4, seed=number).requires_grad_() for number in (1, 25, 3)]
    words = [some(number, 4, seed=9 + number) for number in (5, 1, 2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = grounding_loss(words, regions, scale)
    loss.backward()
    assert loss.dtype is torch.float32
    assert all(bool(each.grad.isfinite().all()) for each in (*regions, scale))  # type: ignore[union-attr]
