"""Figures of matplotlib and the fonts of all pictures: one look, drawn without a display, saved atomically.

Neither pyplot nor its global state is used. Text is in DejaVu Sans, which comes with matplotlib. A character that it
lacks is drawn in a font of the optional packages of `ovstrans[fonts]`, or in one that the system has. A name with a
character that no font has is shown as its index.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovstrans import files
from ovstrans.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import ImageDraw, ImageFont

logger = logging.getLogger(__name__)

# Okabe and Ito's palette: colour-blind readers can tell its colours apart, also when printed in grey.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, YELLOW, GREY, INK = "#56B4E9", "#CC79A7", "#F0E442", "#9AA0A6", "#202124"
COLORS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, INK)
"""Colours of data series, in the order to use them."""

_SUFFIXES = (".png", ".pdf", ".svg")
_DPI = 150
_FONT_PACKAGES = ("noto_cjk_sans_jp_regular", "manimgx_fonts")
_FONT_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
_BLANK_FONTS = ("lastresort", "adobeblank", "adobenotdef", "notdef")
"""Fonts that have a box, or nothing, for every character."""
_MATH = "$\\mathdefault"


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, drawn by Agg and laid out without overlaps.

    Args:
        width: Width in inches.
        height: Height in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, *, grid: str = "y") -> None:
    """Give a plot the look of all: no box around it, and a faint grid.

    Args:
        axes: The plot.
        grid: Axis that the grid lines mark: "x", "y", "both", or "" for no grid.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelsize=8)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color="#E3E5E8", linewidth=0.7)  # type: ignore[arg-type]


