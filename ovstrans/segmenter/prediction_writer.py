"""Writing the predictions of a folder job image by image: which files there are, which images are done.

The files are those of `segmenter.label_maps` and `segmenter.coco`. An image's label map is written last, so an image
that has one has all its files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ovstrans import files
from ovstrans.errors import InputError
from ovstrans.evaluation.inference import Prediction
from ovstrans.segmenter.coco import (
    INSTANCES_JSON,
    PANOPTIC,
    PANOPTIC_JSON,
    make_annotation,
    make_instance_rows,
    write_segment_map,
)
from ovstrans.segmenter.coco_writer import JOURNAL, CocoWriter
from ovstrans.segmenter.label_maps import (
    CLASSES,
    CONFIDENCE,
    LABELS,
    OVERLAYS,
    describe_classes,
    read_description,
    read_label_map,
    save_picture,
    write_confidence,
    write_label_map,
)
from ovstrans.segmenter.overlays import draw_classes, draw_instances, draw_panoptic
from ovstrans.vocabulary.vocabulary import Vocabulary

PANOPTIC_OVERLAYS, INSTANCE_OVERLAYS = "overlays-panoptic", "overlays-instances"

_PICTURES = (LABELS, OVERLAYS, CONFIDENCE, PANOPTIC, PANOPTIC_OVERLAYS, INSTANCE_OVERLAYS)
_JSONS = (PANOPTIC_JSON, INSTANCES_JSON, JOURNAL, CLASSES)


@dataclass
class PredictionWriter:
    """Writes predictions into a folder.

    Attributes:
        folder: The folder.
        overlay: Write pictures for people.
        confidence: Write confidence maps.
        vocabulary: The classes, from `begin` on.
        coco: Collects the segments, from `begin` on.
    """

    folder: Path
    overlay: bool = True
    confidence: bool = False
    vocabulary: Vocabulary = field(init=False)
    coco: CocoWriter = field(init=False)

    def check(self, *, resume: bool, force: bool) -> None:
        """Check, before any work, that predictions can be written here.

        Args:
            resume: Go on with an interrupted job.
            force: Replace what is there.

        Raises:
            InputError: If nothing can be written here, or there is nothing to resume.
        """
        if not resume:
            files.check_output(self.folder, force=force, directory=True)
        elif not (self.folder / CLASSES).exists():
            raise InputError(f"{self.folder}: no predictions to resume; leave out `resume`, or give their folder")

    def begin(
        self,
        vocabulary: Vocabulary,
        *,
        checkpoint: Mapping[str, str],
        settings: Mapping[str, Any],
        resume: bool,
        panoptic: Collection[int] | None = None,
        instances: Collection[int] | None = None,
    ) -> None:
        """Write classes.json and delete the files of an older job; with `resume` check that the job is the same.

        Args:
            vocabulary: The classes.
            checkpoint: Path and sha256 of the checkpoint.
            settings: How the predictions are made, as plain values.
            resume: Go on with an interrupted job.
            panoptic: Indices of the things in panoptic.json; None to write no panoptic segments.
            instances: Indices of the things in instances.json; None to write no instances.

        Raises:
            InputError: If the job to resume has another checkpoint, other classes or other settings.
        """
        self.vocabulary = vocabulary
        self.coco = CocoWriter(self.folder, panoptic, instances)
        description = describe_classes(
            vocabulary,
            checkpoint=dict(checkpoint),
            **settings,
            overlays=self.overlay,
            confidence=self.confidence,
            panoptic=None if panoptic is None else {"things": sorted(panoptic)},
            instances=None if instances is None else {"things": sorted(instances)},
        )
        if not resume:
            self._clear()
            files.write_json(self.folder / CLASSES, description)
            return
        found = dict(read_description(self.folder))
        found["checkpoint"] = {**found.get("checkpoint", {}), "path": checkpoint["path"]}
        for key, value in description.items():
            if found.get(key) != value:
                raise InputError(
                    f"{self.folder}: was begun with another value of {key}; give the same options, another `out`, or "
                    "`force=True`"
                )
        self.coco.load()

    def has(self, name: str) -> bool:
        """Return whether all files of an image are written."""
        return self._has_label_map(name) and self.coco.has(name)

    def write(self, name: str, image: Tensor, prediction: Prediction) -> None:
        """Write the files of an image uint8 [3, H, W]."""
        if prediction.confidence is not None:
            write_confidence(self._file(CONFIDENCE, name), prediction.confidence)
        if self.overlay:
            save_picture(self._file(OVERLAYS, name), draw_classes(image, prediction.classes, self.vocabulary))
        if prediction.panoptic is not None:
            write_segment_map(self._file(PANOPTIC, name), prediction.panoptic[0])
            if self.overlay:
                picture = draw_panoptic(image, *prediction.panoptic, self.vocabulary)
                save_picture(self._file(PANOPTIC_OVERLAYS, name), picture)
        if prediction.instances is not None and self.overlay:
            picture = draw_instances(image, prediction.instances, self.vocabulary)
            save_picture(self._file(INSTANCE_OVERLAYS, name), picture)
        self.coco.add(
            name,
            None if prediction.panoptic is None else make_annotation(name, *prediction.panoptic),
            None if prediction.instances is None else make_instance_rows(name, prediction.instances),
        )
        write_label_map(self._file(LABELS, name), prediction.classes, self.vocabulary)

    def finish(self) -> None:
        """Write the files that are about all images, with the images done so far."""
        self.coco.finish(self.vocabulary, self._has_label_map)

    def read_labels(self, name: str) -> Tensor:
        """Read the label map of an image that is done: int64 [H, W]."""
        return read_label_map(self._file(LABELS, name))

    def image_files(self, name: str) -> dict[str, Path]:
        """Return the files of an image by what they are."""
        kinds = {"label_map": LABELS}
        kinds |= {"overlay": OVERLAYS} if self.overlay else {}
        kinds |= {"confidence": CONFIDENCE} if self.confidence else {}
        if self.coco.panoptic is not None:
            kinds |= {"segment_map": PANOPTIC} | ({"panoptic_overlay": PANOPTIC_OVERLAYS} if self.overlay else {})
        if self.coco.instances is not None and self.overlay:
            kinds |= {"instance_overlay": INSTANCE_OVERLAYS}
        return {key: self._file(kind, name) for key, kind in kinds.items()}

    def common_files(self) -> dict[str, Path]:
        """Return the files that `finish` writes by what they are."""
        names = {"panoptic": PANOPTIC_JSON} if self.coco.panoptic is not None else {}
        names |= {"instances": INSTANCES_JSON} if self.coco.instances is not None else {}
        return {key: self.folder / name for key, name in names.items()}

    def remove_if_empty(self) -> None:
        """Delete what `begin` wrote if no image was written after it."""
        if not any((self.folder / LABELS).rglob("*.png")):
            self._clear()
            with contextlib.suppress(OSError):  # the folder has other files
                self.folder.rmdir()

    def _has_label_map(self, name: str) -> bool:
        return self._file(LABELS, name).exists()

    def _file(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name}.png"

    def _clear(self) -> None:
        """Delete the files of an earlier job; a folder that holds no predictions keeps all its files."""
        try:
            read_description(self.folder)
        except InputError:
            return
        for kind in _PICTURES:
            for picture in (self.folder / kind).rglob("*.png"):
                picture.unlink()
            folders = [place for place in (self.folder / kind).rglob("*") if place.is_dir()]
            for place in (*sorted(folders, reverse=True), self.folder / kind):
                with contextlib.suppress(OSError):  # not empty, or missing
                    place.rmdir()
        for file in _JSONS:
            (self.folder / file).unlink(missing_ok=True)
