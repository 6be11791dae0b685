"""Predictions as files: read again with nothing but pillow, numpy and json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.errors import InputError
from ovstrans.evaluation.inference import Prediction
from ovstrans.segmenter import label_maps as prediction_files
from ovstrans.segmenter.folder import PredictionFolder
from ovstrans.segmenter.label_maps import (
    about,
    draw_overlay,
    read_confidence,
    read_label_map,
    shares,
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


def test_the_description_says_what_the_numbers_mean() -> None:
    described = json.loads(json.dumps(about(STREET, made="so")))
    assert described["schema"] == "ovstrans.prediction/1" and described["made"] == "so"
    assert described["classes"][1] == {"index": 1, "name": "road", "synonyms": ["street"], "color": [200, 30, 30]}
    assert described["encoding"] == "8-bit palette" and about(many(256))["encoding"] == "16-bit gray"


def test_shares_are_of_all_pixels_the_largest_first() -> None:
    assert shares(torch.tensor([[5, 5, 5, 2]])) == [(5, 0.75), (2, 0.25)]


def test_an_overlay_shows_colours_and_stands_above_its_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = torch.zeros(300, 400, dtype=torch.int64)
    classes[:, 200:] = 1
    gray = torch.full((3, 300, 400), 128, dtype=torch.uint8)
    page = draw_overlay(gray, classes, STREET)
    pixels = np.asarray(page)
    assert page.width == 400 and page.height > 320
    assert pixels[280, 20].tolist() == [30, 60, 200] and pixels[280, 380].tolist() == [200, 30, 30]
    legend = pixels[300:].reshape(-1, 3).tolist()
    assert [30, 60, 200] in legend and [200, 30, 30] in legend and [9, 8, 7] not in legend


@pytest.mark.parametrize(("size", "width"), [((3, 5), 360), ((40, 3000), 2048), ((2500, 10), 360), ((1, 1), 360)])
def test_overlays_of_odd_images_are_made_to_be_seen(size: tuple[int, int], width: int) -> None:
    page = draw_overlay(torch.zeros(3, *size, dtype=torch.uint8), torch.zeros(size, dtype=torch.int64), STREET)
    assert page.width == width and page.height <= 2048 + 200


def test_a_class_of_index_255_has_its_colour_and_is_not_ignored() -> None:
    classes = torch.full((300, 400), 255)
    page = draw_overlay(torch.full((3, 300, 400), 128, dtype=torch.uint8), classes, many(256))
    assert np.asarray(page)[290, 10].tolist() == many(256).palette()[255].tolist()


def filled(path: Path) -> PredictionFolder:
    path.with_name("checkpoint").write_bytes(b"weights")
    folder = PredictionFolder(path, confidence=True)
    folder.begin(
        STREET, checkpoint=path.with_name("checkpoint"), settings={"inference": {"window": None}}, resume=False
    )
    found = Prediction(torch.ones(4, 6, dtype=torch.int64), torch.full((4, 6), 0.5))
    folder.write("sub/a", torch.zeros(3, 4, 6, dtype=torch.uint8), found)
    return folder


def test_the_label_map_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(tmp_path / "out")
    written = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}
    assert written == {"classes.json", "labels/sub/a.png", "overlays/sub/a.png", "confidence/sub/a.png"}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction_files.Image.Image, "putpalette", interrupted)
    found = Prediction(torch.ones(4, 6, dtype=torch.int64), torch.full((4, 6), 0.5))
    with pytest.raises(KeyboardInterrupt):
        folder.write("b", torch.zeros(3, 4, 6, dtype=torch.uint8), found)
    assert not folder.has("b") and folder.has("sub/a")


def test_an_entry_read_again_says_the_same(tmp_path: Path) -> None:
    folder = filled(tmp_path / "out")
    entry = folder.entry("sub/a")
    assert entry == folder.entry("sub/a", torch.ones(4, 6, dtype=torch.int64))
    assert entry["size"] == [4, 6] and entry["classes"] == [{"index": 1, "name": "road", "share": 1.0}]
    assert Path(entry["label_map"]).exists() and Path(entry["overlay"]).exists() and Path(entry["confidence"]).exists()


def test_a_new_prediction_clears_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    folder = filled(tmp_path / "out")
    mine = folder.path / "labels" / "notes.txt"
    mine.write_text("mine")
    folder.begin(STREET, checkpoint=tmp_path / "checkpoint", settings={}, resume=False)
    assert not folder.has("sub/a") and mine.exists() and not (folder.path / "overlays").exists()


def test_labels_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    truth = tmp_path / "dataset" / "labels" / "a.png"
    truth.parent.mkdir(parents=True)
    Image.new("L", (2, 2)).save(truth)
    (tmp_path / "checkpoint").write_bytes(b"weights")
    folder = PredictionFolder(tmp_path / "dataset")
    folder.begin(STREET, checkpoint=tmp_path / "checkpoint", settings={}, resume=False)
    assert truth.exists()


@pytest.mark.parametrize("other", ["checkpoint", "inference", "classes", "confidence"])
def test_going_on_with_something_else_is_refused(tmp_path: Path, other: str) -> None:
    folder = filled(tmp_path / "out")
    checkpoint, inference, vocabulary = tmp_path / "checkpoint", {"window": None}, STREET
    folder.begin(vocabulary, checkpoint=checkpoint, settings={"inference": inference}, resume=True)
    assert folder.has("sub/a")
    if other == "checkpoint":
        checkpoint.write_bytes(b"other weights")
    elif other == "inference":
        inference = {"window": 64}
    elif other == "classes":
        vocabulary = many(3)
    else:
        folder.confidence = False
    with pytest.raises(InputError, match=f"was begun with other {other}"):
        folder.begin(vocabulary, checkpoint=checkpoint, settings={"inference": inference}, resume=True)
