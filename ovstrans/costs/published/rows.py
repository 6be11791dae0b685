"""The costs that OpenTrans prints (Tables 1 and 2), computed anew by the conventions that gave them.

Each row also has the true cost of the same model, by the counter used everywhere else. Values come from modules on meta
tensors and from rules; they need no weights and no data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ovstrans.costs.fvcore_rules import count_fvcore_rules
from ovstrans.costs.published.counts import Counts, Key, count_entries
from ovstrans.costs.published.figures import (
    BATCH,
    DEEPLAB,
    DENSITY,
    FCCLIP,
    FIGURES,
    FROZEN,
    HAN,
    IMAGE_SIZE,
    OPEN,
    STEPS,
    Figure,
)
from ovstrans.costs.published.truth import count_true_costs

SCHEMA = "ovstrans.paper/1"
TOLERANCE = 0.002
"""Largest relative difference at which a figure counts as reproduced."""

SCALES = {"params": (1e6, "M"), "FLOPs": (1e9, "G"), "training FLOPs": (1e15, "P")}
"""Quantity to the unit that the paper prints it in: divisor and suffix."""


@dataclass(frozen=True)
class PaperRow:
    """A printed figure beside the computed one.

    Attributes:
        figure: The printed figure.
        ours: The value by its convention, in the same unit; None if there is nothing to compute.
        reason: Why the figure is not reproduced, else "".
        true: The true cost, in the same unit; None if it depends on unpublished layers.
        true_of: What the true cost is of.
    """

    figure: Figure
    ours: float | None
    reason: str
    true: float | None
    true_of: str

    @property
    def difference(self) -> float | None:
        """Difference of ours from the printed figure, relative to it."""
        return None if self.ours is None else self.ours / self.figure.value - 1

    @property
    def reproduced(self) -> bool:
        """True if the convention holds and gives the figure to within `TOLERANCE`."""
        return self.figure.grade != OPEN and self.difference is not None and abs(self.difference) <= TOLERANCE

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `paper_json`."""
        figure = self.figure
        return {
            "table": figure.table,
            "row": figure.row,
            "variant": figure.variant,
            "quantity": figure.quantity,
            "unit": figure.unit,
            "published": figure.value,
            "ours": self.ours,
            "difference": self.difference,
            "reproduced": self.reproduced,
            "grade": figure.grade,
            "convention": figure.convention,
            "reason": self.reason,
            "true": self.true,
            "true_of": self.true_of,
        }


def paper_rows() -> list[PaperRow]:
    """Compute a row for each of `FIGURES`, in their order."""
    counts = Counts()
    ours = {**_params(counts), **_flops(counts), **_training(counts)}
    true = count_true_costs(counts)
    reasons = _reasons(counts)
    rows = []
    for figure in FIGURES:
        key = (figure.row, figure.variant, figure.quantity)
        value, of = true.get(key, (None, ""))
        rows.append(PaperRow(figure, ours.get(key), reasons.get(key, ""), value, of))
    return rows


def paper_json(rows: Iterable[PaperRow]) -> dict[str, Any]:
    """Return the JSON of the table; differences are relative to the printed figure."""
    return {
        "schema": SCHEMA,
        "source": "arXiv 2404.07448v3",
        "tolerance": TOLERANCE,
        "rows": [row.to_json() for row in rows],
    }


PAPER_WORDS = ("grade", "convention")
"""Columns of `paper_table` that hold text, besides the first."""


def paper_table(rows: Iterable[PaperRow]) -> tuple[list[str], list[list[str]]]:
    """Return columns and lines of the table for people; `paper_notes` explains them."""
    columns = ["", "published", "computed", "difference", "grade", "true count", "convention"]
    return columns, [
        [
            row.figure.key,
            _shown(row.figure, row.figure.value),
            _shown(row.figure, row.ours),
            "-" if row.difference is None else f"{100 * row.difference:+.2f} %",
            row.figure.grade if row.reproduced else OPEN,
            _shown(row.figure, row.true),
            row.figure.convention,
        ]
        for row in rows
    ]


