"""Fusion and losses of DeOP against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ovstrans.frameworks.deop_losses import fuse, pixel_losses

IGNORED = -100


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def log_probabilities(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows).log()[None]


def test_fusion_sums_class_times_mask_probability() -> None:
    classes = torch.tensor([[[0.7, 0.2], [0.1, 0.6]]])
    masks = torch.tensor([[[[1.0, 0.5]], [[0.9, 0.2]]]])
    expected = [[0.7 * 1 + 0.1 * 0.9, 0.7 * 0.5 + 0.1 * 0.2], [0.2 * 1 + 0.6 * 0.9, 0.2 * 0.5 + 0.6 * 0.2]]
    assert torch.allclose(fuse(classes, masks)[0, :, 0], torch.tensor(expected))


def by_hand(rows: list[list[float]], masks: list[list[float]], labels: list[int]) -> tuple[float, float]:
    """Both losses of one image of a single row of pixels, number by number."""
    classes, pixels = len(rows[0]), len(labels)
    focal, count, shared, total = 0.0, 0, 0.0, 0.0
    for pixel in range(pixels):
        if labels[pixel] == IGNORED:
            continue
        for index in range(classes):
            fused = sum(row[index] * mask[pixel] for row, mask in zip(rows, masks, strict=True))
            score = 1 / (1 + math.exp(-(3 * fused - 3)))
            wanted = float(labels[pixel] == index)
            right = score if wanted else 1 - score
            alpha = 0.25 if wanted else 0.75
            focal -= alpha * (1 - right) ** 2 * math.log(min(max(right, 1e-4), 1 - 1e-4))
            count += 1
            if index < classes - 1:
                shared += score * wanted
                total += score + wanted
    return focal / count, 1 - (2 * shared + 1) / (total + 1)


ROWS = [[0.6, 0.3, 0.1], [0.05, 0.75, 0.2]]
MASKS = [[0.9, 0.4, 0.2, 0.6], [0.1, 0.7, 0.95, 0.5]]


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, IGNORED, 1, IGNORED], [1, 1, 1, 1]])
def test_losses_by_hand(labels: list[int]) -> None:
    masks = torch.tensor([[[logit(value) for value in row]] for row in MASKS])[None]
    focal, dice = pixel_losses(log_probabilities(ROWS), masks, torch.tensor([[labels]]), IGNORED)
    expected = by_hand(ROWS, MASKS, labels)
    assert math.isclose(float(focal), expected[0], rel_tol=1e-5)
    assert math.isclose(float(dice), expected[1], rel_tol=1e-5)


def test_ignored_pixels_have_no_gradient() -> None:
    masks = torch.zeros(1, 2, 2, 2, requires_grad=True)
    labels = torch.tensor([[[0, IGNORED], [1, IGNORED]]])
    torch.stack(pixel_losses(log_probabilities(ROWS), masks, labels, IGNORED)).sum().backward()
    assert masks.grad is not None
    assert (masks.grad[..., 1] == 0).all() and (masks.grad[..., 0] != 0).all()


def test_dice_is_averaged_over_images_and_focal_over_pixels() -> None:
    masks = torch.tensor([[[logit(value) for value in row]] for row in MASKS])[None]
    one, other = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[1, 0, IGNORED, IGNORED]]])
    single = [pixel_losses(log_probabilities(ROWS), masks, labels, IGNORED) for labels in (one, other)]
    both = pixel_losses(
        log_probabilities(ROWS).expand(2, -1, -1), masks.expand(2, -1, -1, -1), torch.cat([one, other]), IGNORED
    )
    assert torch.allclose(both[0], (4 * single[0][0] + 2 * single[1][0]) / 6)
    assert torch.allclose(both[1], (single[0][1] + single[1][1]) / 2)


def test_an_image_without_labels_has_no_loss() -> None:
    masks = torch.zeros(1, 2, 2, 2, requires_grad=True)
    labels = torch.full((1, 4, 4), IGNORED)
    focal, dice = pixel_losses(log_probabilities(ROWS), masks, labels, IGNORED)
    assert float(focal.detach()) == 0 and float(dice.detach()) == 0
    (focal + dice).backward()
    assert masks.grad is not None and (masks.grad == 0).all()


def test_masks_are_resized_as_logits_before_the_sigmoid() -> None:
    masks = torch.tensor([[[[-4.0, 8.0]]]])
    labels = torch.zeros(1, 1, 4, dtype=torch.long)
    logits = torch.tensor([[[9.0, -9.0, -9.0]]])
    wide = torch.nn.functional.interpolate(masks, (1, 4), mode="bilinear")
    assert torch.equal(
        torch.stack(pixel_losses(logits, masks, labels, IGNORED)),
        torch.stack(pixel_losses(logits, wide, labels, IGNORED)),
    )
