"""The distillation losses by name: what `--distill` takes.

Adding one is a `Distillation`, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ovstrans.clip.load import Clip
from ovstrans.clip.text import TextClassifier
from ovstrans.errors import InputError
from ovstrans.pruning.distill import Distillation, FeatureDistillation
from ovstrans.recipes.schema import FEATURES, SEGMENT_LOSSES


def _features_loss(clip: Clip, options: Mapping[str, Any], text: TextClassifier | None) -> Distillation:
    return FeatureDistillation(**options)


def _region_loss(name: str, clip: Clip, options: Mapping[str, Any], text: TextClassifier | None) -> Distillation:
    from ovstrans.pruning.region_losses import make_region_loss  # transformers takes seconds to import

    if text is None:
        raise InputError(f"--distill {name}: looks at segments; give labelled --data")
    return make_region_loss(name, clip, text, options)


LOSSES: dict[str, Callable[[Clip, Mapping[str, Any], TextClassifier | None], Distillation]] = {
    FEATURES: _features_loss,
    **{name: partial(_region_loss, name) for name in SEGMENT_LOSSES},
}
"""Name to factory. A factory gets the CLIP being pruned (with its text encoder), the options (weights of terms, sizes
of a head), and the text classifier of the data's vocabulary where it has one."""


def make_distillation(
    name: str, clip: Clip, options: Mapping[str, Any], text: TextClassifier | None = None
) -> Distillation:
    """The distillation loss of a name; see `LOSSES`. InputError for an unknown name or option, or no `text` where
    one is needed."""
    if name not in LOSSES:
        raise InputError(f"--distill {name}: unknown; there is {', '.join(LOSSES)}")
    try:
        return LOSSES[name](clip, options, text)
    except TypeError as error:
        raise InputError(f"--distill {name}: has no such option ({error})") from error
