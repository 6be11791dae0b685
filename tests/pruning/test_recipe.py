from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans.errors import InputError
from ovstrans.pruning.prune import choose_recipe
from ovstrans.recipes.load import load_recipe, recipe_text
from ovstrans.recipes.schema import PruneRecipe


@pytest.mark.parametrize("name", ["prune-mini", "prune-rn50"])
def test_shipped_recipes_say_everything_and_read_back(name: str) -> None:
    settings = choose_recipe(recipe=name)
    assert PruneRecipe.parse(settings.to_table(), "copy") == settings
    assert settings.prune.sparsity == 0.9 and settings.prune.rate == 0.1  # OpenTrans sec. 3.1
    assert settings.distill.options == {"dense": 1.0, "pooled": 1.0, "stages": 1.0}


def test_the_model_picks_the_recipe() -> None:
    assert choose_recipe("RN-mini").prune.steps == load_recipe("prune-mini")["prune"]["steps"]
    assert choose_recipe("RN101").prune.steps == load_recipe("prune-rn50")["prune"]["steps"] == 1000


def test_options_win_over_settings_over_the_recipe() -> None:
    recipe = choose_recipe(settings=["prune.steps=7", "training.batch=3"], steps=9, rate=None)
    assert (recipe.prune.steps, recipe.training.batch, recipe.prune.rate) == (9, 3, 0.1)
    assert choose_recipe(seed=5).run.seed == 5


def test_whole_numbers_stand_for_fractions(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "ovstrans/recipes/prune-mini.toml").read_text()
    path = tmp_path / "own.toml"
    path.write_text(text.replace("lr = 0.002", "lr = 1").replace("dense = 1.0", "dense = 2"))
    settings = choose_recipe(recipe=str(path))
    assert settings.optimizer.lr == 1.0 and isinstance(settings.optimizer.lr, float)
    assert settings.distill.options["dense"] == 2.0


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[prune]", "[prunes]", r"unknown section \[prunes\]; did you mean 'prune'"),
        ("[training]", "", r"unknown key schedule\.batch"),
        ("sparsity = 0.9", "sparcity = 0.9", r"prune\.sparcity; did you mean 'sparsity'"),
        ("sparsity = 0.9", "", r"prune\.sparsity is missing"),
        ("sparsity = 0.9", 'sparsity = "most"', r"prune\.sparsity = 'most': a number"),
        ("sparsity = 0.9", "sparsity = 1.0", r"prune\.sparsity = 1\.0: must be at least 0 and below 1"),
        ("rate = 0.1", "rate = 0", r"prune\.rate = 0: must be above 0 and below 1"),
        ("rate = 0.1", "rate = 1", r"prune\.rate = 1: must be above 0 and below 1"),
        ("steps = 8 ", "steps = 1.5 ", r"prune\.steps = 1\.5: a whole number"),
        ("steps = 8 ", "steps = -1 ", r"prune\.steps = -1: must be at least 0"),
        ("final_steps = 44", "final_steps = -1", r"prune\.final_steps = -1: must be at least 0"),
        ("flip = 0.5", "flip = true", r"augment\.flip = True: a number"),
        ("dense = 1.0", "dense = -1.0", r"distill\.dense = -1\.0: a number of at least 0"),
        ("dense = 1.0", "dense = true", r"distill\.dense = True: a number of at least 0"),
        ("min_crop = 0.7", "min_crop = 0.0", r"augment\.min_crop = 0\.0: must be above 0 and at most 1"),
        ("min_crop = 0.7", "min_crop = 1.1", r"augment\.min_crop = 1\.1: must be above 0 and at most 1"),
        ("backbone_rate = 1.0", "backbone_rate = 0", "the pruned backbone would learn nothing"),
        ("lr = 0.002", "lr = nan", r"optimizer\.lr = nan: a finite number"),
        ("dense = 1.0", "dense = inf", r"distill\.dense = inf: a finite number"),
        ("dense = 1.0", "dense = nan", r"distill\.dense = nan: a finite number"),
        ("[training]", "[run]\nseed = -1\n[training]", r"run\.seed = -1: must be between 0 and 9223372036854775807"),
        ("[training]", "[run]\nseed = 9223372036854775808\n[training]", r"run\.seed = 9223372036854775808"),
    ],
)
def test_what_a_recipe_must_not_say(tmp_path: Path, old: str, new: str, named: str) -> None:
    text = (Path(__file__).parents[2] / "ovstrans/recipes/prune-mini.toml").read_text()
    assert old in text
    path = tmp_path / "own.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=named):
        choose_recipe(recipe=str(path))


