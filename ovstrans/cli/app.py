"""The program as a whole: its help, --version and completion, and the examples that end the help of every command.

A subcommand that is named first on the command line runs without this module; see `cli.main`.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import cleandoc
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ovstrans.cli.main import COMMANDS, HELP_FLAGS, load_command
from ovstrans.version import __version__

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "": (
        "ovstrans demo",
        "ovstrans prune RN50 --pretrained openai --data folder:photos",
        "ovstrans finetune gkc --mask mask.safetensors --data folder:street",
    ),
    "prune": (
        "ovstrans prune",
        "ovstrans prune RN50 --pretrained openai --data folder:photos --dry-run",
        "ovstrans prune RN50 --method magnitude --sparsity 0.8 --out rn50.safetensors",
    ),
    "analyze": ("ovstrans analyze", "ovstrans analyze RN50 --pretrained openai --plot --out rn50-alpha.json"),
    "finetune": (
        "ovstrans finetune",
        "ovstrans finetune gkc --mask mask.safetensors --data folder:street --out run",
        "ovstrans finetune fcclip --steps 500 --set optimizer.lr=0.0002 --dry-run",
    ),
    "bench": (
        "ovstrans bench",
        "ovstrans bench run --data folder:street:val --json report.json",
        "ovstrans bench deeplabv3 gkc fcclip --model RN50 --image-size 640x640",
    ),
    "predict": (
        'ovstrans predict photo.jpg --classes "road, a red car, sky"',
        "ovstrans predict run photos/ --out look",
    ),
    "export": (
        "ovstrans export run --format dense --out dense.safetensors",
        "ovstrans export mask.safetensors --out pruned.safetensors",
    ),
    "inspect": ("ovstrans inspect ovstrans-out/mask.safetensors", "ovstrans inspect run --verify"),
    "demo": ("ovstrans demo", "ovstrans demo --steps 40 --images 20 --out quick"),
    "data": ("ovstrans data list", "ovstrans data check folder:street"),
    "data list": ("ovstrans data list", "ovstrans data list ade20k-150 --data-root /data"),
    "data check": ("ovstrans data check folder:street", "ovstrans data check camvid:val"),
    "data show": ("ovstrans data show", "ovstrans data show folder:street:train -n 12 --out street.png"),
    "data prepare": ("ovstrans data prepare ade20k-150:val --out prepared",),
    "models": ("ovstrans models list",),
    "models list": ("ovstrans models list", "ovstrans models list 'RN50*'", "ovstrans models list --all --json -"),
    "recipes": ("ovstrans recipes list", "ovstrans recipes copy prune-rn50"),
    "recipes list": ("ovstrans recipes list",),
    "recipes show": ("ovstrans recipes show deeplabv3-mini",),
    "recipes copy": ("ovstrans recipes copy prune-rn50 --out mine.toml",),
}
"""Name of a command, "" for the program itself, to its examples, each a command line."""


def epilog(name: str) -> str:
    """Return the end of the help of a command; each example is a paragraph, which keeps it on a line of its own."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES.get(name, ()))])


def complete_help(command: Any, name: str) -> None:
    """Make the help of a command ready to be shown, and of those inside it.

    Each paragraph becomes one line, so that it wraps at the width of the terminal alone; one with an indented line, or
    that begins with a backspace, keeps its lines. The examples are the end.
    """
    paragraphs = cleandoc(command.help or "").split("\n\n")
    kept = [text if "\n " in f"\n{text}" or text.startswith("\b") else " ".join(text.split()) for text in paragraphs]
    command.help, command.epilog = "\n\n".join(kept), epilog(name)
    for inner, each in getattr(command, "commands", {}).items():
        complete_help(each, f"{name} {inner}")


class LazyGroup(TyperGroup):
    """A group whose subcommands are imported on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the subcommands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a subcommand; None for an unknown name."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.commands[cmd_name] = load_command(cmd_name)
            complete_help(self.commands[cmd_name], cmd_name)
        return self.commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; it shows one sentence of each subcommand, for which none has to be imported."""
        loaded = self.commands
        self.commands = {name: TyperCommand(name, help=summary) for name, summary in COMMANDS.items()}
        super().format_help(ctx, formatter)
        self.commands = loaded


app = typer.Typer(
    name="ovstrans",
    cls=LazyGroup,
    help="Make open-vocabulary segmentation cheap: prune CLIP once, transfer the mask, count the costs.",
    no_args_is_help=True,
    epilog=epilog(""),
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": [*HELP_FLAGS]},
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
