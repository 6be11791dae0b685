"""The settings of a fine-tuning run: a recipe, checked key by key and value by value.

Every key must be there and none may be unknown, so that a resolved recipe says all there is to say.
The meaning of each is beside its value in `ovstrans/recipes/*.toml`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ovstrans.errors import InputError, did_you_mean
from ovstrans.recipes.load import Recipe, flatten
from ovstrans.spectrum.plan import check_rule
from ovstrans.training.precision import AMP_CHOICES

LARGEST_SEED = 2**63 - 1
"""torch takes seeds of 63 bits."""
LARGEST_BATCH = 65_536
"""More images at once fit no machine; a typing error, and reading them would fill the memory first."""
SCHEDULES = ("constant", "step", "poly", "cosine")
INITS = ("pretrained", "pruned", "random")


@dataclass(frozen=True)
class Data:
    """[data]: which images, how many, and how they are read."""

    dataset: str
    size: int
    images: int
    cache: bool
    workers: int


@dataclass(frozen=True)
class Model:
    """[model]: the framework and the CLIP it owns; every further key is an option of the framework."""

    framework: str
    clip: str
    pretrained: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimizer:
    """[optimizer]: AdamW and gradient clipping."""

    lr: float
    backbone_rate: float
    weight_decay: float
    clip_norm: float


@dataclass(frozen=True)
class Schedule:
    """[schedule]: the learning rate over the run."""

    kind: str
    warmup: int
    drops: tuple[float, ...]
    drop_factor: float
    power: float


@dataclass(frozen=True)
class Training:
    """[training]: length, batch, precision, BatchNorm, freezing, and how often to save."""

    steps: int
    batch: int
    amp: str
    norms: str
    freeze_norms: bool
    bn_recalibrate: int
    plan_after: int
    freeze: str
    save_every: int


@dataclass(frozen=True)
class Augmentation:
    """[augment]: how images vary; see `datasets.augment.Augment`. `crop` is the side of what the framework sees."""

    crop: int
    scale: tuple[float, float]
    flip: float
    jitter: float
    short_side: int


@dataclass(frozen=True)
class Run:
    """[run]: what the command line chose beyond the recipe ("" where nothing)."""

    seed: int = 0
    init: str = "pretrained"
    mask: str = ""
    weights: str = ""
    plan: str = ""


@dataclass(frozen=True)
class Settings:
    """A whole resolved recipe."""

    data: Data
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    augment: Augmentation
    run: Run

    def to_recipe(self) -> Recipe:
        """The table that `parse` reads back."""
        recipe = dataclasses.asdict(self)
        recipe["model"].update(recipe["model"].pop("options"))
        return recipe


_Section = TypeVar("_Section")


def parse(recipe: Mapping[str, Any], origin: str) -> Settings:
    """The settings in a recipe table; `origin` names it in messages.

    Raises InputError for missing or unknown sections and keys and for values of the wrong kind or
    out of range.
    """
    known = [entry.name for entry in dataclasses.fields(Settings)]
    unknown = [name for name in recipe if name not in known]
    if unknown:
        raise InputError(f"recipe {origin}: unknown section [{unknown[0]}]{nearest(unknown[0], known)}; take it out")
    missing = [name for name in known if name != "run" and name not in recipe]
    if missing:
        raise InputError(
            f"recipe {origin}: section [{missing[0]}] is missing; `ovstrans recipes show deeplabv3-mini` has all"
        )
    model = dict(recipe["model"])
    own = {key: model.pop(key) for key in ("framework", "clip", "pretrained") if key in model}
    for key, value in model.items():
        if isinstance(value, float):
            finite(value, f"recipe {origin}: model.{key}")
    settings = Settings(
        data=_section(Data, recipe["data"], "data", origin),
        model=_section(Model, {**own, "options": model}, "model", origin),
        optimizer=_section(Optimizer, recipe["optimizer"], "optimizer", origin),
        schedule=_section(Schedule, recipe["schedule"], "schedule", origin),
        training=_section(Training, recipe["training"], "training", origin),
        augment=_section(Augmentation, recipe["augment"], "augment", origin),
        run=_section(Run, recipe.get("run", {}), "run", origin),
    )
    _check_ranges(settings, origin)
    return settings


def differences(stored: Settings, wanted: Settings) -> list[str]:
    """What differs, as `optimizer.lr is 0.1, not 0.2` (the stored value first)."""
    old, new = flatten(stored.to_recipe()), flatten(wanted.to_recipe())
    return [
        f"{key} is {old.get(key)!r}, not {new.get(key)!r}" for key in {**old, **new} if old.get(key) != new.get(key)
    ]


def _section(kind: type[_Section], table: Any, name: str, origin: str) -> _Section:
    """A section's dataclass from its table."""
    if not isinstance(table, Mapping):
        raise InputError(f"recipe {origin}: {name} must be a section, [{name}]")
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise InputError(f"recipe {origin}: unknown key {name}.{key}{nearest(key, fields)}; take it out")
    values: dict[str, Any] = {}
    for key, entry in fields.items():
        if key in table:
            values[key] = _kind(str(entry.type), table[key], f"recipe {origin}: {name}.{key}")
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise InputError(
                f"recipe {origin}: {name}.{key} is missing; `ovstrans recipes show deeplabv3-mini` explains it"
            )
    return kind(**values)


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a string"),
}


