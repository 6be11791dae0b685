"""Multiply-accumulates of training: of a step, and of a whole run, which is steps and the work around the framework.

Until its plan is made (`plan_after`) a run trains everything; from then on the planned layers are frozen.

Around the framework run the matching of queries with segments, for some frameworks a teacher (CLIP's image encoder,
which encodes every region of every image), and the text encoder, which embeds every class name and every noun once.
These costs depend on what is in the images. What is assumed of that is in `DataAssumptions`, and in the report.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ovstrans.clip.load import create_image_encoder, model_info
from ovstrans.costs.counter import count_macs
from ovstrans.costs.flops import Flops, count_flops, count_prompt_macs, count_text_encoder
from ovstrans.costs.training_step import WAYS, StepCosts, TrainingStep, count_step
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Framework, TrainingStage
from ovstrans.masks.mask import Mask
from ovstrans.vocabulary.synonyms import find_synonyms

MATCHING_PRODUCTS = 3
"""Products of queries and segments over points in a matching: cross entropy of inside and of outside, dice."""
SYNONYM_PROMPTS = 2
"""Number of times that a synonym is embedded: bare and in a prompt."""


@dataclass(frozen=True)
class DataAssumptions:
    """Assumptions of a cost count about the data.

    Attributes:
        segments: Segments per image, which a teacher encodes one by one. COCO panoptic has about 11 (1.3 million in
            118,287 images).
        nouns: Different nouns in all captions, each embedded once; the order of magnitude of COCO's captions.
    """

    segments: float = 11.0
    nouns: int = 10_000


@dataclass(frozen=True)
class AuxiliaryCost:
    """Cost of a run outside of the framework's own steps.

    Attributes:
        name: What is done, such as "teacher".
        per: What `each` is counted for, such as "region".
        each: MACs of one.
        times: How many there are in the run.
    """

    name: str
    per: str
    each: int
    times: int

    @property
    def total(self) -> int:
        """MACs of the run."""
        return self.each * self.times


@dataclass(frozen=True)
class RunCosts:
    """Cost of a whole training run, in MACs.

    Attributes:
        image_size: Height and width of training crops.
        batch: Images of a step.
        steps: Steps of the run.
        steps_before_plan: Steps that train everything, before there is a plan.
        steps_macs: MACs of the framework's own steps, for each of `training_step.WAYS`.
        auxiliary: Work outside of these steps, the same in every way of counting.
        assumed: What is assumed of the data.
    """

    image_size: tuple[int, int]
    batch: int
    steps: int
    steps_before_plan: int
    steps_macs: Mapping[str, int]
    auxiliary: tuple[AuxiliaryCost, ...]
    assumed: DataAssumptions

    def total(self, way: str) -> int:
        """Return the MACs of the run, its steps counted in one of `training_step.WAYS`."""
        return self.steps_macs[way] + sum(each.total for each in self.auxiliary)

    def to_json(self) -> dict[str, Any]:
        """Return the entry `run` of a report's `training`."""
        return {
            "unit": "MAC",
            "per": "run",
            "image_size": list(self.image_size),
            "batch": self.batch,
            "steps": self.steps,
            "warm_up": self.steps_before_plan,
            "assumed": {"segments": self.assumed.segments, "nouns": self.assumed.nouns},
            **{way: {"framework": self.steps_macs[way], "total": self.total(way)} for way in WAYS},
            "beside": {
                each.name: {"per": each.per, "each": each.each, "times": each.times, "total": each.total}
                for each in self.auxiliary
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunCosts:
        """Read the entry `run` of a report's `training`."""
        height, width = value["image_size"]
        return cls(
            (height, width),
            value["batch"],
            value["steps"],
            value["warm_up"],
            {way: value[way]["framework"] for way in WAYS},
            tuple(
                AuxiliaryCost(name, each["per"], each["each"], each["times"]) for name, each in value["beside"].items()
            ),
            DataAssumptions(**value["assumed"]),
        )

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"RunCosts({self.total('executed') / 1e15:.4g} PMAC executed; {self.steps} steps of {self.batch} x "
            f"{height}x{width})"
        )


@dataclass
class TrainingCosts(StepCosts):
    """Cost of training, in MACs: a step counted in each of `training_step.WAYS`, per image, and the whole run.

    Attributes:
        matching: MACs of matching the queries of all predictions with one segment, which are in no step; None if
            nothing is matched.
        run: The whole run of the recipe; None without a recipe, or with one that lacks what a run needs.
    """

    matching: int | None = None
    run: RunCosts | None = None

    def without_layers(self) -> TrainingCosts:
        """Return the same without the figures of every layer."""
        return replace(self, **{way: replace(getattr(self, way), layers=None) for way in WAYS})

    def to_json(self) -> dict[str, Any]:
        """Return the entry `training` of a report."""
        return {
            "unit": "MAC",
            "per": "image",
            **{way: getattr(self, way).to_json() for way in WAYS},
            "matching": None if self.matching is None else {"per": "segment", "macs": self.matching},
            "run": None if self.run is None else self.run.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingCosts:
        """Read the entry `training` of a report."""
        matching, run = value.get("matching"), value.get("run")
        executed, sparse, published = (TrainingStep.from_json(value[way]) for way in WAYS)
        return cls(
            executed,
            sparse,
            published,
            matching=None if matching is None else matching["macs"],
            run=None if run is None else RunCosts.from_json(run),
        )


def count_training(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    model: str,
    components: Mapping[str, nn.Module] | None = None,
    mask: Mask | None = None,
    frozen: Collection[str] = (),
    recipe: Mapping[str, Any] | None = None,
    flops: Flops | None = None,
) -> TrainingCosts:
    """Count a training step, and if a framework comes with a recipe the whole run.

    Args:
        module: A framework or any other module; see `training_step.count_executed_step`.
        image_size: Height and width of the images of the step; those of the run are the recipe's crops.
        model: open_clip name of the CLIP.
        components: Parts of the module to count separately.
        mask: Mask of its image encoder.
        frozen: Layers of the image encoder that a plan freezes.
        recipe: Recipe of the run.
        flops: The forward pass that the published formula starts from, with its layers; counted if None.

    Raises:
        MismatchError: If mask or plan are of another architecture.
    """
    settings = (recipe or {}).get("training", {})
    step = count_step(
        module,
        image_size,
        components=components,
        mask=mask,
        frozen=frozen,
        freeze_norms=bool(settings.get("freeze_norms", False)),
        norms=str(settings.get("norms", "train")),
        flops=flops,
    )
    run = None
    if recipe is not None and isinstance(module, Framework):
        with contextlib.suppress(InputError, KeyError):  # a recipe that has only some of the settings
            run = count_run(module, recipe, model=model, mask=mask, frozen=tuple(frozen))
    return TrainingCosts(**vars(step), matching=count_matching_macs(module), run=run)


def count_run(
    framework: Framework,
    recipe: Mapping[str, Any],
    *,
    model: str,
    mask: Mask | None = None,
    frozen: Collection[str] = (),
    assumed: DataAssumptions = DataAssumptions(),
) -> RunCosts:
    """Count what `finetune` with a recipe takes.

    Args:
        framework: Framework built from the recipe, with weights of any device or on meta.
        recipe: Recipe with its sections [training] and [augment].
        model: open_clip name of the CLIP.
        mask: Mask of the image encoder.
        frozen: Layers that the plan freezes from step `plan_after` on; from the first if the recipe makes no plan.
        assumed: What to assume of the data.

    Raises:
        InputError: If the recipe lacks one of the sections.
        MismatchError: If mask or plan are of another architecture.
    """
    for section in ("training", "augment"):
        if section not in recipe:
            raise InputError(f"the recipe has no section [{section}]: it trains no framework; give one of `finetune`")
    training = recipe["training"]
    size = (int(recipe["augment"]["crop"]),) * 2
    batch, steps = int(training["batch"]), int(training["steps"])
    steps_before_plan = min(int(training["plan_after"]), steps)
    given: dict[str, Any] = {
        "components": framework.components(),
        "mask": mask,
        "freeze_norms": bool(training["freeze_norms"]),
        "norms": str(training["norms"]),
    }
    steps_macs = dict.fromkeys(WAYS, 0)
    stages = framework.training_stages(steps)
    first = 0
    for stage in stages:
        before_plan = min(max(steps_before_plan - first, 0), stage.steps)
        first += stage.steps
        with _in_stage(framework, stage.name):
            after = count_step(framework, size, frozen=frozen, **given)
            before = count_step(framework, size, **given) if before_plan and frozen else after
        for way in WAYS:
            own = before_plan * _step_macs(before, way) + (stage.steps - before_plan) * _step_macs(after, way)
            steps_macs[way] += batch * own
    auxiliary = [
        *_matching(framework, batch * sum(each.steps for each in stages if each.matches), assumed),
        *_teacher(framework, model, batch, stages, assumed),
        *_text_encoder(framework, model, assumed),
        *_prompts(model, stages),
    ]
    if recalibrated := int(training["bn_recalibrate"]):
        forward = count_flops(framework, size).dense
        auxiliary.append(AuxiliaryCost("recalibration", "image", forward, batch * recalibrated))
    return RunCosts(size, batch, steps, steps_before_plan, steps_macs, tuple(auxiliary), assumed)


def count_matching_macs(module: nn.Module) -> int | None:
    """Count the MACs of matching the queries of all predictions with one segment; None if nothing is matched."""
    matching = module.matching if isinstance(module, Framework) else None
    return None if matching is None else MATCHING_PRODUCTS * math.prod(matching)


@lru_cache
def count_region_macs(model: str) -> int:
    """Count the MACs of encoding one region with the image encoder of an open_clip model, at its training size."""
    with torch.device("meta"):
        encoder = create_image_encoder(model)
    side = model_info(model)[1]
    return count_macs(encoder, (1, 3, side, side)).total


def _step_macs(step: StepCosts, way: str) -> int:
    macs: int = getattr(step, way).total
    return macs


def _matching(framework: Framework, images: int, assumed: DataAssumptions) -> list[AuxiliaryCost]:
    each = count_matching_macs(framework)
    return [] if each is None else [AuxiliaryCost("matching", "segment", each, round(assumed.segments * images))]


def _teacher(
    framework: Framework, model: str, batch: int, stages: Sequence[TrainingStage], assumed: DataAssumptions
) -> list[AuxiliaryCost]:
    own = framework.target_requirements
    needs = [each for each in stages if any(r.teacher or r.synonyms for r in (own, each.requirements))]
    if not needs:
        return []
    images = batch * sum(each.steps for each in needs)
    return [AuxiliaryCost("teacher", "region", count_region_macs(model), round(assumed.segments * images))]


def _prompts(model: str, stages: Sequence[TrainingStage]) -> list[AuxiliaryCost]:
    """Count the text encoder's work for a learned prompt: forward, and the gradient of its input."""
    times = sum(each.steps * each.prompts for each in stages)
    return [AuxiliaryCost("prompt", "name", 2 * count_prompt_macs(model), times)] if times else []


@contextlib.contextmanager
def _in_stage(framework: Framework, stage: str) -> Iterator[None]:
    """Let a framework be in a stage of training while the block runs."""
    before = framework.stage
    framework.stage = stage
    try:
        yield
    finally:
        framework.stage = before


def _text_encoder(framework: Framework, model: str, assumed: DataAssumptions) -> list[AuxiliaryCost]:
    each = count_prompt_macs(model)
    costs = [AuxiliaryCost("vocabulary", "prompt", each, count_text_encoder(framework, model).prompts)]
    if framework.target_requirements.captions:
        costs.append(AuxiliaryCost("nouns", "noun", each, assumed.nouns))
    if framework.target_requirements.synonyms:
        names = sum(len({*own, *find_synonyms(own[0])}) for own in framework.text.vocabulary.classes)
        costs.append(AuxiliaryCost("synonyms", "prompt", each, SYNONYM_PROMPTS * names))
    return costs
