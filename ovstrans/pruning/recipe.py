"""Choice of the recipe of a pruning run, by model and distillation loss."""

from __future__ import annotations

from typing import Any

from ovstrans.clip.load import DEFAULT_MODEL
from ovstrans.errors import InputError, did_you_mean
from ovstrans.frameworks import registry
from ovstrans.pruning.losses import LOSSES
from ovstrans.recipes.load import Settings, load_recipe, read_settings, resolve
from ovstrans.recipes.schema import FEATURES, SEGMENT_LOSSES, PruneRecipe


def choose_recipe(
    model: str = DEFAULT_MODEL, *, recipe: str | None = None, settings: Settings = (), **options: Any
) -> PruneRecipe:
    """Return the recipe of a run: a recipe file, settings over it, and options over both.

    Args:
        model: open_clip name of the model to prune.
        recipe: Name of a shipped recipe or path of a file. By default `prune-mini` for the mini CLIP and `prune-rn50`
            for every other model, with `-regions` appended for a distillation loss that compares segments.
        settings: Changes by key.
        **options: Changes by name of the option; None stands for an option that was not given.

    Raises:
        InputError: A recipe, key or loss is unknown, the recipe is for another kind of loss, or a value does not fit.
    """
    default = "prune-mini" if model == DEFAULT_MODEL else "prune-rn50"
    wanted = options.get("distill") or read_settings(settings).get("distill.loss")
    if wanted is not None and wanted not in LOSSES:
        raise InputError(
            f"`distill={wanted}`: unknown; {did_you_mean(str(wanted), LOSSES)}losses are {', '.join(LOSSES)}"
        )
    name = recipe or (f"{default}-regions" if wanted in SEGMENT_LOSSES else default)
    table = load_recipe(name)
    if isinstance(table.get("distill"), dict):
        own = table["distill"].get("loss")
        if wanted in (FEATURES, *SEGMENT_LOSSES) and (wanted in SEGMENT_LOSSES) != (own in SEGMENT_LOSSES):
            other = f"{default}-regions" if wanted in SEGMENT_LOSSES else default
            raise InputError(f"recipe {name}: is for the distillation loss {own}, not {wanted}; {other} is for that")
        if (wanted or own) == "semantic":  # every option of GKC can be set, and the mask records it
            table["distill"] = {**registry.default_options("gkc"), **table["distill"]}
    chosen = resolve(PruneRecipe, table, name, settings=settings, options=options)
    if chosen.distill.loss == FEATURES:  # its options are the weights of its terms
        for key, value in chosen.distill.options.items():
            if type(value) not in (int, float) or value < 0:
                raise InputError(f"recipe {name}: distill.{key} = {value!r}: a number of at least 0 is needed")
    return chosen
