"""`ovstrans bench --paper`: the costs that OpenTrans prints, computed anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ovstrans.cli import common

if TYPE_CHECKING:
    from ovstrans.cli.bench_show import Outputs


def run(names: Sequence[str], outputs: Outputs) -> None:
    """Show the table; InputError where targets are named beside, which have no part in it."""
    from ovstrans import console
    from ovstrans.costs.published.rows import PAPER_WORDS, paper_json, paper_notes, paper_rows, paper_table
    from ovstrans.errors import InputError

    if names:
        raise InputError(f"--paper: counts the paper's own models, not {names[0]}; leave out one of the two")
    rows = paper_rows()
    columns, lines = paper_table(rows)
    table = paper_json(rows)
    plain = [list(table["rows"][0]), *([_plain(value) for value in row.values()] for row in table["rows"])]
    outputs.write(columns, lines, plain, PAPER_WORDS)
    if outputs.to_terminal:
        console.table("costs in OpenTrans' Tables 1 and 2; 1 of its FLOPs is 1 MAC", columns, lines, words=PAPER_WORDS)
        for note in paper_notes(rows):
            console.show(f"- {note}")
    common.emit_json(outputs.json, table, force=True)


def _plain(value: object) -> str:
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)
