"""The lock: what targets cost, on record, so that a change of it cannot pass unseen.

    {"schema": "ovstrans.costs/1",
     "targets": {
      "RN50 --image-size 800x1216": {          the command line that counts it
       "target": "RN50", "image_size": [800, 1216], "batch": 1,
                                               and if given: model, mask, plan, set, vocabulary
       "params": {"trunk": {"total": ..., "nonzero": ..., "trainable": ...}, ...},
       "macs": {"trunk": {"dense": ..., "effective": ...}, ...},
       "other": {"pixel_decoder": {"deformable_sampling": ...},             resampling, apart
                 "text_encoder": {"once_per_vocabulary": ...}, ...}}}}

Everything is sorted, and nothing of it depends on the machine, on versions or on the names of modules inside a
component. Paths are relative to the lock's folder. MACs are by the `torch` counter, of the whole batch.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ovstrans.costs.flops import count_flops, count_text_encoder
from ovstrans.costs.params import count_params
from ovstrans.costs.target import PAPER_SIZE, Target, load_target, parse_size
from ovstrans.errors import InputError, MissingFileError, counted
from ovstrans.files import check_output, read_json, write_json
from ovstrans.frameworks.base import Framework
from ovstrans.progress import ProgressCallback, ProgressReporter

SCHEMA = "ovstrans.costs/1"
CHECK_SCHEMA = "ovstrans.check/1"
DEFAULT_LOCK = Path("costs.lock.json")

Counts = dict[str, dict[str, dict[str, int]]]
"""{"params": {component: {kind: count}}, "macs": the same, "other": the same}; components without counts left out."""


@dataclass(frozen=True)
class TargetSpec:
    """A target as a lock names it: what `bench` takes, with paths as text.

    Attributes:
        name: Run, checkpoint, framework, recipe or open_clip model.
        image_size: Height and width.
        batch: Number of images at once.
        model: CLIP of a framework or recipe.
        mask: Mask file.
        plan: File with a freeze plan.
        settings: `KEY=VALUE` pairs.
        vocabulary: Name or file of the class names.
    """

    name: str
    image_size: tuple[int, int]
    batch: int = 1
    model: str | None = None
    mask: str | None = None
    plan: str | None = None
    settings: tuple[str, ...] = ()
    vocabulary: str | None = None

    @property
    def key(self) -> str:
        """The command line that counts the target, which is its name in the lock."""
        words = [self.name]
        for option in ("model", "mask", "plan", "vocabulary"):
            value = getattr(self, option)
            words += [f"--{option} {value}"] if value is not None else []
        words += [f"--set {setting}" for setting in self.settings]
        words += [f"--batch {self.batch}"] if self.batch != 1 else []
        height, width = self.image_size
        return " ".join([*words, f"--image-size {height}x{width}"])

    def load(self) -> Target:
        """Load the target, or build it on meta tensors; raises as `load_target` does."""
        return load_target(
            self.name,
            model=self.model,
            mask=self.mask,
            plan=self.plan,
            vocabulary=self.vocabulary,
            settings=self.settings,
        )


@dataclass(frozen=True)
class LockEntry:
    """A target and its counts.

    Attributes:
        spec: The target, with paths as seen from the working directory.
        counts: Its counts.
    """

    spec: TargetSpec
    counts: Counts


@dataclass(frozen=True)
class CostChange:
    """A count that changed.

    Attributes:
        target: Key of the target in the lock.
        component: Component that the count is of; "input" if the input itself changed.
        kind: What is counted, such as "dense MACs".
        was: Recorded count; None if the lock has no such component.
        now: Present count; None if the target has no such component.
    """

    target: str
    component: str
    kind: str
    was: int | None
    now: int | None

    def __str__(self) -> str:
        change = f" ({100 * (self.now - self.was) / self.was:+.4g} %)" if self.was and self.now is not None else ""
        return f"{self.component}: {self.kind} {_number(self.was)} -> {_number(self.now)}{change}"


@dataclass(frozen=True)
class LockResult:
    """Result of a check or an update of a lock.

    Attributes:
        lock: Path of the lock.
        targets: Keys of the targets that were counted.
        changes: The counts that changed.
        total: Number of targets in the lock.
    """

    lock: Path
    targets: tuple[str, ...]
    changes: tuple[CostChange, ...]
    total: int

    @property
    def changed_targets(self) -> tuple[str, ...]:
        """Keys of the targets with a changed count."""
        return tuple(dict.fromkeys(change.target for change in self.changes))

    def to_json(self) -> dict[str, Any]:
        """Return what `bench --check --json` writes."""
        return {
            "schema": CHECK_SCHEMA,
            "lock": str(self.lock),
            "targets": list(self.targets),
            "moved": [asdict(change) for change in self.changes],
        }

    def __repr__(self) -> str:
        lines = [
            f"LockResult({self.lock}: {counted(len(self.changes), 'change')} in {counted(len(self.targets), 'target')})"
        ]
        lines += [f"  {change.target}: {change}" for change in self.changes[:8]]
        return "\n".join([*lines, *(["  ..."] if len(self.changes) > 8 else [])])


@dataclass(frozen=True)
class Tolerance:
    """Tolerated change of a count: by `share` of the recorded value or by `count` MACs or params, whichever is more.

    Attributes:
        share: Fraction of the recorded value.
        count: Number of MACs or params.
    """

    share: float = 0.0
    count: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """Parse `0.1%` (of the recorded value) or `1000` (a number of MACs or params).

        Raises:
            InputError: If it is something else.
        """
        match = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(%?)", text.strip())
        if match is None or not math.isfinite(float(match[1])):
            raise InputError(
                f"`tolerance={text}`: write per cent of a count (0.1%), or a number of MACs or params (1000)"
            )
        number = float(match[1])
        return cls(share=number / 100) if match[2] else cls(count=number)

    def covers(self, was: int | None, now: int | None) -> bool:
        """Return whether two counts pass as equal; a component that appears or disappears never does."""
        if was is None or now is None:
            return was == now
        return abs(now - was) <= max(self.share * was, self.count)


def check_lock(
    path: Path | str = DEFAULT_LOCK,
    targets: Sequence[str] = (),
    *,
    tolerance: Tolerance | str = "0",
    progress: ProgressCallback | None = None,
    **options: Any,
) -> LockResult:
    """Count the targets of a lock and compare them with the record.

    Args:
        path: The lock.
        targets: Targets to check, by name, path or key; all if empty.
        tolerance: How far a count may change, as "0.1%" of the recorded value or "1000" MACs or params.
        progress: Told of the targets counted.
        **options: Fields of `TargetSpec` that replace those of the lock: `image_size`, `batch`, `model`, `mask`,
            `plan`, `settings`, `vocabulary`.

    Returns:
        The changes; empty if no count changed.

    Raises:
        InputError: If the lock is missing or broken, does not hold a target, or a target cannot be counted.
    """
    path = Path(path)
    allowed = Tolerance.parse(tolerance) if isinstance(tolerance, str) else tolerance
    entries = load_lock(path)
    for name in targets:
        if not any(_is_called(entry.spec, name) for entry in entries.values()):
            raise InputError(f"{name}: is not in {path}; add it with: ovstrans bench {name} --update {path}")
    chosen = [
        entry for entry in entries.values() if not targets or any(_is_called(entry.spec, name) for name in targets)
    ]
    if not chosen:
        raise InputError(f"{path}: holds no target; add some with: ovstrans bench TARGET ... --update {path}")
    present = _count_all(path, [replace(entry.spec, **_as_text(options)) for entry in chosen], progress)
    changes = [
        change for entry, now in zip(chosen, present, strict=True) for change in compare_entries(entry, now, allowed)
    ]
    return LockResult(path, tuple(entry.spec.key for entry in chosen), tuple(changes), len(entries))


def update_lock(
    path: Path | str = DEFAULT_LOCK,
    targets: Sequence[str] = (),
    *,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> LockResult:
    """Count targets and write the counts into a lock.

    Args:
        path: The lock; made if it does not exist and targets are given.
        targets: Targets to count, which are added if they are new; all targets of the lock if empty.
        progress: Told of the targets counted.
        **options: As in `check_lock`.

    Returns:
        The changes of counts that were on record.

    Raises:
        InputError: If the lock is broken or cannot be written, or a target cannot be counted.
    """
    path = check_output(path, force=True, option="update")
    given = _as_text(options)
    entries = load_lock(path) if path.exists() or not targets else {}
    known = {entry.spec.key: entry for entry in entries.values()}
    if targets:
        specs = [TargetSpec(name, **{"image_size": PAPER_SIZE, **given}) for name in targets]
        kept = [entry for key, entry in known.items() if key not in {spec.key for spec in specs}]
        before = [known.get(spec.key) for spec in specs]
    else:
        specs, kept = [replace(entry.spec, **given) for entry in entries.values()], []
        before = list(entries.values())
    if not specs:
        raise InputError(f"{path}: holds no target; add some with: ovstrans bench TARGET ... --update {path}")
    counted = _count_all(path, specs, progress)
    save_lock(path, [*kept, *counted])
    changes = [
        change
        for was, now in zip(before, counted, strict=True)
        if was is not None
        for change in compare_entries(was, now)
    ]
    return LockResult(path, tuple(spec.key for spec in specs), tuple(changes), len(kept) + len(counted))


def count_entry(spec: TargetSpec) -> LockEntry:
    """Count parameters and MACs of every component; only a checkpoint needs weights.

    Raises:
        InputError: If the target does not exist or does not fit.
    """
    target = spec.load()
    flops = count_flops(
        target.module, spec.image_size, components=target.components, mask=target.mask, batch=spec.batch
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
    present = {
        section: {name: dict(part) for name, part in sorted(parts.items()) if any(part.values())}
        for section, parts in counts.items()
    }
    return LockEntry(spec, present)


def compare_entries(entry: LockEntry, now: LockEntry, tolerance: Tolerance = Tolerance()) -> list[CostChange]:
    """Return every recorded count that has changed, and every new one, in the order of the lock."""
    key = entry.spec.key
    changes = [
        CostChange(key, "input", kind, old, new) for kind, old, new in _inputs(entry.spec, now.spec) if old != new
    ]
    for section, component, kind in _union(entry.counts, now.counts):
        was = entry.counts.get(section, {}).get(component, {}).get(kind)
        new = now.counts.get(section, {}).get(component, {}).get(kind)
        if not tolerance.covers(was, new):
            unit = "params" if section == "params" else "MACs"
            changes.append(CostChange(key, component, f"{kind.replace('_', ' ')} {unit}", was, new))
    return changes


def load_lock(path: Path | str) -> dict[str, LockEntry]:
    """Read the entries of a lock by their keys.

    Raises:
        InputError: If it is missing, broken or no lock; the message names the entry.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path}: no such lock; make one with: ovstrans bench TARGET ... --update {path}")
    another = f"restore it, or take it away and make another: ovstrans bench TARGET ... --update {path}"
    try:
        table = read_json(path, SCHEMA).get("targets")
    except InputError as error:
        raise InputError(f"{error}; {another}") from error
    if not isinstance(table, dict):
        raise InputError(f"{path}: holds no targets; {another}")
    entries = {}
    for key, value in table.items():
        try:
            entries[key] = _parse_entry(value, path.parent)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{path}: entry {key!r} is broken ({reason}); take it out, or restore it") from error
    return entries


