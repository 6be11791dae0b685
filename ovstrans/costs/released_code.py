"""Differences between the modules here and those of the released code, for counters that depend on them.

The arithmetic is the same, the modules that carry it are not: a counter that hooks modules by their exact type sees
another model where a convolution is of a subclass, or an attention is one module instead of four. What is known of
this stands here, as data. Names are those inside a framework; facts are from the released code of FC-CLIP
(bytedance/fc-clip), GKC (yongliu20/GKC), Mask2Former and detectron2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast

from torch import nn

from ovstrans.frameworks.mask_framework import MaskFramework

SUBCLASSED = "detectron2's Conv2d, a subclass of torch's"
FUSED_ATTENTION = "inside nn.MultiheadAttention, which runs them as functions"
FUNCTIONAL = "weights of a function; the module itself never runs"
OUTSIDE = "outside backbone and sem_seg_head, the two modules that were profiled"

UNSEEN: Mapping[str, str] = {
    "head.pixel_decoder.mask_projection": SUBCLASSED,
    "head.pixel_decoder.adapter_*.0": SUBCLASSED,
    "head.pixel_decoder.layer_*.0": SUBCLASSED,
    "head.transformer.input_projections.*": SUBCLASSED,
    "head.transformer.decoder.layers.*.self_attn.*": FUSED_ATTENTION,
    "clip_head.*": FUNCTIONAL,
    "classifier.project": OUTSIDE,
}
"""Patterns of module names, and why a counter that hooks exact types does not see their upstream counterpart."""

CLASSIFIES_EVERY_PREDICTION = frozenset({"fcclip"})
"""Frameworks whose released code classifies the queries after every decoder layer, at inference too, and drops all
results but the last. GKC's classifies those of the last layer only, as all frameworks here do."""

PROJECTS_QUERY_PER_MASK = frozenset({"fcclip"})
"""Frameworks whose released code, on a ResNet, projects and compares CLIP's query anew for each mask, although it is
the same for all."""


def reason_unseen(module: nn.Module, name: str) -> str | None:
    """Return why the upstream counterpart of an inner module is invisible by type; None if it is visible."""
    if not isinstance(module, MaskFramework):
        return None
    return next((reason for pattern, reason in UNSEEN.items() if fnmatchcase(name, pattern)), None)


def released_differs(module: nn.Module) -> bool:
    """Return whether `as_released` makes a difference for a module."""
    differing = CLASSIFIES_EVERY_PREDICTION | PROJECTS_QUERY_PER_MASK
    return isinstance(module, MaskFramework) and module.name in differing


@contextmanager
def as_released(module: nn.Module) -> Iterator[None]:
    """Let a framework also run what only its released code runs, while the block runs; other modules are unchanged."""
    handles = []
    if isinstance(module, MaskFramework) and module.name in CLASSIFIES_EVERY_PREDICTION:
        handles.append(module.head.register_forward_hook(partial(_classify_earlier_predictions, module)))
    pool = getattr(getattr(module, "clip_head", None), "attnpool", None)
    if pool is not None and cast(MaskFramework, module).name in PROJECTS_QUERY_PER_MASK:
        handles.append(cast(nn.Module, module.clip_head).register_forward_hook(partial(_project_queries, pool)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _classify_earlier_predictions(framework: MaskFramework, _head: nn.Module, _inputs: Any, output: Any) -> None:
    for prediction in range(framework.predictions - 1):
        framework.class_scores(output, prediction, framework.text)


def _project_queries(pool: Any, _clip_head: nn.Module, inputs: Any, _output: Any) -> None:
    """Run the query of every mask but one, and its products with the keys of all positions."""
    res5, masks = inputs[0], inputs[1]
    queries = pool.q_proj(res5.new_empty(len(res5), masks.shape[1] - 1, res5.shape[1]))
    queries @ res5.flatten(2)
