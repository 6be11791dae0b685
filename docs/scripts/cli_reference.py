"""The command line reference as Markdown, made from the commands themselves.

mkdocs loads this file as a hook and gets the page `reference/cli.md` from it, so the page always lists every option
of every command. `python docs/scripts/cli_reference.py` prints the page.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

PAGE = "reference/cli.md"
SHARED = ("--json", "--device", "--seed", "--data-root", "--force", "--quiet", "--debug")
"""Options that several commands have, listed once at the top of the page with the commands that take them."""

_INTRODUCTION = """\
# Command line

Every command prints its help with `--help`. This page is generated from the same source and lists every option.

MODEL is the name of an open_clip model, DATA is `NAME[:SPLIT]` or `folder:PATH[:SPLIT]`
(see [Datasets](../guide/datasets.md)), RUN is a folder that `finetune` wrote.
Outputs that exist already are never overwritten without `--force`, except the pictures in `ovstrans-out/bench/`.

## Exit status

| status | meaning |
|---|---|
| 0 | done |
| 1 | a bug in ovstrans; `--debug` shows the traceback |
| 2 | bad input or usage; one line says what is wrong and what to do |
| 3 | a check failed: `bench --check` found a changed cost, or `inspect --verify` a file that is not what it claims |
| 130, 143 | interrupted or terminated, after saving; the message says how to resume |

## Options that several commands share
"""
_TYPES = {"str": "TEXT", "int": "INTEGER", "float": "FLOAT", "Path": "PATH"}


def cli_reference() -> str:
    """Return the page as Markdown."""
    commands = dict(leaf_commands())
    lines = [_INTRODUCTION, "| option | meaning | commands |", "|---|---|---|"]
    for option in SHARED:
        found = {name: parameter for name, command in commands.items() if (parameter := _option(command, option))}
        names = ", ".join(f"`{name}`" for name in found)
        lines.append(f"| `{option}` | {_cell(next(iter(found.values())).help)} | {names} |")
    for name, command in commands.items():
        lines += ["", *_command(name, command)]
    return "\n".join(lines) + "\n"


def leaf_commands(command: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, command) for every command that does something; `data list` counts, `data` does not."""
    if command is None:
        from typer.main import get_command

        from ovstrans.cli.app import app

        command = get_command(app)
    if not hasattr(command, "list_commands"):
        yield name, command
        return
    for word in command.list_commands(None):
        yield from leaf_commands(command.get_command(None, word), f"{name} {word}".strip())


def _option(command: Any, flag: str) -> Any:
    return next((parameter for parameter in command.params if flag in parameter.opts), None)


def _command(name: str, command: Any) -> Iterator[str]:
    """Yield the section of one command: heading, usage, help text, arguments, options by group."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    yield f"## ovstrans {name}"
    yield ""
    yield f"`ovstrans {' '.join([name, *map(_usage, arguments), '[OPTIONS]'])}`"
    yield ""
    yield inspect.cleandoc(command.help or "").replace("\f", "")
    from ovstrans.cli.app import EXAMPLES

    yield from ("", "```sh", *EXAMPLES.get(name, ()), "```")
    if arguments:
        yield from ("", "**Arguments**", "")
        for each in arguments:
            yield from _entry(f"`{_usage(each)}`", each)
    groups = dict.fromkeys(option.rich_help_panel or "Options" for option in options)
    for group in groups:
        yield from ("", f"**{group}**", "")
        for each in options:
            if (each.rich_help_panel or "Options") == group:
                yield from _entry(_flags(each), each)


def _usage(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _flags(option: Any) -> str:
    """All spellings of an option, with the word for its value: "`--images`, `-n` INTEGER"."""
    spellings = [*sorted(option.opts, key=len, reverse=True), *option.secondary_opts]
    text = ", ".join(f"`{spelling}`" for spelling in spellings)
    return text if option.is_flag else f"{text} `{_value_word(option)}`"


def _value_word(option: Any) -> str:
    if option.metavar:
        return str(option.metavar)
    if getattr(option, "type", None) is not None:  # older versions of typer use click's types
        return str(option.type.name).upper()
    annotation = option.type_descriptor.annotation
    inner = getattr(annotation, "__args__", [annotation])[0]
    return _TYPES.get(inner.__name__, inner.__name__.upper())


def _entry(term: str, parameter: Any) -> Iterator[str]:
    """Yield an entry of a definition list."""
    default = parameter.default
    shown = default is not None and default is not False and not callable(default) and default not in ((), [], "")
    if shown and default is not True:
        end = f" Default: `{default}`."
    elif shown:
        end = " On by default."
    else:
        end = ""
    yield term
    yield f":   {' '.join((parameter.help or '').split())}{end}"
    yield ""


def _cell(text: str) -> str:
    return " ".join((text or "").split()).replace("|", r"\|")


def on_files(files: Any, config: Any) -> Any:
    """Add the page to the site; mkdocs calls this."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=cli_reference()))
    return files


if __name__ == "__main__":
    print(cli_reference(), end="")
