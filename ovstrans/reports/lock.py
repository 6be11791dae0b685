"""The lock: what targets cost, on record, so that a change of it cannot pass unseen.

    {"schema": "ovstrans.costs/1",
     "targets": {
      "RN50 --image-size 800x1216": {          the command line that counts it
       "target": "RN50", "image_size": [800, 1216], "batch": 1,
                                               and where given: model, mask, plan, set, vocabulary
       "params": {"trunk": {"total": ..., "nonzero": ..., "trainable": ...}, ...},
       "macs": {"trunk": {"dense": ..., "effective": ...}, ...},
       "other": {"pixel_decoder": {"deformable_sampling": ...},             sampling and resizing, apart
                 "text_encoder": {"once_per_vocabulary": ...}, ...}}}}

Everything is sorted, and nothing of it depends on the machine, on versions or on the names of modules
inside a component. Paths are relative to the lock's folder. MACs are by the `torch` counter, of the
whole batch.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ovstrans.costs.flops import count_flops, count_text_encoder
from ovstrans.costs.params import count_params
from ovstrans.errors import InputError
from ovstrans.files import read_json, write_json
from ovstrans.frameworks.base import Framework
from ovstrans.reports.request import Request

SCHEMA = "ovstrans.costs/1"
DEFAULT_LOCK = Path("costs.lock.json")

Counts = dict[str, dict[str, dict[str, int]]]
"""{"params": {component: {kind: count}}, "macs": the same, ...}, components without any count left out."""


@dataclass(frozen=True)
class Entry:
    """A target in the lock: what to count (paths as seen from here), and the counts on record."""

    request: Request
    counts: Counts


@dataclass(frozen=True)
class CostChange:
    """A count that differs: of `target` (its key in the lock) the `kind` ("dense MACs") of a component.

    was, now: None where the lock, or the target, has no such component."""

    target: str
    component: str
    kind: str
    was: int | None
    now: int | None

    def __str__(self) -> str:
        change = f" ({100 * (self.now - self.was) / self.was:+.4g} %)" if self.was and self.now is not None else ""
        return f"{self.component}: {self.kind} {_number(self.was)} -> {_number(self.now)}{change}"


@dataclass(frozen=True)
class Tolerance:
    """What a count may move: `share` of the recorded value, or `count` MACs or params, whichever is more."""

    share: float = 0.0
    count: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """Of `0.1%` (of the recorded value) or `1000` (so many); InputError for anything else."""
        match = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(%?)", text.strip())
        if match is None or not math.isfinite(float(match[1])):
            raise InputError(f"--tolerance {text}: write per cent of a count (0.1%), or so many MACs or params (1000)")
        number = float(match[1])
        return cls(share=number / 100) if match[2] else cls(count=number)

    def covers(self, was: int | None, now: int | None) -> bool:
        """Whether the two pass as equal; a component that came or went never does."""
        if was is None or now is None:
            return was == now
        return abs(now - was) <= max(self.share * was, self.count)


def count(request: Request) -> Counts:
    """Params and MACs of every component; needs no weights but those of a checkpoint.

    Raises as `Request.open`, `count_params` and `count_flops` do.
    """
    target = request.open()
    flops = count_flops(
        target.module, request.image_size, components=target.components, mask=target.mask, batch=request.batch
    )
    params = count_params(target.module, target.components, mask=target.mask, frozen=target.frozen)
    other: dict[str, dict[str, int]] = {}
    for each in flops.resampling_layers or ():
        part = other.setdefault(each.component, {})
        part[each.operation] = part.get(each.operation, 0) + each.macs
    if isinstance(target.module, Framework):
        other["text_encoder"] = {"once_per_vocabulary": count_text_encoder(target.module, target.model).macs}
    counts: Counts = {
        "params": {name: asdict(part) for name, part in params.components.items()},
        "macs": {name: asdict(part) for name, part in flops.components.items()},
        "other": other,
    }
    return {
        section: {name: dict(part) for name, part in sorted(parts.items()) if any(part.values())}
        for section, parts in counts.items()
    }


def compare(entry: Entry, now: Entry, tolerance: Tolerance = Tolerance()) -> list[CostChange]:
    """Every recorded count that is another now, and every new one; sections, components, kinds in order."""
    name = key(entry.request)
    moved = [
        CostChange(name, "input", what, old, new)
        for what, old, new in _inputs(entry.request, now.request)
        if old != new
    ]
    for section, component, kind in _union(entry.counts, now.counts):
        was = entry.counts.get(section, {}).get(component, {}).get(kind)
        new = now.counts.get(section, {}).get(component, {}).get(kind)
        if not tolerance.covers(was, new):
            unit = "params" if section == "params" else "MACs"
            moved.append(CostChange(name, component, f"{kind.replace('_', ' ')} {unit}", was, new))
    return moved


def key(request: Request) -> str:
    """The command line that counts it, which is its name in the lock; paths as they are in the request."""
    words = [request.name]
    for option in ("model", "mask", "plan", "vocabulary"):
        value = getattr(request, option)
        words += [f"--{option} {value}"] if value is not None else []
    words += [f"--set {setting}" for setting in request.settings]
    words += [f"--batch {request.batch}"] if request.batch != 1 else []
    height, width = request.image_size
    return " ".join([*words, f"--image-size {height}x{width}"])


def load_lock(path: Path | str) -> dict[str, Entry]:
    """The entries of a lock by key; InputError, naming the entry, where it is missing, broken or no lock."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such lock; make one with: ovstrans bench TARGET ... --update {path}")
    another = f"restore it, or take it away and make another: ovstrans bench TARGET ... --update {path}"
    try:
        table = read_json(path, SCHEMA).get("targets")
    except InputError as error:
        raise InputError(f"{error}; {another}") from error
    if not isinstance(table, dict):
        raise InputError(f"{path}: holds no targets; {another}")
    entries = {}
    for name, value in table.items():
        try:
            entries[name] = _entry(value, path.parent)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{path}: entry {name!r} is broken ({reason}); take it out, or restore it") from error
    return entries


