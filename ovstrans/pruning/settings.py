"""The settings of a pruning run: a recipe, checked key by key and value by value.

The meaning of each is beside its value in `ovstrans/recipes/prune-*.toml`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from ovstrans.clip.load import DEFAULT_MODEL
from ovstrans.errors import InputError
from ovstrans.frameworks import registry
from ovstrans.recipes.load import flatten, load_recipe, override
from ovstrans.training.settings import LARGEST_BATCH, LARGEST_SEED, finite, nearest

METHODS = ("imp", "magnitude", "random")
FEATURES = "features"
"""The distillation loss that images are enough for."""
SEGMENT_LOSSES = ("text-guided", "vision-guided", "semantic")
"""Distillation losses that look at segments, hence need labelled data."""
NORM_SIZE = 64
"""From this side on, in pixels, the last stage has more than one position of an image."""
PRECISIONS = {"auto": "auto", "fp32": "off", "bf16": "bf16"}
"""What `--precision` takes, and the name `training.precision` has for it."""


@dataclass(frozen=True)
class Prune:
    """[prune]: what goes, how much of it, how fast, and how long the rest learns."""

    method: str
    sparsity: float
    rate: float
    steps: int
    final_steps: int
    scope: str

    def total_steps(self, rounds: int) -> int:
        """Distillation steps in all: those of the rounds, and those after the last; none if `steps` is 0."""
        return rounds * self.steps + self.final_steps if self.steps else 0

    def steps_of(self, number: int, rounds: int) -> range:
        """The steps of round `number` (from 0); the last of the `rounds` settles too."""
        start = number * self.steps
        return range(start, start + self.steps if number < rounds - 1 else max(start, self.total_steps(rounds)))


@dataclass(frozen=True)
class Distill:
    """[distill]: the loss; every further key is an option of that loss."""

    loss: str
    norms: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimizer:
    """[optimizer]: AdamW, gradient clipping and the learning rate over the run."""

    lr: float
    weight_decay: float
    clip_norm: float
    warmup: int
    cooldown: float
    backbone_rate: float = 1.0


@dataclass(frozen=True)
class Data:
    """[data]: which images, and what a step sees of them."""

    dataset: str
    images: int
    size: int
    crop: float
    flip: bool
    batch: int
    workers: int


@dataclass(frozen=True)
class Run:
    """[run]: precision and seed."""

    precision: str
    seed: int = 0


@dataclass(frozen=True)
class Settings:
    """A whole resolved recipe."""

    prune: Prune
    distill: Distill
    optimizer: Optimizer
    data: Data
    run: Run

    def to_recipe(self) -> dict[str, Any]:
        """The table that `parse` reads back."""
        recipe = dataclasses.asdict(self)
        recipe["distill"].update(recipe["distill"].pop("options"))
        return recipe


def choose_settings(
    model: str = DEFAULT_MODEL,
    *,
    recipe: str | None = None,
    changes: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings of a run: a recipe, `KEY=VALUE` changes over it, and what else was given over both.

    recipe: a shipped name or a file; by default `prune-mini` for the mini CLIP, `prune-rn50` for others,
    and with `-regions` after it for a distillation loss that looks at segments.
    given: values by dotted key (`prune.sparsity`), None where nothing was given. Raises InputError for
    an unknown recipe or key, for a recipe of another kind of loss, and for values that make no sense.
    """
    default = "prune-mini" if model == DEFAULT_MODEL else "prune-rn50"
    wanted = (given or {}).get("distill.loss") or _loss_among(changes)
    name = recipe or (f"{default}-regions" if wanted in SEGMENT_LOSSES else default)
    table = load_recipe(name)
    if isinstance(table.get("distill"), dict):
        own = table["distill"].get("loss")
        if wanted in (FEATURES, *SEGMENT_LOSSES) and (wanted in SEGMENT_LOSSES) != (own in SEGMENT_LOSSES):
            other = f"{default}-regions" if wanted in SEGMENT_LOSSES else default
            raise InputError(f"recipe {name}: is for the distillation loss {own}, not {wanted}; {other} is for that")
        if (wanted or own) == "semantic":  # every option of GKC can be set, and the mask records it
            table["distill"] = {**registry.default_options("gkc"), **table["distill"]}
    table = override(table, changes)
    for key, value in (given or {}).items():
        section, _, entry = key.partition(".")
        if value is not None and isinstance(table.setdefault(section, {}), dict):
            table[section][entry] = value
    return parse(table, name)


def _loss_among(changes: Sequence[str]) -> str | None:
    """The distillation loss that `KEY=VALUE` changes name; None where none does."""
    chosen = [change for change in changes if change.partition("=")[0].strip() == "distill.loss"]
    return str(override({"distill": {"loss": ""}}, chosen)["distill"]["loss"]) or None


