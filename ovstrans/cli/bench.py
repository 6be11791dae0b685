"""`ovstrans bench`: params, multiply-accumulates and mIoU of any number of targets, side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovstrans.cli import common
from ovstrans.files import OUTPUT_DIR

if TYPE_CHECKING:
    from ovstrans.cost.target import Target

PAPER_SIZE = (800, 1216)
"""Where published inference costs are counted (OpenTrans sec. 4.1): the first COCO validation image."""

_COUNT = "Counting"
_EVALUATE = "Evaluating"


def bench(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]...",
            help="Runs, checkpoints, frameworks, recipes or CLIP models; by default the run of `finetune`.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="CLIP of a framework or recipe.", rich_help_panel=_COUNT)] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Count targets without weights under this mask.", rich_help_panel=_COUNT)
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Count what trains under this freeze plan.", rich_help_panel=_COUNT)
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Where to count; by default the data's size, or 800x1216.", rich_help_panel=_COUNT
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images to count at once.", rich_help_panel=_COUNT)] = 1,
    counter: Annotated[
        str, typer.Option(help="torch (exact), or fvcore (the literature's).", rich_help_panel=_COUNT)
    ] = "torch",
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Every layer's MACs.", rich_help_panel=_COUNT)] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Labelled data, NAME[:SPLIT] or folder:PATH[:SPLIT]; repeatable; none to skip. "
            "By default the validation part of what a target was trained on.",
            rich_help_panel=_EVALUATE,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate on the first so many images.", rich_help_panel=_EVALUATE)
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Images on the picture pages.", rich_help_panel=_EVALUATE)] = 4,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help=f"Folder of the picture pages ({OUTPUT_DIR / 'bench'}, renewed each time).", rich_help_panel=_EVALUATE
        ),
    ] = None,
    json: common.Json = None,
    device: common.Device = "auto",
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Count parameters and multiply-accumulates, and measure mIoU, with one counter for all targets.

    FLOPs are twice the MACs. Effective MACs leave out what the mask holds at zero, layer by layer.
    Frameworks, recipes and CLIP models are counted without weights.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import files
    from ovstrans.cli.bench_data import evaluate_targets, first_size, open_data

    place = common.pick_device(device)
    common.check_json(json, force=force)
    pages = OUTPUT_DIR / "bench"
    if pictures is not None:
        pages = files.check_output(pictures, force=force, directory=True, option="--pictures")
    found = _resolve(targets or _default_targets(), model, mask, plan, data or [], counter)
    work = open_data(found, data or [])
    size = _parse_size(image_size) or first_size(work) or PAPER_SIZE

    from ovstrans.cost.report import cost_report, together

    reports = [
        cost_report(target, size, counter=counter, per_layer=per_layer, batch=batch, device=str(place))
        for target in found
    ]
    evaluate_targets(found, work, reports, place, limit=limit, show=show, pages=pages)
    if json != "-":
        _show(reports, per_layer=per_layer)
    common.emit_json(json, together(reports), force=True)


def _default_targets() -> list[str]:
    from ovstrans import console

    run = OUTPUT_DIR / "run"
    if (run / "checkpoint.safetensors").exists():
        return [str(run)]
    console.say(
        f"no finished run at {run}; counting the framework deeplabv3 (name a target, or run `ovstrans finetune`)"
    )
    return ["deeplabv3"]


def _resolve(
    names: Sequence[str], model: str | None, mask: Path | None, plan: Path | None, data: Sequence[str], counter: str
) -> list[Target]:
    """The targets, each with the mask and plan that it is counted under."""
    from ovstrans.cost.target import resolve
    from ovstrans.data.catalog import open_dataset
    from ovstrans.errors import InputError
    from ovstrans.masks.file import load_mask
    from ovstrans.spectrum.file import load_plan
    from ovstrans.training.run import RunFolder

    for path in map(Path, names):
        if path.is_dir():
            RunFolder(path).require_checkpoint()
    first = next((spec for spec in data if spec != "none"), "scenes")
    found = [
        resolve(
            name,
            model=model,
            mask=None if mask is None else load_mask(mask),
            frozen=() if plan is None else load_plan(plan).frozen,
            vocabulary=open_dataset(first, split="val").vocabulary,
            device="cpu" if counter == "fvcore" else "meta",
        )
        for name in names
    ]
    given = [option for option, value in (("--model", model), ("--mask", mask), ("--plan", plan)) if value is not None]
    if given and all(target.checkpoint is not None for target in found):
        raise InputError(f"{given[0]}: is for frameworks, recipes and CLIP models; a checkpoint carries its own")
    return found


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of `HxW`, or of one number for a square."""
    from ovstrans.errors import InputError

    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", text.strip())
    if match is None or not int(match[1]) or not int(match[2] or 1):
        raise InputError(f"--image-size {text}: write HEIGHTxWIDTH, for instance 800x1216")
    return int(match[1]), int(match[2] or match[1])


def _show(reports: Sequence[Mapping[str, Any]], *, per_layer: bool) -> None:
    """The table of all targets, and of every layer where asked for."""
    from ovstrans import console
    from ovstrans.cost.report import layer_rows, rows

    flops = reports[0]["flops"]
    height, width = flops["image_size"]
    images = "1 image" if flops["batch"] == 1 else f"{flops['batch']} images"
    columns, table = rows(reports)
    caption = f"{images} of {height}x{width}, counter {flops['counter']}; 1 MAC = 2 FLOPs"
    console.table("bench", columns, table, caption=caption)
    for report in reports if per_layer else []:
        heads = ["layer", "component", "dense MMAC", "effective MMAC", "share"]
        console.table(f"layers of {report['target']['name']}", heads, layer_rows(report))
