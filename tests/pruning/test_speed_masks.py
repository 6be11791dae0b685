"""Masks of every granularity from start to file: what they record, resumed runs, the runtime's kernel, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovstrans.clip.load import Clip
from ovstrans.errors import CheckFailed, InputError
from ovstrans.interop.inspect import inspect
from ovstrans.masks.file import load_mask, save_mask
from ovstrans.masks.granularity import make_groups
from ovstrans.masks.mask import Mask
from ovstrans.progress import Progress
from ovstrans.pruning import methods
from ovstrans.pruning.prune import choose_recipe, prune
from ovstrans.recipes.schema import Prune, PruneRecipe
from ovstrans.runtime.packing import pack_conv
from tests.frameworks import deop_case as case
from tests.pruning.conftest import Pictures, small_clip, small_settings

NONE = "prune.steps=0"


def settings_for(*changes: str, **section: Any) -> PruneRecipe:
    """Three short rounds, with keys of [prune] over them."""
    recipe = small_settings(*changes)
    return replace(recipe, prune=replace(recipe.prune, **section))


class Killed(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize(
    "section",
    [
        {"granularity": "4x1", "allocation": "macs", "macs": 0.3},
        {"granularity": "2:4", "rate": 0.2},
        {"granularity": "filter", "allocation": "erk"},
        {"allocation": "alpha", "tau": 0.3},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(section: dict[str, Any], pictures: Pictures, tmp_path: Path) -> None:
    settings = settings_for("prune.steps=1", **section)
    wanted = prune(small_clip(), recipe=settings, data=pictures)

    def die(progress: Progress) -> None:
        if progress.done == 2:
            raise Killed

    out = tmp_path / "mask.safetensors"
    given: dict[str, Any] = {"recipe": settings, "data": pictures, "out": out, "plot": False}
    with pytest.raises(Killed):
        prune(small_clip(), **given, progress=die)
    found = prune(small_clip(), **given, resume=True)
    assert found.mask == wanted.mask and [each.kept for each in found.rounds] == [each.kept for each in wanted.rounds]
    assert found.rounds[-1].kept == found.mask.kept
    assert all(torch.equal(found.weights[name], wanted.weights[name]) for name in wanted.weights)
    assert all(bool((found.weights[name][~kept] == 0).all()) for name, kept in found.mask.tensors.items())


def test_files_say_what_was_chosen_and_the_default_says_nothing(clip: Clip, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    plain = prune(clip, recipe=small_settings(NONE), data=None)
    assert not {"granularity", "allocation", "macs", "tau"} & plain.mask.recipe["prune"].keys()
    assert "macs" not in plain.mask.recipe
    assert (plain.mask.granularity, plain.mask.allocation) == ("element", "global")
    assert (Mask(plain.mask.tensors, model="").granularity, Mask(plain.mask.tensors, model="").allocation) == ("", "")

    settings = settings_for(NONE, granularity="4x1", allocation="macs", macs=0.3)
    made = prune(clip, recipe=settings, out=out, plot=False)
    recorded, macs = made.mask.recipe["prune"], made.mask.recipe["macs"]
    assert recorded["sparsity"] == made.mask.sparsity != 0.8 and recorded["macs"] == 0.3
    assert macs["image_size"] == [32, 32] and 0.29 < macs["kept"] / macs["dense"] <= 0.3
    assert f"{macs['kept'] / macs['dense']:.2%} of the MACs left" in made.describe_macs()
    found = inspect(out, verify=True)
    assert (found.facts["granularity"], found.facts["allocation"], found.facts["macs"]) == ("4x1", "macs", macs)
    assert "every layer is pruned in 4x1" in found.checks

    broken = dict(made.mask.tensors)
    name = next(name for name, kept in broken.items() if bool(kept.any()))
    broken[name] = broken[name].clone()
    broken[name].view(-1)[int(broken[name].flatten().nonzero()[0])] = False
    save_mask(out, Mask(broken, model="", method="imp", recipe=made.mask.recipe))
    assert inspect(out).facts["granularity"] == "4x1"
    with pytest.raises(CheckFailed, match=f"{name} is not pruned in 4x1"):
        inspect(out, verify=True)
    assert load_mask(out).granularity == "4x1"


@pytest.mark.parametrize("method", ["imp", "magnitude", "random"])
def test_blocks_are_picked_up_by_the_kernel_of_blocks(clip: Clip, method: str) -> None:
    made = prune(clip, recipe=settings_for(NONE, granularity="4x1", method=method))
    for name, kept in made.mask.tensors.items():
        weight = (made.weights[name] * kept).numpy().astype(np.float32)
        packed = pack_conv(weight, np.zeros(len(weight), np.float32))
        assert packed.kernel == "blocks" and packed.stored == packed.nonzero == int(kept.sum())


def test_two_of_four_names_the_layers_that_stay_dense(caplog: pytest.LogCaptureFixture) -> None:
    encoder = torch.nn.Module()
    encoder.layer1 = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 1), torch.nn.Conv2d(8, 8, 3))
    plan = methods.make_plan(encoder, Prune("magnitude", 0.9, 0.1, 0, 0, "body", granularity="2:4"), 0)
    masks = plan.choose(0, methods.weights_of(encoder, plan.names), None)
    assert [int(kept.sum()) for kept in masks.values()] == [48, 288]
    assert "2:4: dense, as their input channels are no multiple of 4: layer1.0" in caplog.text
    with pytest.raises(InputError, match="no layer in scope has input channels that are a multiple of 4"):
        methods.make_plan(encoder, Prune("magnitude", 0.9, 0.1, 0, 0, "layer1.0", granularity="2:4"), 0)


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk", "macs", "alpha"])
@pytest.mark.parametrize("granularity", ["element", "4x1", "filter"])
def test_severed_blocks_are_outside_of_every_budget(granularity: str, allocation: str) -> None:
    encoder = case.clip().visual
    section = Prune(
        "magnitude",
        0.5,
        0.3,
        0,
        0,
        "body",
        granularity,
        allocation,
        macs=0.4 if allocation == "macs" else 0.0,
        severed="3",
    )
    plan = methods.make_plan(encoder, section, 0, image_size=64)
    masks = plan.choose(0, methods.weights_of(encoder, plan.names), None)
    last = f"transformer.resblocks.{case.LAST}.attn.in_proj_weight"
    assert not masks[last][: 2 * case.WIDTH].any() and masks[last][2 * case.WIDTH :].any()
    groups = make_groups(masks, granularity)
    assert all(groups[name].fits(kept) for name, kept in masks.items())
    spent = sum(int(kept.sum()) * plan.positions.get(name, 1) for name, kept in masks.items())
    largest = max(each.size * plan.positions.get(name, 1) for name, each in groups.items())
    assert 0 <= plan.counts[-1] - spent < largest


def test_two_ways_to_say_how_much_are_refused(clip: Clip) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"macs": 0.1, "sparsity": 0.9}, "`macs=0.1`: says how much is pruned, and so does `sparsity=0.9`"),
        ({"macs": 0.0}, "`macs=0`: must be above 0"),
        ({"macs": 1.5}, "between 0 and 1"),
        ({"macs": 0.1, "allocation": "uniform"}, "`macs=0.1` is for `allocation=macs`, not uniform"),
        ({"macs": 0.1, "granularity": "2:4"}, "`granularity=2:4` keeps half of every layer; leave out `macs=0.1`"),
        ({"granularity": "2:4", "sparsity": 0.9}, "`sparsity=0.9`: `granularity=2:4` prunes half"),
        ({"granularity": "2:4", "allocation": "erk"}, "nothing to allocate; leave out `allocation=erk`"),
        ({"granularity": "8x1"}, "must be one of element, 4x1, 2:4, filter"),
        ({"allocation": "best"}, "must be one of global, uniform, erk, macs, alpha"),
        ({"settings": ["prune.tau=0.3"]}, "`prune.tau=0.3` is for `allocation=alpha`, not global"),
    ]
    for options, words in refused:
        with pytest.raises(InputError, match=words):
            choose_recipe(**options)
    assert choose_recipe(macs=0.1).prune.allocation == "macs"
    assert choose_recipe(settings=["prune.macs=0.1"]).prune.allocation == "macs"
    assert choose_recipe(granularity="2:4", sparsity=0.5).prune.granularity == "2:4"
    pattern = prune(clip, recipe=small_settings(NONE)).mask
    for name, value in (("granularity", "4x1"), ("allocation", "erk"), ("macs", 0.1)):
        with pytest.raises(InputError, match=f"`{name}`: `like` takes the layers and densities of its mask"):
            methods.make_plan(
                clip.visual, replace(settings_for(method="random").prune, **{name: value}), 0, like=pattern
            )
