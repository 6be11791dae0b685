"""From what the command line says to the settings of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovstrans.errors import InputError
from ovstrans.files import read_json, read_metadata
from ovstrans.frameworks import registry
from ovstrans.recipes.load import Recipe, load_recipe, override
from ovstrans.training.run_folder import RunFolder
from ovstrans.training.settings import Settings, differences, parse

DEFAULT_FRAMEWORK = "deeplabv3"


def choose_settings(
    framework: str | None = None,
    *,
    recipe: str | None = None,
    changes: Sequence[str] = (),
    model: str | None = None,
    pretrained: str | None = None,
    data: str | None = None,
    steps: int | None = None,
    mask: str | None = None,
    plan: str | None = None,
    plan_after: int | None = None,
    freeze: str | None = None,
    init: str | None = None,
    weights: str | None = None,
    seed: int | None = None,
    stored: Settings | None = None,
) -> Settings:
    """The settings of a run: a recipe, `KEY=VALUE` changes over it, and the other arguments over both.

    framework: default deeplabv3, or the recipe's.  recipe: a shipped name or a file, default
    `FRAMEWORK-mini`.  The rest is None where not given.  Raises InputError where two contradict each
    other.

    stored: the settings of the run to resume; they are the default of everything, and InputError
    names what was given otherwise.
    """
    table, origin = _table(framework, recipe, stored)
    table = override(table, changes)
    run: Recipe = table.setdefault("run", {})
    if model is not None and model != table["model"].get("clip"):
        table["model"].update(clip=model, pretrained="")  # the recipe's weights are those of the recipe's model
    given: list[tuple[Recipe, str, Any]] = [
        (table["model"], "pretrained", pretrained),
        (table["data"], "dataset", data),
        (table["training"], "steps", steps),
        (table["training"], "plan_after", plan_after),
        (table["training"], "freeze", freeze),
        (run, "mask", mask),
        (run, "plan", plan),
        (run, "init", init),
        (run, "weights", weights),
        (run, "seed", seed),
    ]
    for section, key, value in given:
        if value is not None:
            section[key] = value
    settings = parse(table, origin)
    if framework is not None and framework != settings.model.framework:
        raise InputError(f"recipe {origin} is for {settings.model.framework}, not {framework}; leave one of them out")
    if freeze is not None and not settings.training.plan_after:
        raise InputError(
            f"--freeze {freeze}: is the rule of --plan-after N, which is not given; "
            "or plan with `ovstrans analyze --freeze` and give that file as --plan"
        )
    if weights is not None and settings.run.init != "pruned":
        raise InputError(f"--weights {weights}: goes with --init pruned; add it, or leave --weights out")
    if settings.run.plan and settings.training.plan_after:
        raise InputError("--plan and --plan-after: give one; the first reads a plan, the second makes one on the way")
    if _whole_trunk_frozen(settings) and (settings.run.plan or settings.training.plan_after):
        raise InputError(
            f'model.trunk = "frozen" keeps all of the {settings.model.framework}\'s trunk still, a freeze plan changes '
            "nothing; leave out --plan and --plan-after, or --set model.trunk=train"
        )
    if stored is not None:
        differ = differences(stored, settings)
        if differ:
            raise InputError(
                f"--resume continues with the run's own settings, but {'; '.join(differ)}; "
                "leave these out, or start anew with another --out"
            )
    return settings


def discover_artifacts(
    settings: Settings, folder: Path, *, mask: bool = True, plan: bool = True
) -> tuple[Settings, list[str]]:
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
            plan and not settings.training.plan_after and not _whole_trunk_frozen(settings),
            read_json,
        ),
    }
    for kind, (path, look, read) in wanted.items():
        if not look or getattr(settings.run, kind) or not path.exists():
            continue
        model = read(path).get("model", "")
        if model == settings.model.clip:
            found[kind] = str(path)
            notes.append(f"{kind}: {path} (--no-{kind} to go without)")
        else:
            notes.append(f"{kind}: {path} is for {model or 'an unnamed model'}, not {settings.model.clip}; left aside")
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, **found)), notes


def resume_settings(out: Path | str, **given: Any) -> Settings | None:
    """The settings of the run at `out`, checked against what was given; None if it is finished already.

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
    return choose_settings(stored=stored, **given)


def _whole_trunk_frozen(settings: Settings) -> bool:
    """Whether the framework trains nothing of the trunk, by an option of its own (FC-CLIP as published)."""
    return settings.model.options.get("trunk") == "frozen"


def _table(framework: str | None, recipe: str | None, stored: Settings | None) -> tuple[Recipe, str]:
    if recipe is None and stored is not None:
        return stored.to_recipe(), "of the run"
    if framework is not None:
        registry.default_options(framework)  # an unknown framework is the clearer message
    name = recipe if recipe is not None else f"{framework or DEFAULT_FRAMEWORK}-mini"
    table = load_recipe(name)
    if "prune" in table and "model" not in table:
        raise InputError(f"recipe {name}: is one for prune; finetune takes such as deeplabv3-mini")
    for section in ("data", "model", "training"):
        if not isinstance(table.get(section), dict):
            raise InputError(
                f"recipe {name}: section [{section}] is missing; see `ovstrans recipes show deeplabv3-mini`"
            )
    named = table["model"].get("framework")
    if isinstance(named, str):  # every option of the framework can be set, and the run records it
        table["model"] = {
            **table["model"],
            **{k: v for k, v in registry.default_options(named).items() if k not in table["model"]},
        }
    if stored is not None:
        table["run"] = stored.to_recipe()["run"]
    return table, name
