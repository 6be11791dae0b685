"""Video consistency (VC): how steady predictions are where the ground truth does not change.

In a window of n consecutive frames, the common area is the pixels whose true class is the same in all n frames. VC_n
of the window is the share of the common area whose *predicted* class, too, is the same in all frames. mVC_n is the
mean over all windows of all videos (Miao et al., VSPW, CVPR 2021, sec. 4.2). The figures of the literature come from
the dataset's own evaluator (`VC_perclip.py`), so its particulars are kept:

- a steady prediction counts, right or wrong;
- an unlabelled pixel counts, as if the ignore label were a class;
- windows start at frames 0 to N - n - 1: the last of N - n + 1 possible windows is left out, and so is a video of n
  frames or fewer;
- each window has the same weight, whatever its video; a window without common area is left out.

Reported beside it is a stricter measure in the same windows: the share of the labelled common area that is predicted
*right* in all n frames.

Shapes: `H W` frame.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ovstrans.errors import MismatchError

WINDOWS = (8, 16)
"""The window lengths n of the literature, in frames."""


@dataclass(frozen=True)
class WindowConsistency:
    """Consistency over all windows of one length.

    Attributes:
        mvc: mVC_n as published, in percent; None if no window has a common area.
        mvc_right: The stricter measure, in percent.
        windows: Number of windows that enter `mvc`.
    """

    mvc: float | None
    mvc_right: float | None
    windows: int


@dataclass(frozen=True)
class VideoResult:
    """Video consistency on a dataset.

    Attributes:
        windows: Consistency by window length in frames.
        videos: Number of videos.
    """

    windows: Mapping[int, WindowConsistency]
    videos: int

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a report: for each n mVC<n>, mVC<n>_right and windows<n>, and videos."""
        values: dict[str, Any] = {}
        for length, found in self.windows.items():
            values[f"mVC{length}"] = found.mvc
            values[f"mVC{length}_right"] = found.mvc_right
            values[f"windows{length}"] = found.windows
        return {**values, "videos": self.videos}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> VideoResult:
        """Return the result that `to_json` described; KeyError or ValueError if it is something else."""
        lengths = [int(key.removeprefix("windows")) for key in value if key.startswith("windows")]
        windows = {
            length: WindowConsistency(value[f"mVC{length}"], value[f"mVC{length}_right"], value[f"windows{length}"])
            for length in lengths
        }
        return cls(windows, value["videos"])


class VideoConsistency:
    """Accumulates windows frame by frame.

    Memory is that of a few frames, whatever the window length and the video's. Under torch.distributed all frames of
    a video must be on one rank, since a window needs neighbouring frames.

    Args:
        windows: Window lengths n, in frames.
    """

    def __init__(self, windows: Sequence[int] = WINDOWS) -> None:
        if not windows or min(windows) < 1:
            raise ValueError(f"windows of {', '.join(map(str, windows)) or 'no'} frames")
        self.windows = tuple(windows)
        self._steady: dict[int, list[float]] = {length: [] for length in self.windows}
        self._right: dict[int, list[float]] = {length: [] for length in self.windows}
        self._seen: set[Hashable] = set()
        self._video: Hashable = None
        self._history: _History | None = None

    def add(self, video: Hashable, prediction: Tensor, label: Tensor, ignore: int) -> None:
        """Add the next frame of a video.

        Args:
            video: Identifies the video; its frames must come one after another, in order.
            prediction: Predicted classes, integers [H, W].
            label: True classes, integers [H, W].
            ignore: Label of pixels without a class.

        Raises:
            ValueError: If another video came in between, or the shapes differ.
            MismatchError: If the frames of a video differ in size.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, label {tuple(label.shape)}")
        if self._history is None or video != self._video:
            if video in self._seen:
                raise ValueError(f"video {video}: its frames are not in one piece; give them one after another")
            self._seen.add(video)
            self._video, self._history = video, _History(prediction, label, ignore)
            return
        if label.shape != self._history.label.shape:
            now, before = (f"{shape[1]}x{shape[0]}" for shape in (label.shape, self._history.label.shape))
            raise MismatchError(f"video {video}: a frame is {now} after one of {before}; all must be of one size")
        for length in self.windows:  # ends at the frame before this one: a video's very last window is left out
            steady, right = self._history.shares(length)
            self._steady[length] += [] if steady is None else [steady]
            self._right[length] += [] if right is None else [right]
        self._history.append(prediction, label)

    def all_reduce(self) -> None:
        """Join the windows of all ranks if torch.distributed is initialized."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (self._steady, self._right, self._seen))
        for length in self.windows:
            self._steady[length] = [value for steady, _, _ in parts for value in steady[length]]
            self._right[length] = [value for _, right, _ in parts for value in right[length]]
        self._seen = set().union(*(seen for _, _, seen in parts))

    def result(self) -> VideoResult:
        """Return the consistency over all windows so far."""
        windows = {
            length: WindowConsistency(
                _mean(self._steady[length]), _mean(self._right[length]), len(self._steady[length])
            )
            for length in self.windows
        }
        return VideoResult(windows, len(self._seen))


class _History:
    """Counts, for every pixel of the last frame, for how many frames truth and prediction have stayed the same.

    The counts make it unnecessary to keep the frames: in a window of n frames a pixel is steady if its count is at
    least n.
    """

    def __init__(self, prediction: Tensor, label: Tensor, ignore: int) -> None:
        self.prediction, self.label, self.ignore = _copy(prediction), _copy(label), ignore
        self.label_frames = torch.ones(label.shape, dtype=torch.int32, device=label.device)
        self.prediction_frames = torch.ones_like(self.label_frames)
        self.frames = 1

    def append(self, prediction: Tensor, label: Tensor) -> None:
        """Take the next frame."""
        prediction, label = _copy(prediction), _copy(label)
        self.label_frames.mul_(label == self.label).add_(1)
        self.prediction_frames.mul_(prediction == self.prediction).add_(1)
        self.prediction, self.label = prediction, label
        self.frames += 1

    def shares(self, length: int) -> tuple[float | None, float | None]:
        """Return the steady share of the common area and the right share of its labelled part.

        Both are of the window of `length` frames that ends with the last frame; None without such an area.
        """
        if self.frames < length:
            return None, None
        common = self.label_frames >= length
        steady = common & (self.prediction_frames >= length)
        labelled = common & (self.label != self.ignore)
        right = steady & labelled & (self.prediction == self.label)
        area, labelled_area = int(common.count_nonzero()), int(labelled.count_nonzero())
        return (
            int(steady.count_nonzero()) / area if area else None,
            int(right.count_nonzero()) / labelled_area if labelled_area else None,
        )


def _copy(values: Tensor) -> Tensor:
    return values.to(torch.int32, copy=True)  # the caller may reuse its tensor for the next frame


def _mean(shares: Sequence[float]) -> float | None:
    # exactly rounded, so that neither the order of the windows nor the number of ranks matters
    return 100 * math.fsum(shares) / len(shares) if shares else None
