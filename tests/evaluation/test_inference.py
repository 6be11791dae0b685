"""How an image is looked at: sizes, windows, mirror images, orders, and what the winner's share is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.datasets.augment import resize_image
from ovstrans.errors import InputError
from ovstrans.evaluation.inference import Inference, Prediction, images_per_batch, predict_image, window_starts
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.mask2former_inference import QueryScores, semantic
from ovstrans.frameworks.scores import MapScores, Scores
from tests.frameworks import golden_case as case

CLOSE = 1e-4
"""Two scores this near may change places by rounding."""


class Pixelwise(nn.Module):
    """Scores by colour alone: class c is a fixed mixture of red, green and blue."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.mix = torch.randn(classes, 3, generator=torch.Generator().manual_seed(1))
        self.seen: list[tuple[int, ...]] = []

    def scores(self, images: Tensor, text: object = None) -> Sequence[Scores]:
        self.seen.append(tuple(images.shape))
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return [MapScores(maps, size) for maps in self.of(images)]

    def of(self, images: Tensor) -> Tensor:
        """[..., 3, H, W] in [0, 1] to scores [..., K, H, W]."""
        return torch.einsum("kc,...chw->...khw", 3 * self.mix, images - 0.5)


class Leaning(Pixelwise):
    """Adds to class 0 what grows to the right, so that a mirror image scores otherwise."""

    def scores(self, images: Tensor, text: object = None) -> Sequence[Scores]:
        ramp = torch.linspace(0, 1, images.shape[-1]).expand(images.shape[-2], -1)
        found = []
        for each in super().scores(images):
            assert isinstance(each, MapScores)
            maps = each.maps.permute(2, 0, 1).clone()
            maps[0] += ramp
            found.append(MapScores(maps, each.size))
        return found


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [3, H, W], smooth enough that resizing keeps its look."""
    coarse = 255 * torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bilinear")[0].to(torch.uint8)


def assert_classes(found: Tensor, scores: Tensor) -> None:
    """The arg max of scores [K, H, W], but where the best two are nearly equal."""
    top = scores.topk(2, dim=0)
    clear = top.values[0] - top.values[1] > CLOSE
    assert found.shape == scores.shape[1:] and found.dtype == torch.int64
    assert torch.equal(found[clear], top.indices[0][clear]) and clear.double().mean() > 0.9


@pytest.mark.parametrize(
    ("inference", "size", "expected"),
    [
        (Inference(), (60, 80), (60, 80)),
        (Inference(800, 1333), (480, 640), (800, 1067)),
        (Inference(800, 1333), (427, 1000), (569, 1333)),  # 569.19
        (Inference(1024, 2560), (1024, 2048), (1024, 2048)),
        (Inference(long_side=40), (60, 80), (30, 40)),
        (Inference(5), (2, 1), (10, 5)),
        (Inference(3), (2, 3), (3, 5)),  # 4.5 is rounded up, as detectron2 does
        (Inference(5), (2, 5), (5, 13)),  # 12.5, which Python's round() would make 12
        (Inference(long_side=5), (3, 10), (2, 5)),  # 1.5
        (Inference(long_side=5), (5, 10), (3, 5)),  # 2.5, which round() would make 2
        (Inference(long_side=100), (149, 1000), (15, 100)),  # 14.9
        (Inference(long_side=100), (144, 1000), (14, 100)),  # 14.4
        (Inference(long_side=10), (1, 1000), (1, 10)),  # never 0
    ],
)
def test_evaluation_sizes(inference: Inference, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert inference.size(*size) == expected


@given(st.integers(1, 300), st.integers(1, 120), st.integers(1, 120))
def test_windows_cover_a_side_and_stay_inside(length: int, window: int, stride: int) -> None:
    starts = window_starts(length, window, min(stride, window))
    taken = min(window, length)
    assert starts[0] == 0 and starts[-1] + taken == length
    assert all(0 < later - earlier <= min(stride, window) for earlier, later in pairwise(starts))


class Recorder(Pixelwise):
    """Keeps the windows that it is shown, by the column and row that red and green count."""

    def __init__(self) -> None:
        super().__init__()
        self.corners: list[tuple[int, int]] = []

    def scores(self, images: Tensor, text: object = None) -> Sequence[Scores]:
        self.corners += [(round(float(each[1, 0, 0]) * 255), round(float(each[0, 0, 0]) * 255)) for each in images]
        return super().scores(images)


@pytest.mark.parametrize(
    ("window", "stride", "tops", "lefts"),
    [
        (12, None, [0, 8, 16, 18], [0, 8, 16, 24, 28]),  # 2/3 of the window
        (12, 5, [0, 5, 10, 15, 18], [0, 5, 10, 15, 20, 25, 28]),
        (12, 12, [0, 12, 18], [0, 12, 24, 28]),
        (35, None, [0], [0, 5]),  # as high as the image
        (50, None, [0], [0]),
        (1, None, list(range(30)), list(range(40))),
    ],
)
def test_windows_are_a_stride_apart(window: int, stride: int | None, tops: list[int], lefts: list[int]) -> None:
    """Red counts the columns and green the rows, so that a window's first pixel tells where it lies."""
    image = torch.zeros(3, 30, 40, dtype=torch.uint8)
    image[0], image[1] = torch.arange(40), torch.arange(30)[:, None]
    model = Recorder()
    predict_image(model, image, inference=Inference(window=window, stride=stride))
    assert model.corners == [(top, left) for top in tops for left in lefts]


