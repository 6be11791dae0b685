"""DeepLabV3 and DeepLabV3+ on a CLIP ResNet, open-vocabulary: every pixel is embedded and compared with class names.

Chen et al. 2017 (arXiv 1706.05587) for the head, Chen et al. 2018 (arXiv 1802.02611) for the decoder of DeepLabV3+,
OpenTrans (arXiv 2404.07448) sec. 4.1 for the open-vocabulary use. Stem and bottlenecks are exactly CLIP's; at output
strides below 32 they run with dilated convolutions.

Shapes: `B` batch, `C` channels, `D` width of the head, `H W` image, `h w` feature map, `K` classes, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP

from ovstrans.clip.backbone import (
    drop_head,
    encode_dense,
    encode_stages,
    encoder_kind,
    set_output_stride,
    stage_channels,
)
from ovstrans.clip.text import TextClassifier, TextScores, cosine_scores
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, Framework
from ovstrans.frameworks.ensemble import find_seen_classes, geometric_ensemble
from ovstrans.frameworks.options import check_choices
from ovstrans.frameworks.pyramid import LAST, encode_levels, level_at, make_pyramid
from ovstrans.vocabulary.vocabulary import DATASET, Vocabulary, template_names, use_clean_names

RATES: Mapping[int, tuple[int, int, int]] = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
"""Atrous rates of ASPP by output stride; the field of view in image pixels is the same (Chen et al. 2017, sec. 4.1)."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "decoder": ("none", "plus"),
    "clip_path": ("none", "sum", "ensemble"),
    "templates": tuple(template_names()),
}

IGNORED = -100
"""The target of pixels that carry no loss (the default of torch's cross entropy)."""


