"""DeepLabV3 on a CLIP trunk, open-vocabulary: every pixel is embedded and compared with class names.

Chen et al. 2017 (arXiv 1706.05587) for the head, Chen et al. 2018 (arXiv 1802.02611) for its decoder;
OpenTrans sec. 4.1 for its open-vocabulary use. The stem and bottlenecks are exactly CLIP's, a trous at
strides below 32.

Shapes: `B` batch, `C` channels, `H W` image, `h w` feature map, `K` classes, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP

from ovstrans.clip.backbone import encode_dense, encode_stages, set_output_stride
from ovstrans.clip.text import TextClassifier, TextScores, cosine_scores
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, Framework
from ovstrans.frameworks.ensemble import geometric_ensemble, seen_classes
from ovstrans.vocabulary.prompts import DATASET, template_names, use_clean_names
from ovstrans.vocabulary.vocabulary import Vocabulary

RATES: Mapping[int, tuple[int, int, int]] = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
"""Atrous rates by output stride: one field of view in image pixels (Chen et al. 2017, sec. 4.1)."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "decoder": ("none", "plus"),
    "clip_path": ("none", "sum", "ensemble"),
    "templates": tuple(template_names()),
}


IGNORED = -100
"""What `training_targets` writes for pixels that carry no loss (cross entropy's own default)."""


class ClipPath(nn.Module):
    """CLIP's own dense embedding, from the value path of its attention pool; frozen.

    Kept frozen so that it stays the map that image and text encoders were trained to share.
    """

    def __init__(self, attnpool: nn.Module) -> None:
        super().__init__()
        pool = cast(Any, attnpool)
        # Keys, queries and positions play no part in the value path: they are not carried along.
        self.attnpool = nn.ModuleDict({"v_proj": pool.v_proj, "c_proj": pool.c_proj})
        self.requires_grad_(False)

    def forward(self, res5: Tensor, like: Tensor, text: TextClassifier | None = None, scale: float = 1.0) -> Tensor:
        """[B, C, *, *] to unit embeddings [B, E, h, w], or with `text` to its class scores [B, K, h, w].

        like: a map [B, *, h, w] whose size the result gets, by interpolation where it is not res5's own.
        """
        dense = encode_dense(self, res5).float()
        if text is None:
            return F.normalize(raised(dense, like), dim=1)
        return raised(cosine_scores(F.normalize(dense, dim=1), text, scale), like)  # raised last: few channels