def picture_path(path: Path | str) -> Path:
    """Return the path if a figure can be saved under it.

    Raises:
        InputError: Its suffix is none of .png, .pdf and .svg.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path}: a picture's name ends in {', '.join(_SUFFIXES)}; give such a name")
    return path


def save_figure(figure: Figure, path: Path | str, *, source: str = "") -> Path:
    """Write a figure atomically as PNG, PDF or SVG.

    The bytes depend on the figure alone: no date is written into the file.

    Args:
        figure: The figure.
        path: The file to write; its suffix chooses the format.
        source: What to record in a PNG as its source.

    Returns:
        The path.

    Raises:
        InputError: The suffix is unknown, or the file cannot be written.
    """
    path = picture_path(path)
    prepare_text(figure)
    plain = {"Source": source} if source else {}
    dateless = {".png": plain, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}[path.suffix.lower()]
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), metadata=dateless or None)
    return path


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG, for the display of a notebook."""
    prepare_text(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def prepare_text(figure: Figure) -> None:
    """Give the texts of a figure the fonts that they need, and take dollars in them for dollars."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels()  # makes the texts of fixed ticks
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_text().startswith(_MATH):
            text.set_parse_math(False)
        fonts = [font for font, _ in split_by_font(text.get_text()) if font is not None]
        if not fonts:
            continue
        known = {entry.fname: entry.name for entry in font_manager.fontManager.ttflist}
        for font in fonts:
            if str(font) not in known:
                font_manager.fontManager.addfont(font)
        known = {entry.fname: entry.name for entry in font_manager.fontManager.ttflist}
        families = [known[str(font)] for font in dict.fromkeys(fonts) if str(font) in known]
        text.set_fontfamily(["DejaVu Sans", *families])


@lru_cache(maxsize=128)
def load_font(size: int, bold: bool = False, file: Path | None = None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font for pillow: the one in a file, else DejaVu Sans; pillow's own font if that is missing."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype(str(file or _default_font(bold)), size)
    except OSError:
        return ImageFont.load_default(size)


def draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, *, bold: bool = False, **style: Any
) -> None:
    """Draw a text with pillow, each part of it in a font that has its characters.

    Args:
        draw: Where to draw.
        place: Position of the text.
        text: The text, in one line.
        size: Height of the text in pixels.
        bold: Draw it bold where its font is DejaVu Sans.
        **style: As for `PIL.ImageDraw.ImageDraw.text`; `anchor` is "la", "lm" or "mm".
    """
    base, parts = load_font(size, bold), split_by_font(text)
    if [font for font, _ in parts] in ([], [None]):
        draw.text(place, text, font=base, **style)
        return
    (x, y), anchor = place, style.pop("anchor", "la")
    ascent, descent = base.getmetrics() if hasattr(base, "getmetrics") else (size, 0)
    y += (ascent - descent) / 2 if anchor[1] == "m" else ascent
    x -= measure_text(text, size, bold=bold) / 2 if anchor[0] == "m" else 0
    for font, part in parts:
        chosen = load_font(size, bold, font)
        draw.text((x, y), part, font=chosen, anchor="ls", **style)
        x += chosen.getlength(part)


def measure_text(text: str, size: int, *, bold: bool = False) -> float:
    """Return the width of a text as `draw_text` draws it, in pixels."""
    return sum(load_font(size, bold, font).getlength(part) for font, part in split_by_font(text))


def text_columns(text: str) -> int:
    """Return the width of a text in letters; those of Chinese, Japanese and Korean, and emoji, are two wide."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


@lru_cache(maxsize=64)
def drawable_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names as pictures show them: a name with a character that no font has becomes its index."""
    lost = [number for number, name in enumerate(names) if not is_drawable(name)]
    if lost:
        logger.warning(
            "%d of %d names are shown as numbers in pictures, no font here has their characters (%r is %d): install a "
            "font, or pip install 'ovstrans[fonts]'",
            len(lost),
            len(names),
            names[lost[0]],
            lost[0],
        )
    return tuple(str(number) if number in lost else name for number, name in enumerate(names))


def is_drawable(text: str) -> bool:
    """Return whether some font has each character of a text."""
    return all(ord(char) in _characters(None) or _joins(char) or find_font(char) is not None for char in text)


@lru_cache(maxsize=512)
def split_by_font(text: str) -> tuple[tuple[Path | None, str], ...]:
    """Split a text into parts of one font each: its file, None for DejaVu Sans, and the part."""
    parts: list[tuple[Path | None, str]] = []
    for char in text:
        if parts and char != " " and _joins(char):
            font = parts[-1][0]
        else:
            font = None if ord(char) in _characters(None) else find_font(char)
        if parts and parts[-1][0] == font:
            parts[-1] = (font, parts[-1][1] + char)
        else:
            parts.append((font, char))
    return tuple(parts)


@lru_cache(maxsize=4096)
def find_font(char: str) -> Path | None:
    """Return the file of a font that has a character, beside DejaVu Sans; None if there is none."""
    return next((font for font in _fallback_fonts() if ord(char) in _characters(font)), None)


@lru_cache(maxsize=1)
def _fallback_fonts() -> tuple[Path, ...]:
    """Return the files of other fonts: those of packages, then those of the system, Noto and regular ones first."""
    from matplotlib import font_manager

    def preference(path: Path) -> tuple[bool, bool, bool, str]:
        name = path.name.casefold()
        slanted = any(word in name for word in ("italic", "oblique", "bold", "light", "thin", "black", "mono", "serif"))
        return (slanted, "noto" not in name, "cjk" not in name, str(path))

    system = sorted((Path(font) for font in font_manager.findSystemFonts()), key=preference)
    return (*_package_fonts(), *(font for font in system if not font.stem.casefold().startswith(_BLANK_FONTS)))


def _package_fonts() -> Iterator[Path]:
    for package in _FONT_PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            fonts = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in _FONT_SUFFIXES]
            yield from (path for path in fonts if "italic" not in path.name.casefold())


@lru_cache(maxsize=256)
def _characters(font: Path | None) -> frozenset[int]:
    """Return the code points that a font has; none if neither matplotlib nor pillow can draw with it."""
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    path = str(font or _default_font(False))
    try:
        ImageFont.truetype(path, 13)  # refuses bitmaps of another size, as in fonts of coloured emoji
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _joins(char: str) -> bool:
    """Return whether a character belongs to the one before it: accents, joiners, variation selectors, spaces."""
    return char == " " or unicodedata.category(char) in ("Mn", "Mc", "Me", "Cf")


def _default_font(bold: bool) -> Path:
    from matplotlib import get_data_path

    return Path(get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