@pytest.mark.parametrize(("rival", "first_won"), [(4.0, 8), (6.5, 12)])
def test_overlapping_windows_are_averaged(rival: float, first_won: int) -> None:
    """The windows begin at 0, 6 and 12, and each scores class 0 by its first column: 0, 3 where two overlap, 6, 9, 12.

    The rival class wins up to the column where class 0 exceeds it; the first or last window alone would decide
    another column.
    """

    class FirstColumn:
        def scores(self, images: Tensor, text: object = None) -> Sequence[Scores]:
            found = []
            for each in images:
                maps = torch.full((2, *each.shape[-2:]), rival)
                maps[0] = each[0, 0, 0] * 255
                found.append(MapScores(maps, (int(each.shape[-2]), int(each.shape[-1]))))
            return found

    image = torch.zeros(3, 4, 20, dtype=torch.uint8)
    image[0] = torch.arange(20)
    found = predict_image(FirstColumn(), image, inference=Inference(window=8, stride=6)).classes
    assert found[0].tolist() == [1] * first_won + [0] * (20 - first_won)
    assert torch.equal(found, found[:1].expand(4, -1))


@settings(max_examples=15, deadline=None)
@given(st.integers(9, 40), st.integers(9, 40), st.integers(4, 50), st.data())
def test_windows_change_nothing_for_a_model_that_sees_single_pixels(
    height: int, width: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.none() | st.integers(1, window))
    image, model = picture(height, width), Pixelwise()
    whole = predict_image(model, image, confidence=True)
    model.seen.clear()
    found = predict_image(model, image, inference=Inference(window=window, stride=stride), confidence=True)
    assert all(shape[-2:] == (min(window, height), min(window, width)) for shape in model.seen)
    assert whole.confidence is not None and found.confidence is not None
    torch.testing.assert_close(found.confidence, whole.confidence, rtol=0, atol=1e-5)
    assert_classes(found.classes, model.of(image / 255))
    assert len(found.classes.unique()) > 1


def test_the_mirror_image_makes_prediction_symmetric() -> None:
    image, model = picture(24, 31), Leaning()
    flip = Inference(flip=True)
    mirrored = predict_image(model, image.flip(-1), inference=flip)
    assert torch.equal(predict_image(model, image, inference=flip).classes, mirrored.classes.flip(-1))
    without = [predict_image(model, each).classes for each in (image, image.flip(-1))]
    assert not torch.equal(without[0], without[1].flip(-1))
    pair = [model.of(each / 255) for each in (image, image.flip(-1))]
    for each in pair:
        each[0] += torch.linspace(0, 1, 31)
    assert_classes(predict_image(model, image, inference=flip).classes, (pair[0] + pair[1].flip(-1)) / 2)


