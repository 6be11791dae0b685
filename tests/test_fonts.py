"""Names in any script: in pillow's pictures and in matplotlib's, and what happens without a font."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ovstrans import figures
from ovstrans.datasets.drawing import draw_legend, draw_overlay
from ovstrans.figures import draw_text, drawable_names, is_drawable, measure_text, split_by_font, text_columns
from ovstrans.reports.confusion_plot import draw_confusion
from ovstrans.vocabulary.vocabulary import Vocabulary

SCRIPTS = [
    "路面电车",
    "道路",
    "ラーメン屋",
    "가로수길",
    "طريق",
    "सड़क",
    "ถนน",
    "சாலை",
    "דרך",
    "дорога",
    "🚗",
    "road 道路 ok",
]
UNKNOWN = "\U000e0fff"
"""A code point that no font has a glyph for."""

packages = pytest.mark.skipif(not list(figures._package_fonts()), reason="ovstrans[fonts] is not installed")


@pytest.fixture
def _no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without the optional packages and without fonts of the system."""

    def forget() -> None:
        for cached in (figures._fallback_fonts, figures.find_font, figures.split_by_font, figures.drawable_names):
            cached.cache_clear()

    forget()
    with monkeypatch.context() as patch:
        patch.setattr(figures, "_package_fonts", lambda: iter(()))
        patch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [])
        yield
    forget()


def drawn(text: str) -> np.ndarray:
    picture = Image.new("L", (260, 40), 255)
    draw_text(ImageDraw.Draw(picture), (4, 20), text, 20, fill=0, anchor="lm")
    return np.asarray(picture)


@packages
@pytest.mark.parametrize("text", SCRIPTS)
def test_every_script_is_drawn_with_glyphs_of_its_own(text: str) -> None:
    assert is_drawable(text) and drawable_names((text,)) == (text,)
    boxes = drawn("".join(UNKNOWN if char != " " else char for char in text))
    found = drawn(text)
    assert (found < 128).sum() > 20 and (found != boxes).any()
    ink = np.flatnonzero((found < 200).any(axis=0))
    assert ink.max() - 4 <= measure_text(text, 20) + 3  # the width that legends and names are laid out by


@packages
def test_different_characters_are_different_pictures() -> None:
    """Boxes would all be alike."""
    for one, other in (("路", "车"), ("가", "나"), ("क", "ख"), ("ا", "ب"), ("🚗", "🚲")):
        assert (drawn(one) != drawn(other)).any()


def test_latin_names_are_drawn_as_before() -> None:
    """In DejaVu Sans alone, to the bit."""
    assert split_by_font("a red car → Straße, 2 ± 1 %") == ((None, "a red car → Straße, 2 ± 1 %"),)
    picture = Image.new("L", (260, 40), 255)
    ImageDraw.Draw(picture).text((4, 20), "a red car", font=figures.load_font(20), fill=0, anchor="lm")
    assert (np.asarray(picture) == drawn("a red car")).all()


@packages
def test_plots_take_the_fonts_that_their_names_need(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    names = ["路面电车", "$dollar$ a_b", "सड़क", "car"]
    figure = draw_confusion(torch.tensor([[5, 1, 0, 0], [0, 4, 2, 0], [1, 0, 3, 0], [0, 0, 0, 1]]), names)
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that is missing
        figures.save_figure(figure, tmp_path / "plot.png", source="test")
    assert "font" not in caplog.text
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.info["Source"] == "test"


def test_a_name_that_no_font_has_is_its_index(caplog: pytest.LogCaptureFixture, _no_fonts: None) -> None:
    names = ("road", "路面电车", "car")
    with caplog.at_level(logging.WARNING, "ovstrans"):
        assert drawable_names(names) == ("road", "1", "car")
        assert drawable_names(names) == ("road", "1", "car")
    assert caplog.text.count("'路面电车' is 1") == 1 and "ovstrans[fonts]" in caplog.text
    shown, plain = Vocabulary.from_names("v", names), Vocabulary.from_names("v", ["road", "1", "car"])
    image, labels = torch.full((3, 80, 160), 128, dtype=torch.uint8), torch.ones(80, 160, dtype=torch.long)
    assert draw_overlay(image, labels, shown).tobytes() == draw_overlay(image, labels, plain).tobytes()
    entries = [(0, ""), (1, "50 %")]
    assert draw_legend(entries, shown, 200).tobytes() == draw_legend(entries, plain, 200).tobytes()
    figure = draw_confusion(torch.eye(3, dtype=torch.long), names)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["road", "1", "car"]


def test_columns_of_wide_letters() -> None:
    assert text_columns("car") == 3 and text_columns("路面") == 4 and text_columns("é") == 1 == text_columns("e\u0301")
