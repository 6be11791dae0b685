from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans.errors import InputError
from ovstrans.pruning.settings import choose_settings, differences, parse
from ovstrans.recipes.load import load_recipe


@pytest.mark.parametrize("name", ["prune-mini", "prune-rn50"])
def test_shipped_recipes_say_everything_and_read_back(name: str) -> None:
    settings = choose_settings(recipe=name)
    assert parse(settings.to_recipe(), "copy") == settings
    assert settings.prune.sparsity == 0.9 and settings.prune.rate == 0.1  # OpenTrans sec. 3.1
    assert settings.distill.options == {"dense": 1.0, "pooled": 1.0, "stages": 1.0}


def test_the_model_picks_the_recipe() -> None:
    assert choose_settings("RN-mini").prune.steps == load_recipe("prune-mini")["prune"]["steps"]
    assert choose_settings("RN101").prune.steps == load_recipe("prune-rn50")["prune"]["steps"] == 1000


def test_given_values_win_over_changes_over_the_recipe() -> None:
    settings = choose_settings(changes=["prune.steps=7", "data.batch=3"], given={"prune.steps": 9, "prune.rate": None})
    assert (settings.prune.steps, settings.data.batch, settings.prune.rate) == (9, 3, 0.1)
    assert choose_settings(given={"run.seed": 5}).run.seed == 5


def test_whole_numbers_stand_for_fractions(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "ovstrans/recipes/prune-mini.toml").read_text()
    path = tmp_path / "own.toml"
    path.write_text(text.replace("lr = 2e-3", "lr = 1").replace("dense = 1.0", "dense = 2"))
    settings = choose_settings(recipe=str(path))
    assert settings.optimizer.lr == 1.0 and isinstance(settings.optimizer.lr, float)
    assert settings.distill.options["dense"] == 2.0


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[prune]", "[prunes]", r"\[prunes\].*'prune'"),
        ("[run]", "", r"unknown key data\.precision|\[run\] is missing"),
        ("sparsity = 0.9", "sparcity = 0.9", r"prune\.sparcity.*'sparsity'"),
        ("sparsity = 0.9", "", r"prune\.sparsity is missing"),
        ("sparsity = 0.9", 'sparsity = "most"', r"prune\.sparsity is 'most'; a number"),
        ("steps = 8 ", "steps = 1.5 ", r"prune\.steps is 1\.5; a whole number"),
        ("flip = true", "flip = 1", r"data\.flip is 1; true or false"),
        ("dense = 1.0", "dense = -1.0", r"distill\.dense is -1\.0"),
        ("crop = 0.7", "crop = 0.0", r"data\.crop is 0\.0"),
        ("cooldown = 0.2", "cooldown = 2", r"optimizer\.cooldown is 2\.0"),
        ('norms = "train"', 'norms = "eval"', r"distill\.norms is 'eval'.*train or frozen"),
        ("lr = 2e-3", "lr = nan", r"optimizer\.lr is nan"),
        ("lr = 2e-3", "lr = inf", r"optimizer\.lr is inf; a finite number"),
        ("weight_decay = ", "weight_decay = inf # ", r"optimizer\.weight_decay is inf; a finite number"),
        ("dense = 1.0", "dense = inf", r"distill\.dense is inf; a finite number"),
        ("dense = 1.0", "dense = nan", r"distill\.dense is nan"),
        ("[run]", "[run]\nseed = -1", r"run\.seed is -1; it must be between 0 and 2\*\*63"),
        ("[run]", "[run]\nseed = 9223372036854775808", r"run\.seed is 9223372036854775808"),
        ("batch = ", "batch = 99999 # ", r"data\.batch is 99999; it must be between 1 and 65536"),
    ],
)
def test_what_a_recipe_must_not_say(tmp_path: Path, old: str, new: str, named: str) -> None:
    text = (Path(__file__).parents[2] / "ovstrans/recipes/prune-mini.toml").read_text()
    assert old in text
    path = tmp_path / "own.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=named):
        choose_settings(recipe=str(path))


def test_a_recipe_from_before_there_was_a_rate_of_the_trunk(tmp_path: Path) -> None:
    """It means what it meant: one rate for all."""
    text = (Path(__file__).parents[2] / "ovstrans/recipes/prune-rn50-regions.toml").read_text()
    path = tmp_path / "own.toml"
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("backbone_rate")))
    assert choose_settings(recipe=str(path)).optimizer.backbone_rate == 1.0
    assert choose_settings(recipe="prune-rn50-regions").optimizer.backbone_rate == 0.1


def test_a_distillation_needs_something_to_learn_from() -> None:
    nothing = ["distill.dense=0", "distill.pooled=0", "distill.stages=0"]
    with pytest.raises(InputError, match=r"distill\.dense, distill\.pooled, distill\.stages are all 0"):
        choose_settings(changes=nothing)
    assert choose_settings(changes=[*nothing, "distill.pooled=0.1"]).distill.options["pooled"] == 0.1
    assert choose_settings(changes=nothing, given={"prune.steps": 0}).prune.steps == 0


def test_differences_name_the_stored_value_first() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c is 2, not 3"]
    assert differences({"a": 1}, {"a": 1}) == []


def test_steps_of_rounds_follow_each_other() -> None:
    prune = choose_settings(changes=["prune.steps=4", "prune.final_steps=7"]).prune
    assert [prune.steps_of(number, 3) for number in range(3)] == [range(4), range(4, 8), range(8, 19)]
    assert prune.total_steps(3) == 19


def test_no_steps_are_none_at_all() -> None:
    prune = choose_settings(changes=["prune.steps=0", "prune.final_steps=7"]).prune
    assert prune.total_steps(3) == 0
    assert [len(prune.steps_of(number, 3)) for number in range(3)] == [0, 0, 0]


def test_batchnorm_needs_more_than_one_position() -> None:
    alone = ["data.batch=1", "data.size=32"]
    with pytest.raises(InputError, match=r"data\.batch = 1 at data\.size = 32.*distill\.norms=frozen"):
        choose_settings(changes=alone)
    for other in ("data.batch=2", "data.size=64", "distill.norms=frozen", "prune.steps=0"):
        choose_settings(changes=[*alone, other])


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(("loss", "kind"), [("text-guided", "queries"), ("semantic", "queries"), ("features", "dense")])
def test_the_default_recipe_is_that_of_the_loss(loss: str, kind: str, given: bool) -> None:
    asked: dict = {"given": {"distill.loss": loss}} if given else {"changes": [f"distill.loss={loss}"]}
    settings = choose_settings(**asked)
    assert settings.distill.loss == loss and kind in settings.distill.options


def test_every_option_of_gkc_is_one_of_semantic() -> None:
    changes = ["distill.loss=semantic", "distill.grounding_weight=0", "distill.region_drop=0.25"]
    options = choose_settings(changes=changes).distill.options
    assert (options["grounding_weight"], options["region_drop"], options["width"]) == (0.0, 0.25, 64)
    with pytest.raises(InputError, match=r"distill\.grounding_weight: no such key"):
        choose_settings(changes=["distill.loss=text-guided", "distill.grounding_weight=0"])


@pytest.mark.parametrize(
    ("recipe", "loss", "words"),
    [
        ("prune-mini", "text-guided", "for the distillation loss features, not text-guided; prune-mini-regions is"),
        ("prune-rn50-regions", "features", "for the distillation loss text-guided, not features; prune-mini is"),
        ("gkc-mini", None, "is one for finetune; prune takes such as prune-mini"),
    ],
)
def test_recipes_of_another_kind(recipe: str, loss: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        choose_settings(recipe=recipe, given={"distill.loss": loss})
