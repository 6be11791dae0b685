"""Scores that are made a band at a time are those of the whole map."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ovstrans.frameworks import scores as module
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.mask2former_inference import QueryScores, instances, panoptic, semantic
from ovstrans.frameworks.scores import (
    FlippedScores,
    MapScores,
    MeanScores,
    ResizedScores,
    Scores,
    WindowScores,
)

SIDES = st.integers(1, 90)
SIZES = st.tuples(SIDES, SIDES)
ROUNDING = 3e-5
"""Of places in float32: about 90 * 2**-24 pixels, between scores that differ by a few units."""


def padded(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] + -size[0] % 32, size[1] + -size[1] % 32


def queries(size: tuple[int, int], count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities [Q, K + 1] and masks [Q, h, w] at stride 4, of any sharpness."""
    generator = torch.Generator().manual_seed(seed)
    height, width = padded(size)
    probabilities = (3 * torch.randn(count, classes + 1, generator=generator)).softmax(-1)
    return probabilities, 6 * torch.randn(count, height // 4, width // 4, generator=generator)


def plain_queries(
    probabilities: Tensor, masks: Tensor, size: tuple[int, int], target: tuple[int, int], masks_first: bool
) -> Tensor:
    """Mask2Former's inference with full-size maps, [K, H, W]; the reference."""
    whole = Framework.resize(masks[None], size, target if masks_first else None)
    found = semantic(probabilities[None, :, :-1], whole)
    return F.interpolate(found, target, mode="bilinear", align_corners=False)[0]


def whole(scores: Scores) -> Tensor:
    """All rows, [K, H, W]."""
    return torch.cat([scores.rows(*band) for band in scores.bands()]).permute(2, 0, 1)


def assert_same(scores: Scores, expected: Tensor) -> None:
    """The same scores, and the same classes but where the two best are equal up to rounding."""
    assert tuple(expected.shape) == (scores.num_classes, *scores.size)
    torch.testing.assert_close(whole(scores), expected, rtol=0, atol=ROUNDING)
    found = [scores.best(*band, confidence=True) for band in scores.bands()]
    classes = torch.cat([each.classes for each in found])
    top = expected.topk(min(2, len(expected)), dim=0)
    clear = torch.ones(scores.size, dtype=torch.bool) if len(top[0]) < 2 else top[0][0] - top[0][1] > 2 * ROUNDING
    assert classes.dtype == torch.int64 and torch.equal(classes[clear], top.indices[0][clear])
    torch.testing.assert_close(torch.cat([each.scores for each in found]), top.values[0], rtol=0, atol=ROUNDING)
    share = expected.softmax(0) if scores.logits else expected / expected.sum(0)
    shares = torch.cat([each.confidence for each in found if each.confidence is not None])
    torch.testing.assert_close(shares, share.amax(0), rtol=1e-3, atol=1e-4)


@pytest.fixture(params=[2**22, 700], ids=["usual bands", "tiny bands"])
def band_numbers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Few large bands, or many small ones."""
    before = dict(module.BAND_NUMBERS)
    module.BAND_NUMBERS["cpu"] = request.param
    yield
    module.BAND_NUMBERS.update(before)


@pytest.mark.usefixtures("band_numbers")
@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES, st.integers(1, 9), st.integers(1, 12), st.booleans(), st.integers(0, 99))
def test_queries(
    size: tuple[int, int], target: tuple[int, int], count: int, classes: int, masks_first: bool, seed: int
) -> None:
    probabilities, masks = queries(size, count, classes, seed)
    scores = QueryScores(probabilities, masks, size, padded(size)).resize(target, masks_first=masks_first)
    assert_same(scores, plain_queries(probabilities, masks, size, target, masks_first))


@pytest.mark.usefixtures("band_numbers")
@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES, st.integers(1, 12), st.sampled_from([4, 16, 32]), st.integers(0, 99))
def test_maps(size: tuple[int, int], target: tuple[int, int], classes: int, stride: int, seed: int) -> None:
    height, width = padded(size)
    maps = torch.randn(classes, height // stride, width // stride, generator=torch.Generator().manual_seed(seed))
    expected = F.interpolate(Framework.resize(maps[None], size), target, mode="bilinear", align_corners=False)[0]
    assert_same(MapScores(maps, size, padded(size)).resize(target), expected)


@pytest.mark.usefixtures("band_numbers")
@settings(max_examples=20, deadline=None)
@given(SIZES, SIZES, st.integers(1, 9))
def test_any_scores_can_be_resized(size: tuple[int, int], target: tuple[int, int], classes: int) -> None:
    maps = torch.randn(classes, *size, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps[None], target, mode="bilinear", align_corners=False)[0]
    assert_same(ResizedScores(MapScores(maps, size), target), expected)


def test_both_orders_differ_and_the_mirror_image_is_brought_back() -> None:
    probabilities, masks = queries((33, 50), 5, 4)
    scores = QueryScores(probabilities, masks, (33, 50), padded((33, 50)))
    first, last = scores.resize((60, 90), masks_first=True), scores.resize((60, 90))
    assert float((whole(first) - whole(last)).abs().max()) > 0.01
    both = MeanScores([scores, FlippedScores(scores)]).resize((60, 90), masks_first=True)
    assert_same(both, (whole(first) + whole(first).flip(-1)) / 2)


@pytest.mark.usefixtures("band_numbers")
@settings(max_examples=20, deadline=None)
@given(st.integers(5, 30), st.integers(5, 40), st.integers(1, 4), st.integers(1, 4))
def test_windows_average_where_they_overlap(height: int, width: int, down: int, across: int) -> None:
    """Any starts that cover the image; read in order, each is predicted once."""
    window = (min(height, 5), min(width, 7))
    tops = sorted({*range(0, height - window[0], down), height - window[0]})
    lefts = sorted({*range(0, width - window[1], across), width - window[1]})
    maps = {
        (top, left): torch.randn(3, *window, generator=torch.Generator().manual_seed(100 * top + left))
        for top in tops
        for left in lefts
    }
    predicted: list[int] = []

    def predict(top: int) -> list[Scores]:
        predicted.append(top)
        return [MapScores(maps[top, left], window) for left in lefts]

    total, count = torch.zeros(3, height, width), torch.zeros(height, width)
    for (top, left), each in maps.items():
        total[:, top : top + window[0], left : left + window[1]] += each
        count[top : top + window[0], left : left + window[1]] += 1
    scores = WindowScores((height, width), window, tops, lefts, predict)
    torch.testing.assert_close(whole(scores), total / count)
    assert predicted == tops
    assert_same(scores.resize((11, 13)), F.interpolate((total / count)[None], (11, 13), mode="bilinear")[0])


def test_windows_that_reading_has_passed_are_dropped() -> None:
    """Two rows of windows overlap at a time; no third one stays in memory."""
    made: list[weakref.ref[Scores]] = []

    def predict(top: int) -> list[Scores]:
        scores = [MapScores(torch.ones(2, 4, 6), (4, 6))]
        made.extend(map(weakref.ref, scores))
        return scores

    scores = WindowScores((20, 6), (4, 6), range(0, 17, 2), [0], predict)
    for row in range(20):
        scores.rows(row, row + 1)
        assert sum(each() is not None for each in made) <= 2
    assert len(made) == 9


@pytest.mark.usefixtures("band_numbers")
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_panoptic_segments_are_those_of_whole_masks(threshold: float) -> None:
    size, target = (40, 70), (61, 33)
    probabilities, masks = queries(size, 12, 5, seed=3)
    masks = F.interpolate(masks[None, :, ::8, ::8], masks.shape[-2:], mode="bilinear")[0]
    whole_masks = Framework.resize(masks[None], size, target)[0]
    thresholds = {"object_threshold": threshold, "overlap_threshold": 0.1}
    expected_map, expected = panoptic(probabilities, whole_masks, {0, 2}, **thresholds)
    scores = QueryScores(probabilities, masks, size, padded(size)).resize(target)
    found_map, found = scores.panoptic({0, 2}, **thresholds)
    assert found == expected and len(found) > 2
    assert torch.equal(found_map, expected_map) and set(found_map.unique().tolist()) >= {each.id for each in found}


@pytest.mark.usefixtures("band_numbers")
@pytest.mark.parametrize("top", [7, 100])
def test_instances_are_those_of_whole_masks(top: int) -> None:
    size, target = (40, 70), (61, 33)
    probabilities, masks = queries(size, 12, 5, seed=3)
    expected = instances(probabilities[:, :-1], Framework.resize(masks[None], size, target)[0], {0, 2}, top=top)
    found = QueryScores(probabilities, masks, size, padded(size)).resize(target).instances({0, 2}, top=top)
    assert torch.equal(found.classes, expected.classes) and len(found.classes) > 2
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.masks.shape == expected.masks.shape and (found.masks == expected.masks).float().mean() > 0.999


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return result


@pytest.mark.parametrize("masks_first", [False, True])
@pytest.mark.parametrize("kind", ["queries", "maps", "flip"])
def test_no_tensor_is_as_large_as_the_scores_of_the_image(
    monkeypatch: pytest.MonkeyPatch, kind: str, masks_first: bool
) -> None:
    """Nothing beyond a band, whatever the classes: neither K x H x W nor Q x H x W."""
    size, target, classes = (64, 96), (150, 151), 400
    numbers = 2**17
    monkeypatch.setitem(module.BAND_NUMBERS, "cpu", numbers)
    probabilities, masks = queries(size, 50, classes)
    scores: Scores = QueryScores(probabilities, masks, size, size)
    if kind == "maps":
        scores = MapScores(torch.randn(classes, 4, 6), size, size)
    if kind == "flip":
        scores = MeanScores([scores, FlippedScores(scores)])
    with Largest() as largest:
        found = scores.resize(target, masks_first=masks_first)
        for band in found.bands():
            found.best(*band)
    assert largest.numbers <= max(numbers, masks.numel())
    assert largest.numbers < classes * 150 * 151 / 50 and largest.numbers < 50 * 150 * 151 / 2
