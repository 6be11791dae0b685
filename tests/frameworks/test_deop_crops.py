"""Crops of the two-stream baseline, and which query's anchors a given mask takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.frameworks.deop_crops import crop, encode_crops
from ovstrans.frameworks.deop_proposals import Proposals, given_proposals, match_queries, resize_given


class Mean(nn.Module):
    """An encoder whose embedding is the mean colour."""

    output_dim = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_a_crop_is_the_tight_box_with_zeros_outside_the_mask() -> None:
    image = torch.arange(1.0, 49.0).reshape(3, 4, 4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = True
    mask[1, 1] = False
    inside = image[:, 1:3, 1:3].clone()
    inside[:, 0, 0] = 0
    assert torch.equal(crop(image, mask, 2), inside)
    expected = F.interpolate(inside[None], (5, 5), mode="bicubic")[0]
    assert torch.equal(crop(image, mask, 5), expected)


def test_every_mask_that_is_not_empty_has_a_crop_at_its_place() -> None:
    images = torch.rand(2, 3, 8, 8) + 1
    masks = torch.full((2, 3, 8, 8), -9.0)
    masks[0, 2, :, :4] = 9
    masks[1, 0, 2:, 2:] = 9
    found = encode_crops(Mean(), images, masks, 8)
    assert found.shape == (2, 3, 3)
    assert torch.allclose(found[0, 2], Mean()(crop(images[0], masks[0, 2] > 0, 8)[None])[0])
    assert torch.allclose(found[1, 0], Mean()(crop(images[1], masks[1, 0] > 0, 8)[None])[0])
    assert (found[0, :2] == 0).all() and (found[1, 1:] == 0).all()
    assert (encode_crops(Mean(), images, torch.full((2, 3, 8, 8), -9.0), 8) == 0).all()


def test_more_crops_than_fit_a_chunk() -> None:
    images = torch.rand(1, 3, 8, 8)
    masks = torch.full((1, 120, 8, 8), -9.0)
    for number in range(120):
        masks[0, number, number % 8, (number // 8) % 8] = 9
    found = encode_crops(Mean(), images, masks, 4)
    for number in (0, 49, 50, 119):
        assert torch.allclose(found[0, number], images[0, :, number % 8, (number // 8) % 8], atol=1e-5)


def test_masks_at_stride_4_are_resized_before_the_threshold() -> None:
    images = torch.ones(1, 3, 16, 16)
    masks = torch.tensor([[[[9.0, -9.0], [-9.0, -9.0]]]])
    full = F.interpolate(masks, (16, 16), mode="bilinear")
    assert torch.equal(encode_crops(Mean(), images, masks, 8), encode_crops(Mean(), images, full, 8))


def test_given_masks_are_averaged_over_patches_and_padded() -> None:
    mask = torch.zeros(1, 24, 32, dtype=torch.bool)
    mask[0, :, :8] = True
    proposals = given_proposals(mask, (32, 32))
    assert torch.allclose(proposals.inside((2, 2))[0, 0], torch.tensor([[0.5, 0.0], [0.25, 0.0]]), atol=1e-5)
    assert torch.allclose(proposals.grid_logits((2, 2)).sigmoid(), proposals.inside((2, 2)), atol=1e-4)
    predicted = Proposals(torch.tensor([[[[-4.0, 4.0]]]]))
    assert torch.allclose(predicted.inside((1, 1)), torch.tensor([[[[0.5]]]]))
    assert predicted.grid_logits((1, 1)) is predicted.masks


def test_a_given_mask_takes_the_query_whose_proposal_is_most_like_it() -> None:
    own = torch.zeros(1, 3, 2, 2)
    own[0, 0] = 1
    own[0, 1, 0] = 1
    own[0, 2, 1, 1] = 0.9
    given = torch.zeros(1, 3, 2, 2)
    given[0, 0, 1, 1] = 1
    given[0, 1] = 1
    given[0, 2, 0] = 1
    assert match_queries(given, own).tolist() == [[2, 0, 1]]
    assert match_queries(torch.zeros(1, 1, 2, 2), own).tolist() == [[0]]


def test_given_masks_are_resized_nearest() -> None:
    mask = torch.tensor([[[True, False], [False, False]]])
    (found,) = resize_given([mask], (4, 4))
    assert found.dtype is torch.bool and int(found.sum()) == 4 and bool(found[0, :2, :2].all())
    assert resize_given([torch.zeros(0, 2, 2, dtype=torch.bool)], (4, 4))[0].shape[0] == 0
