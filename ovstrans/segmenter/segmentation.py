"""The result of segmenting one image: labels, confidence, segments, instances, and a picture of them.

Shapes: `H W` image.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ovstrans.datasets.sample import Segment
from ovstrans.errors import InputError, counted, did_you_mean
from ovstrans.evaluation.inference import Prediction
from ovstrans.segmenter.coco import bounding_box, select_distinct
from ovstrans.segmenter.label_maps import class_shares, write_label_map
from ovstrans.segmenter.overlays import draw_classes, draw_instances, draw_panoptic, format_share
from ovstrans.vocabulary.vocabulary import Vocabulary

_LISTED = 6


@dataclass(frozen=True)
class PanopticSegment:
    """One segment of a panoptic segmentation.

    Attributes:
        id: Its value in `Segmentation.segment_map`, from 1 on.
        name: Name of its class.
        class_index: Its class, an index in `Segmentation.classes`.
        isthing: Whether it is one countable thing, or all of one kind of stuff.
        area: Its pixels.
    """

    id: int
    name: str
    class_index: int
    isthing: bool
    area: int


@dataclass(frozen=True, eq=False)
class Instance:
    """One thing of an instance segmentation.

    Attributes:
        name: Name of its class.
        class_index: Its class, an index in `Segmentation.classes`.
        score: Confidence in 0..1.
        box: Smallest box around the mask: x, y, width, height in pixels.
        mask: bool [H, W].
    """

    name: str
    class_index: int
    score: float
    box: tuple[int, int, int, int]
    mask: np.ndarray = field(repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """Result of `Segmenter.segment` for an image. A notebook shows it as its overlay.

    Attributes:
        image: The image, uint8 [3, H, W].
        vocabulary: The classes that were told apart.
        prediction: The prediction as tensors.
    """

    image: Tensor
    vocabulary: Vocabulary
    prediction: Prediction

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; `labels` are indices of it."""
        return self.vocabulary.names

    @property
    def labels(self) -> np.ndarray:
        """Class index of each pixel, int64 [H, W]."""
        return self.prediction.classes.numpy()

    @property
    def confidence(self) -> np.ndarray | None:
        """Confidence in each pixel's class, float32 [H, W] in 0..1; None unless asked for."""
        return None if self.prediction.confidence is None else self.prediction.confidence.numpy()

    @property
    def segment_map(self) -> np.ndarray | None:
        """Segment id of each pixel, int32 [H, W], 0 for none; None unless panoptic segments were asked for."""
        return None if self.prediction.panoptic is None else self.prediction.panoptic[0].numpy()

    @cached_property
    def segments(self) -> tuple[PanopticSegment, ...] | None:
        """The panoptic segments; None unless asked for."""
        if self.prediction.panoptic is None:
            return None
        return tuple(self._describe_segment(segment) for segment in self.prediction.panoptic[1])

    @cached_property
    def instances(self) -> tuple[Instance, ...] | None:
        """The things, highest score first; None unless asked for.

        They overlap, and those of low score are mostly wrong: average precision wants them all. See
        `distinct_instances`.
        """
        found = self.prediction.instances
        if found is None:
            return None
        instances = []
        for score, index, mask in zip(found.scores.tolist(), found.classes.tolist(), found.masks.numpy(), strict=True):
            if mask.any():
                x, y, width, height = bounding_box(mask)
                instances.append(Instance(self.classes[index], index, score, (x, y, width, height), mask))
        return tuple(instances)

    @cached_property
    def distinct_instances(self) -> tuple[Instance, ...] | None:
        """The instances to show or count: of a score from 0.5 on, not mostly covered by one of a higher score."""
        if self.instances is None:
            return None
        chosen = select_distinct([each.score for each in self.instances], [each.mask for each in self.instances])
        return tuple(self.instances[number] for number in chosen)

    def areas(self) -> dict[str, float]:
        """Return the share of the pixels, 0..1, of each class that occurs, the largest first."""
        return {self.classes[index]: share for index, share in class_shares(self.prediction.classes)}

    def mask(self, name: str) -> np.ndarray:
        """Return the pixels of a class, bool [H, W].

        Args:
            name: Name of the class, in any case.

        Raises:
            InputError: If it is none of the classes.
        """
        indices = {each.casefold(): index for index, each in enumerate(self.classes)}
        if name.casefold() not in indices:
            hint = did_you_mean(name.casefold(), indices)
            raise InputError(f"class {name!r}: none of the {len(self.classes)} classes; {hint}see `.classes`")
        found: np.ndarray = self.labels == indices[name.casefold()]
        return found

    def overlay(self, kind: str = "classes") -> Image.Image:
        """Draw the image under what was found, above a legend. Small images are enlarged, large ones reduced.

        Args:
            kind: "classes", "panoptic" or "instances"; the latter two if they were asked for.

        Raises:
            InputError: If the kind is unknown, or was not asked for.
        """
        if kind == "classes":
            return draw_classes(self.image, self.prediction.classes, self.vocabulary)
        if kind == "panoptic" and self.prediction.panoptic is not None:
            return draw_panoptic(self.image, *self.prediction.panoptic, self.vocabulary)
        if kind == "instances" and self.prediction.instances is not None:
            return draw_instances(self.image, self.prediction.instances, self.vocabulary)
        if kind in ("panoptic", "instances"):
            raise InputError(f"`kind={kind}`: was not asked for; segment the image with {kind}=True")
        raise InputError(f"`kind={kind}`: unknown; use classes, panoptic or instances")

    def save(self, path: Path | str) -> Path:
        """Write the labels as a PNG: class indices with the colours as palette, 16-bit gray beyond 255 classes.

        Returns:
            The path.

        Raises:
            InputError: If the path does not end in .png or cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise InputError(f"{path}: a label map is a PNG file; give a name that ends in .png")
        write_label_map(path, self.prediction.classes, self.vocabulary)
        return path

    def _repr_png_(self) -> bytes:
        """Return the overlay as PNG, for notebooks."""
        buffer = io.BytesIO()
        self.overlay().save(buffer, format="PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        height, width = self.labels.shape
        areas = list(self.areas().items())
        shown = [f"{name} {format_share(share)}" for name, share in areas[:_LISTED]]
        shown += [f"{len(areas) - _LISTED} more"] if len(areas) > _LISTED else []
        found = [counted(len(self.segments), "segment")] if self.segments is not None else []
        found += [counted(len(self.distinct_instances), "instance")] if self.distinct_instances is not None else []
        return f"Segmentation({width}x{height}: {'; '.join([', '.join(shown), *found])})"

    def _describe_segment(self, segment: Segment) -> PanopticSegment:
        name = self.classes[segment.class_index]
        return PanopticSegment(segment.id, name, segment.class_index, segment.isthing, segment.area)
