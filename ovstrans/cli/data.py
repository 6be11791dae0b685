"""`ovstrans data`: which datasets are there, whether they are sound, what they look like, and preparing them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovstrans.cli import common
from ovstrans.files import OUTPUT_DIR

if TYPE_CHECKING:
    from ovstrans.datasets.published.layouts import DatasetInfo

app = typer.Typer(
    name="data",
    help="List, check, show and prepare datasets.",
    no_args_is_help=True,
)

Name = Annotated[
    str, typer.Argument(metavar="NAME[:SPLIT]", help="A dataset that `data list` names, or folder:PATH[:SPLIT].")
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Images at once; 0 for one a core.")]


@app.command("list")
def list_data(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this one, with every layout it is read from.")
    ] = None,
    data_root: common.DataRoot = None,
    json: common.Json = None,
    force: common.Force = False,
    debug: common.Debug = False,
) -> None:
    """Which datasets are there, in what layout and where, and which are missing."""
    common.start(debug=debug)
    from ovstrans import console
    from ovstrans.datasets.catalog import GENERATED
    from ovstrans.datasets.published.registry import PUBLISHED, format_roots, resolve_roots

    common.check_json(json, force=force)
    roots = resolve_roots(data_root)
    chosen = list(PUBLISHED) if name is None else [_published(name)[0].name]
    entries = {key: _entry(PUBLISHED[key], roots) for key in chosen}
    if json != "-":
        rows = [[key, "-", "any", "-", "generated", "-"] for key in GENERATED if name is None]
        rows += [row for key, entry in entries.items() for row in _rows(key, entry)]
        heads = ["name", "classes", "split", "images", "layout", "where"]
        console.table("datasets", heads, rows, caption=f"looked in {format_roots(roots)}", words=heads)
        if name is not None:
            columns = ["layout", "splits", "needs"]
            layouts = [[way["layout"], ", ".join(way["splits"]), way["needs"]] for way in entries[chosen[0]]["layouts"]]
            title = f"{entries[chosen[0]]['title']}: from {entries[chosen[0]]['source']}, read from any of"
            console.table(title, columns, layouts, words=columns)
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
    """Open every image and label map: all faults with their paths, and exit status 2 where there is one.

    Without a split, every split that is there.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console
    from ovstrans.datasets.catalog import open_dataset
    from ovstrans.datasets.check import find_faults
    from ovstrans.errors import InputError

    common.check_json(json, force=force)
    found: list[str] = []
    checked: dict[str, int] = {}
    for spec in _to_check(name, data_root):
        try:
            dataset = open_dataset(spec, split="train", data_root=data_root, allow_missing=True)
        except InputError as error:  # a broken listing is a fault like others
            found.append(str(error))
            continue
        title = f"{dataset.name}:{dataset.split}"
        with console.progress(f"check {title}", len(dataset), unit="images") as progress:
            flaws = find_faults(dataset, progress, workers=workers)
        checked[title] = len(dataset)
        found += flaws
        if not flaws:
            console.say(f"{title}: {len(dataset)} images, all in order")
    if not checked:
        raise InputError("; ".join(found))
    if json != "-":
        for flaw in found:
            console.show(flaw)
    common.emit_json(json, {"schema": "ovstrans.datasets-check/1", "images": checked, "faults": found}, force=force)
    if found:
        what = common.counted(len(found), "fault")
        raise InputError(f"data {name}: {what} in {sum(checked.values())} images")


