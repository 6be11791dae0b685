"""Semantic, panoptic and instance inference on cases that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ovstrans.datasets.sample import Segment
from ovstrans.frameworks.mask2former_inference import instances, panoptic, semantic

SURE = 20.0
"""A logit whose probability is 1 to eight digits."""


def logits(*rows: str) -> Tensor:
    """One mask a string, of a row of pixels: `#` inside, `.` outside, `+` just inside."""
    values = {"#": SURE, ".": -SURE, "+": 0.5}
    return torch.tensor([[[values[pixel] for pixel in row]] for row in rows])


def test_semantic_sums_over_queries() -> None:
    probabilities = torch.tensor([[[0.9, 0.1], [0.2, 0.3]]])
    masks = torch.tensor([[[[SURE, -SURE, 0.0]], [[SURE, SURE, -SURE]]]])
    expected = torch.tensor([[[[1.1, 0.2, 0.45]], [[0.4, 0.3, 0.05]]]])
    torch.testing.assert_close(semantic(probabilities, masks), expected, atol=1e-6, rtol=0)
    assert semantic(probabilities.bfloat16(), masks.bfloat16()).dtype == torch.float32


def test_panoptic_numbers_segments_and_counts_their_pixels() -> None:
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.7, 0.2]])
    segment_map, segments = panoptic(probabilities, logits("##...", "...##"), things={1}, object_threshold=0.0)
    assert segment_map.dtype == torch.int32 and segment_map.tolist() == [[1, 1, 0, 2, 2]]
    assert segments == [Segment(1, 0, isthing=False, area=2), Segment(2, 1, isthing=True, area=2)]


def test_panoptic_merges_stuff_and_keeps_things_apart() -> None:
    probabilities = torch.tensor([[0.9, 0.0, 0.1]] * 2 + [[0.0, 0.9, 0.1]] * 2)
    masks = logits("#.....", ".#....", "..#...", "...##.")
    segment_map, segments = panoptic(probabilities, masks, things={1}, object_threshold=0.0)
    assert segment_map.tolist() == [[1, 1, 2, 3, 3, 0]]
    assert [(each.id, each.class_index, each.isthing, each.area) for each in segments] == [
        (1, 0, False, 2),
        (2, 1, True, 1),
        (3, 1, True, 2),
    ]


def test_panoptic_leaves_out_void_and_low_probabilities() -> None:
    probabilities = torch.tensor([[0.2, 0.1, 0.7], [0.6, 0.3, 0.1], [0.5, 0.3, 0.2]])
    masks = logits("##....", "..##..", "....##")
    segment_map, segments = panoptic(probabilities, masks, things=(), object_threshold=0.5)
    assert segment_map.tolist() == [[0, 0, 1, 1, 0, 0]] and len(segments) == 1
    nothing, none = panoptic(probabilities, masks, things=(), object_threshold=0.6)
    assert not nothing.any() and none == []


@pytest.mark.parametrize(("threshold", "shown"), [(0.5, True), (0.51, False)])
def test_panoptic_drops_what_others_cover(threshold: float, shown: bool) -> None:
    """The second query keeps two of its four pixels, and nobody gets the pixels of one that is dropped."""
    probabilities = torch.tensor([[0.9, 0.0, 0.1], [0.0, 0.6, 0.4]])
    masks = logits("####..", "..####")
    segment_map, segments = panoptic(
        probabilities, masks, things={0, 1}, object_threshold=0.0, overlap_threshold=threshold
    )
    assert segment_map.tolist() == [[1, 1, 1, 1, 2, 2] if shown else [1, 1, 1, 1, 0, 0]]
    assert len(segments) == 1 + shown


def test_panoptic_shows_a_query_only_inside_its_own_mask() -> None:
    """The only query owns every pixel, but the ones outside its mask stay empty."""
    segment_map, segments = panoptic(torch.tensor([[0.9, 0.1]]), logits("#+.."), things=(), object_threshold=0.0)
    assert segment_map.tolist() == [[1, 1, 0, 0]] and segments[0].area == 2
    nothing, none = panoptic(torch.tensor([[0.9, 0.1]]), logits("...."), things=(), object_threshold=0.0)
    assert not nothing.any() and none == []


def test_panoptic_gives_a_pixel_to_the_higher_product() -> None:
    """A class probability of 0.9 times a mask probability of 1/2 loses to 0.6 times 1; both pixels are inside masks."""
    masks = torch.tensor([[[0.0, SURE]], [[SURE, 0.0]]])
    segment_map, segments = panoptic(
        torch.tensor([[0.9, 0.0, 0.1], [0.0, 0.6, 0.4]]), masks, {0, 1}, object_threshold=0.0, overlap_threshold=0.5
    )
    assert segment_map.tolist() == [[2, 1]] and [each.area for each in segments] == [1, 1]
    sure = torch.tensor([[[1.0]], [[1.5]]])  # 0.9 * 0.73 against 0.6 * 0.82
    probabilities = torch.tensor([[0.9, 0.0, 0.1], [0.0, 0.6, 0.4]])
    assert [each.class_index for each in panoptic(probabilities, sure, {0, 1}, object_threshold=0.0)[1]] == [0]


def test_panoptic_counts_a_mask_probability_of_one_half_as_inside() -> None:
    segment_map, _ = panoptic(torch.tensor([[0.9, 0.1]]), torch.zeros(1, 1, 2), things=(), object_threshold=0.0)
    assert segment_map.tolist() == [[1, 1]]


def test_instances_rank_pairs_of_query_and_class() -> None:
    probabilities = torch.tensor([[0.6, 0.3, 0.05], [0.1, 0.2, 0.9]])
    masks = torch.tensor([[[SURE, 0.0, -1.0]], [[-SURE, SURE, SURE]]])
    found = instances(probabilities, masks, things={0, 1})
    assert found.classes.tolist() == [0, 1, 1, 0]
    # The first mask has one pixel inside, a logit of 0 is outside.
    torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.3, 0.2, 0.1]), atol=1e-5, rtol=0)
    assert found.masks.dtype == torch.bool and found.masks[0, 0].tolist() == [True, False, False]


def test_instance_scores_include_the_mean_mask_probability() -> None:
    masks = torch.tensor([[[1.0, -SURE]], [[SURE, SURE]], [[-SURE, -SURE]]])
    found = instances(torch.tensor([[0.9], [0.8], [1.0]]), masks, things={0})
    inside = torch.tensor(1.0).sigmoid()
    torch.testing.assert_close(found.scores, torch.tensor([0.8, 0.9 * inside, 0.0]), atol=1e-5, rtol=0)


def test_instances_are_things_among_the_top() -> None:
    probabilities = torch.tensor([[0.9, 0.5], [0.8, 0.4]])
    masks = logits("##", "##")
    assert instances(probabilities, masks, things={1}, top=3).classes.tolist() == [1]
    assert instances(probabilities, masks, things=(), top=3).masks.shape == (0, 1, 2)
