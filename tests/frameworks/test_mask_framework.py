"""What FC-CLIP and GKC share: how losses are put together, and which prediction inference uses."""

from __future__ import annotations

import pytest
import torch

from ovstrans.clip.load import Clip
from ovstrans.clip.text import TextClassifier
from ovstrans.frameworks.gkc import GKC
from ovstrans.frameworks.mask2former_losses import class_loss, class_targets, make_targets
from tests.frameworks.fcclip_case import TINY, USUAL, make


def test_losses_sum_weighted_terms_over_predictions(clip: Clip, text: TextClassifier) -> None:
    """By the same random points: weights, region dropout, void weight and the division by segments are all in."""
    weights = {"mask": 2.0, "dice": 3.0, "class": 5.0}
    options = {f"{name}_weight": value for name, value in weights.items()}
    framework = make(clip, text, void_weight=0.3, region_drop=0.5, **options)
    torch.manual_seed(1)
    losses = framework.losses(USUAL)
    torch.manual_seed(1)
    output = framework.head(framework.backbone_features(USUAL.images))
    assert USUAL.segments is not None and len(output.masks) == 3
    targets = [make_targets(each, [0, 2, 3], (64, 64)) for each in USUAL.segments]
    expected = dict.fromkeys(weights, torch.zeros(()))
    for prediction, masks in enumerate(output.masks):
        scores = framework.class_scores(output, prediction, framework.base_text)
        match = framework.criterion.match(masks, scores, targets)
        labels = class_targets((2, 10), 3, targets, match, drop=0.5)
        mask, dice = framework.criterion.mask_losses(masks, targets, match, 3.0)
        terms = {"mask": mask, "dice": dice, "class": class_loss(scores, labels, 0.3)}
        expected = {name: expected[name] + weights[name] * value for name, value in terms.items()}
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_inference_uses_the_final_prediction(clip: Clip, text: TextClassifier) -> None:
    torch.manual_seed(0)
    framework = GKC(encoder=clip.visual, mean=clip.mean, std=clip.std, text=text, options=TINY).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        output = framework.head(framework.backbone_features(images))
        probabilities, masks = framework.predict_masks(images)
        scores = [framework.class_scores(output, number, text) for number in range(framework.predictions)]
    assert torch.equal(masks, output.masks[-1]) and not torch.equal(masks, output.masks[0])
    assert torch.equal(probabilities, scores[-1].softmax(-1)) and not torch.equal(probabilities, scores[0].softmax(-1))


@pytest.mark.parametrize("points", [1, 64])
def test_the_option_points_reaches_the_criterion(clip: Clip, text: TextClassifier, points: int) -> None:
    assert make(clip, text, points=points).criterion.points == points


def test_segments_are_needed_by_the_class_itself() -> None:
    """A cost report and the data loader ask before there is an instance."""
    assert GKC.target_requirements.segments and not GKC.target_requirements.teacher
