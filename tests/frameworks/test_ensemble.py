"""The ensemble of two classifiers, and which classes are seen."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ovstrans.frameworks.ensemble import find_seen_classes, geometric_ensemble
from ovstrans.vocabulary.vocabulary import Vocabulary


def test_seen_classes_go_by_any_shared_name(vocabulary: Vocabulary) -> None:
    other = Vocabulary.from_names("other", ["pet, kitty", "dog", "Sky", "sky"])
    # "dog" is novel in training: its name was never a target, so it is not seen.
    assert find_seen_classes(other, vocabulary) == [True, False, False, True]


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
