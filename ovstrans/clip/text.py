"""Text embeddings of a vocabulary: the classifier of every open-vocabulary framework.

Shapes: `R` rows (one per synonym), `K` classes, `E` embedding.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans import files
from ovstrans.clip.backbone import full_precision
from ovstrans.clip.load import Clip
from ovstrans.clip.weights import VISUAL, weights_sha256
from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import Vocabulary

_CHUNK = 512

MAX_SCALE = 100.0
"""CLIP's bound on the inverse temperature (Radford et al. 2021, sec. 2.5)."""


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """The text embeddings of a vocabulary, one row per synonym.

    Attributes:
        embeddings: Rows [R, E] of unit length.
        owner: Index [R] of the class that each row belongs to.
        vocabulary: The K classes.
    """

    embeddings: Tensor
    owner: Tensor
    vocabulary: Vocabulary

    @property
    def num_classes(self) -> int:
        """The number K of classes."""
        return len(self.vocabulary)

    def to(self, device: torch.device | str) -> TextClassifier:
        """Return the classifier on another device."""
        return replace(self, embeddings=self.embeddings.to(device), owner=self.owner.to(device))

    def subset(self, classes: Sequence[int]) -> TextClassifier:
        """Return the classifier of some classes, by index and in that order."""
        if list(classes) == list(range(self.num_classes)):
            return self
        place = self.owner.new_full((self.num_classes,), -1)
        place[torch.tensor(classes, dtype=torch.long)] = torch.arange(len(classes), device=place.device)
        owner = place[self.owner]
        return TextClassifier(self.embeddings[owner >= 0], owner[owner >= 0], self.vocabulary.subset(classes))


def embed_vocabulary(clip: Clip, vocabulary: Vocabulary, *, cache: bool = True) -> TextClassifier:
    """Embed the class names of a vocabulary.

    Every synonym fills every template. Each prompt's embedding is normalised, the templates are averaged and the
    average is normalised (Radford et al. 2021, sec. 3.1.4).

    Args:
        clip: The CLIP whose text encoder is used.
        vocabulary: Class names, synonyms and templates.
        cache: Keep the result on disk, by text encoder, names and templates, and take it from there.

    Raises:
        InputError: If the CLIP came without its text encoder.
    """
    if not clip.has_text:
        raise InputError(
            f"{clip.pretrained}: holds the image encoder only, but class names need the text encoder; "
            "give the weights of the whole CLIP as `pretrained`"
        )
    names = [name for synonyms in vocabulary.classes for name in synonyms]
    owner = torch.tensor([number for number, synonyms in enumerate(vocabulary.classes) for _ in synonyms])
    path = _cache_path(clip, names, vocabulary.templates) if cache else None
    embeddings = _read_cache(path, len(names), clip.embed_dim)
    if embeddings is None:
        embeddings = embed_texts(clip, names, vocabulary.templates)
        _write_cache(path, embeddings)
    return TextClassifier(embeddings, owner, vocabulary)


def embed_texts(clip: Clip, names: list[str], templates: tuple[str, ...] = ("{}",)) -> Tensor:
    """Embed texts, averaged over templates.

    Returns:
        Rows [len(names), E] of unit length, on the CPU.
    """
    device = next(clip.model.parameters()).device
    total = torch.zeros(len(names), clip.embed_dim)
    with torch.inference_mode():
        for template in templates:
            prompts = [template.replace("{}", name) for name in names]
            rows = [
                clip.model.encode_text(clip.tokenizer(prompts[start : start + _CHUNK]).to(device), normalize=True)
                for start in range(0, len(prompts), _CHUNK)
            ]
            total += torch.cat(rows).float().cpu()
    return F.normalize(total, dim=-1).clone()


