"""Drawing the images of `scenes`: outlines of things, textures of stuff, patterns, light and domain shift.

Shapes: `h w` the area that is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Polygon = np.ndarray
"""Corners (x, y), float64 [N, 2], within the unit circle."""
Generator = np.random.Generator
Texture = Callable[[Generator, int, int, float], np.ndarray]
"""Draws a texture from a generator, height, width, and the length of 1/96 of the image's side in pixels: float32
[h, w, 3] in 0 to 255. As lengths scale with the image, a scene looks alike at any size."""
_OVERSAMPLE = 4
"""Factor of the resolution at which outlines are rasterized."""


def _from_polar(radius: np.ndarray | float, angles: np.ndarray) -> Polygon:
    points: np.ndarray = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    return points


def _circle(radius: float, x: float = 0.0) -> Polygon:
    points: np.ndarray = _from_polar(radius, np.linspace(0, 2 * np.pi, 48, endpoint=False)) + np.array((x, 0.0))
    return points


def _box(width: float, height: float) -> Polygon:
    return np.array([(-width, -height), (width, -height), (width, height), (-width, height)])


def _star() -> Polygon:
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    return _from_polar(np.where(np.arange(10) % 2 == 0, 1.0, 0.42), angles)


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    points: np.ndarray = np.stack([x, y + 1.5], axis=1) / 17.5
    return points


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
    return _from_polar(0.68 + 0.32 * np.cos(6 * angles), angles)


def _drop() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([1.15 * np.sin(t) * np.sin(t / 2) ** 1.5 * 0.75, -np.cos(t)], axis=1)


def _horseshoe() -> Polygon:
    around = np.linspace(np.pi, 2 * np.pi, 24)
    outer, inner = _from_polar(0.78, around), _from_polar(0.38, around[::-1])
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
    "triangle": [_from_polar(1.0, -np.pi / 2 + np.arange(3) * 2 * np.pi / 3)],
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
"""Names of the shapes, in class order."""


def draw_coverage(
    shape: str, radius: float, angle: float, center: tuple[float, float], squeeze: float = 1.0
) -> tuple[np.ndarray, int, int]:
    """Rasterize a shape.

    Args:
        shape: Name of the shape.
        radius: Radius in pixels.
        angle: Rotation in radians.
        center: Position (x, y) in pixels.
        squeeze: Width divided by height.

    Returns:
        Share of each pixel that the shape covers, float32 [h, w] in [0, 1], in its bounding box; and the box's top row
        and left column, which may be outside the image.
    """
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    reach = int(np.ceil(radius)) + 1
    left, top = int(np.floor(center[0])) - reach, int(np.floor(center[1])) - reach
    side = 2 * reach + 1
    canvas = Image.new("L", (side * _OVERSAMPLE, side * _OVERSAMPLE), 0)
    draw = ImageDraw.Draw(canvas)
    for number, outline in enumerate(_OUTLINES[shape]):
        points = (outline * (squeeze, 1.0)) @ rotation.T * radius + center - (left, top)
        draw.polygon([tuple(point) for point in points * _OVERSAMPLE], fill=0 if number else 255)
    return np.asarray(canvas.reduce(_OVERSAMPLE), dtype=np.float32) / 255.0, top, left


def smooth_noise(rng: Generator, height: int, width: int, cell_y: float, cell_x: float | None = None) -> np.ndarray:
    """Draw smooth noise, about uniform in [0, 1], with features of `cell_y` x `cell_x` pixels; float32 [h, w]."""
    cell_x = cell_y if cell_x is None else cell_x
    rows, columns = max(2, round(height / cell_y) + 1), max(2, round(width / cell_x) + 1)
    grid = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], amount: np.ndarray) -> np.ndarray:
    """Interpolate between two colours by `amount` in [0, 1]."""
    first, last = _color(low), _color(high)
    mixed: np.ndarray = first + (last - first) * np.clip(amount, 0, 1)[..., None]
    return mixed


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
    clear = np.quantile(clouds, rng.uniform(0.5, 0.75))  # leaves some blue in every sky
    cover = np.clip((clouds - clear) * 5, 0, 1)[..., None]
    return blue * (1 - cover) + 246 * cover


def _snow(rng: Generator, height: int, width: int, unit: float) -> np.ndarray:
    drifts = smooth_noise(rng, height, width, 15 * unit, 34 * unit)
    glitter = rng.random((height, width), dtype=np.float32) > 0.985
    snow: np.ndarray = _mix((206, 216, 232), (250, 251, 254), 0.2 + 0.9 * drifts) + 6 * glitter[..., None]
    return snow


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
"""Names of the grounds, in class order, after the shapes."""

PATTERNS = ("plain", "striped", "dotted", "checkered")
"""Surface patterns of things."""


def paint_ground(name: str, rng: Generator, height: int, width: int) -> np.ndarray:
    """Draw a texture by name, with some variation of brightness and hue; float32 [h, w, 3] in 0 to 255."""
    painted: np.ndarray = _TEXTURES[name](rng, height, width, min(height, width) / 96)
    return painted * rng.uniform(0.85, 1.12) * rng.uniform(0.95, 1.05, 3).astype(np.float32)


def paint_grounds(rng: Generator, names: list[str], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint the grounds: the first fills the image, each further one covers one side of a wavy line.

    Returns:
        The canvas, float32 [H, W, 3], and the segment map, uint8 [H, W].
    """
    canvas = paint_ground(names[0], rng, height, width)
    segment_map = np.ones((height, width), dtype=np.uint8)
    rows = np.arange(height, dtype=np.float32)[:, None] / height - 0.5
    columns = np.arange(width, dtype=np.float32)[None, :] / width - 0.5
    for number, name in enumerate(names[1:], start=2):
        angle = rng.normal(0, 0.25) if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)
        across = rows * np.cos(angle) + columns * np.sin(angle)
        along = columns * np.cos(angle) - rows * np.sin(angle)
        wave = rng.uniform(0, 0.05) * np.sin(along * rng.uniform(6, 20) + rng.uniform(0, 6.3))
        beyond = across + wave > rng.uniform(-0.22, 0.28)
        canvas = np.where(beyond[..., None], paint_ground(name, rng, height, width), canvas)
        segment_map[beyond] = number
    return canvas, segment_map


