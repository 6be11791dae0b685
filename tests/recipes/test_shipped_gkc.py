"""The recipes of GKC: every value explained, the published ones as published, all of them buildable."""

from __future__ import annotations

import re

import pytest
import torch

from ovstrans.clip.load import create_image_encoder
from ovstrans.clip.text import TextClassifier
from ovstrans.frameworks.gkc import GKC
from ovstrans.recipes.load import load_recipe, recipe_text
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.vocabulary.vocabulary import Vocabulary

RECIPES = ("gkc-mini", "gkc-rn50-coco", "gkc-rn101-coco")


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_has_a_comment(name: str) -> None:
    lines = recipe_text(name).splitlines()
    assert lines[0].startswith("# ")
    assert [line for line in lines if " = " in line and not re.search(r"# \S", line)] == []


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_whole_and_its_options_fit(name: str) -> None:
    settings = FinetuneRecipe.parse(load_recipe(name), name)
    keys = {section: set(table) for section, table in load_recipe(name).items() if section != "model"}
    other = {section: set(table) for section, table in load_recipe("deeplabv3-mini").items() if section != "model"}
    assert keys == other
    with torch.device("meta"):
        encoder = create_image_encoder(settings.model.clip)
        text = TextClassifier(torch.empty(1, encoder.output_dim), torch.zeros(1).long(), Vocabulary("one", (("a",),)))
        framework = GKC(encoder=encoder, mean=(0.5,) * 3, std=(0.2,) * 3, text=text, options=settings.model.options)
    assert framework.target_requirements.teacher and framework.target_requirements.captions


def test_open_trans_fine_tuning_as_published() -> None:
    """OpenTrans sec. 6.1 and the released configuration; AdamW where paper and code disagree."""
    recipe = load_recipe("gkc-rn50-coco")
    model, steps = recipe["model"], recipe["training"]["steps"]
    assert (model["framework"], model["clip"], model["pretrained"]) == ("gkc", "RN50", "openai")
    assert recipe["optimizer"] == {"lr": 1.5e-4, "backbone_rate": 0.1, "weight_decay": 0.05, "clip_norm": 0.01}
    assert (steps, recipe["training"]["batch"], recipe["augment"]["crop"]) == (50_000, 28, 512)
    assert [round(drop * steps) for drop in recipe["schedule"]["drops"]] == [40_000, 45_000]
    weights = ("mask_weight", "dice_weight", "class_weight", "grounding_weight", "distill_weight", "void_weight")
    assert [model[key] for key in weights] == [5, 5, 2, 2, 2, 0.1]
    published = {key: model[key] for key in model if key not in ("framework", "clip", "pretrained")}
    assert published == {key: GKC.defaults[key] for key in published}  # what is published is the default


def test_text_diversification_as_released() -> None:
    recipe, other = load_recipe("gkc-rn101-coco"), load_recipe("gkc-rn50-coco")
    assert (recipe["model"]["clip"], recipe["model"]["synonyms"], recipe["model"]["void_weight"]) == (
        "RN101",
        "random",
        0.05,
    )
    assert (recipe["training"]["batch"], recipe["optimizer"]["lr"]) == (56, 3e-4)
    assert recipe["schedule"] == other["schedule"] and recipe["augment"] == other["augment"]
