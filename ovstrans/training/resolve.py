"""Choice of the recipe of a fine-tuning run, and of the mask and plan that it starts from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ovstrans.errors import InputError
from ovstrans.files import read_json, read_metadata
from ovstrans.frameworks import registry
from ovstrans.recipes.load import Settings, differences, load_recipe, override, resolve
from ovstrans.recipes.schema import FinetuneRecipe, PruneRecipe, Table, kind_of
from ovstrans.spectrum.plan import check_rule
from ovstrans.training.run_folder import RunFolder

DEFAULT_FRAMEWORK = "deeplabv3"


def choose_recipe(
    framework: str | None = None,
    *,
    recipe: str | None = None,
    settings: Settings = (),
    model: str | None = None,
    pretrained: str | None = None,
    mask: str | None = None,
    plan: str | None = None,
    stored: FinetuneRecipe | None = None,
    **options: Any,
) -> FinetuneRecipe:
    """Return the recipe of a run: a recipe file, settings over it, and the other arguments over both.

    Args:
        framework: Name of the framework; default deeplabv3, or that of the recipe.
        recipe: Name of a shipped recipe or path of a file; default `FRAMEWORK-mini`.
        settings: Changes by key.
        model: open_clip model.
        pretrained: open_clip tag or file of weights.
        mask: Mask file, "" for none.
        plan: Freeze plan file, "" for none.
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
    chosen = resolve(FinetuneRecipe, table, origin, options=options)
    check_rule(chosen.training.freeze)
    if framework is not None and framework != chosen.model.framework:
        raise InputError(f"recipe {origin} is for {chosen.model.framework}, not {framework}; leave one of them out")
    if options.get("freeze") is not None and not chosen.training.plan_after:
        raise InputError(
            f"`freeze={options['freeze']}`: is the rule of `plan_after`, which is not given; "
            "or plan with `ovstrans analyze --freeze` and give that file as `plan`"
        )
    if options.get("weights") is not None and chosen.run.init != "pruned":
        raise InputError(f"`weights={options['weights']}`: goes with `init=pruned`; add it, or leave `weights` out")
    if chosen.run.plan and chosen.training.plan_after:
        raise InputError("`plan` and `plan_after`: give one; the first reads a plan, the second makes one on the way")
    if _whole_trunk_frozen(chosen) and (chosen.run.plan or chosen.training.plan_after):
        raise InputError(
            f"`model.trunk=frozen` freezes the whole backbone of {chosen.model.framework}, so a freeze plan changes "
            "nothing; leave out `plan` and `plan_after`, or set `model.trunk=train`"
        )
    if stored is not None:
        differ = differences(stored.to_table(), chosen.to_table())
        if differ:
            raise InputError(
                f"`resume=True` continues with the run's own recipe, but {'; '.join(differ)}; "
                "leave these out, or start anew with another `out`"
            )
    return chosen


def discover_artifacts(
    recipe: FinetuneRecipe, folder: Path, *, mask: bool = True, plan: bool = True
) -> tuple[FinetuneRecipe, list[str]]:
    """Take the mask and the plan that `prune` and `analyze` left in `folder`, if they are for this model.

    mask, plan: whether to look for each; what the settings have already stays. Returns the settings
    and a line for the user about each file found.
    """
    notes: list[str] = []
    found: dict[str, Any] = {}
    wanted = {
        "mask": (folder / "mask.safetensors", mask, read_metadata),
        "plan": (
            folder / "alpha.json",
            plan and not recipe.training.plan_after and not _whole_trunk_frozen(recipe),
            read_json,
        ),
    }
    for kind, (path, look, read) in wanted.items():
        if not look or getattr(recipe.run, kind) or not path.exists():
            continue
        model = read(path).get("model", "")
        if model == recipe.model.clip:
            found[kind] = str(path)
            notes.append(f"{kind}: {path} (--no-{kind} to go without)")
        else:
            notes.append(f"{kind}: {path} is for {model or 'an unnamed model'}, not {recipe.model.clip}; left aside")
    return dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, **found)), notes


def resume_recipe(out: Path | str, **given: Any) -> FinetuneRecipe | None:
    """The recipe of the run at `out`, checked against what was given; None if it is finished already.

    Raises InputError where there is no run, or none that can go on.
    """
    folder = RunFolder(Path(out))
    stored = folder.stored()
    if folder.finished:
        return None
    if not folder.state.exists():
        raise InputError(
            f"{folder.path}: the run stopped before its first saved state; give its whole command again, with --force"
        )
    return choose_recipe(stored=stored, **given)


def _whole_trunk_frozen(recipe: FinetuneRecipe) -> bool:
    """Whether the framework trains nothing of the trunk, by an option of its own (FC-CLIP as published)."""
    return recipe.model.options.get("trunk") == "frozen"


def _table(framework: str | None, recipe: str | None, stored: FinetuneRecipe | None) -> tuple[Table, str]:
    if recipe is None and stored is not None:
        return stored.to_table(), "of the run"
    if framework is not None:
        registry.default_options(framework)  # an unknown framework is the clearer message
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
    if stored is not None:
        table["run"] = stored.to_table()["run"]
    return table, name
