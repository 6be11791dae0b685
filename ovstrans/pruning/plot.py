"""The density plot: how much of every layer a mask keeps."""

from __future__ import annotations

from pathlib import Path

from ovstrans import figures
from ovstrans.clip.backbone import stage_name
from ovstrans.masks.mask import Mask, density_rows


def plot_densities(path: Path | str, mask: Mask) -> Path:
    """Draw a bar a layer, its height the density, one colour a stage; returns the path."""
    rows = density_rows(mask)
    stages = list(dict.fromkeys(stage_name(name) for name, *_ in rows))
    figure = figures.new_figure(max(5.0, 1.6 + 0.2 * len(rows)), 4.2)
    axes = figure.add_subplot()
    for number, stage in enumerate(stages):
        bars = [(place, row[4]) for place, row in enumerate(rows) if stage_name(row[0]) == stage]
        color = figures.COLORS[number % len(figures.COLORS)]
        axes.bar([place for place, _ in bars], [100 * density for _, density in bars], color=color, width=0.78)
    axes.axhline(100 * mask.density, color=figures.INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    axes.set_xticks(range(len(rows)), [name for name, *_ in rows], rotation=90)
    axes.set_xlim(-0.7, len(rows) - 0.3)
    axes.set_ylabel("weights kept (%)", fontsize=9)
    kept = f"{mask.kept:,} of {mask.total:,} weights kept ({100 * mask.density:.4g} %, dashed)"
    axes.set_title(f"{mask.model or 'mask'}, {mask.method}: {kept}", fontsize=10, loc="left")
    figures.tidy(axes)
    axes.tick_params(axis="x", labelsize=7, length=0)
    return figures.save_figure(figure, path)