class DeepLabV3(Framework):
    """ASPP on res5 and a unit embedding per pixel, scored against the text embeddings of the classes.

    The training loss is the softmax cross entropy over the base classes and the non-object. Pixels with the ignore
    label carry no loss, so the non-object is never a target: it only takes probability from classes that do not fit,
    and is dropped at inference.

    Options:
        output_stride: Stride of res5 and ASPP: 32, 16 or 8.
        width: Channels of ASPP and of what follows it.
        dropout: Dropout after ASPP, and after the first convolution of the decoder.
        decoder: "none": DeepLabV3, one more convolution at the output stride. "plus": DeepLabV3+, two more at
            stride 4, on ASPP's output and res2.
        low_width: Channels that "plus" reduces res2 to.
        last_dropout: Dropout after the last convolution of "plus".
        clip_path: What CLIP's dense embedding is used for. "none": nothing. "sum": it is added, times clip_weight, to
            the head's embedding; the head starts at zero, so training starts from CLIP's zero-shot answer.
            "ensemble": at inference it is a second classifier, as in FC-CLIP.
        clip_weight: Weight of CLIP's embedding in "sum".
        clip_scale: Inverse temperature of CLIP's classifier in "ensemble".
        alpha: Weight of CLIP's classifier in "ensemble" for seen classes, in [0, 1].
        beta: Its weight for unseen classes, in [0, 1].
        templates: Name of the prompt templates (see `vocabulary.vocabulary`), or "dataset" for the vocabulary's own.
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
        inner = cast(Any, self.backbone)
        self.pyramid = make_pyramid(self.backbone) if encoder_kind(self.backbone) == "vit" else None
        if self.pyramid is None and getattr(inner, "attnpool", None) is None:
            raise InputError(f"framework {self.name}: needs a CLIP ResNet with its attention pool, like RN50, or a ViT")
        self.clip_path = None if self.options["clip_path"] == "none" else ClipPath(self.backbone)
        drop_head(self.backbone)  # pools over all positions, which a segmenter has no use for
        if self.pyramid is None:
            set_output_stride(self.backbone, self.options["output_stride"])
        # Dilated, a ResNet's last stage is at the output stride itself.
        self.level = "res5" if self.pyramid is None else level_at(self.options["output_stride"])
        found = stage_channels(self.backbone) if self.pyramid is None else self.pyramid.channels
        width = self.options["width"]
        channels = found[self.level]
        self.aspp = ASPP(channels, RATES[self.options["output_stride"]], width)
        cast(Any, self.aspp.project)[3].p = self.options["dropout"]
        convs: list[nn.Module] = []
        self.decoder: Decoder | None = None
        if self.options["decoder"] == "plus":
            decoder_options = {name: self.options[name] for name in ("low_width", "width", "dropout", "last_dropout")}
            self.decoder = Decoder(found["res2"], **decoder_options)
        else:
            convs = [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        last = nn.Conv2d(width, self.embed_dim, 1)
        if self.options["clip_path"] == "sum":
            nn.init.zeros_(last.weight)
            nn.init.zeros_(cast(Tensor, last.bias))
        self.embed = nn.Sequential(*convs, last)
        self.classifier = TextScores(self.embed_dim)

    @classmethod
    def format_class_names(cls, vocabulary: Vocabulary) -> Vocabulary:
        """Use the dataset authors' own names, cleaned: OpenTrans prompts DeepLab as it does GKC."""
        return use_clean_names(vocabulary)

    def components(self) -> dict[str, nn.Module]:
        """Return the backbone (as "trunk"), aspp, embed, classifier, and decoder and clip_path if they are on."""
        parts = {
            "trunk": self.backbone,
            "pyramid": self.pyramid,
            "aspp": self.aspp,
            "decoder": self.decoder,
            "embed": self.embed,
        }
        parts |= {"classifier": self.classifier, "clip_path": self.clip_path}
        return {name: part for name, part in parts.items() if part is not None}

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed every position of the feature map.

        Args:
            images: [B, 3, H, W], RGB in [0, 1].

        Returns:
            Pixel embeddings [B, E, h, w] of any length, at the output stride or at stride 4 with the decoder, and
            res5 [B, C, *, *], or the last map of a ViT.
        """
        if self.pyramid is None:
            stages = ("res5",) if self.decoder is None else ("res2", "res5")
            features = encode_stages(self.backbone, self.prepare(images), stages)
        else:
            features = encode_levels(self.backbone, self.prepare(images), self.pyramid)
        res5 = features["res5" if self.pyramid is None else LAST]
        context = self.aspp(features[self.level])
        embedding: Tensor = self.embed(context if self.decoder is None else self.decoder(context, features["res2"]))
        if self.clip_path is not None and self.options["clip_path"] == "sum":
            embedding = embedding.float() + self.options["clip_weight"] * self.clip_path(res5, embedding)
        return embedding, res5

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the cross entropy of the labelled pixels.

        Args:
            batch: At least two images with labels in train mode, as ASPP's pooled branch normalises over the batch.

        Returns:
            {"cross_entropy": mean over labelled pixels}.

        Raises:
            InputError: The batch has no labels, or a single image in train mode.
        """
        if batch.labels is None:
            raise InputError(f"framework {self.name}: training needs labels, the batch has none")
        pooled_norm = cast(Any, self.aspp.convs)[-1][2]
        if pooled_norm.training and batch.images.shape[0] < 2:
            raise InputError(
                f"framework {self.name}: a batch of 1 image cannot train, its pooled branch normalises over "
                "the batch; use at least 2 images a step and process"
            )
        embedding, _ = self.features(batch.images)
        targets, columns = training_targets(batch.labels, batch.ignore, self._vocabulary)
        scores = self.classifier(embedding, self.text)
        columns = torch.cat([columns, columns.new_tensor([scores.shape[1] - 1])])  # the non-object too
        height, width = batch.labels.shape[-2:]
        pixels = self.resize(scores.index_select(1, columns), (height, width))
        return {"cross_entropy": pixel_cross_entropy(pixels, targets)}

    def training_outputs(self, images: Tensor) -> list[Tensor]:
        """Compute the class scores; CLIP's classifier in "ensemble" takes no part in training."""
        embedding, _ = self.features(images)
        return [self.classifier(embedding, self.text)]

    def logits(self, images: Tensor, text: TextClassifier | None = None) -> Tensor:
        """Compute class scores: scaled cosines, or log probabilities with clip_path "ensemble"; see `Framework`."""
        text = self.text if text is None else text.to(images.device)
        embedding, res5 = self.features(images)
        scores: Tensor = self.classifier(embedding, text)[:, :-1]
        if self.clip_path is None or self.options["clip_path"] != "ensemble":
            return scores
        return geometric_ensemble(
            scores,
            self.clip_path(res5, scores, text, self.options["clip_scale"]),
            find_seen_classes(text.vocabulary, self._vocabulary),
            alpha=self.options["alpha"],
            beta=self.options["beta"],
        )

    def _check_options(self) -> None:
        """Raise InputError for a value that is not permitted."""
        owner = f"framework {self.name}"
        check_choices(owner, self.options, CHOICES)
        for option in ("width", "low_width"):
            if self.options[option] < 1:
                raise InputError(f"{owner}: option {option} = {self.options[option]}; at least 1 is needed")
        for option in ("dropout", "last_dropout"):
            if not 0 <= self.options[option] < 1:
                raise InputError(
                    f"{owner}: option {option} = {self.options[option]}; a probability from 0 to below 1 is needed"
                )