@app.command()
def show(
    name: Name = "scenes:train",
    data_root: common.DataRoot = None,
    count: Annotated[int, typer.Option("-n", "--images", min=1, help="How many, evenly spread.")] = 8,
    size: Annotated[int | None, typer.Option(min=16, help="Side of generated images.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help=f"PNG to write; default {OUTPUT_DIR}/data/NAME-SPLIT.png."),
    ] = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """A sheet of images with the names on their segments."""
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console, files
    from ovstrans.datasets.catalog import open_dataset
    from ovstrans.datasets.drawing import choose_evenly, save_contact_sheet

    if out is not None:
        files.check_output(out, force=force)
    dataset = open_dataset(name, split="val", size=size, data_root=data_root)
    total = len(dataset)
    shown = sorted(choose_evenly(total, count))
    path = out or OUTPUT_DIR / "data" / f"{dataset.name}-{dataset.split}.png"
    title = f"{dataset.name}:{dataset.split}, {len(shown)} of {total} images, {len(dataset.vocabulary)} classes"
    save_contact_sheet(path, (dataset[index] for index in shown), dataset, title=title)
    console.say(f"wrote {path}")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME[:SPLIT]", help="A published dataset, or one split of it.")],
    data_root: common.DataRoot = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Root to write below; default where the original is.")
    ] = None,
    workers: Workers = 0,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Convert an original download to the layout that detectron2 and FC-CLIP read.

    Not needed for ovstrans, which reads originals too, only slower. What is converted already stays, so the same
    command goes on after an interruption.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console
    from ovstrans.datasets.published.prepare import plan_preparation, summarize
    from ovstrans.datasets.published.prepare import prepare as convert
    from ovstrans.datasets.published.registry import resolve_roots
    from ovstrans.errors import InputError

    published, splits = _published(name)[0], _splits(name, data_root)
    flaws: list[str] = []
    broken: list[str] = []
    for split in splits:
        title = f"{published.name}:{split}"
        try:
            work = plan_preparation(published, split, resolve_roots(data_root), out)
        except InputError as error:  # the other splits can do without this one
            broken.append(str(error))
            continue
        if isinstance(work, str):
            console.say(f"{title} {work}")
            continue
        total = len(work.source)
        done = total - len(work.todo(force=force))
        with console.progress(f"prepare {title}", total, done=done, unit="images") as progress:
            try:
                found = convert(work, progress, workers=workers, force=force)
            except BaseException:  # also SIGTERM's
                console.warn(
                    f"{title}: {total - len(work.todo())} of {total} images are there; the same command goes on"
                )
                raise
        flaws += found
        if not found:
            console.say(f"{title}: {total} images in {work.top} ({total - done} converted now)")
    if flaws:
        what = common.counted(len(flaws), "image")
        broken.append(f"{what} could not be converted: {summarize(flaws)}")
    if broken:
        raise InputError("; ".join(broken))


def _published(name: str) -> tuple[DatasetInfo, str]:
    """The published dataset that `NAME[:SPLIT]` names, and its split or ""; InputError where it is none."""

    from ovstrans.datasets.published.registry import PUBLISHED, lookup_published
    from ovstrans.errors import InputError, did_you_mean

    known = lookup_published(name)
    if known is None:
        name = name.partition(":")[0]
        hint = did_you_mean(name, PUBLISHED)
        raise InputError(f"data {name!r}: no published dataset; {hint}known are {', '.join(PUBLISHED)}")
    return known


def _splits(name: str, data_root: Path | None) -> Sequence[str]:
    """The split that the name says, or all that are there; InputError where none is."""
    from ovstrans.datasets.published.registry import locate_dataset, not_found_error, resolve_roots
    from ovstrans.errors import InputError

    (published, split), roots = _published(name), resolve_roots(data_root)
    if split:
        return (split,)
    there = []
    for split in published.splits:
        with suppress(InputError):  # a broken listing is there, and whoever opens it says what is wrong
            if locate_dataset(published, split, roots) is None:
                continue
        there.append(split)
    if not there:
        raise not_found_error(published, published.splits[-1], roots)
    return there


def _to_check(name: str, data_root: Path | None) -> list[str]:
    """What to check, each as `open_dataset` takes it: the split that is named, or all that are there."""
    from ovstrans.datasets.catalog import GENERATED, list_folder_splits

    kind, _, rest = name.partition(":")
    if kind in GENERATED:
        return [name if rest else f"{name}:train"]
    if kind == "folder":
        splits = list_folder_splits(name)
        return [f"{name}:{split}" for split in splits] if len(splits) > 1 else [name]
    return [f"{_published(name)[0].name}:{split}" for split in _splits(name, data_root)]


def _entry(published: DatasetInfo, roots: Sequence[Path]) -> dict[str, Any]:
    """What `list` says of a dataset, as plain values."""
    from ovstrans.datasets.published.registry import locate_dataset
    from ovstrans.errors import InputError

    splits: dict[str, Any] = {}
    for split in published.splits:
        try:
            found = locate_dataset(published, split, roots)
            splits[split] = None
            if found is not None:
                splits[split] = {
                    "layout": found.layout.name,
                    "root": str(found.root),
                    "images": len(found.pairs),
                    "missing": len(found.missing),
                }
        except InputError as error:  # a broken listing is no reason to say nothing of the others
            splits[split] = {"error": str(error)}
    ways = [
        {
            "layout": layout.name,
            "splits": list(layout.words),
            "needs": f"{layout.tops[0]}/ with "
            + ", ".join(" or ".join(places) for places in layout.needs(list(layout.words)[-1])),
        }
        for layout in published.layouts
    ]
    return {
        "title": published.title,
        "classes": published.classes,
        "source": published.source,
        "splits": splits,
        "layouts": ways,
    }


def _rows(name: str, entry: dict[str, Any]) -> list[list[str]]:
    """The rows of a dataset: one for each split that is there."""
    rows = []
    for split, found in entry["splits"].items():
        if found is None:
            continue
        if "error" in found:
            rows.append([split, "-", "broken", found["error"]])
        else:
            gaps = f" ({found['missing']} files missing)" if found["missing"] else ""
            rows.append([split, f"{found['images']}{gaps}", found["layout"], found["root"]])
    head = [name, str(entry["classes"])]
    return [head + row for row in rows or [["-", "-", "missing", "-"]]]
