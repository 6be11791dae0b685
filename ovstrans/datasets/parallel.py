"""Working on many images at once, in threads: decoding, looking up and encoding all let go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

Result = TypeVar("Result")


class Counter(Protocol):
    """What is told of every image that is done; `console.Progress` is one."""

    def advance(self, steps: int = 1) -> None: ...


def map_in_threads(
    work: Callable[[int], Result], indices: Iterable[int], counter: Counter, *, workers: int = 0
) -> list[Result]:
    """The results of `work` for each index, in order.

    counter: told of every one.  workers: how many at once; 0 for one a core.  After Ctrl-C what is at hand is
    finished and the rest left.
    """
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    results = []
    try:
        for result in pool.map(work, indices):
            counter.advance()
            results.append(result)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return results
