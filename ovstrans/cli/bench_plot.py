"""The pictures of `ovstrans bench --plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovstrans.cli.optional import BARE


def check_plot(plot: str | None, *, force: bool) -> Path | None:
    """The one file that --plot names, or None; InputError, before any work, where it could not be written."""
    from ovstrans import files
    from ovstrans.figures import picture_path

    if plot is None or plot == BARE:
        return None
    return files.check_output(picture_path(plot), force=force, option="plot")


def save_plots(reports: Sequence[Mapping[str, Any]], folder: Path, page_path: Path | None) -> None:
    """Draw what the reports have the figures for: into `folder` one by one, or all on one page."""
    from ovstrans import console
    from ovstrans.figures import save_figure
    from ovstrans.reports.plots import page, pictures

    parts = pictures(reports)
    drawn = {part.name for part in parts}
    if "miou" not in drawn:
        console.say("no mIoU to draw over MACs: name runs, checkpoints, or reports of some")
    if not parts:
        console.warn("--plot: nothing to draw in these reports; write them with `bench --per-layer --json`")
        return
    if page_path is not None:
        console.say(f"wrote {save_figure(page(parts), page_path)}")
        return
    for part in parts:
        console.say(f"wrote {save_figure(part.figure(), folder / f'{part.name}.png')}")
