"""The schema: every recipe parses, every fault is named, settings and options are laid over in order."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.errors import InputError
from ovstrans.recipes.load import load_recipe, recipe_names, resolve
from ovstrans.recipes.options import accepts_options
from ovstrans.recipes.schema import FinetuneRecipe, PruneRecipe, Recipe, Schedule, keys_of, kind_of, option_keys

KINDS = [FinetuneRecipe, PruneRecipe]


def table(name: str = "deeplabv3-mini") -> dict[str, Any]:
    return copy.deepcopy(load_recipe(name))


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_parse_and_come_back(name: str) -> None:
    kind = kind_of(load_recipe(name))
    assert kind is (PruneRecipe if name.startswith("prune") else FinetuneRecipe)
    recipe = kind.parse(load_recipe(name), name)
    assert kind.parse(recipe.to_table(), name) == recipe


@pytest.mark.parametrize("kind", KINDS)
def test_every_missing_key_is_named(kind: type[Recipe]) -> None:
    whole = table(kind.example)
    needed = [key for key in keys_of(kind).values() if key.required]
    assert {key.name for key in keys_of(kind).values()} - {key.name for key in needed} == {
        "schedule.cooldown", "schedule.drops", "schedule.drop_factor", "schedule.power", "run.seed",
        *(("run.init", "run.mask", "run.weights", "run.plan") if kind is FinetuneRecipe else (
            "prune.granularity", "prune.allocation", "prune.macs", "prune.tau", "prune.severed",
        )),
    }  # fmt: skip
    for key in needed:
        broken = copy.deepcopy(whole)
        section, name = key.name.split(".")
        del broken[section][name]
        with pytest.raises(InputError, match=rf"recipe r: {section}\.{name} is missing \("):
            kind.parse(broken, "r")
    for section in {key.name.split(".")[0] for key in needed}:
        broken = copy.deepcopy(whole)
        del broken[section]
        with pytest.raises(InputError, match=rf"\[{section}\] is missing|is one for|no \[model\]"):
            kind.parse(broken, "r")


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("optimizer", "lrr", 0.1, r"unknown key optimizer\.lrr; did you mean 'lr'"),
        ("optimizer", "lr", "fast", r"optimizer\.lr = 'fast': a number is needed"),
        ("optimizer", "lr", True, r"optimizer\.lr = True: a number is needed"),
        ("optimizer", "lr", 0.0, r"optimizer\.lr = 0\.0: must be above 0"),
        ("optimizer", "lr", float("inf"), r"optimizer\.lr = inf: a finite number"),
        ("optimizer", "weight_decay", float("nan"), r"optimizer\.weight_decay = nan: a finite number"),
        ("optimizer", "lr", 10**400, r"optimizer\.lr = 1000*: a finite number"),
        ("optimizer", "clip_norm", -1.0, r"optimizer\.clip_norm = -1\.0: must be at least 0"),
        ("augment", "scale", [0.5, float("inf")], r"augment\.scale = \[0\.5, inf\]: a finite number"),
        ("augment", "scale", [0.5], "a list of 2 numbers"),
        ("augment", "scale", [0.0, 1.0], "each must be above 0"),
        ("augment", "scale", [1.5, 0.5], "smaller number first"),
        ("augment", "scale", 1.0, "a list of numbers"),
        ("augment", "scale", ["a", "b"], "a list of numbers"),
        ("augment", "flip", 1.5, r"between 0 and 1"),
        ("augment", "jitter", 1.0, r"at least 0 and below 1"),
        ("augment", "crop", 31, r"at least 32 \(pixels\)"),
        ("model", "dropout", float("nan"), r"model\.dropout = nan: a finite number"),
        ("training", "batch", 65537, "between 1 and 65536"),
        ("training", "batch", 0, "between 1 and 65536"),
        ("training", "steps", 2.5, r"training\.steps = 2\.5: a whole number"),
        ("training", "steps", 0, r"training\.steps = 0: must be at least 1"),
        ("training", "norms", "off", "one of train, frozen"),
        ("training", "precision", "fp8", "auto, fp32, bf16, fp16"),
        ("training", "freeze_norms", 1, "true or false"),
        ("training", "plan_after", 250, "`plan_after=250` must be below"),
        ("schedule", "kind", "exp", "constant, step, poly, cosine"),
        ("schedule", "drops", [2.0], "each must be above 0 and below 1"),
        ("schedule", "cooldown", 1.5, "between 0 and 1"),
        ("schedule", "warmup", -1, "at least 0"),
        ("data", "images", -1, r"data\.images = -1"),
        ("data", "size", 31, r"data\.size = 31: must be at least 32 \(pixels\)"),
    ],
)
def test_bad_values_say_which_and_what_is_needed(section: str, key: str, value: Any, words: str) -> None:
    broken = table()
    broken[section][key] = value
    with pytest.raises(InputError, match=words) as caught:
        FinetuneRecipe.parse(broken, "mine.toml")
    assert "mine.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_bounds_that_are_allowed() -> None:
    edges = {
        "augment.flip": 1.0, "augment.crop": 32, "training.batch": 65_536, "training.plan_after": 249,
        "schedule.cooldown": 1.0, "optimizer.clip_norm": 0.0, "optimizer.backbone_rate": 0.0, "augment.jitter": 0.0,
        "augment.scale": [1.0, 1.0], "run.seed": 2**63 - 1,
    }  # fmt: skip
    recipe = resolve(FinetuneRecipe, table(), "r", settings=edges)
    assert (recipe.augment.flip, recipe.augment.scale, recipe.run.seed) == (1.0, (1.0, 1.0), 2**63 - 1)


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown section \[optimiser\]; did you mean 'optimizer'"):
        FinetuneRecipe.parse({**table(), "optimiser": {}}, "r")
    with pytest.raises(InputError, match=r"section \[data\] is missing"):
        FinetuneRecipe.parse({**table(), "data": 3}, "r")


def test_a_recipe_of_the_other_kind_is_named() -> None:
    with pytest.raises(InputError, match="is one for finetune; prune takes such as prune-mini"):
        PruneRecipe.parse(table("gkc-mini"), "gkc-mini")
    with pytest.raises(InputError, match="is one for prune; finetune takes such as deeplabv3-mini"):
        FinetuneRecipe.parse(table("prune-mini"), "prune-mini")


def test_whole_numbers_stand_for_fractions() -> None:
    changed = table()
    changed["optimizer"]["lr"] = 1
    recipe = FinetuneRecipe.parse(changed, "r")
    assert recipe.optimizer.lr == 1.0 and isinstance(recipe.optimizer.lr, float)


def test_options_lie_over_settings_over_the_recipe() -> None:
    recipe = resolve(
        PruneRecipe, table("prune-mini"), "r", settings=["prune.steps=7", "prune.rate=0.5"],
        options={"steps": 9, "sparsity": None, "image_size": 64},
    )  # fmt: skip
    assert (recipe.prune.steps, recipe.prune.rate, recipe.prune.sparsity) == (9, 0.5, 0.9)
    assert (recipe.data.size, recipe.augment.crop) == (64, 64)
    for settings in ({"optimizer.lr": 0.5}, {"optimizer": {"lr": 0.5}}, ["optimizer.lr = 0.5"]):
        assert resolve(PruneRecipe, table("prune-mini"), "r", settings=settings).optimizer.lr == 0.5


def test_a_fault_is_named_as_it_was_given() -> None:
    with pytest.raises(InputError, match=r"^`sparsity=90\.0`: must be at least 0 and below 1$"):
        resolve(PruneRecipe, table("prune-mini"), "r", options={"sparsity": 90.0})
    with pytest.raises(InputError, match=r"^`prune\.sparsity=90`: must be at least 0 and below 1$"):
        resolve(PruneRecipe, table("prune-mini"), "r", settings=["prune.sparsity=90"])
    with pytest.raises(TypeError, match="unknown option 'sparcity'; did you mean 'sparsity'"):
        resolve(PruneRecipe, table("prune-mini"), "r", options={"sparcity": 0.5})


def test_a_key_with_a_default_may_be_set_where_the_recipe_leaves_it_out() -> None:
    assert "power" not in table("prune-mini")["schedule"] and "run" not in table("prune-mini")
    settings = ["schedule.power=2", "schedule.kind=poly", "run.seed=3"]
    recipe = resolve(PruneRecipe, table("prune-mini"), "r", settings=settings)
    assert (recipe.schedule.power, recipe.schedule.kind, recipe.run.seed) == (2.0, "poly", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_key_means_the_same_in_both_kinds(kind: type[Recipe]) -> None:
    other = keys_of(PruneRecipe if kind is FinetuneRecipe else FinetuneRecipe)
    shared = {name: key for name, key in keys_of(kind).items() if name in other}
    assert {"data.size", "augment.crop", "training.precision", "schedule.warmup", "optimizer.lr"} <= set(shared)
    assert all(key == other[name] for name, key in shared.items())
    assert all(key.help.endswith(".") for key in keys_of(kind).values())


def test_options_become_parameters() -> None:
    @accepts_options(PruneRecipe, after="clip")
    def prune(clip: int, *, out: str = "", distill: str = "", **options: Any) -> None:
        """A function with options of its own."""

    parameters = inspect.signature(prune).parameters
    assert list(parameters) == [
        "clip",
        *(name for name in option_keys(PruneRecipe) if name != "distill"),
        "out",
        "distill",
    ]
    assert parameters["sparsity"].annotation == float | None and parameters["sparsity"].default is None


def scheduled(kind: str, **changes: Any) -> Schedule:
    return Schedule(kind=kind, **{"warmup": 0, "cooldown": 0.0, "drops": (0.8, 0.9), **changes})


def test_steps_drop_where_the_paper_drops_them() -> None:
    """OpenTrans sec. 6.1: 50,000 steps, x0.1 at 40,000 and at 45,000."""
    rates = [scheduled("step").factor(step, 50_000) for step in (0, 39_999, 40_000, 44_999, 45_000, 49_999)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("kind", "step", "factor"),
    [
        ("constant", 99, 1.0),
        ("poly", 50, 0.5**0.9),
        ("cosine", 0, 1.0),
        ("cosine", 50, 0.5),
        ("cosine", 75, 0.14644660940672),
    ],
)
def test_schedules_by_hand(kind: str, step: int, factor: float) -> None:
    assert scheduled(kind).factor(step, 100) == pytest.approx(factor)


def test_warmup_rises_linearly_and_its_last_step_has_the_full_rate() -> None:
    warm = scheduled("constant", warmup=4)
    assert [warm.factor(step, 100) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_cooldown_falls_to_zero_by_a_cosine_over_its_fraction_of_the_run() -> None:
    cool = scheduled("constant", warmup=5, cooldown=0.2)
    rates = [cool.factor(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(rates[4:81]) == {1.0}
    assert rates[90] == pytest.approx(0.5) and rates[95] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.75)))
    assert all(before > after > 0 for before, after in pairwise(rates[80:]))
    whole = scheduled("constant", cooldown=1.0)
    cosine = [scheduled("cosine").factor(step, 50) for step in range(50)]
    assert [whole.factor(step, 50) for step in range(50)] == pytest.approx(cosine)
    dropped = scheduled("step", cooldown=0.2)
    assert dropped.factor(90, 100) == pytest.approx(0.5 * 0.1**2)


@given(st.sampled_from(["constant", "step", "poly", "cosine"]), st.integers(2, 500), st.sampled_from([0.0, 0.3, 1.0]))
def test_without_warmup_no_schedule_ever_rises(kind: str, total: int, cooldown: float) -> None:
    schedule = dataclasses.replace(scheduled(kind), cooldown=cooldown)
    rates = [schedule.factor(step, total) for step in range(total)]
    assert rates[0] == 1.0 and all(0 < later <= earlier for earlier, later in pairwise(rates))
