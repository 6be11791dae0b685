"""The mask is in force after every optimizer step, whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.errors import InputError, MismatchError
from tests.masks.dummies import Encoder, Framework, Wrapped, cut_values, make_mask

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda weights: torch.optim.SGD(weights, 0.1),
    "momentum": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda weights: torch.optim.Adam(weights, 0.01, weight_decay=0.1),
    "adamw": lambda weights: torch.optim.AdamW(weights, 0.01, weight_decay=0.1),
    "adamw amsgrad": lambda weights: torch.optim.AdamW(weights, 0.01, amsgrad=True, foreach=True),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, 0.01, momentum=0.9),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, *, autocast: bool = False) -> None:
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = (model(images) - 1).float().square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_zero_after_every_step(kind: str, autocast: bool) -> None:
    mask, framework = make_mask(), Framework()
    before = framework.backbone.layer1[0].conv1.weight.detach().clone()
    optimizer = OPTIMIZERS[kind](framework.parameters())
    mask.apply(framework)
    with mask.held(optimizer):
        for seed in range(4):
            step(framework, optimizer, seed, autocast=autocast)
            assert (cut_values(mask, framework.backbone) == 0).all()
    kept = mask.tensors["layer1.0.conv1.weight"]
    assert not torch.equal(framework.backbone.layer1[0].conv1.weight[kept], before[kept])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_without_holding_they_come_back(kind: str) -> None:
    mask, framework = make_mask(), Framework()
    optimizer = OPTIMIZERS[kind](framework.parameters())
    mask.apply(framework)
    step(framework, optimizer, 0)
    assert (cut_values(mask, framework.backbone) != 0).any()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_momentum_from_before_the_mask_does_not_bring_them_back(kind: str) -> None:
    mask, framework = make_mask(), Framework()
    optimizer = OPTIMIZERS[kind](framework.parameters())
    for seed in range(3):
        step(framework, optimizer, seed)
    with mask.held(optimizer, framework):
        assert (cut_values(mask, framework.backbone) == 0).all()
        for seed in range(3):
            step(framework, optimizer, seed)
            assert (cut_values(mask, framework.backbone) == 0).all()


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_kept_weights_train_as_under_a_multiplied_mask(kind: str) -> None:
    mask, held = make_mask(), Framework()
    reference = Framework()
    optimizer = OPTIMIZERS[kind](held.parameters())
    other = OPTIMIZERS[kind](reference.parameters())

    class Multiplied(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            named: dict[str, Any] = dict(reference.named_parameters())
            for key, kept in mask.tensors.items():
                named[f"backbone.{key}"] = named[f"backbone.{key}"] * kept
            return torch.func.functional_call(reference, named, (images,))

    with mask.held(optimizer, held):
        for seed in range(5):
            step(held, optimizer, seed)
            step(Multiplied(), other, seed)
    named = dict(reference.backbone.named_parameters())
    for key, value in held.backbone.named_parameters():
        kept = mask.tensors.get(key, torch.ones_like(value, dtype=torch.bool))
        torch.testing.assert_close(value[kept], named[key][kept])


def test_wrapped_model_and_frozen_layers() -> None:
    mask, framework = make_mask(), Framework()
    framework.backbone.layer1[0].requires_grad_(False)
    model = Wrapped(framework)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01, weight_decay=0.1)
    with mask.held(optimizer, model):
        frozen = framework.backbone.layer1[0].conv1.weight.clone()
        for seed in range(3):
            step(model, optimizer, seed)
        assert torch.equal(framework.backbone.layer1[0].conv1.weight, frozen)
    assert mask.violations(model) == []


def test_everything_frozen_is_no_mistake() -> None:
    mask, framework = make_mask(), Framework()
    framework.backbone.requires_grad_(False)
    with mask.held(torch.optim.SGD(framework.head.parameters(), 0.1), framework):
        assert mask.violations(framework) == []


def test_loading_dense_weights_inside_is_put_right_at_the_next_step_and_at_the_end() -> None:
    mask, framework = make_mask(), Framework()
    optimizer = torch.optim.SGD(framework.parameters(), 0.1)
    dense = Encoder(seed=5).state_dict()
    with mask.held(optimizer, framework):
        framework.backbone.load_state_dict(dense)
        step(framework, optimizer, 0)
        assert mask.violations(framework) == []
        framework.backbone.load_state_dict(dense)
    assert mask.violations(framework) == []


def test_an_error_inside_leaves_zeros_and_no_hooks() -> None:
    mask, framework = make_mask(), Framework()
    optimizer = torch.optim.SGD(framework.parameters(), 0.1)
    with pytest.raises(ZeroDivisionError), mask.held(optimizer, framework):
        framework.backbone.load_state_dict(Encoder().state_dict())
        raise ZeroDivisionError
    assert mask.violations(framework) == []
    step(framework, optimizer, 0)
    assert mask.violations(framework) != []


def test_nan_gradients_of_masked_weights_do_no_harm() -> None:
    mask, framework = make_mask(), Framework()
    optimizer = torch.optim.AdamW(framework.parameters(), 0.01)
    with mask.held(optimizer, framework):
        framework(torch.ones(1, 3, 4, 4)).sum().backward()
        for key, kept in mask.tensors.items():
            dict(framework.backbone.named_parameters())[key].grad[~kept] = float("nan")
        optimizer.step()
    assert all(torch.isfinite(weight).all() for weight in framework.parameters())


def test_two_models_under_one_mask() -> None:
    mask, first, second = make_mask(), Framework(), Framework(Encoder(seed=4))
    mask.apply(first)
    mask.apply(second)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], 0.1, momentum=0.9)
    with mask.held(optimizer):
        for seed in range(3):
            images = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
            F.mse_loss(first(images), second(images) + 1).backward()
            optimizer.step()
            assert mask.violations(first) == mask.violations(second) == []


def test_held_before_applied() -> None:
    with pytest.raises(InputError, match="apply"), make_mask().held(torch.optim.SGD(Encoder().parameters(), 0.1)):
        pass


def test_optimizer_of_another_model() -> None:
    mask = make_mask()
    with (
        pytest.raises(MismatchError, match="none of the masked weights"),
        mask.held(torch.optim.SGD(Framework().parameters(), 0.1), Framework()),
    ):
        pass


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_no_momentum_builds_up_on_masked_weights(kind: str) -> None:
    """The gradients are masked before the step; zeroing the weights after it alone would not show here."""
    mask, framework = make_mask(), Framework()
    optimizer = OPTIMIZERS[kind](framework.parameters())
    with mask.held(optimizer, framework):
        for seed in range(3):
            step(framework, optimizer, seed)
    named = dict(framework.backbone.named_parameters())
    for key, kept in mask.tensors.items():
        state = {name: value for name, value in optimizer.state[named[key]].items() if value.shape == kept.shape}
        assert state and all((value[~kept] == 0).all() and (value[kept] != 0).any() for value in state.values())


def test_holding_one_model_leaves_the_gradients_of_another_alone() -> None:
    mask, held, other = make_mask(), Framework(), Framework(Encoder(seed=4))
    mask.apply(other)
    optimizer = torch.optim.SGD(held.parameters(), 0.1)
    other(torch.ones(1, 3, 4, 4)).sum().backward()
    before = other.backbone.layer1[1].conv2.weight.grad.clone()
    with mask.held(optimizer, held):
        step(held, optimizer, 0)
    assert torch.equal(other.backbone.layer1[1].conv2.weight.grad, before)
    assert (before[~mask.tensors["layer1.1.conv2.weight"]] != 0).any()