def paper_notes(rows: Sequence[PaperRow]) -> list[str]:
    """Return notes to the table: why figures are not reproduced, and what the true counts are of."""
    reasons = [f"{row.figure.key}: not reproduced: {row.reason}" for row in rows if not row.reproduced]
    meanings: dict[str, list[str]] = {}
    for row in rows:
        if row.true is not None:
            meanings.setdefault(row.true_of, []).append(row.figure.key)
    return [*reasons, *(f"true count of {'; '.join(keys)}: {words}" for words, keys in meanings.items())]


def _shown(figure: Figure, value: float | None) -> str:
    """Format a value in the paper's unit, with one digit more than the paper has for values that it does not print."""
    scale, unit = SCALES[figure.quantity]
    digits = 1 if value == figure.value else 2
    return "-" if value is None else f"{value / scale:,.{digits}f}{unit}"


def _params(counts: Counts) -> dict[Key, float]:
    dense = {
        HAN: counts.backbone_params + count_entries(*counts.han_head_parts),
        DEEPLAB: counts.backbone_params + counts.deeplab_thop.params,
        FCCLIP: counts.fcclip_thop.params,
    }
    return _with_pruned("params", dense, counts.backbone_params)


def _flops(counts: Counts) -> dict[Key, float]:
    parts = {str(number): part for number, part in enumerate(counts.han_head_parts)}
    by_fvcore = count_fvcore_rules(counts.han.module, IMAGE_SIZE, components=parts)
    dense = {
        HAN: counts.backbone_thop + sum(by_fvcore[name] for name in parts),
        DEEPLAB: counts.backbone_thop + counts.deeplab_thop.macs,
        FCCLIP: counts.fcclip_thop.macs,
    }
    return _with_pruned("FLOPs", dense, counts.backbone_thop)


def _with_pruned(quantity: str, dense: Mapping[str, int], backbone: int) -> dict[Key, float]:
    values: dict[Key, float] = {}
    for row, value in dense.items():
        values[row, "dense", quantity] = value
        values[row, "pruned", quantity] = value - (1 - DENSITY) * backbone
    return values


def _training(counts: Counts) -> dict[Key, float]:
    images = BATCH * STEPS
    full = 3 * counts.crop_thop.macs
    frozen = sum(counts.layers[name] for name in FROZEN)
    both = full - 2 * (1 - DENSITY) * counts.backbone_ptflops - DENSITY * frozen
    values = {"full": full, "alpha": full - frozen, "alpha + pruning": both}
    return {(HAN, variant, "training FLOPs"): value * images for variant, value in values.items()}


def _reasons(counts: Counts) -> dict[Key, str]:
    full, backbone = 3 * counts.crop_thop.macs, sum(counts.layers.values())
    share = len(FROZEN) / len(counts.layers)
    others = [macs for name, macs in counts.layers.items() if name not in FROZEN]
    low, high = (full - sum(others) + median for median in (min(others), max(others)))
    return {
        (HAN, "pruned", "FLOPs"): (
            f"{_drop(HAN)} less than dense as printed, where the other rows lose {_drop(DEEPLAB)} and {_drop(FCCLIP)}, "
            f"{(1 - DENSITY) * counts.backbone_thop / 1e9:.1f}G by their convention; no rule gives all three"
        ),
        (HAN, "random", "training FLOPs"): (
            f"which layers were drawn is not published; over all draws the mean is {_peta(full - share * backbone)}"
        ),
        (HAN, "alpha*", "training FLOPs"): (
            "which layers were frozen is not published; if those of alpha are the ones in a comment of the released "
            f"code, it is from {_peta(low)} to {_peta(high)}, depending on which layer is the median"
        ),
        (HAN, "alpha", "training FLOPs"): (
            "which layers were frozen is not published; our value is of those in a comment of the released code, "
            "which nothing ties to this row"
        ),
    }


def _peta(macs_of_an_image: float) -> str:
    return f"{macs_of_an_image * BATCH * STEPS / 1e15:.1f}P"


def _drop(row: str) -> str:
    """Format what pruning saves in a row as printed."""
    printed = {figure.variant: figure.value for figure in FIGURES if (figure.row, figure.quantity) == (row, "FLOPs")}
    return f"{(printed['dense'] - printed['pruned']) / 1e9:.1f}G"
