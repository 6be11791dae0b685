"""The small GKC of which upstream's answers are kept in `golden/`: weights, images, and what its losses see.

Every number is a function of the tensor's name, the same on any machine; see `golden_case`.

Shapes: `B` images, `P` predictions, `Q` queries, `K` classes, `N` segments, `M` nouns, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.load import create_image_encoder, model_info
from ovstrans.frameworks.base import Batch
from ovstrans.frameworks.gkc import GKC
from ovstrans.frameworks.mask2former_losses import Match, Targets, class_loss, class_targets
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.frameworks import golden_case as case

GOLDEN = Path(__file__).parent / "golden" / "gkc.safetensors"
SIZES = ((64, 64), (96, 64))
"""Heights and widths of the images; a batch has three of one size."""

SMALL: Mapping[str, Any] = {
    "queries": 6,
    "width": 32,
    "heads": 4,
    "encoder_layers": 2,
    "encoder_ffn": 48,
    "decoder_layers": 3,
    "decoder_ffn": 40,
    "region_drop": 0.0,
}

NAMES = Vocabulary.from_names("names", ["cat", "dog", "grass", "sky", "road"])
SEGMENTS = ((0, 2, 2, 0), (3, 3, 1), (4, 1, 4, 2, 4))
"""Per image the classes of its segments."""
SYNONYMS = (("cat", "lawn", "turf", "cat"), ("sky", "heaven", "hound"), ("street", "dog", "lane", "grass", "street"))
"""Per image a name for each segment. In every image one name is a further one beside the five classes: where
the numbers differ, upstream fills up with embeddings of nothing, which take part in its softmax."""
NOUNS = (("cat", "lawn"), ("dog", "sky", "tree"), ("road",))

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "text-guided": {},
    "apart": {"distill_pair_weight": 3.0},
    "plain": {"distill": "plain"},
    "synonyms": {"synonyms": "random"},
}
"""Options under which losses are compared."""


def model(clip: str = "RN-mini", options: Mapping[str, Any] = SMALL, **variant: Any) -> GKC:
    """The framework with determined weights, in train mode but for its BatchNorms."""
    dim, _, mean, std = model_info(clip)
    framework = GKC(
        encoder=create_image_encoder(clip),
        mean=mean,
        std=std,
        text=case.text_of(NAMES, dim),
        options={**options, **variant},
    )
    state = case.determined_state(framework.state_dict())
    if "training_only.text_scale" in state:
        state["training_only.text_scale"] = torch.tensor(0.9)
    framework.load_state_dict(state)
    framework.backbone.eval()
    return framework


def images(size: tuple[int, int]) -> Tensor:
    """float32 [3, 3, H, W] in [0, 1]."""
    height, width = size
    one = case.image((height, 3 * width)).float() / 255
    return torch.cat(one.split(width, dim=3))


def rows(kind: str, names: tuple[str, ...], dim: int) -> Tensor:
    """Unit rows [n, E] of names."""
    return F.normalize(torch.stack([case.determined(f"{kind} {name}", (dim,)) for name in names]), dim=1)


def batch(dim: int, size: tuple[int, int], *, synonyms: bool = False) -> Batch:
    """What the losses see beside the images: teacher, nouns, synonyms."""
    regions = [tuple(f"{row}/{place}" for place in range(len(kinds))) for row, kinds in enumerate(SEGMENTS)]
    return Batch(
        images(size),
        teacher=tuple(rows("region", each, dim) for each in regions),
        nouns=tuple(rows("text of", each, dim) for each in NOUNS),
        synonyms=tuple(rows("text of", each, dim) for each in SYNONYMS) if synonyms else None,
    )


def targets(size: tuple[int, int]) -> list[Targets]:
    """Of each image; the masks matter to nothing here."""
    return [Targets(torch.zeros(len(kinds), *size), torch.tensor(kinds)) for kinds in SEGMENTS]


def matches(predictions: int, queries: int) -> list[list[Match]]:
    """Per prediction and image some matching, queries ascending, as matchers give it."""
    found = []
    for prediction in range(predictions):
        pairs = []
        for row, kinds in enumerate(SEGMENTS):
            order = case.determined(f"match {prediction} {row}", (queries,)).argsort()[: len(kinds)].sort().values
            segments = case.determined(f"order {prediction} {row}", (len(kinds),)).argsort()
            pairs.append((order, segments))
        found.append(pairs)
    return found


def answers(framework: GKC, size: tuple[int, int]) -> dict[str, Tensor]:
    """mask_logits [P, B, Q, h, w] and class_logits [P, B, Q, K + 1] of every prediction, and the losses that
    do not depend on masks, each summed over predictions."""
    given, wanted = batch(framework.embed_dim, size, synonyms=framework.target_requirements.synonyms), targets(size)
    text = case.text_of(NAMES, framework.embed_dim)
    with torch.no_grad():
        found = framework.head(framework.backbone_features(given.images))
        scores = [framework.class_scores(found, number, text) for number in range(framework.predictions)]
        pairs = matches(framework.predictions, scores[0].shape[1])
        shape = (scores[0].shape[0], scores[0].shape[1])
        named = [
            class_loss(score, class_targets(shape, len(NAMES), wanted, each), framework.options["void_weight"])
            for score, each in zip(scores, pairs, strict=True)
        ]
        losses = framework.extra_losses(found, pairs, wanted, given)
    result = {"mask_logits": torch.stack(found.masks), "class_logits": torch.stack(scores)}
    total = framework.options["class_weight"] * torch.stack(named).sum()
    return {**result, "loss.class": total, **{f"loss.{name}": value for name, value in losses.items()}}


def padded(values: tuple[Tensor, ...], length: int) -> Tensor:
    """[B, length, E], zeros after the end of each."""
    return torch.stack([F.pad(each, (0, 0, 0, length - len(each))) for each in values])
