from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans.errors import InputError, MissingFileError
from ovstrans.recipes.load import differences, flatten, load_recipe, override, recipe_names, recipe_text

RECIPE = {"a": {"rate": 0.5, "steps": 3, "name": "x", "on": True, "list": [1]}, "top": 1}


def test_names_are_those_of_the_files() -> None:
    assert {"deeplabv3-mini", "deeplabv3-camvid-mini", "deeplabv3-rn50-coco", "prune-mini"} <= set(recipe_names())
    assert recipe_text("deeplabv3-mini").startswith("# DeepLabV3")


def test_settings_are_read_as_toml_and_lie_over_a_copy() -> None:
    changed = override(
        RECIPE, ["a.rate=2", "a.steps = 7", "a.name=word", 'a.name="two words"', "a.on=false", "a.list=[2, 3]"]
    )
    assert changed == {"a": {"rate": 2.0, "steps": 7, "name": "two words", "on": False, "list": [2, 3]}, "top": 1}
    assert isinstance(changed["a"]["rate"], float) and RECIPE["a"]["steps"] == 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("a.rate", "'a.rate' is not KEY=VALUE"),
        ("a.rat=1", r"`a\.rat=1`: no such key; did you mean 'a.rate'"),
        ("b.rate=1", "no such key"),
        ("a=1", "no such key"),
        ("a.steps=1.5", "a whole number is needed"),
        ("a.steps=true", "a whole number is needed"),
        ("a.on=1", "true or false is needed"),
        ("a.rate=fast", "a number is needed"),
        ("a.rate=nan", "a finite number is needed"),
    ],
)
def test_bad_settings_are_refused(setting: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        override(RECIPE, [setting])


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[a]\nrate = 0.25\n")
    assert load_recipe(str(path), ["a.rate=1.5"]) == {"a": {"rate": 1.5}}
    path.write_text("[a\n")
    with pytest.raises(InputError, match="not valid TOML"):
        load_recipe(str(path))
    with pytest.raises(MissingFileError, match="no such recipe file"):
        load_recipe(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="did you mean 'deeplabv3-mini'"):
        load_recipe("deeplab-mini")


def test_settings_of_a_recipe_follow_its_schema() -> None:
    assert load_recipe("prune-mini", ["schedule.drops=[0.5]"])["schedule"]["drops"] == [0.5]
    with pytest.raises(InputError, match="above 0 and below 1"):
        load_recipe("prune-mini", ["schedule.drops=[1.5]"])


def test_flatten_keeps_order_and_joins_keys() -> None:
    assert list(flatten({"a": {"b": {"c": 1}}, "d": 2})) == ["a.b.c", "d"]


def test_differences_name_the_stored_value_first() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c is 2, not 3"]
    assert differences({"a": 1}, {"a": 1, "b": 2}) == ["b is None, not 2"]
    assert differences({"a": 1}, {"a": 1}) == []
