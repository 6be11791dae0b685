"""What the models of the paper's rows truly take, by the counter of truth.

Of the released models, so that a row's figure and its truth speak of the same thing: FC-CLIP as it names queries
after every layer, DeepLab with its own trunk and its ASPP of 3072 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ovstrans.costs.flops import INFERENCE, count_flops
from ovstrans.costs.published.counts import Counts, Key, numel
from ovstrans.costs.published.figures import BATCH, DEEPLAB, DENSITY, FCCLIP, FROZEN, HAN, IMAGE_SIZE, STEPS
from ovstrans.costs.published.released_deeplab import pooled_branch, released_trunk
from ovstrans.costs.released_code import as_released

BODY = "layer"
"""How the names of the layers begin that a transferred mask covers."""
CONVOLUTIONS = ("conv1", "conv2", "conv3", "0")
"""How they end."""


def truths(counts: Counts) -> dict[Key, tuple[float, str]]:
    """Figure to (what it truly is, of what); none for those that depend on layers nobody knows."""
    return {**_params(counts), **_flops(counts), **_training(counts)}


def _params(counts: Counts) -> dict[Key, tuple[float, str]]:
    module: Any = counts.fcclip.module
    fcclip, pool = numel(module.backbone, module.head, module.class_head), numel(module.clip_head)
    with torch.device("meta"):
        dropped = numel(pooled_branch())
    body = sum(part.numel() for name, part in counts.trunk.module.named_parameters() if _is_body(name))
    dense = {
        HAN: (counts.trunk_params + numel(*counts.han_head_parts), "trunk and head"),
        DEEPLAB: (
            counts.trunk_params + numel(counts.deeplab_head) + dropped,
            "trunk, ASPP with the branch it drops, decoder",
        ),
        FCCLIP: (
            fcclip,
            f"trunk and head; CLIP's own pool, which names too, has another {pool / 1e6:.1f}M",
        ),
    }
    return _with_pruned("params", dense, dict.fromkeys(dense, body))


def _flops(counts: Counts) -> dict[Key, tuple[float, str]]:
    with torch.device("meta"):
        strided = released_trunk()
    body, dense = {}, {}
    for row, target in ((HAN, counts.han), (FCCLIP, counts.fcclip)):
        with as_released(target.module):
            layers = count_flops(target.module, IMAGE_SIZE, components=target.components).layers
        parts = [layer for layer in layers if layer.component != INFERENCE]
        body[row] = sum(layer.dense for layer in parts if layer.component == "trunk" and _is_body(layer.name))
        dense[row] = (
            sum(layer.dense for layer in parts),
            "trunk, head and the naming of queries; without their sum at pixels",
        )
    layers = count_flops(strided, IMAGE_SIZE).layers
    body[DEEPLAB] = sum(layer.dense for layer in layers if _is_body(layer.name))
    head = count_flops(counts.deeplab_head, IMAGE_SIZE).dense
    dense[DEEPLAB] = (
        sum(layer.dense for layer in layers) + head,
        "released trunk at stride 16, ASPP, decoder; without the naming of pixels",
    )
    return _with_pruned("FLOPs", dense, body)


def _with_pruned(
    quantity: str, dense: Mapping[str, tuple[float, str]], body: Mapping[str, int]
) -> dict[Key, tuple[float, str]]:
    """Pruned as transferred, by a uniform mask: real ones keep more in early layers, which cost most."""
    values: dict[Key, tuple[float, str]] = {}
    for row, (value, of) in dense.items():
        values[row, "dense", quantity] = value, of
        values[row, "pruned", quantity] = (
            value - (1 - DENSITY) * body[row],
            f"the same with a uniform mask of density {DENSITY:g} over layer1 to layer4",
        )
    return values


def _is_body(name: str) -> bool:
    """Whether a layer, or a parameter, is a convolution that a transferred mask covers."""
    layer = name.removeprefix("backbone.").removesuffix(".weight")
    return layer.startswith(BODY) and layer.rpartition(".")[2] in CONVOLUTIONS


def _training(counts: Counts) -> dict[Key, tuple[float, str]]:
    frozen = sum(layer.weight_gradient for layer in counts.step.layers if layer.name in FROZEN) // counts.step.batch
    full, of = counts.step.total, "what autograd runs, losses of every prediction included; without teacher"
    values = {
        "full": (full, of),
        "alpha": (full - frozen, of),
        "alpha + pruning": (full - frozen, f"{of}; masked weights run dense"),
    }
    return {
        (HAN, variant, "training FLOPs"): (value * BATCH * STEPS, words) for variant, (value, words) in values.items()
    }
