"""The loop against a plain one, written out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from ovstrans.environment import pick_precision
from ovstrans.errors import InputError
from ovstrans.training.distributed import World
from ovstrans.training.loop import Step, seed_step, train

Pair = tuple[torch.Tensor, torch.Tensor]


class Regressor(nn.Module):
    """Two losses from a linear layer with dropout, so that random numbers matter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.drop = nn.Dropout(0.5)
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(8).view(2, 4) / 8)
            self.linear.bias.zero_()

    def forward(self, batch: Pair) -> dict[str, torch.Tensor]:
        images, targets = batch
        out = self.linear(self.drop(images))
        return {"squared": (out - targets).pow(2).mean(), "absolute": 0.5 * out.abs().mean()}


def pairs(start: int = 0) -> Iterator[Pair]:
    step = start
    while True:
        generator = torch.Generator().manual_seed(step)
        yield torch.randn(3, 4, generator=generator), torch.randn(3, 2, generator=generator)
        step += 1


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    groups = [
        {"params": [model.linear.weight], "base_lr": 0.1, "lr": 0.1},
        {"params": [model.linear.bias], "base_lr": 0.2},
    ]
    return torch.optim.AdamW(groups, lr=0.2, weight_decay=0.1)


def run(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Any], steps: range, **changes: Any
) -> list[Step]:
    precision = pick_precision("fp32", "cpu")
    arguments = {
        "rate": lambda step: 1.0 - step / 10,
        "precision": precision,
        "scaler": precision.scaler(),
        "clip_norm": 0.5,
        "mask": None,
        "world": World(0, 1, torch.device("cpu")),
        "seed": 3,
        **changes,
    }
    return list(train(model, batches, optimizer, steps=steps, **arguments))


def test_equals_a_plain_loop_to_the_last_bit() -> None:
    model, plain = Regressor(), Regressor()
    steps = run(model, optimizer_of(model), pairs(), range(5))

    optimizer, batches = optimizer_of(plain), pairs()
    norms = []
    for number in range(5):
        seed_step(3, number)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * (1.0 - number / 10)
        losses = plain(next(batches))
        optimizer.zero_grad()
        (losses["squared"] + losses["absolute"]).backward()
        norms.append(float(torch.sqrt(sum(p.grad.pow(2).sum() for p in plain.parameters()))))
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()

    assert torch.equal(model.linear.weight, plain.linear.weight)
    assert torch.equal(model.linear.bias, plain.linear.bias)
    assert [step.number for step in steps] == [1, 2, 3, 4, 5]
    assert [step.grad_norm for step in steps] == pytest.approx(norms)
    assert [step.rate for step in steps] == pytest.approx([0.2, 0.18, 0.16, 0.14, 0.12])
    assert all(step.loss == pytest.approx(sum(step.losses.values())) and len(step.losses) == 2 for step in steps)


def test_going_on_in_the_middle_equals_going_through() -> None:
    through, parts = Regressor(), Regressor()
    run(through, optimizer_of(through), pairs(), range(6))
    optimizer = optimizer_of(parts)
    run(parts, optimizer, pairs(), range(3))
    torch.rand(17)
    run(parts, optimizer, pairs(3), range(3, 6))
    assert torch.equal(through.linear.weight, parts.linear.weight)


def test_every_process_has_random_numbers_of_its_own() -> None:
    model, plain, first = Regressor(), Regressor(), Regressor()
    (step,) = run(model, optimizer_of(model), pairs(), range(1), world=World(1, 1, torch.device("cpu")))
    seed_step(3, 0, rank=1)
    assert step.losses["squared"] == pytest.approx(plain(next(pairs()))["squared"].item())
    (other,) = run(first, optimizer_of(first), pairs(), range(1))
    assert other.losses != step.losses


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_ends_before_the_weights_take_it_in(what: str) -> None:
    model = Regressor()
    model.drop.p = 0.0

    def poisoned() -> Iterator[Pair]:
        source = pairs()
        yield next(source)
        images, targets = next(source)
        yield (images * float("nan"), targets) if what == "loss" else (images, targets)

    if what == "gradient":
        calls = []

        def hook(gradient: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return gradient * (float("inf") if len(calls) == 2 else 1.0)

        model.linear.weight.register_hook(hook)
    optimizer = optimizer_of(model)
    named = "squared is nan" if what == "loss" else "gradient is (nan|inf)"
    with pytest.raises(InputError, match=f"step 2: {named}") as caught:
        run(model, optimizer, poisoned(), range(2))
    assert "optimizer.lr" in str(caught.value)
    assert torch.isfinite(model.linear.weight).all()
    assert optimizer.state[model.linear.weight]["step"] == 1


def test_masked_gradients_are_zeroed_before_clipping() -> None:
    model = Regressor()
    model.drop.p = 0.0

    class FirstRowOnly:
        def mask_gradients(self) -> None:
            model.linear.weight.grad[1] = 0.0
            model.linear.bias.grad.zero_()

    reference = Regressor()
    reference.drop.p = 0.0
    sum(reference(next(pairs())).values()).backward()
    norm = float(reference.linear.weight.grad[0].norm())
    (step,) = run(model, optimizer_of(model), pairs(), range(1), mask=FirstRowOnly(), clip_norm=0.0)
    assert step.grad_norm == pytest.approx(norm)


def test_no_bound_leaves_the_gradient_alone() -> None:
    model = Regressor()
    seen = []
    optimizer = optimizer_of(model)
    optimizer.register_step_pre_hook(lambda *_: seen.append(float(model.linear.weight.grad.norm())))
    (step,) = run(model, optimizer, ((x * 100, y) for x, y in pairs()), range(1), clip_norm=0.0)
    assert seen[0] > 10 and step.grad_norm >= seen[0]


def test_a_gradient_scaler_changes_neither_the_norm_nor_the_step() -> None:
    scaled, plain = Regressor(), Regressor()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    (step,) = run(scaled, optimizer_of(scaled), pairs(), range(1), scaler=scaler)
    (expected,) = run(plain, optimizer_of(plain), pairs(), range(1))
    assert step.grad_norm == pytest.approx(expected.grad_norm)
    assert torch.allclose(scaled.linear.weight, plain.linear.weight)


def test_a_scaler_skips_a_step_that_overflows_and_scales_less() -> None:
    model = Regressor()
    before = model.linear.weight.detach().clone()
    model.linear.weight.register_hook(lambda gradient: gradient * float("inf"))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run(model, optimizer_of(model), pairs(), range(1), scaler=scaler)
    assert torch.equal(model.linear.weight, before) and scaler.get_scale() == 512.0
