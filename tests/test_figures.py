"""Figures: suffixes, atomic and repeatable writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans.errors import InputError
from ovstrans.figures import new_figure, save_figure, tidy


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str, magic: bytes) -> None:
    figure = new_figure(3, 2)
    tidy(figure.add_subplot())
    path = save_figure(figure, tmp_path / f"plot{suffix}")
    assert path.read_bytes().startswith(magic)
    assert [item.name for item in tmp_path.iterdir()] == [f"plot{suffix}"]


def test_a_png_has_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figure = new_figure(3, 2)
        figure.add_subplot().plot([1, 3, 2])
        save_figure(figure, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png, \.pdf, \.svg"):
        save_figure(new_figure(3, 2), tmp_path / "plot.jpg")
    assert not list(tmp_path.iterdir())
