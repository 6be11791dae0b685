"""The subcommands of `ovstrans`, each imported when it is asked for.

Importing this module, or that of a command, must stay cheap: no torch, numpy or matplotlib at the top of any file here.
"""

from __future__ import annotations

from importlib import import_module
from inspect import cleandoc
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from ovstrans.cli.examples import epilog
from ovstrans.version import __version__

COMMANDS = (
    "prune",
    "analyze",
    "finetune",
    "bench",
    "predict",
    "export",
    "inspect",
    "demo",
    "data",
    "recipes",
    "models",
)
"""The subcommands in the order of the help; each is a module `cli.NAME` with a function NAME or a Typer `app`."""


class LazyGroup(TyperGroup):
    """A group whose subcommands are imported on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the subcommands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a subcommand; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            module: Any = import_module(f"ovstrans.cli.{cmd_name}")
            program = getattr(module, "app", None)
            if program is None:
                program = typer.Typer(add_completion=False)
                program.command(cmd_name, cls=getattr(module, "COMMAND_CLASS", None))(getattr(module, cmd_name))
            self.commands[cmd_name] = get_command(program)
            self.commands[cmd_name].name = cmd_name
            _join_lines(self.commands[cmd_name])
            _add_examples(self.commands[cmd_name], cmd_name)
        return self.commands[cmd_name]


def _join_lines(command: Any) -> None:
    """Make each paragraph of a command's help one line, so that it wraps at the width of the terminal alone.

    A paragraph with an indented line, or one that begins with a backspace, keeps its lines.
    """
    paragraphs = cleandoc(command.help or "").split("\n\n")
    kept = [text if "\n " in f"\n{text}" or text.startswith("\b") else " ".join(text.split()) for text in paragraphs]
    command.help = "\n\n".join(kept)
    for inner in getattr(command, "commands", {}).values():
        _join_lines(inner)


def _add_examples(command: Any, name: str) -> None:
    """End the help of a command, and of those inside it, with its examples."""
    command.epilog = epilog(name)
    for inner, each in getattr(command, "commands", {}).items():
        _add_examples(each, f"{name} {inner}")


app = typer.Typer(
    name="ovstrans",
    cls=LazyGroup,
    help="Make open-vocabulary segmentation cheap: prune CLIP once, transfer the mask, count the costs.",
    no_args_is_help=True,
    epilog=epilog(""),
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ovstrans {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of the program itself."""
