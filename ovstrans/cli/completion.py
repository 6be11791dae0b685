"""Values that the shell completes: names of models, datasets, recipes, frameworks, and the words that a recipe allows.

A shell asks at every press of the key, so nothing here may import torch, open_clip or numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

DATASETS = (
    "scenes",
    "scenes-attr",
    "scenes-shift",
    "coco-panoptic",
    "coco-stuff",
    "coco-stuff-156-15",
    "ade20k-150",
    "ade20k-847",
    "cityscapes",
    "camvid",
    "pas-20",
    "pas-20-15-5",
    "pas-21",
    "context-59",
    "context-459",
    "vspw",
    "vipseg",
)
"""Names of the datasets; a test compares them with `datasets.catalog.DATASETS`, which takes seconds to import."""

Complete = Callable[[str], list[str]]
"""Returns the values that begin with what was typed."""


def complete_from(*sources: Callable[[], Iterable[str]]) -> Complete:
    """Make a completion from functions that list values."""

    def complete(incomplete: str) -> list[str]:
        found = dict.fromkeys(value for source in sources for value in source())
        return [value for value in found if value.startswith(incomplete)]

    return complete


def complete_words(words: Iterable[str]) -> Complete:
    """Make a completion from words."""
    known = tuple(words)
    return complete_from(lambda: known)


def list_models() -> list[str]:
    """Return the models that can be loaded."""
    from ovstrans.clip.models import read_model_names

    return read_model_names()


def list_recipes() -> list[str]:
    """Return the recipes that ship with the package."""
    from ovstrans.recipes.load import recipe_names

    return recipe_names()


def list_prune_recipes() -> list[str]:
    """Return the shipped recipes of `prune`."""
    return [name for name in list_recipes() if name.startswith("prune-")]


def list_finetune_recipes() -> list[str]:
    """Return the shipped recipes of `finetune`."""
    return [name for name in list_recipes() if not name.startswith("prune-")]


def list_frameworks() -> list[str]:
    """Return the frameworks that recipes ship for, which are all of them."""
    from ovstrans.recipes.load import load_recipe

    return sorted({load_recipe(name)["model"]["framework"] for name in list_finetune_recipes()})


def list_losses() -> list[str]:
    """Return the distillation losses."""
    from ovstrans.recipes.schema import FEATURES, SEGMENT_LOSSES

    return [FEATURES, *SEGMENT_LOSSES]


MODELS = complete_from(list_models)
RECIPES = complete_from(list_recipes)
PRUNE_RECIPES = complete_from(list_prune_recipes)
FINETUNE_RECIPES = complete_from(list_finetune_recipes)
FRAMEWORKS = complete_from(list_frameworks)
TARGETS = complete_from(list_frameworks, list_recipes, list_models)
DATA = complete_from(lambda: (*DATASETS, "folder:"))
LOSSES = complete_from(list_losses)
FREEZE_RULES = complete_words(("median", "quantile:", "count:", "threshold:", "random:", "largest"))
DEVICES = complete_words(("auto", "cpu", "cuda"))
