"""Multiply-accumulates of a forward and a backward pass, layer by layer: a real pass, on meta tensors.

Torch's dispatch counter says how many products run. To tell which layer they belong to, every node that autograd
records in the forward pass is labelled with the module that was running. When the backward pass enters a node, what is
counted from there on is that layer's. So `requires_grad` alone decides what costs: a layer that does not train has no
weight gradient, one with nothing to train before it no input gradient, and a BatchNorm that trains inside a frozen
prefix keeps the input gradients behind it.

A product of C MACs costs C for the gradient of each operand that needs one. That of a layer's own parameter is a
weight gradient; that of anything else, activations or learned queries, an input gradient.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ovstrans.clip.layers import layer_parameters, weight_name
from ovstrans.costs.counter import Meter, ShapeOnlyResampling, multiplied_macs, track_running, track_uses

Outputs = Callable[[nn.Module, Tensor], Sequence[Tensor]]
"""Computes, from a module and images [B, 3, H, W], the tensors that the losses start from."""

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
"""Autograd's name of a product to the positions of its two operands among the node's inputs."""

_VIEWS = ("T", "Transpose", "Slice", "View", "UnsafeView", "Reshape")
"""Autograd's names of what may lie between a weight and the product that uses it."""


@dataclass
class StepMacs:
    """MACs of one training step.

    Attributes:
        forward: Of the forward pass.
        input_gradient: Of the gradients of activations.
        weight_gradient: Of the gradients of weights.
    """

    forward: int = 0
    input_gradient: int = 0
    weight_gradient: int = 0

    @property
    def backward(self) -> int:
        """MACs of both gradients."""
        return self.input_gradient + self.weight_gradient

    @property
    def total(self) -> int:
        """MACs of forward and backward pass."""
        return self.forward + self.backward


def trace_step(
    module: nn.Module,
    shape: tuple[int, ...],
    outputs: Outputs,
    *,
    frozen_params: Collection[str] = (),
    uncalled: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, StepMacs]:
    """Count the MACs of a forward and a backward pass, module by module.

    Args:
        module: Module of any device and dtype. It runs in the mode that it is in, with meta tensors for weights.
        shape: Shape of the images.
        outputs: Computes what the losses start from; a gradient arrives at each of its tensors.
        frozen_params: Names of parameters that do not train, besides those without `requires_grad`.
        uncalled: Name of an attention to the layers that it multiplies by itself, see `clip.layers.uncalled_layers`;
            they are counted by their own names.

    Returns:
        Module name to what runs in the module itself, its inner modules left out, for the whole batch.
    """
    macs: dict[str, StepMacs] = defaultdict(StepMacs)
    meter = Meter()

    def assign_forward() -> None:
        count = meter.take()
        if count:
            macs[running[-1]].forward += count

    inner = uncalled or {}
    with contextlib.ExitStack() as stack:
        modules = dict(module.named_modules())
        uses = stack.enter_context(track_uses(modules, inner))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        running = stack.enter_context(track_running(module, assign_forward))
        stack.enter_context(ShapeOnlyResampling())
        stack.enter_context(meter.counter)
        step = _Step(module, outputs)
        stand_ins, params = _stand_ins(step, {f"module.{name}" for name in frozen_params})
        with _NodeOwners(running) as nodes:
            made = torch.func.functional_call(step, stand_ins, (torch.empty(shape, device="meta"),))
        assign_forward()
        stored = {}
        for attention, layers in inner.items():
            for layer in layers:
                stored[_storage(stand_ins[f"module.{weight_name(layer)}"])] = layer
                if layer in uses:
                    count = multiplied_macs(modules[attention], layer, uses[layer])
                    macs[layer].forward += count
                    macs[attention].forward -= count
        owners = {node: _find_layer(node, stored, owner) for node, owner in nodes.owners.items()}
        _run_backward([each for each in made if each.requires_grad], owners, params, macs, meter)
    return dict(macs)


