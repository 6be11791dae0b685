"""Panoptic quality against sets of pixels, against torchmetrics, and against figures of COCO's evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.detection import PanopticQuality as TorchmetricsQuality

from ovstrans.datasets.sample import Segment
from ovstrans.errors import InputError
from ovstrans.evaluation.panoptic import PanopticQuality
from ovstrans.vocabulary.vocabulary import Vocabulary

CLASSES = 5
VOCABULARY = Vocabulary("v", tuple((f"c{index}",) for index in range(CLASSES)), things=frozenset({0, 1, 2}))
VOID = 255

Panoptic = tuple[np.ndarray, list[Segment]]
"""A segment map and its segments."""


def segment(identity: int, of: int, crowd: bool = False) -> Segment:
    return Segment(id=identity, class_index=of, isthing=of in VOCABULARY.things, area=0, iscrowd=crowd)


def random_panoptic(rng: np.random.Generator, size: int, *, void: float = 0.0, crowds: bool = False) -> Panoptic:
    """Blobs of far apart ids; stuff, too, may come in pieces."""
    ids = np.unique(rng.integers(1, 2**24, rng.integers(1, 7)))
    rows, columns = np.mgrid[:size, :size]
    seeds = rng.integers(0, size, (2, 9))
    nearest = ((rows[..., None] - seeds[0]) ** 2 + (columns[..., None] - seeds[1]) ** 2).argmin(axis=-1)
    values = rng.choice(ids, 9)[nearest]
    values[rng.random(values.shape) < void] = 0
    listed = [segment(int(i), int(rng.integers(0, CLASSES)), bool(crowds and rng.random() < 0.3)) for i in ids]
    if void and rng.random() < 0.3:
        listed[0].class_index = VOID
    return values, listed


def perturbed(rng: np.random.Generator, panoptic: Panoptic) -> Panoptic:
    """A prediction that is right in part: moved, with noise, some classes changed."""
    values, segments = panoptic
    moved = np.roll(values, int(rng.integers(0, 3)), axis=int(rng.integers(0, 2)))
    noise = rng.random(values.shape) < rng.choice([0.0, 0.2, 0.5])
    moved = np.where(noise, rng.permutation(values.ravel()).reshape(values.shape), moved)
    changed = [replace(s, iscrowd=False) for s in segments]
    for entry in changed:
        if entry.class_index == VOID or rng.random() < 0.2:
            entry.class_index = int(rng.integers(0, CLASSES))
    return moved, changed


def ours(images: Sequence[tuple[Panoptic, Panoptic]]) -> PanopticQuality:
    quality = PanopticQuality(VOCABULARY)
    for (guess, guess_segments), (truth, truth_segments) in images:
        quality.add(torch.from_numpy(guess).int(), guess_segments, torch.from_numpy(truth).int(), truth_segments)
    return quality


def brute_force(images: Sequence[tuple[Panoptic, Panoptic]]) -> list[tuple[float, int, int, int]]:
    """Sum of IoU, TP, FP and FN of every class, pair of segments by pair of segments, from sets of pixels."""
    counts = [[0.0, 0, 0, 0] for _ in range(CLASSES)]
    for (guess, guess_segments), (truth, truth_segments) in images:

        def pixels(values: np.ndarray, identity: int) -> set[int]:
            return set(np.flatnonzero(values == identity).tolist())

        void = pixels(truth, 0).union(*(pixels(truth, s.id) for s in truth_segments if s.class_index == VOID))
        truths = [(s, pixels(truth, s.id)) for s in truth_segments if s.class_index != VOID]
        guesses = [(s, pixels(guess, s.id)) for s in guess_segments if s.class_index != VOID and (guess == s.id).any()]
        unmatched_truths = [s.id for s, _ in truths if not s.iscrowd]
        for s, area in guesses:
            for t, true_area in truths:
                if s.class_index == t.class_index and not t.iscrowd:
                    iou = len(area & true_area) / len((area - void) | true_area) if true_area else 0.0
                    if iou > 0.5:
                        counts[s.class_index][0] += iou
                        counts[s.class_index][1] += 1
                        unmatched_truths.remove(t.id)
                        break
            else:
                crowds = [true_area for t, true_area in truths if t.iscrowd and t.class_index == s.class_index]
                harmless = void | (crowds[-1] if crowds else set())
                counts[s.class_index][2] += len(area & harmless) / len(area) <= 0.5
        for t, _ in truths:
            counts[t.class_index][3] += t.id in unmatched_truths
    return [tuple(entry) for entry in counts]  # type: ignore[misc]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 100_000), void=st.sampled_from([0.0, 0.2, 0.7]), related=st.booleans())
def test_matches_are_those_of_sets_of_pixels(seed: int, void: float, related: bool) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(3):
        truth = random_panoptic(rng, int(rng.integers(3, 13)), void=void, crowds=True)
        guess = perturbed(rng, truth) if related else random_panoptic(rng, len(truth[0]), void=void / 2)
        images.append((guess, truth))
    found, expected = ours(images).stats.numpy(), np.array(brute_force(images)).T
    assert np.array_equal(found[1:], expected[1:])
    assert found[0] == pytest.approx(expected[0], abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100_000), void=st.sampled_from([0.0, 0.3]))
def test_torchmetrics_measures_the_same(seed: int, void: float) -> None:
    """Where its conventions do not differ: no crowd, one segment for all of a stuff, every pixel predicted."""
    rng = np.random.default_rng(seed)
    theirs = TorchmetricsQuality(
        things={0, 1, 2}, stuffs={3, 4}, return_sq_and_rq=True, return_per_class=True, allow_unknown_preds_category=True
    )
    images = []
    for _ in range(2):
        truth = merged_stuff(random_panoptic(rng, 11, void=void))
        values, segments = perturbed(rng, truth)
        if not segments:
            continue
        guess = merged_stuff((np.where(values == 0, segments[0].id, values), segments))
        images.append((guess, truth))
        theirs.update(pairs(guess), pairs(truth))
    if not images:
        return
    expected = theirs.compute().numpy()
    for row, entry in zip(expected, ours(images).result().to_json()["per_class"], strict=True):
        assert [entry[key] or 0.0 for key in ("pq", "sq", "rq")] == pytest.approx((100 * row).tolist(), abs=1e-4)


def merged_stuff(panoptic: Panoptic) -> Panoptic:
    values, segments = panoptic
    first: dict[int, int] = {}
    kept = []
    for entry in segments:
        if entry.class_index == VOID:
            values = np.where(values == entry.id, 0, values)
        elif not entry.isthing and entry.class_index in first:
            values = np.where(values == entry.id, first[entry.class_index], values)
        else:
            kept.append(entry)
            first[entry.class_index] = entry.id
    for entry in kept:
        entry.isthing = entry.class_index in VOCABULARY.things
    return values, [entry for entry in kept if (values == entry.id).any()]


def pairs(panoptic: Panoptic) -> torch.Tensor:
    """Class and instance of every pixel, [1, H, W, 2]."""
    values, segments = panoptic
    classes = np.full_like(values, CLASSES)
    for entry in segments:
        classes[values == entry.id] = entry.class_index
    return torch.from_numpy(np.stack([classes, values], axis=-1))[None]


def test_a_hand_counted_case() -> None:
    truth = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 0, 0]])
    guess = np.array([[7, 7, 7, 8, 8, 8, 8, 8, 7, 9]])
    quality = ours([((guess, [segment(7, 0), segment(8, 3), segment(9, 1)]), (truth, [segment(1, 0), segment(2, 3)]))])
    report = quality.result().to_json()
    # 7 with 1: 3 of 4 pixels, its pixel in void does not count; 8 with 2: 4 of 5; 9 lies in void: not wrong
    assert (report["PQ"], report["SQ"], report["RQ"]) == pytest.approx((77.5, 77.5, 100.0))
    assert (report["PQ_th"], report["PQ_st"]) == pytest.approx((75.0, 80.0))
    assert (report["classes"], report["things"], report["stuff"]) == (2, 1, 1)
    assert report["per_class"][0] == {
        "name": "c0", "isthing": True, "pq": 75.0, "sq": 75.0, "rq": 100.0, "tp": 1, "fp": 0, "fn": 0,
    }  # fmt: skip
    assert report["per_class"][1]["pq"] is None


def test_the_figures_of_panopticapi() -> None:
    """What panopticapi's evaluator gave for these maps, which have crowds, void, and segments in pieces."""
    rows, columns = np.mgrid[:48, :64]
    truth = 1 + rows // 12 * 300 + columns // 16 * 70000
    guess = 5 + (rows + 2) // 12 * 999 + (columns + columns // 20) // 16 * 3
    guess[24:36, :32] = 77
    truth[(rows * 7 + columns * 5) % 11 == 0] = 0
    truth[36:, 48:] = 0
    guess[(rows * columns) % 13 == 5] = 0
    listed = [segment(int(i), n * 3 % CLASSES, n % 6 == 5) for n, i in enumerate(np.unique(truth[truth > 0]))]
    classes = [0, 2, 4, 1, 3, 3, 3, 0, 2, 3, 4, 3, 0, 0, 3, 2, 4, 1, 3, 3, 2, 4, 1, 3, 3, 0]
    predicted = [segment(int(i), of) for i, of in zip(np.unique(guess[guess > 0]), classes, strict=True)]
    quality = ours([((guess, predicted), (truth, listed))])
    assert quality.stats[0].tolist() == pytest.approx(
        [1.3658620689655172, 1.2946518968495027, 1.2987362637362638, 0.6766169154228856, 1.42]
    )
    assert quality.stats[1:].tolist() == [[2, 2, 2, 1, 2], [0, 1, 1, 5, 2], [0, 1, 1, 1, 1]]
    report = quality.result().to_json()
    expected = {"": (42.445245, 67.324841, 63.095238), "_th": (51.579792, 65.987504, 77.777778),
                "_st": (28.743426, 69.330846, 41.071429)}  # fmt: skip
    for suffix, values in expected.items():
        assert [report[name + suffix] for name in ("PQ", "SQ", "RQ")] == pytest.approx(values, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_perfect_is_100_and_order_and_ids_never_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths = [random_panoptic(rng, 9, void=0.1, crowds=True) for _ in range(3)]
    perfect = ours([(truth, truth) for truth in truths]).result().to_json()
    wanted = {s.class_index for values, listed in truths for s in listed if not s.iscrowd and s.class_index != VOID}
    if all((values == s.id).any() for values, listed in truths for s in listed):
        assert perfect["classes"] == len(wanted)
        assert perfect["PQ"] == (100.0 if wanted else None)

    images = [(perturbed(rng, truth), truth) for truth in truths]
    there = ours(images)
    renumbered = [
        ((values * 3, [replace(s, id=s.id * 3) for s in listed]), truth) for (values, listed), truth in images
    ]
    back = ours(renumbered[::-1])
    assert back.stats[0].tolist() == pytest.approx(there.stats[0].tolist())
    assert torch.equal(back.stats[1:], there.stats[1:])


def test_nothing_predicted_and_nothing_true() -> None:
    blank, one = (np.zeros((4, 4), dtype=np.int64), []), (np.ones((4, 4), dtype=np.int64), [segment(1, 3)])
    assert ours([(blank, blank)]).result().to_json()["PQ"] is None
    missed, wrong = ours([(blank, one)]), ours([(one, blank)])
    assert missed.stats[:, 3].tolist() == [0, 0, 0, 1] and missed.result().to_json()["PQ"] == 0.0
    assert not wrong.stats.any()  # all of it lies where the truth says nothing
    listed_only = ours([((blank[0], [segment(9, 2)]), (blank[0], [segment(4, 0)]))])
    assert listed_only.stats.sum(dim=1).tolist() == [0, 0, 0, 1]
    empty = ours([((blank[0][:0], []), (blank[0][:0], []))])
    assert not empty.stats.any()


@pytest.mark.parametrize(
    ("values", "listed", "message"),
    [
        ([1, 2], [segment(1, 0)], "id 2 is in the map and not listed"),
        ([0, 1], [segment(1, 0), segment(1, 1)], "id 1 is listed twice"),
        ([0, 1], [segment(1, CLASSES)], "segment 1 has class 5, none of 5"),
        ([0, 0], [segment(0, 0)], "id 0 is not positive"),
        ([-4, 0], [], "id -4 is in the map"),
    ],
)
def test_what_does_not_fit_is_refused(values: list[int], listed: list[Segment], message: str) -> None:
    bad, good = (np.array([values]), listed), (np.array([[1, 1]]), [segment(1, 0)])
    with pytest.raises(InputError, match=f"panoptic ground truth: .*{message}"):
        ours([(good, bad)])
    with pytest.raises(ValueError, match=f"panoptic prediction: .*{message}"):
        ours([(bad, good)])


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="prediction is"):
        ours([((np.ones((2, 3)), [segment(1, 0)]), (np.ones((3, 2)), [segment(1, 0)]))])
    with pytest.raises(InputError, match="at least one class"):
        PanopticQuality(Vocabulary("none", ()))
