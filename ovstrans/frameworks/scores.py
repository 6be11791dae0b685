"""Class scores of an image that are upsampled a few rows at a time.

K score maps of an image of 2,000 x 2,000 pixels and 847 classes would take 13 GB. What a framework predicts is far
smaller: scores at the resolution of its head, or masks and class probabilities of queries. A `Scores` object keeps
that and upsamples bands of rows on demand; the results equal those of `torch.nn.functional.interpolate`, bilinear
with align_corners=False, up to rounding.

`MapScores` holds score maps, `frameworks.mask2former_inference.QueryScores` masks. `ResizedScores`, `FlippedScores`,
`MeanScores` and `WindowScores` transform and combine other scores.

Shapes: `K` classes, `C` channels, `h w` the head's map, `H W` image, `n` rows of it, `T` taps of an interpolation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BAND_NUMBERS = {"cpu": 2**22, "cuda": 2**25}
"""Largest size of a band, in numbers: on a CPU few enough for its caches, on a GPU enough to keep it busy."""

COLUMNS = 64
"""Number of neighbouring columns that are resized together; they share most of their source columns."""


class Best(NamedTuple):
    """The best class of each pixel of a band.

    Attributes:
        classes: int64 [n, W], class indices.
        scores: float32 [n, W], the score of that class.
        confidence: float32 [n, W], its share of all scores, in [0, 1] (see `Scores.logits`); None if not asked for.
    """

    classes: Tensor
    scores: Tensor
    confidence: Tensor | None


class Scores:
    """Class scores of one image.

    Attributes:
        size: (H, W), the size at which scores are read.
        num_classes: K.
        logits: If True, confidence is the softmax over classes. Otherwise scores are not negative, and confidence is
            a score divided by the sum over classes.
        device: Where the scores are computed.
    """

    size: tuple[int, int]
    num_classes: int
    logits: bool
    device: torch.device

    def rows(self, first: int, last: int) -> Tensor:
        """Compute the scores of rows `first` to `last` (exclusive), float32 [n, W, K]."""
        raise NotImplementedError

    def resize(self, size: tuple[int, int], *, masks_first: bool = False) -> Scores:
        """Return the scores at another size, bilinear.

        Args:
            size: (height, width).
            masks_first: If the scores are sums over masks, resize the masks and then sum them. Otherwise resize the
                sums. Published configurations differ in this, and it changes the class of some pixels.
        """
        return self if size == self.size else ResizedScores(self, size)

    def best(self, first: int, last: int, *, confidence: bool = False) -> Best:
        """Return the best class of each pixel in rows `first` to `last` (exclusive); of equal scores the lower class.

        Args:
            first: The first row.
            last: The row after the last one.
            confidence: Whether to compute the confidence too.
        """
        return best_class(self.rows(first, last), logits=self.logits, confidence=confidence)

    @property
    def band(self) -> int:
        """Number of rows to compute at once."""
        return max(1, self._numbers // (self.size[1] * self.num_classes))

    def bands(self) -> Iterator[tuple[int, int]]:
        """Yield (first, last) of bands that together make up all rows."""
        for first in range(0, self.size[0], self.band):
            yield first, min(first + self.band, self.size[0])

    @property
    def _numbers(self) -> int:
        return BAND_NUMBERS["cpu" if self.device.type == "cpu" else "cuda"]


def best_class(scores: Tensor, *, logits: bool, confidence: bool) -> Best:
    """Find the best class along the last dimension.

    Args:
        scores: [*, K].
        logits: See `Scores`.
        confidence: Whether to compute the confidence too.
    """
    values, classes = scores.max(dim=-1)
    if not confidence:
        return Best(classes, values, None)
    if logits:
        return Best(classes, values, (values - scores.logsumexp(dim=-1)).exp())
    total = scores.sum(dim=-1).clamp(min=torch.finfo(scores.dtype).tiny)  # 0 where nothing has a score
    return Best(classes, values, (values / total).clamp_(max=1))


def concatenate(parts: Sequence[Best], *, dim: int, shape: tuple[int, int] | None = None) -> Best:
    """Concatenate the results of neighbouring pixels.

    Args:
        parts: The results, in order.
        dim: The dimension to concatenate along.
        shape: The shape of the result; None for what concatenation gives.
    """

    def join(pieces: list[Tensor]) -> Tensor:
        whole = torch.cat(pieces, dim=dim)
        return whole if shape is None else whole.view(shape)

    confidence = [part.confidence for part in parts if part.confidence is not None]
    classes, scores = join([part.classes for part in parts]), join([part.scores for part in parts])
    return Best(classes, scores, join(confidence) if confidence else None)


class LinearScores(Scores):
    """Base of scores that are linear interpolations of a map of another size.

    A subclass implements `source` and sets the two interpolations.

    Attributes:
        vertical: Interpolation from rows of the map to rows of the result.
        horizontal: Interpolation from columns to columns.
    """

    vertical: Interpolation
    horizontal: Interpolation

    def source(self, first: int, last: int) -> Tensor:
        """Return rows `first` to `last` (exclusive) of the map, float32 [n, w, K]."""
        raise NotImplementedError

    @property
    def band(self) -> int:
        """Number of rows to compute at once."""
        return max(1, min(self._numbers // (COLUMNS * self.num_classes), COLUMNS))

    def rows(self, first: int, last: int) -> Tensor:
        """Compute the scores of rows `first` to `last` (exclusive), float32 [n, W, K]."""
        return torch.cat(list(self._column_groups(first, last)), dim=1)

    def best(self, first: int, last: int, *, confidence: bool = False) -> Best:
        """Return the best class of each pixel; see `Scores.best`."""
        groups = self._column_groups(first, last)
        return concatenate([best_class(each, logits=self.logits, confidence=confidence) for each in groups], dim=1)

    def _column_groups(self, first: int, last: int) -> Iterator[Tensor]:
        """Yield the scores of rows `first` to `last`, some columns at a time."""
        low, high, matrix = self.vertical.matrix(first, last, self.device)
        maps = self.source(low, high)
        if not self.vertical.identity:
            maps = (matrix @ maps.flatten(1)).view(last - first, *maps.shape[1:])
        step = max(COLUMNS, self._numbers // (self.num_classes * (last - first)))
        for left in range(0, len(self.horizontal), step):
            right = min(left + step, len(self.horizontal))
            if self.horizontal.identity:
                yield maps[:, left:right]
                continue
            low, high, matrix = self.horizontal.matrix(left, right, self.device)
            yield matrix @ maps[:, low:high]


class MapScores(LinearScores):
    """Scores that a head computed at its own resolution, for a padded image.

    Args:
        maps: Logits [K, h, w].
        size: (H, W) of the image, which is at the top left of the padded one.
        padded: (height, width) of the padded image; None if `maps` has the size of the image.
    """

    logits = True

    def __init__(self, maps: Tensor, size: tuple[int, int], padded: tuple[int, int] | None = None) -> None:
        self.size = size
        self.num_classes, self.device = int(maps.shape[0]), maps.device
        self.maps = maps.float().permute(1, 2, 0).contiguous()
        height, width = (int(side) for side in maps.shape[1:])
        padded = padded or (height, width)
        self.vertical = Interpolation.between(height, padded[0]).crop(size[0])
        self.horizontal = Interpolation.between(width, padded[1]).crop(size[1])

    def resize(self, size: tuple[int, int], *, masks_first: bool = False) -> Scores:
        """Return the scores at another size; see `Scores.resize`."""
        resized = copy.copy(self)
        resized.size = size
        resized.vertical = self.vertical.then(Interpolation.between(len(self.vertical), size[0]))
        resized.horizontal = self.horizontal.then(Interpolation.between(len(self.horizontal), size[1]))
        return resized

    def source(self, first: int, last: int) -> Tensor:
        """Return rows `first` to `last` (exclusive) of the map, float32 [n, w, K]."""
        return self.maps[first:last]


class ResizedScores(LinearScores):
    """Scores resized to another size, bilinear.

    Args:
        scores: The scores at their own size.
        size: (H, W) of the result.
    """

    def __init__(self, scores: Scores, size: tuple[int, int]) -> None:
        self.scores, self.size = scores, size
        self.num_classes, self.logits, self.device = scores.num_classes, scores.logits, scores.device
        self.vertical = Interpolation.between(scores.size[0], size[0])
        self.horizontal = Interpolation.between(scores.size[1], size[1])

    @property
    def band(self) -> int:
        """Number of rows to compute at once."""
        widest = max(self.size[1], self.scores.size[1]) * max(1, -(-self.scores.size[0] // self.size[0]))
        return max(1, self._numbers // (widest * self.num_classes))

    def source(self, first: int, last: int) -> Tensor:
        """Return rows `first` to `last` (exclusive) of the scores before resizing."""
        return self.scores.rows(first, last)


class FlippedScores(Scores):
    """Scores mirrored left to right, to undo the flip of the image they were computed on."""

    def __init__(self, scores: Scores) -> None:
        self.scores, self.size = scores, scores.size
        self.num_classes, self.logits, self.device = scores.num_classes, scores.logits, scores.device

    @property
    def band(self) -> int:
        """Number of rows to compute at once."""
        return self.scores.band

    def resize(self, size: tuple[int, int], *, masks_first: bool = False) -> Scores:
        """Return the scores at another size; see `Scores.resize`."""
        return FlippedScores(self.scores.resize(size, masks_first=masks_first))

    def rows(self, first: int, last: int) -> Tensor:
        """Compute the scores of rows `first` to `last` (exclusive), float32 [n, W, K]."""
        return self.scores.rows(first, last).flip(1)


class MeanScores(Scores):
    """The mean of several scores of one image, for test-time augmentation."""

    def __init__(self, scores: Sequence[Scores]) -> None:
        self.scores, self.size = scores, scores[0].size
        self.num_classes, self.logits, self.device = scores[0].num_classes, scores[0].logits, scores[0].device

    def resize(self, size: tuple[int, int], *, masks_first: bool = False) -> Scores:
        """Return the scores at another size; see `Scores.resize`."""
        return MeanScores([each.resize(size, masks_first=masks_first) for each in self.scores])

    def rows(self, first: int, last: int) -> Tensor:
        """Compute the scores of rows `first` to `last` (exclusive), float32 [n, W, K]."""
        total = self.scores[0].rows(first, last)
        for each in self.scores[1:]:
            total = total + each.rows(first, last)
        return total / len(self.scores)


class WindowScores(Scores):
    """Scores of an image from sliding windows, averaged where they overlap.

    Windows are computed a row of windows at a time, when their first pixel row is read, and dropped when reading has
    passed them: memory does not grow with the height of the image. Rows must be read from top to bottom.

    Args:
        size: (H, W) of the image.
        window: (height, width) of each window.
        tops: First row of each row of windows, ascending. Together the windows cover the image.
        lefts: First column of the windows in a row, ascending.
        predict: Computes the scores of a row of windows from its top, one for each of `lefts`.
    """

    def __init__(
        self,
        size: tuple[int, int],
        window: tuple[int, int],
        tops: Sequence[int],
        lefts: Sequence[int],
        predict: Callable[[int], Sequence[Scores]],
    ) -> None:
        self.size, self.window, self.tops, self.lefts, self.predict = size, window, tops, lefts, predict
        self._computed: dict[int, Sequence[Scores]] = {}
        first = self._window_row(tops[0])[0]
        self.num_classes, self.logits, self.device = first.num_classes, first.logits, first.device

    def rows(self, first: int, last: int) -> Tensor:
        """Compute the scores of rows `first` to `last` (exclusive), float32 [n, W, K]."""
        height, width = self.window
        for top in [top for top in self._computed if top + height <= first]:
            del self._computed[top]
        total = torch.zeros(last - first, self.size[1], self.num_classes, device=self.device)
        count = torch.zeros(last - first, self.size[1], 1, device=self.device)
        for top in self.tops:
            low, high = max(first, top), min(last, top + height)
            if low >= high:
                continue
            for left, scores in zip(self.lefts, self._window_row(top), strict=True):
                part = (slice(low - first, high - first), slice(left, left + width))
                total[part] += scores.rows(low - top, high - top)
                count[part] += 1
        return total / count

    def _window_row(self, top: int) -> Sequence[Scores]:
        if top not in self._computed:
            self._computed[top] = self.predict(top)
        return self._computed[top]


@dataclass(frozen=True)
class Interpolation:
    """Linear interpolation along one side of a map: each target position is a weighted sum of source positions.

    Attributes:
        index: int64 [N, T], the source positions of each of the N target positions.
        weight: float32 [N, T], their weights.
    """

    index: Tensor
    weight: Tensor

    @classmethod
    def between(cls, source: int, target: int) -> Interpolation:
        """Return the interpolation from one length to another, in float32 arithmetic as torch's own."""
        if source == target:
            return cls(torch.arange(source)[:, None], torch.ones(source, 1))
        position = ((torch.arange(target, dtype=torch.float32) + 0.5) * (source / target) - 0.5).clamp_(min=0)
        low = position.long().clamp_(max=source - 1)
        fraction = (position - low).clamp_(max=1)
        index = torch.stack([low, (low + 1).clamp_(max=source - 1)], 1)
        return cls(index, torch.stack([1 - fraction, fraction], 1))

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def identity(self) -> bool:
        """True if every target position is the source position of the same index."""
        return self.index.shape[1] == 1 and torch.equal(self.index[:, 0], torch.arange(len(self)))

    def crop(self, length: int) -> Interpolation:
        """Return the interpolation to the first `length` target positions."""
        return replace(self, index=self.index[:length], weight=self.weight[:length])

    def then(self, other: Interpolation) -> Interpolation:
        """Return the composition of this interpolation and `other`, which comes after it."""
        if other.identity:
            return self
        index = self.index[other.index].flatten(1)
        return Interpolation(index, (self.weight[other.index] * other.weight[..., None]).flatten(1))

    def source_range(self, first: int, last: int) -> tuple[int, int]:
        """Return (first, last) of the source positions that targets `first` to `last` (exclusive) are made of."""
        low, high = self.index[first:last].aminmax()
        return int(low), int(high) + 1

    def matrix(self, first: int, last: int, device: torch.device) -> tuple[int, int, Tensor]:
        """Return the interpolation to targets `first` to `last` (exclusive) as a matrix.

        Returns:
            `source_range` and the matrix [last - first, sources] to multiply with those source positions.
        """
        low, high = self.source_range(first, last)
        matrix = torch.zeros(last - first, high - low)
        matrix.scatter_add_(1, self.index[first:last] - low, self.weight[first:last])
        return low, high, matrix.to(device)


def resize_rows(maps: Tensor, interpolation: Interpolation, first: int, last: int, *, start: int = 0) -> Tensor:
    """Compute rows `first` to `last` (exclusive) of resized maps.

    Args:
        maps: [C, n, w], the rows of `Interpolation.source_range` or more.
        interpolation: From rows to rows, of at most two taps.
        first: The first row of the result.
        last: The row after the last one.
        start: Which row of the whole map is the first of `maps`.

    Returns:
        [C, last - first, w].
    """
    if interpolation.identity:
        return maps[:, first - start : last - start]
    index = (interpolation.index[first:last] - start).to(maps.device)
    weight = interpolation.weight[first:last, 1:].to(maps.device)
    return torch.lerp(maps.index_select(1, index[:, 0]), maps.index_select(1, index[:, 1]), weight)


def resize_columns(maps: Tensor, width: int) -> Tensor:
    """Resize maps [C, n, w] to [C, n, width], bilinear."""
    if maps.shape[-1] == width:
        return maps
    return F.interpolate(maps[None], size=(maps.shape[1], width), mode="bilinear", align_corners=False)[0]