def save_lock(path: Path | str, entries: Mapping[str, LockEntry] | Sequence[LockEntry]) -> None:
    """Write a lock, atomically: equal entries give equal bytes."""
    path = Path(path)
    table = {}
    for entry in entries.values() if isinstance(entries, Mapping) else entries:
        spec = make_relative(entry.spec, path.parent)
        table[spec.key] = {**_spec_to_json(spec), **entry.counts}
    write_json(path, {"schema": SCHEMA, "targets": dict(sorted(table.items()))})


def make_relative(spec: TargetSpec, folder: Path) -> TargetSpec:
    """Return a spec as a lock in `folder` records it: paths relative to the folder, with slashes."""

    def relative(path: str | None) -> str | None:
        return None if path is None else Path(os.path.relpath(path, folder)).as_posix()

    name, vocabulary = spec.name, spec.vocabulary
    if _is_path(name):
        name = relative(name) or name
    if vocabulary is not None and _is_path(vocabulary):
        vocabulary = relative(vocabulary)
    return replace(spec, name=name, mask=relative(spec.mask), plan=relative(spec.plan), vocabulary=vocabulary)


def _count_all(path: Path, specs: Sequence[TargetSpec], progress: ProgressCallback | None) -> list[LockEntry]:
    """Count targets; an error says which of them it is about."""
    reporter, entries = ProgressReporter(progress, f"count {path}", len(specs), unit="targets"), []
    for spec in specs:
        try:
            entries.append(count_entry(spec))
        except InputError as error:
            raise InputError(f"{path}: {spec.key}: {error}") from error
        reporter.advance()
    return entries


