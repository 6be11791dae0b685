"""The framework contract: a CLIP image encoder, a text classifier and a head that together segment.

A new framework is one file with a subclass of `Framework` and one line in `registry.py`; pruning,
analysis, training, evaluation, cost and export then work for it unchanged.

Shapes: `B` batch, `H W` image, `h w` feature map, `K` classes, `R` text rows, `E` embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.text import TextClassifier
from ovstrans.datasets.segments import Segments
from ovstrans.errors import InputError, MismatchError, did_you_mean
from ovstrans.frameworks.scores import MapScores, Scores
from ovstrans.vocabulary.vocabulary import Vocabulary

SIZE_DIVISOR = 32
"""Images are padded to a multiple of this, the stride of CLIP's trunk."""


@dataclass(frozen=True)
class TargetRequirements:
    """What a framework's losses want in a batch beyond images and labels; `training.teacher_targets` provides it.

    segments: panoptic targets.  teacher: CLIP's embedding of each segment's region.  captions: the
    embeddings of their nouns.  synonyms: an embedding of some other name of each segment's class.
    """

    segments: bool = False
    teacher: bool = False
    captions: bool = False
    synonyms: bool = False


@dataclass
class Batch:
    """images: float32 [B, 3, H, W], RGB in [0, 1].  labels: int64 [B, H, W] of class indices, or None.
    ignore: the label value of pixels that count for nothing.
    segments: per image its N segments.  captions: per image its sentence, or "".

    From a targets, each per image and of unit rows, None without one: teacher [N, E], the teacher's
    embedding of each segment's region; nouns [M, E], text embeddings of the caption's nouns; synonyms
    [N, E], text embedding of a name of each segment's class."""

    images: Tensor
    labels: Tensor | None = None
    ignore: int = 255
    segments: tuple[Segments, ...] | None = None
    captions: tuple[str, ...] = ()
    teacher: tuple[Tensor, ...] | None = None
    nouns: tuple[Tensor, ...] | None = None
    synonyms: tuple[Tensor, ...] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Images, labels and segments on another device."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        segments = None if self.segments is None else tuple(each.to(device) for each in self.segments)
        return replace(self, images=self.images.to(device, non_blocking=True), labels=labels, segments=segments)


