"""Matching and losses of mask classification on cases that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ovstrans.datasets.segments import Segments
from ovstrans.frameworks.mask2former_losses import (
    IGNORED,
    Criterion,
    Match,
    Targets,
    class_loss,
    class_targets,
    make_targets,
    segment_count,
)

SIDE = 32
"""Of the images here; masks are predicted at a fourth of it."""


def segments(masks: Tensor, classes: list[int]) -> Segments:
    return Segments(masks, torch.tensor(classes, dtype=torch.int64), torch.arange(len(classes)))


def none_of(size: tuple[int, int] = (SIDE, SIDE)) -> Targets:
    return Targets(torch.zeros(0, *size), torch.zeros(0, dtype=torch.int64))


def rectangles(count: int, seed: int) -> Targets:
    """`count` different horizontal bands and blocks that do not overlap, each of its own class."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(16, generator=generator)[:count]
    masks = torch.zeros(count, SIDE, SIDE)
    for number, place in enumerate(order.tolist()):
        top, left = 8 * (place // 4), 8 * (place % 4)
        masks[number, top : top + 8, left : left + 8] = 1
    return Targets(masks, torch.randperm(count, generator=generator))


def perfect(targets: Targets, classes: int) -> tuple[Tensor, Tensor]:
    """(mask logits [1, N, h, w], class logits [1, N, K + 1]) that say what the targets are."""
    masks = (targets.masks[:, 2::4, 2::4] * 2 - 1) * 20
    scores = torch.full((1, len(targets.classes), classes + 1), -10.0)
    scores[0, torch.arange(len(targets.classes)), targets.classes] = 10.0
    return masks[None], scores


def test_targets_are_padded_and_counted_in_columns() -> None:
    masks = torch.ones(3, 2, 3, dtype=torch.bool)
    found = make_targets(segments(masks, [4, 0, 2]), [0, 2, 4], (4, 5))
    assert found.classes.tolist() == [2, 0, 1]
    assert found.masks.dtype == torch.float32 and found.masks.shape == (3, 4, 5)
    assert found.masks[:, :2, :3].all() and not found.masks[:, 2:].any() and not found.masks[:, :, 3:].any()
    empty = make_targets(segments(torch.zeros(0, 2, 3, dtype=torch.bool), []), [0, 2, 4], (4, 5))
    assert empty.masks.shape == (0, 4, 5) and empty.classes.dtype == torch.int64 and len(empty.classes) == 0


def test_segments_are_counted_over_the_batch() -> None:
    assert float(segment_count([rectangles(3, 0), none_of(), rectangles(2, 1)])) == 5.0
    assert float(segment_count([none_of(), none_of()])) == 1.0  # never a division by zero


def test_segments_are_counted_as_the_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with 3 and 5 segments both divide by 4; where the mean is below 1 they divide by 1."""
    others = [5.0, 0.0]
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda count: count.add_(others.pop(0)))
    assert float(segment_count([rectangles(3, 0)])) == 4.0
    assert float(segment_count([rectangles(1, 0)])) == 1.0


def test_matching_and_losses_are_set_as_published() -> None:
    """Cheng et al. 2022, sec. 4.1: costs 2, 5 and 5; 12,544 points, three in four of them the least certain."""
    criterion = Criterion()
    published = criterion._published
    assert (published.matcher.cost_class, published.matcher.cost_mask, published.matcher.cost_dice) == (2.0, 5.0, 5.0)
    assert (criterion.points, published.num_points, published.matcher.num_points) == (12544,) * 3
    assert (published.oversample_ratio, published.importance_sample_ratio) == (3.0, 0.75)


def test_class_targets_name_matched_queries() -> None:
    targets = [Targets(torch.zeros(2, 4, 4), torch.tensor([3, 1])), none_of()]
    none = torch.zeros(0, dtype=torch.int64)
    matches: list[Match] = [(torch.tensor([0, 2]), torch.tensor([1, 0])), (none, none)]
    assert class_targets((2, 4), 9, targets, matches).tolist() == [[1, 9, 3, 9], [9, 9, 9, 9]]


def test_region_drop_ignores_matched_queries_at_its_rate() -> None:
    count, torch_seed = 4000, 5
    torch.manual_seed(torch_seed)
    order = torch.arange(count)
    targets = [Targets(torch.zeros(count, 1, 1), torch.zeros(count, dtype=torch.int64))]
    wanted = class_targets((1, 2 * count), 7, targets, [(order, order)], drop=0.3)
    dropped = (wanted[0, :count] == IGNORED).float().mean()
    assert abs(float(dropped) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / count)
    assert (wanted[0, count:] == 7).all()
    assert set(wanted[0, :count].tolist()) == {0, IGNORED}


def test_class_loss_is_a_weighted_mean() -> None:
    """Two queries by hand: a class at probability 1/2, the void at 1/4, the void weighing 0.1."""
    scores = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]]))
    loss = class_loss(scores, torch.tensor([[0, 2]]), void_weight=0.1)
    assert float(loss) == pytest.approx((math.log(2) + 0.1 * math.log(4)) / 1.1)
    ignored = class_loss(scores, torch.tensor([[0, IGNORED]]), void_weight=0.1)
    assert float(ignored) == pytest.approx(math.log(2))


def test_class_loss_without_any_target_is_zero() -> None:
    scores = torch.randn(1, 2, 3, requires_grad=True)
    loss = class_loss(scores, torch.full((1, 2), IGNORED), void_weight=0.1)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert scores.grad is not None and not scores.grad.any()


@settings(max_examples=25)
@given(count=st.integers(1, 8), extra=st.integers(0, 4), seed=st.integers(0, 1000))
def test_a_perfect_prediction_is_matched_with_itself(count: int, extra: int, seed: int) -> None:
    """Wherever it is among the queries, and whatever the others predict."""
    torch.manual_seed(seed)
    targets = rectangles(count, seed)
    masks, scores = perfect(targets, classes=8)
    places = torch.randperm(count + extra)[:count]
    all_masks = torch.randn(1, count + extra, *masks.shape[-2:])
    all_scores = torch.randn(1, count + extra, scores.shape[-1])
    all_masks[:, places], all_scores[:, places] = masks, scores
    ((query, segment),) = Criterion(points=256).match(all_masks, all_scores, [targets])
    assert dict(zip(query.tolist(), segment.tolist(), strict=True)) == {
        int(place): number for number, place in enumerate(places)
    }


@settings(max_examples=25)
@given(queries=st.integers(1, 6), count=st.integers(0, 8), seed=st.integers(0, 1000))
def test_matching_does_not_depend_on_order(queries: int, count: int, seed: int) -> None:
    """min(Q, N) pairs, no query or segment twice; shuffled queries and segments make the same pairs."""
    torch.manual_seed(seed)
    targets = rectangles(count, seed)
    masks, scores = torch.randn(1, queries, 8, 8), torch.randn(1, queries, 9)
    criterion = Criterion(points=64)

    def pairs(row: Tensor, column: Tensor) -> set[tuple[int, int]]:
        torch.manual_seed(seed)  # the same points
        shuffled = Targets(targets.masks[column], targets.classes[column])
        ((query, segment),) = criterion.match(masks[:, row], scores[:, row], [shuffled])
        assert query.dtype == segment.dtype == torch.int64
        found = list(zip(row[query].tolist(), column[segment].tolist(), strict=True))
        assert len(set(query.tolist())) == len(set(segment.tolist())) == len(found) == min(queries, count)
        return set(found)

    expected = pairs(torch.arange(queries), torch.arange(count))
    assert pairs(torch.randperm(queries), torch.randperm(count)) == expected


def test_matching_weighs_its_costs() -> None:
    """A query with the right mask against one with the right class: what costs more decides."""
    targets = Targets(torch.ones(1, SIDE, SIDE), torch.tensor([0]))
    masks = torch.tensor([20.0, -20.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    scores = torch.tensor([[[-10.0, 10.0], [10.0, -10.0]]])
    by_mask = Criterion(points=16, class_cost=1.0, mask_cost=5.0, dice_cost=5.0)
    by_class = Criterion(points=16, class_cost=100.0, mask_cost=0.1, dice_cost=0.1)
    assert by_mask.match(masks, scores, [targets])[0][0].tolist() == [0]
    assert by_class.match(masks, scores, [targets])[0][0].tolist() == [1]


@pytest.fixture
def inner_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are drawn away from the border, where sampling mixes in the zeros outside (the published way)."""
    draw = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **given: 0.25 + 0.5 * draw(*size, **given))


