"""Images that are too large for the memory are refused before they are resized or scored."""

from __future__ import annotations

import pytest
import torch

from ovstrans import environment
from ovstrans.costs.estimate import estimate_forward
from ovstrans.costs.latency import measure_latency
from ovstrans.datasets.augment import resize_image
from ovstrans.errors import InputError
from ovstrans.evaluation.inference import Inference, predict_image, score_images
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Framework
from ovstrans.vocabulary.vocabulary import Vocabulary


@pytest.fixture(scope="module", params=["deeplabv3", "fcclip", "gkc"])
def framework(request: pytest.FixtureRequest) -> Framework:
    words = Vocabulary("two", (("sky",), ("road",)))
    return registry.build_on_meta(request.param, "RN-mini", vocabulary=words, device="cpu").eval()


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "available_memory", lambda device: 200_000_000)


def test_memory_grows_with_the_pixels(framework: Framework) -> None:
    small, large = (
        estimate_forward(framework, (1, 3, side, side), lambda twin, images: twin.scores(images))
        for side in (640, 1280)
    )
    assert 3 < large / small < 4.5


def test_a_large_image_is_not_scored(framework: Framework, little_memory: None) -> None:
    image = torch.zeros(3, 2048, 2048, dtype=torch.uint8)
    with pytest.raises(InputError, match="an image of 2048x2048 pixels takes about .*200 MB is free.*`window=512`"):
        score_images(framework, image[None], None, "cpu", Inference())
    with pytest.raises(InputError, match="lower `window`"):
        score_images(framework, image[None], None, "cpu", Inference(window=2000))


def test_a_large_size_is_not_resized_to(framework: Framework, little_memory: None) -> None:
    image = torch.zeros(3, 32, 48, dtype=torch.uint8)
    with pytest.raises(InputError, match="resizing an image to 30000x20000 pixels takes about 18 GB.*`short_side`"):
        predict_image(framework, image, inference=Inference(short_side=20_000))
    assert resize_image(image, (64, 96)).shape == (3, 64, 96)


def test_latency_of_a_large_image_is_not_measured(framework: Framework, little_memory: None) -> None:
    with pytest.raises(InputError, match="an image of 4096x2048 pixels takes .* lower `image_size`"):
        measure_latency(framework, (2048, 4096))


def test_what_has_no_meta_form_is_scored_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(torch.nn.Module):
        def scores(self, images: torch.Tensor, text: object = None) -> list[object]:
            return [float(images.mean())] if float(images.sum()) >= 0 else []

    monkeypatch.setattr("ovstrans.costs.estimate.CHECKED_PIXELS", 16)
    assert score_images(Own(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), None, "cpu", Inference()) == [0.0]
