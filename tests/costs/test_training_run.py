"""Whole runs: steps with and without a plan, and what runs beside the framework."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from ovstrans.clip.load import random_clip
from ovstrans.costs.flops import count_flops
from ovstrans.costs.training_run import AuxiliaryCost, DataAssumptions, RunCosts, count_region_macs, count_run
from ovstrans.costs.training_step import count_executed_step, count_published_step, count_sparse_step
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Framework
from tests.costs import training_case as case
from tests.costs.reference import executed_macs

CROP = 64
MODEL = "RN-mini"
PLAN = case.plans()["every second"]


def recipe(**training: Any) -> dict[str, Any]:
    own = {"steps": 50, "batch": 4, "plan_after": 0, "freeze_norms": False, "norms": "train", "bn_recalibrate": 0}
    return {"training": {**own, **training}, "augment": {"crop": CROP}}


def run(framework: Framework, **training: Any) -> RunCosts:
    return count_run(framework, recipe(**training), model=MODEL, frozen=PLAN)


@pytest.fixture(scope="module")
def deeplab() -> Framework:
    return case.make("deeplabv3")


def auxiliary(found: RunCosts) -> dict[str, AuxiliaryCost]:
    return {each.name: each for each in found.auxiliary}


def test_steps_before_and_after_the_plan(deeplab: Framework) -> None:
    size = (CROP, CROP)
    everything, planned = (count_executed_step(deeplab, size, frozen=frozen).total for frozen in ((), PLAN))
    assert planned < everything
    assert run(deeplab).steps_macs["executed"] == 4 * 50 * planned
    assert run(deeplab, plan_after=20).steps_macs["executed"] == 4 * (20 * everything + 30 * planned)
    assert run(deeplab, plan_after=90).steps_macs["executed"] == 4 * 50 * everything


def test_every_way_of_counting(deeplab: Framework) -> None:
    size, mask, parts = (CROP, CROP), case.body_mask(deeplab), deeplab.components()
    found = count_run(deeplab, recipe(), model=MODEL, mask=mask, frozen=PLAN)
    executed = count_executed_step(deeplab, size, components=parts, frozen=PLAN)
    flops = count_flops(deeplab, size, components=parts, mask=mask)
    assert found.steps_macs["executed"] == 200 * executed.total
    assert found.steps_macs["sparse"] == 200 * count_sparse_step(executed, deeplab, mask).total
    assert found.steps_macs["published"] == 200 * count_published_step(flops, frozen=PLAN).total
    assert found.steps_macs["sparse"] < found.steps_macs["executed"]


def test_norms_of_the_recipe(deeplab: Framework) -> None:
    still = count_executed_step(deeplab, (CROP, CROP), frozen=PLAN, norms="frozen").total
    assert run(deeplab, norms="frozen").steps_macs["executed"] == 200 * still
    assert 200 * still < run(deeplab).steps_macs["executed"]


def test_a_teacher_looks_at_every_region() -> None:
    """The image encoder as it is, on real tensors of the size it was trained at."""
    clip = random_clip(MODEL)
    with torch.no_grad():
        region = executed_macs(lambda: clip.visual(torch.zeros(1, 3, clip.image_size, clip.image_size)))
    assert count_region_macs(MODEL) == region
    found = count_run(case.make("gkc"), recipe(), model=MODEL, assumed=DataAssumptions(segments=2.5, nouns=7))
    assert auxiliary(found)["teacher"] == AuxiliaryCost("teacher", "region", count_region_macs(MODEL), 500)


def test_texts_are_read_once() -> None:
    clip = random_clip(MODEL)
    with torch.no_grad():
        prompt = executed_macs(lambda: clip.model.encode_text(clip.tokenizer(["a cat"])))
    found = auxiliary(count_run(case.make("gkc synonyms"), recipe(), model=MODEL, assumed=DataAssumptions(nouns=7)))
    names = sum(map(len, case.VOCABULARY.classes))
    assert found["vocabulary"] == AuxiliaryCost("vocabulary", "prompt", prompt, names * len(case.VOCABULARY.templates))
    assert found["nouns"] == AuxiliaryCost("nouns", "noun", prompt, 7)
    assert found["synonyms"].times >= 2 * names and found["synonyms"].each == prompt


def test_matching_against_the_real_one() -> None:
    """What a matching multiplies, per prediction, query, point and segment."""
    framework: Any = case.make("fcclip")
    batch = case.make_batch(framework.embed_dim)
    with torch.no_grad():
        everything = executed_macs(lambda: framework.losses(batch))
    framework.criterion.match = lambda masks, scores, targets: [
        (torch.arange(len(each.classes)), torch.arange(len(each.classes))) for each in targets
    ]
    with torch.no_grad():
        without = executed_macs(lambda: framework.losses(batch))
    segments = sum(map(len, batch.segments or ()))
    found = auxiliary(count_run(framework, recipe(), model=MODEL))
    assert found["matching"].each * segments == everything - without
    assert "teacher" not in found


def test_only_what_a_framework_needs_is_counted(deeplab: Framework) -> None:
    assert set(auxiliary(run(deeplab))) == {"vocabulary"}
    assert set(auxiliary(run(deeplab, bn_recalibrate=3))) == {"vocabulary", "recalibration"}
    assert auxiliary(run(deeplab, bn_recalibrate=3))["recalibration"].times == 12


def test_report_entry(deeplab: Framework) -> None:
    found = run(deeplab, plan_after=5)
    entry = found.to_json()
    assert RunCosts.from_json(json.loads(json.dumps(entry))) == found
    assert entry["executed"]["total"] == entry["executed"]["framework"] + entry["beside"]["vocabulary"]["total"]
    assert (entry["steps"], entry["warm_up"], entry["batch"], entry["image_size"]) == (50, 5, 4, [CROP, CROP])
    assert entry["assumed"] == {"segments": 11.0, "nouns": 10_000}


def test_a_recipe_that_trains_no_framework(deeplab: Framework) -> None:
    with pytest.raises(InputError, match=r"\[training\]"):
        count_run(deeplab, {"prune": {}}, model=MODEL)