def parse(recipe: Mapping[str, Any], origin: str) -> Settings:
    """The settings in a recipe table; `origin` names it in messages.

    Raises InputError for missing or unknown sections and keys and for values of the wrong kind or
    out of range.
    """
    known = {entry.name: entry for entry in dataclasses.fields(Settings)}
    if "model" in recipe and "prune" not in recipe:
        raise InputError(f"recipe {origin}: is one for finetune; prune takes such as prune-mini")
    for name in [*recipe, *known]:
        if name not in known:
            raise InputError(f"recipe {origin}: unknown section [{name}]{nearest(name, known)}; take it out")
        if not isinstance(recipe.get(name), Mapping):
            raise InputError(
                f"recipe {origin}: section [{name}] is missing; `ovstrans recipes show prune-mini` has all"
            )
    distill = dict(recipe["distill"])
    own = {key: distill.pop(key) for key in ("loss", "norms") if key in distill}
    if own.get("loss") not in SEGMENT_LOSSES:  # those check the options of their head themselves
        for key, value in distill.items():
            distill[key] = _number(value, f"recipe {origin}: distill.{key}")
    settings = Settings(
        prune=_section(Prune, recipe["prune"], "prune", origin),
        distill=_section(Distill, {**own, "options": distill}, "distill", origin),
        optimizer=_section(Optimizer, recipe["optimizer"], "optimizer", origin),
        data=_section(Data, recipe["data"], "data", origin),
        run=_section(Run, recipe["run"], "run", origin),
    )
    _check_ranges(settings, origin)
    return settings


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two recipe tables, as `optimizer.lr is 0.1, not 0.2` (the stored value first)."""
    old, new = flatten(stored), flatten(wanted)
    return [
        f"{key} is {old.get(key)!r}, not {new.get(key)!r}" for key in {**old, **new} if old.get(key) != new.get(key)
    ]


_Section = TypeVar("_Section")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a string"),
}


def _section(kind: type[_Section], table: Mapping[str, Any], name: str, origin: str) -> _Section:
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            raise InputError(f"recipe {origin}: unknown key {name}.{key}{nearest(key, fields)}; take it out")
        values[key] = _kind(str(fields[key].type), value, f"recipe {origin}: {name}.{key}")
    for key, entry in fields.items():
        if key not in values and entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise InputError(
                f"recipe {origin}: {name}.{key} is missing; `ovstrans recipes show prune-mini` explains it"
            )
    return kind(**values)


def _kind(annotation: str, value: Any, where: str) -> Any:
    """The value, if it is of the annotated kind; whole numbers stand for fractions."""
    if annotation not in _KINDS:
        return value
    types, words = _KINDS[annotation]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise InputError(f"{where} is {value!r}; {words} is needed")
    return finite(cast(float, value), where) if annotation == "float" else value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise InputError(f"{where} is {value!r}; a number of at least 0 is needed")
    return finite(value, where)


def _check_ranges(settings: Settings, origin: str) -> None:
    prune, distill, optimizer, data = settings.prune, settings.distill, settings.optimizer, settings.data
    checks: list[tuple[str, Any, bool, str]] = [
        ("prune.method", prune.method, prune.method in METHODS, "one of " + ", ".join(METHODS)),
        ("prune.sparsity", prune.sparsity, 0 <= prune.sparsity < 1, "at least 0 and below 1"),
        ("prune.rate", prune.rate, 0 < prune.rate < 1, "above 0 and below 1"),
        ("prune.steps", prune.steps, prune.steps >= 0, "0 (prune only) or a number of steps"),
        ("prune.final_steps", prune.final_steps, prune.final_steps >= 0, "0 or a number of steps"),
        ("distill.norms", distill.norms, distill.norms in ("train", "frozen"), "train or frozen"),
        ("optimizer.lr", optimizer.lr, optimizer.lr > 0, "above 0"),
        ("optimizer.backbone_rate", optimizer.backbone_rate, optimizer.backbone_rate > 0, "above 0"),
        ("optimizer.weight_decay", optimizer.weight_decay, optimizer.weight_decay >= 0, "0 or above"),
        ("optimizer.clip_norm", optimizer.clip_norm, optimizer.clip_norm >= 0, "0 (off) or above"),
        ("optimizer.warmup", optimizer.warmup, optimizer.warmup >= 0, "0 (off) or a number of steps"),
        ("optimizer.cooldown", optimizer.cooldown, 0 <= optimizer.cooldown <= 1, "between 0 (off) and 1"),
        ("data.images", data.images, data.images >= 0, "0 (all) or a number of images"),
        ("data.size", data.size, data.size >= 32, "at least 32 pixels"),
        ("data.crop", data.crop, 0 < data.crop <= 1, "above 0 and at most 1"),
        ("data.batch", data.batch, 1 <= data.batch <= LARGEST_BATCH, f"between 1 and {LARGEST_BATCH}"),
        ("data.workers", data.workers, data.workers >= 1, "at least 1"),
        (
            "run.precision",
            settings.run.precision,
            settings.run.precision in PRECISIONS,
            "one of " + ", ".join(PRECISIONS),
        ),
        ("run.seed", settings.run.seed, 0 <= settings.run.seed <= LARGEST_SEED, "between 0 and 2**63 - 1"),
    ]
    for key, value, fits, needed in checks:
        if not fits:
            raise InputError(f"recipe {origin}: {key} is {value!r}; it must be {needed}")
    if prune.steps and distill.norms == "train" and data.batch == 1 and data.size < NORM_SIZE:
        raise InputError(
            f"recipe {origin}: data.batch = 1 at data.size = {data.size} gives BatchNorm one position to average over; "
            f"take 2 images, {NORM_SIZE} pixels, or distill.norms=frozen"
        )
    if prune.steps and distill.options and not any(distill.options.values()):
        names = ", ".join(f"distill.{name}" for name in distill.options)
        raise InputError(
            f"recipe {origin}: {names} are all 0, which leaves nothing to learn from; raise one, or set prune.steps=0"
        )
