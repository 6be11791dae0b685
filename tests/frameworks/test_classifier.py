from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ovstrans.clip.text import TextClassifier
from ovstrans.frameworks.classifier import (
    IGNORED,
    TextScores,
    cosine_scores,
    geometric_ensemble,
    pixel_cross_entropy,
    seen_classes,
    training_targets,
)
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


def test_targets_leave_novel_classes_out(vocabulary: Vocabulary) -> None:
    labels = torch.tensor([[0, 1, 2], [3, 255, 1]])
    targets, columns = training_targets(labels, 255, vocabulary)
    assert columns.tolist() == [0, 2, 3]
    assert targets.tolist() == [[0, IGNORED, 1], [2, IGNORED, IGNORED]]


def test_targets_refuse_what_is_neither_class_nor_ignore(vocabulary: Vocabulary) -> None:
    targets, columns = training_targets(torch.tensor([[4]]), 255, vocabulary)
    with pytest.raises((IndexError, RuntimeError)):
        pixel_cross_entropy(torch.zeros(1, len(columns), 1, 1), targets[None])


def test_wide_ignore_value() -> None:
    wide = Vocabulary.from_names("wide", [f"c{number}" for number in range(300)])
    targets, columns = training_targets(torch.tensor([0, 255, 299, 65535]), 65535, wide)
    assert targets.tolist() == [0, 255, 299, IGNORED] and len(columns) == 300


def test_cross_entropy_by_hand() -> None:
    scores = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 5.0]]).T.reshape(1, 3, 1, 2)
    targets = torch.tensor([[[0, IGNORED]]])
    expected = math.log(math.exp(2) + 1 + math.e) - 2
    assert pixel_cross_entropy(scores, targets).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_nothing_is_zero_with_gradients() -> None:
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = pixel_cross_entropy(scores, torch.full((1, 4, 4), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None and scores.grad.abs().max() == 0


def test_seen_classes_go_by_any_shared_name(vocabulary: Vocabulary) -> None:
    other = Vocabulary.from_names("other", ["pet, kitty", "dog", "Sky", "sky"])
    # "dog" is novel in training: its name was never a target, so it is not seen.
    assert seen_classes(other, vocabulary) == [True, False, False, True]


def test_ensemble_by_hand() -> None:
    inner = torch.log(torch.tensor([0.9, 0.1]))[None, :, None]
    outer = torch.log(torch.tensor([0.2, 0.8]))[None, :, None]
    mixed = geometric_ensemble(inner, outer, [True, False], alpha=0.4, beta=0.8)
    expected = torch.tensor([0.9**0.6 * 0.2**0.4, 0.1**0.2 * 0.8**0.8])
    torch.testing.assert_close(mixed[0, :, 0].exp(), expected)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.integers(0, 1000))
def test_ensemble_of_equals_changes_nothing(weight: float, seed: int) -> None:
    scores = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(seed)) * 300
    mixed = geometric_ensemble(scores, scores, [True, True, False, False], alpha=weight, beta=weight)
    assert torch.isfinite(mixed).all()
    torch.testing.assert_close(mixed, F.log_softmax(scores, 1), rtol=1e-4, atol=1e-3)
