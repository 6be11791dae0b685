"""Images of many megapixels are converted a strip at a time: the same pixels, without copies of the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.datasets import images
from ovstrans.datasets.images import convert_picture, read_image


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "YCbCr", "HSV", "LAB"])
@pytest.mark.parametrize("rows", [1, 7, 40, 1000])
def test_strips_give_the_same_pixels(monkeypatch: pytest.MonkeyPatch, mode: str, rows: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    color = Image.fromarray(noise)
    picture = _converted(color, mode)
    whole = torch.from_numpy(np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy())
    monkeypatch.setattr(images, "_STRIP_PIXELS", 30 * rows)
    assert torch.equal(convert_picture(picture), whole)


def _converted(color: Image.Image, mode: str) -> Image.Image:
    if mode == "LAB":
        return Image.frombytes("LAB", color.size, color.tobytes())
    return color.quantize(16) if mode == "P" else color.convert(mode)


def test_orientation_is_still_heeded(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    turned = read_image(tmp_path / "a.png")
    assert turned.shape == (3, 12, 8) and torch.equal(turned, torch.rot90(convert_picture(picture), -1, (1, 2)))


PEAK = """
import resource, sys
from ovstrans.datasets.images import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = read_image(sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / image[0].numel())
"""


@pytest.mark.parametrize(("mode", "most"), [("RGB", 8.5), ("L", 5.5)])
def test_memory_of_a_large_image(tmp_path: Path, mode: str, most: float) -> None:
    """7 bytes a pixel: pillow's 4 (1 if gray), and the 3 of the result; copies of the whole would take 18 (12)."""
    Image.new(mode, (5000, 5000), 90 if mode == "L" else (10, 200, 30)).save(tmp_path / "a.png")
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "a.png")], capture_output=True, text=True)
    assert float(done.stdout) < most, done.stderr
