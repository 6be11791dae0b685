"""Where our modules and the released ones differ, for counters that go by modules or by what released code runs.

The arithmetic is the same; what carries it is not. A counter that hooks modules by their exact type sees
another model where a convolution is of a subclass, or an attention is one module instead of four. All that is
known of this stands here, as data. Names are those inside a framework; facts are from the released code of
FC-CLIP (bytedance/fc-clip), GKC (yongliu20/GKC), Mask2Former and detectron2.
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
FUNCTIONAL = "weights of a function, the module itself never runs"
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
"""Pattern of names to why a counter that hooks exact types does not see upstream what stands there here."""

EVERY_PREDICTION = frozenset({"fcclip"})
"""Frameworks whose released code names the queries after every decoder layer, at inference too, and drops all
answers but the last. GKC's names those of the last layer only, as ours all do."""

A_QUERY_PER_MASK = frozenset({"fcclip"})
"""Frameworks whose released code, on a ResNet, projects and compares CLIP's query anew for each mask; it is the
same for all."""


def unseen(module: nn.Module, name: str) -> str | None:
    """Why upstream's counterpart of the inner module `name` is invisible by type; None where it is not."""
    if not isinstance(module, MaskFramework):
        return None
    return next((why for pattern, why in UNSEEN.items() if fnmatchcase(name, pattern)), None)


def released_differs(module: nn.Module) -> bool:
    """Whether `as_released` makes a difference."""
    return isinstance(module, MaskFramework) and module.name in EVERY_PREDICTION | A_QUERY_PER_MASK


@contextmanager
def as_released(module: nn.Module) -> Iterator[None]:
    """While it lasts a framework also runs what only its released code runs; others run as ever."""
    handles = []
    if isinstance(module, MaskFramework) and module.name in EVERY_PREDICTION:
        handles.append(module.head.register_forward_hook(partial(_name_earlier_predictions, module)))
    pool = getattr(getattr(module, "clip_head", None), "attnpool", None)
    if pool is not None and cast(MaskFramework, module).name in A_QUERY_PER_MASK:
        handles.append(cast(nn.Module, module.clip_head).register_forward_hook(partial(_compare_again, pool)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _name_earlier_predictions(framework: MaskFramework, _head: nn.Module, _given: Any, found: Any) -> None:
    for prediction in range(framework.predictions - 1):
        framework.class_scores(found, prediction, framework.text)


def _compare_again(pool: Any, _clip_head: nn.Module, given: Any, _made: Any) -> None:
    """The query of every mask but one, and its products with the keys of all positions."""
    res5, masks = given[0], given[1]
    queries = pool.q_proj(res5.new_empty(len(res5), masks.shape[1] - 1, res5.shape[1]))
    queries @ res5.flatten(2)
