"""The generated references list every command, argument, option and key of a recipe."""

from __future__ import annotations

import re

from tests.docs.pages import load_script

SCRIPT = load_script("cli_reference")
COMMANDS = dict(SCRIPT["leaf_commands"]())
TEXT: str = SCRIPT["cli_reference"]()


def section(command: str) -> str:
    return TEXT.split(f"\n## ovstrans {command}\n")[1].split("\n## ")[0]


def test_every_option_of_every_command_is_there_with_its_help() -> None:
    assert len(COMMANDS) >= 15
    for name, command in COMMANDS.items():
        text = section(name)
        for parameter in command.params:
            if getattr(parameter, "hidden", False):
                continue
            words = parameter.opts + parameter.secondary_opts if parameter.param_type_name == "option" else []
            for word in words:
                assert re.search(rf"`{re.escape(word)}`", text), f"{name} {word}"
            assert " ".join((parameter.help or "").split()) in text, f"{name} {parameter.name}"


def test_commands_of_the_shared_options_are_listed() -> None:
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \|.*\| (`.*`) \|$", TEXT, re.MULTILINE))
    having = {
        option: {name for name, command in COMMANDS.items() if any(option in each.opts for each in command.params)}
        for option in SCRIPT["SHARED"]
    }
    assert {option: set(re.findall("`([^`]+)`", names)) for option, names in rows.items()} == having
    assert having["--debug"] == set(COMMANDS)


def test_exit_statuses_are_listed() -> None:
    from ovstrans.cli import INTERRUPTED, TERMINATED
    from ovstrans.errors import CheckFailed, InputError

    for status in (InputError.exit_status, CheckFailed.exit_status):
        assert f"\n| {status} |" in TEXT
    assert f"\n| {INTERRUPTED}, {TERMINATED} |" in TEXT


def test_every_key_of_every_recipe_is_there() -> None:
    from ovstrans.recipes.schema import FinetuneRecipe, PruneRecipe, keys_of

    text = load_script("recipe_reference")["recipe_reference"]()
    for kind in (FinetuneRecipe, PruneRecipe):
        part = text.split(f"## Keys of {kind.command}\n")[1].split("\n## ")[0]
        for name in keys_of(kind):
            section, _, key = name.partition(".")
            assert f"| `{key}` |" in part.split(f"### [{section}] of {kind.command}\n")[1].split("\n### ")[0], name
