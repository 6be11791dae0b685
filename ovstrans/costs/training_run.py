"""Multiply-accumulates of a whole run: a step, times batch, times steps, and what runs beside the framework.

Before its plan is made (`plan_after`) a run trains everything; from then on the planned layers are still. AuxiliaryCost
the framework run a matching of queries with segments, and for some a teacher, CLIP's image encoder, that looks at
every region of every image, and its text encoder, which reads every name and every noun once. They depend on what
is in the images; what is assumed of that is in `DataAssumptions`, and said in the report.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ovstrans.clip.load import create_image_encoder, model_info
from ovstrans.costs.dispatch import count_dispatched
from ovstrans.costs.flops import count_flops
from ovstrans.costs.text_encoder import count_text_encoder, prompt_macs
from ovstrans.costs.training_step import TrainingFlops, executed_training, published_training, sparse_training
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.mask_framework import MaskFramework
from ovstrans.masks.mask import Mask
from ovstrans.vocabulary.synonyms import find_synonyms

WAYS = ("executed", "sparse", "published")
"""How a step is counted; see `step`."""
MATCHING_PRODUCTS = 3
"""Products of queries and segments over points in a matching: cross entropy of inside and of outside, dice."""
PROMPTINGS = 2
"""How often a synonym is embedded: bare and in a prompt."""


@dataclass(frozen=True)
class DataAssumptions:
    """What a count cannot know of the data.

    segments: of an image, which a teacher sees one by one; COCO panoptic has about 11 (1.3 million in 118,287
    images).  nouns: different ones in all captions, each embedded once; the order of COCO's captions.
    """

    segments: float = 11.0
    nouns: int = 10_000


@dataclass(frozen=True)
class AuxiliaryCost:
    """Work beside the framework. name: what.  per: of what `each` MACs are.  times: how often in the run."""

    name: str
    per: str
    each: int
    times: int

    @property
    def total(self) -> int:
        """MACs of the run."""
        return self.each * self.times


@dataclass(frozen=True)
class RunFlops:
    """image_size: of training crops.  warm_up: steps that train everything, before there is a plan.
    before, after: a step until then and from then on, by `WAYS`.  beside: what is the same whichever way."""

    image_size: tuple[int, int]
    batch: int
    steps: int
    warm_up: int
    before: Mapping[str, TrainingFlops]
    after: Mapping[str, TrainingFlops]
    beside: tuple[AuxiliaryCost, ...]
    assumed: DataAssumptions

    def framework(self, way: str) -> int:
        """MACs of the framework's own steps, counted one of three ways."""
        return self.batch * (
            self.warm_up * self.before[way].total + (self.steps - self.warm_up) * self.after[way].total
        )

    def total(self, way: str) -> int:
        """MACs of all."""
        return self.framework(way) + sum(each.total for each in self.beside)

    def as_json(self) -> dict[str, Any]:
        """The entry `run` of a report's `training`."""
        return {
            "unit": "MAC",
            "per": "run",
            "image_size": list(self.image_size),
            "batch": self.batch,
            "steps": self.steps,
            "warm_up": self.warm_up,
            "assumed": {"segments": self.assumed.segments, "nouns": self.assumed.nouns},
            **{way: {"framework": self.framework(way), "total": self.total(way)} for way in WAYS},
            "beside": {
                each.name: {"per": each.per, "each": each.each, "times": each.times, "total": each.total}
                for each in self.beside
            },
        }


def count_step_ways(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    components: Mapping[str, nn.Module] | None = None,
    mask: Mask | None = None,
    frozen: Collection[str] = (),
    freeze_norms: bool = False,
    norms: str = "train",
) -> dict[str, TrainingFlops]:
    """A step by each of `WAYS`; arguments as of `executed_training`, which raises the same errors."""
    parts = components or {}
    executed = executed_training(
        module, image_size, components=parts, frozen=frozen, freeze_norms=freeze_norms, norms=norms
    )
    flops = count_flops(module, image_size, components=parts, mask=mask)
    fixed = [name for name, part in parts.items() if _is_still(part)]
    return {
        "executed": executed,
        "sparse": sparse_training(executed, module, mask),
        "published": published_training(flops, frozen=frozen, fixed=fixed),
    }


