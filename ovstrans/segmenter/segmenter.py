"""The segmenter: a trained model that segments images by any class names.

    segmenter = Segmenter.load("run")
    found = segmenter.segment("photo.jpg", "road, a red car")
    found.overlay().save("overlay.png")

Shapes: `H W` image.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.checkpoints.file import Checkpoint, find_checkpoint, load_checkpoint
from ovstrans.clip.text import TextClassifier
from ovstrans.clip.weights import weights_sha256
from ovstrans.environment import pick_device
from ovstrans.errors import InputError, counted
from ovstrans.evaluation.inference import Inference, Prediction, given_masks, predict_image
from ovstrans.frameworks import registry
from ovstrans.interop.describe import describe_tensors
from ovstrans.runtime.choose import attach_runtime, check_runtime, choose_runtime
from ovstrans.runtime.release import release_weights
from ovstrans.segmenter.classes import (
    ClassNames,
    ThingClasses,
    choose_vocabulary,
    describe_unknown,
    find_things,
    share_colors,
)
from ovstrans.segmenter.inputs import ImageLike, MasksLike, to_masks, to_pixels
from ovstrans.segmenter.options import SegmentationOptions, describe_fit, explain_memory_errors, fit_to_memory
from ovstrans.segmenter.segmentation import Segmentation
from ovstrans.vocabulary.vocabulary import AUTO, Vocabulary

if TYPE_CHECKING:
    from ovstrans.progress import ProgressCallback
    from ovstrans.segmenter.predict import Predictions

Source = str | os.PathLike[str] | Checkpoint
"""A run folder or checkpoint file, by its path; a run; a checkpoint."""

logger = logging.getLogger(__name__)


class Segmenter:
    """A trained model, ready to segment images. Make one with `Segmenter.load`.

    Args:
        checkpoint: The checkpoint. It is left as it is; the model has its own copy of the weights.
        path: The file that the checkpoint is from, if it is from one.
        device: "auto", "cpu", "cuda" or "cuda:N".
        settings: Other values of options of inference, see `load`.
        runtime: What runs the image encoder, see `load`.

    Attributes:
        framework: The model, on the device and in eval mode.
        device: Where it computes.
        runtime: What runs the image encoder, and why.
        path: The checkpoint's file, or None.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        path: Path | None = None,
        device: torch.device | str = "auto",
        settings: Sequence[str] = (),
        runtime: str = "auto",
    ) -> None:
        check_runtime(runtime)
        self.device = pick_device(device)
        self.path = path
        self.framework = registry.restore(checkpoint, settings).to(self.device)
        self.runtime = choose_runtime(self.framework.backbone, runtime, device=self.device)
        attach_runtime(self.framework.backbone, self.runtime)
        if self.runtime.backbone is not None:
            release_weights(self.framework.backbone, [conv.name for conv in self.runtime.backbone.convs])
        if self.runtime.notable:
            logger.warning("the image encoder runs dense: %s", self.runtime.reason)
        elif self.runtime.backbone is not None:
            logger.info("sparse runtime: %s", self.runtime.reason)
        # What else there is; the framework has the weights.
        needed = {key: checkpoint.state[key] for key in self.framework.text_keys if key in checkpoint.state}
        self._checkpoint = replace(checkpoint, state=needed, mask=None, options=self.framework.options)
        self._classifiers: dict[tuple[Vocabulary, str], TextClassifier] = {}

    @classmethod
    def load(
        cls,
        source: Source,
        *,
        device: torch.device | str = "auto",
        runtime: str = "auto",
        settings: Sequence[str] = (),
        pretrained: str | os.PathLike[str] | None = None,
    ) -> Segmenter:
        """Load the model of a run or checkpoint.

        Args:
            source: A run folder or checkpoint file, what `finetune` returned, or a `Checkpoint`.
            device: "auto", "cpu", "cuda" or "cuda:N".
            runtime: What runs the image encoder. "dense": torch. "sparse": kernels that skip zero weights, on a CPU:
                CLIP's ResNets, and linear layers of ViTs and ConvNeXts; what they cannot run is run dense, with a
                warning. "auto": sparse where most weights are zero. Results differ by rounding.
            settings: Other values of those options of the framework that matter to inference alone, such as
                "model.proposals=folder:masks" of a DeOP.
            pretrained: Tag or file of the CLIP that embeds class names, where the one that the checkpoint records is
                not there. A checkpoint with its text encoder needs none.

        Raises:
            InputError: If there is no checkpoint, the device is missing, or the runtime or a setting is unknown.
            MismatchError: If the parts of the checkpoint do not fit together.
        """
        check_runtime(runtime)
        device = pick_device(device)
        if isinstance(source, Checkpoint):
            return cls(_with_clip(source, pretrained), device=device, settings=settings, runtime=runtime)
        if not isinstance(source, (str, os.PathLike)):
            raise InputError(f"`source`: {type(source).__name__} is no run and no checkpoint; give one, or its path")
        path = find_checkpoint(Path(source))
        checkpoint = _with_clip(_read_checkpoint(path), pretrained)
        return cls(checkpoint, path=path, device=device, settings=settings, runtime=runtime)

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that the model was trained with."""
        return self._checkpoint.vocabulary

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the model was trained with."""
        return self.vocabulary.names

    @cached_property
    def sha256(self) -> str:
        """Hash of the checkpoint's file; of the weights if it is from no file."""
        return files.hash_file(self.path) if self.path else weights_sha256(self.framework.state_dict())

    def segment(
        self,
        image: ImageLike,
        classes: ClassNames | None = None,
        *,
        vocabulary: Vocabulary | str | None = None,
        names: str = AUTO,
        confidence: bool = False,
        panoptic: bool = False,
        instances: bool = False,
        things: ClassNames | None = None,
        short_side: int | None = None,
        long_side: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        flip: bool = False,
        masks: MasksLike | None = None,
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: A path, PIL image, numpy array or torch tensor; see `segmenter.inputs.to_pixels`.
            classes: The classes to tell apart, in any words: "road, a red car" or a list of names. None for those of
                the training. Their text embeddings are kept for later calls.
            vocabulary: In place of `classes`, a vocabulary, the name of a published one, or a file.
            names: Which names of a class go into prompts: auto (as the framework was published), synonyms, plain,
                clean or joined.
            confidence: Also give each pixel's confidence.
            panoptic: Also give panoptic segments; the frameworks gkc, fcclip and deop find them.
            instances: Also give instances; the frameworks gkc, fcclip and deop find them.
            things: Names of the countable classes. None takes those of the vocabulary, else what the training knew by
                the same name; the rest is stuff in panoptic segments and things among instances.
            short_side: Resize to this short side in pixels; 0 for the image's own. None for the size that papers use
                on the training data, if `long_side` is None too.
            long_side: Upper bound on the long side of the resized image.
            window: Score overlapping windows of this side. None scores the image in one piece, unless it has more
                than 4 megapixels: then in windows of 1024, or reduced if segments are asked for.
            stride: Distance between windows; None for 2/3 of the window.
            flip: Average the scores with those of the mirrored image.
            masks: Masks to classify, numpy or torch [N, H, W] of the image's size, anything but 0 is inside; of
                Segment Anything, for instance. Only deop takes them; None for its own proposals.

        Raises:
            InputError: If the image or an option is not valid, two options do not go together, the framework finds no
                segments, or the memory does not suffice.
        """
        options = SegmentationOptions(
            names=names,
            confidence=confidence,
            panoptic=panoptic,
            instances=instances,
            things=things,
            short_side=short_side,
            long_side=long_side,
            window=window,
            stride=stride,
            flip=flip,
        )
        pixels = to_pixels(image)
        task = SegmentationTask(self, choose_vocabulary(classes, vocabulary), options)
        name = image if isinstance(image, (str, os.PathLike)) else "image"
        prediction, _ = task.predict(pixels, name, masks=None if masks is None else to_masks(masks, pixels))
        return Segmentation(pixels, task.vocabulary, prediction)

    def predict(
        self,
        images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        out: Path | str = files.OUTPUT_DIR / "predict",
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> Predictions:
        """Segment image files and folders of them, and write the predictions into a folder.

        Args:
            images: Image files and folders of images.
            out: The folder to write.
            progress: Told of the images done.
            **options: As for `ovstrans.predict`.
        """
        from ovstrans.segmenter.predict import predict

        return predict(self, images, out=out, progress=progress, **options)

    def classifier(self, vocabulary: Vocabulary, names: str = AUTO) -> TextClassifier:
        """Return the text classifier of a vocabulary, on the device; it is embedded once and kept.

        Args:
            vocabulary: The classes.
            names: As for `segment`.
        """
        key = (vocabulary, names)
        if key not in self._classifiers:
            self._classifiers[key] = registry.classifier_for(self._checkpoint, vocabulary, names).to(self.device)
        return self._classifiers[key]

    def __repr__(self) -> str:
        model = f"{self._checkpoint.framework} on {self._checkpoint.clip['model']}"
        source = f", {self.path}" if self.path else ""
        return f"Segmenter({model}, trained on {counted(len(self.classes), 'class', 'classes')}{source}, {self.device})"


class SegmentationTask:
    """Segments images one after another with the same classes and options.

    Args:
        segmenter: The model.
        vocabulary: The classes; None for those of the training.
        options: How to segment.

    Attributes:
        vocabulary: The classes.
        inference: How images are scored, but for those that are too large.
        things: The countable classes.

    Raises:
        InputError: If the framework finds no segments and they are asked for, or `things` names what is not a class.
    """

    def __init__(self, segmenter: Segmenter, vocabulary: Vocabulary | None, options: SegmentationOptions) -> None:
        checkpoint = segmenter._checkpoint
        options.check_framework(checkpoint.framework, segmenter.path or "checkpoint")
        self._segmenter, self._options = segmenter, options
        self._noticed_size = False
        self.inference = options.inference_for(checkpoint)
        trained = checkpoint.vocabulary
        self.vocabulary = trained if vocabulary is None else share_colors(vocabulary, trained)
        if len(self.vocabulary) == 1:
            logger.info("only one class, so every pixel will be %r; name what else there is", self.vocabulary.names[0])
        self.things: ThingClasses = find_things(self.vocabulary, checkpoint.vocabulary, options.things)
        notice = describe_unknown(self.vocabulary, self.things, panoptic=options.panoptic, instances=options.instances)
        if options.wants_segments and notice:
            logger.info(notice)
        self._text = segmenter.classifier(self.vocabulary, options.names)

    @property
    def panoptic_things(self) -> frozenset[int] | None:
        """Indices of the things in panoptic segments; None if those are not asked for."""
        return self.things.panoptic if self._options.panoptic else None

    @property
    def instance_things(self) -> frozenset[int] | None:
        """Indices of the things among instances; None if those are not asked for."""
        return self.things.instances if self._options.instances else None

    def predict(
        self, image: Tensor, name: object, *, masks: Tensor | None = None, progress: ProgressCallback | None = None
    ) -> tuple[Prediction, Inference]:
        """Segment an image uint8 [3, H, W].

        Args:
            image: The image.
            name: Its name, to look up its masks and for messages.
            masks: Masks to classify, see `Segmenter.segment`.
            progress: Told of the windows of a large image.

        Returns:
            The prediction, and how the image was scored.

        Raises:
            InputError: If the memory does not suffice, or the scores are NaN.
        """
        framework = self._segmenter.framework
        if masks is None:
            masks = given_masks(framework, str(name), image)
        size, whole = (int(image.shape[-2]), int(image.shape[-1])), self._options.wants_segments or masks is not None
        inference = fit_to_memory(self.inference, size, whole=whole)
        if inference != self.inference and not self._noticed_size:
            self._noticed_size = True
            logger.info(describe_fit(name, size, inference))
        with explain_memory_errors(name, whole=whole):
            prediction = predict_image(
                framework,
                image,
                self._text,
                device=self._segmenter.device,
                inference=inference,
                confidence=self._options.confidence,
                panoptic=self.panoptic_things,
                instances=self.instance_things,
                masks=masks,
                progress=progress,
                name=Path(str(name)).name,
            )
        return prediction, inference


def _with_clip(checkpoint: Checkpoint, pretrained: str | os.PathLike[str] | None) -> Checkpoint:
    """Return a checkpoint that takes its text encoder from other weights than it records."""
    if pretrained is None or checkpoint.text_encoder is not None:
        return checkpoint
    return dataclasses.replace(checkpoint, clip={**checkpoint.clip, "pretrained": os.fspath(pretrained)})


def _read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; the InputError for another file says what that is."""
    try:
        return load_checkpoint(path)
    except InputError as error:
        try:
            kind = describe_tensors(path).kind
        except InputError:
            kind = ""
        if kind == "sparse checkpoint" or (not kind and path.suffix == ".safetensors"):
            raise
        raise InputError(
            f"{path}: not a checkpoint{kind and f', it holds: {kind}'}; give a run of `ovstrans finetune`, or the "
            "checkpoint in it"
        ) from error
