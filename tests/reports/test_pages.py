"""Pages of predictions: their columns, their colours, their legend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.datasets.drawing import draw_overlay
from ovstrans.errors import InputError
from ovstrans.reports import pages as pictures
from ovstrans.reports.pages import Row, draw_page, error_map, save_page
from ovstrans.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    name="v",
    classes=(("sky",), ("a road with quite a long name",), ("car",)),
    novel=frozenset({2}),
    colors=((30, 60, 200), (200, 30, 30), (240, 220, 20)),
)


def row(truth: bool = True, names: tuple[str, ...] = ("Prediction",), size: tuple[int, int] = (30, 40)) -> Row:
    label = torch.zeros(size, dtype=torch.uint8)
    label[:, size[1] // 2 :] = 1
    label[0] = 255
    guess = label.long().clamp(max=1)
    image = torch.full((3, *size), 128, dtype=torch.uint8)
    return Row(image, label if truth else None, dict.fromkeys(names, guess))


def written(monkeypatch: pytest.MonkeyPatch, rows: list[Row]) -> list[str]:
    """Every text on the page."""
    texts: list[str] = []
    plain = pictures.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        pictures.ImageDraw.ImageDraw,
        "text",
        lambda self, place, text, **options: (texts.append(text), plain(self, place, text, **options)),
    )
    draw_page(rows, VOCABULARY, title="A page")
    return texts


def test_a_single_prediction_is_shown_with_its_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(monkeypatch, [row()])
    assert {"A page", "Image", "Truth", "Prediction", "Wrong pixels"} <= set(texts)
    assert "100 % of pixels right" in texts
    assert texts.count("sky") == 3  # on the truth, on the prediction, in the legend
    assert "car*" not in texts and "* novel: never labelled in training" not in texts


def test_several_predictions_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("Dense", "Random mask", "IMP mask")
    texts = written(monkeypatch, [row(names=names), row(names=names)])
    assert {"Image", "Truth", *names} <= set(texts) and "Wrong pixels" not in texts


def test_without_truth_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(monkeypatch, [row(truth=False)])
    assert not {"Truth", "Wrong pixels", "100 % of pixels right"} & set(texts)


def test_novel_classes_are_starred(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = row()
    shown.predictions = {"Prediction": torch.full((30, 40), 2)}
    texts = written(monkeypatch, [shown])
    assert "car*" in texts and "* novel: never labelled in training" in texts


def test_segments_wear_the_colours_of_the_vocabulary() -> None:
    shown = row()
    assert shown.truth is not None
    picture = np.asarray(draw_overlay(shown.image, shown.truth, VOCABULARY, size=(160, 120)))
    assert picture.shape == (120, 160, 3)
    assert picture[110, 10].tolist() == [30, 60, 200]  # the image is middle gray, so nothing shines through
    assert picture[110, 150].tolist() == [200, 30, 30]
    assert len(set(picture[1, 5].tolist())) > 1 or picture[1, 5].max() < 100  # ignored: dark


def test_errors_are_red_and_ignored_pixels_are_neither() -> None:
    truth = torch.tensor([[0, 1, 255]], dtype=torch.uint8)
    found = np.asarray(error_map(torch.tensor([[0, 0, 0]]), truth, (3, 1)))[0].tolist()
    right, wrong, ignored = found
    assert wrong[0] > 2 * max(wrong[1:]) and min(right) > 200 and max(ignored) < 100


def test_a_page_is_written_and_read_back(tmp_path: Path) -> None:
    path = save_page(tmp_path / "deep" / "page.png", [row(), row(size=(60, 50))], VOCABULARY)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        assert picture.height > 2 * 240 and picture.width > 4 * 200
    assert [file.name for file in path.parent.iterdir()] == ["page.png"]


def test_an_extreme_image_and_a_class_unknown_to_the_vocabulary_do_no_harm() -> None:
    thin = Row(torch.zeros(3, 2, 300, dtype=torch.uint8), None, {"Prediction": torch.full((2, 300), 1)})
    assert 2 * 720 < draw_page([thin], VOCABULARY).width < 2 * 720 + 100
    everything_ignored = Row(torch.zeros(3, 9, 9, dtype=torch.uint8), torch.full((9, 9), 255), {})
    assert draw_page([everything_ignored], VOCABULARY).height > 200


def test_a_page_needs_an_image() -> None:
    with pytest.raises(InputError, match="at least one image"):
        draw_page([], VOCABULARY)


def test_a_renewed_folder_keeps_only_what_is_not_ours(tmp_path: Path) -> None:
    """Pictures of an earlier bench go, whatever their names; pictures and files of others stay."""
    save_page(tmp_path / "old-val.png", [row()], VOCABULARY)
    save_page(tmp_path / "old-val-confusion-b.png", [row()], VOCABULARY)
    Image.new("RGB", (4, 4)).save(tmp_path / "mine.png")
    (tmp_path / "broken.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("mine")
    pictures._delete_pictures(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.png", "broken.png", "notes.txt"}
