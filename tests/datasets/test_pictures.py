"""Faults of image files are one line, and limits are our own."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ovstrans.datasets import pictures
from ovstrans.datasets.images import read_image, read_label
from ovstrans.errors import InputError

from .raw_files import Chunk, png_bytes, put_png

LARGE = zlib.compress(os.urandom(2 << 20))
CHUNKS: dict[str, Chunk] = {
    "a large colour profile": (b"iCCP", b"icc\0\0" + LARGE),
    "an empty colour profile": (b"iCCP", b""),
    "a colour profile without content": (b"iCCP", b"icc\0"),
    "a broken colour profile": (b"iCCP", b"icc\0\0not compressed"),
    "a large text": (b"tEXt", b"key\0" + b"x" * (2 << 20)),
    "a large compressed text": (b"zTXt", b"key\0\0" + zlib.compress(bytes(20 << 20))),
    "a large international text": (b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(20 << 20))),
    "an empty text": (b"zTXt", b""),
    "an empty transparency": (b"tRNS", b""),
    "an empty resolution": (b"pHYs", b""),
    "an empty gamma": (b"gAMA", b""),
    "an empty animation": (b"acTL", b""),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", CHUNKS)
def test_a_png_is_read_whatever_its_other_chunks_hold(tmp_path: Path, name: str, place: str) -> None:
    path = put_png(tmp_path / "x.png", 2, 1, bytes([5, 7]), **{place: [CHUNKS[name]]})
    assert read_image(path)[0].tolist() == [[5, 7]]
    assert read_label(path).tolist() == [[5, 7]]


def test_many_texts_are_no_fault(tmp_path: Path) -> None:
    texts = [(b"tEXt", b"key%d\0" % number + b"x" * 900_000) for number in range(80)]  # 72 MB
    path = put_png(tmp_path / "x.png", 2, 1, bytes([5, 7]), before=texts)
    assert read_image(path)[0].tolist() == [[5, 7]]


def test_an_orientation_survives_a_broken_profile(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunks = [(b"iCCP", b"icc\0\0" + LARGE), (b"eXIf", content)]
    assert read_image(put_png(tmp_path / "x.png", 2, 1, bytes([5, 7]), before=chunks)).shape == (3, 2, 1)


def test_images_beyond_pillows_limit_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("png", "tif", "jpg", "bmp"):
        Image.new("L", (50, 40), 90).save(tmp_path / f"x.{suffix}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # errors above 200 pixels
    for suffix in ("png", "tif", "jpg", "bmp"):
        assert read_image(tmp_path / f"x.{suffix}").shape == (3, 40, 50)
        assert read_label(tmp_path / f"x.{suffix}").shape == (40, 50)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_an_image_above_our_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    header = png_bytes(1, 1, bytes(1)).replace(struct.pack(">II", 1, 1), struct.pack(">II", 200_000, 100_000))
    crc = zlib.crc32(header[12:29])
    path = tmp_path / "x.png"
    path.write_bytes(header[:29] + struct.pack(">I", crc) + header[33:])
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value) == (
        f"{path}: 200000x100000 pixels are more than the 537 million that are read; scale it down, or cut it into tiles"
    )


def fault(path: Path) -> str:
    messages = set()
    for read in (read_image, read_label):
        with pytest.raises(InputError) as caught:
            read(path)
        messages.add(str(caught.value))
    (message,) = messages
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "ppm"])
def test_truncated_files_are_one_line_wherever_they_end(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(noise).convert("RGB").save(path)
    whole = path.read_bytes()
    for size in (0, 1, 8, 20, 40, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        IndexError("bytes index out of range"),
        struct.error("unpack requires"),
        zlib.error("Error -3"),
        KeyError("x"),
        RuntimeError("a\nb"),
        AssertionError(),
        NotImplementedError("unknown"),
        EOFError(),
        OverflowError("too large"),
    ],
)
def test_any_error_of_pillow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    path = put_png(tmp_path / "x.png", 2, 1, bytes([5, 7]))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    assert "a broken image (" in fault(path)
    monkeypatch.undo()
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "_open", fail)
    assert "broken image" in fault(path)


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_png(tmp_path / "x.png", 2, 1, bytes([5, 7]))

    def fail(*_: object) -> Callable[[], None]:
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    assert "not enough memory to read it" in fault(path)


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(InputError, match=r"x\.png: no such file"):
        read_image(tmp_path / "x.png")


def test_the_limit_is_what_the_guide_says() -> None:
    assert round(pictures.MAX_PIXELS / 1e6) == 537
