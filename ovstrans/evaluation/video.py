"""Video consistency: how steady predictions stay where the truth does not change.

In a window of n consecutive frames, the common area is the pixels whose true class is the same in all of
them. VC_n of the window is the part of it whose *predicted* class, too, is the same in all of them; mVC_n
is the mean over all windows of all videos (Miao et al., VSPW, CVPR 2021, sec. 4.2). The figures of the
literature come from the dataset's own evaluator (`VC_perclip.py`), whose particulars are kept:

- a steady prediction counts, right or wrong;
- an unlabelled pixel counts, as if the ignore label were a class;
- windows start at frames 0 to N - n - 1: the one that ends with the last of the N frames is left out, and
  a video of n frames or fewer with it;
- each window weighs the same, whatever its video; one without common area is left out.

Reported beside it is the stricter part of the common area that is labelled and predicted *right* in all
n frames, in the same windows.

Shapes: `H W` frame.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ovstrans.errors import MismatchError

WINDOWS = (8, 16)
"""The n of the literature."""


class VideoConsistency:
    """Adds up windows, frame by frame; memory is that of a few frames, whatever n and the video's length.

    Under torch.distributed a video must be whole on one rank: its windows need neighbouring frames.
    """

    def __init__(self, windows: Sequence[int] = WINDOWS) -> None:
        if not windows or min(windows) < 1:
            raise ValueError(f"windows of {', '.join(map(str, windows)) or 'no'} frames")
        self.windows = tuple(windows)
        self._steady: dict[int, list[float]] = {length: [] for length in self.windows}
        self._right: dict[int, list[float]] = {length: [] for length in self.windows}
        self._done: set[Hashable] = set()
        self._video: Hashable = None
        self._run: _Run | None = None

    def add(self, video: Hashable, prediction: Tensor, label: Tensor, ignore: int) -> None:
        """Take the next frame of a video: classes [H, W], integers; `ignore` is the label of no class.

        video: what tells it from others; its frames come one after another, in order.
        Raises ValueError for a video that was left for another before, MismatchError for frames of unequal size.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, label {tuple(label.shape)}")
        if self._run is None or video != self._video:
            if video in self._done:
                raise ValueError(f"video {video}: its frames are not in one piece; give them one after another")
            self._done.add(video)
            self._video, self._run = video, _Run(prediction, label, ignore)
            return
        if label.shape != self._run.label.shape:
            now, before = (f"{shape[1]}x{shape[0]}" for shape in (label.shape, self._run.label.shape))
            raise MismatchError(f"video {video}: a frame is {now} after one of {before}; all must be of one size")
        for length in self.windows:  # the window that the frame before ended: this one is not the video's first
            steady, right = self._run.shares(length)
            self._steady[length] += [] if steady is None else [steady]
            self._right[length] += [] if right is None else [right]
        self._run.extend(prediction, label)

    def all_reduce(self) -> None:
        """Join the windows of all ranks of torch.distributed, where it runs."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (self._steady, self._right, self._done))
        for length in self.windows:
            self._steady[length] = [value for steady, _, _ in parts for value in steady[length]]
            self._right[length] = [value for _, right, _ in parts for value in right[length]]
        self._done = set().union(*(done for _, _, done in parts))

    def report(self) -> dict[str, Any]:
        """The measures in percent; None where no window had a common area.

        Returns for each n mVC<n> (the published one), mVC<n>_right (the stricter one) and windows<n> (how many
        entered mVC<n>); videos, the number of them.
        """
        result: dict[str, Any] = {}
        for length in self.windows:
            result[f"mVC{length}"] = _mean(self._steady[length])
            result[f"mVC{length}_right"] = _mean(self._right[length])
            result[f"windows{length}"] = len(self._steady[length])
        return result | {"videos": len(self._done)}


class _Run:
    """For every pixel of the last frame, for how many frames truth and prediction have been as they are.

    Counting those spares keeping the frames: a window of n is steady where the count is n or more.
    """

    def __init__(self, prediction: Tensor, label: Tensor, ignore: int) -> None:
        self.prediction, self.label, self.ignore = _copy(prediction), _copy(label), ignore
        self.truth_since = torch.ones(label.shape, dtype=torch.int32, device=label.device)
        self.guess_since = torch.ones_like(self.truth_since)
        self.frames = 1

    def extend(self, prediction: Tensor, label: Tensor) -> None:
        """Go on by a frame."""
        prediction, label = _copy(prediction), _copy(label)
        self.truth_since.mul_(label == self.label).add_(1)
        self.guess_since.mul_(prediction == self.prediction).add_(1)
        self.prediction, self.label = prediction, label
        self.frames += 1

    def shares(self, length: int) -> tuple[float | None, float | None]:
        """Of the window that ends here: the part of its common area predicted steadily, and the part right."""
        if self.frames < length:
            return None, None
        common = self.truth_since >= length
        steady = common & (self.guess_since >= length)
        labelled = common & (self.label != self.ignore)
        right = steady & labelled & (self.prediction == self.label)
        area, labelled_area = int(common.count_nonzero()), int(labelled.count_nonzero())
        return (
            int(steady.count_nonzero()) / area if area else None,
            int(right.count_nonzero()) / labelled_area if labelled_area else None,
        )


def _copy(values: Tensor) -> Tensor:
    return values.to(torch.int32, copy=True)  # the caller may fill its tensor with the next frame


def _mean(shares: Sequence[float]) -> float | None:
    # exactly rounded, so that the order of the windows, and with it the number of ranks, makes no difference
    return 100 * math.fsum(shares) / len(shares) if shares else None
