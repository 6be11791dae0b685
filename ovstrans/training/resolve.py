"""Choice of the recipe of a fine-tuning run, and of the mask and plan that it starts from."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ovstrans.clip.load import WEIGHT_SUFFIXES
from ovstrans.clip.models import BUNDLED, BUNDLED_MODELS, DEFAULT_MODEL
from ovstrans.errors import InputError
from ovstrans.files import expand_home, read_json, read_metadata
from ovstrans.frameworks import registry
from ovstrans.masks.mask import Mask
from ovstrans.masks.origin import choose_clip, same_architecture
from ovstrans.recipes.load import Settings, differences, load_recipe, override, read_settings, resolve
from ovstrans.recipes.schema import FinetuneRecipe, PruneRecipe, Table, kind_of
from ovstrans.spectrum.plan import check_rule
from ovstrans.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

DEFAULT_FRAMEWORK = "deeplabv3"


def choose_recipe(
    framework: str | None = None,
    *,
    recipe: FinetuneRecipe | str | None = None,
    settings: Settings = (),
    model: str | None = None,
    pretrained: str | None = None,
    mask: str | None = None,
    plan: str | None = None,
    made_with: Mask | None = None,
    stored: FinetuneRecipe | None = None,
    **options: Any,
) -> FinetuneRecipe:
    """Return the recipe of a run: a recipe file, settings over it, and the other arguments over both.

    Where neither an argument nor a recipe that was asked for names the CLIP, it is the one that the mask was made from.

    Args:
        framework: Name of the framework; default deeplabv3, or that of the recipe.
        recipe: Recipe, name of a shipped one, or path of a file; default `FRAMEWORK-mini`.
        settings: Changes by key.
        model: open_clip model.
        pretrained: open_clip tag or file of weights.
        mask: Mask file, "" for none.
        plan: Freeze plan file, "" for none.
        made_with: The mask, if it is not the content of the file.
        stored: Recipe of the run to resume. It is the default of everything.
        **options: Changes by name of the option; None stands for an option that was not given.

    Raises:
        InputError: A recipe, key or framework is unknown, a value does not fit, two arguments contradict each other,
            or an argument differs from the stored recipe.
    """
    table, origin = _table(framework, recipe, stored)
    table = override(table, settings, FinetuneRecipe)
    if model is not None and model != table["model"].get("clip"):
        table["model"].update(clip=model, pretrained="")  # the recipe's weights are those of the recipe's model
    run: Table = table.setdefault("run", {})
    given: list[tuple[Table, str, Any]] = [
        (table["model"], "pretrained", pretrained),
        (run, "mask", mask),
        (run, "plan", plan),
    ]
    for section, key, value in given:
        if value is not None:
            section[key] = value
    if stored is None:
        changed = read_settings(settings)
        named = model is not None or recipe is not None or "model.clip" in changed
        weighted = pretrained is not None or "model.pretrained" in changed
        _take_clip_of_mask(table, made_with or run.get("mask") or None, named=named, weighted=weighted)
    chosen = resolve(FinetuneRecipe, table, origin, options=options)
    check_rule(chosen.training.freeze)
    if framework is not None and framework != chosen.model.framework:
        raise InputError(f"recipe {origin} is for {chosen.model.framework}, not {framework}; leave one of them out")
    if options.get("freeze") is not None and not chosen.training.plan_after:
        raise InputError(
            f"`freeze={options['freeze']}`: is the rule of `plan_after`, which is not given; "
            "or give the file of an analysis with this rule as `plan`"
        )
    if options.get("weights") is not None and chosen.run.init != "pruned":
        raise InputError(f"`weights={options['weights']}`: goes with `init=pruned`; add it, or leave `weights` out")
    if chosen.run.plan and chosen.training.plan_after:
        raise InputError("`plan` and `plan_after`: give one; the first reads a plan, the second makes one on the way")
    if _freezes_backbone(chosen) and (chosen.run.plan or chosen.training.plan_after):
        raise InputError(
            f"`model.trunk=frozen` freezes the whole backbone of {chosen.model.framework}, so a freeze plan changes "
            "nothing; leave out `plan` and `plan_after`, or set `model.trunk=train`"
        )
    chosen = _with_absolute_paths(chosen)
    if stored is not None:
        differ = differences(stored.to_table(), chosen.to_table())
        if differ:
            raise InputError(
                f"`resume=True` continues with the run's own recipe, but {'; '.join(differ)}; "
                "leave these out, or start anew with another `out`"
            )
    return chosen


@dataclass(frozen=True)
class Artifacts:
    """Mask and freeze plan of a run: as given, or found in a folder.

    Attributes:
        mask: The mask file, False for no mask, None if none is there.
        plan: The alpha file, False for no plan, None if none is there.
    """

    mask: PathLike | bool | None = None
    plan: PathLike | bool | None = None


def discover_artifacts(
    folder: Path,
    *,
    clip: str | None = None,
    mask: PathLike | bool | None = None,
    plan: PathLike | bool | None = None,
    **given: Any,
) -> Artifacts:
    """Look for the mask and the freeze plan that `prune` and `analyze` left in a folder.

    Each one found is logged, also if it is for another model and hence not used. What is given, or named by the recipe,
    is not looked for, nor is a plan if the run makes one or its framework freezes the backbone.

    Args:
        folder: The folder, `ovstrans-out` for the commands.
        clip: As for `finetune`.
        mask: As for `finetune`.
        plan: As for `finetune`.
        **given: Other arguments of `choose_recipe`.
    """
    recipe = choose_recipe(model=clip, mask=path_text(mask), plan=path_text(plan), **given)
    planned = bool(recipe.training.plan_after) or _freezes_backbone(recipe)
    wanted: dict[str, tuple[Path, bool, Callable[[Path], Any]]] = {
        "mask": (folder / "mask.safetensors", mask is None, read_metadata),
        "plan": (folder / "alpha.json", plan is None and not planned, read_json),
    }
    found: dict[str, PathLike | bool | None] = {"mask": mask, "plan": plan}
    for kind, (path, look, read) in wanted.items():
        if not look or getattr(recipe.run, kind) or not path.exists():
            continue
        model = read(path).get("model", "")
        if same_architecture(model, recipe.model.clip):
            found[kind] = path
            logger.info("%s: %s (`%s=False` to go without)", kind, path, kind)
        else:
            logger.info(
                "%s: %s is for %s, not %s; not used", kind, path, model or "an unnamed model", recipe.model.clip
            )
    return Artifacts(**found)


def _with_absolute_paths(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """Return a recipe whose files are absolute paths, so that the run's own recipe works from every folder."""

    def absolute(path: str) -> str:
        return str(Path(path).absolute()) if path else path

    run, model, data = recipe.run, recipe.model, recipe.data
    is_file = Path(model.pretrained).suffix in WEIGHT_SUFFIXES
    folder, _, path = data.dataset.partition(":")
    dataset = f"folder:{expand_home(path).absolute()}" if folder == "folder" and path else data.dataset
    return replace(
        recipe,
        run=replace(run, mask=absolute(run.mask), plan=absolute(run.plan), weights=absolute(run.weights)),
        model=replace(model, pretrained=absolute(model.pretrained) if is_file else model.pretrained),
        data=replace(data, dataset=dataset),
    )


