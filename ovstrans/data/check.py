"""Looking for whatever is wrong with a dataset: every file opened, every size compared, every label read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from ovstrans.data.images import read_image
from ovstrans.data.published_dataset import PublishedDataset
from ovstrans.data.sample import Dataset
from ovstrans.errors import InputError
from ovstrans.files import existing_file


class Counter(Protocol):
    """What is told of every image that was looked at; `console.Progress` is one."""

    def advance(self, steps: int = 1) -> None: ...


def faults(dataset: Dataset, counter: Counter, *, workers: int = 0) -> list[str]:
    """A message with the path for every fault there is: missing, broken, of another size, with illegal labels.

    dataset: a published one opened with `complete=False`, or another.  workers: images at once; 0 for one a core.
    """
    missing = list(dataset.found.missing) if isinstance(dataset, PublishedDataset) else []
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    found: list[str] = []
    try:
        for several in pool.map(lambda index: list(_faults_of(dataset, index)), range(len(dataset))):
            counter.advance()
            found += several
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return list(dict.fromkeys(missing + found))


def _faults_of(dataset: Dataset, index: int) -> Iterator[str]:
    """What is wrong with one image and its files, but for those that are not there."""
    if not isinstance(dataset, PublishedDataset):
        try:
            dataset[index]
        except InputError as error:
            yield str(error)
        return
    pair = dataset.found.pairs[index]
    paths = [path for path in (pair.image, pair.label, pair.panoptic) if path is not None]
    if all(Path(path).exists() for path in paths):
        try:
            dataset[index]
            return
        except InputError as error:
            yield str(error)
    # Reading stops at the first fault of an image; each file has its own say.
    checks: list[tuple[Path, Callable[[Path], Any]]] = [(pair.image, read_image)]
    encoding = dataset.found.layout.encoding
    if pair.label is not None and encoding is not None:
        checks.append((pair.label, encoding.read))
    for path, read in checks:
        if Path(path).exists():
            try:
                existing_file(path)
                read(Path(path))
            except InputError as error:
                yield str(error)
