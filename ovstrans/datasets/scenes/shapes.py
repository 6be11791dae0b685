"""The things of `scenes`: outlines as polygons in unit coordinates, and how they are drawn.

A shape is a list of polygons; the first is filled, the others are holes. Coordinates lie within the
unit disc, so a shape of radius r fits a circle of r pixels under any rotation.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

Polygon = np.ndarray
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


def coverage(
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


@lru_cache(maxsize=1)
def confusable() -> dict[str, tuple[str, ...]]:
    """Shapes that look alike, for hard negatives: each with its nearest neighbours."""
    groups = [
        ("circle", "ring", "flower", "heart", "drop"),
        ("square", "frame", "circle", "cross"),
        ("star", "flower", "cross", "triangle", "bolt"),
        ("arrow", "hammer", "triangle", "cross", "fish"),
        ("crescent", "horseshoe", "ring", "bar"),
        ("hourglass", "bolt", "triangle", "fish", "bar"),
        ("heart", "drop", "triangle", "fish"),
    ]
    near: dict[str, set[str]] = {shape: set() for shape in SHAPES}
    for group in groups:
        for shape in group:
            near[shape] |= set(group) - {shape}
    return {shape: tuple(sorted(others)) for shape, others in near.items()}
