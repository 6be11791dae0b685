"""The subcommands of `ovstrans`, gathered.

Importing this module must stay cheap: no torch, numpy or matplotlib at the top of any file here.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ovstrans.cli import analyze, bench, data, demo, export, finetune, inspect, predict, prune, recipes
from ovstrans.version import __version__

app = typer.Typer(
    name="ovstrans",
    help="Make open-vocabulary segmentation cheap: prune CLIP once, transfer the mask, count honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(prune.prune)
app.command()(analyze.analyze)
app.command()(finetune.finetune)
app.command(cls=bench.BenchCommand)(bench.bench)
app.command()(predict.predict)
app.command()(export.export)
app.command()(inspect.inspect)
app.command()(demo.demo)
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ovstrans {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of the program itself."""
