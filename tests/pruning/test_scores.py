from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.granularity import make_groups
from ovstrans.pruning import methods

# Few distinct magnitudes, so that ties are the rule.
layers = st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=12), min_size=1, max_size=4)


def weights_from(values: list[list[int]]) -> dict[str, torch.Tensor]:
    return {f"layer{number}.weight": torch.tensor(each, dtype=torch.float32) for number, each in enumerate(values)}


def keep_largest(weights: dict[str, torch.Tensor], keep: int, current: methods.Masks | None = None) -> methods.Masks:
    groups = make_groups(weights, "element")
    return methods.keep_best(methods.group_scores(methods.magnitude_scores(weights), groups), groups, keep, current)


def keep_random(weights: dict[str, torch.Tensor], keep: int, seed: int) -> methods.Masks:
    groups = make_groups(weights, "element")
    return methods.keep_best(methods.random_scores(groups, seed), groups, keep)


def flat(masks: dict[str, torch.Tensor]) -> list[bool]:
    return torch.cat([mask.flatten() for mask in masks.values()]).tolist()


@given(layers, st.data())
def test_magnitude_is_a_stable_sort_over_all_layers(values: list[list[int]], data: st.DataObject) -> None:
    everything = [value for each in values for value in each]
    keep = data.draw(st.integers(0, len(everything)))
    ranked = sorted(range(len(everything)), key=lambda place: (-abs(everything[place]), place))
    expected = [place in ranked[:keep] for place in range(len(everything))]
    assert flat(keep_largest(weights_from(values), keep)) == expected


@given(layers, st.data())
def test_pruned_weights_stay_pruned_whatever_they_become(values: list[list[int]], data: st.DataObject) -> None:
    weights = weights_from(values)
    total = sum(len(each) for each in values)
    first = data.draw(st.integers(0, total))
    second = data.draw(st.integers(0, first))
    before = keep_largest(weights, first)
    grown = {name: torch.where(before[name], weight, torch.tensor(100.0)) for name, weight in weights.items()}
    after = flat(keep_largest(grown, second, before))
    assert sum(after) == second
    assert all(was for was, now in zip(flat(before), after, strict=True) if now)


def test_magnitude_by_hand() -> None:
    weights = {"a": torch.tensor([[3.0, -1.0], [0.5, 2.0]]), "b": torch.tensor([-2.0, 4.0])}
    masks = keep_largest(weights, 3)
    # 4, 3, then the first of the two twos
    assert masks["a"].tolist() == [[True, False], [False, True]]
    assert masks["b"].tolist() == [False, True]


def test_half_precision_ranks_like_its_values() -> None:
    weights = {"a": torch.randn(500, generator=torch.Generator().manual_seed(0)).bfloat16()}
    widened = {"a": weights["a"].float()}
    assert torch.equal(keep_largest(weights, 77)["a"], keep_largest(widened, 77)["a"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_damaged_weights_are_named(bad: float) -> None:
    weights = {"layer1.0.conv1.weight": torch.ones(3), "layer2.0.conv2.weight": torch.tensor([1.0, bad])}
    with pytest.raises(InputError, match=r"layer2\.0\.conv2"):
        keep_largest(weights, 2)


def test_more_than_there_is() -> None:
    weights = {"a": torch.ones(4)}
    with pytest.raises(InputError, match="5"):
        keep_largest(weights, 5)
    with pytest.raises(InputError, match="3"):
        keep_largest(weights, 3, {"a": torch.tensor([True, True, False, False])})
    with pytest.raises(InputError):
        keep_random(weights, 5, seed=0)


@given(layers, st.data(), st.integers(0, 2**62))
def test_uniform_keeps_the_exact_count(values: list[list[int]], data: st.DataObject, seed: int) -> None:
    weights = weights_from(values)
    keep = data.draw(st.integers(0, sum(len(each) for each in values)))
    masks = keep_random(weights, keep, seed)
    assert sum(flat(masks)) == keep
    assert {name: mask.shape for name, mask in masks.items()} == {name: each.shape for name, each in weights.items()}
    again = keep_random(weights, keep, seed)
    assert flat(again) == flat(masks)


def test_uniform_spreads_over_layers_and_follows_the_seed() -> None:
    weights = {"a": torch.zeros(10_000), "b": torch.zeros(10, 1_000)}
    masks = keep_random(weights, 4_000, seed=3)
    # Hypergeometric: mean 2,000, standard deviation 28
    assert abs(int(masks["a"].sum()) - 2_000) < 5 * 28
    assert flat(masks) != flat(keep_random(weights, 4_000, seed=4))


@given(layers, st.integers(0, 2**62), st.data())
def test_like_has_the_same_count_in_every_layer(values: list[list[int]], seed: int, data: st.DataObject) -> None:
    weights = weights_from(values)
    pattern = keep_random(weights, data.draw(st.integers(0, sum(map(len, values)))), seed)
    masks = methods.keep_random_like(weights, pattern, seed + 1)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        name: int(m.sum()) for name, m in pattern.items()
    }


def test_like_draws_other_weights() -> None:
    weights = {"a": torch.zeros(100, 10)}
    pattern = {"a": torch.arange(1000).reshape(100, 10) < 100}
    masks = methods.keep_random_like(weights, pattern, seed=0)
    # About a tenth of the kept ones agree by chance.
    assert 0 < int((masks["a"] & pattern["a"]).sum()) < 30
    assert not torch.equal(masks["a"], methods.keep_random_like(weights, pattern, seed=1)["a"])


def test_like_of_another_architecture() -> None:
    pattern = {"a": torch.ones(2, 2, dtype=torch.bool)}
    with pytest.raises(MismatchError, match="a"):
        methods.keep_random_like({"b": torch.zeros(2, 2)}, pattern, seed=0)
    with pytest.raises(MismatchError, match=r"\[2, 2\] at a, the model \[2, 3\]"):
        methods.keep_random_like({"a": torch.zeros(2, 3)}, pattern, seed=0)