class Decoder(nn.Module):
    """Decoder of DeepLabV3+: ASPP's output at stride 4, concatenated with res2 and refined by two convolutions.

    Chen et al. 2018, sec. 3.1 and 4.1, in the layout that OpenTrans trains and counts (Tab. 1): ASPP's channels
    throughout.

    Args:
        channels: Channels of res2.
        low_width: Channels that res2 is reduced to, few, so that it refines rather than decides.
        width: D, the channels of ASPP and of the result.
        dropout: Dropout after the first convolution.
        last_dropout: Dropout after the second one.
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

    def forward(self, context: Tensor, res2: Tensor) -> Tensor:
        """Refine ASPP's output [B, D, *, *], of any stride, by res2 [B, C, h, w]; the result is [B, D, h, w]."""
        low_level = self.reduce(res2)
        refined: Tensor = self.refine(torch.cat([_resize_like(context, low_level), low_level], dim=1))
        return refined


class ClipPath(nn.Module):
    """CLIP's dense embedding: of a ResNet by value and output projection of its attention pool, of a ViT by its head.

    Frozen, so that it stays in the space that image and text encoder were trained to share.

    Args:
        encoder: The image encoder with its head. Queries, keys and positions of a pool are not needed and left out.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        source = cast(Any, encoder)
        if encoder_kind(encoder) == "vit":
            if getattr(source, "ln_post", None) is None or source.attn_pool is not None:
                raise InputError('clip_path: of ViTs, only open_clip\'s own with a class token have it; use "none"')
            self.ln_post, self.proj = source.ln_post, source.proj
        else:
            pool = source.attnpool
            self.attnpool = nn.ModuleDict({"v_proj": pool.v_proj, "c_proj": pool.c_proj})
        self.requires_grad_(False)

    def forward(self, res5: Tensor, like: Tensor, text: TextClassifier | None = None, scale: float = 1.0) -> Tensor:
        """Embed every position, or score it against class names.

        Args:
            res5: Features [B, C, *, *].
            like: A map [B, *, h, w] whose size the result gets, by bilinear interpolation if res5's is another.
            text: The K classes to score; None for embeddings.
            scale: Inverse temperature of the scores.

        Returns:
            Unit embeddings [B, E, h, w], or scores [B, K, h, w].
        """
        dense = encode_dense(self, res5).float()
        if text is None:
            return F.normalize(_resize_like(dense, like), dim=1)
        return _resize_like(cosine_scores(F.normalize(dense, dim=1), text, scale), like)  # K channels, not E


def training_targets(labels: Tensor, ignore: int, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Turn labels into the targets of a softmax over the base classes.

    Pixels of novel classes carry no loss, and the names of novel classes have no column: a column that is never the
    target would be pushed away from every image.

    Args:
        labels: int64 [...], class indices or `ignore`.
        ignore: The label of pixels that carry no loss.
        vocabulary: The training vocabulary.

    Returns:
        targets, int64 [...] of column numbers or `IGNORED`, and columns, int64 [K'], the class index of each column.
    """
    columns = torch.tensor(sorted(vocabulary.base), dtype=torch.long, device=labels.device)
    # A label that is neither a class nor `ignore` becomes -1, which cross entropy refuses.
    table = torch.full((max(len(vocabulary), ignore + 1),), -1, dtype=torch.long, device=labels.device)
    table[: len(vocabulary)] = IGNORED
    table[columns] = torch.arange(len(columns), device=labels.device)
    table[ignore] = IGNORED
    return table[labels], columns


def pixel_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean cross entropy of the pixels with a target.

    Args:
        scores: Logits [B, C, H, W].
        targets: int64 [B, H, W]; see `training_targets`.

    Returns:
        A scalar, float32; 0 with gradients of 0 if no pixel has a target.
    """
    total = F.cross_entropy(scores.float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def _resize_like(features: Tensor, like: Tensor) -> Tensor:
    """Resize features [B, C, *, *] to the h x w of `like` [B, *, h, w], bilinear; unchanged if they have it."""
    size = like.shape[-2:]
    return features if features.shape[-2:] == size else F.interpolate(features, size=size, mode="bilinear")


def _conv(inputs: int, outputs: int, kernel: int) -> tuple[nn.Module, ...]:
    """Return a convolution of the same output size, its norm and a ReLU."""
    return (
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
