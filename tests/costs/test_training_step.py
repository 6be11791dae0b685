from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ovstrans.clip.layers import backbone_layers
from ovstrans.costs.flops import count_flops
from ovstrans.costs.params import kept_weights
from ovstrans.costs.target import Target, load_target
from ovstrans.costs.training_step import (
    TrainingStep,
    count_executed_step,
    count_published_step,
    count_sparse_step,
)
from ovstrans.errors import MismatchError
from ovstrans.frameworks.base import Framework
from ovstrans.masks.mask import Mask
from tests.costs import training_case as case

RN50_SIZE = (800, 1216)
PLANS = case.plans()


@pytest.fixture(scope="module")
def rn50() -> Target:
    return load_target("RN50")


@pytest.fixture(scope="module")
def frameworks() -> dict[str, Framework]:
    return {name: case.make(name) for name in case.CASES}


def by_name(found: TrainingStep) -> dict[str, tuple[int, int, int]]:
    """Layer to forward, input gradient and weight gradient of one image."""
    return {
        each.name: (
            each.forward // found.batch,
            each.input_gradient // found.batch,
            each.weight_gradient // found.batch,
        )
        for each in found.layers or ()
    }


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", case.CASES)
def test_frameworks_against_their_real_losses(frameworks: dict[str, Framework], name: str, plan: str) -> None:
    """The dispatch counter on a real step of the real losses, on real tensors; the loss of captions alone has products
    that are not ours to count."""
    framework = frameworks[name]
    forward, backward = case.real_step(framework, PLANS[plan])
    found = count_executed_step(framework, case.SIZE, components=framework.components(), frozen=PLANS[plan])
    exact = not (framework.target_requirements.captions or framework.target_requirements.teacher)
    assert found.forward == (forward if exact else pytest.approx(forward, rel=1e-3))
    assert found.backward == (backward if exact else pytest.approx(backward, rel=1e-3))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("norms", "freeze_norms"), [("frozen", False), ("train", True)])
def test_norms_that_do_not_train(frameworks: dict[str, Framework], plan: str, norms: str, freeze_norms: bool) -> None:
    framework = frameworks["fcclip"]
    given: dict[str, Any] = {"norms": norms, "freeze_norms": freeze_norms}
    found = count_executed_step(framework, case.SIZE, frozen=PLANS[plan], **given)
    real = case.real_step(framework, PLANS[plan], **given)
    assert (found.forward, found.backward) == real


def test_masked_weights_run_dense(frameworks: dict[str, Framework]) -> None:
    framework = frameworks["deeplabv3"]
    mask, plan = case.body_mask(framework), PLANS["every second"]
    found = count_executed_step(framework, case.SIZE, frozen=plan)
    assert (found.forward, found.backward) == case.real_step(framework, plan, mask=mask)
    assert (found.forward, found.backward) == case.real_step(framework, plan)


def test_rn50_as_measured(rn50: Target) -> None:
    """Published measurements of the RN50 trunk: 3 C less the input gradient of the first layer."""
    everything = count_executed_step(rn50.module, RN50_SIZE)
    assert everything.forward == 104_058_470_400
    assert everything.total == 3 * 104_058_470_400 - 210_124_800
    squares = [f"layer{stage}.{block}.conv2" for stage, depth in enumerate((3, 4, 6, 3), 1) for block in range(depth)]
    saved = everything.total - count_executed_step(rn50.module, RN50_SIZE, frozen=squares).total
    assert round(saved / 1e9, 2) == 56.03


@pytest.mark.parametrize("freeze_norms", [False, True])
def test_rn50_in_closed_form(rn50: Target, freeze_norms: bool) -> None:
    """Stem and layer1 frozen. Norms that train keep all input gradients but the first alive; without them nothing of
    the prefix has any, nor has what stands right behind it."""
    dense = {layer.name: layer.dense for layer in count_flops(rn50.module, (64, 64)).layers or ()}
    prefix = [name for name in dense if not name.startswith(("layer2", "layer3", "layer4"))]
    found = by_name(count_executed_step(rn50.module, (64, 64), frozen=prefix, freeze_norms=freeze_norms))
    behind = {"layer2.0.conv1", "layer2.0.downsample.0"}
    blind = {*prefix, *behind} if freeze_norms else {"conv1"}
    expected = {
        name: (macs, 0 if name in blind else macs, 0 if name in prefix else macs) for name, macs in dense.items()
    }
    assert found == expected


def test_stem_and_layer1_with_their_norms(rn50: Target) -> None:
    """Published: it saves 43.54 G at 800x1216, 19.88 G where only the weights are frozen."""
    prefix = [name for name in backbone_layers(rn50.components["trunk"]) if name.startswith(("conv", "layer1"))]
    everything = count_executed_step(rn50.module, RN50_SIZE).total
    weights = count_executed_step(rn50.module, RN50_SIZE, frozen=prefix).total
    both = count_executed_step(rn50.module, RN50_SIZE, frozen=prefix, freeze_norms=True).total
    assert (round((everything - weights) / 1e9, 2), round((everything - both) / 1e9, 2)) == (19.88, 43.54)


