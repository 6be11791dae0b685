"""Layers computed number by number, counting: each multiplication with its addition is one MAC.

Nothing of it uses torch, so that what it counts is an opinion of its own. `Tally.products` is for matrix products
and convolutions, `Tally.resampling` for sampling and resizing. Zeros of a padded border take part, as they do in
every convolution that is not sparse. All arrays are float64.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any


@dataclass
class Tally:
    """What has been multiplied and added so far."""

    products: int = 0
    resampling: int = 0

    def dot(self, first: Array, second: Array) -> float:
        """Sum of the products of two arrays of one shape."""
        total = 0.0
        for one, other in zip(first.ravel().tolist(), second.ravel().tolist(), strict=True):
            total += one * other
            self.products += 1
        return total

    def blend(self, neighbours: list[tuple[float, float]]) -> float:
        """Sum of weight x value."""
        self.resampling += len(neighbours)
        return sum(weight * value for weight, value in neighbours)


def convolve(
    tally: Tally, x: Array, weight: Array, bias: Array | None, stride: int, padding: int, dilation: int, groups: int
) -> Array:
    """[B, C, H, W] with [O, C / groups, k, k]."""
    (batch, _, height, width), (made, given, size, _) = x.shape, weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    reach = dilation * (size - 1)
    rows = range(0, height + 2 * padding - reach, stride)
    columns = range(0, width + 2 * padding - reach, stride)
    out = np.zeros((batch, made, len(rows), len(columns)))
    for image, channel, (i, row), (j, column) in itertools.product(
        range(batch), range(made), enumerate(rows), enumerate(columns)
    ):
        first = channel // (made // groups) * given
        patch = x[
            image,
            first : first + given,
            row : row + reach + 1 : dilation,
            column : column + reach + 1 : dilation,
        ]
        out[image, channel, i, j] = tally.dot(patch, weight[channel])
    return out if bias is None else out + bias[:, None, None]


def convolve_transposed(
    tally: Tally, x: Array, weight: Array, bias: Array | None, stride: int, padding: int, groups: int
) -> Array:
    """[B, C, H, W] with [C, O / groups, k, k]: every number is spread over the kernel's reach."""
    (batch, channels, height, width), (_, made, size, _) = x.shape, weight.shape
    out = np.zeros((batch, made * groups, (height - 1) * stride + size, (width - 1) * stride + size))
    for image, channel, row, column in itertools.product(range(batch), range(channels), range(height), range(width)):
        group = channel // (channels // groups)
        for target, i, j in itertools.product(range(made), range(size), range(size)):
            spread = x[image, channel, row, column] * weight[channel, target, i, j]
            out[image, group * made + target, row * stride + i, column * stride + j] += spread
            tally.products += 1
    out = out[..., padding : out.shape[2] - padding, padding : out.shape[3] - padding]
    return out if bias is None else out + bias[:, None, None]


def linear(tally: Tally, x: Array, weight: Array, bias: Array | None) -> Array:
    """[..., I] with [O, I]; `x` of any rank."""
    out = np.array([[tally.dot(row, one) for one in weight] for row in x.reshape(-1, x.shape[-1])])
    return out.reshape(*x.shape[:-1], len(weight)) + (0 if bias is None else bias)


def multiply(tally: Tally, first: Array, second: Array) -> Array:
    """[..., n, m] @ [..., m, k] of equal leading sizes."""
    *lead, rows, _ = first.shape
    out = np.zeros((*lead, rows, second.shape[-1]))
    for place in itertools.product(*(range(size) for size in out.shape)):
        out[place] = tally.dot(first[place[:-1]], second[(*place[:-2], slice(None), place[-1])])
    return out


def einsum(tally: Tally, equation: str, first: Array, second: Array) -> Array:
    """Of two arrays: for every index of the result, over every index of what is summed."""
    given, out = equation.split("->")
    one, two = given.split(",")
    sizes = dict(zip(one, first.shape, strict=True)) | dict(zip(two, second.shape, strict=True))
    summed = [label for label in sizes if label not in out]
    result = np.zeros([sizes[label] for label in out])
    for place in itertools.product(*(range(sizes[label]) for label in out)):
        for inner in itertools.product(*(range(sizes[label]) for label in summed)):
            at = dict(zip(out, place, strict=True)) | dict(zip(summed, inner, strict=True))
            result[place] += first[tuple(at[label] for label in one)] * second[tuple(at[label] for label in two)]
            tally.products += 1
    return result


def attend(tally: Tally, query: Array, key: Array, value: Array, kept: Array | None = None) -> Array:
    """Scaled dot-product attention [..., n, D] over [..., m, D]. kept: bool [n, m], where a query may look."""
    scores = multiply(tally, query, np.swapaxes(key, -1, -2)) / math.sqrt(query.shape[-1])
    scores = scores if kept is None else np.where(kept, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return multiply(tally, weights / weights.sum(-1, keepdims=True), value)


def resize(tally: Tally, x: Array, size: tuple[int, int]) -> Array:
    """[B, C, H, W] bilinearly to `size`, pixels' edges aligned; a copy where that is its own size."""
    if x.shape[2:] == size:
        return x
    out = np.zeros((*x.shape[:2], *size))
    for place in itertools.product(*(range(extent) for extent in out.shape)):
        image, channel, *pixel = place
        at = [
            min(max((index + 0.5) * before / after - 0.5, 0.0), before - 1)
            for index, before, after in zip(pixel, x.shape[2:], size, strict=True)
        ]
        out[place] = tally.blend(_neighbours(x[image, channel], at, clamped=True))
    return out


def sample(tally: Tally, x: Array, grid: Array) -> Array:
    """[B, C, H, W] at positions [B, h, w, 2] (x, y in -1..1, the image's edges), bilinearly; zeros outside."""
    out = np.zeros((*x.shape[:2], *grid.shape[1:3]))
    for place in itertools.product(*(range(extent) for extent in out.shape)):
        image, channel, i, j = place
        at = [
            ((grid[image, i, j, axis] + 1) * extent - 1) / 2 for axis, extent in zip((1, 0), x.shape[2:], strict=True)
        ]
        out[place] = tally.blend(_neighbours(x[image, channel], at, clamped=False))
    return out


def _neighbours(plane: Array, at: list[float], *, clamped: bool) -> list[tuple[float, float]]:
    """(weight, value) of the four pixels around a position; outside is the border's value, or zero."""
    corner = [math.floor(each) for each in at]
    found = []
    for step in itertools.product((0, 1), repeat=2):
        weight = math.prod(
            each - low if one else 1 - (each - low) for each, low, one in zip(at, corner, step, strict=True)
        )
        pixel = [low + one for low, one in zip(corner, step, strict=True)]
        if clamped:
            pixel = [min(index, extent - 1) for index, extent in zip(pixel, plane.shape, strict=True)]
        inside = all(0 <= index < extent for index, extent in zip(pixel, plane.shape, strict=True))
        found.append((weight, float(plane[tuple(pixel)]) if inside else 0.0))
    return found
