"""What `ovstrans bench` draws of every dataset: image, truth, predictions and errors; and what is taken for what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ovstrans.datasets.sample import Dataset
    from ovstrans.evaluation.metrics import ConfusionMatrix

ROWS = 8
"""Images on a page."""


@dataclass
class _Sheet:
    """What is drawn of a dataset: predictions by image, under the title of their column, and confusions by title."""

    name: str
    dataset: Dataset
    predictions: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    confusions: dict[str, ConfusionMatrix] = field(default_factory=dict)


@dataclass
class Pages:
    """folder: where the pages go."""

    folder: Path
    _sheets: dict[int, _Sheet] = field(default_factory=dict)

    def add(self, name: str, dataset: Dataset, title: str, predictions: Mapping[int, Tensor]) -> None:
        """Keep predictions [H, W] of one target, by the index of the image."""
        sheet = self._sheet(name, dataset)
        for index, prediction in predictions.items():
            sheet.predictions.setdefault(index, {})[title] = prediction

    def add_confusion(self, name: str, dataset: Dataset, title: str, confusion: ConfusionMatrix) -> None:
        """Keep the confusion matrix of one target."""
        self._sheet(name, dataset).confusions[title] = confusion

    def save(self) -> None:
        """Write `NAME.png`, and `NAME-2.png` and on where one page has no room for all, and `NAME-confusion.png`,
        or `NAME-confusion-TITLE.png` for each of several targets."""
        from ovstrans import console
        from ovstrans.reports.confusion_plot import save_confusion
        from ovstrans.reports.pages import Row, save_page

        used: list[str] = []
        for sheet in self._sheets.values():
            indices = sorted(sheet.predictions)
            stem = _file_name(sheet.name)
            used.append(stem)
            if used.count(stem) > 1:  # the same data at another size
                stem = f"{stem}-again{used.count(stem)}"
            count = -(-len(indices) // ROWS)
            for page in range(count):
                rows = []
                for index in indices[page * ROWS : (page + 1) * ROWS]:
                    sample = sheet.dataset[index]
                    rows.append(Row(sample.image, sample.label, sheet.predictions[index]))
                title = sheet.name if count == 1 else f"{sheet.name}, page {page + 1} of {count}"
                path = self.folder / (f"{stem}-{page + 1}.png" if page else f"{stem}.png")
                save_page(path, rows, sheet.dataset.vocabulary, title=title, ignore=sheet.dataset.ignore)
                console.say(f"wrote {path}")
            for target, confusion in sheet.confusions.items():
                of = f"-{_file_name(target)}" if len(sheet.confusions) > 1 else ""
                path = self.folder / f"{stem}-confusion{of}.png"
                save_confusion(path, confusion, sheet.dataset.vocabulary.names, title=f"{target} on {sheet.name}")
                console.say(f"wrote {path}")

    def _sheet(self, name: str, dataset: Dataset) -> _Sheet:
        return self._sheets.setdefault(id(dataset), _Sheet(name, dataset))


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-")
