"""Every framework through the real loop, in bfloat16 and clipped, on batches that no one would choose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.text import TextClassifier
from ovstrans.datasets.segments import Segments
from ovstrans.environment import images_to_device, pick_precision, to_device
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Batch, Framework
from ovstrans.recipes.schema import Optimizer
from ovstrans.training.distributed import World
from ovstrans.training.freeze import train_mode
from ovstrans.training.loop import Step, make_optimizer, train
from ovstrans.vocabulary.vocabulary import Vocabulary

SIDE, DIM, IGNORE = 64, 32, 255
BASE = (0, 2, 3)
"""Classes of the vocabulary that train; 1 is novel."""

_MASKS: dict[str, Any] = {
    "queries": 4,
    "width": 32,
    "heads": 2,
    "encoder_layers": 1,
    "encoder_ffn": 32,
    "decoder_layers": 1,
    "decoder_ffn": 32,
    "points": 32,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "deeplabv3": {"width": 8},
    "deeplabv3 plus": {"width": 8, "decoder": "plus", "low_width": 4},
    "fcclip": {**_MASKS, "trunk": "train"},
    "gkc": {**_MASKS, "synonyms": "random"},
}
"""By case, whose first word is the framework: as small as it gets, with all that it can minimise."""

# top, left, height, width in pixels; a position at stride 32 is 32 of them a side.
Box = tuple[int, int, int, int]
PLAIN: tuple[Box, ...] = ((0, 0, 64, 32), (0, 32, 40, 32), (40, 32, 24, 32))
KINDS: dict[str, tuple[tuple[Box, ...], tuple[Box, ...]]] = {
    "plain": (PLAIN, PLAIN[1:]),
    "an image without segments": (PLAIN, ()),
    "no segments at all": ((), ()),
    "segments below a pixel at stride 32": (((5, 7, 1, 1), (63, 63, 1, 1), (20, 30, 3, 4)), ((31, 31, 2, 2),)),
    "more segments than queries": (tuple((8 * row, 0, 8, 64) for row in range(7)), PLAIN),
}
"""Kind of a batch to the segments of its two images."""


def build(case: str) -> Framework:
    """The framework of a case on a random tower of 0.1 M weights; skips where the registry lacks it."""
    name = case.split()[0]
    if name not in registry.list_frameworks():
        pytest.skip(f"the registry has no {name}")
    torch.manual_seed(0)
    encoder = ModifiedResNet((1, 1, 1, 1), output_dim=DIM, heads=4, image_size=SIDE, width=8)
    vocabulary = Vocabulary.from_names("toy", ["cat, kitty", "dog", "grass", "sky"], novel=frozenset({1}))
    text = TextClassifier(units(torch.Generator().manual_seed(1), 5), torch.tensor([0, 0, 1, 2, 3]), vocabulary)
    framework = registry.build(
        name, encoder=encoder, mean=(0.5,) * 3, std=(0.25,) * 3, text=text, options=OPTIONS[case]
    )
    to_device(framework, "cpu")
    train_mode(framework, norms="train")
    return framework


def units(generator: torch.Generator, rows: int) -> Tensor:
    return F.normalize(torch.randn(rows, DIM, generator=generator), dim=1)


def batch_of(kind: str, seed: int = 0) -> Batch:
    """Two noisy images, each segment in the colour of its class, with everything that targets would add."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 * torch.rand(2, 3, SIDE, SIDE, generator=generator)
    labels = torch.full((2, SIDE, SIDE), IGNORE)
    segments = []
    for image, boxes in enumerate(KINDS[kind]):
        masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
        classes = torch.tensor([BASE[number % len(BASE)] for number in range(len(boxes))], dtype=torch.int64)
        for mask, label, (top, left, height, width) in zip(masks, classes.tolist(), boxes, strict=True):
            mask[top : top + height, left : left + width] = True
            labels[image][mask] = label
            images[image, label % 3][mask] += 0.7
        segments.append(Segments(masks, classes, torch.arange(1, len(boxes) + 1)))
    counts = [len(boxes) for boxes in KINDS[kind]]
    return Batch(
        images=images_to_device(images, "cpu"),
        labels=labels,
        ignore=IGNORE,
        segments=tuple(segments),
        captions=("a cat on the grass", ""),
        teacher=tuple(units(generator, count) for count in counts),
        nouns=(units(generator, 2), units(generator, 0)),
        synonyms=tuple(units(generator, count) for count in counts),
    )


def go(framework: Framework, batches: Iterator[Batch], steps: int) -> list[Step]:
    """Train as OpenTrans does (clipped to 0.01), but faster; the loop itself refuses what is not finite."""
    settings = Optimizer(lr=3e-3, backbone_rate=0.1, weight_decay=0.05, clip_norm=0.01)
    precision = pick_precision("bf16", "cpu")
    found = train(
        framework,
        batches,
        make_optimizer(framework, settings),
        steps=range(steps),
        rate=lambda _step: 1.0,
        precision=precision,
        scaler=precision.scaler(),
        clip_norm=settings.clip_norm,
        mask=None,
        world=World(0, 1, torch.device("cpu")),
        seed=0,
    )
    return list(found)


def all_finite(framework: Framework) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in framework.state_dict().values())


@pytest.mark.parametrize("case", OPTIONS)
def test_200_steps_are_finite_and_learn(case: str) -> None:
    framework = build(case)

    def batches() -> Iterator[Batch]:
        for number in range(200):
            odd = number % 5 == 4
            yield batch_of(list(KINDS)[1 + number // 5 % 4] if odd else "plain", seed=number)

    steps = go(framework, batches(), 200)
    assert len(steps) == 200
    assert all(math.isfinite(step.grad_norm) and math.isfinite(step.loss) for step in steps)
    assert max(step.grad_norm for step in steps) > 0.01  # so that clipping had something to do
    assert all_finite(framework)
    plain = [step.loss for step in steps if step.number % 5]
    assert sum(plain[-16:]) < 0.7 * sum(plain[:16])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", OPTIONS)
def test_a_batch_of_any_kind_trains(case: str, kind: str) -> None:
    framework = build(case)
    before = {name: value.clone() for name, value in framework.named_parameters()}
    steps = go(framework, iter([batch_of(kind)] * 2), 2)
    assert all_finite(framework)
    if any(KINDS[kind]):
        assert steps[0].grad_norm > 0
        assert any(not torch.equal(value, before[name]) for name, value in framework.named_parameters())
