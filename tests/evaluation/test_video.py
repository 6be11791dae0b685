"""Video consistency against whole clips compared frame with frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovstrans.errors import MismatchError
from ovstrans.evaluation.video import VideoConsistency

IGNORE = 255


def clip(rng: np.random.Generator, frames: int, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Truth that seldom changes and predictions that follow it by and large, [N, H, W] each."""
    shape = (frames, 4, 6)
    truth = rng.integers(0, k, shape[1:])[None].repeat(frames, axis=0)
    for frame in np.flatnonzero(rng.random(frames) < 0.3):
        truth[frame:, rng.integers(0, 4), rng.integers(0, 6)] = rng.integers(0, k)
    truth[:, 0] = IGNORE
    truth[rng.random(shape) < 0.02] = IGNORE
    guess = np.where(truth == IGNORE, rng.integers(0, k, shape[1:]), truth)
    guess[:, 3] = (guess[:, 3] + 1) % k  # steadily wrong
    return truth, np.where(rng.random(shape) < 0.05, rng.integers(0, k, shape), guess)


def brute_force(clips: list[tuple[np.ndarray, np.ndarray]], n: int) -> tuple[float | None, float | None, int]:
    """mVC of the dataset's evaluator, the part that is right, and the number of windows."""
    steady, right = [], []
    for truth, guess in clips:
        for first in range(len(truth) - n):
            window, guessed = truth[first : first + n], guess[first : first + n]
            common = np.ptp(window, axis=0) == 0
            labelled = common & (window[0] != IGNORE)
            if common.any():
                steady.append((common & (np.ptp(guessed, axis=0) == 0)).sum() / common.sum())
            if labelled.any():
                right.append((labelled & (window == guessed).all(axis=0)).sum() / labelled.sum())
    return (
        100 * float(np.mean(steady)) if steady else None,
        100 * float(np.mean(right)) if right else None,
        len(steady),
    )


def added(clips: list[tuple[np.ndarray, np.ndarray]], windows: tuple[int, ...] = (8, 16)) -> VideoConsistency:
    """One buffer for all frames, as a caller may have."""
    consistency = VideoConsistency(windows)
    for number, (truth, guess) in enumerate(clips):
        frame, label = torch.empty(truth.shape[1:], dtype=torch.int64), torch.empty(truth.shape[1:], dtype=torch.uint8)
        for t in range(len(truth)):
            frame.copy_(torch.from_numpy(guess[t]))
            label.copy_(torch.from_numpy(truth[t]))
            consistency.add(f"video {number}", frame, label, IGNORE)
    return consistency


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    frames=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    windows=st.sampled_from([(8, 16), (1, 2), (5,), (23, 3)]),
)
def test_windows_are_those_of_whole_clips(seed: int, frames: list[int], windows: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    clips = [clip(rng, count) for count in frames]
    report = added(clips, windows).result().to_json()
    assert report["videos"] == len(clips)
    for n in windows:
        steady, right, count = brute_force(clips, n)
        assert report[f"windows{n}"] == count
        assert report[f"mVC{n}"] == (pytest.approx(steady) if steady is not None else None)
        assert report[f"mVC{n}_right"] == (pytest.approx(right) if right is not None else None)


def test_the_figures_of_the_dataset_s_evaluator() -> None:
    """What VC_perclip.py gave for these frames."""
    rows, columns = np.mgrid[:9, :12]
    time = np.arange(20)[:, None, None]
    truth = (rows // 3 + (columns + time // 6) // 4) % 5
    guess = np.where((rows * 12 + columns + 7 * time) % 97 == 0, 3, truth)
    report = added([(truth, guess)]).result().to_json()
    assert (report["mVC8"], report["mVC16"]) == pytest.approx((93.87860082304528, 89.35185185185185))
    assert (report["windows8"], report["windows16"]) == (12, 4)


def test_steady_is_not_right() -> None:
    truth = np.zeros((10, 2, 3), dtype=np.int64)
    truth[:, 0, 0] = IGNORE
    guess = np.ones_like(truth)
    guess[:, 1] = 0
    flickering = guess.copy()
    flickering[5] += 1
    assert added([(truth, guess)]).result().to_json()["mVC8"] == 100.0
    assert added([(truth, guess)]).result().to_json()["mVC8_right"] == pytest.approx(100 * 3 / 5)
    assert added([(truth, flickering)]).result().to_json()["mVC8"] == 0.0
    assert added([(truth, truth)]).result().to_json() == {
        "mVC8": 100.0, "mVC8_right": 100.0, "windows8": 2, "mVC16": None, "mVC16_right": None, "windows16": 0,
        "videos": 1,
    }  # fmt: skip


def test_videos_do_not_run_into_each_other() -> None:
    rng = np.random.default_rng(3)
    clips = [clip(rng, 12), clip(rng, 20), clip(rng, 9)]
    assert added(clips).result().to_json() == added(clips[::-1]).result().to_json()
    halves = [(truth[:6], guess[:6]) for truth, guess in clips] + [(truth[6:12], guess[6:12]) for truth, guess in clips]
    assert added(halves).result().to_json()["windows8"] == 0


def test_refusals() -> None:
    frame = torch.zeros(2, 2, dtype=torch.int64)
    consistency = VideoConsistency()
    consistency.add("a", frame, frame, IGNORE)
    consistency.add("b", frame, frame, IGNORE)
    with pytest.raises(ValueError, match="video a: its frames are not in one piece"):
        consistency.add("a", frame, frame, IGNORE)
    with pytest.raises(MismatchError, match="video b: a frame is 2x3 after one of 2x2"):
        consistency.add("b", torch.zeros(3, 2), torch.zeros(3, 2), IGNORE)
    with pytest.raises(ValueError, match="prediction is"):
        consistency.add("b", torch.zeros(3, 2), frame, IGNORE)
    with pytest.raises(ValueError, match="windows of 0 frames"):
        VideoConsistency((0,))
