"""`ovstrans prune`: make a transferable sparse subnetwork of a CLIP image encoder, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovstrans.cli import common, completion
from ovstrans.files import OUTPUT_DIR
from ovstrans.recipes.schema import PruneRecipe

if TYPE_CHECKING:
    from ovstrans.pruning.result import PruneResult

_HOW = "How to prune"
_DISTIL = "Distillation"


@common.recipe_options(
    PruneRecipe, after="pretrained", panel=_DISTIL, panels={"prune": _HOW, "prune.steps": _DISTIL, "run": "Common"}
)
def prune(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="An open_clip model, see `ovstrans models list`; default the model of --like, or RN-mini.",
            autocompletion=completion.MODELS,
        ),
    ] = None,
    *,
    pretrained: common.Pretrained = None,
    like: Annotated[
        Path | None, typer.Option(metavar="MASK", help="With random: the densities of this mask.", rich_help_panel=_HOW)
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Recipe; by default the one for the model and the loss.",
            autocompletion=completion.PRUNE_RECIPES,
        ),
    ] = None,
    settings: common.RecipeSettings = None,
    out: Annotated[Path, typer.Option(help="Mask file to write; weights and plot go beside it.")] = OUTPUT_DIR
    / "mask.safetensors",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run at --out.")] = False,
    dry_run: common.DryRun = False,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Draw the density of every layer.")] = True,
    data_root: common.DataRoot = None,
    json: common.Json = None,
    device: common.Device = "auto",
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
    **options: Any,
) -> None:
    """Prune a CLIP image encoder into a mask that serves every framework.

    Global magnitude pruning in rounds, with distillation from the dense encoder on unlabelled images
    between them. Without arguments: the bundled mini CLIP on generated scenes, to 90 % zeros.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console
    from ovstrans.pruning.prune import prune as run
    from ovstrans.pruning.result import output_paths, state_path

    common.check_json(json, force=force or resume, outputs=[*output_paths(out), state_path(out)])
    given: dict[str, Any] = {
        "pretrained": pretrained,
        "like": like,
        "recipe": recipe,
        "settings": settings or (),
        "resume": resume,
        "data_root": data_root,
        "device": device,
        **options,
    }
    if dry_run:
        common.show_dry_run(run(model, dry_run=True, **given), json, force=force)
        return
    with console.progress_bar() as progress:
        result = run(model, out=out, plot=plot, force=force, progress=progress, **given)
    if json != "-":
        _show(result)
    common.emit_json(json, result.summary(), force=True)
    if result.rounds:
        console.say(f"wrote {', '.join(map(str, result.files))} in {result.seconds:.0f} s")


def _show(result: PruneResult) -> None:
    """Print the layers with what is kept of each."""
    from ovstrans import console

    summary = result.summary()
    rows = [
        (
            layer["name"],
            "x".join(map(str, layer["shape"])),
            f"{layer['weights']:,}",
            f"{layer['kept']:,}",
            f"{100 * layer['density']:.2f} %",
        )
        for layer in summary["layers"]
    ]
    rows.append(
        ("all", "", f"{summary['total']:,}", f"{summary['kept']:,}", f"{100 - 100 * summary['sparsity']:.2f} %")
    )
    caption = (
        f"{summary['sparsity']:.2%} zeros {result.describe_rounds()}{result.describe_macs()}{result.describe_losses()}"
    )
    console.table(
        f"{summary['model']} pruned by {summary['method']}",
        ("layer", "shape", "weights", "kept", "density"),
        rows,
        caption=caption,
    )
    empty = [layer["name"] for layer in summary["layers"] if layer["kept"] == 0]
    if empty:
        console.warn(f"nothing is left of {', '.join(empty)}: a lower --sparsity keeps every layer alive")
