from __future__ import annotations

import pytest
import torch
from torch import nn

from ovstrans.clip.layers import backbone_layers, norm_name
from ovstrans.clip.load import create_image_encoder
from ovstrans.environment import pick_precision
from ovstrans.errors import MismatchError
from ovstrans.frameworks.base import Batch, Framework
from ovstrans.training.freeze import check_plan, freeze, recalibrate, train_mode

PLAN = ["conv1", "layer1.0.conv2", "layer2.0.downsample.0"]


@pytest.fixture(scope="module")
def encoders() -> list[nn.Module]:
    return [create_image_encoder() for _ in range(3)]


class Segmenter(Framework):
    """A framework that is an image encoder and nothing else."""

    def __init__(self, encoder: nn.Module) -> None:
        nn.Module.__init__(self)
        self.backbone = encoder

    def logits(self, images: torch.Tensor, text: object = None) -> torch.Tensor:
        return self.backbone(images)


def test_every_conv_of_an_encoder_is_followed_by_the_norm_of_its_name(encoders: list[nn.Module]) -> None:
    modules = dict(encoders[0].named_modules())
    for name, conv in backbone_layers(encoders[0]).items():
        norm = modules[norm_name(name)]
        assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == len(conv)


def test_freezing_touches_the_planned_weights_and_nothing_else(encoders: list[nn.Module]) -> None:
    encoder = encoders[0]
    encoder.layer4[0].conv1.weight.requires_grad_(False)  # frozen for another reason: stays so
    encoder.conv1.weight.grad = torch.ones_like(encoder.conv1.weight)
    encoder.layer1[0].conv1.weight.grad = torch.ones_like(encoder.layer1[0].conv1.weight)
    assert freeze(encoder, PLAN) == ["conv1.weight", "layer1.0.conv2.weight", "layer2.0.downsample.0.weight"]
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"{name}.weight" for name in (*PLAN, "layer4.0.conv1")}
    assert encoder.conv1.weight.grad is None and encoder.layer1[0].conv1.weight.grad is not None


def test_norms_freeze_with_their_layers_where_asked(encoders: list[nn.Module]) -> None:
    encoder = encoders[1]
    freeze(encoder, PLAN, norms=True)
    train_mode(encoder, norms="train", frozen=PLAN, freeze_norms=True)
    after_frozen = {norm_name(name) for name in PLAN}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.training, module.weight.requires_grad) == ((name not in after_frozen),) * 2


def test_frozen_norms_of_the_backbone_do_not_change_in_training() -> None:
    encoder = create_image_encoder().eval()
    train_mode(encoder, norms="frozen")
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(norm.training or norm.weight.requires_grad or norm.bias.requires_grad for norm in norms)
    assert encoder.training and encoder.layer1.training
    before = {name: value.clone() for name, value in encoder.state_dict().items() if "running" in name}
    encoder(torch.randn(2, 3, 96, 96))
    assert before and all(torch.equal(encoder.state_dict()[name], value) for name, value in before.items())


def test_a_plan_for_another_architecture_names_the_layer() -> None:
    with torch.device("meta"):
        encoder = create_image_encoder()
    check_plan(PLAN, encoder, "alpha.json")
    with pytest.raises(MismatchError, match=r"alpha.json: freezes 'layer3.5.conv1'.*another architecture"):
        check_plan([*PLAN, "layer3.5.conv1"], encoder, "alpha.json")


def test_recalibration_gives_the_plain_mean_over_the_batches(encoders: list[nn.Module]) -> None:
    encoder = encoders[2]
    weights = {name: parameter.clone() for name, parameter in encoder.named_parameters()}
    images = [torch.rand(2, 3, 96, 96) for _ in range(3)]
    encoder.train()
    encoder(5 + torch.rand(2, 3, 96, 96))  # statistics of other images, which must not count
    encoder.layer1[0].bn1.eval()
    modes = [module.training for module in encoder.modules()]
    seen = recalibrate(Segmenter(encoder), [Batch(each) for each in images], pick_precision("fp32", "cpu"))
    with torch.no_grad():
        first = [encoder.conv1(each) for each in images]  # the first norm's input depends on no other norm
    mean = torch.stack([each.mean((0, 2, 3)) for each in first]).mean(0)
    variance = torch.stack([each.var((0, 2, 3), unbiased=True) for each in first]).mean(0)
    assert seen == 3
    assert torch.allclose(encoder.bn1.running_mean, mean, atol=1e-6)
    assert torch.allclose(encoder.bn1.running_var, variance, rtol=1e-4)
    assert encoder.bn1.momentum == 0.1 and encoder.bn1.num_batches_tracked == 3
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(parameter, weights[name]) for name, parameter in encoder.named_parameters())
