"""What ships: every value explained, and the published one as published."""

from __future__ import annotations

import re

import pytest

from ovstrans.recipes.load import load_recipe, recipe_names, recipe_text

FINETUNE = [name for name in recipe_names() if name.startswith("deeplabv3")]


@pytest.mark.parametrize("name", FINETUNE)
def test_every_value_has_a_comment(name: str) -> None:
    lines = recipe_text(name).splitlines()
    assert lines[0].startswith("# ")
    bare = [line for line in lines if " = " in line and not re.search(r"# \S", line)]
    assert bare == []


def test_the_three_recipes_have_the_same_keys() -> None:
    """But for [model], which lists the framework's options that matter to the recipe."""
    assert len(FINETUNE) == 3
    keys = [
        {(section, key) for section, table in load_recipe(name).items() for key in table if section != "model"}
        for name in FINETUNE
    ]
    assert keys[0] == keys[1] == keys[2]


def test_opentrans_fine_tuning_as_published() -> None:
    """OpenTrans sec. 6.1 and the released configuration; AdamW where paper and code disagree."""
    recipe = load_recipe("deeplabv3-rn50-coco")
    assert (recipe["model"]["clip"], recipe["model"]["pretrained"], recipe["model"]["output_stride"]) == (
        "RN50",
        "openai",
        16,
    )
    assert recipe["optimizer"] == {"lr": 1.5e-4, "backbone_rate": 0.1, "weight_decay": 0.05, "clip_norm": 0.01}
    steps = recipe["training"]["steps"]
    assert (steps, recipe["training"]["batch"], recipe["augment"]["crop"]) == (50_000, 28, 512)
    assert [round(drop * steps) for drop in recipe["schedule"]["drops"]] == [40_000, 45_000]
    assert (recipe["schedule"]["kind"], recipe["schedule"]["drop_factor"]) == ("step", 0.1)
