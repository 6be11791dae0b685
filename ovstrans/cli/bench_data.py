"""The half of `ovstrans bench` that needs data: opening it, evaluating targets on it, drawing pages of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ovstrans.cost.target import Target
    from ovstrans.data.sample import Dataset, Sample


def open_data(found: Sequence[Target], data: Sequence[str]) -> list[dict[str, Dataset]]:
    """For every target the labelled data to evaluate it on, by the name that the report gives it."""
    from ovstrans import console
    from ovstrans.data.catalog import open_dataset
    from ovstrans.errors import InputError

    opened: dict[tuple[str, int | None], Dataset] = {}
    work: list[dict[str, Dataset]] = []
    for target in found:
        mine: dict[str, Dataset] = {}
        work.append(mine)
        if target.checkpoint is None or "none" in data:
            continue
        trained: Mapping[str, Any] = target.checkpoint.recipe.get("data", {})
        side = trained.get("size")
        for spec in data or [str(trained.get("dataset", "scenes")).removesuffix(":train")]:
            try:
                if (spec, side) not in opened:
                    opened[spec, side] = open_dataset(spec, split="val", size=side)
            except InputError as error:
                if data:
                    raise
                console.warn(f"{target.name}: not evaluated ({error}); say on what with --data")
                continue
            dataset = opened[spec, side]
            name = f"{dataset.name}:{dataset.split}"
            mine[spec if name in mine else name] = dataset
    if data and "none" not in data and not any(work):
        raise InputError(f"--data {data[0]}: nothing to evaluate, no target has weights; name a run or a checkpoint")
    return work


def first_size(work: Sequence[Mapping[str, Dataset]]) -> tuple[int, int] | None:
    """Size of the first image that will be evaluated."""
    for mine in work:
        for dataset in mine.values():
            if len(dataset):
                height, width = dataset[0].image.shape[-2:]
                return int(height), int(width)
    return None


def evaluate_targets(
    found: Sequence[Target],
    work: Sequence[Mapping[str, Dataset]],
    reports: Sequence[dict[str, Any]],
    device: torch.device,
    *,
    limit: int | None,
    show: int,
    pages: Path,
) -> None:
    """Fill the reports' `datasets`, and draw a picture page for each of them."""
    from ovstrans import console
    from ovstrans.evaluation.pictures import Row, save_page
    from ovstrans.evaluation.run import evaluate
    from ovstrans.frameworks.vocabulary import classifier_for

    drawn: dict[int, tuple[str, Dataset, dict[int, Row]]] = {}
    for target, title, mine, report in zip(found, _titles(found), work, reports, strict=True):
        for name, dataset in mine.items():
            assert target.checkpoint is not None
            total = len(dataset) if limit is None else min(limit, len(dataset))
            chosen = _spread(total, show)
            rows = drawn.setdefault(id(dataset), (name, dataset, {}))[2]
            text = classifier_for(target.checkpoint, dataset.vocabulary).to(device)
            framework: Any = target.module.to(device)
            with console.progress(f"evaluate {title} on {name}", total, unit="images") as progress:

                def on_image(index: int, sample: Sample, prediction: torch.Tensor) -> None:
                    progress.advance()
                    if index in chosen:  # noqa: B023
                        row = rows.setdefault(index, Row(sample.image, sample.label, {}))  # noqa: B023
                        row.predictions = {**row.predictions, title: prediction}  # noqa: B023

                entry = evaluate(framework, dataset, text, device=device, limit=limit, on_image=on_image)
            report["datasets"][name] = entry
            framework.to("cpu")
    for name, dataset, rows in drawn.values():
        if rows:
            path = pages / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.png"
            save_page(
                path, [rows[index] for index in sorted(rows)], dataset.vocabulary, title=name, ignore=dataset.ignore
            )
            console.say(f"wrote {path}")


def _spread(total: int, show: int) -> set[int]:
    """`show` of so many images, evenly spread; all of them where there are fewer."""
    count = min(show, total)
    return {total * number // count for number in range(count)}


def _titles(found: Sequence[Target]) -> list[str]:
    """Short names for the columns of a picture: the last part of each path, where that tells them apart."""
    paths = [Path(target.name) for target in found]
    short = [path.parent.name or path.name if path.name == "checkpoint.safetensors" else path.name for path in paths]
    return short if len(set(short)) == len(short) else [target.name for target in found]
