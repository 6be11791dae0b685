"""The true costs of the models in the paper's rows, by the counter used everywhere else.

They are those of the released models, so that a printed figure and its true count are of the same thing: FC-CLIP
classifies queries after every layer, DeepLab has its own backbone and its ASPP of 3072 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ovstrans.costs.flops import INFERENCE, count_flops
from ovstrans.costs.published.counts import Counts, Key, count_entries
from ovstrans.costs.published.figures import BATCH, DEEPLAB, DENSITY, FCCLIP, FROZEN, HAN, IMAGE_SIZE, STEPS
from ovstrans.costs.published.released_deeplab import pooled_branch, released_backbone
from ovstrans.costs.released_code import as_released

BODY = "layer"
"""Beginning of the names of the layers that a transferred mask covers."""
CONVOLUTIONS = ("conv1", "conv2", "conv3", "0")
"""Last part of their names."""


def count_true_costs(counts: Counts) -> dict[Key, tuple[float, str]]:
    """Count the true costs behind the printed figures.

    Returns:
        Key of a figure to its true value and a description of what was counted. Figures that depend on unpublished
        layers are missing.
    """
    return {**_params(counts), **_flops(counts), **_training(counts)}


def _params(counts: Counts) -> dict[Key, tuple[float, str]]:
    module: Any = counts.fcclip.module
    fcclip, pool = count_entries(module.backbone, module.head, module.class_head), count_entries(module.clip_head)
    with torch.device("meta"):
        dropped = count_entries(pooled_branch())
    body = sum(part.numel() for name, part in counts.backbone.module.named_parameters() if _is_body(name))
    dense = {
        HAN: (counts.backbone_params + count_entries(*counts.han_head_parts), "backbone and head"),
        DEEPLAB: (
            counts.backbone_params + count_entries(counts.deeplab_head) + dropped,
            "backbone, ASPP with the branch that it drops, decoder",
        ),
        FCCLIP: (
            fcclip,
            f"backbone and head; CLIP's own pool, which classifies too, has another {pool / 1e6:.1f}M",
        ),
    }
    return _with_pruned("params", dense, dict.fromkeys(dense, body))


def _flops(counts: Counts) -> dict[Key, tuple[float, str]]:
    with torch.device("meta"):
        strided = released_backbone()
    body, dense = {}, {}
    for row, target in ((HAN, counts.han), (FCCLIP, counts.fcclip)):
        with as_released(target.module):
            layers = count_flops(target.module, IMAGE_SIZE, components=target.components).layers or ()
        parts = [layer for layer in layers if layer.component != INFERENCE]
        body[row] = sum(layer.dense for layer in parts if layer.component == "trunk" and _is_body(layer.name))
        dense[row] = (
            sum(layer.dense for layer in parts),
            "backbone, head and the classification of queries; without their sum at pixels",
        )
    layers = count_flops(strided, IMAGE_SIZE).layers or ()
    body[DEEPLAB] = sum(layer.dense for layer in layers if _is_body(layer.name))
    head = count_flops(counts.deeplab_head, IMAGE_SIZE).dense
    dense[DEEPLAB] = (
        sum(layer.dense for layer in layers) + head,
        "released backbone at stride 16, ASPP, decoder; without the classification of pixels",
    )
    return _with_pruned("FLOPs", dense, body)


def _with_pruned(
    quantity: str, dense: Mapping[str, tuple[float, str]], body: Mapping[str, int]
) -> dict[Key, tuple[float, str]]:
    """Add the pruned figures, under a uniform mask; real masks keep more in early layers, which cost most."""
    values: dict[Key, tuple[float, str]] = {}
    for row, (value, of) in dense.items():
        values[row, "dense", quantity] = value, of
        values[row, "pruned", quantity] = (
            value - (1 - DENSITY) * body[row],
            f"the same with a uniform mask of density {DENSITY:g} over layer1 to layer4",
        )
    return values


def _is_body(name: str) -> bool:
    """Return whether a layer, or a parameter, is a convolution that a transferred mask covers."""
    layer = name.removeprefix("backbone.").removesuffix(".weight")
    return layer.startswith(BODY) and layer.rpartition(".")[2] in CONVOLUTIONS


def _training(counts: Counts) -> dict[Key, tuple[float, str]]:
    frozen = (
        sum(layer.weight_gradient for layer in counts.step.layers or () if layer.name in FROZEN) // counts.step.batch
    )
    full, of = counts.step.total, "what autograd runs, losses of every prediction included; without teacher"
    values = {
        "full": (full, of),
        "alpha": (full - frozen, of),
        "alpha + pruning": (full - frozen, f"{of}; masked weights run dense"),
    }
    return {
        (HAN, variant, "training FLOPs"): (value * BATCH * STEPS, words) for variant, (value, words) in values.items()
    }
