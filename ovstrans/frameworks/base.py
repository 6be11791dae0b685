"""The framework contract: what a CLIP image encoder, a text classifier and a head must offer to be a segmenter.

To add a framework, write one file with a subclass of `Framework` and name it in `frameworks.registry`. Pruning,
analysis, training, evaluation, cost reports and export then work for it unchanged. The subclass

1. sets `name` and `defaults` (its options with their default values);
2. builds its head in `__init__`, after calling this one, which copies the image encoder to `self.backbone`;
3. implements `logits` (inference), `losses` (training) and `components` (the parts of a cost report);
4. sets `target_requirements` if its losses need more than images and a label map.

`frameworks.deeplabv3` is the simplest complete example.

Shapes: `B` batch, `H W` image, `h w` feature map, `K` classes, `R` text rows, `E` embedding, `N` segments of an
image, `M` nouns of a caption.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.load import Clip
from ovstrans.clip.models import DEFAULT_MODEL
from ovstrans.clip.text import TextClassifier, embed_vocabulary
from ovstrans.datasets.sample import Sample
from ovstrans.datasets.segments import Segments
from ovstrans.errors import MismatchError
from ovstrans.frameworks.options import resolve_options
from ovstrans.frameworks.scores import MapScores, Scores
from ovstrans.vocabulary.vocabulary import Vocabulary

SIZE_DIVISOR = 32
"""Images are padded to a multiple of this, the stride of CLIP's last feature map."""


@dataclass(frozen=True)
class TargetRequirements:
    """Inputs that the losses of a framework need in a `Batch` beyond images and label maps.

    The data loader provides the segments, `training.teacher_targets` the rest.

    Attributes:
        segments: Masks and classes of each image's segments (`Batch.segments`).
        teacher: CLIP's embedding of each segment's region (`Batch.teacher`).
        captions: Text embeddings of the nouns of each image's caption (`Batch.nouns`).
        synonyms: Text embedding of a synonym of each segment's class (`Batch.synonyms`).
    """

    segments: bool = False
    teacher: bool = False
    captions: bool = False
    synonyms: bool = False


@dataclass(frozen=True)
class TrainingStage:
    """A part of a training run that trains some of a framework's parameters by losses of its own.

    Attributes:
        name: What `Framework.stage` is meanwhile.
        steps: Number of steps.
        lr: Learning rate of the head; None for that of the recipe. The schedule of the recipe runs anew.
        requirements: What the losses need in a batch.
        matches: Whether queries are matched with segments, if the framework has queries.
        prompts: Number of class names that each step embeds behind a learned prompt, through the text encoder.
    """

    name: str
    steps: int
    lr: float | None = None
    requirements: TargetRequirements = TargetRequirements()
    matches: bool = True
    prompts: int = 0


