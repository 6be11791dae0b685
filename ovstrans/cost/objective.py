"""What a training step computes before its losses look at values: the outputs that gradients come from.

A step's cost is that of its forward pass as training runs it, not as inference does: the decoder of a mask
framework is judged at every prediction, class names are the base classes, distillation has projections of its
own, and nothing is summed up at pixels. The losses themselves need labels and a matching, which meta tensors
have not. Their products are few: those of the matching are in `training_run`; what is left out (the
comparison of captions with images, of regions with regions) is below 0.01 % of a step.

Shapes: `B` batch, `H W` image.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ovstrans.clip.text import TextClassifier
from ovstrans.frameworks.deeplabv3 import DeepLabV3
from ovstrans.frameworks.gkc import GKC
from ovstrans.frameworks.mask2former import HeadOutput
from ovstrans.frameworks.mask_framework import MaskFramework


def training_outputs(module: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """What the losses are computed from, for images [B, 3, H, W] in [0, 1].

    Of a module that is none of the frameworks known here: its output.
    """
    if isinstance(module, MaskFramework):
        return _mask_outputs(module, images)
    if isinstance(module, DeepLabV3):
        embedding, _ = module.features(images)
        return [module.classifier(embedding, module.text)]
    return [module(images)]


def _mask_outputs(module: MaskFramework, images: Tensor) -> list[Tensor]:
    found = module.head(module.trunk(images))
    text = _base_text(module)
    outputs = list(found.masks)
    for prediction in range(module.predictions):
        outputs.append(module.class_scores(found, prediction, text))
        if isinstance(module, GKC):
            outputs += _gkc_outputs(module, found, prediction, text)
    return outputs


def _gkc_outputs(module: GKC, found: HeadOutput, prediction: int, text: TextClassifier) -> list[Tensor]:
    """What the losses beyond mask, dice and class start from; each works its embeddings out anew, as in training."""
    outputs = []
    if module.needs.captions:
        outputs.append(module.embedding(found, prediction))
    if module.needs.teacher and module.options["distill_from"] == "embedding":
        outputs.append(module.embedding(found, prediction))
    elif module.needs.teacher:
        student = module.training_only.students[prediction]
        outputs.append(student(module.classifier.query(found.queries[prediction])))
    if module.needs.synonyms:
        outputs.append(module.class_scores(found, prediction, text))
    return outputs


def _base_text(module: MaskFramework) -> TextClassifier:
    """As `base_text`, whose choice of rows looks at values, which meta tensors have not."""
    text, base = module.text, sorted(module.text.vocabulary.base)
    if len(base) == text.num_classes:
        return text
    vocabulary = text.vocabulary.subset(base)
    rows = sum(map(len, vocabulary.classes))
    return TextClassifier(text.embeddings[:rows], text.owner[:rows], vocabulary)
