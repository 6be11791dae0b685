"""Fail when the cost of a model changes: a lock of costs, and a test that compares with it.

`python docs/examples/costs_lock.py` writes `costs.lock.json`; `pytest docs/examples/costs_lock.py` compares.
"""

# --8<-- [start:code]
import ovstrans

LOCK = "costs.lock.json"
TARGETS = ["deeplabv3-mini", "gkc-mini"]  # runs, checkpoints, frameworks, recipes or CLIP models


def test_costs_have_not_changed() -> None:
    """Count every target in the lock again, without weights, data or GPU."""
    changes = ovstrans.check_lock(LOCK).changes
    assert not changes, "; ".join(f"{change.target}: {change}" for change in changes)


if __name__ == "__main__":
    print(ovstrans.update_lock(LOCK, TARGETS))  # again after a change on purpose
# --8<-- [end:code]
