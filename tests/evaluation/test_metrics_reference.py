"""Measures against scikit-learn's and torchmetrics', on cases that tell conventions apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

from ovstrans.evaluation.metrics import ConfusionMatrix, compute_metrics

Case = tuple[np.ndarray, np.ndarray, int, int]
"""Labels, predictions, number of classes, ignore label."""


def _random(k: int = 19, ignore: int = 255, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, (3, 24, 32))
    guess = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, k, label.shape))
    label[rng.random(label.shape) < 0.2] = ignore
    return label, guess, k, ignore


def _absent_classes() -> Case:
    """Truth has the even classes; predictions have a few that no truth has, and miss some."""
    label, guess, k, ignore = _random(k=12, seed=1)
    label = np.where(label == ignore, ignore, label // 2 * 2)
    return label, np.where(guess >= 9, 3, guess), k, ignore


def _ignored_areas() -> Case:
    """Whole images and half of others ignored, with the predictions there of a class found nowhere else."""
    label, guess, k, ignore = _random(k=7, seed=2)
    label[0] = ignore
    label[1, :, 16:] = ignore
    guess = np.where(guess == 6, 5, guess)
    return label, np.where(label == ignore, 6, guess), k, ignore


def _single_class_images() -> Case:
    label = np.repeat(np.array([4, 0, 2]), 40).reshape(3, 5, 8)
    guess = label.copy()
    guess[0] = 2
    guess[1, 0] = 1
    return label, guess, 5, 255


def _all_wrong() -> Case:
    label, _, k, ignore = _random(k=8, seed=3)
    return label, (np.where(label == ignore, 0, label) + 1) % k, k, ignore


def _ade_847() -> Case:
    label, guess, k, ignore = _random(k=847, ignore=65535, seed=4)
    label = np.where(label == ignore, ignore, np.minimum(label, 600))  # 246 classes never occur
    return label, guess, k, ignore


def _one_pixel_left() -> Case:
    label = np.full((1, 6, 6), 255)
    label[0, 3, 3] = 1
    return label, np.zeros((1, 6, 6), dtype=np.int64), 3, 255


CASES: list[Callable[[], Case]] = [
    _random, _absent_classes, _ignored_areas, _single_class_images, _all_wrong, _ade_847, _one_pixel_left,
]  # fmt: skip


def ours(case: Case) -> ConfusionMatrix:
    """Counted an image at a time, in the types that datasets have."""
    label, guess, k, ignore = case
    confusion = ConfusionMatrix(k)
    for truth, prediction in zip(label, guess, strict=True):
        stored = torch.from_numpy(truth) if ignore > 255 else torch.from_numpy(truth.astype(np.uint8))
        confusion.add(torch.from_numpy(prediction), stored, ignore=ignore)
    return confusion


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("denominator", ["present", "union"])
def test_scikit_learn_measures_the_same(make: Callable[[], Case], denominator: str) -> None:
    case = make()
    label, guess, k, ignore = case
    truth, prediction = label[label != ignore], guess[label != ignore]
    confusion = ours(case)
    assert np.array_equal(confusion.counts.numpy(), confusion_matrix(truth, prediction, labels=range(k)))

    found = compute_metrics(confusion, denominator=denominator).to_json()
    present = np.unique(truth)
    entering = present if denominator == "present" else np.union1d(present, prediction)
    iou = jaccard_score(truth, prediction, labels=range(k), average=None, zero_division=0)
    share = np.bincount(truth, minlength=k) / len(truth)
    assert found["mIoU"] == pytest.approx(100 * iou[entering].mean())
    assert found["classes"] == len(entering)
    assert found["fwIoU"] == pytest.approx(100 * (share * iou).sum())
    assert found["mACC"] == pytest.approx(
        100 * recall_score(truth, prediction, labels=present, average="macro", zero_division=0)
    )
    assert found["pACC"] == pytest.approx(100 * accuracy_score(truth, prediction))
    for index, entry in enumerate(found["per_class"]):
        assert entry["iou"] == (pytest.approx(100 * iou[index]) if index in entering else None)

    novel = set(range(0, k, 3))
    split = compute_metrics(confusion, novel=novel, denominator=denominator).to_json()
    for key, classes in (
        ("novel", np.intersect1d(entering, list(novel))),
        ("base", np.setdiff1d(entering, list(novel))),
    ):
        assert split[key] == (pytest.approx(100 * iou[classes].mean()) if len(classes) else None)


@pytest.mark.parametrize("make", CASES)
def test_torchmetrics_counts_the_same_and_means_over_the_union(make: Callable[[], Case]) -> None:
    case = make()
    label, guess, k, ignore = case
    truth, prediction = torch.from_numpy(label), torch.from_numpy(guess)
    confusion = ours(case)
    assert torch.equal(confusion.counts, multiclass_confusion_matrix(prediction, truth, k, ignore_index=ignore))
    theirs = multiclass_jaccard_index(prediction, truth, k, average="macro", ignore_index=ignore)
    assert compute_metrics(confusion).to_json()["mIoU_union"] == pytest.approx(
        100 * float(theirs), rel=1e-5
    )  # theirs is float32


def test_the_cases_tell_the_denominators_apart() -> None:
    differing = {make.__name__ for make in CASES if _differs(compute_metrics(ours(make())).to_json())}
    assert differing == {"_absent_classes", "_single_class_images", "_ade_847"}


def _differs(report: dict) -> bool:
    return abs(report["mIoU_present"] - report["mIoU_union"]) > 1e-3