def _kind(annotation: str, value: Any, where: str) -> Any:
    """The value, if it is of the annotated kind; whole numbers stand for fractions."""
    if annotation in _KINDS:
        types, words = _KINDS[annotation]
        if type(value) not in types:
            raise InputError(f"{where} is {value!r}; {words} is needed")
        return finite(value, where) if annotation == "float" else value
    if annotation.startswith("tuple[float"):
        numbers: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        if numbers == [value] or not all(type(item) in (int, float) for item in numbers):
            raise InputError(f"{where} is {value!r}; a list of numbers is needed")
        return tuple(finite(item, where) for item in numbers)
    return value


def finite(value: float, where: str) -> float:
    """The number as a float; InputError, beginning with `where`, for NaN, infinity or what no float can hold."""
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise InputError(f"{where} is {result}; a finite number is needed")
    return result


def _check_ranges(settings: Settings, origin: str) -> None:
    training, optimizer, schedule = settings.training, settings.optimizer, settings.schedule
    checks: list[tuple[str, Any, bool, str]] = [
        ("training.steps", training.steps, training.steps >= 1, "at least 1"),
        ("training.batch", training.batch, 1 <= training.batch <= LARGEST_BATCH, f"between 1 and {LARGEST_BATCH}"),
        ("training.amp", training.amp, training.amp in AMP_CHOICES, "one of " + ", ".join(AMP_CHOICES)),
        ("training.norms", training.norms, training.norms in ("train", "frozen"), "train or frozen"),
        (
            "training.bn_recalibrate",
            training.bn_recalibrate,
            training.bn_recalibrate >= 0,
            "0 (off) or a number of batches",
        ),
        ("training.plan_after", training.plan_after, training.plan_after >= 0, "0 (off) or a step"),
        ("training.save_every", training.save_every, training.save_every >= 1, "at least 1"),
        ("optimizer.lr", optimizer.lr, optimizer.lr > 0, "above 0"),
        ("optimizer.backbone_rate", optimizer.backbone_rate, optimizer.backbone_rate >= 0, "0 or above"),
        ("optimizer.weight_decay", optimizer.weight_decay, optimizer.weight_decay >= 0, "0 or above"),
        ("optimizer.clip_norm", optimizer.clip_norm, optimizer.clip_norm >= 0, "0 (off) or above"),
        ("schedule.kind", schedule.kind, schedule.kind in SCHEDULES, "one of " + ", ".join(SCHEDULES)),
        ("schedule.warmup", schedule.warmup, schedule.warmup >= 0, "0 (off) or a number of steps"),
        ("schedule.drops", schedule.drops, all(0 < drop < 1 for drop in schedule.drops), "parts of the run in (0, 1)"),
        ("data.size", settings.data.size, settings.data.size >= 32, "at least 32 pixels"),
        ("data.images", settings.data.images, settings.data.images >= 0, "0 (all) or a number of images"),
        ("data.workers", settings.data.workers, settings.data.workers >= 0, "0 or above"),
        ("augment.crop", settings.augment.crop, settings.augment.crop >= 32, "at least 32 pixels"),
        ("run.init", settings.run.init, settings.run.init in INITS, "one of " + ", ".join(INITS)),
        ("run.seed", settings.run.seed, 0 <= settings.run.seed <= LARGEST_SEED, "between 0 and 2**63 - 1"),
    ]
    for key, value, fits, needed in checks:
        if not fits:
            raise InputError(f"recipe {origin}: {key} is {value!r}; it must be {needed}")
    check_rule(training.freeze)
    if training.plan_after >= training.steps:
        raise InputError(
            f"recipe {origin}: training.plan_after is {training.plan_after}, but the run has {training.steps} steps"
        )


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'NAME'?)`, to follow a word that is unknown; "" where nothing is near."""
    hint = did_you_mean(word, known).strip()
    return hint and f" ({hint})"
