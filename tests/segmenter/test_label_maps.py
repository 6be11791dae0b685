"""Predictions as files: read again with nothing but pillow, numpy and json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.errors import InputError
from ovstrans.segmenter.label_maps import (
    class_shares,
    describe_classes,
    read_confidence,
    read_description,
    read_label_map,
    write_confidence,
    write_label_map,
)
from ovstrans.vocabulary.vocabulary import Vocabulary

COLORS = ((30, 60, 200), (200, 30, 30), (9, 8, 7))
STREET = Vocabulary("street", (("sky",), ("road", "street"), ("car",)), colors=COLORS)


def many(count: int) -> Vocabulary:
    return Vocabulary("many", tuple((f"class {number}",) for number in range(count)))


def test_a_label_map_is_an_indexed_png_in_the_colours_of_the_vocabulary(tmp_path: Path) -> None:
    classes = torch.tensor([[0, 1, 2], [2, 1, 0]])
    write_label_map(tmp_path / "deep" / "a.png", classes, STREET)
    with Image.open(tmp_path / "deep" / "a.png") as picture:
        assert picture.mode == "P" and picture.size == (3, 2)
        assert np.asarray(picture).tolist() == classes.tolist()
        assert picture.getpalette()[:9] == [30, 60, 200, 200, 30, 30, 9, 8, 7]
        assert np.asarray(picture.convert("RGB"))[0, 1].tolist() == [200, 30, 30]
    assert torch.equal(read_label_map(tmp_path / "deep" / "a.png"), classes)
    header = (tmp_path / "deep" / "a.png").read_bytes()[:26]
    assert header[24:26] == b"\x08\x03"  # 8 bits a pixel, palette: what every reader takes


@pytest.mark.parametrize(("count", "mode"), [(1, "P"), (255, "P"), (256, "I;16"), (300, "I;16"), (847, "I;16")])
def test_any_number_of_classes_is_kept_to_the_index(tmp_path: Path, count: int, mode: str) -> None:
    classes = torch.arange(count).repeat(2).reshape(2, count)
    write_label_map(tmp_path / "a.png", classes, many(count))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == mode
        assert np.asarray(picture).tolist() == classes.tolist()
    assert torch.equal(read_label_map(tmp_path / "a.png"), classes)


def test_confidence_is_gray_from_0_to_1(tmp_path: Path) -> None:
    confidence = torch.linspace(0, 1, 1000).reshape(10, 100)
    write_confidence(tmp_path / "a.png", confidence)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "L"
        values = np.asarray(picture)
    assert values[0, 0] == 0 and values[-1, -1] == 255 and values[5, 0] == round(255 * 500 / 999)
    assert (read_confidence(tmp_path / "a.png") - confidence).abs().max() <= 1 / 510 + 1e-6


def test_classes_json_says_what_the_numbers_mean() -> None:
    described = json.loads(json.dumps(describe_classes(STREET, made="so")))
    assert described["schema"] == "ovstrans.prediction/1" and described["made"] == "so"
    assert described["classes"][1] == {"index": 1, "name": "road", "synonyms": ["street"], "color": [200, 30, 30]}
    assert described["encoding"] == "8-bit palette" and describe_classes(many(256))["encoding"] == "16-bit gray"


def test_shares_are_of_all_pixels_the_largest_first() -> None:
    assert class_shares(torch.tensor([[5, 5, 5, 2]])) == [(5, 0.75), (2, 0.25)]


def test_another_file_is_no_description(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('{"schema": "other"}')
    with pytest.raises(InputError, match="its schema is 'other'"):
        read_description(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_description(tmp_path / "empty")