class DeepLabV3(Framework):
    """ASPP over res5, then a unit embedding per pixel, scored against text embeddings.

    Training: softmax cross entropy over the base classes and the non-object vector. Pixels with the
    ignore label carry no loss, so the non-object is never a target; it only takes probability from
    classes that do not fit, and is dropped at inference.

    Options:
      output_stride  32, 16 or 8
      width          channels of ASPP and of what follows it
      dropout        after ASPP, and after the first convolution of the decoder
      decoder        "none": DeepLabV3, one more convolution at the output stride; "plus": DeepLabV3+, two
                     more at stride 4, over ASPP's output and res2
      low_width      channels that "plus" reduces res2 to
      last_dropout   after the last convolution of "plus"
      clip_path      "none"; "sum": clip_weight times CLIP's dense unit embedding is added to the head's
                     before normalisation, and the head starts at zero, so training starts from CLIP's
                     zero-shot answer; "ensemble": at inference the head's and CLIP's probabilities are
                     blended as in FC-CLIP, by alpha for trained class names and beta for others
      clip_scale     inverse temperature of CLIP's own scores in the ensemble
      templates      prompts of class names, by name (see `datasets.templates`), or "dataset": the vocabulary's own
    """

    name: ClassVar[str] = "deeplabv3"
    defaults: ClassVar[Mapping[str, Any]] = {
        "output_stride": 16,
        "width": 256,
        "dropout": 0.5,
        "decoder": "none",
        "low_width": 48,
        "last_dropout": 0.1,
        "clip_path": "none",
        "clip_weight": 1.0,
        "clip_scale": 100.0,
        "alpha": 0.4,
        "beta": 0.8,
        "templates": DATASET,
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
        trunk = cast(Any, self.backbone)
        if getattr(trunk, "attnpool", None) is None:
            raise InputError(f"framework {self.name}: needs a CLIP ResNet with its attention pool, like RN50")
        set_output_stride(self.backbone, self.options["output_stride"])
        channels, width = trunk.attnpool.v_proj.in_features, self.options["width"]
        self.clip_path = None if self.options["clip_path"] == "none" else ClipPath(trunk.attnpool)
        trunk.attnpool = None  # attention over positions has no use here
        self.aspp = ASPP(channels, RATES[self.options["output_stride"]], width)
        cast(Any, self.aspp.project)[3].p = self.options["dropout"]
        between: list[nn.Module] = []
        self.decoder: Decoder | None = None
        if self.options["decoder"] == "plus":
            rest = {name: self.options[name] for name in ("low_width", "width", "dropout", "last_dropout")}
            self.decoder = Decoder(trunk.layer1[-1].conv3.out_channels, **rest)
        else:
            between = [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        last = nn.Conv2d(width, self.embed_dim, 1)
        if self.options["clip_path"] == "sum":
            nn.init.zeros_(last.weight)
            nn.init.zeros_(cast(Tensor, last.bias))
        self.embed = nn.Sequential(*between, last)
        self.classifier = TextScores(self.embed_dim)

    @classmethod
    def format_class_names(cls, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary by its authors' own names, cleaned: OpenTrans prompts DeepLab as it does GKC."""
        return use_clean_names(vocabulary)

    def _check_options(self) -> None:
        """InputError for a value that no head can have."""
        for option, known in CHOICES.items():
            if self.options[option] not in known:
                raise InputError(
                    f"framework {self.name}: option {option} = {self.options[option]!r}; "
                    f"use {', '.join(map(repr, known))}"
                )
        for option in ("width", "low_width"):
            if self.options[option] < 1:
                raise InputError(
                    f"framework {self.name}: option {option} = {self.options[option]}; at least 1 is needed"
                )
        for option in ("dropout", "last_dropout"):
            if not 0 <= self.options[option] < 1:
                raise InputError(
                    f"framework {self.name}: option {option} = {self.options[option]}; "
                    "a chance from 0 to below 1 is needed"
                )

    def components(self) -> dict[str, nn.Module]:
        """trunk, aspp, embed, classifier; decoder and clip_path where the options are on."""
        parts = {"trunk": self.backbone, "aspp": self.aspp, "decoder": self.decoder, "embed": self.embed}
        parts |= {"classifier": self.classifier, "clip_path": self.clip_path}
        return {name: part for name, part in parts.items() if part is not None}

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(pixel embeddings [B, E, h, w], res5 [B, C, *, *]) of images [B, 3, H, W] in [0, 1].

        The embeddings have res5's stride, or 4 with the decoder "plus".
        """
        found = encode_stages(self.backbone, self.prepare(images))
        res5 = found["res5"]
        far = self.aspp(res5)
        embedding = self.embed(far if self.decoder is None else self.decoder(far, found["res2"]))
        if self.clip_path is not None and self.options["clip_path"] == "sum":
            embedding = embedding.float() + self.options["clip_weight"] * self.clip_path(res5, embedding)
        return embedding, res5

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """{"cross_entropy"}. Raises InputError without labels, or where BatchNorm would see one value."""
        if batch.labels is None:
            raise InputError(f"framework {self.name}: training needs labels, the batch has none")
        pooled = cast(Any, self.aspp.convs)[-1][2]
        if pooled.training and batch.images.shape[0] < 2:
            raise InputError(
                f"framework {self.name}: a batch of 1 image cannot train, its pooled branch normalises over "
                "the batch; use at least 2 images a step and process"
            )
        embedding, _ = self.features(batch.images)
        targets, columns = training_targets(batch.labels, batch.ignore, self._vocabulary)
        scores = self.classifier(embedding, self.text)
        kept = torch.cat([columns, columns.new_tensor([scores.shape[1] - 1])])  # and the non-object
        height, width = batch.labels.shape[-2:]
        pixels = self.resize(scores.index_select(1, kept), (height, width))
        return {"cross_entropy": pixel_cross_entropy(pixels, targets)}

    def training_outputs(self, images: Tensor) -> list[Tensor]:
        """The class scores of pixels, without CLIP's path, which training does not ask."""
        embedding, _ = self.features(images)
        return [self.classifier(embedding, self.text)]

    def logits(self, images: Tensor, text: TextClassifier | None = None) -> Tensor:
        """[B, K, h, w]: scaled cosines, or log probabilities with clip_path "ensemble"."""
        text = self.text if text is None else text.to(images.device)
        embedding, res5 = self.features(images)
        scores = self.classifier(embedding, text)[:, :-1]
        if self.clip_path is None or self.options["clip_path"] != "ensemble":
            return scores
        return geometric_ensemble(
            scores,
            self.clip_path(res5, scores, text, self.options["clip_scale"]),
            seen_classes(text.vocabulary, self._vocabulary),
            alpha=self.options["alpha"],
            beta=self.options["beta"],
        )


class Decoder(nn.Module):
    """ASPP's output brought to stride 4, joined with res2, and refined by two convolutions.

    channels: C of res2.  low_width: what these are reduced to, few, so that they refine rather than
    decide.  width: D.  dropout, last_dropout: after the first and the second convolution.
    """

    def __init__(self, channels: int, *, low_width: int, width: int, dropout: float, last_dropout: float) -> None:
        super().__init__()
        self.reduce = nn.Sequential(*_conv(channels, low_width, 1))
        self.refine = nn.Sequential(
            *_conv(width + low_width, width, 3),
            nn.Dropout(dropout),
            *_conv(width, width, 3),
            nn.Dropout(last_dropout),
        )

    def forward(self, far: Tensor, res2: Tensor) -> Tensor:
        """far: ASPP's output [B, D, *, *], of any stride.  res2: [B, C, h, w].  Returns [B, D, h, w]."""
        near = self.reduce(res2)
        return self.refine(torch.cat([raised(far, near), near], dim=1))


def raised(features: Tensor, target: Tensor) -> Tensor:
    """Features [B, C, *, *] interpolated to the h x w of `target` [B, *, h, w]; unchanged where they have it."""
    size = target.shape[-2:]
    return features if features.shape[-2:] == size else F.interpolate(features, size=size, mode="bilinear")


def _conv(inputs: int, outputs: int, kernel: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def training_targets(labels: Tensor, ignore: int, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Targets and columns of a softmax over the base classes.

    labels: int64 [...], class indices or `ignore`.  Returns (targets, columns): columns [K'] are the
    indices of the base classes, targets [...] count in them; ignored pixels and any pixel of a
    novel class are `IGNORED`. Leaving novel names out of the softmax matters as much as leaving out
    their pixels: a column that is never the answer is pushed away from every image.
    """
    columns = torch.tensor(sorted(vocabulary.base), dtype=torch.long, device=labels.device)
    # A label that is neither a class nor `ignore` lands on -1, which cross entropy refuses.
    table = torch.full((max(len(vocabulary), ignore + 1),), -1, dtype=torch.long, device=labels.device)
    table[: len(vocabulary)] = IGNORED
    table[columns] = torch.arange(len(columns), device=labels.device)
    table[ignore] = IGNORED
    return table[labels], columns


def pixel_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over the labelled pixels; 0 (with gradients of 0) where there are none.

    scores: [B, C, H, W].  targets: int64 [B, H, W], `IGNORED` where nothing counts.
    """
    total = F.cross_entropy(scores.float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)
