"""A folder of predictions while it is being filled: what is done already, what it was made with.

The files are those of `prediction_files` and `segment_files`. An image's label map is written last, so that where it
is the others are.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ovstrans import files
from ovstrans.errors import InputError
from ovstrans.evaluation.inference import Prediction
from ovstrans.segmenter.coco_files import (
    INSTANCES_JSON,
    PANOPTIC,
    PANOPTIC_JSON,
    annotation,
    image_id,
    results,
    write_segment_map,
)
from ovstrans.segmenter.coco_writer import JOURNAL, SegmentBook
from ovstrans.segmenter.label_maps import (
    CLASSES,
    CONFIDENCE,
    LABELS,
    OVERLAYS,
    about,
    read_about,
    read_label_map,
    save_picture,
    shares,
    write_confidence,
    write_label_map,
    write_overlay,
)
from ovstrans.segmenter.segment_overlay import draw_instances, draw_panoptic
from ovstrans.vocabulary.vocabulary import Vocabulary

PANOPTIC_OVERLAYS, INSTANCE_OVERLAYS = "overlays-panoptic", "overlays-instances"

_PICTURES = (LABELS, OVERLAYS, CONFIDENCE, PANOPTIC, PANOPTIC_OVERLAYS, INSTANCE_OVERLAYS)
_JSONS = (PANOPTIC_JSON, INSTANCES_JSON, JOURNAL, CLASSES)
_CHUNK = 2**20


@dataclass
class PredictionFolder:
    """path: the folder.  overlays, confidence: whether those are written beside the label maps."""

    path: Path
    overlays: bool = True
    confidence: bool = False
    vocabulary: Vocabulary = field(init=False)
    book: SegmentBook = field(init=False)

    def check(self, *, resume: bool, force: bool) -> None:
        """Before any work: InputError where predictions cannot be written here, or there is nothing to resume."""
        if not resume:
            files.check_output(self.path, force=force, directory=True)
        elif not (self.path / CLASSES).exists():
            raise InputError(f"{self.path}: no predictions to go on with; leave out --resume, or give their --out")

    def begin(
        self,
        vocabulary: Vocabulary,
        *,
        checkpoint: Path,
        settings: dict[str, Any],
        resume: bool,
        panoptic: Collection[int] | None = None,
        instances: Collection[int] | None = None,
    ) -> None:
        """Write classes.json, in place of an older prediction's files; with `resume` check that it says the same.

        settings: how the predictions are made, as plain values.  panoptic, instances: the classes that are things
        there, where panoptic segments and instances are written too.
        Raises InputError where what is there was made with another checkpoint, other classes or other settings.
        """
        self.vocabulary = vocabulary
        self.book = SegmentBook(self.path, panoptic, instances)
        made = about(
            vocabulary,
            checkpoint={"path": str(checkpoint), "sha256": _sha256(checkpoint)},
            **settings,
            overlays=self.overlays,
            confidence=self.confidence,
            panoptic=None if panoptic is None else {"things": sorted(panoptic)},
            instances=None if instances is None else {"things": sorted(instances)},
        )
        if not resume:
            self._clear()
            files.write_json(self.path / CLASSES, made)
            return
        found = dict(read_about(self.path))
        found["checkpoint"] = {**found.get("checkpoint", {}), "path": str(checkpoint)}
        for key, value in made.items():
            if found.get(key) != value:
                raise InputError(
                    f"{self.path}: was begun with other {key}; give the same options, another --out, or --force"
                )
        self.book.load()

    @property
    def segmented(self) -> bool:
        """Whether panoptic segments or instances are written."""
        return self.book.panoptic is not None or self.book.instances is not None

    def has(self, name: str) -> bool:
        """Whether an image's predictions are here, whole."""
        return self._written(name) and self.book.has(name)

    def write(self, name: str, image: Tensor, found: Prediction) -> None:
        """Write the files of an image uint8 [3, H, W]."""
        if found.confidence is not None:
            write_confidence(self._file(CONFIDENCE, name), found.confidence)
        if self.overlays:
            write_overlay(self._file(OVERLAYS, name), image, found.classes, self.vocabulary)
        if found.panoptic is not None:
            write_segment_map(self._file(PANOPTIC, name), found.panoptic[0])
            if self.overlays:
                drawn = draw_panoptic(image, *found.panoptic, self.vocabulary)
                save_picture(self._file(PANOPTIC_OVERLAYS, name), drawn)
        if found.instances is not None and self.overlays:
            drawn = draw_instances(image, found.instances, self.vocabulary)
            save_picture(self._file(INSTANCE_OVERLAYS, name), drawn)
        self.book.add(
            name,
            None if found.panoptic is None else annotation(name, *found.panoptic),
            None if found.instances is None else results(name, found.instances),
        )
        write_label_map(self._file(LABELS, name), found.classes, self.vocabulary)

    def finish(self) -> None:
        """Write the files that are of all images, so far as those are done."""
        self.book.finish(self.vocabulary, self._written)

    def entry(self, name: str, classes: Tensor | None = None) -> dict[str, Any]:
        """For a summary: files, size (height, width) and classes with their shares of the pixels; and by class name how
        many segments there are, and how many instances that can be told apart.

        classes: [H, W], what was written; read again where None.
        """
        classes = read_label_map(self._file(LABELS, name)) if classes is None else classes
        written = {"label_map": LABELS}
        written |= {"overlay": OVERLAYS} if self.overlays else {}
        written |= {"confidence": CONFIDENCE} if self.confidence else {}
        if self.book.panoptic is not None:
            written |= {"segment_map": PANOPTIC} | ({"panoptic_overlay": PANOPTIC_OVERLAYS} if self.overlays else {})
        if self.book.instances is not None and self.overlays:
            written |= {"instance_overlay": INSTANCE_OVERLAYS}
        return {
            **({"image_id": image_id(name)} if self.segmented else {}),
            "size": list(classes.shape),
            **{key: str(self._file(kind, name)) for key, kind in written.items()},
            "classes": [
                {"index": index, "name": self.vocabulary.names[index], "share": share}
                for index, share in shares(classes)
            ],
            **self.book.entry(name, self.vocabulary),
        }

    def of_all_images(self) -> dict[str, str]:
        """For a summary: the files that `finish` writes."""
        written = {"panoptic": PANOPTIC_JSON} if self.book.panoptic is not None else {}
        written |= {"instances": INSTANCES_JSON} if self.book.instances is not None else {}
        return {kind: str(self.path / file) for kind, file in written.items()}

    def abandon(self) -> None:
        """Take away what `begin` wrote, where no image was written after it."""
        if not any((self.path / LABELS).rglob("*.png")):
            self._clear()
            with contextlib.suppress(OSError):  # what else is there stays
                self.path.rmdir()

    def _written(self, name: str) -> bool:
        return self._file(LABELS, name).exists()

    def _file(self, kind: str, name: str) -> Path:
        return self.path / kind / f"{name}.png"

    def _clear(self) -> None:
        """Remove an earlier prediction; a folder that is none keeps all its files."""
        try:
            read_about(self.path)
        except InputError:
            return
        for kind in _PICTURES:
            for picture in (self.path / kind).rglob("*.png"):
                picture.unlink()
            folders = [place for place in (self.path / kind).rglob("*") if place.is_dir()]
            for place in (*sorted(folders, reverse=True), self.path / kind):
                with contextlib.suppress(OSError):  # not empty, or not there
                    place.rmdir()
        for file in _JSONS:
            (self.path / file).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
