from __future__ import annotations

import pytest
import torch
from torch import nn

from ovstrans.recipes.schema import Optimizer
from ovstrans.training.loop import drop_frozen, make_optimizer, parameter_groups, set_rate

SETTINGS = Optimizer(lr=0.1, backbone_rate=0.2, weight_decay=0.3, clip_norm=0.0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5))
        self.names = nn.Embedding(6, 5)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.non_object = nn.Parameter(torch.randn(1, 5))


def names_of(model: nn.Module, group: dict) -> set[str]:
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def test_groups_part_backbone_from_head_and_decay_from_none() -> None:
    model = Model()
    groups = {group["name"]: group for group in parameter_groups(model, SETTINGS)}
    assert names_of(model, groups["backbone"]) == {"backbone.0.weight"}
    assert names_of(model, groups["backbone, no decay"]) == {"backbone.0.bias", "backbone.1.weight", "backbone.1.bias"}
    assert names_of(model, groups["head"]) == {"head.0.weight"}
    assert names_of(model, groups["head, no decay"]) == {
        "head.0.bias",
        "head.1.weight",
        "head.1.bias",
        "names.weight",
        "temperature",
        "non_object",
    }
    assert [groups[name]["weight_decay"] for name in ("backbone", "backbone, no decay", "head")] == [0.3, 0.0, 0.3]
    assert groups["backbone"]["lr"] == pytest.approx(0.02) and groups["head"]["lr"] == 0.1


def test_the_trunk_may_go_by_another_name() -> None:
    groups = {
        group["name"]: group for group in parameter_groups(nn.ModuleDict({"student": Model()}), SETTINGS, "student")
    }
    assert not groups["head"]["params"] and len(groups["backbone"]["params"]) == 2


def test_frozen_parameters_are_in_no_group() -> None:
    model = Model()
    model.backbone[0].weight.requires_grad_(False)
    held = [parameter for group in make_optimizer(model, SETTINGS).param_groups for parameter in group["params"]]
    assert not any(parameter is model.backbone[0].weight for parameter in held)
    assert len(held) == len(list(model.parameters())) - 1


def test_freezing_on_the_way_leaves_the_groups_a_resumed_run_builds() -> None:
    model = Model()
    optimizer = make_optimizer(model, SETTINGS)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    kept = {name: optimizer.state[p]["exp_avg"].clone() for name, p in model.named_parameters()}
    model.backbone[0].weight.requires_grad_(False)  # the only member of its group
    assert drop_frozen(optimizer) == 1
    assert model.backbone[0].weight not in optimizer.state and model.backbone[0].weight.grad is None
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(optimizer.state[parameter]["exp_avg"], kept[name])
    resumed = make_optimizer(model, SETTINGS)
    resumed.load_state_dict(optimizer.state_dict())
    assert torch.equal(resumed.state[model.head[0].weight]["exp_avg"], kept["head.0.weight"])


def test_set_rate_multiplies_the_base_of_each_group_and_does_not_pile_up() -> None:
    optimizer = make_optimizer(Model(), SETTINGS)
    for _ in range(3):
        set_rate(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.01, 0.05])
