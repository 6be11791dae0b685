"""The parts of a training run: the stages of its framework, split where a freeze plan is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ovstrans.frameworks.base import TrainingStage
from ovstrans.recipes.schema import FinetuneRecipe


@dataclass(frozen=True)
class RunPart:
    """Consecutive steps of one stage.

    Attributes:
        stage: The stage.
        first: First step of the stage, from 0.
        end: Step after the last one of this part.
    """

    stage: TrainingStage
    first: int
    end: int

    def rate(self, recipe: FinetuneRecipe, step: int) -> float:
        """Return the factor on the recipe's learning rate in a step: the schedule runs anew in every stage."""
        own = 1.0 if self.stage.lr is None else self.stage.lr / recipe.optimizer.lr
        return own * recipe.schedule.factor(step - self.first, self.stage.steps)


def split_run(stages: Sequence[TrainingStage], done: int, plan_after: int | None) -> Iterator[RunPart]:
    """Yield the parts of a run that are left.

    Args:
        stages: The stages of the run, in order.
        done: Number of steps that were made already.
        plan_after: Number of steps after which a freeze plan is made, which splits a part; None for no such plan.
    """
    first = 0
    for stage in stages:
        last = first + stage.steps
        ends = [last] if plan_after is None or not first < plan_after < last else [plan_after, last]
        for end in ends:
            if end > done or (end == plan_after == done):
                yield RunPart(stage, first, end)
        first = last
