"""`ovstrans bench --check` and `--update`: the lock of costs, checked and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovstrans.cli import common
from ovstrans.cli.bench_options import PAPER_SIZE
from ovstrans.cli.optional import BARE

if TYPE_CHECKING:
    from ovstrans.reports.lock import CostChange, Entry, Tolerance


def run(
    names: Sequence[str],
    asked: Mapping[str, Any],
    check: Path | None,
    update: str | None,
    *,
    tolerance: str,
    json: str | None,
    force: bool,
) -> None:
    """Check the lock, or with `update` (a path, or "-" for that of --check) write it.

    names: the targets in question, none for all.  asked: what the command line says otherwise than the
    lock, fields of `Request`. Raises CheckFailed where a count moved.
    """
    from ovstrans.errors import InputError
    from ovstrans.reports.lock import DEFAULT_LOCK, Tolerance

    allowed = Tolerance.parse(tolerance)
    common.check_json(json, force=force)
    path = check or DEFAULT_LOCK
    if update is not None and update != BARE:
        if check is not None and Path(update) != check:
            raise InputError(f"--update {update}: --check names another lock, {check}; name one")
        path = Path(update)
    if update is None:
        _check(path, names, asked, allowed, json)
    else:
        _update(path, names, asked, json)


def _check(path: Path, names: Sequence[str], asked: Mapping[str, Any], allowed: Tolerance, json: str | None) -> None:
    from ovstrans import console
    from ovstrans.errors import CheckFailed, InputError
    from ovstrans.reports.lock import compare, key, load_lock

    entries = load_lock(path)
    for name in names:
        if not any(_is_called(entry, name) for entry in entries.values()):
            raise InputError(f"{name}: is not in {path}; add it with: ovstrans bench {name} --update {path}")
    chosen = [entry for entry in entries.values() if not names or any(_is_called(entry, name) for name in names)]
    if not chosen:
        raise InputError(f"{path}: holds no target; add some with: ovstrans bench TARGET ... --update {path}")
    moved = [
        difference
        for entry, now in zip(chosen, _count(path, chosen, asked), strict=True)
        for difference in compare(entry, now, allowed)
    ]
    if json != BARE:
        _show(moved)
    common.emit_json(json, _as_json(path, [key(entry.request) for entry in chosen], moved), force=True)
    if moved:
        targets = len({difference.target for difference in moved})
        counts = common.counted(len(moved), "count")
        raise CheckFailed(
            f"{path}: {counts} of {targets} of {len(chosen)} targets moved; "
            f"if that is meant: ovstrans bench --check {path} --update"
        )
    console.say(f"{path}: {len(chosen)} targets cost what they did")


def _update(path: Path, names: Sequence[str], asked: Mapping[str, Any], json: str | None) -> None:
    from ovstrans import console, files
    from ovstrans.errors import InputError
    from ovstrans.reports.lock import compare, key, load_lock, save_lock
    from ovstrans.reports.request import Request

    files.check_output(path, force=True, option="update")
    entries = load_lock(path) if path.exists() or not names else {}
    known = {key(entry.request): entry for entry in entries.values()}
    if names:
        requests = [Request(name, **{"image_size": PAPER_SIZE, **asked}) for name in names]
        kept = [entry for name, entry in known.items() if name not in {key(request) for request in requests}]
    else:
        requests, kept = [replace(entry.request, **asked) for entry in entries.values()], []
    if not requests:
        raise InputError(f"{path}: holds no target; add some with: ovstrans bench TARGET ... --update {path}")
    counted = _counted(path, requests)
    save_lock(path, [*kept, *counted])
    old = list(entries.values()) if not names else [known.get(key(request)) for request in requests]
    moved = [
        difference for was, now in zip(old, counted, strict=True) if was is not None for difference in compare(was, now)
    ]
    if json != BARE:
        _show(moved)
    common.emit_json(json, _as_json(path, [key(entry.request) for entry in counted], moved), force=True)
    console.say(f"wrote {path}: {len(kept) + len(counted)} targets, {len(moved)} counts moved")


def _count(path: Path, entries: Sequence[Entry], asked: Mapping[str, Any]) -> list[Entry]:
    return _counted(path, [replace(entry.request, **asked) for entry in entries])


def _counted(path: Path, requests: Sequence[Any]) -> list[Entry]:
    """What the targets cost now; an error says which of them it is about."""
    from ovstrans import console
    from ovstrans.errors import InputError
    from ovstrans.reports.lock import Entry, count, key

    entries = []
    with console.progress(f"count {path}", len(requests), unit="targets") as progress:
        for request in requests:
            try:
                entries.append(Entry(request, count(request)))
            except InputError as error:
                raise InputError(f"{path}: {key(request)}: {error}") from error
            progress.advance()
    return entries


def _is_called(entry: Entry, name: str) -> bool:
    """Whether a target is meant by `name`: by its own, as a path or as its key in the lock."""
    from ovstrans.reports.lock import key

    return name in (entry.request.name, key(entry.request)) or Path(name) == Path(entry.request.name)


def _show(moved: Sequence[CostChange]) -> None:
    from ovstrans import console

    target = ""
    for difference in moved:
        if difference.target != target:
            target = difference.target
            console.show(target)
        console.show(f"  {difference}")


def _as_json(path: Path, targets: Sequence[str], moved: Sequence[CostChange]) -> dict[str, Any]:
    return {
        "schema": "ovstrans.check/1",
        "lock": str(path),
        "targets": list(targets),
        "moved": [vars(difference) for difference in moved],
    }
