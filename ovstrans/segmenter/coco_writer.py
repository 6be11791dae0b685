"""Collecting the segments of a folder job and writing them in COCO's formats.

COCO's files are about all images at once. Until they are written, each image's entries are a line of
`segments.jsonl`, so that a process killed on the way loses none of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ovstrans import files
from ovstrans.datasets.run_lengths import decode_mask
from ovstrans.parsing import LARGEST_ANNOTATIONS, parse_json, read_text
from ovstrans.segmenter.coco import (
    CONFIDENT_SCORE,
    INSTANCES_JSON,
    PANOPTIC_JSON,
    Row,
    read_instances,
    read_panoptic,
    select_distinct,
    to_image_name,
    write_instances,
    write_panoptic,
)
from ovstrans.vocabulary.vocabulary import Vocabulary

JOURNAL = "segments.jsonl"
"""The file that exists while images are being written."""


class _InstanceRow(NamedTuple):
    """An entry of instances.json as text, a tenth of the memory of its numbers, with what is needed of it beside."""

    class_index: int
    score: float
    text: str


@dataclass
class CocoWriter:
    """Collects entries of panoptic.json and instances.json, image by image, and writes both files.

    Attributes:
        folder: The folder of predictions.
        panoptic: Indices of the things in panoptic.json; None to write no such file.
        instances: Indices of the things in instances.json; None to write no such file.
        annotations: Entries of panoptic.json by the name of the image's predictions.
        rows: Entries of instances.json by that name.
    """

    folder: Path
    panoptic: Collection[int] | None = None
    instances: Collection[int] | None = None
    annotations: dict[str, Row] = field(default_factory=dict)
    rows: dict[str, list[_InstanceRow]] = field(default_factory=dict)
    _read_instances: bool = False

    def load(self) -> None:
        """Read the entries that an earlier, interrupted job wrote.

        Raises:
            InputError: If its files are broken.
        """
        if self.panoptic is not None and (self.folder / PANOPTIC_JSON).exists():
            for row in read_panoptic(self.folder / PANOPTIC_JSON)["annotations"]:
                self.annotations[to_image_name(row["image_id"])] = row
        if self.instances is not None and (self.folder / INSTANCES_JSON).exists():
            self._read_instances = True
            for row in read_instances(self.folder / INSTANCES_JSON):
                self.rows.setdefault(to_image_name(row["image_id"]), []).append(_to_text(row))
        if (self.folder / JOURNAL).exists():
            journal = read_text(files.existing_file(self.folder / JOURNAL), LARGEST_ANNOTATIONS, errors="replace")
            for line in journal.splitlines():
                try:
                    self._keep(**parse_json(line))
                except (ValueError, TypeError, KeyError):  # cut off by a kill; its image has no label map yet
                    continue

    def has(self, name: str) -> bool:
        """Return whether the segments of an image are known, given that its label map is written.

        An image without instances has no entry in instances.json, so that file's existence counts for it.
        """
        return (self.panoptic is None or name in self.annotations) and (
            self.instances is None or self._read_instances or name in self.rows
        )

    def add(self, name: str, annotation: Row | None, rows: list[Row] | None) -> None:
        """Take an image's entries and write them to the journal, flushed to disk.

        Args:
            name: Name of the image's predictions.
            annotation: Its entry in panoptic.json, if that is wanted.
            rows: Its entries in instances.json, if that is wanted.
        """
        if annotation is None and rows is None:
            return
        self._keep(name, annotation, rows)
        line = json.dumps({"name": name, "annotation": annotation, "results": rows})
        with files.appending(self.folder / JOURNAL) as journal:
            journal.write(f"\n{line}\n")  # the first newline ends a line that a kill may have cut off
            journal.flush()
            os.fsync(journal.fileno())

    def finish(self, vocabulary: Vocabulary, is_done: Callable[[str], bool]) -> None:
        """Write COCO's files and delete the journal.

        Args:
            vocabulary: The classes.
            is_done: Tells by name which images to include.
        """
        if self.panoptic is not None:
            annotations = [row for name, row in sorted(self.annotations.items()) if is_done(name)]
            write_panoptic(self.folder / PANOPTIC_JSON, annotations, vocabulary, self.panoptic)
        if self.instances is not None:
            texts = (row.text for name, rows in sorted(self.rows.items()) if is_done(name) for row in rows)
            write_instances(self.folder / INSTANCES_JSON, texts)
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def count_segments(self, name: str, vocabulary: Vocabulary) -> dict[str, int] | None:
        """Return how many segments an image has, by class name; None if they are not written."""
        if self.panoptic is None:
            return None
        return _count([info["category_id"] for info in self.annotations[name]["segments_info"]], vocabulary)

    def count_instances(self, name: str, vocabulary: Vocabulary) -> dict[str, int] | None:
        """Return how many distinct instances an image has, by class name; None if they are not written."""
        if self.instances is None:
            return None
        confident = [row for row in self.rows.get(name, []) if row.score >= CONFIDENT_SCORE]
        masks = [decode_mask(parse_json(row.text)["segmentation"]) for row in confident]
        distinct = select_distinct([row.score for row in confident], masks)
        return _count([confident[number].class_index for number in distinct], vocabulary)

    def _keep(self, name: str, annotation: Row | None, results: list[Row] | None) -> None:
        if annotation is not None:
            self.annotations[name] = annotation
        if results is not None:
            self.rows[name] = [_to_text(row) for row in results]


def _to_text(row: Row) -> _InstanceRow:
    return _InstanceRow(row["category_id"], row["score"], json.dumps(row, allow_nan=False))


def _count(classes: Sequence[int], vocabulary: Vocabulary) -> dict[str, int]:
    return {vocabulary.names[index]: list(classes).count(index) for index in sorted(set(classes))}
