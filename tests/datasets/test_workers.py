"""Workers that read ahead need neither shared memory nor many open files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ovstrans.datasets.augment import Augment
from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.loading import SampleBatch, stream_batches
from ovstrans.datasets.segments import WithSegments


def batches(workers: int, number: int = 3) -> list[SampleBatch]:
    dataset = open_dataset("scenes", split="val")
    transform = WithSegments(Augment().transform(48, dataset.ignore), dataset.ignore, region_size=32)
    stream = stream_batches(dataset, batch_size=4, transform=transform, workers=workers, segments=True)
    return [next(stream) for _ in range(number)]


def test_batches_are_the_same_with_workers() -> None:
    for alone, ahead in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone.images, ahead.images) and alone.names == ahead.names
        assert alone.labels is not None and ahead.labels is not None and torch.equal(alone.labels, ahead.labels)
        for ours, theirs in zip(alone.segments or (), ahead.segments or (), strict=True):
            assert torch.equal(ours.masks, theirs.masks) and torch.equal(ours.classes, theirs.classes)
            assert ours.regions is not None and theirs.regions is not None and torch.equal(ours.regions, theirs.regions)


def test_no_tensor_goes_through_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which a container has 64 MB by default; beyond that, workers die or hang."""

    def refuse(*_: Any) -> Callable[..., Any]:
        raise OSError("no shared memory")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuse)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", refuse)
    assert len(batches(2)) == 3


FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
from tests.datasets.test_workers import batches
print(len(batches({workers}, 5)))
"""


@pytest.mark.parametrize(("hard", "workers"), [(256, 8), (64, 2)])
def test_few_open_files(hard: int, workers: int) -> None:
    code = FEW_FILES.format(hard=hard, workers=workers)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "5\n", done.stderr


def test_too_few_open_files_are_said_at_the_start() -> None:
    code = FEW_FILES.format(hard=64, workers=32)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    words = "InputError: `data.workers=32`: takes about 304 open files, the system allows 64 (ulimit -Hn)"
    assert words in done.stderr
