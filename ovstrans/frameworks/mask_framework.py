"""Mask classification on a CLIP trunk: what FC-CLIP and GKC have in common.

A framework of this family is a subclass that says how queries are scored against class names, and
what its losses are beyond mask, dice and class.

Shapes: `B` batch, `Q` queries, `K` classes, `D` width of the head, `H W` image, `h w` feature map.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.backbone import encode_stages, stage_channels
from ovstrans.clip.text import TextClassifier
from ovstrans.datasets.sample import Segment
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, Framework, TargetRequirements
from ovstrans.frameworks.mask2former_head import FEATURES, HeadOutput, MaskHead
from ovstrans.frameworks.mask2former_inference import Instances, QueryScores, semantic
from ovstrans.frameworks.mask2former_losses import (
    Criterion,
    Match,
    Targets,
    class_loss,
    class_targets,
    segment_count,
    targets_of,
)

TOP = 100
"""Pairs of query and class that instance inference looks at (COCO's evaluator counts as many an image)."""


class MaskFramework(Framework):
    """Base of the frameworks that classify masks.

    A subclass gives `class_scores` and may refine `backbone_features`, `probabilities`, `extra_losses`,
    `components` and `target_requirements`. Its `defaults` start from `COMMON`:

      queries, width, heads, encoder_layers, encoder_ffn, decoder_layers, decoder_ffn
                         the head; see `MaskHead`
      mask_weight, dice_weight, class_weight
                         of the losses, each summed over all predictions of the decoder; matching
                         weighs its costs 5, 5 and 2 whatever these are
      void_weight        of queries that match no segment, in the class loss
      region_drop        chance that a matched query carries no class loss
      points             at which masks are compared
      object_threshold, overlap_threshold
                         of panoptic inference; see `mask2former_inference.panoptic`
    """

    COMMON: ClassVar[Mapping[str, Any]] = {
        "queries": 100,
        "width": 256,
        "heads": 8,
        "encoder_layers": 6,
        "encoder_ffn": 1024,
        "decoder_layers": 9,
        "decoder_ffn": 2048,
        "mask_weight": 5.0,
        "dice_weight": 5.0,
        "class_weight": 2.0,
        "void_weight": 0.1,
        "region_drop": 0.0,
        "points": 12544,
        "object_threshold": 0.8,
        "overlap_threshold": 0.8,
    }
    defaults: ClassVar[Mapping[str, Any]] = COMMON
    target_requirements: TargetRequirements = TargetRequirements(segments=True)

    def __init__(
        self,
        *,
        encoder: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        text: TextClassifier,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder=encoder, mean=mean, std=std, text=text, options=options)
        if self.options["points"] < 1:
            raise InputError(f"framework {self.name}: option points = {self.options['points']}; at least 1 is needed")
        if not 0 <= self.options["region_drop"] < 1:
            raise InputError(
                f"framework {self.name}: option region_drop = {self.options['region_drop']}; "
                "a chance from 0 to below 1 is needed"
            )
        sizes = ("queries", "width", "heads", "encoder_layers", "encoder_ffn", "decoder_layers", "decoder_ffn")
        found = stage_channels(self.backbone)
        self.head = MaskHead([found[name] for name in FEATURES], **{name: self.options[name] for name in sizes})
        self.criterion = Criterion(points=self.options["points"])

    @property
    def predictions(self) -> int:
        """How often the decoder predicts: before its first layer and after each."""
        return int(self.options["decoder_layers"]) + 1

    def components(self) -> dict[str, nn.Module]:
        """trunk, pixel_decoder, transformer_decoder, and what the subclass adds."""
        return {
            "trunk": self.backbone,
            "pixel_decoder": self.head.pixel_decoder,
            "transformer_decoder": self.head.transformer,
        }

    def backbone_features(self, images: Tensor) -> dict[str, Tensor]:
        """Features res2 to res5 of images [B, 3, H, W] in [0, 1]."""
        return encode_stages(self.backbone, self.prepare(images))

    def class_scores(self, found: HeadOutput, prediction: int, text: TextClassifier) -> Tensor:
        """Class logits [B, Q, K + 1] of one of the decoder's predictions, the void last."""
        raise NotImplementedError

    def probabilities(self, found: HeadOutput, features: Mapping[str, Tensor], text: TextClassifier) -> Tensor:
        """Class probabilities [B, Q, K + 1] for inference, the void last: softmax of the final class logits."""
        return self.class_scores(found, self.predictions - 1, text).softmax(-1)

    def extra_losses(
        self, found: HeadOutput, matches: Sequence[Sequence[Match]], targets: Sequence[Targets], batch: Batch
    ) -> dict[str, Tensor]:
        """What the framework minimises beyond mask, dice and class. matches: per prediction, per image."""
        return {}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """{"mask", "dice", "class"} and `extra_losses`, weighted, each summed over the decoder's predictions.

        Raises InputError where the batch has no segments (an image of it may well have none).
        """
        return self.losses_from_features(self.backbone_features(batch.images), batch)

    def losses_from_features(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """`losses`, given the trunk's features res2 to res5 of the batch's images."""
        if batch.segments is None:
            raise InputError(f"framework {self.name}: training needs segments, the batch has none")
        found = self.head(features)
        columns, text = sorted(self._vocabulary.base), self.base_text
        padded = self.padded_size(batch.images)
        targets = [targets_of(segments, columns, padded) for segments in batch.segments]
        count, options = segment_count(targets), self.options
        total: dict[str, Tensor] = {}
        matches: list[list[Match]] = []
        for prediction, masks in enumerate(found.masks):
            scores = self.class_scores(found, prediction, text)
            pairs = self.criterion.match(masks, scores, targets)
            wanted = class_targets(
                (scores.shape[0], scores.shape[1]), len(columns), targets, pairs, drop=options["region_drop"]
            )
            mask, dice = self.criterion.mask_losses(masks, targets, pairs, count)
            named = class_loss(scores, wanted, options["void_weight"])
            for name, value in (("mask", mask), ("dice", dice), ("class", named)):
                total[name] = total.get(name, 0.0) + options[f"{name}_weight"] * value
            matches.append(pairs)
        return total | self.extra_losses(found, matches, targets, batch)

    def training_outputs(self, images: Tensor) -> list[Tensor]:
        """Masks and class scores of every prediction, and what `extra_losses` starts from."""
        found, text = self.head(self.backbone_features(images)), _rows_of_base(self.text)
        outputs = list(found.masks)
        for prediction in range(self.predictions):
            outputs.append(self.class_scores(found, prediction, text))
            outputs += self.extra_training_outputs(found, prediction, text)
        return outputs

    def extra_training_outputs(self, found: HeadOutput, prediction: int, text: TextClassifier) -> list[Tensor]:
        """What `extra_losses` computes of one prediction before it looks at labels."""
        return []

    def predict_masks(self, images: Tensor, text: TextClassifier | None = None) -> tuple[Tensor, Tensor]:
        """What the queries found in images [B, 3, H, W] in [0, 1].

        Returns class probabilities [B, Q, K + 1], the void last, and mask logits [B, Q, h, w] over the
        padded image, at stride 4.
        """
        text = self.text if text is None else text.to(images.device)
        features = self.backbone_features(images)
        found = self.head(features)
        return self.probabilities(found, features, text), found.masks[-1]

    def logits(self, images: Tensor, text: TextClassifier | None = None) -> Tensor:
        """[B, K, H, W] over the padded image: class times mask probability, summed over queries."""
        probabilities, masks = self.predict_masks(images, text)
        size = self.padded_size(images)
        return semantic(probabilities[..., :-1], F.interpolate(masks.float(), size, mode="bilinear"))

    def scores(self, images: Tensor, text: TextClassifier | None = None) -> Sequence[QueryScores]:
        """`segment` without K full-size maps: per image its scores, of size (H, W), made when they are looked at."""
        size, padded = (int(images.shape[-2]), int(images.shape[-1])), self.padded_size(images)
        found = zip(*self.predict_masks(images, text), strict=True)
        return [QueryScores(probabilities, masks, size, padded) for probabilities, masks in found]

    def panoptic(self, images: Tensor, text: TextClassifier | None = None) -> list[tuple[Tensor, list[Segment]]]:
        """Per image its segment map int32 [H, W] and the segments; see `mask2former_inference.panoptic`."""
        return [self.panoptic_from_scores(scores, text) for scores in self.scores(images, text)]

    def panoptic_from_scores(
        self, scores: QueryScores, text: TextClassifier | None = None, *, things: Collection[int] | None = None
    ) -> tuple[Tensor, list[Segment]]:
        """Segment map int32 [H, W] and segments of an image's `scores`, at their size.

        things: the countable classes, by default the vocabulary's.
        """
        thresholds = {name: self.options[name] for name in ("object_threshold", "overlap_threshold")}
        return scores.panoptic(self._things(text, things), **thresholds)

    def instances(self, images: Tensor, text: TextClassifier | None = None, *, top: int = TOP) -> list[Instances]:
        """Per image its things; see `mask2former_inference.instances`."""
        return [self.instances_from_scores(scores, text, top=top) for scores in self.scores(images, text)]

    def instances_from_scores(
        self,
        scores: QueryScores,
        text: TextClassifier | None = None,
        *,
        things: Collection[int] | None = None,
        top: int = TOP,
    ) -> Instances:
        """The things in an image's `scores`, at their size; `things` as for `panoptic_from_scores`."""
        return scores.instances(self._things(text, things), top=top)

    def _things(self, text: TextClassifier | None, things: Collection[int] | None) -> Collection[int]:
        return (text or self.text).vocabulary.things if things is None else things


def _rows_of_base(text: TextClassifier) -> TextClassifier:
    """As many text rows as the base classes have: `base_text` looks at values, which meta tensors have not."""
    base = sorted(text.vocabulary.base)
    if len(base) == text.num_classes:
        return text
    vocabulary = text.vocabulary.subset(base)
    rows = sum(map(len, vocabulary.classes))
    return TextClassifier(text.embeddings[:rows], text.owner[:rows], vocabulary)
