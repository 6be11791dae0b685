"""Measures against a slow, independent computation: sets of pixels and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovstrans.errors import InputError
from ovstrans.evaluation import metrics as metrics_module
from ovstrans.evaluation.metrics import ConfusionMatrix, compute_metrics, harmonic_mean

IGNORE = 255


def brute_force(prediction: np.ndarray, label: np.ndarray, k: int, novel: set[int], denominator: str) -> dict:
    """Every measure from sets of pixel positions, class by class."""
    pairs = [(int(p), int(t)) for p, t in zip(prediction.ravel(), label.ravel(), strict=True) if t != IGNORE]
    ious: dict[int, float] = {}
    recalls, weighted = [], 0.0
    for c in range(k):
        guessed = {i for i, (p, _) in enumerate(pairs) if p == c}
        true = {i for i, (_, t) in enumerate(pairs) if t == c}
        if true:
            recalls.append(len(guessed & true) / len(true))
            weighted += len(true) * len(guessed & true) / len(guessed | true)
        if true or (denominator == "union" and guessed):
            ious[c] = len(guessed & true) / len(guessed | true)

    def mean(values: list[float]) -> float | None:
        return 100 * sum(values) / len(values) if values else None

    base = mean([v for c, v in ious.items() if c not in novel]) if novel else None
    seen_not = mean([v for c, v in ious.items() if c in novel]) if novel else None
    both = base is not None and seen_not is not None
    return {
        "mIoU": mean(list(ious.values())),
        "classes": len(ious),
        "ious": [100 * ious[c] if c in ious else None for c in range(k)],
        "fwIoU": 100 * weighted / len(pairs) if pairs else None,
        "mACC": mean(recalls),
        "pACC": mean([float(p == t) for p, t in pairs]),
        "base": base,
        "novel": seen_not,
        "hIoU": (2 / (1 / base + 1 / seen_not) if base and seen_not else 0.0) if both else None,  # type: ignore[operator]
    }


def counted(prediction: np.ndarray, label: np.ndarray, k: int) -> ConfusionMatrix:
    confusion = ConfusionMatrix(k)
    confusion.add(torch.from_numpy(prediction), torch.from_numpy(label), ignore=IGNORE)
    return confusion


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 7),
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    void=st.sampled_from([0.0, 0.3, 1.0]),
    denominator=st.sampled_from(["present", "union"]),
    data=st.data(),
)
def test_measures_equal_a_slow_computation(
    k: int, seed: int, shape: tuple[int, int], void: float, denominator: str, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    occurring = rng.permutation(k)[: rng.integers(1, k + 1)]  # the other classes are absent
    label = rng.choice(occurring, shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.5, label, rng.integers(0, k, shape)).astype(np.int64)
    label[rng.random(shape) < void] = IGNORE
    novel = data.draw(st.sets(st.integers(0, k - 1)))
    expected = brute_force(prediction, label, k, novel, denominator)
    found = compute_metrics(counted(prediction, label, k), novel=novel, denominator=denominator).to_json()
    found["ious"] = [entry["iou"] for entry in found["per_class"]]
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value, abs=1e-9) if value is not None else None), key
    assert found["denominator"] == denominator
    assert [entry["pixels"] for entry in found["per_class"]] == [int((label == c).sum()) for c in range(k)]


def test_a_hand_counted_case() -> None:
    label = np.array([[0, 0, 0, 1], [1, 1, 255, 255]], dtype=np.uint8)
    prediction = np.array([[0, 0, 1, 1], [1, 2, 2, 0]])
    confusion = counted(prediction, label, 4)
    assert confusion.counts.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    present = compute_metrics(confusion, ["a", "b", "c", "d"]).to_json()
    assert present["mIoU"] == pytest.approx(100 * (2 / 3 + 2 / 4) / 2)
    assert present["per_class"][2] == {
        "name": "c", "iou": None, "accuracy": None, "pixels": 0, "predicted": 1, "novel": False,
    }  # fmt: skip
    assert present["per_class"][0]["accuracy"] == pytest.approx(100 * 2 / 3)
    union = compute_metrics(confusion, denominator="union").to_json()
    assert union["mIoU"] == pytest.approx(100 * (2 / 3 + 2 / 4 + 0) / 3)  # c was predicted, d never
    assert (union["per_class"][2]["iou"], union["per_class"][3]["iou"]) == (0.0, None)
    for report in (present, union):  # whichever was asked for, both are there
        assert (report["mIoU_present"], report["mIoU_union"]) == (present["mIoU"], union["mIoU"])


def test_all_pixels_ignored_gives_no_number() -> None:
    label = np.full((3, 3), IGNORE, dtype=np.uint8)
    found = compute_metrics(counted(np.zeros((3, 3), dtype=np.int64), label, 3), novel={1}).to_json()
    assert [found[key] for key in ("mIoU", "fwIoU", "mACC", "pACC", "base", "novel", "hIoU")] == [None] * 7
    assert found["classes"] == 0


def test_counts_add_up_over_images_and_parts() -> None:
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 5, (2, 4, 6, 6)).astype(np.uint8)
    whole, parts = counted(prediction.astype(np.int64), label, 5), ConfusionMatrix(5)
    for guess, truth in zip(prediction, label, strict=True):
        parts.merge(counted(guess.astype(np.int64), truth, 5))
    assert torch.equal(whole.counts, parts.counts)
    assert int(whole.counts.sum()) == label.size
    with pytest.raises(ValueError, match="do not merge"):
        whole.merge(ConfusionMatrix(4))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ignore=st.sampled_from([255, 65535, 2]), wide=st.booleans())
def test_order_and_ignored_pixels_never_matter(seed: int, ignore: int, wide: bool) -> None:
    rng = np.random.default_rng(seed)
    k = 6
    label = torch.from_numpy(rng.integers(0, k, (3, 5, 7))).to(torch.int64 if wide or ignore > 255 else torch.uint8)
    label[torch.from_numpy(rng.random(label.shape) < 0.4)] = ignore
    guess = torch.from_numpy(rng.integers(0, k, label.shape))
    whole = ConfusionMatrix(k)
    whole.add(guess, label, ignore=ignore)
    shuffled, order = ConfusionMatrix(k), torch.from_numpy(rng.permutation(label.numel()))
    shuffled.add(guess.flatten()[order], label.flatten()[order], ignore=ignore)
    assert torch.equal(shuffled.counts, whole.counts)
    other = ConfusionMatrix(k)
    anything = torch.from_numpy(rng.integers(-9, 999, label.shape))
    other.add(torch.where(label.long() == ignore, anything, guess), label, ignore=ignore)
    assert torch.equal(other.counts, whole.counts)
    assert int(whole.counts.sum()) == int((label.long() != ignore).sum())


def test_maps_larger_than_what_is_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    label, guess = torch.from_numpy(rng.integers(0, 9, (2, 31, 17)))
    whole, parts = ConfusionMatrix(9), ConfusionMatrix(9)
    whole.add(guess, label, ignore=IGNORE)
    monkeypatch.setattr(metrics_module, "_CHUNK_PIXELS", 100)
    parts.add(guess, label, ignore=IGNORE)
    assert torch.equal(parts.counts, whole.counts)
    label[-1, -1] = 9  # a fault at the end leaves nothing of the map in the counts
    with pytest.raises(InputError, match="label value 9"):
        parts.add(guess, label, ignore=IGNORE)
    assert torch.equal(parts.counts, whole.counts)


@pytest.mark.parametrize("value", [3, 254, 256, 2**32, -1])
def test_labels_that_are_no_class_are_refused(value: int) -> None:
    label = np.array([[0, value]], dtype=np.uint8 if value == 254 else np.int64)
    with pytest.raises(InputError, match=r"label value -?\d+ is none of the 3 classes"):
        counted(np.zeros((1, 2), dtype=np.int64), label, 3)


def test_predictions_that_are_no_class_are_refused() -> None:
    with pytest.raises(ValueError, match="predicted class 3"):
        counted(np.array([[3]]), np.array([[0]]), 3)
    counted(np.array([[3]]), np.array([[IGNORE]]), 3)  # not where nothing counts


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="prediction is"):
        counted(np.zeros((1, 2), dtype=np.int64), np.zeros((2, 1), dtype=np.int64), 3)
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        compute_metrics(ConfusionMatrix(3), ["a", "b"])
    with pytest.raises(InputError, match="use present or union"):
        compute_metrics(ConfusionMatrix(2), denominator="all")
    with pytest.raises(InputError, match="at least one class"):
        ConfusionMatrix(0)


def test_harmonic_mean() -> None:
    assert harmonic_mean(40.0, 60.0) == pytest.approx(48.0)
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(None, 3.0) is None
