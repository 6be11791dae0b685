"""The decoder by itself, and what the head's options cost on RN50."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.backbone import encode_stages
from ovstrans.clip.load import Clip
from ovstrans.clip.text import TextClassifier
from ovstrans.costs.flops import count_flops
from ovstrans.costs.params import count_params
from ovstrans.frameworks.deeplabv3 import DeepLabV3
from ovstrans.frameworks.registry import build_on_meta
from ovstrans.recipes.load import load_recipe
from tests.frameworks.test_deeplabv3 import DECODERS, batch_of, make, normalised


def test_decoder_computes_what_deeplabv3_plus_does(clip: Clip, text: TextClassifier) -> None:
    """Chen et al. 2018, fig. 2, written out: reduce res2, raise ASPP, join, two 3x3, a 1x1 embedding."""
    framework = make(clip, text, decoder="plus").train()
    for module in framework.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    framework.losses(batch_of())  # moves the norms' statistics from 0 and 1 to what they should be
    framework.eval()
    state = framework.state_dict()

    def conv(x: Tensor, name: str, norm: str) -> Tensor:
        x = F.conv2d(x, state[f"{name}.weight"], padding=state[f"{name}.weight"].shape[-1] // 2)
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"]).relu()

    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        features = encode_stages(framework.backbone, normalised(clip, images))
        near = conv(features["res2"], "decoder.reduce.0", "decoder.reduce.1")
        far = F.interpolate(framework.aspp(features["res5"]), scale_factor=4, mode="bilinear")
        joined = torch.cat([far, near], 1)
        x = conv(joined, "decoder.refine.0", "decoder.refine.1")
        x = conv(x, "decoder.refine.4", "decoder.refine.5")
        expected = F.conv2d(x, state["embed.0.weight"], state["embed.0.bias"])
        assert (near.shape[1], joined.shape[1]) == (4, 20)
        torch.testing.assert_close(framework.features(images)[0], expected, rtol=1e-4, atol=1e-5)
    rates = [module.p for module in framework.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.5, 0.5, 0.1]


# Parameters of the options on RN50. Where each number is from, none of it from this code:
#   trunk    CLIP RN50 without its attention pool: 23,474,016 in convolutions, 53,248 in norms
#   aspp     torchvision's own count of ASPP(2048, ..., 256)
#   decoder  256*48 + 304*256*9 + 256*256*9, and twice the channels of each norm
#   embed    "none": torchvision's DeepLabHead(2048, 1024), 16,388,608, less ASPP; "plus": 257*1024
#   clip     value and output projections of the attention pool: 2049*2048 + 2049*1024
PARAMETERS = """
decoder clip_path      trunk       aspp   decoder    embed  classifier  clip_path
none    none      23,527,264 15,535,104         0  853,504        1,025          0
none    sum       23,527,264 15,535,104         0  853,504        1,025  6,294,528
none    ensemble  23,527,264 15,535,104         0  853,504        1,025  6,294,528
plus    none      23,527,264 15,535,104 1,303,648  263,168        1,025          0
plus    sum       23,527,264 15,535,104 1,303,648  263,168        1,025  6,294,528
plus    ensemble  23,527,264 15,535,104 1,303,648  263,168        1,025  6,294,528
"""
COLUMNS, *ROWS = (line.split() for line in PARAMETERS.strip().splitlines())


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_parameters_on_rn50(row: list[str]) -> None:
    framework = build_on_meta("deeplabv3", "RN50", options={"decoder": row[0], "clip_path": row[1]})
    parts = count_params(framework, framework.components())
    found = {name: part.total for name, part in parts.components.items()}
    expected = {name: int(cell.replace(",", "")) for name, cell in zip(COLUMNS[2:], row[2:], strict=True)}
    assert found == {name: count for name, count in expected.items() if count}
    assert parts.total == sum(expected.values())
    assert parts.total - parts.trainable == expected["clip_path"]


def test_published_parameters_leave_out_the_image_pooling_branch() -> None:
    """OpenTrans Tab. 1 says 40.3M without the class embedding; the code it counts drops the image-pooling branch
    and joins res5 itself in its place, 2048 channels for 256. What works has 40.37M."""
    recipe = load_recipe("deeplabv3-rn50-coco")["model"]
    options = {option: value for option, value in recipe.items() if option in DeepLabV3.defaults}
    framework = build_on_meta("deeplabv3", recipe["clip"], options={**options, "decoder": "plus"})
    parts = count_params(framework, framework.components()).components
    ours = sum(parts[name].total for name in ("trunk", "aspp", "decoder"))
    pooling, project = 2048 * 256 + 2 * 256, (2048 - 256) * 256
    assert ours == 40_366_016
    assert round((ours - pooling + project) / 1e6, 1) == 40.3


@pytest.mark.parametrize("decoder", DECODERS)
def test_multiply_accumulates_on_rn50(decoder: str) -> None:
    framework = build_on_meta("deeplabv3", "RN50", options={"decoder": decoder})
    parts = count_flops(framework, (800, 1216), components=framework.components()).components
    macs = {name: part.dense for name, part in parts.items()}
    stride16, stride4 = 50 * 76, 200 * 304
    # Stride 16 runs what follows the pool of layer4 at four times the positions; the rest is as at 32.
    late = 512 * 2048 + 1024 * 2048 + 2 * (2048 * 512 + 9 * 512 * 512 + 512 * 2048)
    assert macs["trunk"] == 104_058_470_400 + 3 * 25 * 38 * late
    # The pooled branch sees one position.
    assert macs["aspp"] == stride16 * (2048 * 256 + 3 * 9 * 2048 * 256 + 1280 * 256) + 2048 * 256
    if decoder == "none":
        assert "decoder" not in macs
        assert macs["embed"] == stride16 * (9 * 256 * 256 + 256 * 1024)
    else:
        assert macs["decoder"] == stride4 * (256 * 48 + 9 * 304 * 256 + 9 * 256 * 256)
        assert round(macs["decoder"] / 1e9, 2) == 79.19
        assert macs["embed"] == stride4 * 256 * 1024
        # OpenTrans Tab. 1, 241.3G: the head of stride 16 on a backbone of stride 32, norms counted too.
        assert (104_058_470_400 + macs["aspp"] + macs["decoder"]) / 241.3e9 == pytest.approx(1, abs=0.005)
