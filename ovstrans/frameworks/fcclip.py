"""FC-CLIP: a Mask2Former head on one CLIP, which finds masks and names them twice.

Yu et al. 2023 (arXiv 2308.02487). The trained class head names what it learnt; CLIP's own head, on the
same trunk, names the rest; the two are blended (sec. 3.3, eq. 7). As published the whole CLIP is frozen.
OpenTrans trains its trunk, under the mask (arXiv 2404.07448, sec. 6.1): the option `trunk`.

Shapes: `B` batch, `C` channels, `H W` image, `h w` feature map, `Q` queries, `K` classes, `E` embedding,
`D` width of the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ovstrans.clip import backbone as clip_backbone
from ovstrans.clip.pooling import encode_masks, valid_masks
from ovstrans.clip.text import MAX_SCALE, TextClassifier, TextScores, cosine_scores
from ovstrans.errors import InputError
from ovstrans.frameworks.ensemble import geometric_ensemble, seen_classes
from ovstrans.frameworks.mask2former_head import HeadOutput, mask_pool
from ovstrans.frameworks.mask_framework import MaskFramework
from ovstrans.vocabulary.prompts import template_names

TRUNKS = ("frozen", "train")
VALID = ("auto", "on", "off")


class ClassHead(nn.Module):
    """The in-vocabulary classifier: what a mask covers plus what its query knows, against text embeddings.

    width: D.  dim: E.  One head serves every prediction of the decoder.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.pool_projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.embed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim)
        )
        self.scores = TextScores(dim)

    def forward(self, queries: Tensor, masks: Tensor, mask_features: Tensor, text: TextClassifier) -> Tensor:
        """queries [B, Q, D], mask logits [B, Q, h, w], features [B, D, h, w] to logits [B, Q, K + 1], the void last."""
        pooled = self.pool_projection(mask_pool(mask_features, masks))
        embedding = self.embed(pooled + queries)
        return self.scores(embedding.transpose(1, 2), text).transpose(1, 2)


class ClipHead(nn.Module):
    """The out-of-vocabulary classifier: what CLIP puts on its trunk, against text embeddings; frozen.

    A ResNet's attention pool, a ConvNeXt's norm and projection. It is taken off the tower, and keeps the
    tower's names, so that `clip.pooling` finds its way.  scale: CLIP's inverse temperature.
    """

    def __init__(self, encoder: nn.Module, scale: float) -> None:
        super().__init__()
        self.scale = scale
        given = cast(Any, encoder)
        if clip_backbone.encoder_kind(encoder) == "convnext":
            self.trunk = nn.ModuleDict({"norm_pre": given.trunk.norm_pre, "head": given.trunk.head})
            self.head = given.head
        else:
            self.attnpool = given.attnpool
        clip_backbone.drop_head(encoder)
        self.requires_grad_(False)

    def forward(self, res5: Tensor, masks: Tensor, text: TextClassifier) -> Tensor:
        """Features [B, C, h, w] and mask logits [B, Q, *, *] to class logits [B, Q, K]."""
        embedding = encode_masks(self, res5, masks)
        return cosine_scores(embedding.transpose(1, 2), text, self.scale).transpose(1, 2)


