"""Drawing of `scenes`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Polygon = np.ndarray
Generator = np.random.Generator
Texture = Callable[[Generator, int, int, float], np.ndarray]
_OVERSAMPLE = 4


def _turn(radius: np.ndarray | float, angles: np.ndarray) -> Polygon:
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _circle(radius: float, x: float = 0.0) -> Polygon:
    return _turn(radius, np.linspace(0, 2 * np.pi, 48, endpoint=False)) + np.array((x, 0.0))


def _box(width: float, height: float) -> Polygon:
    return np.array([(-width, -height), (width, -height), (width, height), (-width, height)])


def _star() -> Polygon:
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    return _turn(np.where(np.arange(10) % 2 == 0, 1.0, 0.42), angles)


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y + 1.5], axis=1) / 17.5


def _cross() -> Polygon:
    a, b = 0.3, 0.95
    corner = [
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
    ]
    return np.array(corner)


def _flower() -> Polygon:
    angles = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    return _turn(0.68 + 0.32 * np.cos(6 * angles), angles)


def _drop() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([1.15 * np.sin(t) * np.sin(t / 2) ** 1.5 * 0.75, -np.cos(t)], axis=1)


def _horseshoe() -> Polygon:
    around = np.linspace(np.pi, 2 * np.pi, 24)
    outer, inner = _turn(0.78, around), _turn(0.38, around[::-1])
    legs = np.array([(0.78, 0.95), (0.38, 0.95)])
    other = np.array([(-0.38, 0.95), (-0.78, 0.95)])
    return np.concatenate([outer, legs, inner, other]) - (0.0, 0.12)


def _fish() -> Polygon:
    t = np.linspace(0.35, 2 * np.pi - 0.35, 36)
    body = np.stack([0.72 * np.cos(t) - 0.24, 0.45 * np.sin(t)], axis=1)
    return np.concatenate([body, np.array([(0.92, -0.52), (0.72, 0.0), (0.92, 0.52)])])


_OUTLINES: dict[str, list[Polygon]] = {
    "circle": [_circle(0.9)],
    "square": [_box(0.72, 0.72)],
    "triangle": [_turn(1.0, -np.pi / 2 + np.arange(3) * 2 * np.pi / 3)],
    "star": [_star()],
    "heart": [_heart()],
    "crescent": [_circle(0.95), _circle(0.8, 0.42)],
    "cross": [_cross()],
    "ring": [_circle(0.95), _circle(0.55)],
    "arrow": [
        np.array([(0, -1), (0.72, -0.2), (0.25, -0.2), (0.25, 0.95), (-0.25, 0.95), (-0.25, -0.2), (-0.72, -0.2)])
    ],
    "flower": [_flower()],
    "hourglass": [np.array([(-0.65, -0.75), (0.65, -0.75), (0.1, 0), (0.65, 0.75), (-0.65, 0.75), (-0.1, 0)])],
    "bolt": [np.array([(0.25, -1), (-0.6, 0.12), (-0.08, 0.12), (-0.3, 1), (0.6, -0.22), (0.06, -0.22)])],
    "drop": [_drop()],
    "horseshoe": [_horseshoe()],
    "fish": [_fish()],
    "bar": [_box(0.96, 0.22)],
    "hammer": [
        np.array(
            [
                (-0.8, -0.8),
                (0.8, -0.8),
                (0.8, -0.25),
                (0.2, -0.25),
                (0.2, 0.95),
                (-0.2, 0.95),
                (-0.2, -0.25),
                (-0.8, -0.25),
            ]
        )
    ],
    "frame": [_box(0.7, 0.7), _box(0.4, 0.4)],
}
SHAPES = tuple(_OUTLINES)
"""Names of the things, in class order."""


def draw_coverage(
    shape: str, radius: float, angle: float, center: tuple[float, float], squeeze: float = 1.0
) -> tuple[np.ndarray, int, int]:
    """How much of each pixel a shape covers.

    radius and center (x, y) in pixels, angle in radians, squeeze: width over height. Returns the
    coverage in [0, 1] as float32 [h, w] of the bounding box, and the box's top row and left column
    (which may lie outside the image).
    """
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    reach = int(np.ceil(radius)) + 1
    left, top = int(np.floor(center[0])) - reach, int(np.floor(center[1])) - reach
    side = 2 * reach + 1
    canvas = Image.new("L", (side * _OVERSAMPLE, side * _OVERSAMPLE), 0)
    draw = ImageDraw.Draw(canvas)
    for number, outline in enumerate(_OUTLINES[shape]):
        points = (outline * (squeeze, 1.0)) @ turn.T * radius + center - (left, top)
        draw.polygon([tuple(point) for point in points * _OVERSAMPLE], fill=0 if number else 255)
    return np.asarray(canvas.reduce(_OVERSAMPLE), dtype=np.float32) / 255.0, top, left


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


def paint_ground(name: str, rng: Generator, height: int, width: int) -> np.ndarray:
    """A texture by name, with some variation of brightness and hue; float32 [h, w, 3] in 0..255."""
    painted = _TEXTURES[name](rng, height, width, min(height, width) / 96)
    return painted * rng.uniform(0.85, 1.12) * rng.uniform(0.95, 1.05, 3).astype(np.float32)


def paint_pattern(name: str, rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
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
