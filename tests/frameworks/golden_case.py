"""The small FC-CLIP of which upstream's answers are kept in `golden/`: weights, names and images.

Every number is a function of the tensor's name, the same on any machine: no generator, no file.

Shapes: `H W` image, `R` text rows, `E` embedding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.load import create_image_encoder, model_info
from ovstrans.clip.text import TextClassifier
from ovstrans.frameworks.fcclip import FCCLIP
from ovstrans.frameworks.mask2former_head import HeadOutput
from ovstrans.vocabulary.vocabulary import Vocabulary

GOLDEN = Path(__file__).parent / "golden" / "fcclip.safetensors"
SEED = 43
"""Chosen among 130: some masks are empty, some only at stride 32, and no logit that decides is near 0 (`margin`)."""

SIZES = ((64, 64), (90, 60))
"""Heights and widths; the second one is padded."""

SHOWN = 4
"""Of the mask features, one channel in so many is kept: the file stays small, and the others act in the logits."""

SMALL: Mapping[str, Any] = {
    "queries": 10,
    "width": 32,
    "heads": 4,
    "encoder_layers": 2,
    "encoder_ffn": 48,
    "decoder_layers": 4,
    "decoder_ffn": 40,
}

TRAINED = Vocabulary.from_names("trained", ["cat, kitty", "dog", "grass, lawn, meadow", "sky"], novel=frozenset({3}))
"""`sky` is novel: upstream would not know of it."""

ASKED = Vocabulary.from_names("asked", ["boat, ship", "feline, kitty", "sky", "lawn", "a road", "water, sea, river"])
"""Seen are those that share a string with a trained name: feline and lawn."""


def determined(name: str, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """Numbers in [-scale, scale), float32: 16 bits each of SHAKE-256 of seed and name, exact before scaling."""
    count = math.prod(shape)
    bits = hashlib.shake_256(f"{SEED}/{name}".encode()).digest(2 * count)
    values = np.frombuffer(bits, dtype="<u2").astype(np.float32) / 32768 - 1
    return torch.from_numpy(values).reshape(shape) * scale


def determined_state(like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of the same names and shapes: matrices of variance 1 / fan-in, norms near 1, biases near 0."""
    state = {}
    for name, value in like.items():
        shape = tuple(value.shape)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=value.dtype)
        elif name.endswith("running_var"):
            state[name] = 1 + determined(name, shape, 0.5)
        elif name.endswith("logit_scale"):
            state[name] = torch.full(shape, math.log(1 / 0.07))
        elif name.endswith("sampling_offsets.bias"):
            state[name] = determined(name, shape, 4.0)
        elif name.endswith(("queries_features.weight", "mask_projection.bias")):
            state[name] = determined(name, shape, 3.0)  # queries that differ, some without any mask
        elif value.dim() < 2:
            norm = name.endswith("weight")
            state[name] = determined(name, shape, 0.1) + (1 if norm else 0)
        else:
            state[name] = determined(name, shape, math.sqrt(3 / math.prod(shape[1:])))
    return state


def text_of(vocabulary: Vocabulary, dim: int) -> TextClassifier:
    """Unit rows, one per synonym."""
    names = [name for synonyms in vocabulary.classes for name in synonyms]
    owner = torch.tensor([number for number, synonyms in enumerate(vocabulary.classes) for _ in synonyms])
    rows = torch.stack([determined(f"text of {name}", (dim,)) for name in names])
    return TextClassifier(F.normalize(rows, dim=1), owner, vocabulary)


def model(clip: str = "RN-mini", options: Mapping[str, Any] = SMALL) -> FCCLIP:
    """The framework with determined weights, in eval mode."""
    dim, _, mean, std = model_info(clip)
    text = text_of(TRAINED, dim)
    framework = FCCLIP(encoder=create_image_encoder(clip), mean=mean, std=std, text=text, options=options)
    framework.load_state_dict(determined_state(framework.state_dict()))
    return framework.eval()


def image(size: tuple[int, int]) -> Tensor:
    """uint8 [1, 3, H, W]: blocks of 16 pixels, each of one colour, with noise."""
    height, width = size
    blocks = determined(f"blocks {size}", (1, 3, -(-height // 16), -(-width // 16)), 90)
    blocks = blocks.repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :height, :width]
    return (128 + blocks + determined(f"noise {size}", (1, 3, height, width), 37)).to(torch.uint8)


def answers(framework: FCCLIP, picture: Tensor) -> dict[str, Tensor]:
    """What ours says of an image uint8 [1, 3, H, W], by the names of the golden file.

    mask_features [1, D / SHOWN, h, w], mask_logits [P, Q, h, w] and class_logits [P, Q, K + 1] of every prediction,
    clip_logits [1, Q, K], probabilities [1, Q, K + 1], semantic [1, K, H, W].
    """
    text = text_of(ASKED, framework.embed_dim)
    images = picture.float() / 255
    with torch.no_grad():
        features = framework.backbone_features(images)
        found: HeadOutput = framework.head(features)
        scores = [framework.class_scores(found, prediction, text) for prediction in range(framework.predictions)]
        return {
            "mask_features": found.mask_features[:, ::SHOWN],
            "mask_logits": torch.cat(found.masks),
            "class_logits": torch.cat(scores),
            "clip_logits": framework.clip_scores(found, features["res5"], text),
            "probabilities": framework.probabilities(found, features, text),
            "semantic": framework.segment(images, text),
        }


def resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """The last masks [P, Q, h, w] of an image of that size at stride 32, [Q, h / 8, w / 8]."""
    low = (-(-size[0] // 32), -(-size[1] // 32))
    return F.interpolate(masks[-1:], size=low, mode="bilinear", align_corners=False)[0]


def margin(masks: Tensor, size: tuple[int, int]) -> float:
    """The smallest of the mask logits whose sign decides: a rounding of this size could change the answer."""
    levels = [F.interpolate(masks, scale_factor=1 / step, mode="bilinear") for step in (2, 4, 8)]
    return min(float(each.abs().min()) for each in (masks, resized(masks, size), *levels))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())