def _take_clip_of_mask(table: Table, mask: Mask | str | None, *, named: bool, weighted: bool) -> None:
    """Let the mask decide on the CLIP of a recipe where the user did not.

    Args:
        table: The recipe, which is changed.
        mask: The mask or its file.
        named: The user chose the model.
        weighted: The user chose its weights.
    """
    section = table["model"]
    weights = section.get("pretrained") or None
    if mask is None or (named and (weighted or weights)) or (isinstance(mask, str) and not Path(mask).is_file()):
        return
    own = str(section.get("clip", DEFAULT_MODEL))
    chosen = choose_clip(mask, own if named else None, weights if weighted else None, default=own)
    if chosen.pretrained is not None or chosen.model != own:
        bundled = chosen.model in BUNDLED_MODELS and chosen.pretrained == BUNDLED
        section.update(clip=chosen.model, pretrained="" if bundled and not weighted else chosen.pretrained or "")


def path_text(value: PathLike | bool | None) -> str | None:
    """Return a path as a recipe holds it: a string, "" for False, None for what is not given.

    Raises:
        InputError: It is neither.
    """
    if value is None or value is False:
        return None if value is None else ""
    if not isinstance(value, (str, os.PathLike)):
        raise InputError(f"{value!r}: a {type(value).__name__} is no path, and nothing else that is taken here")
    return os.fspath(value)


def resume_recipe(out: Path | str, **given: Any) -> FinetuneRecipe | None:
    """Return the recipe of a run to resume; None if the run is finished.

    Args:
        out: The run folder.
        **given: Arguments of `choose_recipe`, which must not differ from the run's recipe.

    Raises:
        InputError: There is no run, or it cannot be resumed, or an argument differs.
    """
    folder = RunFolder(Path(out))
    stored = folder.stored()
    if folder.finished:
        return None
    if not folder.state.exists():
        raise InputError(
            f"{folder.path}: the run stopped before its first saved state; start it again, with `force=True`"
        )
    return choose_recipe(stored=stored, **given)


def _freezes_backbone(recipe: FinetuneRecipe) -> bool:
    """Return whether an option of the framework freezes the whole backbone, as in published FC-CLIP."""
    return recipe.model.options.get("trunk") == "frozen"


def _table(
    framework: str | None, recipe: FinetuneRecipe | str | None, stored: FinetuneRecipe | None
) -> tuple[Table, str]:
    """Return the table that the other arguments change, and its name for messages."""
    if recipe is None and stored is not None:
        return stored.to_table(), "of the run"
    if framework is not None:
        registry.default_options(framework)  # an unknown framework is the clearer message
    if isinstance(recipe, FinetuneRecipe):
        name, table = "given", recipe.to_table()
    else:
        name = recipe if recipe is not None else f"{framework or DEFAULT_FRAMEWORK}-mini"
        table = load_recipe(name)
    if kind_of(table) is PruneRecipe or not isinstance(table.get("model"), dict):
        FinetuneRecipe.parse(table, name)  # raises what is wrong with it
    named = table["model"].get("framework")
    if isinstance(named, str):  # every option of the framework can be set, and the run records it
        table["model"] = {
            **table["model"],
            **{k: v for k, v in registry.default_options(named).items() if k not in table["model"]},
        }
    if stored is not None and not isinstance(recipe, FinetuneRecipe):
        table["run"] = stored.to_table()["run"]
    return table, name
