"""`ovstrans data`: list, check, show and prepare datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ovstrans.cli import common, completion
from ovstrans.files import OUTPUT_DIR

if TYPE_CHECKING:
    from ovstrans.datasets.catalog import DatasetStatus

app = typer.Typer(
    name="data",
    help="List, check, show and prepare datasets.",
    no_args_is_help=True,
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME[:SPLIT]",
        autocompletion=completion.DATA,
        help="A dataset listed by `ovstrans data list`, or folder:PATH[:SPLIT].",
    ),
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Images to process at once; 0 for one per core.")]


@app.command("list")
def list_data(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Show only this dataset, and every layout it can be read from."),
    ] = None,
    data_root: common.DataRoot = None,
    json: common.Json = None,
    force: common.Force = False,
    debug: common.Debug = False,
) -> None:
    """List the datasets, and which of them are found on this machine."""
    common.start(debug=debug)
    from ovstrans import console
    from ovstrans.datasets.catalog import GENERATED, list_datasets
    from ovstrans.datasets.published.registry import format_roots, resolve_roots

    common.check_json(json, force=force)
    datasets = list_datasets(name, data_root=data_root)
    roots = resolve_roots(data_root)
    if json != "-":
        columns = ["name", "classes", "split", "images", "layout", "folder"]
        rows = [[generated, "-", "any", "-", "generated", "-"] for generated in GENERATED if name is None]
        rows += [row for dataset in datasets for row in _split_rows(dataset)]
        console.table("datasets", columns, rows, caption=f"looked in {format_roots(roots)}", words=columns)
        if name is not None:
            _show_layouts(datasets[0])
    entries = {dataset.info.name: dataset.to_json() for dataset in datasets}
    common.emit_json(
        json,
        {"schema": "ovstrans.datasets/1", "roots": [str(root) for root in roots], "datasets": entries},
        force=force,
    )


@app.command()
def check(
    name: Name,
    data_root: common.DataRoot = None,
    workers: Workers = 0,
    json: common.Json = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Read every image and label map of a dataset, and report all faults with the paths of the files.

    Without a split, every split that exists is checked. The exit status is 2 if there is a fault.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console
    from ovstrans.datasets.check import check_dataset
    from ovstrans.errors import InputError

    common.check_json(json, force=force)
    with console.progress_bar() as progress:
        result = check_dataset(name, data_root=data_root, workers=workers, progress=progress)
    if json != "-":
        for fault in result.faults:
            console.show(fault)
    common.emit_json(
        json,
        {
            "schema": "ovstrans.datasets-check/1",
            "images": dict(result.images),
            "faults": list(result.faults),
            "warnings": list(result.warnings),
        },
        force=force,
    )
    if result.faults:
        faults = common.counted(len(result.faults), "fault")
        images = common.counted(sum(result.images.values()), "image")
        raise InputError(f"dataset {name}: {faults} in {images}")


@app.command()
def show(
    name: Name = "scenes:train",
    data_root: common.DataRoot = None,
    images: Annotated[
        int, typer.Option("-n", "--images", min=1, help="How many images to draw, spread evenly over the split.")
    ] = 8,
    size: Annotated[int | None, typer.Option(min=16, help="Side of generated images in pixels.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help=f"PNG to write; default {OUTPUT_DIR}/data/NAME-SPLIT.png."),
    ] = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Draw some images of a dataset with the names of their classes."""
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console
    from ovstrans.datasets.show import show_dataset

    path = show_dataset(name, data_root=data_root, images=images, size=size, out=out, force=force)
    console.say(f"wrote {path}")


@app.command()
def prepare(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[:SPLIT]", autocompletion=completion.DATA, help="A published dataset, or one split of it."
        ),
    ],
    data_root: common.DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Root to write below; default: the root of the original."),
    ] = None,
    workers: Workers = 0,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Convert an original download to the layout that detectron2 and FC-CLIP read.

    This is optional: ovstrans reads originals, too, only more slowly. Images that are converted already are skipped, so
    that the same command goes on after an interruption.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console
    from ovstrans.datasets.published.prepare import prepare_dataset

    with console.progress_bar() as progress:
        prepare_dataset(name, data_root=data_root, out=out, workers=workers, force=force, progress=progress)


def _split_rows(dataset: DatasetStatus) -> list[list[str]]:
    """Return one row for each split that was found, or a single row if there is none."""
    rows = []
    for status in dataset.splits:
        if status.error:
            rows.append([status.split, "-", "broken", status.error])
        elif status.location is not None:
            location = status.location
            missing = f" ({common.counted(len(location.missing), 'file')} missing)" if location.missing else ""
            rows.append([status.split, f"{len(location.pairs)}{missing}", location.layout.name, str(location.folder)])
    first_columns = [dataset.info.name, str(dataset.info.classes)]
    return [first_columns + row for row in rows or [["-", "-", "missing", "-"]]]


def _show_layouts(dataset: DatasetStatus) -> None:
    from ovstrans import console

    columns = ["layout", "splits", "needs"]
    rows = [[each["layout"], ", ".join(each["splits"]), each["needs"]] for each in dataset.to_json()["layouts"]]
    console.table(f"{dataset.info.title}: from {dataset.info.source}, read from any of", columns, rows, words=columns)
