"""The data of `ovstrans bench`: what to evaluate on, opened, and the table of its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovstrans.files import OUTPUT_DIR

if TYPE_CHECKING:
    from ovstrans.costs.target import Target
    from ovstrans.datasets.sample import Dataset
    from ovstrans.evaluation.inference import Inference
    from ovstrans.vocabulary.vocabulary import Vocabulary

NONE, ALL = "none", "all"
"""What --data may be beside datasets: nothing, and every published dataset that is there."""


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how.

    data: specs of datasets, `NONE` or `ALL`; empty for what each target was trained on.  root: where published
    ones are.  vocabulary: other words for the classes of the data, by name or file.  names: which of a class's
    names go into prompts.  short_side, long_side: at evaluation, both None for what is published, 0 for a
    short side of the image's own.  window, stride, flip: see `Inference`.  denominator: of mIoU.  panoptic: panoptic
    quality too.  limit: only the first so many images.  show: images on the pages of pictures.  pages: their folder.

    Raises InputError for settings that are none.
    """

    data: tuple[str, ...] = ()
    root: Path | None = None
    vocabulary: str | None = None
    names: str = "auto"
    short_side: int | None = None
    long_side: int | None = None
    window: int | None = None
    stride: int | None = None
    flip: bool = False
    denominator: str = "present"
    panoptic: bool = False
    limit: int | None = None
    show: int = 4
    pages: Path = OUTPUT_DIR / "bench"

    def __post_init__(self) -> None:
        from ovstrans.errors import InputError
        from ovstrans.evaluation.inference import Inference
        from ovstrans.evaluation.metrics import DENOMINATORS
        from ovstrans.vocabulary.prompts import check_names

        check_names(self.names)
        if self.denominator not in DENOMINATORS:
            raise InputError(f"--denominator {self.denominator}: unknown; use {' or '.join(DENOMINATORS)}")
        looked = Inference(self.short_side or None, self.long_side, self.window, self.stride, self.flip)
        if self.panoptic and (looked.window or looked.flip):
            raise InputError("--panoptic: is of whole images as they are; leave out --window and --flip")
        if len(self.data) > 1 and {NONE, ALL} & set(self.data):
            special = NONE if NONE in self.data else ALL
            raise InputError(f"--data {special}: stands for itself; leave out the other --data")

    @property
    def several(self) -> bool:
        """Whether one dataset of several may fail without the others."""
        return len(self.data) > 1 or ALL in self.data

    def inference(self, dataset: Dataset) -> Inference:
        """How images of a dataset are looked at: as published, but for what was asked for."""
        from ovstrans.evaluation.evaluate import published_inference

        published = published_inference(dataset)
        if self.short_side is not None or self.long_side is not None:
            published = replace(published, short_side=self.short_side or None, long_side=self.long_side)
        return replace(published, window=self.window, stride=self.stride, flip=self.flip)

    def words(self, dataset: Dataset) -> Vocabulary:
        """The class names that a dataset is evaluated with; MismatchError where they are of another number."""
        from ovstrans.datasets.catalog import find_vocabulary
        from ovstrans.errors import MismatchError

        if self.vocabulary is None:
            return dataset.vocabulary
        found = find_vocabulary(self.vocabulary)
        if len(found) != len(dataset.vocabulary):
            raise MismatchError(
                f"--vocabulary {self.vocabulary}: has {len(found)} classes, {dataset.name} has "
                f"{len(dataset.vocabulary)}; name them all, in the order of the data"
            )
        return found

    def count(self, dataset: Dataset) -> int:
        """How many images of a dataset are evaluated."""
        return len(dataset) if self.limit is None else min(self.limit, len(dataset))


