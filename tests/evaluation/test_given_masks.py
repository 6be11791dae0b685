"""Masks that are given to a framework: from the dataset, mirrored with the image, refused where they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ovstrans.datasets.sample import Sample
from ovstrans.errors import InputError
from ovstrans.evaluation.evaluate import evaluate
from ovstrans.evaluation.inference import Inference, predict_image, score_images
from ovstrans.frameworks.scores import MapScores
from ovstrans.vocabulary.vocabulary import Vocabulary

NAMES = Vocabulary.from_names("two", ["left", "right"])


class Painter:
    """Gives class 1 to the pixels of the first mask, and keeps what it was given."""

    def __init__(self, source: str = "truth") -> None:
        self.source = source
        self.seen: list[Tensor] = []

    def given_masks(self, name: str, size: tuple[int, int], sample: Sample | None, ignore: int) -> Tensor | None:
        if self.source == "none":
            return None
        assert sample is not None and sample.label is not None and sample.name == name
        assert size == tuple(sample.image.shape[1:])
        return (sample.label == 1)[None]

    def scores(self, images: Tensor, text: Any = None, *, masks: Any = None) -> list[MapScores]:
        if masks is None:
            return [MapScores(torch.zeros(2, *image.shape[1:]), tuple(image.shape[1:])) for image in images]
        self.seen += masks
        found = []
        for image, own in zip(images, masks, strict=True):
            height, width = image.shape[1:]
            inside = torch.nn.functional.interpolate(own[None].float(), (height, width))[0, 0]
            found.append(MapScores(torch.stack([1 - inside, inside]), (height, width)))
        return found


class Data:
    """Images of two sizes whose right or lower part is class 1."""

    name, split, vocabulary, ignore, published_size, videos = "data", "val", NAMES, 255, None, ()

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        size = (8, 12) if index < 2 else (6, 4)
        label = torch.zeros(size, dtype=torch.uint8)
        label[:, size[1] // 3 * (index + 1) % size[1] :] = 1
        label[0] = 255
        return Sample(torch.zeros(3, *size, dtype=torch.uint8), label, f"image {index}")


@pytest.mark.parametrize("flip", [False, True])
def test_an_evaluation_gives_each_image_its_masks(flip: bool) -> None:
    painter = Painter()
    result = evaluate(painter, Data(), inference=Inference(flip=flip))  # type: ignore[arg-type]
    assert result.miou == 100 and len(painter.seen) == (6 if flip else 3)
    resized = evaluate(Painter(), Data(), inference=Inference(short_side=16, flip=flip))  # type: ignore[arg-type]
    assert resized.miou is not None and resized.miou > 80


def test_without_given_masks_nothing_changes() -> None:
    painter = Painter("none")
    evaluate(painter, Data())  # type: ignore[arg-type]
    assert painter.seen == []


def test_masks_for_one_image() -> None:
    masks = torch.zeros(1, 8, 12, dtype=torch.bool)
    masks[0, :4] = True
    image = torch.zeros(3, 8, 12, dtype=torch.uint8)
    assert torch.equal(predict_image(Painter(), image, masks=masks).classes, masks[0].long())


def test_masks_that_cannot_be_taken() -> None:
    images = torch.zeros(1, 3, 8, 12, dtype=torch.uint8)
    masks = [torch.ones(1, 8, 12, dtype=torch.bool)]
    with pytest.raises(InputError, match="of whole images; leave out `window`"):
        score_images(Painter(), images, None, "cpu", Inference(window=4), masks=masks)

    class Other:
        """A framework that takes none."""

        def scores(self, images: Tensor, text: Any = None) -> list[MapScores]:
            raise AssertionError

    with pytest.raises(InputError, match="Other takes none"):
        score_images(Other(), images, None, "cpu", Inference(), masks=masks)
