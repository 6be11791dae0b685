"""The confusion heat map: what it lists, what it writes, that it takes any number of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.errors import InputError
from ovstrans.evaluation.metrics import ConfusionMatrix
from ovstrans.reports.confusion_plot import Mistake, draw_confusion, save_confusion, worst_mistakes

COUNTS = torch.tensor([[60, 30, 10], [0, 0, 0], [1, 0, 99]])


def many(k: int) -> torch.Tensor:
    counts = torch.diag(torch.full((k,), 90))
    counts[torch.arange(k), torch.arange(k).roll(1)] += torch.arange(k)
    counts[k // 2] = 0
    return counts


def test_the_worst_mistakes_come_first() -> None:
    expected = [Mistake(0, 1, 30, 0.3), Mistake(0, 2, 10, 0.1), Mistake(2, 0, 1, 0.01)]
    assert worst_mistakes(COUNTS, 9) == expected
    assert worst_mistakes(COUNTS, 2) == expected[:2]
    assert worst_mistakes(torch.eye(4).long(), 9) == []
    confusion = ConfusionMatrix(3)
    confusion.counts += COUNTS
    assert worst_mistakes(confusion, 9) == expected
    assert int(confusion.counts.trace()) == 159  # the matrix itself is left alone


def test_rows_are_shares_and_absent_classes_have_none() -> None:
    figure = draw_confusion(COUNTS, ["a", "b", "c$_"])
    (heat,) = [axes for axes in figure.axes if axes.images]
    shown = heat.images[0].get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    assert shown[0].tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert shown.mask[1].all() and not shown.mask[[0, 2]].any()
    assert [label.get_text() for label in heat.get_yticklabels()] == ["a", "b", "c$_"]
    assert sorted(text.get_text() for text in heat.texts) == ["1", "10", "30", "60", "99"]
    written = {text.get_text().strip() for axes in figure.axes for text in axes.texts}
    assert {"30 % of a", "10 % of a", "1 % of c$_"} <= written
    listed = {label.get_text() for axes in figure.axes for label in axes.get_yticklabels()}
    assert {"a → b", "a → c$_", "c$_ → a"} <= listed


@pytest.mark.parametrize(
    ("k", "named", "written"), [(1, True, True), (29, True, True), (150, True, False), (400, False, False)]
)
def test_any_number_of_classes(tmp_path: Path, k: int, named: bool, written: bool) -> None:
    names = [f"class {index}, or something of a quite long name" for index in range(k)]
    figure = draw_confusion(many(k), names, title="run on data:val")
    (heat,) = [axes for axes in figure.axes if axes.images]
    assert any("class" in label.get_text() for label in heat.get_yticklabels()) == named
    assert bool(heat.texts) == (written and k > 1)
    assert bool(heat.collections) == (not written)  # rings instead of numbers
    if k == 150:
        return  # drawing so many names takes seconds
    path = save_confusion(tmp_path / "confusion.png", many(k), names)
    with Image.open(path) as picture:
        assert max(picture.size) < 4000


def test_all_right_and_all_empty_can_be_drawn(tmp_path: Path) -> None:
    for counts in (torch.eye(3).long(), torch.zeros(3, 3).long()):
        save_confusion(tmp_path / "c.svg", counts, ["a", "b", "c"])
        assert "no wrong pixel" in (tmp_path / "c.svg").read_text(encoding="utf-8")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 names for a confusion matrix of 3 classes"):
        draw_confusion(COUNTS, ["a", "b"])
    with pytest.raises(InputError, match=r"\.png"):
        save_confusion(tmp_path / "c.jpg", COUNTS, ["a", "b", "c"])
    assert not list(tmp_path.iterdir())
