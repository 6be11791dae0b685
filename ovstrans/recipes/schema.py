"""The schema of recipes: type, range, unit, meaning and command-line option of every hyper-parameter.

A recipe is a TOML file with sections such as `[optimizer]` and keys such as `lr`; `optimizer.lr` is the full name of a
key. `PruneRecipe` and `FinetuneRecipe` list the sections that each command takes. A key of the same name means the
same in both.

The values of a run come from a recipe, then from `KEY=VALUE` settings, then from keyword options, each replacing what
came before. All of them are checked here, against the schema. Checks that need more than the recipe, for example of
the options of a framework, are up to the code that uses it.

A new hyper-parameter is one new field in a section; without a default, every recipe must have it. With `option="name"`
the commands and functions that take the section get a keyword and a flag `--name` for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from ovstrans.environment import PRECISIONS
from ovstrans.errors import InputError, did_you_mean
from ovstrans.recipes.keys import Key, finite, setting

Table = dict[str, Any]
"""A recipe as plain values: section name to key to value, as `tomllib` reads it."""

LARGEST_SEED = 2**63 - 1
"""torch takes seeds of 63 bits."""
LARGEST_BATCH = 65_536
"""A larger batch fits no machine. It is a typing error, and reading it would fill the memory first."""
SMALLEST_SIDE = 32
"""The image encoders reduce an image by 32, so a smaller one has no position left."""

METHODS = ("imp", "magnitude", "random")
ONE_SHOT_METHODS = ("magnitude", "random")
"""The methods that prune once; `imp` prunes a part in every round."""
GRANULARITIES = ("element", "4x1", "2:4", "filter")
ALLOCATIONS = ("global", "uniform", "erk", "macs", "alpha")
TAU = 0.2
"""Default of AlphaPruning's released code for image models."""
FEATURES = "features"
"""The distillation loss that needs images only."""
SEGMENT_LOSSES = ("text-guided", "vision-guided", "semantic")
"""The distillation losses that compare segments, hence need labelled images."""
SCHEDULES = ("constant", "step", "poly", "cosine")
NORMS = ("train", "frozen")
INITS = ("pretrained", "pruned", "random")


@dataclass(frozen=True)
class Data:
    """[data]: the images to learn from and how they are read."""

    dataset: str = setting(
        "NAME[:SPLIT] (`ovstrans data list`) or folder:PATH[:SPLIT]; default the recipe's.", option="data"
    )
    size: int = setting(
        "Side of the views that the model sees, and of generated images.",
        unit="pixels",
        at_least=SMALLEST_SIDE,
        option="image_size",
    )
    images: int = setting("Number of images to use, the first ones; 0 for all.", at_least=0)
    cache: bool = setting("Keep decoded images in memory.")
    workers: int = setting("Workers that read images ahead; 0 reads each image when it is needed.", at_least=0)