def save_lock(path: Path | str, entries: Mapping[str, Entry] | list[Entry]) -> None:
    """Write a lock, atomically: equal entries give equal bytes."""
    path = Path(path)
    values = entries.values() if isinstance(entries, Mapping) else entries
    table = {}
    for entry in values:
        request = relative(entry.request, path.parent)
        table[key(request)] = {**_request_json(request), **entry.counts}
    write_json(path, {"schema": SCHEMA, "targets": dict(sorted(table.items()))})


def relative(request: Request, folder: Path) -> Request:
    """The request as a lock in `folder` writes it down: its paths from there, with slashes."""

    def seen(path: str | None) -> str | None:
        if path is None:
            return None
        return Path(os.path.relpath(path, folder)).as_posix()

    name = seen(request.name) if _is_path(request.name) else request.name
    vocabulary = request.vocabulary
    if vocabulary is not None and _is_path(vocabulary):
        vocabulary = seen(vocabulary)
    return replace(
        request, name=name or request.name, mask=seen(request.mask), plan=seen(request.plan), vocabulary=vocabulary
    )


def _is_path(name: str) -> bool:
    path = Path(name)
    return path.exists() or len(path.parts) > 1 or path.suffix in (".toml", ".txt", ".safetensors")


def _entry(value: Mapping[str, Any], folder: Path) -> Entry:
    def here(path: str | None) -> str | None:
        """A path in the lock as seen from the working directory; what is no path stays."""
        if path is None:
            return None
        found = folder / path
        return str(found) if found.exists() or _is_path(path) else path

    height, width = value["image_size"]
    request = Request(
        name=str(here(str(value["target"]))),
        image_size=(int(height), int(width)),
        batch=int(value.get("batch", 1)),
        model=value.get("model"),
        mask=here(value.get("mask")),
        plan=here(value.get("plan")),
        settings=tuple(str(setting) for setting in value.get("set", ())),
        vocabulary=here(value.get("vocabulary")),
    )
    counts = {
        section: {
            component: {kind: int(number) for kind, number in kinds.items()}
            for component, kinds in value[section].items()
        }
        for section in ("params", "macs", "other")
    }
    return Entry(request, counts)


def _request_json(request: Request) -> dict[str, Any]:
    entry: dict[str, Any] = {"target": request.name, "image_size": list(request.image_size), "batch": request.batch}
    options = {
        "model": request.model,
        "mask": request.mask,
        "plan": request.plan,
        "set": list(request.settings) or None,
        "vocabulary": request.vocabulary,
    }
    return entry | {name: value for name, value in options.items() if value is not None}


def _inputs(was: Request, now: Request) -> Iterator[tuple[str, int, int]]:
    """What goes in, as numbers: a count is of an image size, and two sizes are two things."""
    yield "batch", was.batch, now.batch
    yield "height", was.image_size[0], now.image_size[0]
    yield "width", was.image_size[1], now.image_size[1]


def _union(was: Counts, now: Counts) -> list[tuple[str, str, str]]:
    found = {
        (section, component, kind): None
        for counts in (was, now)
        for section, components in counts.items()
        for component, kinds in components.items()
        for kind in kinds
    }
    return list(found)


def _number(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"
