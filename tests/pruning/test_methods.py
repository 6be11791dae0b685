from __future__ import annotations

import dataclasses

import pytest
import torch

from ovstrans.clip.load import Clip, create_image_encoder
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.mask import Mask
from ovstrans.pruning.methods import make_plan, weights_of
from ovstrans.recipes.schema import Prune

IMP = Prune(method="imp", sparsity=0.8, rate=0.5, steps=3, final_steps=0, scope="body")


@pytest.mark.parametrize("scope", ["body", "backbone", "layer3.*,layer4.0.conv2"])
@pytest.mark.parametrize("method", ["imp", "magnitude", "random"])
def test_final_count_is_exact_and_only_the_scope_is_cut(clip: Clip, method: str, scope: str) -> None:
    prune = dataclasses.replace(IMP, method=method, scope=scope)
    plan = make_plan(clip.visual, prune, seed=0)
    masks = None
    for number in range(len(plan.counts)):
        masks = plan.choose(number, weights_of(clip.visual, plan.names), masks)
        assert sum(int(mask.sum()) for mask in masks.values()) == plan.counts[number]
    assert masks is not None
    shapes = {name: parameter.shape for name, parameter in clip.visual.named_parameters()}
    total = sum(shapes[name].numel() for name in masks)
    assert plan.counts[-1] == round((1 - 0.8) * total)
    allowed = {"body": ("layer",), "backbone": ("layer", "conv2", "conv3")}.get(scope, ("layer3", "layer4.0.conv2"))
    assert all(name.startswith(allowed) and len(shapes[name]) == 4 for name in masks)
    convs = {name for name, shape in shapes.items() if len(shape) == 4 and name.startswith(allowed)}
    assert set(masks) == convs


def test_every_method_takes_as_many_rounds(clip: Clip) -> None:
    counts = [
        len(make_plan(clip.visual, dataclasses.replace(IMP, method=name), 0).counts)
        for name in ("imp", "magnitude", "random")
    ]
    assert counts == [3, 3, 3]


def test_one_shot_methods_keep_their_first_choice(clip: Clip) -> None:
    plan = make_plan(clip.visual, dataclasses.replace(IMP, method="magnitude"), seed=0)
    weights = weights_of(clip.visual, plan.names)
    first = plan.choose(0, weights, None)
    other = {name: torch.flip(weight, [0]) for name, weight in weights.items()}
    assert plan.choose(1, other, first) is first


def test_random_follows_the_seed(clip: Clip) -> None:
    prune = dataclasses.replace(IMP, method="random")
    drawn = []
    for seed in (1, 1, 2):
        plan = make_plan(clip.visual, prune, seed)
        drawn.append(
            torch.cat([m.flatten() for m in plan.choose(0, weights_of(clip.visual, plan.names), None).values()])
        )
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_like_takes_layers_densities_and_rounds(clip: Clip) -> None:
    plan = make_plan(clip.visual, IMP, seed=0)
    weights = weights_of(clip.visual, plan.names)
    pattern = Mask(plan.choose(2, weights, None), model="")
    prune = dataclasses.replace(IMP, method="random", sparsity=0.1, scope="backbone")
    alike = make_plan(clip.visual, prune, 0, like=pattern)
    drawn = Mask(alike.choose(0, weights_of(clip.visual, alike.names), None), model="")
    assert drawn.layer_densities() == pattern.layer_densities()
    assert alike.counts == [pattern.kept] * len(plan.counts)
    assert any(not torch.equal(drawn.tensors[name], pattern.tensors[name]) for name in pattern.tensors)


def test_like_needs_random_and_the_same_architecture(clip: Clip) -> None:
    pattern = Mask({"layer1.0.conv1.weight": torch.ones(8, 8, 1, 1, dtype=torch.bool)}, model="")
    with pytest.raises(InputError, match="`method=random`"):
        make_plan(clip.visual, IMP, 0, like=pattern)
    with torch.device("meta"):
        other = create_image_encoder("RN-mini")
    with pytest.raises(MismatchError, match=r"layer1\.0\.conv1"):
        make_plan(other, dataclasses.replace(IMP, method="random"), 0, like=pattern)


def test_sparsity_that_leaves_nothing(clip: Clip) -> None:
    with pytest.raises(InputError, match="leaves none"):
        make_plan(clip.visual, dataclasses.replace(IMP, sparsity=0.9999999), 0)


def test_scope_that_matches_nothing(clip: Clip) -> None:
    with pytest.raises(InputError, match="attnpool"):
        make_plan(clip.visual, dataclasses.replace(IMP, scope="attnpool.*"), 0)
