"""FC-CLIP: a Mask2Former head on one CLIP backbone, with two classifiers: a trained one and CLIP's own.

Yu et al. 2023 (arXiv 2308.02487). The trained classifier is better on the classes of the training vocabulary, CLIP's
own on others; at inference the two are combined by a geometric ensemble (sec. 3.3, eq. 7). As published all of CLIP is
frozen. OpenTrans trains the backbone, under the mask (arXiv 2404.07448, sec. 6.1): the option `trunk`.

Shapes: `B` batch, `C` channels, `H W` image, `h w` feature map, `Q` queries, `K` classes, `E` embedding,
`D` width of the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ovstrans.clip.backbone import drop_head, encoder_kind
from ovstrans.clip.pooling import valid_masks
from ovstrans.clip.text import MAX_SCALE, TextClassifier, TextScores, cosine_scores
from ovstrans.errors import InputError
from ovstrans.frameworks.clip_head import ClipHead
from ovstrans.frameworks.ensemble import find_seen_classes, geometric_ensemble
from ovstrans.frameworks.mask2former_head import HeadOutput, mask_pool
from ovstrans.frameworks.mask_framework import MaskFramework
from ovstrans.frameworks.options import check_choices
from ovstrans.vocabulary.vocabulary import template_names

CHOICES: Mapping[str, tuple[str, ...]] = {
    "trunk": ("frozen", "train"),
    "ensemble_on_valid_mask": ("auto", "on", "off"),
    "templates": tuple(template_names()),
}


class InVocabularyClassifier(nn.Module):
    """The trained classifier: mask-pooled features plus query embeddings, projected and compared with class names.

    One classifier serves every prediction of the decoder.

    Args:
        width: D, the width of the head.
        dim: E, the dimension of the text embeddings.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.pool_projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.embed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim)
        )
        self.scores = TextScores(dim)

    def forward(self, queries: Tensor, masks: Tensor, mask_features: Tensor, text: TextClassifier) -> Tensor:
        """Compute class logits.

        Args:
            queries: Query embeddings [B, Q, D].
            masks: Mask logits [B, Q, h, w].
            mask_features: Output of the pixel decoder [B, D, h, w].
            text: The K classes to score.

        Returns:
            [B, Q, K + 1], the void class last.
        """
        pooled = self.pool_projection(mask_pool(mask_features, masks))
        embedding = self.embed(pooled + queries)
        scores: Tensor = self.scores(embedding.transpose(1, 2), text)
        return scores.transpose(1, 2)


class OutOfVocabularyClassifier(ClipHead):
    """CLIP's own classifier: its embedding of the image inside each mask, compared with class names; frozen.

    Args:
        encoder: The image encoder. Its head is removed, in place.
        scale: CLIP's inverse temperature.
    """

    def __init__(self, encoder: nn.Module, scale: float) -> None:
        super().__init__(encoder)
        self.scale = scale

    def forward(self, res5: Tensor, masks: Tensor, text: TextClassifier) -> Tensor:
        """Compute class logits [B, Q, K] from features [B, C, h, w] and mask logits [B, Q, *, *]."""
        embedding = self.embed_masks(res5, masks)
        return cosine_scores(embedding.transpose(1, 2), text, self.scale).transpose(1, 2)


