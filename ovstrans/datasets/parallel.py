"""Work on many images at once, in threads. Decoding and encoding of images release Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ovstrans.progress import ProgressReporter

Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[int], Result], indices: Sequence[int], reporter: ProgressReporter, *, workers: int = 0
) -> list[Result]:
    """Call a function for each index in threads.

    After an interrupt the calls that have begun are completed and the others cancelled.

    Args:
        function: The function.
        indices: Its arguments.
        reporter: Advanced by one for each result.
        workers: Number of threads; 0 for one per core.

    Returns:
        The results, in the order of `indices`.
    """
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    results = []
    try:
        for result in pool.map(function, indices):
            reporter.advance()
            results.append(result)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return results
