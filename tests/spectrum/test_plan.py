"""Every freeze rule, on alphas whose outcome is plain to see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.errors import InputError
from ovstrans.spectrum.plan import make_plan

ALPHAS: dict[str, float | None] = {"a": 5.0, "b": 2.0, "c": None, "d": 4.0, "e": 3.0, "f": 1.5}


@pytest.mark.parametrize(
    ("rule", "threshold", "frozen"),
    [
        ("median", 3.0, ("b", "f")),
        ("largest", 3.0, ("a", "d")),
        ("quantile:0.5", 3.0, ("b", "f")),
        ("quantile:0.25", 2.0, ("f",)),
        ("quantile:0.3", 2.2, ("b", "f")),
        ("quantile:0", 1.5, ()),
        ("quantile:1", 5.0, ("b", "d", "e", "f")),
        ("threshold:4", 4.0, ("b", "e", "f")),
        ("threshold:0", 0.0, ()),
        ("count:3", None, ("b", "e", "f")),
        ("count:0", None, ()),
        ("count:5", None, ("a", "b", "d", "e", "f")),
    ],
)
def test_rules(rule: str, threshold: float | None, frozen: tuple[str, ...]) -> None:
    plan = make_plan(ALPHAS, rule)
    assert plan.frozen == frozen
    assert plan.threshold == (None if threshold is None else pytest.approx(threshold))
    assert plan.rule == rule


def test_median_freezes_27_of_55_and_leaves_the_median_layer() -> None:
    plan = make_plan({f"layer{i}": 2 + (i * 37 % 55) / 10 for i in range(55)})
    assert len(plan.frozen) == 27
    assert plan.threshold == pytest.approx(2 + 2.7)


def test_an_even_count_compares_with_the_mean_of_the_two_middle_ones() -> None:
    assert make_plan({"a": 1.0, "b": 2.0, "c": 4.0, "d": 9.0}).threshold == 3.0


def test_ties_at_the_median_train_and_ties_of_count_go_by_order() -> None:
    assert make_plan({"a": 2.0, "b": 2.0, "c": 2.0}).frozen == ()
    assert make_plan({"a": 2.0, "b": 2.0, "c": 2.0}, "count:2").frozen == ("a", "b")


def test_random_depends_on_the_seed_alone_and_never_takes_a_layer_without_alpha() -> None:
    plans = [make_plan(ALPHAS, "random:2", seed=seed).frozen for seed in range(40)]
    assert plans[3] == make_plan(ALPHAS, "random:2", seed=3).frozen
    assert all(len(frozen) == 2 and "c" not in frozen for frozen in plans)
    assert {name for frozen in plans for name in frozen} == {"a", "b", "d", "e", "f"}


def test_no_usable_alpha_freezes_nothing() -> None:
    assert make_plan({"a": None}, "median").frozen == ()
    assert make_plan({}, "largest").threshold is None


@given(st.dictionaries(st.text(min_size=1), st.none() | st.floats(1.01, 100), max_size=30))
def test_median_and_largest_freeze_disjoint_halves(alphas: dict[str, float | None]) -> None:
    low, high = set(make_plan(alphas).frozen), set(make_plan(alphas, "largest").frozen)
    usable = [name for name, alpha in alphas.items() if alpha is not None]
    assert not low & high
    assert len(low) <= len(usable) / 2 and len(high) <= len(usable) / 2
    assert (low | high) <= set(usable)


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        ("mean", "no such rule"),
        ("count", "no such rule"),
        ("median:0.5", "no such rule"),
        ("count:2.5", "whole number"),
        ("count:-1", "at least 0"),
        ("quantile:1.5", "between 0 and 1"),
        ("quantile:x", "'x' is not a number"),
        ("threshold:nan", "at least 0"),
        ("threshold:", "'' is not a number"),
        ("count:6", "only 5 layers"),
        ("random:6", "only 5 layers"),
    ],
)
def test_bad_rules_are_refused(rule: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        make_plan(ALPHAS, rule)
