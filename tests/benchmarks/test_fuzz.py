"""A share of the fuzzing of every reader; `python -m tests.benchmarks.fuzz all` does more."""

from __future__ import annotations

import pytest

from tests.benchmarks.fuzz.__main__ import fuzz
from tests.benchmarks.fuzz.readers import READERS

SLOW = {"restore": 4, "checkpoint": 40, "state": 40, "pruned": 40}


@pytest.mark.parametrize("name", READERS)
def test_only_our_errors_come_out(name: str) -> None:
    assert list(fuzz(name, SLOW.get(name, 80), seed=2)) == []
