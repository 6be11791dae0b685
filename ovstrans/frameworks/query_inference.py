"""Inference of the frameworks that predict masks and the classes of these masks, one pair for each query.

Shapes: `B` batch, `Q` queries, `K` classes, `H W` image, `h w` mask logits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.text import TextClassifier
from ovstrans.datasets.sample import Segment
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.mask2former_inference import Instances, QueryScores, semantic

TOP_INSTANCES = 100
"""Pairs of query and class that instance segmentation considers; COCO's evaluator counts as many per image."""


class QueryInference(Framework):
    """Base class of frameworks with semantic, panoptic and instance segmentation from `predict_masks`.

    A subclass implements `predict_masks`. Its options have object_threshold (least class probability of a panoptic
    segment) and overlap_threshold (least part of its mask that a segment must keep).
    """

    inference_options: ClassVar[frozenset[str]] = frozenset({"object_threshold", "overlap_threshold"})

    def predict_masks(self, images: Tensor, text: TextClassifier | None = None) -> tuple[Tensor, Tensor]:
        """Predict the class and the mask of every query.

        Args:
            images: [B, 3, H, W], RGB in [0, 1], of any size.
            text: The classes to score; None for the training vocabulary.

        Returns:
            Class probabilities [B, Q, K + 1], the void class last, and mask logits [B, Q, h, w] of the padded image.
        """
        raise NotImplementedError

    def logits(self, images: Tensor, text: TextClassifier | None = None) -> Tensor:
        """Sum class times mask probability over queries; see `Framework.logits`.

        Returns:
            Scores [B, K, *, *] at the size of the padded image, not negative.
        """
        probabilities, masks = self.predict_masks(images, text)
        size = self.padded_size(images)
        return semantic(probabilities[..., :-1], F.interpolate(masks.float(), size, mode="bilinear"))

    def scores(self, images: Tensor, text: TextClassifier | None = None) -> Sequence[QueryScores]:
        """Compute class scores that are summed over queries only when their rows are read; see `Framework.scores`."""
        size, padded = (int(images.shape[-2]), int(images.shape[-1])), self.padded_size(images)
        queries = zip(*self.predict_masks(images, text), strict=True)
        return [QueryScores(probabilities, masks, size, padded) for probabilities, masks in queries]

    def panoptic(self, images: Tensor, text: TextClassifier | None = None) -> list[tuple[Tensor, list[Segment]]]:
        """Compute the panoptic segmentation of each image; see `mask2former_inference.panoptic`.

        Args:
            images: [B, 3, H, W], RGB in [0, 1], of any size.
            text: The classes to score; None for the training vocabulary.

        Returns:
            Of each image the segment map, int32 [H, W], and the segments.
        """
        return [self.panoptic_from_scores(scores, text) for scores in self.scores(images, text)]

    def panoptic_from_scores(
        self, scores: QueryScores, text: TextClassifier | None = None, *, things: Collection[int] | None = None
    ) -> tuple[Tensor, list[Segment]]:
        """Compute the panoptic segmentation of an image from its scores, at their size.

        Args:
            scores: One of `scores`, resized or not.
            text: The classes that were scored; None for the training vocabulary.
            things: The classes that can be counted; None for those of the vocabulary.

        Returns:
            The segment map, int32 [H, W], and the segments.
        """
        thresholds = {name: self.options[name] for name in ("object_threshold", "overlap_threshold")}
        return scores.panoptic(self._things(text, things), **thresholds)

    def instances(
        self, images: Tensor, text: TextClassifier | None = None, *, top: int = TOP_INSTANCES
    ) -> list[Instances]:
        """Compute the instances in each image; see `mask2former_inference.instances`."""
        return [self.instances_from_scores(scores, text, top=top) for scores in self.scores(images, text)]

    def instances_from_scores(
        self,
        scores: QueryScores,
        text: TextClassifier | None = None,
        *,
        things: Collection[int] | None = None,
        top: int = TOP_INSTANCES,
    ) -> Instances:
        """Compute the instances in an image from its scores, at their size.

        Args:
            scores: One of `scores`, resized or not.
            text: The classes that were scored; None for the training vocabulary.
            things: The classes that can be counted; None for those of the vocabulary.
            top: How many pairs of query and class to consider.
        """
        return scores.instances(self._things(text, things), top=top)

    def _things(self, text: TextClassifier | None, things: Collection[int] | None) -> Collection[int]:
        return (text or self.text).vocabulary.things if things is None else things
