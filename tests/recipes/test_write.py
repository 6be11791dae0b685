from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.recipes.load import load_recipe, recipe_names
from ovstrans.recipes.write import toml_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
PLAIN = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), TEXT)
TABLE = st.recursive(
    st.dictionaries(TEXT, st.one_of(PLAIN, st.lists(PLAIN, max_size=3)), max_size=4),
    lambda inner: st.dictionaries(TEXT, st.one_of(PLAIN, inner), max_size=3),
    max_leaves=8,
)


@given(TABLE)
def test_whatever_is_written_is_read_back(table: dict) -> None:
    assert tomllib.loads(toml_text(table)) == table


def test_kinds_stay_apart_and_none_is_left_out() -> None:
    table = {"a": 1, "b": 1.0, "c": True, "d": None, "e": {"x.y": "z"}, "f": {}}
    back = tomllib.loads(toml_text(table))
    assert back == {"a": 1, "b": 1.0, "c": True, "e": {"x.y": "z"}, "f": {}}
    assert [type(back[key]) for key in "abc"] == [int, float, bool]
    assert math.isnan(tomllib.loads(toml_text({"n": math.nan}))["n"])


def test_what_toml_has_no_form_for_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        toml_text({"a": {1, 2}})


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_survive(name: str) -> None:
    assert tomllib.loads(toml_text(load_recipe(name))) == load_recipe(name)