def test_what_requires_no_gradient_counts_as_frozen(frameworks: dict[str, Framework]) -> None:
    found = count_executed_step(
        frameworks["fcclip frozen"], case.SIZE, components=frameworks["fcclip frozen"].components()
    )
    trunk = found.components["trunk"]
    assert trunk.forward > 0 and trunk.input_gradient == trunk.weight_gradient == 0
    assert "clip_head" not in found.components  # no part in training


def test_deep_supervision_is_counted(frameworks: dict[str, Framework]) -> None:
    """Masks and classes of all three predictions, where inference names the last alone."""
    framework = frameworks["fcclip"]
    training = count_executed_step(framework, case.SIZE, components=framework.components()).components
    inference = count_flops(framework, case.SIZE, components=framework.components()).components
    assert training["classifier"].forward > 2 * inference["classifier"].dense
    assert training["pixel_decoder"].forward == inference["pixel_decoder"].dense


def test_zeros_are_skipped_by_a_sparse_engine(frameworks: dict[str, Framework]) -> None:
    framework = frameworks["deeplabv3"]
    mask, parts = case.body_mask(framework), framework.components()
    executed = count_executed_step(framework, case.SIZE, components=parts, frozen=PLANS["every second"])
    sparse = by_name(count_sparse_step(executed, framework, mask))
    kept = kept_weights(framework, mask)
    for name, dense in by_name(executed).items():
        weight = f"backbone.{name}.weight"
        if weight not in kept:
            assert sparse[name] == dense
            continue
        share = kept[weight] / framework.get_parameter(weight).numel()
        assert sparse[name] == pytest.approx([share * value for value in dense])
        assert 0.05 < share < 0.15
    assert count_sparse_step(executed, framework, None) == executed
    with pytest.raises(MismatchError):
        count_sparse_step(executed, framework, Mask({"layer9.0.conv1.weight": torch.ones(3, 3, 1, 1) > 0}, "RN-mini"))


def test_published_formula() -> None:
    target = load_target("deeplabv3")
    mask = case.body_mask(target.module)
    flops = count_flops(target.module, (64, 64), components=target.components)
    sparse = count_flops(target.module, (64, 64), components=target.components, mask=mask)
    cost = {layer.name: layer.dense for layer in flops.layers or ()}
    dense = count_published_step(flops)
    assert (dense.forward, dense.input_gradient, dense.weight_gradient) == (flops.dense,) * 3
    frozen = ["conv2", "layer2.0.conv2"]
    assert dense.total - count_published_step(flops, frozen=frozen).total == sum(cost[name] for name in frozen)
    assert count_published_step(sparse).total == 2 * sparse.effective + flops.dense
    kept = {layer.name: layer.effective for layer in sparse.layers or ()}
    saved = count_published_step(sparse).total - count_published_step(sparse, frozen=frozen).total
    assert saved == sum(kept[name] for name in frozen)


def test_what_never_trains_has_no_weight_gradient() -> None:
    target = load_target("deeplabv3")
    flops = count_flops(target.module, (64, 64), components=target.components)
    saved = count_published_step(flops).backward - count_published_step(flops, fixed=["aspp"]).backward
    assert saved == flops.components["aspp"].dense > 0


def test_the_batch_does_not_matter(rn50: Target) -> None:
    two, five = (count_executed_step(rn50.module, (64, 64), batch=batch) for batch in (2, 5))
    assert by_name(two) == by_name(five) and two.total == five.total


def test_report_entry(frameworks: dict[str, Framework]) -> None:
    framework = frameworks["gkc"]
    found = count_executed_step(framework, case.SIZE, components=framework.components())
    entry = found.to_json()
    assert entry["total"] == entry["forward"] + entry["backward"]
    assert entry["backward"] == entry["input_gradient"] + entry["weight_gradient"]
    for kind in ("forward", "input_gradient", "weight_gradient"):
        assert sum(part[kind] for part in entry["components"].values()) == pytest.approx(entry[kind], abs=5)
        assert sum(layer[kind] for layer in entry["layers"]) == pytest.approx(entry[kind], abs=len(entry["layers"]))
    assert {"conv1", "layer4.0.conv3"} <= {layer["name"] for layer in entry["layers"]}
    assert TrainingStep.from_json(entry).to_json() == entry
    assert "layers" not in replace(found, layers=None).to_json()


def test_the_module_is_left_as_it_was(frameworks: dict[str, Framework]) -> None:
    framework = frameworks["fcclip"]
    framework.eval()
    framework.head.train()
    before = {name: inner.training for name, inner in framework.named_modules()}
    trains = {name: each.requires_grad for name, each in framework.named_parameters()}
    count_executed_step(framework, case.SIZE, frozen=PLANS["prefix"])
    assert {name: inner.training for name, inner in framework.named_modules()} == before
    assert {name: each.requires_grad for name, each in framework.named_parameters()} == trains
    assert all(each.grad is None for each in framework.parameters())


def test_a_plan_of_another_model_is_refused(rn50: Target) -> None:
    with pytest.raises(MismatchError, match=r"layer9\.0\.conv1"):
        count_executed_step(rn50.module, (64, 64), frozen=["layer9.0.conv1"])
