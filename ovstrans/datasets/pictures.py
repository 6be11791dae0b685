"""Opening image files with pillow: every fault becomes one line, and limits are those of this module.

pillow raises errors of a dozen types, refuses a PNG for the size of its colour profile or of its texts, refuses images
above 179 megapixels, and stretches gray values of 2 and 4 bits to 0..255. Here a PNG is read by its pixels alone if its
other chunks are at fault, an image may have `MAX_PIXELS` pixels, and `Picture` says what was done to the values.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from ovstrans.errors import InputError
from ovstrans.files import existing_file

MAX_PIXELS = 1 << 29
"""Most pixels of an image that is read, 537 megapixels. Reading takes about 7 bytes a pixel, of a gray image 4."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"eXIf")
"""Chunks of a PNG that its pixels and their orientation depend on."""
_SIGNATURES = {
    _PNG: "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"P5": "PPM",
    b"P6": "PPM",
}
"""First bytes of image files, with the name of the format."""
_ORIENTATION = 0x0112
"""EXIF tag of the orientation."""
_QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339
"""TIFF tags of the bits per sample and of the type: 1 unsigned, 2 signed, 3 floats."""

_limit_lock = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    Attributes:
        image: The decoded image.
        stretched_from: Largest value that the file's samples can have, if pillow stretched them to the full range of
            the mode, such as 15 for 4 bits; None if the values are those of the file.
        narrowed: Whether pillow dropped the lower half of 16-bit channels.
    """

    image: Image.Image
    stretched_from: int | None = None
    narrowed: bool = False


@contextmanager
def open_picture(path: Path | str) -> Iterator[Picture]:
    """Open an image file and decode it completely.

    Raises:
        InputError: The file is missing, no image, broken, of a kind that cannot be read, or too large. An error of any
            kind that pillow or numpy raises inside the block is reported as a fault of the file, too.
    """
    path = existing_file(path)
    with reported(str(path)):
        picture = _decode_file(path)
        try:
            yield picture
        finally:
            picture.image.close()


@contextmanager
def reported(where: str) -> Iterator[None]:
    """Turn every error of pillow and numpy inside the block into an InputError of one line that begins with `where`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF and the like
            yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{where}: not enough memory to read it; scale it down, or cut it into tiles") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: {_unidentified(where)}") from error
    except Exception as error:  # pillow lets through whatever its parsers run into
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where}: a broken image ({reason}); remove it or copy it again") from error


def rotate_upright(image: Image.Image) -> Image.Image:
    """Return the image turned by its EXIF orientation; as it is stored if its EXIF data cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # of the parser of EXIF: a broken orientation is none
        return image


def is_rotated(image: Image.Image) -> bool:
    """Return whether the EXIF data of an image say that it is to be turned; pillow copies one that is not."""
    try:
        return bool(image.getexif().get(_ORIENTATION, 1) != 1)
    except MemoryError:
        raise
    except Exception:  # of the parser of EXIF
        return False


def read_stored_size(path: Path | str) -> tuple[int, int, int]:
    """Read width and height of an image file as its pixels are stored, and its EXIF orientation (1 if it has none)."""
    path = existing_file(path)
    with reported(str(path)), _open(path) as image:
        width, height = image.size
        try:
            orientation = int(image.getexif().get(_ORIENTATION, 1))
        except Exception:  # of the parser of EXIF
            orientation = 1
    return width, height, orientation


def explain_turn(image: Path, label: Path, shown: tuple[int, int], wanted: tuple[int, int]) -> str:
    """Say why an image and its label map differ by a quarter turn; "" if they do not.

    Args:
        image: The image file.
        label: The file of the label map.
        shown: Width and height of the image as it was read.
        wanted: Width and height of the label map, which is read as it is stored.
    """
    if shown != wanted[::-1] or shown == wanted:
        return ""
    stored, orientation = _find_quarter_turn(image)
    if orientation and stored == wanted:
        return (
            f"the label map fits the pixels as they are stored, but the image's EXIF orientation ({orientation}) turns "
            "them by a quarter; turn the label map too, or remove the orientation from the image"
        )
    if orientation and shown == stored:
        return (
            f"the label map fits the image as its EXIF orientation ({orientation}) turns it by a quarter, but this "
            "dataset is read as it is stored; turn the label map back, or turn the pixels of the image"
        )
    _, orientation = _find_quarter_turn(label)
    if orientation:
        return (
            f"the label map has an EXIF orientation ({orientation}) that would turn it by a quarter, but label maps "
            "are read as stored; turn its pixels instead"
        )
    return "one of them is turned by a quarter, turn it back"


def _find_quarter_turn(path: Path) -> tuple[tuple[int, int], int]:
    """Return width and height of an image file as stored, and its EXIF orientation if it is a quarter turn, else 0."""
    try:
        width, height, orientation = read_stored_size(path)
    except InputError:  # no image, or one whose pixels alone can be read
        return (0, 0), 0
    return (width, height), orientation if orientation in _QUARTER_TURNS else 0


def find_white(image: Image.Image) -> int | None:
    """Return the value of white in a gray image of more than 8 bits; None if nothing tells it."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    if image.mode.startswith("I;16"):
        return 4095 if tuple(bits) == (12,) else 65535
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 65535
    return None