def open_data(found: Sequence[Target], asked: Evaluation) -> list[dict[str, Dataset]]:
    """For every target the labelled data to evaluate it on, by the name that the report gives it."""
    from ovstrans import console
    from ovstrans.datasets.catalog import open_dataset
    from ovstrans.errors import InputError, MismatchError

    opened: dict[tuple[str, int | None], Dataset] = {}
    work: list[dict[str, Dataset]] = []
    data = _published_there(asked.root) if ALL in asked.data else asked.data
    alone = all(target.checkpoint is not None for target in found)  # nobody else is counted with the vocabulary
    for target in found:
        mine: dict[str, Dataset] = {}
        work.append(mine)
        if target.checkpoint is None or NONE in data:
            continue
        trained: Mapping[str, Any] = target.checkpoint.recipe.get("data", {})
        side = trained.get("size")
        for spec in data or [str(trained.get("dataset", "scenes")).removesuffix(":train")]:
            try:
                if (spec, side) not in opened:
                    opened[spec, side] = open_dataset(spec, split="val", size=side, data_root=asked.root)
                asked.words(opened[spec, side])
            except InputError as error:
                if data or (alone and isinstance(error, MismatchError)):
                    raise
                console.warn(f"{target.name}: not evaluated ({error}); say on what with --data")
                continue
            dataset = opened[spec, side]
            name = f"{dataset.name}:{dataset.split}"
            mine[spec if name in mine else name] = dataset
    if data and NONE not in data and not any(work):
        raise InputError(f"--data {data[0]}: nothing to evaluate, no target has weights; name a run or a checkpoint")
    return work


def first_size(work: Sequence[Mapping[str, Dataset]], asked: Evaluation) -> tuple[int, int] | None:
    """Size of the first image that will be evaluated; of several datasets the first that can be read."""
    from ovstrans.errors import InputError

    for mine in work:
        for dataset in mine.values():
            if not len(dataset):
                continue
            try:
                height, width = dataset[0].image.shape[-2:]
            except InputError:
                if not asked.several:
                    raise
            else:
                return int(height), int(width)
    return None


def class_rows(reports: Sequence[Mapping[str, Any]], name: str) -> tuple[list[str], list[list[str]]]:
    """The classes of a dataset, target by target: the columns and lines of a table, in percent.

    IoU of each target, then the accuracy of a single one; the share of the pixels; novel classes starred.
    """
    entries = [report["datasets"][name]["per_class"] for report in reports if name in report["datasets"]]
    targets = [report["target"]["name"] for report in reports if name in report["datasets"]]
    pixels = sum(each["pixels"] for each in entries[0]) or 1
    single = len(entries) == 1
    columns = ["class", *(["IoU %", "accuracy %"] if single else [f"{target} IoU %" for target in targets]), "pixels %"]
    lines = []
    for number, first in enumerate(entries[0]):
        values = [entry[number]["iou"] for entry in entries]
        values += [first["accuracy"]] if single else []
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        lines.append([first["name"] + "*" * first["novel"], *cells, f"{100 * first['pixels'] / pixels:.2f}"])
    return columns, lines


def show_classes(reports: Sequence[Mapping[str, Any]]) -> None:
    """A table of the classes of every dataset."""
    from ovstrans import console

    for name in dict.fromkeys(name for report in reports for name in report["datasets"]):
        columns, lines = class_rows(reports, name)
        entry = next(report["datasets"][name] for report in reports if name in report["datasets"])
        starred = "; * novel" if any(each["novel"] for each in entry["per_class"]) else ""
        caption = f"mIoU over {entry['classes']} classes ({entry['denominator']}){starred}"
        console.table(f"classes of {name}", columns, lines, caption=caption)


def _published_there(root: Path | None) -> tuple[str, ...]:
    """The published datasets whose validation part is found, whole; says which is not. InputError for none."""
    from ovstrans import console
    from ovstrans.datasets.published.dataset import PublishedDataset
    from ovstrans.datasets.published.registry import PUBLISHED, format_roots, locate_dataset, resolve_roots
    from ovstrans.errors import InputError

    roots = resolve_roots(root)
    there = []
    for name, published in PUBLISHED.items():
        if "val" not in published.splits:
            continue
        try:
            found = locate_dataset(published, "val", roots)
            if found is None:
                continue
            PublishedDataset(found)
        except InputError as error:
            console.warn(f"{name}: left out ({error})")
        else:
            there.append(name)
    if not there:
        raise InputError(
            f"--data {ALL}: no published dataset in {format_roots(roots)}; give --data-root (`ovstrans data list` "
            "says what was looked for)"
        )
    return tuple(there)
