"""Dense weights of layers that run packed: let go, and made again, to the bit, by whoever looks at them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ovstrans.clip.layers import weight_name
from ovstrans.masks.file import pack, unpack

_MOST_DENSE = 0.6
"""Density above which a weight is kept as it is: without its zeros it would hardly be smaller."""


class _Released:
    """A parameter without its zeros.

    Args:
        parameter: The parameter.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        kept = parameter.detach() != 0
        self.shape, self.trained = tuple(parameter.shape), parameter.requires_grad
        self.bits = pack(kept)
        self.values = parameter.detach()[kept]

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.bits.numel() + self.values.numel() * self.values.element_size()

    def restore(self) -> nn.Parameter:
        """Return the parameter as it was."""
        with torch.inference_mode(False):
            kept = unpack(self.bits, self.shape, "released weight")
            dense = torch.zeros(self.shape, dtype=self.values.dtype).masked_scatter_(kept, self.values)
            return nn.Parameter(dense, requires_grad=self.trained)


class LazyParameters(dict[str, Any]):
    """The parameters of a module, of which some are restored when they are looked at.

    torch reaches a module's parameters by the methods of this dict alone: attributes, `parameters()`, `state_dict()`,
    `to()` and the rest.
    """

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, _Released):
            value = value.restore()
            self[key] = value
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return a parameter, or the default."""
        return self[key] if key in self else default  # noqa: SIM401

    def pop(self, key: str, *default: Any) -> Any:
        """Remove a parameter and return it."""
        found = self.get(key)
        super().pop(key, *default)
        return found if found is not None or not default else default[0]

    def items(self) -> Any:
        """Return names and parameters."""
        return dict(zip(self, self.values(), strict=True)).items()

    def values(self) -> Any:
        """Return the parameters."""
        return {key: self[key] for key in self}.values()

    def copy(self) -> dict[str, Any]:
        """Return a dict of the parameters."""
        return dict(self.items())

    def __reduce__(self) -> Any:
        return dict, (self.copy(),)

    @property
    def nbytes(self) -> int:
        """Bytes that are held for parameters that are not restored."""
        return sum(value.nbytes for value in super().values() if isinstance(value, _Released))


def release_weights(encoder: nn.Module, layers: Iterable[str]) -> int:
    """Let go of the dense weights of layers; whoever looks at one gets it back as it was.

    Args:
        encoder: The image encoder, on the CPU.
        layers: Names of its layers that run packed.

    Returns:
        Bytes that are saved.
    """
    modules = dict(encoder.named_modules())
    saved = 0
    for layer in layers:
        owner, _, key = weight_name(layer).rpartition(".")
        module = modules[owner]
        weight: Tensor = module._parameters[key]
        if int(torch.count_nonzero(weight.detach())) > _MOST_DENSE * weight.numel():
            continue
        if not isinstance(module._parameters, LazyParameters):
            module.__dict__["_parameters"] = LazyParameters(module._parameters)
        released = _Released(nn.Parameter(weight, requires_grad=weight.requires_grad))
        dict.__setitem__(module._parameters, key, released)
        saved += weight.numel() * weight.element_size() - released.nbytes
    return saved
