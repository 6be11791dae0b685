"""`ovstrans inspect`: what a file of ours is, from what it was made, and whether it is intact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovstrans.cli import common

if TYPE_CHECKING:
    from ovstrans.interop.describe import FileDescription


def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Masks, checkpoints, weights, alpha files, reports, run folders."),
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Recompute what the file claims: hashes, zeros, shapes, the plan.")
    ] = False,
    json: common.Json = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Say what files are, from what they were made, and whether they are intact.

    The structure is always checked in full, and that no value is NaN or infinite. Exit status: 2 if a file is broken
    or unknown, 3 if --verify finds that one does not hold what it claims.
    """
    common.start(quiet=quiet, debug=debug)
    import ovstrans
    from ovstrans import console
    from ovstrans.errors import OvstransError

    common.check_json(json, force=force)
    entries: list[dict[str, Any]] = []
    failure: OvstransError | None = None
    for path in paths:
        try:
            found = ovstrans.inspect(path, verify=verify)
        except OvstransError as error:
            if failure is not None:
                console.error(common.in_flags(str(failure)))
            failure = error
            entries.append({"path": str(path), "intact": False, "error": str(error)})
            continue
        for description in found.flatten():
            entries.append(description.to_json())
            if json != "-":
                _show(description)
    common.emit_json(json, {"schema": "ovstrans.inspect/1", "files": entries}, force=force)
    if failure is not None:
        raise failure


def _show(description: FileDescription) -> None:
    from ovstrans import console

    console.show(str(description))
    if description.rows:
        rows = [
            [_cell(label, value) for label, value in zip(description.columns, row, strict=True)]
            for row in description.rows
        ]
        optional = ("eigenvalues", "D", "weights", "shape")
        console.table("", description.columns, rows, words=("warning",), optional=optional)


def _cell(label: str, value: Any) -> str:
    from ovstrans.interop.describe import format_value

    if label == "shape":
        return "x".join(map(str, value))
    return f"{value:.2%}" if label == "density" or label.endswith(" error") else format_value(value)
