"""What is known of the segments of a folder's images while it is being filled.

COCO's files are of all images at once. Until they are written, each image's entries are a line of `segments.jsonl`,
so that a run that is killed loses none of them, and none is written twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ovstrans.segmenter.coco_files import (
    INSTANCES_JSON,
    PANOPTIC_JSON,
    SURE,
    Row,
    name_of,
    read_instances,
    read_panoptic,
    told_apart,
    write_instances,
    write_panoptic,
)
from ovstrans.segmenter.rle import decode
from ovstrans.vocabulary.vocabulary import Vocabulary

JOURNAL = "segments.jsonl"
"""The file that is there while images are being written."""


class _Result(NamedTuple):
    """An entry of instances.json: what is asked of it, and its text, a tenth of its run lengths as numbers."""

    category: int
    score: float
    text: str


@dataclass
class SegmentBook:
    """folder: of the predictions.  panoptic, instances: the classes that are things there, None where not asked for."""

    folder: Path
    panoptic: Collection[int] | None = None
    instances: Collection[int] | None = None
    annotations: dict[str, Row] = field(default_factory=dict)
    results: dict[str, list[_Result]] = field(default_factory=dict)
    _listed: bool = False

    def load(self) -> None:
        """What an earlier run left; InputError where its files are not whole."""
        if self.panoptic is not None and (self.folder / PANOPTIC_JSON).exists():
            for row in read_panoptic(self.folder / PANOPTIC_JSON)["annotations"]:
                self.annotations[name_of(row["image_id"])] = row
        if self.instances is not None and (self.folder / INSTANCES_JSON).exists():
            self._listed = True
            for row in read_instances(self.folder / INSTANCES_JSON):
                self.results.setdefault(name_of(row["image_id"]), []).append(_result(row))
        if (self.folder / JOURNAL).exists():
            for line in (self.folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    self._take(**json.loads(line))
                except (ValueError, TypeError, KeyError):  # cut off by a kill, and its image not marked as done
                    continue

    def has(self, name: str) -> bool:
        """Whether the segments of an image with a label map are known; one without instances is nowhere listed."""
        return (self.panoptic is None or name in self.annotations) and (
            self.instances is None or self._listed or name in self.results
        )

    def add(self, name: str, annotation: Row | None, results: list[Row] | None) -> None:
        """Take an image's entries, and see to it that a kill does not lose them."""
        if annotation is None and results is None:
            return
        self._take(name, annotation, results)
        self.folder.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"name": name, "annotation": annotation, "results": results})
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(f"\n{line}\n")  # the first ends what a kill may have cut off
            journal.flush()
            os.fsync(journal.fileno())

    def finish(self, vocabulary: Vocabulary, done: Callable[[str], bool]) -> None:
        """Write COCO's files, of the images that are `done`, and drop the lines."""
        if self.panoptic is not None:
            rows = [row for name, row in sorted(self.annotations.items()) if done(name)]
            write_panoptic(self.folder / PANOPTIC_JSON, rows, vocabulary, self.panoptic)
        if self.instances is not None:
            found = (row.text for name, rows in sorted(self.results.items()) if done(name) for row in rows)
            write_instances(self.folder / INSTANCES_JSON, found)
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def entry(self, name: str, vocabulary: Vocabulary) -> dict[str, Any]:
        """For a summary: how many segments an image has of each class, and how many instances
        that can be told apart."""
        found: dict[str, Any] = {}
        if self.panoptic is not None:
            kinds = [info["category_id"] for info in self.annotations[name]["segments_info"]]
            found["segments"] = _counts(kinds, vocabulary)
        if self.instances is not None:
            sure = [row for row in self.results.get(name, []) if row.score >= SURE]
            masks = [decode(json.loads(row.text)["segmentation"]) for row in sure]
            seen = told_apart([row.score for row in sure], masks)
            found["instances"] = _counts([sure[number].category for number in seen], vocabulary)
        return found

    def _take(self, name: str, annotation: Row | None, results: list[Row] | None) -> None:
        if annotation is not None:
            self.annotations[name] = annotation
        if results is not None:
            self.results[name] = [_result(row) for row in results]


def _result(row: Row) -> _Result:
    return _Result(row["category_id"], row["score"], json.dumps(row, allow_nan=False))


def _counts(kinds: list[int], vocabulary: Vocabulary) -> dict[str, int]:
    return {vocabulary.names[kind]: kinds.count(kind) for kind in sorted(set(kinds))}
