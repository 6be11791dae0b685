from __future__ import annotations

import pytest
import torch

from ovstrans.cost.flops import count_flops
from ovstrans.cost.target import resolve
from ovstrans.cost.training import executed_training, published_training
from ovstrans.masks.mask import Mask

SIZE = (800, 1216)


def test_executed_on_rn50() -> None:
    """Published measurements of the RN50 trunk: 3 C less the input gradient of the first layer."""
    trunk = resolve("RN50").module
    everything = executed_training(trunk, SIZE)
    assert everything.forward == 104_058_470_400
    assert everything.total == 3 * 104_058_470_400 - 210_124_800
    squares = [f"layer{stage}.{block}.conv2" for stage, depth in enumerate((3, 4, 6, 3), 1) for block in range(depth)]
    saved = everything.total - executed_training(trunk, SIZE, frozen=squares).total
    assert round(saved / 1e9, 2) == 56.03


def test_a_frozen_prefix_needs_no_input_gradient() -> None:
    trunk = resolve("RN50").module
    for name, parameter in trunk.named_parameters():
        if "bn" in name and name.split(".")[1].startswith("bn"):
            parameter.requires_grad_(False)  # the stem's norms
    stem = ["conv1", "conv2", "conv3"]
    saved = executed_training(trunk, SIZE).backward - executed_training(trunk, SIZE, frozen=stem).backward
    weights, inputs = (0.2101248 + 2.2413312 + 4.4826624), (2.2413312 + 4.4826624)
    # The first body layers need no input gradient either: nothing before them trains.
    first = 0.2490368 + 0.9961472
    assert saved / 1e9 == pytest.approx(weights + inputs + first, abs=1e-6)


def test_published_formula() -> None:
    target = resolve("deeplabv3")
    body = {
        name: p for name, p in target.module.backbone.named_parameters() if p.dim() == 4 and name.startswith("layer")
    }
    generator = torch.Generator().manual_seed(0)
    mask = Mask({name: torch.rand(p.shape, generator=generator) < 0.1 for name, p in body.items()}, "RN-mini")
    flops = count_flops(target.module, (64, 64), components=target.components)
    sparse = count_flops(target.module, (64, 64), components=target.components, mask=mask)
    cost = {layer.name: layer.dense for layer in flops.layers}
    dense = published_training(flops)
    assert (dense.forward, dense.backward) == (flops.dense, 2 * flops.dense)
    frozen = ["conv2", "layer2.0.conv2"]
    assert dense.total - published_training(flops, frozen=frozen).total == sum(cost[name] for name in frozen)
    assert published_training(sparse).total == 2 * sparse.effective + flops.dense
    kept = {layer.name: layer.effective for layer in sparse.layers}
    saved = published_training(sparse).total - published_training(sparse, frozen=frozen).total
    assert saved == sum(kept[name] for name in frozen)


def test_executed_and_published_agree_but_for_the_first_layer() -> None:
    target = resolve("deeplabv3")
    flops = count_flops(target.module, (64, 64), components=target.components)
    executed, published = executed_training(target.module, (64, 64)), published_training(flops)
    first = next(layer.dense for layer in flops.layers if layer.name == "conv1")
    # The learned non-object is one row of the text product, so that has a weight gradient too.
    assert executed.forward == published.forward
    assert published.total - executed.total == first


def test_what_never_trains_has_no_weight_gradient() -> None:
    target = resolve("deeplabv3")
    flops = count_flops(target.module, (64, 64), components=target.components)
    saved = published_training(flops).backward - published_training(flops, fixed=["aspp"]).backward
    assert saved == flops.components()["aspp"]["dense"] > 0