@dataclass(frozen=True)
class Model:
    """[model]: the framework and its CLIP model. Every further key is an option of the framework."""

    framework: str = setting("Framework to build.")
    clip: str = setting("open_clip model.")
    pretrained: str = setting('open_clip tag or a file of weights; "" for the default weights of the model.')
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prune:
    """[prune]: how many weights are pruned, which, how fast, and how long the rest is trained."""

    method: str = setting("imp, magnitude (one shot) or random.", choices=METHODS, option="method")
    sparsity: float = setting("Zeros / weights in scope (0.9).", at_least=0, below=1, option="sparsity")
    rate: float = setting(
        "Fraction of the remaining weights pruned in each round (0.1).", above=0, below=1, option="rate"
    )
    steps: int = setting(
        "Distillation steps of each round; 0 for none, the default of magnitude and random but for RN-mini.",
        at_least=0,
        option="steps",
    )
    final_steps: int = setting("Distillation steps after the last round.", at_least=0)
    scope: str = setting("body (stages, blocks), backbone (all but the first layer), or name patterns.", option="scope")
    granularity: str = setting(
        "What is pruned together: element (single weights), 4x1 (blocks of 4 output channels, faster on CPUs), 2:4 "
        "(2 of 4 inputs, for NVIDIA GPUs; half of all weights), filter (output channels).",
        choices=GRANULARITIES,
        option="granularity",
        default="element",
        recorded=False,
    )
    allocation: str = setting(
        "How many weights each layer keeps: global (one ranking), uniform, erk, macs (one ranking, costly weights go "
        "first) or alpha (by spectra).",
        choices=ALLOCATIONS,
        option="allocation",
        default="global",
        recorded=False,
    )
    macs: float = setting(
        "Budget instead of a sparsity: the fraction of the MACs of the layers in scope to keep, as in 0.1; 0 for none.",
        at_least=0,
        at_most=1,
        option="macs",
        default=0.0,
        recorded=False,
    )
    tau: float = setting(
        "alpha: half the range of the factor on a layer's sparsity.", above=0, below=1, default=TAU, recorded=False
    )
    severed: str = setting(
        "Last blocks of a ViT whose queries and keys are pruned whole, beside the sparsity of the rest: 11, or 10,11. "
        "The mask then serves deop alone, which severs these blocks.",
        option="severed",
        metavar="BLOCKS",
        default="",
        recorded=False,
    )

    def check(self, where: str) -> None:
        """Refuse settings that exclude each other; messages start with `where`."""
        if self.macs and self.allocation != "macs":
            raise InputError(
                f"{where}: `macs={self.macs}` is for `allocation=macs`, not {self.allocation}; leave one out"
            )
        if self.granularity == "2:4" and self.macs:
            raise InputError(f"{where}: `granularity=2:4` keeps half of every layer; leave out `macs={self.macs}`")
        if self.granularity == "2:4" and self.allocation != "global":
            raise InputError(
                f"{where}: `granularity=2:4` keeps half of every layer, so there is nothing to allocate; leave out "
                f"`allocation={self.allocation}`"
            )
        if self.tau != TAU and self.allocation != "alpha":
            raise InputError(f"{where}: `prune.tau={self.tau}` is for `allocation=alpha`, not {self.allocation}")

    def total_steps(self, rounds: int) -> int:
        """Return the number of distillation steps of all rounds, those after the last one included."""
        return rounds * self.steps + self.final_steps if self.steps else 0

    def steps_of(self, number: int, rounds: int) -> range:
        """Return the steps of round `number` (from 0); the last round has the final steps too."""
        start = number * self.steps
        return range(start, start + self.steps if number < rounds - 1 else max(start, self.total_steps(rounds)))


@dataclass(frozen=True)
class Distill:
    """[distill]: the distillation loss. Every further key is an option of the loss."""

    loss: str = setting(
        "features (images alone), or on labelled data text-guided, vision-guided or semantic.", option="distill"
    )
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimizer:
    """[optimizer]: AdamW and the clipping of gradients."""

    lr: float = setting(
        "Learning rate; the backbone learns at optimizer.backbone_rate times this.", above=0, option="lr"
    )
    backbone_rate: float = setting("The backbone learns at the learning rate times this.", at_least=0)
    weight_decay: float = setting("Weight decay of weight matrices and kernels.", at_least=0)
    clip_norm: float = setting("Largest norm of the whole gradient; 0 for no limit.", at_least=0)


@dataclass(frozen=True)
class Schedule:
    """[schedule]: the learning rate over the run."""

    kind: str = setting("constant, step, poly or cosine.", choices=SCHEDULES)
    warmup: int = setting("Steps in which the rate rises linearly; the last of them has the full rate.", at_least=0)
    cooldown: float = setting(
        "Fraction of the run, at its end, in which the rate falls to zero by a cosine.",
        at_least=0,
        at_most=1,
        default=0.0,
    )
    drops: tuple[float, ...] = setting(
        "step: fractions of the run after which the rate falls.", above=0, below=1, default=()
    )
    drop_factor: float = setting("step: factor of each drop.", above=0, default=0.1)
    power: float = setting("poly: the rate is (1 - step / steps)^power.", at_least=0, default=0.9)

    def factor(self, step: int, total: int) -> float:
        """Return the factor on the learning rate in step `step` (from 0) of `total`.

        The kinds are: constant, 1. step, `drop_factor` to the number of drops passed (a drop of 0.8 in 50,000 steps is
        at step 40,000). poly, (1 - step/total)^power. cosine, (1 + cos(pi step/total)) / 2. The last fraction
        `cooldown` of the run multiplies this by a cosine from 1 to 0, and the first `warmup` steps by a line from
        1/warmup to 1.
        """
        progress = step / total
        if self.kind == "step":
            factor = self.drop_factor ** sum(step >= round(drop * total) for drop in self.drops)
        elif self.kind == "poly":
            factor = (1.0 - progress) ** self.power
        elif self.kind == "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * progress))
        else:
            factor = 1.0
        start = total - self.cooldown * total
        if step >= start:
            factor *= 0.5 * (1.0 + math.cos(math.pi * (step - start) / (total - start)))
        if step < self.warmup:
            factor *= (step + 1) / self.warmup
        return factor