def _as_text(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert options to fields of `TargetSpec`; those that are None are left out."""
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    for name in ("mask", "plan", "vocabulary"):
        if name in given:
            given[name] = str(given[name])
    if "image_size" in given:
        given["image_size"] = parse_size(given["image_size"])
    if "settings" in given:
        given["settings"] = tuple(given["settings"])
    return given


def _is_called(spec: TargetSpec, name: str) -> bool:
    """Return whether a name means a target: its own, as a path, or its key in the lock."""
    return name in (spec.name, spec.key) or Path(name) == Path(spec.name)


def _is_path(name: str) -> bool:
    path = Path(name)
    return (
        path.exists()
        or len(path.parts) > 1
        or path.suffix in (".toml", ".txt", ".json", ".csv", ".tsv", ".safetensors")
    )


def _parse_entry(value: Mapping[str, Any], folder: Path) -> LockEntry:
    def from_here(path: str | None) -> str | None:
        """Return a path of the lock as seen from the working directory; other names stay."""
        if path is None:
            return None
        found = folder / path
        return str(found) if found.exists() or _is_path(path) else path

    height, width = value["image_size"]
    spec = TargetSpec(
        name=str(from_here(str(value["target"]))),
        image_size=(int(height), int(width)),
        batch=int(value.get("batch", 1)),
        model=value.get("model"),
        mask=from_here(value.get("mask")),
        plan=from_here(value.get("plan")),
        settings=tuple(str(setting) for setting in value.get("set", ())),
        vocabulary=from_here(value.get("vocabulary")),
    )
    counts = {
        section: {
            component: {kind: int(number) for kind, number in kinds.items()}
            for component, kinds in value[section].items()
        }
        for section in ("params", "macs", "other")
    }
    return LockEntry(spec, counts)


def _spec_to_json(spec: TargetSpec) -> dict[str, Any]:
    entry: dict[str, Any] = {"target": spec.name, "image_size": list(spec.image_size), "batch": spec.batch}
    options = {
        "model": spec.model,
        "mask": spec.mask,
        "plan": spec.plan,
        "set": list(spec.settings) or None,
        "vocabulary": spec.vocabulary,
    }
    return entry | {name: value for name, value in options.items() if value is not None}


def _inputs(was: TargetSpec, now: TargetSpec) -> Iterator[tuple[str, int, int]]:
    """Yield the numbers that describe the input: counts of two image sizes are not of one thing."""
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