@pytest.mark.usefixtures("inner_points")
def test_mask_losses_of_constant_masks() -> None:
    """Where masks and logits are constant the sampled points do not matter: cross entropy and dice by hand."""
    points, logit = 40, 1.5
    targets = [Targets(torch.stack([torch.ones(SIDE, SIDE), torch.zeros(SIDE, SIDE)]), torch.tensor([0, 1]))]
    masks = torch.full((1, 3, 8, 8), logit)
    matches: list[Match] = [(torch.tensor([0, 2]), torch.tensor([0, 1]))]
    mask, dice = Criterion(points=points).mask_losses(masks, targets, matches, 4.0)
    inside = 1 / (1 + math.exp(-logit))
    assert float(mask) == pytest.approx((-math.log(inside) - math.log(1 - inside)) / 4, rel=1e-5)
    one = 1 - (2 * inside * points + 1) / (inside * points + points + 1)
    other = 1 - 1 / (inside * points + 1)
    assert float(dice) == pytest.approx((one + other) / 4, rel=1e-5)


def test_mask_losses_of_perfect_masks_vanish() -> None:
    """But for the edges, where a map at stride 4 cannot be exact."""
    targets = rectangles(4, 3)
    order = torch.arange(4)
    right, wrong = perfect(targets, 8)[0], -perfect(targets, 8)[0]
    torch.manual_seed(0)
    criterion = Criterion(points=256)
    mask, dice = criterion.mask_losses(right, [targets], [(order, order)], 4.0)
    bad_mask, bad_dice = criterion.mask_losses(wrong, [targets], [(order, order)], 4.0)
    assert float(mask) < 0.05 * float(bad_mask) and float(dice) < 0.25 < 0.9 < float(bad_dice)