def _run_backward(
    outputs: Sequence[Tensor],
    owners: Mapping[Any, str],
    params: Mapping[int, str],
    macs: dict[str, StepMacs],
    meter: Meter,
) -> None:
    """Run the backward pass from `outputs` and add what it executes to `macs`.

    Args:
        outputs: Tensors that need gradients.
        owners: Autograd node to the name of the module that made it.
        params: Identity of a parameter to its name.
        macs: Module name to its MACs.
        meter: The counter, active.
    """
    if not outputs:
        return
    current: Any = None

    def assign() -> None:
        count = meter.take()
        if count:
            _add_backward(macs, owners, params, current, count)

    def enter(node: Any) -> Callable[[Any], None]:
        def hook(_gradients: Any) -> None:
            nonlocal current
            assign()
            current = node

        return hook

    for node in owners:
        node.register_prehook(enter(node))
    torch.autograd.backward(outputs, [torch.empty_like(each) for each in outputs])
    assign()


class _Step(nn.Module):
    """A module whose `forward` computes the outputs of another: the entry that `functional_call` needs."""

    def __init__(self, module: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.module = module
        self._outputs = outputs

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        return self._outputs(self.module, images)


class _NodeOwners(TorchFunctionMode):
    """While active, note for every autograd node which module made it.

    Attributes:
        owners: Node to module name.
    """

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


def _stand_ins(step: _Step, frozen_params: Collection[str]) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Make meta tensors for all parameters and buffers.

    Returns:
        Name to meta tensor, and the identity of a parameter's meta tensor to the parameter's name.
    """
    stand_ins: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}
    params: dict[int, str] = {}
    for name, parameter in step.named_parameters(remove_duplicate=False):
        value = known.get(id(parameter))
        if value is None:  # one stand-in for a parameter that several names share
            value = known[id(parameter)] = torch.empty_like(parameter, device="meta", dtype=torch.float32)
            value.requires_grad_(parameter.requires_grad and name not in frozen_params)
            params[id(value)] = name.removeprefix("module.")
        stand_ins[name] = value
    for name, buffer in step.named_buffers():
        kind = torch.float32 if buffer.is_floating_point() else None
        stand_ins[name] = torch.empty_like(buffer, device="meta", dtype=kind)
    return stand_ins, params


def _add_backward(
    macs: dict[str, StepMacs], owners: Mapping[Any, str], params: Mapping[int, str], node: Any, count: int
) -> None:
    """Split the MACs of a node's backward into input and weight gradients of the layer that made it."""
    owner = owners[node]
    operands = _OPERANDS.get(_kind(node), ())
    edges = [node.next_functions[position][0] for position in operands]
    needed = [edge for edge in edges if edge is not None]
    weights = sum(_is_weight(edge, owner, params) for edge in needed)
    share, rest = divmod(count, len(needed) or 1)
    assert rest == 0, f"{owner or 'module'}: {count} MACs of {node.name()} for {len(needed)} gradients"
    macs[owner].weight_gradient += weights * share
    macs[owner].input_gradient += count - weights * share


def _find_layer(node: Any, stored: Mapping[int, str], owner: str) -> str:
    """Return the layer whose weight a product multiplies by, if it is one that no module of its own multiplies by.

    Args:
        node: Autograd node.
        stored: Storage of the weight of such a layer to the layer's name.
        owner: Name of the module that made the node, returned for all else.
    """
    if not stored or _kind(node) not in _OPERANDS:
        return owner
    for position in _OPERANDS[_kind(node)]:
        edge = node.next_functions[position][0]
        while edge is not None and getattr(edge, "variable", None) is None:  # through transposes to the parameter
            edge = edge.next_functions[0][0] if len(edge.next_functions) == 1 and _kind(edge) in _VIEWS else None
        if edge is not None and _storage(edge.variable) in stored:
            return stored[_storage(edge.variable)]
    # A frozen weight has no edge, but is saved for the input gradient.
    saved = (getattr(node, f"_saved_{name}", None) for name in ("mat2", "mat1", "self"))
    return next((stored[_storage(each)] for each in saved if each is not None and _storage(each) in stored), owner)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_weight(edge: Any, owner: str, params: Mapping[int, str]) -> bool:
    """Return whether an operand is computed from the owner's own parameters alone, without another product."""
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
        name = params.get(id(variable), "")
        holder = owner if name in layer_parameters(owner) else name.rpartition(".")[0]
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
