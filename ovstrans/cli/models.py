"""`ovstrans models`: the CLIPs that can be pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ovstrans.cli import common, completion

if TYPE_CHECKING:
    from ovstrans.clip.catalog import ModelStatus

app = typer.Typer(
    name="models",
    help="List the CLIPs that can be pruned.",
    no_args_is_help=True,
)

_TAGS_SHOWN = 3


@app.callback()
def _group() -> None:  # without it, typer makes the only command the program itself
    """List the CLIPs that can be pruned."""


@app.command("list")
def list_models(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATTERN]",
            autocompletion=completion.MODELS,
            help="Only models whose name matches, such as 'RN50*'.",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also open_clip's models that cannot be pruned, with the reason.")
    ] = False,
    json: common.Json = None,
    force: common.Force = False,
    debug: common.Debug = False,
) -> None:
    """List the models of open_clip that can be pruned, with their sizes and the tags of their weights.

    Prunable are the weights of the image encoder's body, which `prune` ranks unless --scope says otherwise.
    """
    common.start(debug=debug)
    from ovstrans import console
    from ovstrans.clip.catalog import list_models as run

    common.check_json(json, force=force)
    models = run(pattern, unsupported=True)
    shown = [each for each in models if every or pattern is not None or not each.unsupported]
    if json != "-":
        left = len(models) - len(shown)
        caption = f"open_clip has {left} more that cannot be pruned: --all lists them with the reason" if left else ""
        columns = ["model", "image size", "image encoder", "prunable", "tags"]
        rows = [_row(each, all_tags=pattern is not None) for each in shown]
        console.table("models", columns, rows, caption=caption, words=["tags"])
    entries = {each.name: each.to_json() for each in shown}
    common.emit_json(json, {"schema": "ovstrans.models/1", "models": entries}, force=force)


def _row(model: ModelStatus, *, all_tags: bool) -> list[str]:
    """Return the cells of a model: parameters in millions, and its tags or why it cannot be pruned."""
    tags = list(model.tags)
    if len(tags) > _TAGS_SHOWN and not all_tags:
        tags = [*tags[:_TAGS_SHOWN], f"{len(tags) - _TAGS_SHOWN} more"]
    last = model.unsupported or ", ".join(tags) or "none (give a file)"
    return [model.name, str(model.image_size), _millions(model.image_encoder), _millions(model.prunable), last]


def _millions(number: int | None) -> str:
    return "-" if number is None else f"{number / 1e6:.1f} M"
