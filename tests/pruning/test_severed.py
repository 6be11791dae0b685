"""Masks for severed blocks: dead rows are pruned beside the budget, and the mask says whom it serves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ovstrans.clip.load import Clip
from ovstrans.clip.severance import encode_patches, sever
from ovstrans.errors import InputError, MismatchError
from ovstrans.frameworks.registry import check_severed
from ovstrans.masks.mask import Mask
from ovstrans.pruning.methods import Masks, Plan
from ovstrans.pruning.severed import describe_blocks, find_dead_rows, live_weights, prune_dead_rows, sever_encoders
from ovstrans.recipes.load import load_recipe
from ovstrans.recipes.schema import PruneRecipe
from tests.frameworks import deop_case as case
from tests.frameworks.test_deop import make
from tests.pruning.test_scores import keep_largest

LAST = f"transformer.resblocks.{case.LAST}.attn.in_proj_weight"
BEFORE = f"transformer.resblocks.{case.LAST - 1}.attn.in_proj_weight"
NAMES = [BEFORE, LAST]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return case.clip()


def weights(clip: Clip) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in clip.visual.named_parameters() if name in NAMES}


def test_dead_rows_are_outside_of_the_ranking_and_pruned(clip: Clip) -> None:
    own = weights(clip)
    dead = find_dead_rows(clip.visual, "3", NAMES)
    assert dead == {LAST: slice(0, 2 * case.WIDTH)}
    live = live_weights(own, dead)
    assert live[LAST].shape == (case.WIDTH, case.WIDTH) and live[BEFORE] is own[BEFORE]
    total = sum(weight.numel() for weight in live.values())
    counts = [total // 2, total // 5]
    plan = prune_dead_rows(Plan(NAMES, counts, lambda n, w, m: keep_largest(w, counts[n], m)), dead)
    masks: Masks | None = None
    for number, count in enumerate(counts):
        masks = plan.choose(number, own, masks)
        assert sum(int(kept.sum()) for kept in masks.values()) == count
        assert not masks[LAST][: 2 * case.WIDTH].any() and masks[LAST].shape == own[LAST].shape
    expected = keep_largest(live, counts[1])
    assert masks is not None and torch.equal(masks[BEFORE], expected[BEFORE])
    assert torch.equal(masks[LAST][2 * case.WIDTH :], expected[LAST])


def test_without_severed_blocks_a_plan_is_as_before(clip: Clip) -> None:
    plan = Plan(NAMES, [1], lambda n, w, m: {})
    assert find_dead_rows(clip.visual, "", NAMES) == {}
    assert prune_dead_rows(plan, {}) is plan
    assert find_dead_rows(clip.visual, "2,3", [BEFORE]) == {BEFORE: slice(0, 2 * case.WIDTH)}


def test_severed_encoders_run_severed_in_every_pass(clip: Clip) -> None:
    student, images = case.clip().visual, torch.rand(1, 3, 64, 64)
    before = student(images)
    sever_encoders("", student)
    assert torch.equal(student(images), before)
    plain = case.clip().visual
    sever_encoders("3", student)
    sever(plain, [3])
    seen: list[Any] = []
    student.ln_post.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    student(images)
    dense = encode_patches(plain, images).flatten(2).transpose(1, 2)
    assert torch.allclose(seen[0][:, 1:] @ student.proj, dense, atol=1e-5)
    assert not torch.allclose(student(images), before)


def test_the_mask_serves_a_framework_that_severs_these_blocks_only(clip: Clip) -> None:
    kept = torch.ones(3 * case.WIDTH, case.WIDTH, dtype=torch.bool)
    mask = Mask({LAST: kept}, model="ViT", recipe={"prune": {"severed": "3"}})
    assert mask.severed == "3" and Mask({LAST: kept}, model="ViT").severed == ""
    check_severed(mask, make(clip))
    check_severed(mask, make(clip, severed=[2, 3]))
    with pytest.raises(MismatchError, match="uses the queries and keys of block 3"):
        check_severed(mask, make(clip, two_stream=True))
    both = replace(mask, recipe={"prune": {"severed": "2,3"}})
    with pytest.raises(MismatchError, match="made with `severed=2,3`, so it serves deop alone.*block 2"):
        check_severed(both, make(clip))
    assert describe_blocks(clip.visual, "-1") == "3"


def test_a_recipe_records_severed_blocks_only_if_there_are_some() -> None:
    table = load_recipe("prune-mini")
    recipe = PruneRecipe.parse(table, "r")
    assert "severed" not in recipe.to_table()["prune"]
    table["prune"]["severed"] = "5"
    again = PruneRecipe.parse(table, "r")
    assert again.to_table()["prune"]["severed"] == "5" and PruneRecipe.parse(again.to_table(), "r") == again


def test_what_cannot_be_severed(clip: Clip) -> None:
    with pytest.raises(InputError, match="`severed=x`: numbers of blocks are needed"):
        find_dead_rows(clip.visual, "x", NAMES)
    with pytest.raises(InputError, match=r"`severed=1`: severed blocks 1: only the last blocks"):
        find_dead_rows(clip.visual, "1", NAMES)
    with pytest.raises(InputError, match="`severed=3`: patch severance: needs one of open_clip's own ViT"):
        find_dead_rows(nn.Linear(2, 2), "3", NAMES)