def paint_pattern(name: str, rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    """Draw where a thing shows its second tone.

    Args:
        name: One of `PATTERNS`.
        rng: Source of randomness.
        height: Height of the area.
        width: Width of the area.
        scale: Radius of the thing in pixels.

    Returns:
        1 where it shows the second tone and 0 elsewhere, float32 [h, w].
    """
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
    pixels: np.ndarray = marks.astype(np.float32)
    return pixels


def light_image(rng: Generator, canvas: np.ndarray) -> np.ndarray:
    """Add uneven light and grain to an image, float32 [h, w, 3]; returns uint8 [h, w, 3]."""
    height, width = canvas.shape[:2]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    rows = np.arange(height, dtype=np.float32)[:, None] / height - 0.5
    columns = np.arange(width, dtype=np.float32)[None, :] / width - 0.5
    field = 1 + strength * (rows * np.float32(np.sin(angle)) + columns * np.float32(np.cos(angle)))
    grain = rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(rng.uniform(1, 7))
    lit = canvas * field[..., None] * np.float32(rng.uniform(0.8, 1.15)) + grain
    pixels: np.ndarray = np.clip(lit, 0, 255).astype(np.uint8)
    return pixels


def shift_domain(rng: Generator, image: np.ndarray) -> np.ndarray:
    """Make an image, uint8 [h, w, 3], look like dusk: dim and bluish, with haze, blur and coarse grain."""
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1) * min(image.shape[:2]) / 96))
    dusk = np.asarray(blurred, dtype=np.float32)
    gray = dusk.mean(axis=2, keepdims=True)
    dusk = gray + (dusk - gray) * np.float32(rng.uniform(0.45, 0.7))
    haze = np.float32(rng.uniform(0.05, 0.2))
    dusk = (
        dusk * np.float32(rng.uniform(0.4, 0.65)) * np.array((0.88, 0.96, 1.15), dtype=np.float32) * (1 - haze)
        + 150 * haze
    )
    grain = smooth_noise(rng, image.shape[0], image.shape[1], 2.0)[..., None] - 0.5
    pixels: np.ndarray = np.clip(dusk + 34 * grain, 0, 255).astype(np.uint8)
    return pixels
