"""Whose class names a target is counted with when nobody says: text similarity costs MACs by the row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ovstrans.datasets.catalog import GENERATED, open_dataset
from ovstrans.datasets.published.registry import lookup_published
from ovstrans.vocabulary.catalog import load_published_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary

DEFAULT = "coco-panoptic"
"""What open-vocabulary segmentation trains on and is counted with (FC-CLIP, GKC, OpenTrans)."""


def recipe_vocabulary(recipe: Mapping[str, Any] | None) -> Vocabulary:
    """The class names of a recipe's dataset, without looking for its files; `DEFAULT` of a folder or of none."""
    spec = str((recipe or {}).get("data", {}).get("dataset", ""))
    name, known = spec.partition(":")[0], lookup_published(spec)
    if name in GENERATED:
        return open_dataset(name, split="val").vocabulary
    return load_published_vocabulary(DEFAULT if known is None else known[0].vocabulary)