class Framework(nn.Module):
    """Base of every framework.

    A subclass names itself, lists its options with their defaults, builds its head in `__init__` after
    calling this one, and gives `logits`, `losses` and `components`.

    `backbone` is the CLIP image encoder (a copy of the one given), the part that masks and freeze plans
    are about. The text classifier and the normalisation are buffers that move with the module but stay
    out of its state dict: a checkpoint records them once, under their own names.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    target_requirements: TargetRequirements = TargetRequirements()
    """What its losses want in a batch; an instance may ask for more by its options."""
    templates: ClassVar[str | None] = None
    """The prompts its class names fill, by name (see `datasets.templates`); None for the vocabulary's own."""
    panoptic_masks_first: ClassVar[bool] = False
    """Whether, as published, masks are resized before their class sum where panoptic truth exists; elsewhere,
    and everywhere if False, the sum is resized."""

    backbone: nn.Module
    pixel_mean: Tensor
    pixel_std: Tensor
    text_embeddings: Tensor
    text_owner: Tensor

    def __init__(
        self,
        *,
        encoder: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        text: TextClassifier,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """tower: open_clip image encoder, copied.  mean, std: of RGB in [0, 1], the CLIP's own.
        text: the training vocabulary; classes it calls novel get no training signal at all.
        options: see `defaults`.  Raises InputError for an option that does not exist or fit,
        MismatchError where tower and text embeddings are not of one CLIP."""
        super().__init__()
        self.options = resolve_options(f"framework {self.name}", self.defaults, options or {})
        dim = getattr(encoder, "output_dim", text.embeddings.shape[1])
        if dim != text.embeddings.shape[1]:
            raise MismatchError(
                f"framework {self.name}: the image encoder embeds in {dim} dimensions, the text embeddings of "
                f"{text.vocabulary.name!r} have {text.embeddings.shape[1]}; both must come from one CLIP"
            )
        self.embed_dim = int(dim)
        self.backbone = copy.deepcopy(encoder).requires_grad_(True)
        self._vocabulary = text.vocabulary
        self.register_buffer("pixel_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.register_buffer("text_embeddings", text.embeddings.detach().clone().float(), persistent=False)
        self.register_buffer("text_owner", text.owner.detach().clone(), persistent=False)

    @classmethod
    def format_class_names(cls, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary with its class names as this framework writes them into prompts."""
        return vocabulary

    @property
    def text(self) -> TextClassifier:
        """The classifier of the training vocabulary, on the module's device."""
        return TextClassifier(self.text_embeddings, self.text_owner, self._vocabulary)

    @property
    def base_text(self) -> TextClassifier:
        """The classifier of the base classes alone, which a training softmax ranges over."""
        return self.text.subset(sorted(self._vocabulary.base))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of a labelled batch; their sum is what training minimises."""
        raise NotImplementedError

    def logits(self, images: Tensor, text: TextClassifier | None = None) -> Tensor:
        """Class scores at the head's own resolution.

        images: [B, 3, H, W] RGB in [0, 1], any size.  text: the vocabulary to score (None: the one it was
        trained with).  Returns [B, K, h, w] over the padded image; `resize` brings it to pixels.
        """
        raise NotImplementedError

    def training_outputs(self, images: Tensor) -> list[Tensor]:
        """What `losses` computes from images [B, 3, H, W] before it looks at labels, for counting its costs.

        Runs on meta tensors. A framework whose training computes other things than `logits` says so here.
        """
        return [self.logits(images)]

    def components(self) -> dict[str, nn.Module]:
        """The parts that cost reports name, none inside another; the trunk is called `trunk`."""
        raise NotImplementedError

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor] | Tensor:
        """`losses` of a Batch (what DDP wraps), `logits` of images (what counters run)."""
        return self.losses(batch) if isinstance(batch, Batch) else self.logits(batch)

    def segment(
        self, images: Tensor, text: TextClassifier | None = None, *, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Logits [B, K, H, W] at the images' size, or at `size` (a ground truth of another one)."""
        shape = (int(images.shape[-2]), int(images.shape[-1]))
        return self.resize(self.logits(images, text), shape, size)

    def scores(self, images: Tensor, text: TextClassifier | None = None) -> Sequence[Scores]:
        """`segment` without K full-size maps: per image its scores, of size (H, W), made when they are looked at."""
        size, padded = (int(images.shape[-2]), int(images.shape[-1])), self.padded_size(images)
        return [MapScores(maps, size, padded) for maps in self.logits(images, text)]

    def prepare(self, images: Tensor) -> Tensor:
        """Normalise by CLIP's mean and std, then zero-pad right and below to a multiple of 32."""
        images = (images - self.pixel_mean) / self.pixel_std
        height, width = self.padded_size(images)
        return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))

    @staticmethod
    def padded_size(images: Tensor) -> tuple[int, int]:
        """Height and width of images [..., H, W] once they are padded to multiples of 32."""
        height, width = int(images.shape[-2]), int(images.shape[-1])
        return height + -height % SIZE_DIVISOR, width + -width % SIZE_DIVISOR

    @staticmethod
    def resize(logits: Tensor, image_size: tuple[int, int], size: tuple[int, int] | None = None) -> Tensor:
        """Bilinear to the padded image, padding cut off; then to `size` where it is not the image's.

        What has its size already is left as it is: interpolated it would be the same, to the last bit.
        """
        height, width = image_size
        padded = (height + -height % SIZE_DIVISOR, width + -width % SIZE_DIVISOR)
        logits = _interpolated(logits, padded)[..., :height, :width]
        return logits if size is None else _interpolated(logits, size)


def _interpolated(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, K, *, *] at another size, bilinear."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def resolve_options(owner: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` with `options` laid over; InputError for an unknown option or a value of another kind.

    owner: whose options these are, as messages say it.
    """
    resolved = dict(defaults)
    for key, value in options.items():
        if key not in defaults:
            hint = did_you_mean(key, defaults)
            raise InputError(f"{owner}: no option {key!r}; {hint}options are {', '.join(defaults)}")
        default = defaults[key]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, tuple):
            value = list(value)
        if type(value) is not type(default):
            raise InputError(
                f"{owner}: option {key} = {value!r}; a {type(default).__name__} is needed, like {default!r}"
            )
        resolved[key] = value
    return resolved