@pytest.mark.usefixtures("inner_points")
def test_mask_losses_of_a_perfect_whole_mask_are_zero() -> None:
    whole = Targets(torch.ones(1, SIDE, SIDE), torch.tensor([0]))
    first = (torch.tensor([0]), torch.tensor([0]))
    mask, dice = Criterion(points=32).mask_losses(torch.full((1, 1, 8, 8), 30.0), [whole], [first], 1.0)
    assert float(mask) < 1e-6 and float(dice) < 1e-6


def test_mask_losses_of_nothing_are_zero() -> None:
    masks = torch.randn(2, 3, 8, 8, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    mask, dice = Criterion(points=16).mask_losses(masks, [none_of()] * 2, [(none, none)] * 2, 1.0)
    (mask + dice).backward()
    assert float(mask.detach()) == float(dice.detach()) == 0.0
    assert masks.grad is not None and not masks.grad.any()


def test_one_image_without_segments_among_others() -> None:
    targets = [none_of(), rectangles(2, 0)]
    masks, scores = torch.randn(2, 5, 8, 8, requires_grad=True), torch.randn(2, 5, 9)
    criterion = Criterion(points=32)
    matches = criterion.match(masks, scores, targets)
    assert [len(query) for query, _ in matches] == [0, 2]
    mask, dice = criterion.mask_losses(masks, targets, matches, segment_count(targets))
    (mask + dice).backward()
    assert torch.isfinite(mask) and masks.grad is not None and not masks.grad[0].any() and masks.grad[1].any()


def test_losses_are_in_full_precision_under_autocast() -> None:
    targets = [rectangles(3, 0)]
    masks, scores = (each.bfloat16() for each in perfect(targets[0], 8))
    criterion = Criterion(points=32)
    with torch.autocast("cpu", torch.bfloat16):
        matches = criterion.match(masks, scores, targets)
        mask, dice = criterion.mask_losses(masks, targets, matches, 3.0)
        named = class_loss(scores, class_targets((1, 3), 8, targets, matches), 0.1)
    assert mask.dtype == dice.dtype == named.dtype == torch.float32
    assert float(named) < 1e-3
