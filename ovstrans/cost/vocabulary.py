"""Whose class names a target is counted with when nobody says: text similarity costs MACs by the row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ovstrans.data.aliases import ALIASES
from ovstrans.data.catalog import GENERATED, open_dataset
from ovstrans.data.published import PUBLISHED
from ovstrans.data.published_vocabularies import published_vocabulary
from ovstrans.data.vocabulary import Vocabulary

DEFAULT = "coco-panoptic"
"""What open-vocabulary segmentation trains on and is counted with (FC-CLIP, GKC, OpenTrans)."""


def recipe_vocabulary(recipe: Mapping[str, Any] | None) -> Vocabulary:
    """The class names of a recipe's dataset, without looking for its files; `DEFAULT` of a folder or of none."""
    name = str((recipe or {}).get("data", {}).get("dataset", "")).partition(":")[0]
    name = ALIASES[name][0] if name in ALIASES else name
    if name in GENERATED:
        return open_dataset(name, split="val").vocabulary
    return published_vocabulary(PUBLISHED[name].vocabulary if name in PUBLISHED else DEFAULT)
