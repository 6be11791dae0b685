"""Which images are predicted on, and that no two predictions share a name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ovstrans.datasets.images import read_image
from ovstrans.errors import InputError
from ovstrans.segmenter.inputs import _names, find_pictures

OUT = Path("predictions")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def draw(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)


def names(*paths: str) -> dict[str, str]:
    return {str(picture.path): picture.name for picture in find_pictures([Path(path) for path in paths], out=OUT)}


def test_a_folder_keeps_its_structure() -> None:
    draw("in/b.png", "in/deep/er/a.jpg", "in/.hidden/c.png")
    Path("in/notes.txt").write_text("not an image")
    assert names("in") == {"in/b.png": "b", "in/deep/er/a.jpg": "deep/er/a"}


def test_several_folders_stay_apart() -> None:
    draw("one/a.png", "two/a.png", "two/sub/b.png", "c.png")
    expected = {"one/a.png": "one/a", "two/a.png": "two/a", "two/sub/b.png": "two/sub/b", "c.png": "c"}
    assert names("one", "two", "c.png") == expected


def test_equal_names_take_folder_or_suffix() -> None:
    draw("x/a.png", "y/a.png", "x/a.jpg", "x/b.png")
    found = names("x/a.png", "y/a.png", "x/a.jpg", "x/b.png")
    assert found == {"x/a.png": "x/a.png", "y/a.png": "y/a", "x/a.jpg": "x/a.jpg", "x/b.png": "b"}


def test_a_name_that_another_image_would_get_with_its_suffix() -> None:
    draw("a.jpg", "a.png", "a.jpg.png")
    assert set(names(".").values()) == {"a.jpg", "a.png", "a.jpg.png"}


def test_an_image_named_twice_is_one() -> None:
    draw("in/a.png")
    Path("in/b.png").symlink_to("a.png")
    assert names("in/a.png", "in", "./in/../in/a.png") == {"in/a.png": "a"}


def test_a_link_to_nothing_is_passed_on_to_whoever_reads_it() -> None:
    draw("in/a.png")
    Path("in/b.png").symlink_to("gone.png")
    assert names("in") == {"in/a.png": "a", "in/b.png": "b"}
    with pytest.raises(InputError, match="in/b.png: no such file, only a link to gone.png"):
        read_image("in/b.png")


def test_what_was_written_before_is_no_input() -> None:
    draw("a.png", "predictions/labels/a.png")
    assert names(".") == {"a.png": "a"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.png", "gone.png: no such file or folder"),
        ("empty", "empty: no image in this folder"),
        ("film.MP4", "film.MP4: a video; give its frames"),
        ("predictions", "--out predictions: is the folder of the images"),
    ],
)
def test_bad_paths(path: str, message: str) -> None:
    draw("predictions/a.png")
    Path("empty").mkdir()
    Path("film.MP4").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        names(path)


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "a.png", "a.jpg", "b.png"]), min_size=1, max_size=4).map(tuple), unique=True
    )
)
def test_names_differ_whatever_the_paths(paths: list[tuple[str, ...]]) -> None:
    found = _names(paths, [1] * len(paths))
    assert len(set(found)) == len(paths)
    for parts, name in zip(paths, found, strict=True):
        assert str(Path(*parts)).endswith((name, *(name + suffix for suffix in (".png", ".jpg"))))