@dataclass
class Batch:
    """A training batch.

    Images and labels are stacked; the other fields hold one entry per image, because images differ in their number
    of segments and nouns. A field that the framework did not ask for is None (see `TargetRequirements`).

    Attributes:
        images: float32 [B, 3, H, W], RGB in [0, 1].
        labels: int64 [B, H, W], class indices or `ignore`; None for images without labels.
        ignore: The label of pixels that carry no loss.
        segments: The segments of each image.
        captions: The caption of each image, "" where it has none.
        teacher: The teacher's embedding of each segment's region, unit rows [N, E].
        nouns: Text embeddings of the nouns of each caption, unit rows [M, E].
        synonyms: Text embedding of a synonym of each segment's class, unit rows [N, E].
    """

    images: Tensor
    labels: Tensor | None = None
    ignore: int = 255
    segments: tuple[Segments, ...] | None = None
    captions: tuple[str, ...] = ()
    teacher: tuple[Tensor, ...] | None = None
    nouns: tuple[Tensor, ...] | None = None
    synonyms: tuple[Tensor, ...] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with images, labels and segments on another device.

        The embeddings stay where they are: `training.teacher_targets` makes them on the training device.
        """
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        segments = None if self.segments is None else tuple(each.to(device) for each in self.segments)
        return replace(self, images=self.images.to(device, non_blocking=True), labels=labels, segments=segments)


class Framework(nn.Module):
    """Base class of every segmentation framework.

    Args:
        encoder: A CLIP image encoder as open_clip builds it. It is copied, and the copy is trainable.
        mean: Mean of each RGB channel in [0, 1] that CLIP was trained with.
        std: Standard deviation of each channel, likewise.
        text: The text classifier of the training vocabulary. Classes that the vocabulary calls novel give no
            training signal, neither by their pixels nor by their names.
        options: Values for some of `defaults`.

    Attributes:
        name: The framework's name in the registry, in recipes and in checkpoints.
        defaults: Every option with its default value. The default's type is the option's type.
        target_requirements: What the losses need in a batch. An instance may need more, depending on its options.
        templates: Name of the prompt templates that class names are put into (see `vocabulary.vocabulary`);
            None for the templates of the vocabulary.
        text_keys: Names of the parameters that the embedding of class names depends on, such as a learned prompt.
        inference_options: Options that a trained model may be used with other values of.
        stage: Name of the stage of training that `losses` and `training_outputs` are of; see `training_stages`.
        default_clip: open_clip model that it is counted on where none is named.
        panoptic_masks_first: If True and the dataset has panoptic ground truth, upsample the mask logits before
            summing over queries, as in the released evaluation. Otherwise upsample the summed class scores.
        options: The options of this instance: `defaults` with the given values.
        embed_dim: E, the dimension of CLIP's joint embedding space.
        backbone: The copy of the image encoder, the part that masks and freeze plans are about.

    The text classifier and the normalisation are buffers outside the state dict: they move with the module, and a
    checkpoint records them once, under their own names.

    Raises:
        InputError: An option is unknown or its value has the wrong type.
        MismatchError: The image encoder and the text embeddings have different dimensions.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    target_requirements: TargetRequirements = TargetRequirements()
    templates: ClassVar[str | None] = None
    text_keys: ClassVar[tuple[str, ...]] = ()
    inference_options: ClassVar[frozenset[str]] = frozenset()
    default_clip: ClassVar[str] = DEFAULT_MODEL
    panoptic_masks_first: ClassVar[bool] = False
    stage: str = ""

    options: dict[str, Any]
    embed_dim: int
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

    # What a subclass implements.

    def logits(self, images: Tensor, text: TextClassifier | None = None) -> Tensor:
        """Compute class scores at the resolution of the head.

        Args:
            images: [B, 3, H, W], RGB in [0, 1], of any size.
            text: The classes to score; None for the training vocabulary.

        Returns:
            Scores [B, K, h, w] of the padded image; `resize` brings them to its pixels.
        """
        raise NotImplementedError

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the training losses of a batch.

        Args:
            batch: Images with the targets that `target_requirements` names.

        Returns:
            Scalar losses by name, already weighted. Training minimises their sum.
        """
        raise NotImplementedError

    def components(self) -> dict[str, nn.Module]:
        """Return the modules that a cost report lists, by name.

        No module is inside another. The backbone is called "trunk", a name that reports and locks store.
        """
        raise NotImplementedError

    # What a subclass may override.

    @classmethod
    def format_class_names(cls, vocabulary: Vocabulary) -> Vocabulary:
        """Return the vocabulary with the class names as this framework writes them into prompts."""
        return vocabulary

    @classmethod
    def embed_vocabulary(cls, clip: Clip, vocabulary: Vocabulary, state: Mapping[str, Tensor]) -> TextClassifier:
        """Embed the classes of a vocabulary with the text encoder of a CLIP.

        Args:
            clip: The CLIP.
            vocabulary: The classes, with names and templates as this framework writes them.
            state: The parameters that `text_keys` names; empty before training.
        """
        return embed_vocabulary(clip, vocabulary)

    @property
    def severed_blocks(self) -> tuple[int, ...]:
        """Blocks of a ViT whose queries and keys the framework never uses; see `clip.severance`."""
        return ()

    @property
    def matching(self) -> tuple[int, int, int] | None:
        """Predictions of a training step that are matched with segments, their queries and points; None for none."""
        return None

    def training_stages(self, steps: int) -> list[TrainingStage]:
        """Return the stages of a training run, in order; usually there is one.

        Args:
            steps: Number of steps of the whole run.
        """
        return [TrainingStage("", steps, requirements=self.target_requirements)]

    def start_training(self, clip: Clip, *, resumed: bool) -> None:
        """Prepare for a training run, before weights are masked or frozen.

        Args:
            clip: The CLIP of the run.
            resumed: Whether the run continues with parameters that are loaded already.
        """

    def finish_training(self) -> None:
        """Bring what depends on trained parameters up to date, before a checkpoint is written."""

    def given_masks(
        self, name: str, size: tuple[int, int], sample: Sample | None = None, ignore: int = 255
    ) -> Tensor | None:
        """Return masks that `scores` takes beside the image, bool [N, H, W], as its argument `masks`; usually None.

        Args:
            name: Name of the image or of its file.
            size: Height and width of the image.
            sample: The image with its ground truth, if it is one of a dataset.
            ignore: The label of pixels that are ignored.
        """
        return None

    def training_outputs(self, images: Tensor) -> list[Tensor]:
        """Compute what `losses` computes before it looks at the targets, to count the cost of a training step.

        Must run on meta tensors. Override it if training computes anything else than `logits`.

        Args:
            images: [B, 3, H, W], RGB in [0, 1].

        Returns:
            The tensors that the losses start from.
        """
        return [self.logits(images)]

    def scores(self, images: Tensor, text: TextClassifier | None = None) -> Sequence[Scores]:
        """Compute class scores that are upsampled only when their rows are read.

        Gives the same scores as `segment`, without holding K maps of full size.

        Args:
            images: [B, 3, H, W], RGB in [0, 1].
            text: The classes to score; None for the training vocabulary.

        Returns:
            The scores of each image, at its size (H, W).
        """
        size, padded = (int(images.shape[-2]), int(images.shape[-1])), self.padded_size(images)
        return [MapScores(maps, size, padded) for maps in self.logits(images, text)]

    # What every framework has.

    @property
    def text(self) -> TextClassifier:
        """The text classifier of the training vocabulary, on the module's device."""
        return TextClassifier(self.text_embeddings, self.text_owner, self._vocabulary)

    @property
    def base_text(self) -> TextClassifier:
        """The text classifier of the base classes, those that the softmax of the training loss ranges over."""
        return self.text.subset(sorted(self._vocabulary.base))

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor] | Tensor:
        """Compute `losses` of a Batch (the entry point for DDP) or `logits` of images (for cost counters)."""
        return self.losses(batch) if isinstance(batch, Batch) else self.logits(batch)

    def segment(
        self, images: Tensor, text: TextClassifier | None = None, *, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Compute class scores of every pixel.

        Args:
            images: [B, 3, H, W], RGB in [0, 1], of any size.
            text: The classes to score; None for the training vocabulary.
            size: (height, width) of the result, such as the ground truth's; None for the images' own.

        Returns:
            Scores [B, K, H, W], or of `size`.
        """
        image_size = (int(images.shape[-2]), int(images.shape[-1]))
        return self.resize(self.logits(images, text), image_size, size)

    def prepare(self, images: Tensor) -> Tensor:
        """Normalise images [B, 3, H, W] with CLIP's mean and std and zero-pad them right and below to `padded_size`."""
        images = (images - self.pixel_mean) / self.pixel_std
        height, width = self.padded_size(images)
        return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))

    @staticmethod
    def padded_size(images: Tensor) -> tuple[int, int]:
        """Return the height and width of images [..., H, W] after padding to multiples of `SIZE_DIVISOR`."""
        height, width = int(images.shape[-2]), int(images.shape[-1])
        return height + -height % SIZE_DIVISOR, width + -width % SIZE_DIVISOR

    @staticmethod
    def resize(logits: Tensor, image_size: tuple[int, int], size: tuple[int, int] | None = None) -> Tensor:
        """Upsample scores to the padded image, cut the padding off and resize the rest, all bilinear.

        A map that already has its target size is returned as it is; interpolation would give the same values.

        Args:
            logits: [B, K, h, w], scores of the padded image.
            image_size: (H, W) of the image without padding.
            size: (height, width) of the result; None for `image_size`.

        Returns:
            Scores [B, K, H, W], or of `size`.
        """
        height, width = image_size
        padded = (height + -height % SIZE_DIVISOR, width + -width % SIZE_DIVISOR)
        logits = _interpolate(logits, padded)[..., :height, :width]
        return logits if size is None else _interpolate(logits, size)


def _interpolate(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps [B, K, *, *] to `size`, bilinear; return maps of that size unchanged."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
