"""What a forward and a backward pass execute, layer by layer: a real one, on meta tensors.

Torch's dispatch counter says how many products run. Which layer they belong to is noted as the forward pass
goes: every node that autograd records is labelled with the module that was running, and when the backward pass
enters a node, what is counted from there on is that layer's. So `requires_grad` decides, and nothing else:
what does not train has no weight gradient, what has nothing to train before it no input gradient, and a
BatchNorm that trains inside a frozen prefix keeps the input gradients behind it alive.

A product of C MACs costs C for the gradient of each operand that needs one. Of a layer's own parameter that is
a weight gradient; of anything else, be it activations or learned queries, an input gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ovstrans.costs.interpolation_macs import ShapesOnly
from ovstrans.costs.meta import visited

Objective = Callable[[nn.Module, Tensor], Sequence[Tensor]]
"""(module, images [B, 3, H, W]) to what its losses are computed from; each gets a gradient."""

_OPERANDS: Mapping[str, tuple[int, int]] = {
    "Convolution": (0, 1),
    "Mm": (0, 1),
    "Bmm": (0, 1),
    "Mv": (0, 1),
    "Addmm": (1, 2),
    "Addbmm": (1, 2),
    "Baddbmm": (1, 2),
    "Addmv": (1, 2),
}
"""Autograd's name of a product to the places of its two operands among the node's inputs."""


@dataclass
class StepMacs:
    """MACs of a layer in one step, of the whole batch."""

    forward: int = 0
    input_gradient: int = 0
    weight_gradient: int = 0


def count_step(
    module: nn.Module, shape: tuple[int, ...], objective: Objective, *, still: Collection[str] = ()
) -> dict[str, StepMacs]:
    """Module name to what runs in it, but in none of its inner modules, in a forward and a backward pass.

    module: of any device and dtype, in whatever mode; it runs as it is, on stand-ins for its weights.
    shape: of the images.  still: parameters that do not train, beside those without `requires_grad`.
    """
    macs: dict[str, StepMacs] = defaultdict(StepMacs)
    running = [""]
    meter = _Meter()
    follow = visited(module, lambda name, starts: meter.visit(running, name, starts, macs))
    with torch.inference_mode(False), torch.enable_grad(), follow, ShapesOnly(), meter.counter:
        step = _Step(module, objective)
        shadow, own = _stand_ins(step, {f"module.{name}" for name in still})
        with _Recorder(running) as recorder:
            outputs = torch.func.functional_call(step, shadow, (torch.empty(shape, device="meta"),))
        meter.settle(lambda count: _add_forward(macs[running[-1]], count))
        reached = [each for each in outputs if each.requires_grad]
        if reached:
            current: list[Any] = [None]

            def enter(node: Any) -> Callable[[Any], None]:
                def hook(_gradients: Any) -> None:
                    meter.settle(lambda count: _add_backward(macs, recorder.owners, own, current[0], count))
                    current[0] = node

                return hook

            for node in recorder.owners:
                node.register_prehook(enter(node))
            torch.autograd.backward(reached, [torch.empty_like(each) for each in reached])
            meter.settle(lambda count: _add_backward(macs, recorder.owners, own, current[0], count))
    return dict(macs)


class _Step(nn.Module):
    """A way in for `functional_call`."""

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.module = module
        self._objective = objective

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        return self._objective(self.module, images)


class _Meter:
    """Torch's dispatch counter, read in portions."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_gradients}
        )
        self._read = 0

    def settle(self, add: Callable[[int], None]) -> None:
        """`add` the MACs since the last time."""
        now = self.counter.get_total_flops() // 2
        if now != self._read:
            add(now - self._read)
        self._read = now

    def visit(self, running: list[str], name: str, starts: bool, macs: dict[str, StepMacs]) -> None:
        """A module starts or ends: what was counted is that of the one that was running."""
        self.settle(lambda count: _add_forward(macs[running[-1]], count))
        if starts:
            running.append(name)
        else:
            running.pop()


class _Recorder(TorchFunctionMode):
    """Notes of every autograd node which module made it."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()
        self.owners: dict[Any, str] = {}
        self._running = running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            self._note(tensor.grad_fn)
        return made

    def _note(self, node: Any) -> None:
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in self.owners:
                self.owners[node] = self._running[-1]
                waiting += [inner for inner, _ in node.next_functions]


def _stand_ins(step: _Step, still: Collection[str]) -> tuple[dict[str, Tensor], dict[int, str]]:
    """(name to meta tensor for every parameter and buffer, identity of a parameter's to the parameter's name)."""
    shadow: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}
    own: dict[int, str] = {}
    for name, parameter in step.named_parameters(remove_duplicate=False):
        value = known.get(id(parameter))
        if value is None:  # one stand-in for a parameter that several names share
            value = known[id(parameter)] = torch.empty_like(parameter, device="meta", dtype=torch.float32)
            value.requires_grad_(parameter.requires_grad and name not in still)
            own[id(value)] = name.removeprefix("module.")
        shadow[name] = value
    for name, buffer in step.named_buffers():
        kind = torch.float32 if buffer.is_floating_point() else None
        shadow[name] = torch.empty_like(buffer, device="meta", dtype=kind)
    return shadow, own


def _add_forward(entry: StepMacs, count: int) -> None:
    entry.forward += count


def _add_backward(
    macs: dict[str, StepMacs], owners: Mapping[Any, str], own: Mapping[int, str], node: Any, count: int
) -> None:
    owner = owners[node]
    operands = _OPERANDS.get(_kind(node), ())
    edges = [node.next_functions[place][0] for place in operands]
    needed = [edge for edge in edges if edge is not None]
    weights = sum(_is_weight(edge, owner, own) for edge in needed)
    share, rest = divmod(count, len(needed) or 1)
    assert rest == 0, f"{owner or 'module'}: {count} MACs of {node.name()} for {len(needed)} gradients"
    macs[owner].weight_gradient += weights * share
    macs[owner].input_gradient += count - weights * share


def _is_weight(edge: Any, owner: str, own: Mapping[int, str]) -> bool:
    """Whether an operand is made of the owner's own parameters alone, without another product in between."""
    waiting, seen = [edge], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _kind(node) in _OPERANDS:
            return False
        variable = getattr(node, "variable", None)
        if variable is None:
            waiting += [inner for inner, _ in node.next_functions]
            continue
        holder = own.get(id(variable), "").rpartition(".")[0]
        if holder != owner and not (owner and holder.startswith(f"{owner}.")):
            return False
    return True


def _kind(node: Any) -> str:
    return str(node.name()).rstrip("0123456789").removesuffix("Backward")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


def _convolution_gradients(
    gradient: Any,
    given: Any,
    weight: Any,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    needed: Sequence[bool],
    *_: Any,
    **__: Any,
) -> int:
    """FLOPs of a convolution's gradients: each costs what the convolution does.

    Torch's own formula has a weight gradient of g groups g times too dear.
    """
    positions = (given if transposed else gradient)[2:]
    once = 2 * _product(weight) * _product(positions) * int(given[0])
    return once * sum(needed[:2])


def _product(sizes: Iterable[int]) -> int:
    return int(torch.Size(sizes).numel())