@dataclass(frozen=True)
class Training:
    """[training] of prune: batches, precision and BatchNorm."""

    batch: int = setting("Images of each step.", at_least=1, at_most=LARGEST_BATCH, option="batch")
    precision: str = setting(
        "auto (bfloat16 where the device computes it natively), fp32, bf16 or fp16 (CUDA).",
        choices=PRECISIONS,
        option="precision",
    )
    norms: str = setting("BatchNorms of the backbone: train, or frozen (statistics and affine).", choices=NORMS)
    bn_recalibrate: int = setting(
        "Batches over which BatchNorm statistics are recomputed: in prune if no step is taken, in finetune before the "
        "first step; 0 for none.",
        at_least=0,
    )


@dataclass(frozen=True)
class FinetuneTraining(Training):
    """[training] of finetune: also the length of the run, the freeze plan and how often to save."""

    steps: int = setting("Steps of the run; default the recipe's.", at_least=1, option="steps", metavar="N")
    freeze_norms: bool = setting("Layers of the freeze plan freeze their BatchNorms too.")
    plan_after: int = setting(
        "Train everything for N steps, then analyse and freeze.", at_least=0, option="plan_after", metavar="N"
    )
    freeze: str = setting("Freeze rule of that analysis, as in `ovstrans analyze`.", option="freeze", metavar="RULE")
    save_every: int = setting("Steps between saved states.", at_least=1)


@dataclass(frozen=True)
class Augment:
    """[augment]: how images vary."""

    crop: int = setting(
        "Side of what the model sees of an image.", unit="pixels", at_least=SMALLEST_SIDE, option="image_size"
    )
    flip: float = setting("Chance of a horizontal flip.", at_least=0, at_most=1)


@dataclass(frozen=True)
class PruneAugment(Augment):
    """[augment] of prune: square views of random side and position, scaled to `crop` pixels."""

    min_crop: float = setting(
        "Least side of a view, as a fraction of the shorter side of the image.", above=0, at_most=1
    )


@dataclass(frozen=True)
class FinetuneAugment(Augment):
    """[augment] of finetune: scale, then crop or pad; see `datasets.augment.Augment`."""

    scale: tuple[float, float] = setting("Range of the factor by which an image is resized.", above=0)
    jitter: float = setting("Largest relative change of brightness, contrast and saturation.", at_least=0, below=1)
    short_side: int = setting(
        "Length of the shorter side at scale 1; 0 for that of the image.", unit="pixels", at_least=0
    )


@dataclass(frozen=True)
class Run:
    """[run] of prune: the seed."""

    seed: int = setting(
        "Seed of everything random (0).", at_least=0, at_most=LARGEST_SEED, option="seed", metavar="N", default=0
    )


@dataclass(frozen=True)
class FinetuneRun(Run):
    """[run] of finetune: also what the run starts from, "" for nothing."""

    init: str = setting(
        "pretrained (default): weights of CLIP; pruned: weights that prune left; random.",
        choices=INITS,
        option="init",
        default="pretrained",
    )
    mask: str = setting("Mask file.", default="")
    weights: str = setting(
        "Pruned weights to start from; default those beside the mask.", option="weights", metavar="FILE", default=""
    )
    plan: str = setting("Freeze plan (alpha file).", default="")


R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True)
class Recipe:
    """Base class of recipes: a dataclass of sections."""

    command: ClassVar[str] = ""
    """Command that takes the recipe."""
    example: ClassVar[str] = ""
    """A shipped recipe, for messages."""

    @classmethod
    def parse(cls: type[R], table: Mapping[str, Any], origin: str) -> R:
        """Check a table against the schema.

        Args:
            table: Sections of plain values.
            origin: Name of the recipe, for messages.

        Raises:
            InputError: A section or key is unknown or missing, or a value has the wrong type or is out of range.
        """
        where = f"recipe {origin}"
        kind = kind_of(table)
        if kind is not None and kind is not cls:
            raise InputError(f"{where}: is one for {kind.command}; {cls.command} takes such as {cls.example}")
        sections = {entry.name: entry for entry in dataclasses.fields(cls)}
        for name in table:
            if name not in sections:
                raise InputError(f"{where}: unknown section [{name}]; {did_you_mean(name, sections)}take it out")
        values = {}
        for name, entry in sections.items():
            if name in table or entry.default_factory is dataclasses.MISSING:
                values[name] = _parse_section(cls, name, table.get(name), where)
        recipe = cls(**values)
        recipe.check(where)
        return recipe

    def to_table(self) -> Table:
        """Return the table that `parse` reads back."""
        table: Table = {}
        for section, values in dataclasses.asdict(self).items():
            values.update(values.pop("options", {}))
            table[section] = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        for key in keys_of(type(self)).values():
            section, name = key.name.split(".")
            if not key.recorded and table[section][name] == key.default:
                del table[section][name]
        return table

    def check(self, where: str) -> None:
        """Check values against each other; messages start with `where`."""


