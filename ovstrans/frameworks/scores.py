"""Class scores of an image, made a band of rows at a time.

K full-size score maps of an image of 2,000 x 2,000 pixels and 847 classes would take 13 GB. What a
framework found is far smaller: masks of queries and what each is called, or scores at the head's own
resolution. A `Scores` keeps that, and makes the scores of some rows when they are asked for.

Shapes: `K` classes, `Q` queries, `h w` the head's map, `H W` image, `n` rows of it.
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
"""Numbers that are at hand at once: on a CPU few enough for its caches, on a GPU enough to keep it busy."""

COLUMNS = 64
"""Neighbouring columns that are resized together: they share most of what they are made of."""


class Best(NamedTuple):
    """The winning class of pixels. classes: int64 [n, W].  values: its score.  share: in 0..1, or None."""

    classes: Tensor
    values: Tensor
    share: Tensor | None


class Scores:
    """Class scores of one image.

    size: (H, W).  num_classes: K.  logits: whether a softmax over classes makes shares of them; else they
    are not negative, and a share is a part of their sum.
    """

    size: tuple[int, int]
    num_classes: int
    logits: bool
    device: torch.device

    def rows(self, first: int, last: int) -> Tensor:
        """Scores of rows [first, last), float32 [n, W, K]."""
        raise NotImplementedError

    def at(self, size: tuple[int, int], *, masks_first: bool = False) -> Scores:
        """The same at another size, bilinear.

        masks_first: where scores are sums over masks, the masks are resized and then summed; otherwise
        the sums are resized. Published configurations differ in it, and it decides some pixels.
        """
        return self if size == self.size else ResizedScores(self, size)

    def best(self, first: int, last: int, *, share: bool = False) -> Best:
        """The best class of each pixel in rows [first, last); of equal ones the lower."""
        return best_of(self.rows(first, last), logits=self.logits, share=share)

    @property
    def band(self) -> int:
        """How many rows to ask for at once."""
        return max(1, self._numbers // (self.size[1] * self.num_classes))

    def bands(self) -> Iterator[tuple[int, int]]:
        """All rows, in bands: from, to."""
        for first in range(0, self.size[0], self.band):
            yield first, min(first + self.band, self.size[0])

    @property
    def _numbers(self) -> int:
        return BAND_NUMBERS["cpu" if self.device.type == "cpu" else "cuda"]


def best_of(scores: Tensor, *, logits: bool, share: bool) -> Best:
    """`Best` of scores [*, K]; see `Scores` for `logits`."""
    values, classes = scores.max(dim=-1)
    if not share:
        return Best(classes, values, None)
    if logits:
        return Best(classes, values, (values - scores.logsumexp(dim=-1)).exp())
    total = scores.sum(dim=-1).clamp(min=torch.finfo(scores.dtype).tiny)  # 0 where nothing has a score
    return Best(classes, values, (values / total).clamp_(max=1))


def joined(parts: Sequence[Best], *, dim: int, shape: tuple[int, int] | None = None) -> Best:
    """Neighbouring parts as one, and of another shape."""

    def join(pieces: list[Tensor]) -> Tensor:
        whole = torch.cat(pieces, dim=dim)
        return whole if shape is None else whole.view(shape)

    share = [part.share for part in parts if part.share is not None]
    classes, values = join([part.classes for part in parts]), join([part.values for part in parts])
    return Best(classes, values, join(share) if share else None)


class LinearScores(Scores):
    """Scores that are weighted sums of a few scores of a smaller or larger map.

    A subclass gives `source`, and `down` and `across`, which resize it along its sides.
    """

    down: Axis
    across: Axis

    def source(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the map, float32 [n, w, K]."""
        raise NotImplementedError

    @property
    def band(self) -> int:
        return max(1, min(self._numbers // (COLUMNS * self.num_classes), COLUMNS))

    def rows(self, first: int, last: int) -> Tensor:
        return torch.cat(list(self._parts(first, last)), dim=1)

    def best(self, first: int, last: int, *, share: bool = False) -> Best:
        return joined([best_of(part, logits=self.logits, share=share) for part in self._parts(first, last)], dim=1)

    def _parts(self, first: int, last: int) -> Iterator[Tensor]:
        """Scores of rows [first, last), some columns at a time."""
        low, high, matrix = self.down.matrix(first, last, self.device)
        maps = self.source(low, high)
        if not self.down.identity:
            maps = (matrix @ maps.flatten(1)).unflatten(1, maps.shape[1:])
        step = max(COLUMNS, self._numbers // (self.num_classes * (last - first)))
        for left in range(0, len(self.across), step):
            right = min(left + step, len(self.across))
            if self.across.identity:
                yield maps[:, left:right]
                continue
            low, high, matrix = self.across.matrix(left, right, self.device)
            yield matrix @ maps[:, low:high]


class MapScores(LinearScores):
    """Scores [K, h, w] of a padded image, that are resized to its pixels.

    padded: its height and width; None where the map is not padded.  size: of the image itself, at the top left.
    """

    logits = True

    def __init__(self, maps: Tensor, size: tuple[int, int], padded: tuple[int, int] | None = None) -> None:
        self.size = size
        self.num_classes, self.device = int(maps.shape[0]), maps.device
        self.maps = maps.float().permute(1, 2, 0).contiguous()
        down, across = (int(side) for side in maps.shape[1:])
        padded = padded or (down, across)
        self.down = Axis.resize(down, padded[0]).crop(size[0])
        self.across = Axis.resize(across, padded[1]).crop(size[1])

    def at(self, size: tuple[int, int], *, masks_first: bool = False) -> Scores:
        found = copy.copy(self)
        found.size = size
        found.down = self.down.then(Axis.resize(len(self.down), size[0]))
        found.across = self.across.then(Axis.resize(len(self.across), size[1]))
        return found

    def source(self, first: int, last: int) -> Tensor:
        return self.maps[first:last]


class ResizedScores(LinearScores):
    """Scores at another size, bilinear."""

    def __init__(self, scores: Scores, size: tuple[int, int]) -> None:
        self.scores, self.size = scores, size
        self.num_classes, self.logits, self.device = scores.num_classes, scores.logits, scores.device
        self.down = Axis.resize(scores.size[0], size[0])
        self.across = Axis.resize(scores.size[1], size[1])

    @property
    def band(self) -> int:
        wide = max(self.size[1], self.scores.size[1]) * max(1, -(-self.scores.size[0] // self.size[0]))
        return max(1, self._numbers // (wide * self.num_classes))

    def source(self, first: int, last: int) -> Tensor:
        return self.scores.rows(first, last)


class FlippedScores(Scores):
    """Scores of an image's mirror image, brought back."""

    def __init__(self, scores: Scores) -> None:
        self.scores, self.size = scores, scores.size
        self.num_classes, self.logits, self.device = scores.num_classes, scores.logits, scores.device

    @property
    def band(self) -> int:
        return self.scores.band

    def at(self, size: tuple[int, int], *, masks_first: bool = False) -> Scores:
        return FlippedScores(self.scores.at(size, masks_first=masks_first))

    def rows(self, first: int, last: int) -> Tensor:
        return self.scores.rows(first, last).flip(1)


class MeanScores(Scores):
    """The mean of several scores of one image."""

    def __init__(self, scores: Sequence[Scores]) -> None:
        self.scores, self.size = scores, scores[0].size
        self.num_classes, self.logits, self.device = scores[0].num_classes, scores[0].logits, scores[0].device

    def at(self, size: tuple[int, int], *, masks_first: bool = False) -> Scores:
        return MeanScores([each.at(size, masks_first=masks_first) for each in self.scores])

    def rows(self, first: int, last: int) -> Tensor:
        total = self.scores[0].rows(first, last)
        for each in self.scores[1:]:
            total = total + each.rows(first, last)
        return total / len(self.scores)


class WindowScores(Scores):
    """Scores of an image from windows of it, the mean where they overlap.

    tops, lefts: where windows begin, ascending, each side covered.  window: their (height, width).
    look: from a top to the scores of its windows, one for each of `lefts`; called when a row of windows is first
    needed, and what it gave is dropped when rows have passed it, so that memory does not grow with the image.
    """

    def __init__(
        self,
        size: tuple[int, int],
        window: tuple[int, int],
        tops: Sequence[int],
        lefts: Sequence[int],
        look: Callable[[int], Sequence[Scores]],
    ) -> None:
        self.size, self.window, self.tops, self.lefts, self.look = size, window, tops, lefts, look
        self._seen: dict[int, Sequence[Scores]] = {}
        first = self._row(tops[0])[0]
        self.num_classes, self.logits, self.device = first.num_classes, first.logits, first.device

    def rows(self, first: int, last: int) -> Tensor:
        height, width = self.window
        for top in [top for top in self._seen if top + height <= first]:
            del self._seen[top]
        total = torch.zeros(last - first, self.size[1], self.num_classes, device=self.device)
        count = torch.zeros(last - first, self.size[1], 1, device=self.device)
        for top in self.tops:
            low, high = max(first, top), min(last, top + height)
            if low >= high:
                continue
            for left, scores in zip(self.lefts, self._row(top), strict=True):
                part = (slice(low - first, high - first), slice(left, left + width))
                total[part] += scores.rows(low - top, high - top)
                count[part] += 1
        return total / count

    def _row(self, top: int) -> Sequence[Scores]:
        if top not in self._seen:
            self._seen[top] = self.look(top)
        return self._seen[top]


@dataclass(frozen=True)
class Axis:
    """Linear interpolation along one side: each new place is a weighted sum of a few old ones.

    index: int64 [N, T], the old places.  weight: float32 [N, T].
    """

    index: Tensor
    weight: Tensor

    @classmethod
    def resize(cls, source: int, target: int) -> Axis:
        """From a length to another. The arithmetic is float32, as torch's own."""
        if source == target:
            return cls(torch.arange(source)[:, None], torch.ones(source, 1))
        place = ((torch.arange(target, dtype=torch.float32) + 0.5) * (source / target) - 0.5).clamp_(min=0)
        low = place.long().clamp_(max=source - 1)
        part = (place - low).clamp_(max=1)
        return cls(torch.stack([low, (low + 1).clamp_(max=source - 1)], 1), torch.stack([1 - part, part], 1))

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def identity(self) -> bool:
        """Whether every new place is the old one of the same number."""
        return self.index.shape[1] == 1 and torch.equal(self.index[:, 0], torch.arange(len(self)))

    def crop(self, length: int) -> Axis:
        """The first so many places."""
        return replace(self, index=self.index[:length], weight=self.weight[:length])

    def then(self, other: Axis) -> Axis:
        """This, and what `other` makes of its result, in one step."""
        if other.identity:
            return self
        index = self.index[other.index].flatten(1)
        return Axis(index, (self.weight[other.index] * other.weight[..., None]).flatten(1))

    def needs(self, first: int, last: int) -> tuple[int, int]:
        """The old places that new ones [first, last) are made of: from, to."""
        low, high = self.index[first:last].aminmax()
        return int(low), int(high) + 1

    def matrix(self, first: int, last: int, device: torch.device) -> tuple[int, int, Tensor]:
        """The old places needed (from, to) and the matrix [last - first, to - from] that makes the new ones of them."""
        low, high = self.needs(first, last)
        matrix = torch.zeros(last - first, high - low)
        matrix.scatter_add_(1, self.index[first:last] - low, self.weight[first:last])
        return low, high, matrix.to(device)


def resize_rows(maps: Tensor, axis: Axis, first: int, last: int, *, start: int = 0) -> Tensor:
    """Rows [first, last) of maps [C, n, w] along an axis of one step: [C, last - first, w].

    start: which row of the whole map `maps` begins with; `Axis.needs` says which it must hold.
    """
    if axis.identity:
        return maps[:, first - start : last - start]
    index = (axis.index[first:last] - start).to(maps.device)
    weight = axis.weight[first:last, 1:].to(maps.device)
    return torch.lerp(maps.index_select(1, index[:, 0]), maps.index_select(1, index[:, 1]), weight)


def resize_columns(maps: Tensor, width: int) -> Tensor:
    """Maps [C, n, w] at another width, [C, n, width]."""
    if maps.shape[-1] == width:
        return maps
    return F.interpolate(maps[None], size=(maps.shape[1], width), mode="bilinear", align_corners=False)[0]
