"""Class scores of an image, made a band of rows at a time.

K full-size score maps of an image of 2,000 x 2,000 pixels and 847 classes would take 13 GB. What a
framework found is far smaller: masks of queries and what each is called, or scores at the head's own
resolution. A `Scores` keeps that, and makes the scores of some rows when they are asked for.

Shapes: `K` classes, `Q` queries, `h w` the head's map, `H W` image, `n` rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ovstrans.data.sample import Segment
from ovstrans.frameworks.queries import panoptic_from
from ovstrans.frameworks.resample import resize_columns, resize_rows, rows_needed

BAND_NUMBERS = {"cpu": 2**22, "cuda": 2**26}
"""Numbers that are at hand at once: on a CPU few enough for its caches, on a GPU enough to keep it busy."""


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
    return Best(classes, values, _part(values, scores.sum(dim=-1)))


class MapScores(Scores):
    """Scores [K, h, w] of a padded image, that are resized to its pixels.

    padded: its height and width; None where the map is not padded.  size: of the image itself, at the top left.
    """

    logits = True

    def __init__(self, maps: Tensor, size: tuple[int, int], padded: tuple[int, int] | None = None) -> None:
        self.maps, self.image, self.size = maps.float(), size, size
        self.padded = padded or (int(maps.shape[-2]), int(maps.shape[-1]))
        self.num_classes, self.device = int(maps.shape[0]), maps.device

    def at(self, size: tuple[int, int], *, masks_first: bool = False) -> Scores:
        found = MapScores(self.maps, self.image, self.padded)
        found.size = size
        return found

    def rows(self, first: int, last: int) -> Tensor:
        low, high = rows_needed(first, last, self.image[0], self.size[0])
        maps = resize_rows(self.maps, low, high, int(self.maps.shape[1]), self.padded[0])
        maps = resize_rows(maps, first, last, self.image[0], self.size[0], start=low)
        # Classes last in memory: resizing runs along them, and so does the search for the best.
        maps = maps[None].contiguous(memory_format=torch.channels_last)[0]
        maps = resize_columns(maps, self.padded[1])[..., : self.image[1]]
        return resize_columns(maps, self.size[1]).permute(1, 2, 0)


class QueryScores(Scores):
    """Sums over queries of class probability times mask probability (Mask2Former's semantic inference).

    probabilities: [Q, K + 1], the void last, which gets no score.  masks: logits [Q, h, w] of the padded image.
    size: of the image itself, at the top left.
    """

    logits = False

    def __init__(
        self, probabilities: Tensor, masks: Tensor, size: tuple[int, int], padded: tuple[int, int] | None = None
    ) -> None:
        self.probabilities, self.masks = probabilities.float(), masks.float()
        self.image, self.size = size, size
        self.padded = padded or (int(masks.shape[-2]), int(masks.shape[-1]))
        self.num_classes, self.device = int(probabilities.shape[1]) - 1, masks.device
        self.masks_first = False

    def at(self, size: tuple[int, int], *, masks_first: bool = False) -> QueryScores:
        found = QueryScores(self.probabilities, self.masks, self.image, self.padded)
        found.size, found.masks_first = size, masks_first
        return found

    @property
    def band(self) -> int:
        wide = max(self.size[1], self.padded[1]) * max(1, self.size[0] and -(-self.image[0] // self.size[0]))
        return max(1, self._numbers // (wide * len(self.masks)))

    def inside(self, first: int, last: int, queries: Tensor | None = None) -> Tensor:
        """Mask probabilities [Q, n, W] of rows [first, last), of all queries or of those given."""
        low, high = rows_needed(first, last, self.image[0], self.size[0])
        masks = self.masks if queries is None else self.masks[queries]
        masks = resize_rows(masks, low, high, int(masks.shape[1]), self.padded[0])
        if self.masks_first:
            masks = resize_rows(masks, first, last, self.image[0], self.size[0], start=low)
        masks = resize_columns(masks, self.padded[1])[..., : self.image[1]]
        if self.masks_first:
            return resize_columns(masks, self.size[1]).sigmoid()
        # Resizing is linear and so is the sum over queries: resized Q probabilities sum to resized K scores.
        inside = resize_rows(masks.sigmoid(), first, last, self.image[0], self.size[0], start=low)
        return resize_columns(inside, self.size[1])

    def rows(self, first: int, last: int) -> Tensor:
        inside = self.inside(first, last).flatten(1).t()
        return (inside @ self.probabilities[:, :-1]).unflatten(0, (last - first, self.size[1]))

    def best(self, first: int, last: int, *, share: bool = False) -> Best:
        inside = self.inside(first, last).flatten(1)
        named = self.probabilities[:, :-1].contiguous()
        step = max(1, self._numbers // self.num_classes)
        parts = [
            best_of(inside[:, start : start + step].t() @ named, logits=False, share=False)
            for start in range(0, inside.shape[1], step)
        ]
        shape = (last - first, self.size[1])
        classes = torch.cat([part.classes for part in parts]).view(shape)
        values = torch.cat([part.values for part in parts]).view(shape)
        if not share:
            return Best(classes, values, None)
        return Best(classes, values, _part(values, (named.sum(dim=1) @ inside).view(shape)))

    def panoptic(
        self, things: Collection[int], *, object_threshold: float, overlap_threshold: float
    ) -> tuple[Tensor, list[Segment]]:
        """Segment map int32 [H, W] and segments, by masks that are resized first; see `queries.panoptic`."""
        found = self.at(self.size, masks_first=True)

        def bands(queries: Tensor) -> Iterable[Tensor]:
            return (found.inside(first, last, queries) for first, last in found.bands())

        return panoptic_from(
            self.probabilities,
            bands,
            self.size,
            things,
            object_threshold=object_threshold,
            overlap_threshold=overlap_threshold,
        )


class ResizedScores(Scores):
    """Scores at another size, bilinear."""

    def __init__(self, scores: Scores, size: tuple[int, int]) -> None:
        self.scores, self.size = scores, size
        self.num_classes, self.logits, self.device = scores.num_classes, scores.logits, scores.device

    @property
    def band(self) -> int:
        wide = max(self.size[1], self.scores.size[1]) * max(1, -(-self.scores.size[0] // self.size[0]))
        return max(1, self._numbers // (wide * self.num_classes))

    def rows(self, first: int, last: int) -> Tensor:
        height = self.scores.size[0]
        low, high = rows_needed(first, last, height, self.size[0])
        maps = self.scores.rows(low, high).permute(2, 0, 1)
        maps = resize_rows(maps, first, last, height, self.size[0], start=low)
        maps = maps[None].contiguous(memory_format=torch.channels_last)[0]
        return resize_columns(maps, self.size[1]).permute(1, 2, 0)


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


def _part(values: Tensor, total: Tensor) -> Tensor:
    """values / total, 0 where nothing has a score."""
    return (values / total.clamp(min=torch.finfo(total.dtype).tiny)).clamp_(max=1)
