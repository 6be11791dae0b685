"""Image files of every type: photographs are scaled by the range of the type or refused, label maps keep numbers."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.datasets.images import check_equal_size, read_colors, read_image, read_label
from ovstrans.datasets.published.panoptic import read_segment_ids
from ovstrans.errors import InputError, MismatchError
from ovstrans.segmenter.inputs import to_pixels

from .raw_files import put_png, put_tiff


def gray(path: Path) -> list[int]:
    """The values of an image that must be gray."""
    image = read_image(path)
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    return image[0].flatten().tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_from_0_to_1_are_scaled_or_refused(tmp_path: Path, dtype: Any) -> None:
    path = put_tiff(tmp_path / "x.tif", np.array([[0, 0.25, 1]], dtype=dtype))
    if dtype == np.float32:
        assert gray(path) == [0, 64, 255]
        with Image.open(path) as picture:
            assert torch.equal(to_pixels(picture), read_image(path))
        return
    with pytest.raises(
        InputError, match=r"x\.tif: a broken image, or a TIFF file with pixels of a kind that is not read"
    ):
        read_image(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 128, 255], "floats from 0 to 255"),
        ([0, 300, 4000], "floats from 0 to 4000"),
        ([-0.5, 0, 1], "floats from -0.5 to 1"),
        ([0, float("nan"), 1], "floats from nan to nan"),
    ],
)
def test_floats_of_an_unknown_range_are_refused(tmp_path: Path, values: list[float], words: str) -> None:
    path = put_tiff(tmp_path / "x.tif", np.array([values], dtype=np.float32))
    with pytest.raises(InputError, match=rf"x\.tif: an image of {words}; scale them to 0 to 1"):
        read_image(path)
    with Image.open(path) as picture, pytest.raises(InputError, match=rf"`image`: an image of {words}"):
        to_pixels(picture)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 128, 255], np.int32),
        ([0, 128, 2**31 - 1], np.int32),
        ([0, 1, 2**32 - 1], np.uint32),
        ([-5, 128, 3000], np.int16),
        ([0, 1, -1], np.int8),
    ],
)
def test_whole_numbers_of_an_unknown_range_are_refused(tmp_path: Path, values: list[int], dtype: Any) -> None:
    path = put_tiff(tmp_path / "x.tif", np.array([values], dtype=dtype))
    with pytest.raises(InputError, match=r"x\.tif: an image of whole numbers of 32 bits or with a sign, from .* to "):
        read_image(path)
    if dtype == np.int32:
        with pytest.raises(InputError, match="`image`: an image of whole numbers of 32 bits"):
            to_pixels(Image.fromarray(np.array([values], dtype=dtype)))


def test_whole_numbers_of_a_known_range_are_scaled_by_it(tmp_path: Path) -> None:
    sixteen = np.array([[0, 32768, 65535]], dtype=np.uint16)
    assert gray(put_tiff(tmp_path / "16.tif", sixteen)) == [0, 128, 255]
    assert gray(put_png(tmp_path / "16.png", 3, 1, sixteen.astype(">u2").tobytes(), bits=16)) == [0, 128, 255]
    twelve = put_tiff(tmp_path / "12.tif", np.zeros((1, 2)), bits=12, sample_format=1, rows=bytes([0xFF, 0xF8, 0x00]))
    assert gray(twelve) == [255, 128]
    for bits, expected in ((1, [0, 255, 0, 255]), (2, [85, 0, 170, 255]), (4, [0, 68, 255, 17])):
        rows = {1: bytes([0b01010000]), 2: bytes([0b01001011]), 4: bytes([0x04, 0xF1])}[bits]
        assert gray(put_png(tmp_path / f"{bits}.png", 4, 1, rows, bits=bits)) == expected
        made = put_tiff(tmp_path / f"{bits}.tif", np.zeros((1, 4)), bits=bits, sample_format=1, rows=rows)
        assert gray(made) == expected
    (tmp_path / "x.ppm").write_bytes(b"P5 2 1 20\n" + bytes([10, 20]))
    assert gray(tmp_path / "x.ppm") == [128, 255]
    (tmp_path / "x.ppm").write_bytes(b"P5 2 1 1000\n" + struct.pack(">2H", 500, 1000))
    assert gray(tmp_path / "x.ppm") == [128, 255]
    colors = np.array([[[0, 32768, 65535]]], dtype=np.uint16)
    assert read_image(put_tiff(tmp_path / "rgb.tif", colors)).flatten().tolist() == [0, 128, 255]


def test_an_image_that_uses_little_of_its_range_is_named_once_per_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for name in ("a", "b", "black", "bright"):
        most = {"black": 0, "bright": 60000}.get(name, 255)
        put_tiff(tmp_path / f"{name}.tif", np.array([[0, most]], dtype=np.uint16))
        read_image(tmp_path / f"{name}.tif")
    (record,) = caplog.records
    assert "a.tif: reads as nearly black, since its largest value is 255 of 65535" in record.getMessage()


def test_dark_colours_of_16_bits_are_named_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_png(tmp_path / "x.png", 1, 1, struct.pack(">3H", 0, 128, 255), bits=16, color=2)
    assert read_image(tmp_path / "x.png").flatten().tolist() == [0, 0, 0]
    assert "x.png: reads as nearly black, since the upper halves of its 16-bit channels" in caplog.text
    put_png(tmp_path / "bright/x.png", 1, 1, struct.pack(">3H", 0, 128, 65535), bits=16, color=2)
    assert read_image(tmp_path / "bright/x.png").flatten().tolist() == [0, 0, 255]
    assert "bright" not in caplog.text


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize(
    ("bits", "rows", "values"),
    [(1, [0b01010000], [0, 1, 0, 1]), (2, [0b00011011], [0, 1, 2, 3]), (4, [0x01, 0x2F], [0, 1, 2, 15])],
)
def test_gray_label_maps_of_few_bits_keep_their_values(
    tmp_path: Path, kind: str, bits: int, rows: list[int], values: list[int]
) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "png":
        put_png(path, 4, 1, bytes(rows), bits=bits)
    else:
        put_tiff(path, np.zeros((1, 4)), bits=bits, sample_format=1, rows=bytes(rows))
    label = read_label(path)
    assert label.dtype == np.uint8 and label.tolist() == [values]


def test_label_maps_of_any_other_type_keep_their_values(tmp_path: Path) -> None:
    wide = np.array([[0, 300, 65535]], dtype=np.uint16)
    assert read_label(put_tiff(tmp_path / "x.tif", wide)).tolist() == wide.tolist()
    assert (
        read_label(put_png(tmp_path / "x.png", 3, 1, wide.astype(">u2").tobytes(), bits=16)).tolist() == wide.tolist()
    )
    twelve = put_tiff(tmp_path / "12.tif", np.zeros((1, 2)), bits=12, sample_format=1, rows=bytes([0xFF, 0xF8, 0x00]))
    assert read_label(twelve).tolist() == [[4095, 2048]]
    for dtype in (np.int32, np.int16, np.int8):
        signed = np.array([[0, 7, -1]], dtype=dtype)
        assert read_label(put_tiff(tmp_path / "x.tif", signed)).tolist() == [[0, 7, -1]]
    (tmp_path / "x.pgm").write_bytes(b"P5 4 1 20\n" + bytes([0, 1, 7, 20]))
    assert read_label(tmp_path / "x.pgm").tolist() == [[0, 1, 7, 20]]
    (tmp_path / "x.pgm").write_bytes(b"P2 3 1 1000\n1 7 300\n")
    assert read_label(tmp_path / "x.pgm").tolist() == [[1, 7, 300]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_label_map_in_equal_channels_is_read_as_gray(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 1, 255], [7, 2, 1]], dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(tmp_path / "x.png")
    label = read_label(tmp_path / "x.png")
    assert label.dtype == np.uint8 and label.tolist() == values.tolist()


def test_colours_floats_and_cut_numbers_are_no_label_map(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[1, 1] = (1, 1, 2)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png: a label map must hold one number per pixel .*, not colours"):
        read_label(tmp_path / "x.png")
    put_tiff(tmp_path / "x.tif", np.zeros((1, 2), dtype=np.float32))
    with pytest.raises(InputError, match=r"x\.tif: a label map must hold one number per pixel .*, not floats"):
        read_label(tmp_path / "x.tif")
    put_png(tmp_path / "x.png", 1, 1, struct.pack(">2H", 300, 65535), bits=16, color=4)  # pillow keeps 8 of 16 bits
    with pytest.raises(InputError, match=r"x\.png: a label map of 16 bits in colour; save it as gray"):
        read_label(tmp_path / "x.png")


def test_numbers_in_colours_are_not_cut(tmp_path: Path) -> None:
    put_png(tmp_path / "x.png", 1, 1, bytes([5, 1, 0]), color=2)
    assert read_segment_ids(tmp_path / "x.png").tolist() == [[261]]
    put_png(tmp_path / "x.png", 1, 1, struct.pack(">3H", 5, 1, 0), bits=16, color=2)
    with pytest.raises(InputError, match=r"x\.png: holds numbers of 16 bits, but numbers of 8 bits are needed"):
        read_colors(tmp_path / "x.png")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_quarter_turn_by_exif_is_the_reason_named(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.jpg"
    Image.new("RGB", (6, 4)).save(path, exif=exif)
    label = np.zeros((4, 6), dtype=np.uint8)  # drawn on the pixels as they are stored
    with pytest.raises(MismatchError) as caught:
        check_equal_size(label, tmp_path / "x.png", read_image(path), path)
    assert "the label map is 6x4, its image" in str(caught.value) and "is 4x6" in str(caught.value)
    assert f"the image's EXIF orientation ({orientation}) turns them by a quarter" in str(caught.value)
    check_equal_size(label.T, tmp_path / "x.png", read_image(path), path)
    with pytest.raises(
        MismatchError, match=r"EXIF orientation \(.\) turns it by a quarter, but this dataset is read as"
    ):
        check_equal_size(label.T, tmp_path / "x.png", read_image(path, upright=False), path)


def test_a_quarter_turn_of_the_label_map_by_its_own_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (6, 4)).save(tmp_path / "x.jpg")
    Image.new("L", (4, 6)).save(tmp_path / "x.png", exif=exif)
    with pytest.raises(
        MismatchError, match=r"the label map has an EXIF orientation \(8\) that would turn it by a quarter"
    ):
        check_equal_size(
            read_label(tmp_path / "x.png"), tmp_path / "x.png", read_image(tmp_path / "x.jpg"), tmp_path / "x.jpg"
        )


def test_a_quarter_turn_without_exif(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    with pytest.raises(MismatchError, match="one of them is turned by a quarter, turn it back"):
        check_equal_size(np.zeros((6, 4)), tmp_path / "l.png", image, tmp_path / "x.png")
    with pytest.raises(MismatchError, match="the sizes must be equal"):
        check_equal_size(np.zeros((6, 6)), tmp_path / "l.png", image, tmp_path / "x.png")


def test_a_broken_orientation_is_none(tmp_path: Path) -> None:
    for broken in (b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"Exif\0\0" + bytes(20)):
        put_png(tmp_path / "x.png", 2, 1, bytes([5, 7]), before=[(b"eXIf", broken)])
        assert gray(tmp_path / "x.png") == [5, 7]
