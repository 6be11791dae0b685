"""Base of the frameworks that classify masks: a Mask2Former head whose queries are scored against class names.

FC-CLIP and GKC are of this family. A subclass says how queries are classified, and may add losses.

Shapes: `B` batch, `Q` queries, `K` classes, `C` channels, `H W` image, `h w` feature map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ovstrans.clip.text import TextClassifier
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, TargetRequirements
from ovstrans.frameworks.mask2former_head import FEATURES, HeadOutput, MaskHead
from ovstrans.frameworks.mask2former_losses import (
    Criterion,
    Match,
    Targets,
    class_loss,
    class_targets,
    make_targets,
    segment_count,
)
from ovstrans.frameworks.pyramid import encode_levels, level_channels, make_pyramid
from ovstrans.frameworks.query_inference import QueryInference


class MaskFramework(QueryInference):
    """Base class of the frameworks that classify masks.

    A subclass implements `class_scores`. It may override `backbone_features`, `probabilities`, `extra_losses`,
    `extra_training_outputs`, `components` and `target_requirements`. Its `defaults` start from `COMMON`.

    Options:
        queries: Number of queries.
        width: Channels of pixel decoder and transformer decoder.
        heads: Attention heads of both.
        encoder_layers: Layers of the pixel decoder's encoder.
        encoder_ffn: Hidden width of its feed-forward networks.
        decoder_layers: Layers of the transformer decoder.
        decoder_ffn: Hidden width of its feed-forward networks.
        mask_weight: Weight of the mask cross entropy. Losses are summed over all predictions of the decoder; the
            weights of the matching costs are fixed (see `Criterion`).
        dice_weight: Weight of the dice loss.
        class_weight: Weight of the class loss.
        void_weight: Weight, in the class loss, of queries that match no segment.
        region_drop: Probability that a matched query carries no class loss.
        points: Points per mask on which costs and losses compare masks.
        object_threshold: Least class probability of a panoptic segment.
        overlap_threshold: Least part of its mask that a panoptic segment must keep.
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
                "a probability from 0 to below 1 is needed"
            )
        sizes = ("queries", "width", "heads", "encoder_layers", "encoder_ffn", "decoder_layers", "decoder_ffn")
        self.pyramid = make_pyramid(self.backbone)
        channels = level_channels(self.backbone, self.pyramid)
        self.head = MaskHead([channels[name] for name in FEATURES], **{name: self.options[name] for name in sizes})
        self.criterion = Criterion(points=self.options["points"])

    # What a subclass implements.

    def class_scores(self, output: HeadOutput, prediction: int, text: TextClassifier) -> Tensor:
        """Compute class logits of the queries.

        Args:
            output: The predictions of the head.
            prediction: Index of the prediction, 0 to `predictions` - 1.
            text: The K classes to score.

        Returns:
            [B, Q, K + 1], the void class last.
        """
        raise NotImplementedError

    # What a subclass may override.

    def backbone_features(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the features [B, C, h, w] of res2 to res5, by name, of images [B, 3, H, W] in [0, 1]."""
        return encode_levels(self.backbone, self.prepare(images), self.pyramid)

    def probabilities(self, output: HeadOutput, features: Mapping[str, Tensor], text: TextClassifier) -> Tensor:
        """Compute the class probabilities that inference uses: by default the softmax of the final class logits.

        Args:
            output: The predictions of the head.
            features: Backbone features of all stages.
            text: The K classes to score.

        Returns:
            [B, Q, K + 1], the void class last.
        """
        return self.class_scores(output, self.predictions - 1, text).softmax(-1)

    def extra_losses(
        self, output: HeadOutput, matches: Sequence[Sequence[Match]], targets: Sequence[Targets], batch: Batch
    ) -> dict[str, Tensor]:
        """Compute the losses beyond mask, dice and class loss.

        Args:
            output: The predictions of the head.
            matches: The match of each prediction and image.
            targets: The targets of each image.
            batch: The training batch.

        Returns:
            Scalar losses by name, already weighted.
        """
        return {}

    def extra_training_outputs(self, output: HeadOutput, prediction: int, text: TextClassifier) -> list[Tensor]:
        """Compute what `extra_losses` computes for one prediction before it looks at the targets."""
        return []

    def components(self) -> dict[str, nn.Module]:
        """Return the backbone (as "trunk"), pixel_decoder and transformer_decoder; a subclass adds its own.

        A ViT has a pyramid too.
        """
        return {
            "trunk": self.backbone,
            **({} if self.pyramid is None else {"pyramid": self.pyramid}),
            "pixel_decoder": self.head.pixel_decoder,
            "transformer_decoder": self.head.transformer,
        }

    # Training.

    @property
    def matching(self) -> tuple[int, int, int]:
        """Predictions, queries and points of the matching; see `Framework.matching`."""
        return self.predictions, self.options["queries"], self.options["points"]

    @property
    def predictions(self) -> int:
        """Number of predictions of the decoder: one before its first layer and one after each."""
        return int(self.options["decoder_layers"]) + 1

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the training losses, each summed over the predictions of the decoder.

        Args:
            batch: Images with segments; an image may have none.

        Returns:
            Weighted losses: "mask" (binary cross entropy), "dice", "class" and those of `extra_losses`.

        Raises:
            InputError: The batch has no segments at all, as if they had not been loaded.
        """
        return self.losses_from_features(self.backbone_features(batch.images), batch)

    def losses_from_features(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Compute `losses` from given backbone features res2 to res5 of the batch's images."""
        if batch.segments is None:
            raise InputError(f"framework {self.name}: training needs segments, the batch has none")
        output = self.head(features)
        classes, text = sorted(self._vocabulary.base), self.base_text
        padded = self.padded_size(batch.images)
        targets = [make_targets(segments, classes, padded) for segments in batch.segments]
        count, options = segment_count(targets), self.options
        total: dict[str, Tensor] = {}
        matches: list[list[Match]] = []
        for prediction, masks in enumerate(output.masks):
            scores = self.class_scores(output, prediction, text)
            match = self.criterion.match(masks, scores, targets)
            shape, void = (scores.shape[0], scores.shape[1]), len(classes)
            labels = class_targets(shape, void, targets, match, drop=options["region_drop"])
            mask, dice = self.criterion.mask_losses(masks, targets, match, count)
            named = {"mask": mask, "dice": dice, "class": class_loss(scores, labels, options["void_weight"])}
            for name, value in named.items():
                total[name] = total.get(name, 0.0) + options[f"{name}_weight"] * value
            matches.append(match)
        return total | self.extra_losses(output, matches, targets, batch)

    def training_outputs(self, images: Tensor) -> list[Tensor]:
        """Compute masks and class scores of every prediction, and `extra_training_outputs`; for cost counters."""
        return self.outputs_from_features(self.backbone_features(images))

    def outputs_from_features(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Compute `training_outputs` from given backbone features res2 to res5."""
        output, text = self.head(features), base_sized(self.text)
        outputs = list(output.masks)
        for prediction in range(self.predictions):
            outputs.append(self.class_scores(output, prediction, text))
            outputs += self.extra_training_outputs(output, prediction, text)
        return outputs

    # Inference.

    def predict_masks(self, images: Tensor, text: TextClassifier | None = None) -> tuple[Tensor, Tensor]:
        """Predict the class and the mask of every query.

        Args:
            images: [B, 3, H, W], RGB in [0, 1], of any size.
            text: The classes to score; None for the training vocabulary.

        Returns:
            Class probabilities [B, Q, K + 1], the void class last, and mask logits [B, Q, h, w] of the padded image at
            stride 4.
        """
        text = self.text if text is None else text.to(images.device)
        features = self.backbone_features(images)
        output = self.head(features)
        return self.probabilities(output, features, text), output.masks[-1]


def base_sized(text: TextClassifier) -> TextClassifier:
    """Return a classifier with as many rows as that of the base classes.

    `Framework.base_text` selects rows by value, which meta tensors do not have.
    """
    base = sorted(text.vocabulary.base)
    if len(base) == text.num_classes:
        return text
    vocabulary = text.vocabulary.subset(base)
    rows = sum(map(len, vocabulary.classes))
    return TextClassifier(text.embeddings[:rows], text.owner[:rows], vocabulary)
