"""Fail when a model gets more expensive: a lock of costs, and a test that compares with it.

python docs/examples/costs_lock.py writes `costs.lock.json`; pytest docs/examples/costs_lock.py compares.
"""

from pathlib import Path

# --8<-- [start:code]
from ovstrans.reports.lock import check_lock, update_lock

LOCK = Path("costs.lock.json")
TARGETS = ["deeplabv3-mini", "gkc-mini"]  # runs, checkpoints, frameworks, recipes or CLIP models


def test_costs_have_not_changed() -> None:
    """Count every target in the lock again, without weights, data or GPU."""
    assert not check_lock(LOCK), "after a change on purpose: update_lock(LOCK)"


if __name__ == "__main__":
    update_lock(LOCK, TARGETS)
# --8<-- [end:code]
