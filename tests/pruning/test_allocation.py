"""How many weights each layer keeps: by hand, and by what must hold of any shapes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovstrans.clip.load import Clip
from ovstrans.costs.flops import count_flops
from ovstrans.errors import InputError
from ovstrans.masks.granularity import make_groups
from ovstrans.masks.mask import Mask
from ovstrans.pruning import allocation, methods
from ovstrans.recipes.schema import ALLOCATIONS, GRANULARITIES, Prune

IMP = Prune(method="imp", sparsity=0.8, rate=0.4, steps=0, final_steps=0, scope="body")

networks = st.dictionaries(
    st.sampled_from("abcdef"),
    st.tuples(st.integers(1, 40), st.integers(1, 20), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
    min_size=1,
)


def test_erk_by_hand() -> None:
    # e (16 + 16 + 1 + 1) = 34 e, e (16 + 16 + 3 + 3) = 38 e, e (32 + 16) = 48 e; 360 weights over 120
    shapes = {"a": (16, 16, 1, 1), "b": (16, 16, 3, 3), "c": (32, 16)}
    densities = allocation.erk_densities(shapes, 360)
    assert densities == pytest.approx({"a": 102 / 256, "b": 114 / 2304, "c": 144 / 512})


def test_erk_makes_layers_dense_that_would_exceed_it() -> None:
    # 500 / 72 = 6.94: a would keep 8 x 6.94 = 56 of 7, so it is dense, and the other gets 493.
    densities = allocation.erk_densities({"a": (7, 1), "b": (32, 32)}, 500)
    assert densities == pytest.approx({"a": 1.0, "b": 493 / 1024})
    assert allocation.erk_densities({"a": (2, 2)}, 4) == {"a": 1.0}


@given(networks, st.floats(0.02, 1))
def test_densities_are_sound_and_meet_the_whole(shapes: dict[str, tuple[int, ...]], density: float) -> None:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    keep = max(1, round(density * sum(sizes.values())))
    alphas: dict[str, float | None] = {name: 2.0 + number for number, name in enumerate(shapes)}
    for found in (
        allocation.uniform_densities(shapes, keep),
        allocation.erk_densities(shapes, keep),
        allocation.alpha_densities(shapes, keep, alphas, 0.2),
    ):
        assert set(found) == set(shapes)
        assert all(0 < each <= 1 + 1e-9 for each in found.values())
        assert sum(sizes[name] * each for name, each in found.items()) == pytest.approx(keep)
        budgets = allocation.schedule_budgets(shapes, found, methods.kept_counts(sum(sizes.values()), keep, 0.3))
        assert sum(budgets[-1].values()) == keep
        assert all(abs(budgets[-1][name] - sizes[name] * found[name]) < 1 + 1e-6 for name in shapes)


def test_alpha_by_hand() -> None:
    # Places 0, 1/2, 1 of equal layers: factors 0.8, 1, 1.2, whose mean is 1.
    shapes = {"a": (10, 10), "b": (10, 10), "c": (10, 10)}
    densities = allocation.alpha_densities(shapes, 150, {"a": 2.0, "b": 3.0, "c": 4.0}, 0.2)
    assert densities == pytest.approx({"a": 0.6, "b": 0.5, "c": 0.4})
    # A layer without alpha gets the mean of the others; factors 0.8, 1, 1.2 again.
    assert allocation.alpha_densities(shapes, 150, {"a": 2.0, "b": None, "c": 4.0}, 0.2) == pytest.approx(densities)
    # Unequal layers: the mean factor by weights is (3 x 0.8 + 1.2) / 4 = 0.9.
    unequal = allocation.alpha_densities({"a": (30, 10), "b": (10, 10)}, 200, {"a": 1.0, "b": 2.0}, 0.2)
    assert unequal == pytest.approx({"a": 1 - 0.5 * 0.8 / 0.9, "b": 1 - 0.5 * 1.2 / 0.9})
    same = allocation.alpha_densities({"a": (30, 10), "b": (10, 10)}, 200, {"a": 2.0, "b": 2.0}, 0.2)
    assert same == pytest.approx({"a": 0.5, "b": 0.5})


def test_alpha_narrows_a_range_that_would_empty_a_layer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    shapes = {"a": (10, 10), "b": (10, 10)}
    densities = allocation.alpha_densities(shapes, 20, {"a": 2.0, "b": 4.0}, 0.2)  # 0.9 x 1.2 is over 1
    assert densities == pytest.approx({"a": 0.19, "b": 0.01})
    assert "tau 0.2 is narrowed to 0.1" in caplog.text
    with pytest.raises(InputError, match="no layer in scope has an alpha"):
        allocation.alpha_densities(shapes, 20, {"a": None, "b": None}, 0.2)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=8))
def test_apportion_rounds_each_share_and_meets_the_sum(shares: list[float]) -> None:
    named = {str(number): share for number, share in enumerate(shares)}
    total = round(sum(shares))
    found = allocation.apportion(named, total)
    assert all(abs(found[name] - share) < 1 for name, share in named.items())
    assert abs(sum(found.values()) - total) <= (1 if sum(map(math.floor, shares)) > total else 0)


def test_the_way_to_the_final_density_is_geometric() -> None:
    shapes = {"a": (100, 100), "b": (10, 10)}
    counts = methods.kept_counts(10_100, 1_010, 0.5)
    budgets = allocation.schedule_budgets(shapes, {"a": 0.1, "b": 1.0}, counts)
    way = [math.log(count / 10_100) / math.log(0.1) for count in counts]
    assert [each["b"] for each in budgets] == [100] * len(counts)
    assert [each["a"] for each in budgets[:-1]] == pytest.approx([10_000 * 0.1**share for share in way[:-1]], abs=1)


def test_worth_per_mac_by_hand() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0])
    # Squares 9, 4, 1 of running sums 9, 13, 14, over 5 positions
    expected = torch.tensor([1 / 14, 9 / 9, 4 / 13]) / 5
    assert torch.allclose(allocation.scores_per_mac(scores, 1, 5), expected)
    sizes = torch.tensor([4, 4, 2])
    expected = torch.tensor([4 / 48 / 4, 36 / 36 / 4, 8 / 44 / 2]) / 5
    assert torch.allclose(allocation.scores_per_mac(scores, sizes, 5), expected)
    assert allocation.scores_per_mac(torch.zeros(3), 1, 5).tolist() == [0, 0, 0]


@settings(deadline=None)
@given(networks, st.sampled_from(["element", "4x1", "filter"]), st.floats(0.05, 1), st.data())
def test_budgets_are_met_within_one_group(
    shapes: dict[str, tuple[int, ...]], granularity: str, density: float, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    groups = make_groups(weights, granularity)
    scores = methods.group_scores(methods.magnitude_scores(weights), groups)
    costs = {name: data.draw(st.integers(1, 9)) for name in shapes}
    total = sum(costs[name] * weight.numel() for name, weight in weights.items())
    budget = int(density * total)
    masks = methods.keep_best(scores, groups, budget, costs=costs)
    spent = sum(costs[name] * int(mask.sum()) for name, mask in masks.items())
    assert budget - max(costs[name] * each.size for name, each in groups.items()) < spent <= budget
    assert all(groups[name].fits(mask) for name, mask in masks.items())

    budgets = {name: int(density * weight.numel()) for name, weight in weights.items()}
    masks = methods.keep_best_by_layer(scores, groups, budgets)
    for name, each in groups.items():
        kept = int(masks[name].sum())
        assert each.fits(masks[name])
        assert abs(kept - budgets[name]) < each.size or (kept <= each.size and budgets[name])
        assert bool(kept) or not budgets[name]
    largest = max(each.size for each in groups.values())
    if all(each.size <= budgets[name] for name, each in groups.items()):
        assert 0 <= sum(budgets.values()) - sum(int(mask.sum()) for mask in masks.values()) < largest


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("method", ["imp", "magnitude", "random"])
def test_every_combination_prunes_on_and_meets_its_budget(
    clip: Clip, method: str, granularity: str, allocation: str
) -> None:
    prune = dataclasses.replace(IMP, method=method, granularity=granularity, allocation=allocation)
    if granularity == "2:4" and allocation != "global":
        with pytest.raises(InputError, match="keeps half of every layer"):
            prune.check("r")
        return
    plan = methods.make_plan(clip.visual, prune, seed=1, image_size=32)
    weights = methods.weights_of(clip.visual, plan.names)
    groups = make_groups(weights, granularity)
    masks: methods.Masks | None = None
    for number, count in enumerate(plan.counts):
        before = masks
        noise = torch.Generator().manual_seed(number)
        moved = {name: each + 0.02 * torch.randn(each.shape, generator=noise) for name, each in weights.items()}
        masks = plan.choose(number, moved, masks)
        assert before is None or all(not (masks[name] & ~before[name]).any() for name in masks)
        largest = max(each.size for each in groups.values())
        if allocation in ("erk", "alpha") and count != plan.counts[-1]:
            continue  # their layers fall at paces of their own
        assert 0 <= count - sum(int(mask.sum()) for mask in masks.values()) < largest
    assert masks is not None and all(groups[name].fits(mask) for name, mask in masks.items())
    if granularity == "2:4":
        assert all(int(mask.sum()) == groups[name].least for name, mask in masks.items())
    if allocation == "uniform":
        for name, mask in masks.items():
            assert abs(int(mask.sum()) - 0.2 * mask.numel()) < groups[name].size + 1


@pytest.mark.parametrize("granularity", ["element", "4x1", "filter"])
@pytest.mark.parametrize("method", ["imp", "magnitude", "random"])
def test_a_budget_of_macs_is_met_as_the_costs_count_it(clip: Clip, method: str, granularity: str) -> None:
    prune = dataclasses.replace(IMP, method=method, granularity=granularity, allocation="macs", macs=0.3)
    plan = methods.make_plan(clip.visual, prune, seed=1, image_size=32)
    masks: methods.Masks | None = None
    for number in range(len(plan.counts)):
        masks = plan.choose(number, methods.weights_of(clip.visual, plan.names), masks)
    assert masks is not None
    counted = count_flops(clip.visual, (32, 32), mask=Mask(masks, model=""))
    scope = [layer for layer in counted.layers or () if f"{layer.name}.weight" in masks]
    dense, effective = sum(each.dense for each in scope), sum(each.effective for each in scope)
    groups = make_groups(masks, granularity)
    per_weight = {f"{each.name}.weight": each.dense // masks[f"{each.name}.weight"].numel() for each in scope}
    assert plan.counts[-1] == round(0.3 * dense)
    assert 0 <= plan.counts[-1] - effective < max(each.size * per_weight[name] for name, each in groups.items())
    with pytest.raises(InputError, match="`macs=1e-09`: leaves none"):
        methods.make_plan(clip.visual, dataclasses.replace(prune, macs=1e-9), seed=1, image_size=32)
