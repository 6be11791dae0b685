"""The freeze plan: the layers that are well trained (small alpha) and stay as they are.

OpenTrans freezes the backbone layers whose alpha lies strictly below the median, and compares that with random layers
and with the layers of largest alpha (sec. 3.3, tab. 2).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ovstrans.errors import InputError, counted

RULES = "median, quantile:Q, count:K, threshold:A, random:K or largest"
"""The freeze rules, as a user writes them."""


@dataclass(frozen=True)
class FreezePlan:
    """The layers that do not train.

    Attributes:
        rule: The rule that chose them, as the user wrote it.
        threshold: The alpha that layers were compared with; None for rules that compare with none.
        frozen: Names of the frozen layers, in the order of the backbone.
    """

    rule: str
    threshold: float | None
    frozen: tuple[str, ...] = field(repr=False)

    def __repr__(self) -> str:
        threshold = "" if self.threshold is None else f", alpha {self.threshold:.4g}"
        return f"FreezePlan({self.rule}{threshold}: {counted(len(self.frozen), 'layer')} frozen)"


def check_rule(rule: str) -> None:
    """Check a freeze rule.

    Raises:
        InputError: It is not one of RULES, or its value is out of range.
    """
    _parse(rule)


def make_plan(alphas: Mapping[str, float | None], rule: str = "median", *, seed: int = 0) -> FreezePlan:
    """Choose the layers to freeze.

    The rules: `median` freezes layers whose alpha is strictly below the median. `quantile:Q`: strictly below the
    quantile Q in [0, 1], interpolated linearly. `threshold:A`: strictly below A. `count:K`: the K smallest.
    `random:K`: K layers drawn from `seed`. `largest`: strictly above the median.

    Args:
        alphas: Layer name to alpha, in the order of the backbone. A layer whose alpha is None always trains, and does
            not count for median, quantile or draw.
        rule: One of RULES.
        seed: Seed of `random:K`.

    Raises:
        InputError: The rule does not parse, or asks for more layers than there are.
    """
    kind, value = _parse(rule)
    usable = {name: alpha for name, alpha in alphas.items() if alpha is not None}
    if kind in ("count", "random") and value > len(usable):
        raise InputError(f"`freeze={rule}`: only {len(usable)} layers have an alpha to choose by; ask for fewer")
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
    return FreezePlan(rule, threshold, tuple(name for name in alphas if name in chosen))


def _parse(rule: str) -> tuple[str, float]:
    """Split a rule into its kind and its value: the quantile, the alpha or the count."""
    kind, colon, text = rule.partition(":")
    if rule in ("median", "largest"):
        return kind, 0.5
    if kind not in ("quantile", "count", "threshold", "random") or not colon:
        raise InputError(f"`freeze={rule}`: no such rule; use {RULES}")
    try:
        value = float(int(text)) if kind in ("count", "random") else float(text)
    except ValueError:
        needed = "a whole number" if kind in ("count", "random") else "a number"
        raise InputError(f"`freeze={rule}`: {text!r} is not {needed}; use {RULES}") from None
    if not math.isfinite(value) or value < 0 or (kind == "quantile" and value > 1):
        needed = "between 0 and 1" if kind == "quantile" else "at least 0"
        raise InputError(f"`freeze={rule}`: the value must be {needed}")
    return kind, value
