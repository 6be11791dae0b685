"""What ships: every value explained, and the published one as published."""

from __future__ import annotations

import re

import pytest

from ovstrans.frameworks import registry
from ovstrans.frameworks.registry import build_on_meta
from ovstrans.recipes.load import load_recipe, recipe_names, recipe_text
from ovstrans.recipes.schema import FinetuneRecipe

FINETUNE = [name for name in recipe_names() if "framework" in load_recipe(name).get("model", {})]


@pytest.mark.parametrize("name", FINETUNE)
def test_every_value_has_a_comment(name: str) -> None:
    lines = recipe_text(name).splitlines()
    assert lines[0].startswith("# ")
    bare = [line for line in lines if " = " in line and not re.search(r"# \S", line)]
    assert bare == []


def test_fine_tuning_recipes_have_the_same_keys() -> None:
    """But for [model], which lists the framework's options that matter to the recipe."""
    assert {"deeplabv3-mini", "deeplabv3-rn50-coco", "fcclip-mini", "fcclip-rn50-coco"} <= set(FINETUNE)
    keys = [
        {(section, key) for section, table in load_recipe(name).items() for key in table if section != "model"}
        for name in FINETUNE
    ]
    assert all(each == keys[0] for each in keys)


@pytest.mark.parametrize("name", FINETUNE)
def test_fine_tuning_recipes_can_be_built(name: str) -> None:
    """Every key and every option of the framework is known, of its kind and within range."""
    settings = FinetuneRecipe.parse(load_recipe(name), name)
    model = settings.model
    assert name.startswith(f"{model.framework}-")
    build_on_meta(model.framework, model.clip, options=model.options)


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


@pytest.mark.parametrize(
    ("name", "clip", "tag", "trunk"),
    [
        ("fcclip-rn50-coco", "RN50", "openai", "train"),
        ("fcclip-convnext-l-coco", "convnext_large_d_320", "laion2b_s29b_b131k_ft_soup", "frozen"),
    ],
)
def test_fcclip_as_published(name: str, clip: str, tag: str, trunk: str) -> None:
    """FC-CLIP's released configuration; the trunk of RN50 trains as in OpenTrans sec. 6.1."""
    recipe = load_recipe(name)
    model, steps = recipe["model"], recipe["training"]["steps"]
    assert (model["clip"], model["pretrained"], model["trunk"]) == (clip, tag, trunk)
    published = registry.default_options("fcclip")
    assert {key: value for key, value in model.items() if published.get(key, value) != value} == (
        {} if trunk == "frozen" else {"trunk": "train"}
    )
    assert recipe["optimizer"] == {"lr": 1e-4, "backbone_rate": 0.1, "weight_decay": 0.05, "clip_norm": 0.01}
    assert (steps, recipe["training"]["batch"], recipe["augment"]["crop"]) == (368_750, 16, 1024)
    assert [round(drop * steps) for drop in recipe["schedule"]["drops"]] == [327_778, 355_092]
    assert (recipe["augment"]["scale"], recipe["augment"]["flip"]) == ([0.1, 2.0], 0.5)


@pytest.mark.parametrize("name", [name for name in FINETUNE if name.endswith("-coco")])
def test_a_photograph_at_scale_one_fits_the_published_box(name: str) -> None:
    """The released mappers fit the whole image into a square box of the crop's side: its long side, not its short."""
    augment = load_recipe(name)["augment"]
    height, width = 480, 640  # of most COCO images
    factor = augment["short_side"] / height
    assert (factor * width, factor * height) == (augment["crop"], augment["crop"] * 3 / 4)
