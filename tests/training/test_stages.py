"""Parts of a run: stages one after another, split by a freeze plan, resumed anywhere."""

from __future__ import annotations

import pytest

from ovstrans.frameworks.base import TrainingStage
from ovstrans.recipes.load import load_recipe
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training.stages import split_run

STAGES = [TrainingStage("one", 10, lr=0.02), TrainingStage("two", 5), TrainingStage("three", 20, lr=0.0005)]


def parts(done: int = 0, plan_after: int | None = None) -> list[tuple[str, int, int]]:
    return [(part.stage.name, part.first, part.end) for part in split_run(STAGES, done, plan_after)]


def test_stages_follow_each_other() -> None:
    assert parts() == [("one", 0, 10), ("two", 10, 15), ("three", 15, 35)]
    assert list(split_run([], 0, None)) == []


@pytest.mark.parametrize(
    ("done", "left"), [(1, ["one", "two", "three"]), (10, ["two", "three"]), (14, ["two", "three"]), (35, [])]
)
def test_what_is_left_of_an_interrupted_run(done: int, left: list[str]) -> None:
    assert [name for name, _, _ in parts(done)] == left


def test_a_plan_splits_its_stage() -> None:
    assert parts(plan_after=12) == [("one", 0, 10), ("two", 10, 12), ("two", 10, 15), ("three", 15, 35)]
    assert parts(plan_after=10) == [("one", 0, 10), ("two", 10, 15), ("three", 15, 35)]
    assert parts(done=12, plan_after=12)[0] == ("two", 10, 12), "the plan was not made yet"
    assert parts(done=10, plan_after=10)[0] == ("one", 0, 10)


def test_every_stage_has_its_rate_and_the_whole_schedule() -> None:
    table = load_recipe("deeplabv3-mini")
    table["optimizer"]["lr"] = 0.001
    table["schedule"].update(kind="poly", power=1.0, warmup=2, cooldown=0.0)
    recipe = FinetuneRecipe.parse(table, "changed")
    found = {
        part.stage.name: [part.rate(recipe, step) for step in range(part.first, part.end)]
        for part in split_run(STAGES, 0, None)
    }
    for stage, factor in zip(STAGES, (20.0, 1.0, 0.5), strict=True):
        expected = [factor * (1 - step / stage.steps) * (0.5 if step == 0 else 1.0) for step in range(stage.steps)]
        assert found[stage.name] == pytest.approx(expected)
