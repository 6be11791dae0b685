from __future__ import annotations

from typing import Any

import pytest

from ovstrans.clip.backbone import backbone_convs
from ovstrans.costs.target import load_target
from ovstrans.costs.training_step import count_executed_step
from ovstrans.reports.report import cost_report

SIZE = (32, 32)


def report(*settings: str) -> dict[str, Any]:
    """Of a recipe whose plan holds the first half of the trunk still."""
    target = load_target("deeplabv3-mini", settings=settings)
    layers = list(backbone_convs(target.module.backbone))
    target.frozen = layers[: len(layers) // 2]
    return cost_report(target, SIZE)


@pytest.mark.parametrize("setting", ["training.norms=frozen", "training.freeze_norms=true"])
def test_norms_that_the_recipe_holds_still_end_the_input_gradients_of_a_frozen_prefix(setting: str) -> None:
    trains = report("training.norms=train", "training.freeze_norms=false")["training"]["executed"]
    still = report("training.norms=train", "training.freeze_norms=false", setting)["training"]["executed"]
    assert still["components"]["trunk"]["input_gradient"] < trains["components"]["trunk"]["input_gradient"]
    assert still["weight_gradient"] == trains["weight_gradient"] and still["forward"] == trains["forward"]
    target = load_target("deeplabv3-mini")
    layers = list(backbone_convs(target.module.backbone))
    direct = count_executed_step(target.module, SIZE, frozen=layers[: len(layers) // 2], norms="frozen")
    assert still["total"] == direct.total


def test_matching_is_told_apart_with_a_recipe_or_without() -> None:
    """Of 3 + 1 predictions, 5 queries, 7 points: three products each (inside, outside, dice)."""
    options = ("queries=5", "points=7", "decoder_layers=3")
    for name in ("fcclip", "fcclip-mini"):
        target = load_target(name, settings=[f"model.{option}" for option in options])
        matching = cost_report(target, SIZE)["training"]["matching"]
        assert matching == {"per": "segment", "macs": 4 * 3 * 5 * 7}
    assert cost_report(load_target("deeplabv3"), SIZE)["training"]["matching"] is None