@dataclass(frozen=True)
class PruneRecipe(Recipe):
    """The recipe of `prune`."""

    command = "prune"
    example = "prune-mini"

    prune: Prune
    distill: Distill
    data: Data
    augment: PruneAugment
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    run: Run = field(default_factory=Run)

    def check(self, where: str) -> None:
        """Refuse settings that exclude each other, and a distillation that could learn nothing."""
        self.prune.check(where)
        if not self.prune.steps:
            return
        batch, crop = self.training.batch, self.augment.crop
        # From 64 pixels on the last stage, at 1/32 of the image, has several positions.
        if self.training.norms == "train" and batch == 1 and crop < 2 * SMALLEST_SIDE:
            raise InputError(
                f"{where}: `training.batch={batch}` with `augment.crop={crop}` leaves BatchNorm one position to "
                f"average over; take 2 images, {2 * SMALLEST_SIDE} pixels, or `training.norms=frozen`"
            )
        if not self.optimizer.backbone_rate:
            raise InputError(f"{where}: with `optimizer.backbone_rate=0` the pruned backbone would learn nothing")
        options = self.distill.options
        if options and not any(options.values()):
            names = ", ".join(f"distill.{name}" for name in options)
            raise InputError(
                f"{where}: {names} are all 0, which leaves nothing to learn from; raise one, or set `prune.steps=0`"
            )


@dataclass(frozen=True)
class FinetuneRecipe(Recipe):
    """The recipe of `finetune`."""

    command = "finetune"
    example = "deeplabv3-mini"

    data: Data
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    training: FinetuneTraining
    augment: FinetuneAugment
    run: FinetuneRun = field(default_factory=FinetuneRun)

    def check(self, where: str) -> None:
        """Refuse a plan after the end of the run, and a range of scales upside down."""
        training, scale = self.training, self.augment.scale
        if training.plan_after >= training.steps:
            raise InputError(
                f"{where}: `plan_after={training.plan_after}` must be below the length of the run, "
                f"`steps={training.steps}`"
            )
        if scale[0] > scale[1]:
            raise InputError(f"{where}: `augment.scale={list(scale)}` must have the smaller number first")


def kind_of(table: Mapping[str, Any]) -> type[Recipe] | None:
    """Return the kind of recipe that a table is, by its sections; None if it has neither [prune] nor [model]."""
    return PruneRecipe if "prune" in table else FinetuneRecipe if "model" in table else None


def keys_of(kind: type[Recipe]) -> dict[str, Key]:
    """Return the keys of a kind of recipe by full name, in the order of the fields."""
    found = {}
    for section, section_class in _sections(kind).items():
        for entry in dataclasses.fields(section_class):
            if "setting" in entry.metadata:
                name, required = f"{section}.{entry.name}", entry.default is dataclasses.MISSING
                found[name] = Key(
                    name, str(entry.type), required=required, default=entry.default, **entry.metadata["setting"]
                )
    return found


def option_keys(kind: type[Recipe]) -> dict[str, list[Key]]:
    """Return the keys that each keyword option of a kind of recipe sets."""
    found: dict[str, list[Key]] = {}
    for key in keys_of(kind).values():
        if key.option:
            found.setdefault(key.option, []).append(key)
    return found


def _sections(kind: type[Recipe]) -> dict[str, type]:
    """Return the class of every section."""
    return {entry.name: globals()[str(entry.type)] for entry in dataclasses.fields(kind)}


def _parse_section(kind: type[Recipe], section: str, table: Any, where: str) -> Any:
    """Return the dataclass of a section from its table."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: section [{section}] is missing; `ovstrans recipes show {kind.example}` has all")
    keys = {name.partition(".")[2]: key for name, key in keys_of(kind).items() if name.startswith(f"{section}.")}
    section_class = _sections(kind)[section]
    takes_options = any(entry.name == "options" for entry in dataclasses.fields(section_class))
    values: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in table.items():
        place = f"{where}: {section}.{name} = {value!r}"
        if name in keys:
            values[name] = keys[name].check(value, place)
        elif takes_options:
            options[name] = finite(value, place) if isinstance(value, float) else value
        else:
            raise InputError(f"{where}: unknown key {section}.{name}; {did_you_mean(name, keys)}take it out")
    for name, key in keys.items():
        if key.required and name not in values:
            raise InputError(f"{where}: {key.name} is missing ({key.help.rstrip('.')})")
    return section_class(**values, **({"options": options} if takes_options else {}))
