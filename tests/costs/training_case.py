"""Small frameworks, a batch with everything targets fill in, and what a real training step of them executes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.layers import backbone_layers
from ovstrans.clip.load import random_clip
from ovstrans.clip.text import TextClassifier
from ovstrans.datasets.segments import Segments
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Batch, Framework
from ovstrans.masks.mask import Mask
from ovstrans.training.freeze import freeze, train_mode
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.costs.reference import executed_macs

SIZE = (64, 96)
VOCABULARY = Vocabulary("toy", (("cat", "kitty"), ("dog",), ("grass",), ("sky",)), novel=frozenset({1}))
BASE = (0, 2, 3)
HEAD = {"queries": 6, "width": 32, "heads": 4, "encoder_layers": 1, "encoder_ffn": 32, "decoder_layers": 2}
HEAD |= {"decoder_ffn": 32, "points": 64}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deeplabv3": ("deeplabv3", {}),
    "deeplabv3 plus": ("deeplabv3", {"decoder": "plus", "clip_path": "ensemble", "output_stride": 32}),
    "fcclip": ("fcclip", {"trunk": "train"}),
    "fcclip frozen": ("fcclip", {}),
    "gkc": ("gkc", {}),
    "gkc synonyms": ("gkc", {"synonyms": "random", "distill_from": "embedding"}),
    "gkc alone": ("gkc", {"distill": "none", "grounding_weight": 0.0, "clip_path": "sum"}),
}


def make(case: str) -> Framework:
    """A framework on a random RN-mini."""
    name, options = CASES[case]
    clip = random_clip("RN-mini", seed=1)
    owner = [number for number, names in enumerate(VOCABULARY.classes) for _ in names]
    text = TextClassifier(unit(len(owner), clip.embed_dim), torch.tensor(owner), VOCABULARY)
    torch.manual_seed(0)
    head = {} if name == "deeplabv3" else HEAD
    return registry.build(
        name, encoder=clip.visual, mean=clip.mean, std=clip.std, text=text, options={**head, **options}
    )


def plans() -> dict[str, list[str]]:
    """What is frozen: nothing, a prefix, every second layer."""
    convs = list(backbone_layers(random_clip("RN-mini").visual))
    return {"nothing": [], "prefix": convs[: len(convs) // 2], "every second": convs[::2]}


def body_mask(framework: nn.Module) -> Mask:
    """A tenth of the body's weights, anywhere."""
    generator = torch.Generator().manual_seed(0)
    encoder: Any = framework.backbone
    convs = backbone_layers(encoder)
    weights = {f"{name}.weight": conv for name, conv in convs.items() if name.startswith("layer")}
    return Mask({key: torch.rand(w.shape, generator=generator) < 0.1 for key, w in weights.items()}, "RN-mini")


def real_step(
    framework: Framework,
    frozen: list[str],
    *,
    mask: Mask | None = None,
    norms: str = "train",
    freeze_norms: bool = False,
) -> tuple[int, int]:
    """MACs of an image, (forward, backward), of the real losses of a real batch, without the matching.

    Queries and segments are paired as they come; the framework is set up as `finetune` does.
    """
    framework = copy.deepcopy(framework)
    if mask is not None:
        mask.apply(framework)
    freeze(framework, frozen, norms=freeze_norms)
    train_mode(framework, norms=norms, frozen=frozen, freeze_norms=freeze_norms)
    if hasattr(framework, "criterion"):
        framework.criterion.match = _in_order
    batch = make_batch(framework.embed_dim)
    losses: list[Tensor] = []
    forward = executed_macs(lambda: losses.extend(framework.losses(batch).values()))
    backward = executed_macs(torch.stack(losses).sum().backward)
    images = len(batch.images)
    return forward // images, backward // images


def make_batch(dim: int) -> Batch:
    """Two images of `SIZE`, with 2 and 3 segments."""
    generator = torch.Generator().manual_seed(3)
    counts = (2, 3)
    return Batch(
        torch.rand(len(counts), 3, *SIZE, generator=generator),
        labels=torch.tensor(BASE)[torch.randint(0, len(BASE), (len(counts), *SIZE), generator=generator)],
        segments=tuple(
            Segments(torch.rand(n, *SIZE, generator=generator) < 0.5, torch.tensor(BASE[:n]), torch.arange(n))
            for n in counts
        ),
        teacher=tuple(unit(n, dim) for n in counts),
        nouns=tuple(unit(2, dim) for _ in counts),
        synonyms=tuple(unit(n, dim) for n in counts),
    )


def unit(rows: int, dim: int) -> Tensor:
    """Unit rows [rows, dim]."""
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(rows)), dim=1)


def _in_order(_masks: Tensor, _scores: Tensor, targets: Any) -> list[tuple[Tensor, Tensor]]:
    return [(torch.arange(len(each.classes)), torch.arange(len(each.classes))) for each in targets]