class FCCLIP(MaskFramework):
    """Masks by Mask2Former, classes by a trained classifier and by CLIP's own.

    Options, beside those of `MaskFramework` (here queries is 250 and object_threshold 0):
        trunk: The backbone. "frozen", as published: no gradient, BatchNorm statistics fixed. "train": it is trained.
            CLIP's head is frozen in both cases.
        ensemble: Whether CLIP's own classifier takes part at inference.
        alpha: Weight of CLIP's classifier for seen classes, in [0, 1].
        beta: Its weight for unseen classes, in [0, 1].
        clip_scale: Its inverse temperature, at most 100, which published CLIPs have.
        ensemble_on_valid_mask: "on": a mask that is empty at stride 32 is classified by the trained classifier alone.
            "off": by both. "auto", as published: on for ResNets, off for ConvNeXts.
        templates: Name of the prompt templates (see `vocabulary.vocabulary`), or "dataset" for the vocabulary's own.
    """

    name: ClassVar[str] = "fcclip"
    templates: ClassVar[str | None] = "vild"
    panoptic_masks_first: ClassVar[bool] = True
    inference_options: ClassVar[frozenset[str]] = MaskFramework.inference_options | {"alpha", "beta"}
    defaults: ClassVar[Mapping[str, Any]] = {
        **MaskFramework.COMMON,
        "queries": 250,
        "object_threshold": 0.0,
        "trunk": "frozen",
        "ensemble": True,
        "alpha": 0.4,
        "beta": 0.8,
        "clip_scale": MAX_SCALE,
        "ensemble_on_valid_mask": "auto",
        "templates": templates,
    }

    def __init__(
        self,
        *,
        encoder: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        text: TextClassifier,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if encoder_kind(encoder) == "vit":
            raise InputError(f"framework {self.name}: needs a ResNet or ConvNeXt, as published; gkc and deop take ViTs")
        super().__init__(encoder=encoder, mean=mean, std=std, text=text, options=options)
        self._check_options()
        self.frozen_backbone = self.options["trunk"] == "frozen"
        valid = self.options["ensemble_on_valid_mask"]
        self._valid_only = valid == "on" or (valid == "auto" and encoder_kind(self.backbone) == "resnet")
        self.class_head = InVocabularyClassifier(self.options["width"], self.embed_dim)
        self.clip_head: OutOfVocabularyClassifier | None = None
        if self.options["ensemble"]:
            self.clip_head = OutOfVocabularyClassifier(self.backbone, self.options["clip_scale"])
        else:
            drop_head(self.backbone)
        self.backbone.requires_grad_(not self.frozen_backbone)
        self.train(self.training)

    def train(self, mode: bool = True) -> FCCLIP:
        """Set the mode of what is trained: a frozen backbone and CLIP's head stay in eval mode."""
        super().train(mode)
        if self.frozen_backbone:
            self.backbone.eval()
        if self.clip_head is not None:
            self.clip_head.eval()
        return self

    def components(self) -> dict[str, nn.Module]:
        """Return the components of `MaskFramework`, classifier, and clip_head if it takes part."""
        parts = {**super().components(), "classifier": self.class_head}
        return parts if self.clip_head is None else {**parts, "clip_head": self.clip_head}

    def backbone_features(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the features of all stages, without a gradient if the backbone is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_backbone):
            return super().backbone_features(images)

    def class_scores(self, output: HeadOutput, prediction: int, text: TextClassifier) -> Tensor:
        """Compute the class logits [B, Q, K + 1] of the trained classifier; see `MaskFramework.class_scores`."""
        scores: Tensor = self.class_head(
            output.queries[prediction], output.masks[prediction], output.mask_features, text
        )
        return scores

    def clip_scores(self, output: HeadOutput, res5: Tensor, text: TextClassifier) -> Tensor:
        """Compute the class logits [B, Q, K] of CLIP's own classifier for the final masks.

        Args:
            output: The predictions of the head.
            res5: Backbone features [B, C, h, w].
            text: The K classes to score.

        Raises:
            InputError: The framework was built with `ensemble = false`.
        """
        if self.clip_head is None:
            raise InputError(f"framework {self.name}: CLIP's own classifier is off; build it with ensemble = true")
        scores: Tensor = self.clip_head(res5, output.masks[-1], text)
        return scores

    def probabilities(self, output: HeadOutput, features: Mapping[str, Tensor], text: TextClassifier) -> Tensor:
        """Compute class probabilities [B, Q, K + 1] by the ensemble, the void class last (sec. 3.3).

        The trained classifier decides how probable the void is; the rest is distributed over the classes by the
        ensemble. In train mode, in which CLIP's classifier takes no part, the trained classifier decides alone.
        """
        scores = self.class_scores(output, self.predictions - 1, text)
        if self.clip_head is None or self.training:
            return scores.softmax(-1)
        trained = scores[..., :-1].transpose(1, 2)
        frozen = self.clip_scores(output, features["res5"], text).transpose(1, 2)
        seen = find_seen_classes(text.vocabulary, self._vocabulary)
        blend = geometric_ensemble(trained, frozen, seen, alpha=self.options["alpha"], beta=self.options["beta"])
        if self._valid_only:
            height, width = (int(side) for side in features["res5"].shape[-2:])
            valid = valid_masks(output.masks[-1], (height, width))
            blend = torch.where(valid[:, None], blend, trained)
        void = scores.softmax(-1)[..., -1:]
        return torch.cat([(1 - void) * blend.softmax(1).transpose(1, 2), void], dim=-1)

    def _check_options(self) -> None:
        """Raise InputError for a value that is not permitted."""
        check_choices(f"framework {self.name}", self.options, CHOICES)
        for key, most in (("alpha", 1.0), ("beta", 1.0), ("clip_scale", MAX_SCALE)):
            if not 0 <= self.options[key] <= most:
                raise InputError(f"framework {self.name}: option {key} = {self.options[key]}; 0 to {most:g} is needed")
