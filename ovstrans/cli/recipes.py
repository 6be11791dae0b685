"""`ovstrans recipes`: the hyper-parameters that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ovstrans.cli import common, completion

app = typer.Typer(
    name="recipes",
    help="List, show and copy recipes: TOML files with every hyper-parameter of a run.",
    no_args_is_help=True,
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", autocompletion=completion.RECIPES, help="A recipe that `recipes list` names, or a TOML file."
    ),
]


@app.command("list")
def list_recipes(json: common.Json = None, force: common.Force = False, debug: common.Debug = False) -> None:
    """The recipes that ship with ovstrans, one line each."""
    common.start(debug=debug)
    from ovstrans import console
    from ovstrans.recipes.load import recipe_names, recipe_text

    common.check_json(json, force=force)
    found = {name: _summary(recipe_text(name)) for name in recipe_names()}
    if json != "-":
        console.table("recipes", ["name", "what it is for"], list(found.items()), words=["what it is for"])
    common.emit_json(json, {"schema": "ovstrans.recipes/1", "recipes": found}, force=force)


@app.command()
def show(name: Name, debug: common.Debug = False) -> None:
    """Print a recipe, comments and all."""
    common.start(debug=debug)
    from ovstrans import console
    from ovstrans.recipes.load import recipe_text

    console.show(recipe_text(name))


@app.command()
def copy(
    name: Name,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default NAME.toml here.")] = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Copy a recipe to a file to edit; run it with `--recipe FILE` of `finetune` or `prune`."""
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console, files
    from ovstrans.recipes.load import recipe_text

    text = recipe_text(name)
    path = files.check_output(out or Path(f"{Path(name).stem}.toml"), force=force)
    files.write_text(path, text)
    console.say(f"wrote {path}")


def _summary(text: str) -> str:
    """The first comment line of a recipe."""
    first = text.lstrip().split("\n", 1)[0]
    return first.lstrip("# ").rstrip(".") if first.startswith("#") else ""
