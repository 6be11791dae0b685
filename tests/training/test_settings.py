from __future__ import annotations

import copy
from typing import Any

import pytest

from ovstrans.errors import InputError
from ovstrans.recipes.load import load_recipe, recipe_names
from ovstrans.training.settings import differences, parse


def recipe() -> dict[str, Any]:
    return copy.deepcopy(load_recipe("deeplabv3-mini"))


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.startswith("prune")])
def test_shipped_recipes_parse_and_come_back(name: str) -> None:
    settings = parse(load_recipe(name), name)
    assert parse(settings.to_recipe(), name) == settings


def test_every_missing_key_is_named() -> None:
    whole = recipe()
    for section, keys in whole.items():
        for key in keys:
            if section == "model" and key not in ("framework", "clip", "pretrained"):
                continue  # an option of the framework, which has defaults
            broken = recipe()
            del broken[section][key]
            with pytest.raises(InputError, match=rf"{section}\.{key} is missing"):
                parse(broken, "r")
        broken = recipe()
        del broken[section]
        with pytest.raises(InputError, match=rf"\[{section}\] is missing"):
            parse(broken, "r")


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("optimizer", "lrr", 0.1, "unknown key optimizer.lrr .did you mean 'lr'"),
        ("optimizer", "lr", "fast", "optimizer.lr is 'fast'; a number"),
        ("optimizer", "lr", True, "optimizer.lr is True; a number"),
        ("optimizer", "lr", 0.0, "optimizer.lr is 0.0; it must be above 0"),
        ("optimizer", "lr", float("inf"), "optimizer.lr is inf; a finite number"),
        ("optimizer", "weight_decay", float("nan"), "optimizer.weight_decay is nan; a finite number"),
        ("optimizer", "lr", 10**400, "optimizer.lr is inf; a finite number"),
        ("augment", "scale", [0.5, float("inf")], "augment.scale is inf; a finite number"),
        ("model", "dropout", float("nan"), "model.dropout is nan; a finite number"),
        ("training", "batch", 65537, "between 1 and 65536"),
        ("training", "steps", 2.5, "training.steps is 2.5; a whole number"),
        ("training", "steps", 0, "training.steps is 0; it must be at least 1"),
        ("training", "norms", "off", "train or frozen"),
        ("training", "amp", "fp8", "auto, off, bf16, fp16"),
        ("training", "freeze_norms", 1, "true or false"),
        ("training", "plan_after", 250, "has 250 steps"),
        ("schedule", "kind", "exp", "constant, step, poly, cosine"),
        ("schedule", "drops", [2.0], "parts of the run"),
        ("augment", "scale", 1.0, "a list of numbers"),
        ("augment", "scale", ["a", "b"], "a list of numbers"),
        ("data", "images", -1, "data.images"),
    ],
)
def test_bad_values_say_which_and_what_is_needed(section: str, key: str, value: Any, words: str) -> None:
    broken = recipe()
    broken[section][key] = value
    with pytest.raises(InputError, match=words) as caught:
        parse(broken, "mine.toml")
    assert "mine.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(InputError, match="unknown section .optimiser. .did you mean 'optimizer'"):
        parse({**recipe(), "optimiser": {}}, "r")


def test_whole_numbers_stand_for_fractions() -> None:
    table = recipe()
    table["optimizer"]["lr"] = 1
    settings = parse(table, "r")
    assert settings.optimizer.lr == 1.0 and isinstance(settings.optimizer.lr, float)


def test_differences_name_both_values() -> None:
    first = parse(recipe(), "r")
    table = recipe()
    table["optimizer"]["lr"] = 0.5
    assert differences(first, first) == []
    assert differences(first, parse(table, "r")) == ["optimizer.lr is 0.001, not 0.5"]
