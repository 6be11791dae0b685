"""Recipe files, shipped with the package or written by a user, and changes to what they say.

A table is a recipe as plain values in sections. `resolve` lays settings and options over one and checks the result
against the schema.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, TypeVar

from ovstrans.errors import InputError, MissingFileError, did_you_mean
from ovstrans.files import existing_file
from ovstrans.parsing import LARGEST_TOML, parse_toml, read_text
from ovstrans.recipes.keys import finite
from ovstrans.recipes.schema import Recipe, Table, keys_of, kind_of, option_keys

Settings = Sequence[str] | Mapping[str, Any]
"""Changes to a recipe: `["optimizer.lr=0.001"]`, values written as in TOML, or `{"optimizer.lr": 0.001}`."""

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list"}

R = TypeVar("R", bound=Recipe)


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package, sorted."""
    return sorted(
        item.name[: -len(".toml")]
        for item in package_files("ovstrans.recipes").iterdir()
        if item.name.endswith(".toml")
    )


def recipe_text(name: str) -> str:
    """Return the text of a recipe.

    Args:
        name: Name of a shipped recipe, such as `deeplabv3-mini`, or path of a TOML file.

    Raises:
        MissingFileError: The file does not exist.
        InputError: No recipe has this name, or the file is not text.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        if not path.exists() or path.is_dir():
            raise MissingFileError(f"{name}: no such recipe file")
        try:
            return read_text(existing_file(path), LARGEST_TOML)
        except UnicodeDecodeError as error:
            from ovstrans.file_kinds import recognize, refusal

            kind = recognize(path)
            known = refusal(path, "a recipe") if kind is not None else f"{name}: not a readable text file ({error})"
            raise InputError(known) from error
    if name not in recipe_names():
        hint = did_you_mean(name, recipe_names())
        raise InputError(f"recipe {name!r}: unknown; {hint}shipped are {', '.join(recipe_names())}")
    return (package_files("ovstrans.recipes") / f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(name: str, settings: Settings = ()) -> Table:
    """Return the table of a recipe, with changes.

    Args:
        name: As of `recipe_text`.
        settings: Changes by key, see `override`.

    Raises:
        InputError: As `recipe_text` and `override`, and for a file that is not TOML.
    """
    try:
        table = parse_toml(recipe_text(name))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"recipe {name}: not valid TOML ({error})") from error
    return override(table, settings, kind_of(table))


def resolve(
    kind: type[R],
    table: Mapping[str, Any],
    origin: str,
    *,
    settings: Settings = (),
    options: Mapping[str, Any] | None = None,
) -> R:
    """Return the recipe of a table with settings, and options over these.

    Args:
        kind: Kind of recipe to make.
        table: Sections of plain values.
        origin: Name of the recipe, for messages.
        settings: Changes by key.
        options: Changes by name of the option; None stands for an option that was not given.

    Raises:
        InputError: A key is unknown or missing, or a value does not fit.
        TypeError: No key has an option of this name.
    """
    changed = override(table, settings, kind)
    keys = option_keys(kind)
    for name, value in (options or {}).items():
        if name not in keys:
            raise TypeError(f"unknown option {name!r}; {did_you_mean(name, keys)}options are {', '.join(keys)}")
        for key in keys[name] if value is not None else ():
            _put(changed, key.name, key.check(value, f"`{name}={value}`"))
    return kind.parse(changed, origin)


def override(table: Mapping[str, Any], settings: Settings, kind: type[Recipe] | None = None) -> Table:
    """Return a copy of a recipe with changes.

    Args:
        table: Sections of plain values.
        settings: Changes by key.
        kind: Kind of recipe whose keys may be set even where the table leaves them out. Keys that no schema knows,
            such as options of a framework, must be in the table and keep their type.

    Raises:
        InputError: A setting is not of the form KEY=VALUE, its key is unknown, or its value does not fit.
    """
    changed: Table = copy.deepcopy(dict(table))
    known = keys_of(kind) if kind is not None else {}
    for name, value in read_settings(settings).items():
        present = flatten(changed)
        where = f"`{name}={value}`"
        if name in known:
            value = known[name].check(value, where)
        elif name in present:
            value = _keep_type(present[name], value, where)
        else:
            names = [*dict.fromkeys((*known, *present))]
            raise InputError(f"{where}: no such key; {did_you_mean(name, names)}known are {', '.join(names)}")
        _put(changed, name, value)
    return changed


def read_settings(settings: Settings) -> dict[str, Any]:
    """Return settings as a mapping from key to value; text that is not TOML is a string.

    Raises:
        InputError: A setting is not of the form KEY=VALUE.
    """
    if isinstance(settings, Mapping):
        return flatten(settings)
    found = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"`settings`: {text!r} is not KEY=VALUE, such as optimizer.lr=0.001")
        found[name.strip()] = _toml_value(value.strip())
    return found


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a table as a flat one with dotted keys, in order."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return how two tables differ, such as "optimizer.lr is 0.1, not 0.2" (the stored value first)."""
    old, new = flatten(stored), flatten(wanted)
    return [
        f"{key} is {old.get(key)!r}, not {new.get(key)!r}" for key in {**old, **new} if old.get(key) != new.get(key)
    ]


def _put(table: Table, name: str, value: Any) -> None:
    """Set the value of a key by its full name, making its section where it is missing."""
    value = list(value) if isinstance(value, tuple) else value
    section, _, key = name.rpartition(".")
    if not isinstance(table.setdefault(section, {}) if section else table, dict):
        return  # what stands there is refused, with its name, when the table is parsed
    (table[section] if section else table)[key] = value


def _keep_type(old: Any, new: Any, where: str) -> Any:
    """Return the new value of an option, in the type of the old one."""
    if isinstance(old, bool) or isinstance(new, bool):
        fits = isinstance(old, bool) and isinstance(new, bool)
    elif isinstance(old, float):
        fits = isinstance(new, (int, float))
        new = finite(new, where) if fits else new
    else:
        fits = isinstance(new, type(old))
    if not fits:
        words = _WORDS.get(type(old), f"a {type(old).__name__}")
        raise InputError(f"{where}: {words} is needed, like {old!r}")
    return new


def _toml_value(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


@contextmanager
def explain_recorded(where: str, key: str, option: str) -> Iterator[None]:
    """Say which file records a name that does not work: the user did not type it.

    Args:
        where: The file that records it; "" if the user gave it.
        key: Its entry there.
        option: The option that replaces it; "" if none does.

    Raises:
        InputError: The one that the block raises, with this said.
    """
    try:
        yield
    except InputError as error:
        if not where:
            raise
        instead = f"`{option}` replaces it" if option else "correct it there"
        raise type(error)(f"{error} ({where} records it as {key}; {instead})") from error
