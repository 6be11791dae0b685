"""What is taken for an image, which images a folder job finds, and that no two predictions share a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ovstrans.datasets.images import read_image
from ovstrans.errors import InputError
from ovstrans.segmenter.inputs import _make_names, find_image_files, to_pixels

OUT = Path("predictions")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def draw(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)


def names(*paths: str) -> dict[str, str]:
    return {str(image.path): image.name for image in find_image_files([Path(path) for path in paths], out=OUT)}


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
        ("car", "car: no such file or folder; if it is the name of a class, quote all of them together"),
        ("empty", "empty: no image in this folder"),
        ("film.MP4", "film.MP4: a video; extract its frames"),
        ("predictions", "`out=predictions`: is the folder of the images"),
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
    found = _make_names(paths, [1] * len(paths))
    assert len(set(found)) == len(paths)
    for parts, name in zip(paths, found, strict=True):
        assert str(Path(*parts)).endswith((name, *(name + suffix for suffix in (".png", ".jpg"))))


PIXELS = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3) * 8


@pytest.mark.parametrize(
    "image",
    [
        PIXELS,
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        PIXELS[::-1][::-1],
        Image.fromarray(PIXELS),
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).double() / 255,
    ],
)
def test_arrays_tensors_and_pictures_are_the_same_image(image: Any) -> None:
    pixels = to_pixels(image)
    assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert pixels.permute(1, 2, 0).tolist() == PIXELS.tolist()


def test_floats_are_rounded_to_the_nearest_of_256_levels() -> None:
    assert to_pixels(np.array([[0.999, 0.0019, 0.002]]))[0].tolist() == [[255, 0, 1]]


@pytest.mark.parametrize("image", [PIXELS[..., 1], torch.from_numpy(PIXELS[..., 1]), Image.fromarray(PIXELS[..., 1])])
def test_a_gray_image_has_three_equal_channels(image: Any) -> None:
    assert to_pixels(image).tolist() == [PIXELS[..., 1].tolist()] * 3


def test_files_and_pictures_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    assert to_pixels("turned.png").permute(1, 2, 0).tolist() == PIXELS.tolist()
    with Image.open("turned.png") as picture:
        assert torch.equal(to_pixels(picture), to_pixels(Path("turned.png")))


def test_a_tensor_whose_first_and_last_sides_are_3_has_its_channels_first() -> None:
    image = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    assert torch.equal(to_pixels(image), image)
    assert torch.equal(to_pixels(image.numpy()), image.permute(2, 0, 1))  # an array has them last


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS.transpose(2, 0, 1), r"`image`: an array of shape \(3, 2, 5\) has its channels first; give HxWx3"),
        (PIXELS[..., :2], r"an array of shape \(2, 5, 2\) is not an image; give HxWx3 or HxW"),
        (PIXELS[None], r"an array of shape \(1, 2, 5, 3\) is not an image"),
        (PIXELS[:0], r"an array of shape \(0, 5, 3\) is not an image"),
        (torch.zeros(4, 5, 6), r"a tensor of shape \(4, 5, 6\) is not an image; give 3xHxW, HxWx3 or HxW"),
        (PIXELS.astype(np.float32), "an array of floats from 0 to 232; give floats from 0 to 1, or uint8"),
        (torch.full((3, 2, 2), -0.5), "a tensor of floats from -0.5 to -0.5"),
        (np.full((2, 2, 3), np.nan), "an array of floats from nan to nan"),
        (PIXELS.astype(np.int64), "an array of int64; give uint8, or floats from 0 to 1"),
        (PIXELS > 9, "an array of bool; give uint8"),
        (np.array([["a"]]), "an array of <U1; give uint8"),
        (None, "`image`: NoneType is not an image; give a path, a PIL image, a numpy array or a torch tensor"),
        ([[1, 2]], "`image`: list is not an image"),
    ],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_pixels(image)
