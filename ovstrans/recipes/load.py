"""Recipes: TOML files with every hyper-parameter of a run, shipped with the package or a user's own.

A recipe is a table of plain values, in sections. `override` changes entries by dotted key and
accepts only keys that exist, so that a typing error cannot pass for a setting.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from ovstrans.errors import InputError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Recipe = dict[str, Any]

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list"}
"""The kinds of value that a recipe holds, in the user's words."""


def recipe_names() -> list[str]:
    """The names of the recipes that ship with the package, sorted."""
    return sorted(
        item.name[: -len(".toml")]
        for item in package_files("ovstrans.recipes").iterdir()
        if item.name.endswith(".toml")
    )


def recipe_text(name: str) -> str:
    """The text of a shipped recipe (`deeplabv3-mini`) or of a file; InputError where neither exists."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        if not path.is_file():
            raise InputError(f"{name}: no such recipe file")
        try:
            return path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise InputError(f"{name}: not a readable text file ({error})") from error
    if name not in recipe_names():
        hint = did_you_mean(name, recipe_names())
        raise InputError(f"recipe {name!r}: unknown; {hint}shipped are {', '.join(recipe_names())}")
    return (package_files("ovstrans.recipes") / f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """A shipped recipe or a TOML file, with `KEY=VALUE` settings laid over it.

    Raises InputError for an unknown name, broken TOML, an unknown key or a value of another kind.
    """
    try:
        recipe = tomllib.loads(recipe_text(name))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {name}: not valid TOML ({error})") from error
    return override(recipe, settings)


def override(recipe: Mapping[str, Any], settings: Sequence[str]) -> Recipe:
    """A copy of `recipe` with `section.key=value` settings applied; values are read as TOML.

    A bare word that is not TOML counts as a string. The new value must be of the kind of the old one
    (a whole number may stand where a fraction was).
    """
    result: Recipe = copy.deepcopy(dict(recipe))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: write KEY=VALUE, for instance optimizer.lr=0.001")
        key = key.strip()
        table: Any = result
        *sections, last = key.split(".")
        for section in sections:
            table = table.get(section) if isinstance(table, dict) else None
        if not isinstance(table, dict) or last not in table or isinstance(table[last], dict):
            known = flatten(result)
            hint = did_you_mean(key, known)
            raise InputError(f"--set {key}: no such key; {hint}known are {', '.join(known)}")
        table[last] = _same_kind(key, table[last], _value(text.strip()))
    return result


def flatten(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe as one flat table with dotted keys, in order."""
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _same_kind(key: str, old: Any, new: Any) -> Any:
    if isinstance(old, bool) or isinstance(new, bool):
        fits = isinstance(old, bool) and isinstance(new, bool)
    elif isinstance(old, float):
        fits = isinstance(new, (int, float))
        new = float(new) if fits else new
    else:
        fits = isinstance(new, type(old))
    if not fits:
        words = _WORDS.get(type(old), f"a {type(old).__name__}")
        raise InputError(f"--set {key}={new}: {words} is needed, like {old!r}")
    return new
