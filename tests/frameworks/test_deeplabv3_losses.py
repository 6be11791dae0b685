"""Targets and loss of DeepLabV3 on cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ovstrans.frameworks.deeplabv3 import IGNORED, pixel_cross_entropy, training_targets
from ovstrans.vocabulary.vocabulary import Vocabulary


def test_targets_leave_novel_classes_out(vocabulary: Vocabulary) -> None:
    labels = torch.tensor([[0, 1, 2], [3, 255, 1]])
    targets, columns = training_targets(labels, 255, vocabulary)
    assert columns.tolist() == [0, 2, 3]
    assert targets.tolist() == [[0, IGNORED, 1], [2, IGNORED, IGNORED]]


def test_labels_that_are_no_class_are_refused(vocabulary: Vocabulary) -> None:
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
