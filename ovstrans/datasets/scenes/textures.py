"""The stuff of `scenes`: procedural ground textures, and the surface patterns of things.

Every texture takes a generator, a height and a width and returns float32 RGB [h, w, 3] in 0..255.
Lengths scale with the image, so a scene looks alike at any size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

Generator = np.random.Generator
Texture = Callable[[Generator, int, int, float], np.ndarray]


def smooth_noise(rng: Generator, height: int, width: int, cell_y: float, cell_x: float | None = None) -> np.ndarray:
    """Smooth noise, about uniform in [0, 1], with features of `cell_y` x `cell_x` pixels; float32 [h, w]."""
    cell_x = cell_y if cell_x is None else cell_x
    rows, columns = max(2, round(height / cell_y) + 1), max(2, round(width / cell_x) + 1)
    grid = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], amount: np.ndarray) -> np.ndarray:
    first, last = _color(low), _color(high)
    return first + (last - first) * np.clip(amount, 0, 1)[..., None]


def _color(rgb: tuple[int, int, int]) -> np.ndarray:
    return np.array(rgb, dtype=np.float32)


def _axes(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]


def _grass(rng: Generator, height: int, width: int, unit: float) -> np.ndarray:
    blades = smooth_noise(rng, height, width, 5 * unit, 1.6 * unit)
    patches = smooth_noise(rng, height, width, 24 * unit)
    return _mix((30, 78, 22), (118, 178, 66), 0.7 * blades + 0.3 * patches)


def _sand(rng: Generator, height: int, width: int, unit: float) -> np.ndarray:
    rows, _ = _axes(height, width)
    ripples = np.sin((rows + 9 * unit * smooth_noise(rng, height, width, 20 * unit)) / unit * 0.9)
    return _mix(
        (186, 152, 96),
        (238, 214, 164),
        0.45 + 0.18 * ripples + 0.5 * (smooth_noise(rng, height, width, 1.3 * unit) - 0.5),
    )


def _water(rng: Generator, height: int, width: int, unit: float) -> np.ndarray:
    rows, columns = _axes(height, width)
    bend = 10 * unit * smooth_noise(rng, height, width, 14 * unit, 22 * unit)
    waves = np.sin((rows + bend) / unit * 0.75) * np.sin(columns / unit * 0.12 + bend / unit * 0.4)
    return _mix((18, 62, 130), (96, 168, 214), 0.45 + 0.4 * waves)


def _brick(rng: Generator, height: int, width: int, unit: float) -> np.ndarray:
    rows, columns = _axes(height, width)
    tall, wide = 7 * unit, 16 * unit
    rows, columns = rows + rng.uniform(0, tall), columns + rng.uniform(0, wide)
    course = np.floor(rows / tall)
    along = columns + (course % 2) * wide / 2
    tint = np.sin(course * 12.9 + np.floor(along / wide) * 78.2) * 0.5 + 0.5
    mortar = (np.mod(rows, tall) < 1.2 * unit) | (np.mod(along, wide) < 1.2 * unit)
    wall = _mix((128, 48, 34), (184, 84, 58), 0.7 * tint + 0.3 * smooth_noise(rng, height, width, 2 * unit))
    return np.where(mortar[..., None], _color((196, 186, 174)), wall)


def _wood(rng: Generator, height: int, width: int, unit: float) -> np.ndarray:
    _, columns = _axes(height, width)
    plank = 20 * unit
    shifted = columns + rng.uniform(0, plank)
    number = np.floor(shifted / plank)
    grain = np.sin(
        (shifted + 7 * unit * smooth_noise(rng, height, width, 40 * unit, 8 * unit)) / unit * 1.5 + number * 2.4
    )
    planks = _mix((98, 62, 30), (176, 122, 70), 0.5 + 0.25 * grain + 0.2 * np.sin(number * 5.1))
    return np.where((np.mod(shifted, plank) < 1.1 * unit)[..., None], _color((58, 36, 18)), planks)


def _tiles(rng: Generator, height: int, width: int, unit: float) -> np.ndarray:
    rows, columns = _axes(height, width)
    side = 13 * unit
    rows, columns = rows + rng.uniform(0, side), columns + rng.uniform(0, side)
    dark = np.mod(np.floor(rows / side) + np.floor(columns / side), 2)
    joint = (np.mod(rows, side) < unit) | (np.mod(columns, side) < unit)
    floor = _mix((112, 152, 158), (214, 226, 222), dark + 0.2 * (smooth_noise(rng, height, width, 9 * unit) - 0.5))
    return np.where(joint[..., None], _color((70, 80, 84)), floor)


def _stone(rng: Generator, height: int, width: int, unit: float) -> np.ndarray:
    cell = 11 * unit
    rows, columns = int(height / cell) + 3, int(width / cell) + 3
    jitter = rng.random((rows, columns, 3), dtype=np.float32)
    y, x = _axes(height, width)
    row, column = np.floor(y / cell).astype(int), np.floor(x / cell).astype(int)
    nearest = np.full((height, width), np.inf, dtype=np.float32)
    second = nearest.copy()
    shade = np.zeros((height, width), dtype=np.float32)
    for down in range(3):
        for right in range(3):
            point = jitter[row + down, column + right]
            distance = (y / cell - row - down + 1 - point[..., 0]) ** 2 + (
                x / cell - column - right + 1 - point[..., 1]
            ) ** 2
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            shade = np.where(closer, point[..., 2], shade)
            nearest = np.where(closer, distance, nearest)
    gap = np.sqrt(second) - np.sqrt(nearest) < 0.14
    return np.where(gap[..., None], _color((52, 52, 56)), _mix((104, 104, 110), (176, 174, 170), shade))


def _sky(rng: Generator, height: int, width: int, unit: float) -> np.ndarray:
    rows, _ = _axes(height, width)
    clouds = (
        smooth_noise(rng, height, width, 16 * unit, 30 * unit) * 0.7
        + smooth_noise(rng, height, width, 7 * unit, 12 * unit) * 0.3
    )
    blue = _mix((92, 150, 226), (170, 208, 242), np.broadcast_to(rows / height, (height, width)))
    clear = np.quantile(clouds, rng.uniform(0.5, 0.75))  # some blue in every sky
    cover = np.clip((clouds - clear) * 5, 0, 1)[..., None]
    return blue * (1 - cover) + 246 * cover


def _snow(rng: Generator, height: int, width: int, unit: float) -> np.ndarray:
    drifts = smooth_noise(rng, height, width, 15 * unit, 34 * unit)
    glitter = rng.random((height, width), dtype=np.float32) > 0.985
    return _mix((206, 216, 232), (250, 251, 254), 0.2 + 0.9 * drifts) + 6 * glitter[..., None]


def _lava(rng: Generator, height: int, width: int, unit: float) -> np.ndarray:
    veins = np.abs(
        smooth_noise(rng, height, width, 12 * unit) + 0.5 * smooth_noise(rng, height, width, 5 * unit) - 0.75
    )
    crust = _mix((26, 18, 20), (60, 40, 38), smooth_noise(rng, height, width, 3 * unit))
    glow = np.clip(1 - veins / 0.11, 0, 1)[..., None]
    return crust * (1 - glow) + _color((255, 120, 24)) * glow


_TEXTURES: dict[str, Texture] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "brick": _brick,
    "wood": _wood,
    "tiles": _tiles,
    "stone": _stone,
    "sky": _sky,
    "snow": _snow,
    "lava": _lava,
}
STUFF = tuple(_TEXTURES)
"""Names of the stuff, in class order after the things."""

PATTERNS = ("plain", "striped", "dotted", "checkered")
"""Surface patterns of things."""


def ground(name: str, rng: Generator, height: int, width: int) -> np.ndarray:
    """A texture by name, with some variation of brightness and hue; float32 [h, w, 3] in 0..255."""
    painted = _TEXTURES[name](rng, height, width, min(height, width) / 96)
    return painted * rng.uniform(0.85, 1.12) * rng.uniform(0.95, 1.05, 3).astype(np.float32)


def pattern(name: str, rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    """Where a patterned thing shows its second tone: float32 [h, w] in {0, 1}. scale: the thing's radius, pixels."""
    if name == "plain":
        return np.zeros((height, width), dtype=np.float32)
    angle, period = rng.uniform(0, np.pi), max(3.0, scale * rng.uniform(0.36, 0.5))
    rows, columns = _axes(height, width)
    along = (columns * np.cos(angle) + rows * np.sin(angle)) / period
    across = (rows * np.cos(angle) - columns * np.sin(angle)) / period
    if name == "striped":
        marks = np.mod(along, 1) < 0.5
    elif name == "dotted":
        marks = (np.mod(along, 1) - 0.5) ** 2 + (np.mod(across, 1) - 0.5) ** 2 < 0.09
    else:
        marks = (np.mod(along, 1) < 0.5) ^ (np.mod(across, 1) < 0.5)
    return marks.astype(np.float32)
