"""A tiny vocabulary and a random RN-mini, shared by the tests of this room."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ovstrans.clip.load import Clip, random_clip
from ovstrans.clip.text import TextClassifier
from ovstrans.vocabulary.vocabulary import Vocabulary


def make_text(vocabulary: Vocabulary, dim: int, seed: int = 0) -> TextClassifier:
    """Random unit rows, one per synonym."""
    owner = [number for number, synonyms in enumerate(vocabulary.classes) for _ in synonyms]
    rows = torch.randn(len(owner), dim, generator=torch.Generator().manual_seed(seed))
    return TextClassifier(F.normalize(rows, dim=1), torch.tensor(owner), vocabulary)


@pytest.fixture(scope="session")
def clip() -> Clip:
    """RN-mini with random weights; tests must not change it (frameworks copy the encoder)."""
    return random_clip("RN-mini", seed=1)


@pytest.fixture
def vocabulary() -> Vocabulary:
    """Four classes, the second novel, the first with a synonym."""
    return Vocabulary.from_names("toy", ["cat, kitty", "dog", "grass", "sky"], novel=frozenset({1}))


@pytest.fixture
def text(clip: Clip, vocabulary: Vocabulary) -> TextClassifier:
    """Random embeddings of `vocabulary`."""
    return make_text(vocabulary, clip.embed_dim)
