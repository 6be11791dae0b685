"""What `ovstrans bench` shows: the table of all targets for the terminal, as Markdown or as CSV."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovstrans.cli import common
from ovstrans.cli.optional import BARE

_DENOMINATORS = {"present": "that occur in the ground truth (present)", "union": "that occur or are predicted (union)"}
_MOST_WITH_CHANGES = 4
"""Columns of a terminal's table that have room for the differences too."""


@dataclass(frozen=True)
class Outputs:
    """Where the table goes as Markdown and as CSV: a path, "-" for stdout, None for nowhere.

    json: where the JSON goes; there is no other text on stdout where anything of this is "-".
    """

    markdown: str | None
    csv: str | None
    json: str | None

    @classmethod
    def checked(cls, *, markdown: str | None, csv: str | None, json: str | None, force: bool) -> Outputs:
        """InputError, before any work, where a file could not be written, or two would share stdout."""
        from ovstrans import files
        from ovstrans.errors import InputError

        common.check_json(json, force=force)
        for option, destination in (("--markdown", markdown), ("--csv", csv)):
            if destination is not None and destination != BARE:
                files.check_output(destination, force=force, option=option.removeprefix("--"))
        printed = [name for name, to in (("--markdown", markdown), ("--csv", csv), ("--json", json)) if to == BARE]
        if len(printed) > 1:
            raise InputError(f"{' and '.join(printed)}: one at a time on stdout; give a file for the others")
        return cls(markdown, csv, json)

    @property
    def to_terminal(self) -> bool:
        """Whether stdout is free for the table that people read."""
        return BARE not in (self.markdown, self.csv, self.json)

    def write(
        self,
        columns: Sequence[str],
        lines: Sequence[Sequence[str]],
        plain: Sequence[Sequence[str]],
        words: Collection[str] = (),
    ) -> None:
        """A table as Markdown (columns, lines) and its plain values as CSV, where they were asked for.

        words: columns of text, beside the first.
        """
        from ovstrans.reports.tables import csv_text, markdown

        if self.markdown is not None:
            _put(self.markdown, markdown(columns, lines, words))
        if self.csv is not None:
            _put(self.csv, csv_text(plain))

    def show(self, reports: Sequence[Mapping[str, Any]], *, per_layer: bool) -> None:
        """Reports side by side, and every layer where asked for."""
        from ovstrans import console
        from ovstrans.reports.tables import LAYER_COLUMNS, csv_lines, layer_rows, rows

        columns, lines = rows(reports)
        self.write(columns, lines, csv_lines(reports))
        if not self.to_terminal:
            return
        if len(reports) > _MOST_WITH_CHANGES:
            columns, lines = rows(reports, changes=False)
        console.table("bench", columns, lines, caption=_caption(reports))
        for report in reports if per_layer else []:
            console.table(f"layers of {report['target']['name']}", LAYER_COLUMNS, layer_rows(report))


def _caption(reports: Sequence[Mapping[str, Any]]) -> str:
    flops = reports[0]["flops"]
    height, width = flops["image_size"]
    images = common.counted(flops["batch"], "image")
    caption = f"{images} of {height}x{width}, counter {flops['counter']}; 1 MAC = 2 FLOPs"
    entries = [entry for report in reports for entry in report.get("datasets", {}).values()]
    ways = sorted({str(entry["denominator"]) for entry in entries if "denominator" in entry})
    said = " or ".join(_DENOMINATORS.get(way, way) for way in ways)
    return f"{caption}; mIoU over classes {said}" if said else caption


def _put(destination: str, text: str) -> None:
    from ovstrans import console, files

    if destination == BARE:
        console.show(text)
    else:
        files.write_text(Path(destination), text)
        console.say(f"wrote {destination}")
