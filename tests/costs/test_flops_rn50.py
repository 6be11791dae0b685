"""The backbone of CLIP RN50 layer by layer, against figures that were measured apart from this code.

Provenance: CLIP RN50's backbone measured apart from this project, by closed form and by torch's
dispatch counter over the upstream module; sums 28.0410 and 104.0585 GMAC.
"""

from __future__ import annotations

import pytest

from ovstrans.costs.flops import Macs, count_flops
from ovstrans.costs.params import count_params
from ovstrans.costs.target import load_target

# layer, MACs at 512x512, MACs at 800x1216
GOLDEN = """
conv1 56623104 210124800
conv2 603979776 2241331200
conv3 1207959552 4482662400
layer1.0.conv1 67108864 249036800
layer1.0.conv2 603979776 2241331200
layer1.0.conv3 268435456 996147200
layer1.0.downsample.0 268435456 996147200
layer1.1.conv1 268435456 996147200
layer1.1.conv2 603979776 2241331200
layer1.1.conv3 268435456 996147200
layer1.2.conv1 268435456 996147200
layer1.2.conv2 603979776 2241331200
layer1.2.conv3 268435456 996147200
layer2.0.conv1 536870912 1992294400
layer2.0.conv2 2415919104 8965324800
layer2.0.conv3 268435456 996147200
layer2.0.downsample.0 536870912 1992294400
layer2.1.conv1 268435456 996147200
layer2.1.conv2 603979776 2241331200
layer2.1.conv3 268435456 996147200
layer2.2.conv1 268435456 996147200
layer2.2.conv2 603979776 2241331200
layer2.2.conv3 268435456 996147200
layer2.3.conv1 268435456 996147200
layer2.3.conv2 603979776 2241331200
layer2.3.conv3 268435456 996147200
layer3.0.conv1 536870912 1992294400
layer3.0.conv2 2415919104 8965324800
layer3.0.conv3 268435456 996147200
layer3.0.downsample.0 536870912 1992294400
layer3.1.conv1 268435456 996147200
layer3.1.conv2 603979776 2241331200
layer3.1.conv3 268435456 996147200
layer3.2.conv1 268435456 996147200
layer3.2.conv2 603979776 2241331200
layer3.2.conv3 268435456 996147200
layer3.3.conv1 268435456 996147200
layer3.3.conv2 603979776 2241331200
layer3.3.conv3 268435456 996147200
layer3.4.conv1 268435456 996147200
layer3.4.conv2 603979776 2241331200
layer3.4.conv3 268435456 996147200
layer3.5.conv1 268435456 996147200
layer3.5.conv2 603979776 2241331200
layer3.5.conv3 268435456 996147200
layer4.0.conv1 536870912 1992294400
layer4.0.conv2 2415919104 8965324800
layer4.0.conv3 268435456 996147200
layer4.0.downsample.0 536870912 1992294400
layer4.1.conv1 268435456 996147200
layer4.1.conv2 603979776 2241331200
layer4.1.conv3 268435456 996147200
layer4.2.conv1 268435456 996147200
layer4.2.conv2 603979776 2241331200
layer4.2.conv3 268435456 996147200
"""
TABLE = {
    name: (int(small), int(large)) for name, small, large in (line.split() for line in GOLDEN.strip().splitlines())
}


@pytest.mark.parametrize(("column", "size", "total"), [(0, (512, 512), 28.0410), (1, (800, 1216), 104.0585)])
def test_every_layer(column: int, size: tuple[int, int], total: float) -> None:
    target = load_target("RN50")
    flops = count_flops(target.module, size, components=target.components)
    assert {layer.name: layer.dense for layer in flops.layers or ()} == {
        name: row[column] for name, row in TABLE.items()
    }
    assert round(flops.dense / 1e9, 4) == total
    assert flops.components == {"trunk": Macs(flops.dense, flops.dense)}


def test_batch_is_a_factor() -> None:
    target = load_target("RN50")
    assert count_flops(target.module, (512, 512), batch=3).dense == 3 * sum(row[0] for row in TABLE.values())


def test_parameters() -> None:
    target = load_target("RN50")
    found = count_params(target.module, target.components)
    # 23,474,016 in 55 convolutions, 53,248 in BatchNorms; without the attention pool.
    assert found.total == found.nonzero == found.trainable == 23_527_264


def test_odd_sizes_are_padded_only_inside_a_framework() -> None:
    module, backbone = load_target("deeplabv3", model="RN50"), load_target("RN50")
    padded = count_flops(module.module, (801, 1210), components=module.components)
    exact = count_flops(module.module, (832, 1216), components=module.components)
    assert padded.dense == exact.dense
    assert count_flops(backbone.module, (801, 1210)).dense < count_flops(backbone.module, (832, 1216)).dense


def test_deeplabv3_head_is_torchvisions() -> None:
    target = load_target("deeplabv3", model="RN50")
    parts = count_params(target.module, target.components).components
    # torchvision's DeepLabHead(2048, 1024): ASPP alone, and all of it, as torchvision itself counts them.
    assert parts["aspp"].total == 15_535_104
    assert parts["aspp"].total + parts["embed"].total == 16_388_608
    assert parts["classifier"].total == 1024 + 1
    assert parts["trunk"].total == 23_527_264
