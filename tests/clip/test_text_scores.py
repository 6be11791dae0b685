"""Scores of features against text embeddings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovstrans.clip.text import TextClassifier, TextScores, cosine_scores
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.frameworks.conftest import make_text

AXES = TextClassifier(
    torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]),
    torch.tensor([0, 1, 0]),
    Vocabulary.from_names("axes", ["east, northeast", "north"]),
)


def test_cosine_scores_by_hand() -> None:
    feature = torch.tensor([[3.0, 4.0]])[:, :, None, None]  # length 5, direction (0.6, 0.8)
    scores = cosine_scores(feature, AXES, 10.0)
    # east: best of 0.6 and its synonym's 0.36 + 0.64; north: 0.8.
    torch.testing.assert_close(scores[0, :, 0, 0], torch.tensor([10.0, 8.0]))


def test_text_scores_start_at_clips_temperature_and_stop_at_100() -> None:
    scores = TextScores(2)
    assert scores.scale.item() == pytest.approx(1 / 0.07, rel=1e-6)
    with torch.no_grad():
        scores.logit_scale.fill_(9.0)
        scores.non_object.copy_(torch.tensor([-2.0, 0.0]))
    out = scores(torch.tensor([[1.0], [0.0]]).T[:, :, None], AXES)
    torch.testing.assert_close(out[0, :, 0], torch.tensor([100.0, 0.0, -100.0]))


def test_scores_are_float32_under_autocast() -> None:
    features = torch.randn(1, 2, 3, 3)
    scores = TextScores(2)
    plain = scores(features, AXES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = scores(features, AXES)
    assert mixed.dtype is torch.float32
    torch.testing.assert_close(mixed, plain)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5))
def test_cosine_scores_match_a_loop(seed: int, classes: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 4, (classes,), generator=generator).tolist()
    names = [", ".join(f"c{number}.{k}" for k in range(count)) for number, count in enumerate(counts)]
    text = make_text(Vocabulary.from_names("random", names), dim, seed)
    features = torch.randn(2, dim, 3, generator=generator)
    scores = cosine_scores(features, text, 7.0)
    assert scores.shape == (2, classes, 3)
    for image in range(2):
        for place in range(3):
            x = features[image, :, place]
            cosines = [float(x @ row / x.norm()) for row in text.embeddings]
            for number in range(classes):
                best = max(c for c, owner in zip(cosines, text.owner.tolist(), strict=True) if owner == number)
                assert float(scores[image, number, place]) == pytest.approx(7 * best, abs=1e-4)
