"""Which runtime runs an image encoder: the sparse one, which skips zeros, or torch's dense layers; and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ovstrans.clip.layers import BODY, backbone_layers
from ovstrans.errors import InputError
from ovstrans.runtime.executor import SparseBackbone
from ovstrans.runtime.library import Kernels, find_kernels
from ovstrans.runtime.linear import MOST_DENSE as LINEAR_DENSE
from ovstrans.runtime.linear import SparseLinears, detach_linears, pack_linears
from ovstrans.runtime.network import UnsupportedError, is_resnet, pack_network

RUNTIMES = ("auto", "sparse", "dense")

MOST_DENSE = 0.6
"""Density of a backbone above which "auto" takes the dense runtime, which is about as fast there."""

NO_KERNELS = (
    "the kernels of the sparse runtime are not built: install from source where there is a C compiler, or run "
    "python -m ovstrans.runtime.build"
)


@dataclass(frozen=True)
class RuntimeChoice:
    """The runtime of an image encoder.

    Attributes:
        runtime: "sparse" or "dense".
        reason: Why, or how it runs, in words.
        backbone: The packed backbone, or the packed linear layers of a ViT or ConvNeXt; None if dense.
        notable: The user should be told: a pruned model runs dense, or the sparse runtime was asked for in vain.
    """

    runtime: str
    reason: str
    backbone: SparseBackbone | SparseLinears | None = None
    notable: bool = False

    def __str__(self) -> str:
        return f"{self.runtime}: {self.reason}"


def check_runtime(runtime: str) -> None:
    """Raise InputError if there is no such runtime."""
    if runtime not in RUNTIMES:
        raise InputError(f"`runtime={runtime}`: unknown; use {', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}")


def choose_runtime(
    encoder: nn.Module, runtime: str = "auto", *, device: torch.device | str = "cpu", density: float | None = None
) -> RuntimeChoice:
    """Choose the runtime of an image encoder for inference, and pack its weights for the sparse one.

    Args:
        encoder: The image encoder.
        runtime: "dense"; "sparse", which runs dense only where it has to; or "auto": sparse where it is faster.
        device: Where the encoder runs.
        density: Share of its weights that are not zero; None to count them.

    Raises:
        InputError: If there is no such runtime.
    """
    check_runtime(runtime)
    if runtime == "dense":
        return RuntimeChoice("dense", "asked for")
    density = backbone_density(encoder) if density is None else density
    wanted = runtime == "sparse"
    if not wanted and density > MOST_DENSE:
        return RuntimeChoice("dense", f"{density:.0%} of the backbone's weights are not zero")
    if torch.device(device).type != "cpu":
        return RuntimeChoice("dense", "the sparse runtime is for CPUs", notable=wanted)
    kernels = find_kernels()
    if kernels is None:
        return RuntimeChoice("dense", NO_KERNELS, notable=True)
    if not is_resnet(encoder):
        return _choose_linears(encoder, kernels, wanted)
    try:
        backbone = SparseBackbone(pack_network(encoder), kernels)
    except UnsupportedError as error:
        return RuntimeChoice("dense", str(error), notable=wanted)
    layers = sum(1 for _ in backbone.network.convs)
    how = f"{layers} convolutions by {kernels.instructions} kernels that skip zeros, density {density:.2f}"
    return RuntimeChoice("sparse", how, backbone)


def _choose_linears(encoder: nn.Module, kernels: Kernels, wanted: bool) -> RuntimeChoice:
    """Choose the runtime of a ViT or ConvNeXt, whose linear layers alone can run sparse."""
    linears = pack_linears(encoder, kernels)
    if not linears.layers:
        return RuntimeChoice("dense", f"no linear layer has at most {LINEAR_DENSE:.0%} of its weights", notable=wanted)
    total = len(linears.layers) + len(linears.dense)
    how = (
        f"{len(linears.layers)} of {total} linear layers by {kernels.instructions} kernels that skip zeros, density "
        f"{linears.density:.2f}; the rest by torch"
    )
    if linears.dense:
        more = f" and {len(linears.dense) - 1} more" if len(linears.dense) > 1 else ""
        how += f", {linears.dense[0]}{more} for having more than {LINEAR_DENSE:.0%} of their weights"
    return RuntimeChoice("sparse", how, linears)


def attach_runtime(encoder: nn.Module, choice: RuntimeChoice) -> None:
    """Let the chosen runtime run an encoder. Later changes of its weights are not seen.

    Args:
        encoder: The image encoder.
        choice: The runtime; "dense" takes away what was attached.
    """
    cast(Any, encoder).stage_runner = None
    detach_linears(encoder)
    if choice.backbone is not None:
        choice.backbone.attach(encoder)


def backbone_density(encoder: nn.Module) -> float:
    """Return the share of the weights of a backbone's convolutions and linear layers that are not zero."""
    weights = list(backbone_layers(encoder).values())
    total = sum(weight.numel() for weight in weights)
    return sum(int(torch.count_nonzero(weight.detach())) for weight in weights) / total if total else 1.0


def describe_runtime(encoder: Mapping[str, Tensor]) -> str:
    """Describe in words what would run an image encoder on a CPU here, from its weights alone.

    Args:
        encoder: State dict of the image encoder.
    """
    resnet = "layer1.0.conv1.weight" in encoder
    weights = [
        value
        for key, value in encoder.items()
        if (value.dim() == 4 if resnet else value.dim() in (2, 4) and key.startswith(BODY))
    ]
    density = sum(int(torch.count_nonzero(value)) for value in weights) / max(
        sum(value.numel() for value in weights), 1
    )
    if density > MOST_DENSE:
        return f"dense: {density:.0%} of the {'convolutions' if resnet else 'layers'}' weights are not zero"
    kernels = find_kernels()
    if kernels is None:
        return f"dense: {NO_KERNELS}"
    return f"sparse, {kernels.instructions}" + ("" if resnet else " for linear layers")
