"""The result of a segmentation: areas, masks of classes, files, and how it shows itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.datasets.sample import Segment
from ovstrans.errors import InputError
from ovstrans.evaluation.inference import Prediction
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.segmenter.segmentation import PanopticSegment, Segmentation
from ovstrans.vocabulary.vocabulary import Vocabulary

STREET = Vocabulary("street", (("sky",), ("Road",), ("car",)), colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)))
LABELS = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 2], [1, 1, 1, 1]])
MASKS = torch.zeros(4, 3, 4, dtype=torch.bool)
MASKS[0, 1:, 2:] = MASKS[1, 1:, 3] = MASKS[3, 0, 0] = True


def result() -> Segmentation:
    """One with everything: of the four instances the second lies under the first, the third has no pixel."""
    prediction = Prediction(
        LABELS,
        torch.full((3, 4), 0.5),
        panoptic=((LABELS + 1).int(), [Segment(1, 0, False, 7), Segment(3, 2, True, 1)]),
        instances=Instances(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([2, 2, 2, 0]), MASKS),
    )
    return Segmentation(torch.zeros(3, 3, 4, dtype=torch.uint8), STREET, prediction)


def test_areas_are_shares_the_largest_first() -> None:
    assert list(result().areas().items()) == [("sky", 7 / 12), ("Road", 4 / 12), ("car", 1 / 12)]


def test_the_mask_of_a_class() -> None:
    assert np.array_equal(result().mask("road"), LABELS.numpy() == 1)
    with pytest.raises(InputError, match="class 'cat': none of the 3 classes; did you mean 'car'"):
        result().mask("cat")


def test_segments_and_instances_are_named() -> None:
    found = result()
    assert found.segments == (PanopticSegment(1, "sky", 0, False, 7), PanopticSegment(3, "car", 2, True, 1))
    assert found.instances is not None and found.distinct_instances is not None
    assert [(each.name, each.box) for each in found.instances] == [
        ("car", (2, 1, 2, 2)), ("car", (3, 1, 1, 2)), ("sky", (0, 0, 1, 1)),
    ]  # fmt: skip
    assert [round(each.score, 3) for each in found.distinct_instances] == [0.9, 0.6]


def test_labels_are_saved_as_an_indexed_png(tmp_path: Path) -> None:
    path = result().save(tmp_path / "labels.png")
    with Image.open(path) as picture:
        assert picture.mode == "P" and picture.getpalette()[:9] == list(range(1, 10))  # type: ignore[index]
        assert np.asarray(picture).tolist() == LABELS.tolist()
    with pytest.raises(InputError, match="a label map is a PNG file"):
        result().save(tmp_path / "labels.jpg")


def test_it_shows_itself_in_a_line() -> None:
    assert repr(result()) == "Segmentation(4x3: sky 58 %, Road 33 %, car 8.3 %; 2 segments; 2 instances)"
    many = Vocabulary("many", tuple((f"c{number}",) for number in range(12)))
    shown = repr(Segmentation(torch.zeros(3, 3, 4), many, Prediction(torch.arange(12).reshape(3, 4))))
    assert shown == f"Segmentation(4x3: {', '.join(f'c{number} 8.3 %' for number in range(6))}, 6 more)"