class FCCLIP(MaskFramework):
    """Masks by Mask2Former, classes by a trained head and by CLIP itself.

    Options, beside `MaskFramework`'s:
      trunk         "frozen", as published: no gradient, no moving BatchNorm; "train": the trunk trains.
                    CLIP's own head is frozen either way
      ensemble      whether CLIP's own classifier takes part at inference
      alpha, beta   its weight for classes that training named, and for others
      clip_scale    its inverse temperature, at most 100 (what published CLIPs have)
      ensemble_on_valid_mask
                    "on": a mask with nothing inside at stride 32 is named by the trained head alone;
                    "off": by both; "auto", as published: on for ResNets, off for ConvNeXts
      templates     prompts of class names, by name (see `datasets.templates`), or "dataset"
    """

    name: ClassVar[str] = "fcclip"
    templates: ClassVar[str | None] = "vild"
    panoptic_masks_first: ClassVar[bool] = True
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
        super().__init__(encoder=encoder, mean=mean, std=std, text=text, options=options)
        self._check_options()
        self.frozen_trunk = self.options["trunk"] == "frozen"
        valid = self.options["ensemble_on_valid_mask"]
        self._valid_only = valid == "on" or (valid == "auto" and clip_backbone.encoder_kind(self.backbone) == "resnet")
        self.class_head = ClassHead(self.options["width"], self.embed_dim)
        self.clip_head: ClipHead | None = None
        if self.options["ensemble"]:
            self.clip_head = ClipHead(self.backbone, self.options["clip_scale"])
        else:
            clip_backbone.drop_head(self.backbone)
        self.backbone.requires_grad_(not self.frozen_trunk)
        self.train(self.training)

    def train(self, mode: bool = True) -> FCCLIP:
        """Train mode for what trains: a frozen trunk and CLIP's head stay in eval mode."""
        super().train(mode)
        if self.frozen_trunk:
            self.backbone.eval()
        if self.clip_head is not None:
            self.clip_head.eval()
        return self

    def components(self) -> dict[str, nn.Module]:
        """trunk, pixel_decoder, transformer_decoder, classifier, and clip_head where it takes part."""
        parts = {**super().components(), "classifier": self.class_head}
        return parts if self.clip_head is None else {**parts, "clip_head": self.clip_head}

    def backbone_features(self, images: Tensor) -> dict[str, Tensor]:
        """Features res2 to res5 of images [B, 3, H, W] in [0, 1], without a gradient where the trunk is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_trunk):
            return super().backbone_features(images)

    def class_scores(self, found: HeadOutput, prediction: int, text: TextClassifier) -> Tensor:
        """Class logits [B, Q, K + 1] of one of the decoder's predictions, the void last."""
        return self.class_head(found.queries[prediction], found.masks[prediction], found.mask_features, text)

    def clip_scores(self, found: HeadOutput, res5: Tensor, text: TextClassifier) -> Tensor:
        """CLIP's own class logits [B, Q, K] of the final masks (the out-of-vocabulary classifier)."""
        if self.clip_head is None:
            raise InputError(f"framework {self.name}: CLIP's own classifier is off; build it with ensemble = true")
        return self.clip_head(res5, found.masks[-1], text)

    def probabilities(self, found: HeadOutput, features: Mapping[str, Tensor], text: TextClassifier) -> Tensor:
        """Class probabilities [B, Q, K + 1], the void last (sec. 3.3).

        The void's is the trained head's; the rest is shared out by the geometric mean of both heads. In
        train mode, which CLIP's head has no part in, by the trained one alone.
        """
        scores = self.class_scores(found, self.predictions - 1, text)
        if self.clip_head is None or self.training:
            return scores.softmax(-1)
        inner = scores[..., :-1].transpose(1, 2)
        outer = self.clip_scores(found, features["res5"], text).transpose(1, 2)
        seen = seen_classes(text.vocabulary, self._vocabulary)
        blend = geometric_ensemble(inner, outer, seen, alpha=self.options["alpha"], beta=self.options["beta"])
        if self._valid_only:
            height, width = (int(side) for side in features["res5"].shape[-2:])
            valid = valid_masks(found.masks[-1], (height, width))
            blend = torch.where(valid[:, None], blend, inner)
        void = scores.softmax(-1)[..., -1:]
        return torch.cat([(1 - void) * blend.softmax(1).transpose(1, 2), void], dim=-1)

    def _check_options(self) -> None:
        for key, choices in (
            ("trunk", TRUNKS),
            ("ensemble_on_valid_mask", VALID),
            ("templates", tuple(template_names())),
        ):
            if self.options[key] not in choices:
                raise InputError(
                    f"framework {self.name}: option {key} = {self.options[key]!r}; use {', '.join(map(repr, choices))}"
                )
        for key, most in (("alpha", 1.0), ("beta", 1.0), ("clip_scale", MAX_SCALE)):
            if not 0 <= self.options[key] <= most:
                raise InputError(f"framework {self.name}: option {key} = {self.options[key]}; 0 to {most:g} is needed")