def count_run(
    framework: Framework,
    recipe: Mapping[str, Any],
    *,
    model: str,
    mask: Mask | None = None,
    frozen: Collection[str] = (),
    assumed: DataAssumptions = DataAssumptions(),
) -> RunFlops:
    """What `ovstrans finetune` of a recipe takes.

    framework: built from the recipe; weights of any device, or meta.  recipe: its sections [training] and
    [augment].  model: open_clip name of its CLIP.  frozen: the layers of the plan: from step `plan_after` on, which
    is the first where the recipe makes none.  Raises InputError for a recipe without those sections,
    MismatchError where mask or plan are of another architecture.
    """
    for section in ("training", "augment"):
        if section not in recipe:
            raise InputError(f"the recipe has no section [{section}]: it trains no framework; give one of `finetune`")
    training = recipe["training"]
    size = (int(recipe["augment"]["crop"]),) * 2
    batch, steps = int(training["batch"]), int(training["steps"])
    warm_up = min(int(training["plan_after"]), steps)
    given: dict[str, Any] = {
        "components": framework.components(),
        "mask": mask,
        "freeze_norms": bool(training["freeze_norms"]),
        "norms": str(training["norms"]),
    }
    after = count_step_ways(framework, size, frozen=frozen, **given)
    before = count_step_ways(framework, size, **given) if warm_up and frozen else after
    images = batch * steps
    beside = [
        *_matching(framework, images, assumed),
        *_teacher(framework, model, images, assumed),
        *_texts(framework, model, assumed),
    ]
    if recalibrated := int(training["bn_recalibrate"]):
        forward = count_flops(framework, size).dense
        beside.append(AuxiliaryCost("recalibration", "image", forward, batch * recalibrated))
    return RunFlops(size, batch, steps, warm_up, before, after, tuple(beside), assumed)


@lru_cache
def view_macs(model: str) -> int:
    """MACs of CLIP's whole image encoder on one region, at the size it was trained at. model: open_clip name."""
    with torch.device("meta"):
        encoder = create_image_encoder(model)
    side = model_info(model)[1]
    products, _ = count_dispatched(encoder, (1, 3, side, side))
    return sum(products.values())


def _is_still(part: nn.Module) -> bool:
    """Whether nothing of a part trains; one without parameters has nothing to say about it."""
    trains = [each.requires_grad for each in part.parameters()]
    return bool(trains) and not any(trains)


def matching_macs(module: nn.Module) -> int | None:
    """MACs of matching the queries of every prediction with one segment; None where nothing is matched."""
    if not isinstance(module, MaskFramework):
        return None
    return module.predictions * MATCHING_PRODUCTS * module.options["queries"] * module.options["points"]


def _matching(framework: Framework, images: int, assumed: DataAssumptions) -> list[AuxiliaryCost]:
    each = matching_macs(framework)
    return [] if each is None else [AuxiliaryCost("matching", "segment", each, round(assumed.segments * images))]


def _teacher(framework: Framework, model: str, images: int, assumed: DataAssumptions) -> list[AuxiliaryCost]:
    if not (framework.target_requirements.teacher or framework.target_requirements.synonyms):
        return []
    return [AuxiliaryCost("teacher", "region", view_macs(model), round(assumed.segments * images))]


def _texts(framework: Framework, model: str, assumed: DataAssumptions) -> list[AuxiliaryCost]:
    each = prompt_macs(model)
    found = [AuxiliaryCost("vocabulary", "prompt", each, count_text_encoder(framework, model).prompts)]
    if framework.target_requirements.captions:
        found.append(AuxiliaryCost("nouns", "noun", each, assumed.nouns))
    if framework.target_requirements.synonyms:
        names = sum(len({*own, *find_synonyms(own[0])}) for own in framework.text.vocabulary.classes)
        found.append(AuxiliaryCost("synonyms", "prompt", each, PROMPTINGS * names))
    return found