@pytest.mark.parametrize("order", ["published", "masks", "scores"])
@pytest.mark.parametrize("size", [(64, 64), (90, 60)])
def test_fcclip_as_published_with_whole_maps(size: tuple[int, int], order: str) -> None:
    """Resized to 70 / 100, padded, scored, and brought back in either order: as by full-size scores."""
    framework = case.model()
    text = case.text_of(case.ASKED, framework.embed_dim)
    image = case.image(size)[0]
    inference = Inference(70, 100, order=order)
    seen = inference.size(*size)
    with torch.no_grad():
        probabilities, masks = framework.predict_masks(resize_image(image, seen)[None] / 255, text)
        whole = Framework.resize(masks, seen, size if order == "masks" else None)
        expected = semantic(probabilities[..., :-1], whole)
        expected = F.interpolate(expected, size, mode="bilinear", align_corners=False)[0]
    found = predict_image(framework, image, text, inference=inference, confidence=True)
    assert_classes(found.classes, expected)
    assert found.confidence is not None
    torch.testing.assert_close(found.confidence, (expected / expected.sum(0)).amax(0), rtol=0, atol=1e-4)


def test_fcclip_resizes_masks_first_on_panoptic_data_only() -> None:
    """As its configurations have it; frameworks without that habit, and who asks, decide otherwise."""
    fcclip = case.model()
    assert Inference().upsamples_masks(fcclip, panoptic=True) and not Inference().upsamples_masks(
        fcclip, panoptic=False
    )
    assert not Inference().upsamples_masks(Pixelwise(), panoptic=True)
    assert Inference(order="masks").upsamples_masks(fcclip, panoptic=False)
    assert not Inference(order="scores").upsamples_masks(fcclip, panoptic=True)


def test_confidence_is_the_winners_share() -> None:
    """A softmax of scores, a part of the sum of class and mask probabilities; nothing there is 0."""

    class Two:
        def scores(self, images: Tensor, text: object = None) -> list[Scores]:
            probabilities = torch.tensor([[0.6, 0.2, 0.2], [0.0, 0.1, 0.9]])
            masks = torch.tensor([[[50.0, 50.0, -200.0]], [[-200.0, 50.0, -200.0]]])
            return [QueryScores(probabilities, masks, (1, 3))]

    found = predict_image(Two(), torch.zeros(3, 1, 3, dtype=torch.uint8), confidence=True)
    assert found.classes.tolist() == [[0, 0, 0]]
    assert found.confidence is not None and found.confidence.dtype == torch.float32
    torch.testing.assert_close(found.confidence, torch.tensor([[0.75, 0.6 / 0.9, 0.0]]))
    model = Pixelwise()
    image = picture(4, 5)
    share = model.of(image / 255).softmax(0).amax(0)
    soft = predict_image(model, image, confidence=True).confidence
    assert soft is not None
    torch.testing.assert_close(soft, share)


def test_half_precision_is_of_the_forward_pass_alone() -> None:
    """Under autocast the model computes in bfloat16; the comparison of classes does not."""

    class Probe(Pixelwise):
        def scores(self, images: Tensor, text: object = None) -> Sequence[Scores]:
            assert torch.is_autocast_enabled("cpu")
            probabilities = (torch.full((1, 3), 0.25) + torch.tensor([0.0, 1e-5, 0.0])).bfloat16().float()
            probabilities = probabilities + torch.tensor([0.0, 1e-5, 0.0])  # bfloat16 would not tell them apart
            size = (int(images.shape[-2]), int(images.shape[-1]))
            return [QueryScores(probabilities, torch.zeros(1, *size, dtype=torch.bfloat16), size)]

    found = predict_image(Probe(), picture(6, 7), inference=Inference(amp=torch.bfloat16))
    assert bool((found.classes == 1).all())


def test_no_more_images_together_than_their_pixels_allow() -> None:
    assert images_per_batch((64, 64), 8) == 8
    assert images_per_batch((512, 683), 8) == 2
    assert images_per_batch((800, 1333), 8) == images_per_batch((4000, 4000), 8) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 0}, "`short_side=0`: at least 1 pixel"),
        ({"window": -1}, "`window=-1`: at least 1 pixel"),
        ({"stride": 5}, "`stride=5`: needs a `window`"),
        ({"window": 4, "stride": 5}, "`stride=5`: needs a `window`"),
        ({"order": "best"}, "order 'best': unknown"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Inference(**options)


def test_reports_hold_how_it_was_looked_at() -> None:
    assert Inference(800, 1333, amp=torch.bfloat16).to_json() == {
        "short_side": 800,
        "long_side": 1333,
        "window": None,
        "stride": None,
        "flip": False,
        "amp": "bfloat16",
        "order": "published",
    }
    assert Prediction(torch.zeros(1, 1)).confidence is None
