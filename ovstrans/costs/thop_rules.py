"""The counters `thop` and `ptflops` as rules: what the literature's "FLOPs" often are.

Both hook modules by their exact type and multiply shapes. What they call FLOPs (thop prints MACs) mixes MACs with
operations of norms and pooling, so these figures compare with others of the same counter only.

A rule counts one run of a module. A module without a rule costs nothing, nor does what no module runs: functions
(einsum, matmul, interpolation), subclasses of a ruled type, `nn.MultiheadAttention` with its output projection,
`nn.Embedding`, `nn.GroupNorm`. Parameters count if their module has a rule and ran; bare ones never do. The modules
here are not always those of the released code: `released_code.UNSEEN` lists those that are invisible there.

Rules are those of thop 0.1.1.post2209072238 and ptflops 0.7, the versions that OpenTrans pins. MACs of a convolution or
linear layer leave its bias out in thop, and add it in ptflops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ovstrans.costs.counter import ShapeOnlyResampling, run_on_meta
from ovstrans.costs.params import LayerNames
from ovstrans.costs.released_code import as_released, reason_unseen

Rule = Callable[[Any, Tensor, Tensor], int]
"""Computes a number of operations from a module, its input and its output."""


def _nothing(_module: Any, _inputs: Tensor, _output: Tensor) -> int:
    return 0


def _convolution(module: Any, inputs: Tensor, output: Tensor) -> int:
    # By the output also where it is transposed, which then counts stride^2 times what is computed.
    return int(output.numel() * (inputs.shape[1] // module.groups) * math.prod(module.kernel_size))


def _linear(module: Any, _inputs: Tensor, output: Tensor) -> int:
    return int(output.numel() * module.in_features)


def _norm(module: Any, inputs: Tensor, _output: Tensor) -> int:
    scaled = getattr(module, "affine", False) or getattr(module, "elementwise_affine", False)
    return inputs.numel() * (4 if scaled else 2)


def _softmax(module: Any, inputs: Tensor, _output: Tensor) -> int:
    size = inputs.shape[module.dim]
    return int(inputs.numel() // size * (3 * size - 1))  # exponentials, sum, division


def _each_input(_module: Any, inputs: Tensor, _output: Tensor) -> int:
    return inputs.numel()


def _each_output(_module: Any, _inputs: Tensor, output: Tensor) -> int:
    return output.numel()


def _adaptive_average(_module: Any, inputs: Tensor, output: Tensor) -> int:
    window = math.prod(before / after for before, after in zip(inputs.shape[2:], output.shape[2:], strict=True))
    return int((window + 1) * output.numel())


def _upsample(module: Any, _inputs: Tensor, output: Tensor) -> int:
    return output.numel() * {"linear": 5, "bilinear": 11, "bicubic": 259, "trilinear": 31}.get(module.mode, 1)


def _biased(rule: Rule) -> Rule:
    def count(module: Any, inputs: Tensor, output: Tensor) -> int:
        return rule(module, inputs, output) + (0 if module.bias is None else output.numel())

    return count


def _scaled(module: Any, inputs: Tensor, _output: Tensor) -> int:
    return inputs.numel() * (2 if module.affine else 1)


_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_ADAPTIVE_MAXIMA = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)


def _table(*entries: tuple[Iterable[type[nn.Module]], Rule]) -> dict[type[nn.Module], Rule]:
    return {kind: rule for kinds, rule in entries for kind in kinds}


THOP: Mapping[type[nn.Module], Rule] = _table(
    (_CONVOLUTIONS, _convolution),
    ([nn.Linear], _linear),
    ([*_BATCH_NORMS, *_INSTANCE_NORMS, nn.LayerNorm], _norm),
    ([nn.PReLU], _each_input),
    ([nn.Softmax], _softmax),
    (_AVERAGES, _each_output),
    (_ADAPTIVE_AVERAGES, _adaptive_average),
    ([nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d], _upsample),
    ([nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Dropout, nn.ZeroPad2d, nn.PixelShuffle], _nothing),
    ([*_MAXIMA, *_ADAPTIVE_MAXIMA], _nothing),
)
"""Exact type of a module to thop's rule."""

PTFLOPS: Mapping[type[nn.Module], Rule] = _table(
    (_CONVOLUTIONS[:3], _biased(_convolution)),
    ([nn.Linear], _biased(_linear)),
    (_BATCH_NORMS, _scaled),
    ([nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU], _each_input),
    ([*_AVERAGES, *_MAXIMA, *_ADAPTIVE_AVERAGES, *_ADAPTIVE_MAXIMA], _each_input),
)
"""Exact type of a module to ptflops' rule, for convolutional backbones; rules that only heads need are left out."""


@dataclass(frozen=True)
class RuledLayer:
    """Count of a module that has a rule.

    Attributes:
        name: Name inside the counted module.
        component: Component that it belongs to.
        macs: Operations of all its runs, by the rules.
        params: Parameters of the module.
    """

    name: str
    component: str
    macs: int
    params: int


@dataclass(frozen=True)
class RuledCount:
    """Count of one forward pass by the rules of module types.

    Attributes:
        layers: The modules that have a rule and ran.
    """

    layers: tuple[RuledLayer, ...]

    @property
    def macs(self) -> int:
        """Operations of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def params(self) -> int:
        """Parameters of all layers."""
        return sum(layer.params for layer in self.layers)

    def components(self) -> dict[str, dict[str, int]]:
        """Return {"macs", "params"} of each component that has layers, in order of appearance."""
        parts: dict[str, dict[str, int]] = {}
        for layer in self.layers:
            part = parts.setdefault(layer.component, {"macs": 0, "params": 0})
            part["macs"] += layer.macs
            part["params"] += layer.params
        return parts


def count_thop(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    components: Mapping[str, nn.Module] | None = None,
    batch: int = 1,
    rules: Mapping[type[nn.Module], Rule] = THOP,
) -> RuledCount:
    """Count what thop reports of `module(images)`, if the modules were those of the released code.

    Args:
        module: Module with weights of any device or on meta; it runs on meta, in eval mode, see
            `released_code.as_released`.
        image_size: Height and width.
        components: Parts of the module to count separately.
        batch: Number of images.
        rules: `THOP` or `PTFLOPS`.
    """
    macs: dict[str, int] = {}
    modules = dict(module.named_modules())
    handles = []
    for name, inner in modules.items():
        rule = rules.get(type(inner))
        if rule is None or reason_unseen(module, name):
            continue

        def count(run: nn.Module, inputs: Any, output: Any, name: str = name, rule: Rule = rule) -> None:
            macs[name] = macs.get(name, 0) + rule(run, inputs[0], output)

        handles.append(inner.register_forward_hook(count))
    try:
        with as_released(module), ShapeOnlyResampling():
            run_on_meta(module, (batch, 3, *image_size))
    finally:
        for handle in handles:
            handle.remove()
    names = LayerNames(module, components or {})
    return RuledCount(
        tuple(
            RuledLayer(name, names.component(name), count, sum(each.numel() for each in modules[name].parameters()))
            for name, count in macs.items()
        )
    )
