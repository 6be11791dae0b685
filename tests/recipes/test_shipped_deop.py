"""The published recipes of DeOP: its values, and the parameters that its last stage trains."""

from __future__ import annotations

import pytest

from ovstrans.frameworks.registry import build_on_meta
from ovstrans.recipes.load import load_recipe
from ovstrans.recipes.schema import FinetuneRecipe

RELEASED = 4_995_072 + 51_200 + 2_658_816 + 8_192 + 512
"""Decoder, queries, positions, prompt and non-object of the released code."""
NEVER_USED = 512 * 512 + 512 + 2 * 512
"""Of these: the rows for values in the last attention, which takes raw features, and a norm behind the decoder."""


@pytest.mark.parametrize(
    ("name", "steps"),
    [("deop-vitb16-cocostuff", [16_000, 60_000, 60_000]), ("deop-vitb16-voc", [3_200, 20_000, 60_000])],
)
def test_published_values(name: str, steps: list[int]) -> None:
    recipe = FinetuneRecipe.parse(load_recipe(name), name)
    model, optimizer = recipe.model, recipe.optimizer
    framework = build_on_meta("deop", model.clip, options=model.options)
    stages = framework.training_stages(recipe.training.steps)
    assert [(each.name, each.steps) for each in stages] == list(
        zip(("prompt", "proposals", "anchors"), steps, strict=True)
    )
    assert stages[1].lr == 1e-4 and (optimizer.lr, optimizer.weight_decay, optimizer.clip_norm) == (2e-4, 1e-4, 0.01)
    assert framework.severed_blocks == (11,)
    assert (model.options["anchor_focal_weight"], model.options["anchor_dice_weight"]) == (2.0, 0.8)
    parts = framework.components()
    trained = [parts[part] for part in ("anchors", "positions", "classifier", "prompt")]
    assert sum(each.numel() for part in trained for each in part.parameters()) == RELEASED - NEVER_USED
    assert not any(each.requires_grad for each in framework.backbone.parameters())
