"""`ovstrans prune`: make a transferable sparse subnetwork of a CLIP image encoder, without labels."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovstrans.cli import common
from ovstrans.files import OUTPUT_DIR
from ovstrans.recipes.schema import SEGMENT_LOSSES, PruneRecipe

if TYPE_CHECKING:
    import torch

    from ovstrans.clip.load import Clip
    from ovstrans.masks.mask import Mask
    from ovstrans.pruning.prune import Result

_HOW = "How to prune"


@common.recipe_options(
    PruneRecipe,
    after="pretrained",
    panel="Distillation",
    panels={"prune": _HOW, "prune.steps": "Distillation", "run": "Common"},
)
def prune(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="An open_clip model with a ResNet or ConvNeXt image encoder.")
    ] = "RN-mini",
    *,
    pretrained: common.Pretrained = None,
    like: Annotated[
        Path | None, typer.Option(metavar="MASK", help="With random: the densities of this mask.", rich_help_panel=_HOW)
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Recipe; by default the one for the model and the loss.")
    ] = None,
    settings: common.RecipeSettings = None,
    out: Annotated[Path, typer.Option(help="Mask file to write; weights and plot go beside it.")] = OUTPUT_DIR
    / "mask.safetensors",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
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
    common.use_data_root(data_root)
    from ovstrans import console
    from ovstrans.clip.load import load_clip
    from ovstrans.errors import InputError
    from ovstrans.masks.file import load_mask
    from ovstrans.pruning import output
    from ovstrans.pruning.recipe import choose_recipe

    if like is not None and (options["sparsity"] is not None or options["scope"] is not None):
        raise InputError("--like takes sparsity and scope from its mask; leave --sparsity and --scope out")
    options["method"] = options["method"] or ("random" if like is not None else None)
    chosen = choose_recipe(model, recipe=recipe, settings=settings or (), **options)
    output.check_outputs(out, plot=plot, force=force, resume=resume)
    summary = common.check_json(json, force=force or resume)
    own = (out, output.pruned_weights_path(out), output.plot_path(out), output.state_path(out))
    if summary is not None and summary.resolve() in {path.resolve() for path in own}:
        raise InputError(f"--json {json}: is one of the files that --out writes; give another name")
    place = common.pick_device(device)
    pattern = load_mask(like) if like is not None else None
    clip = load_clip(model, pretrained)
    result = _run(clip, chosen, pattern, place, output.state_path(out), resume)
    written = output.save_result(out, result, plot=plot)
    if json != "-":
        _show(result)
    common.emit_json(json, {**result.summary(), "mask": str(out), "weights": str(written[1])}, force=True)
    console.say(f"wrote {', '.join(map(str, written))} in {result.seconds:.0f} s")


def _run(clip: Clip, chosen: PruneRecipe, like: Mask | None, device: torch.device, state: Path, resume: bool) -> Result:
    """Prune with a progress bar, and say how to go on where it is interrupted."""
    from ovstrans import console
    from ovstrans.datasets.catalog import open_dataset
    from ovstrans.pruning.prune import prune as run
    from ovstrans.pruning.rounds import RoundCallbacks

    dataset = None
    if chosen.prune.steps:
        # A described folder has a train split; images without labels form one of their own.
        spec, labelled = chosen.data.dataset, chosen.distill.loss in SEGMENT_LOSSES
        split = "train" if labelled or spec.startswith("folder:") else "unlabelled"
        dataset = open_dataset(spec, split=split, size=chosen.data.size, labels=labelled)
    if resume and not state.exists():
        console.say(f"{state}: not there, so there is nothing to resume; starting at the beginning")
    elif not resume:
        state.unlink(missing_ok=True)
    bars: list[console.Progress] = []
    try:
        with contextlib.ExitStack() as stack:

            def begin(total: int, done: int) -> None:
                bars.append(stack.enter_context(console.progress(f"prune {clip.name}", total, done=done, unit="step")))

            watch = RoundCallbacks(begin, step=lambda step: bars[0].advance(loss=step.loss))
            return run(clip, chosen, dataset, like=like, device=device, state=state, resume=resume, watch=watch)
    except BaseException as stop:
        if not isinstance(stop, Exception) and state.exists():
            console.warn(f"{state} keeps the last finished round; the same command with --resume goes on from it")
        raise


def _show(result: Result) -> None:
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
    losses = [each["loss"] for each in summary["rounds"] if each["loss"] is not None]
    caption = f"{summary['sparsity']:.2%} zeros after {common.counted(len(summary['rounds']), 'round')}"
    if losses:
        caption += f"; distillation loss {losses[0]:.3g} in the first, {losses[-1]:.3g} in the last"
    console.table(
        f"{summary['model']} pruned by {summary['method']}",
        ("layer", "shape", "weights", "kept", "density"),
        rows,
        caption=caption,
    )
    empty = [layer["name"] for layer in summary["layers"] if layer["kept"] == 0]
    if empty:
        console.warn(f"nothing is left of {', '.join(empty)}: a lower --sparsity keeps every layer alive")