def reduce_synonyms(similarity: Tensor, owner: Tensor, num_classes: int, dim: int = 1) -> Tensor:
    """Turn scores of synonyms into scores of classes: each class gets its best synonym's.

    Args:
        similarity: Scores with R rows along `dim`.
        owner: Index [R] of the class that each row belongs to.
        num_classes: The number K of classes.
        dim: The dimension of the rows.

    Returns:
        Scores with K classes along `dim`.
    """
    shape = list(similarity.shape)
    shape[dim] = num_classes
    index = owner.view([-1 if axis == dim % similarity.dim() else 1 for axis in range(similarity.dim())])
    lowest = similarity.new_full(shape, torch.finfo(similarity.dtype).min)
    return lowest.scatter_reduce(dim, index.expand_as(similarity), similarity, reduce="amax")


def cosine_scores(
    features: Tensor, text: TextClassifier, scale: Tensor | float, *, extra: Tensor | None = None
) -> Tensor:
    """Compute the scaled cosine similarity of features to each class, taking the best of its synonyms.

    Args:
        features: Features [B, E, *]; their length does not matter.
        text: The classes.
        scale: Factor of the similarity (CLIP's temperature).
        extra: Embedding [E] of one more class, which comes after the others; its length does not matter.

    Returns:
        Scores [B, K, *], or [B, K + 1, *] with `extra`, in float32 whatever autocast says.
    """
    rows, owner, classes = text.embeddings.float(), text.owner, text.num_classes
    with full_precision(features):
        if extra is not None:
            rows = torch.cat([rows, F.normalize(extra.float(), dim=0).unsqueeze(0)])
            owner, classes = torch.cat([owner, owner.new_tensor([classes])]), classes + 1
        flat = F.normalize(features.float().flatten(2), dim=1)
        similarity = scale * torch.einsum("bep,re->brp", flat, rows)
        scores = reduce_synonyms(similarity, owner, classes, dim=1)
    return scores.reshape(*scores.shape[:2], *features.shape[2:])


class TextScores(nn.Module):
    """Scores against text embeddings, with a learned temperature and a learned non-object vector.

    The similarity is multiplied by `exp(logit_scale)`, at most 100, which starts at 1 / 0.07 as CLIP's does. The
    non-object vector competes with the classes in the softmax, so that a feature that fits no name has a class.

    Args:
        dim: Dimension E of the embeddings.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.non_object = nn.Parameter(torch.randn(dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """The inverse temperature."""
        return self.logit_scale.exp().clamp(max=MAX_SCALE)

    def forward(self, features: Tensor, text: TextClassifier) -> Tensor:
        """Turn features [B, E, *] into scores [B, K + 1, *] in float32, the non-object last."""
        return cosine_scores(features, text, self.scale, extra=self.non_object)


def cache_folder() -> Path:
    """Return the folder for what can be computed again: $OVSTRANS_CACHE, or one in the user's cache folder."""
    if "OVSTRANS_CACHE" in os.environ:
        return Path(os.environ["OVSTRANS_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ovstrans"


def _cache_path(clip: Clip, names: list[str], templates: tuple[str, ...]) -> Path:
    text = {key: value for key, value in clip.model.state_dict().items() if not key.startswith(VISUAL)}
    words = json.dumps([clip.name, weights_sha256(text), names, list(templates), *_activation(clip)])
    return cache_folder() / "text" / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.safetensors"


def _activation(clip: Clip) -> list[str]:
    """Return the name of the text encoder's activation, or nothing for open_clip's usual GELU."""
    encoder = getattr(clip.model, "text", clip.model)  # some CLIPs hold it as a module of its own
    kind = type(encoder.transformer.resblocks[0].mlp.gelu).__name__
    return [] if kind == "GELU" else [kind]


def _read_cache(path: Path | None, rows: int, dim: int) -> Tensor | None:
    if path is None or not path.exists():
        return None
    try:
        embeddings = files.read_tensors(path)[0].get("embeddings")
    except InputError:
        return None  # a damaged cache is computed again
    return embeddings if embeddings is not None and tuple(embeddings.shape) == (rows, dim) else None


def _write_cache(path: Path | None, embeddings: Tensor) -> None:
    if path is None:
        return
    try:
        files.write_tensors(path, {"embeddings": embeddings}, {"format": "ovstrans.text/1"})
    except InputError:
        return  # no folder to write in: the next run computes them again