def test_a_distillation_needs_something_to_learn_from() -> None:
    nothing = ["distill.dense=0", "distill.pooled=0", "distill.stages=0"]
    with pytest.raises(InputError, match=r"distill\.dense, distill\.pooled, distill\.stages are all 0"):
        choose_recipe(settings=nothing)
    assert choose_recipe(settings=[*nothing, "distill.pooled=0.1"]).distill.options["pooled"] == 0.1
    assert choose_recipe(settings=nothing, steps=0).prune.steps == 0


def test_steps_of_rounds_follow_each_other() -> None:
    prune = choose_recipe(settings=["prune.steps=4", "prune.final_steps=7"]).prune
    assert [prune.steps_of(number, 3) for number in range(3)] == [range(4), range(4, 8), range(8, 19)]
    assert prune.total_steps(3) == 19


def test_no_steps_are_none_at_all() -> None:
    prune = choose_recipe(settings=["prune.steps=0", "prune.final_steps=7"]).prune
    assert prune.total_steps(3) == 0
    assert [len(prune.steps_of(number, 3)) for number in range(3)] == [0, 0, 0]


def test_batchnorm_needs_more_than_one_position() -> None:
    alone = ["training.batch=1", "augment.crop=32"]
    with pytest.raises(InputError, match=r"`training\.batch=1` with `augment\.crop=32`.*training\.norms=frozen"):
        choose_recipe(settings=alone)
    for other in ("training.batch=2", "augment.crop=64", "training.norms=frozen", "prune.steps=0"):
        choose_recipe(settings=[*alone, other])


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(("loss", "kind"), [("text-guided", "queries"), ("semantic", "queries"), ("features", "dense")])
def test_the_default_recipe_is_that_of_the_loss(loss: str, kind: str, given: bool) -> None:
    asked: dict = {"distill": loss} if given else {"settings": [f"distill.loss={loss}"]}
    settings = choose_recipe(**asked)
    assert settings.distill.loss == loss and kind in settings.distill.options


def test_every_option_of_gkc_is_one_of_semantic() -> None:
    settings = ["distill.loss=semantic", "distill.grounding_weight=0", "distill.region_drop=0.25"]
    options = choose_recipe(settings=settings).distill.options
    assert (options["grounding_weight"], options["region_drop"], options["width"]) == (0.0, 0.25, 64)
    with pytest.raises(InputError, match=r"distill\.grounding_weight=0`: no such key"):
        choose_recipe(settings=["distill.loss=text-guided", "distill.grounding_weight=0"])


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
        choose_recipe(recipe=recipe, distill=loss)


def test_an_unknown_loss_is_named() -> None:
    for asked in ({"distill": "text-guide"}, {"settings": ["distill.loss=text-guide"]}):
        with pytest.raises(InputError, match="`distill=text-guide`: unknown; did you mean 'text-guided'"):
            choose_recipe(**asked)  # type: ignore[arg-type]


ONE_SHOT = pytest.mark.parametrize("method", ["magnitude", "random"])


@ONE_SHOT
@pytest.mark.parametrize("recipe", [None, "prune-rn50", "prune-mini", "file", "object"])
@pytest.mark.parametrize("as_setting", [True, False])
def test_one_shot_methods_of_real_clips_take_no_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, recipe: str | None, as_setting: bool
) -> None:
    chosen: dict = {"recipe": recipe}
    if recipe == "file":
        chosen["recipe"] = tmp_path / "own.toml"
        chosen["recipe"].write_text(recipe_text("prune-rn50"))
    if recipe == "object":
        chosen["recipe"] = choose_recipe("RN50")
    wanted: dict = {"settings": [f"prune.method={method}"]} if as_setting else {"method": method}
    with caplog.at_level("INFO", "ovstrans"):
        prune = choose_recipe("RN50", **chosen, **wanted).prune
    assert (prune.method, prune.steps, prune.total_steps(22)) == (method, 0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        f"{method} prunes RN50 in one shot, without distillation; `steps=N` asks for N steps a round"
    ]


@ONE_SHOT
def test_one_shot_methods_take_the_steps_that_are_asked_for(tmp_path: Path, method: str) -> None:
    assert choose_recipe("RN50", method=method, steps=7).prune.total_steps(22) == 154
    assert choose_recipe("RN50", method=method, settings={"prune.steps": 7}).prune.steps == 7
    assert choose_recipe("RN-mini", method=method).prune.total_steps(22) == 220  # the bundled one keeps its own
    own = tmp_path / "own.toml"
    own.write_text(recipe_text("prune-rn50").replace('method = "imp"', f'method = "{method}"').replace("1000 ", "9 "))
    assert choose_recipe("RN50", recipe=own).prune.steps == 9  # written beside the method
    assert choose_recipe("RN50").prune.steps == 1000


def test_what_no_step_would_use_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "ovstrans"):
        choose_recipe("RN50", method="random", data="folder:photos", lr=0.1)
    assert "without distillation (not used: `lr`); `steps=N`" in caplog.text