def is_signed(image: Image.Image) -> bool:
    """Return whether the file of an image holds whole numbers with a sign."""
    return 2 in tuple(getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ()))


def _decode_file(path: Path) -> Picture:
    """Decode a file; if that fails for a PNG, decode its pixels without the chunks that say more about them."""
    try:
        return _decode(path, str(path))
    except (InputError, MemoryError):
        raise
    except Exception as error:
        with path.open("rb") as file:
            if file.read(len(_PNG)) != _PNG:
                raise
        try:
            return _decode(io.BytesIO(_keep_pixels(path.read_bytes())), str(path))
        except Exception:
            raise error from None


def _decode(source: Path | IO[bytes], where: str) -> Picture:
    image = _open(source)
    try:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise InputError(
                f"{where}: {width}x{height} pixels are more than the {MAX_PIXELS / 1e6:.0f} million that are read; "
                "scale it down, or cut it into tiles"
            )
        stretched_from, narrowed = _inspect_decoder(image)
        if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
            _without_limit(image.load)
        else:
            image.load()
    except BaseException:
        image.close()
        raise
    return Picture(image, stretched_from, narrowed)


def _open(source: Path | IO[bytes]) -> Image.Image:
    """Open an image of any size without decoding it."""
    try:
        return Image.open(source)
    except Image.DecompressionBombError:
        image: Image.Image = _without_limit(lambda: Image.open(source))
        return image


def _without_limit(function: Callable[[], Any]) -> Any:
    """Call a function of pillow without its limit on pixels."""
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return function()
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _inspect_decoder(image: Image.Image) -> tuple[int | None, bool]:
    """Return what decoding will do to the values of an image that is not decoded yet; see `Picture`."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return None, False
    decoder, arguments = tiles[0][0], tiles[0][3]
    parts = arguments if isinstance(arguments, tuple) else (arguments,)
    raw_mode = str(parts[0]) if parts else ""
    if decoder in ("ppm", "ppm_plain") and len(parts) > 1:
        most = int(parts[1])
        return (most if most not in (255, 65535) else None), most > 255 and image.mode == "RGB"
    if raw_mode.startswith(("L;2", "L;4")):
        return (3 if raw_mode.startswith("L;2") else 15), False
    return None, ";16" in raw_mode and not image.mode.startswith(("I", "F"))


def _keep_pixels(data: bytes) -> bytes:
    """Return a PNG with nothing but the chunks that its pixels and their orientation depend on."""
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        end = place + 12 + length
        if data[place + 4 : place + 8] in _PIXEL_CHUNKS:
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def _unidentified(path: str) -> str:
    """Say what is wrong with a file that pillow does not recognize."""
    start = b""
    if Path(path).is_file():
        with Path(path).open("rb") as file:
            start = file.read(16)
    name = next((name for signature, name in _SIGNATURES.items() if start.startswith(signature)), None)
    if name is None:
        return "not an image; remove it or copy it again"
    return (
        f"a broken image, or a {name} file with pixels of a kind that is not read (such as floats of 16 bits); copy it "
        "again, or save it with 8 bits per channel"
    )
