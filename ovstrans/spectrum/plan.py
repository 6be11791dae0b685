"""The freeze plan: which layers are well trained (small alpha) and stay, and which train.

OpenTrans freezes the layers of the trunk whose alpha lies strictly below the median, and compares
that with random layers and with the layers of largest alpha (sec. 3.3, tab. 2).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ovstrans.errors import InputError

RULES = "median, quantile:Q, count:K, threshold:A, random:K or largest"
"""The freeze rules, as a user writes them."""


@dataclass(frozen=True)
class Plan:
    """Which layers do not train.

    rule: as written by the user.  threshold: the alpha that the rule compares with; None for rules
    that compare with none.  frozen: layer names, in the order of the trunk.
    """

    rule: str
    threshold: float | None
    frozen: tuple[str, ...]


def check_rule(rule: str) -> None:
    """Raise InputError unless `rule` is one of RULES with a sound value."""
    _parse(rule)


def make_plan(alphas: Mapping[str, float | None], rule: str = "median", *, seed: int = 0) -> Plan:
    """Choose the layers to freeze among those of `alphas` (name to alpha, in trunk order).

    median: alpha strictly below the median.  quantile:Q: strictly below the quantile Q in [0, 1]
    (linear interpolation).  threshold:A: strictly below A.  count:K: the K smallest.  random:K: any K,
    drawn from `seed`.  largest: strictly above the median.  A layer whose alpha is None always trains
    and does not count. Raises InputError for a rule that does not parse or asks for too many layers.
    """
    kind, value = _parse(rule)
    usable = {name: alpha for name, alpha in alphas.items() if alpha is not None}
    if kind in ("count", "random") and value > len(usable):
        raise InputError(f"--freeze {rule}: only {len(usable)} layers have an alpha to choose by; ask for fewer")
    threshold: float | None = None
    if kind == "count":
        # sorted() is stable: of equal alphas the layer that comes first is frozen first.
        chosen = set(sorted(usable, key=lambda name: usable[name])[: int(value)])
    elif kind == "random":
        chosen = set(random.Random(seed).sample(list(usable), int(value)))
    elif not usable:
        chosen = set()
    else:
        threshold = value if kind == "threshold" else float(np.quantile(list(usable.values()), value))
        sign = -1 if kind == "largest" else 1
        chosen = {name for name, alpha in usable.items() if sign * alpha < sign * threshold}
    return Plan(rule, threshold, tuple(name for name in alphas if name in chosen))


def _parse(rule: str) -> tuple[str, float]:
    """(kind, value): the quantile, the alpha or the count that the rule goes by."""
    kind, colon, text = rule.partition(":")
    if rule in ("median", "largest"):
        return kind, 0.5
    if kind not in ("quantile", "count", "threshold", "random") or not colon:
        raise InputError(f"--freeze {rule}: no such rule; use {RULES}")
    try:
        value = float(int(text)) if kind in ("count", "random") else float(text)
    except ValueError:
        needed = "a whole number" if kind in ("count", "random") else "a number"
        raise InputError(f"--freeze {rule}: {text!r} is not {needed}; use {RULES}") from None
    if not math.isfinite(value) or value < 0 or (kind == "quantile" and value > 1):
        needed = "between 0 and 1" if kind == "quantile" else "at least 0"
        raise InputError(f"--freeze {rule}: the value must be {needed}")
    return kind, value
