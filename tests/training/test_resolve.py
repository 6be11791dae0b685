from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans import files
from ovstrans.errors import InputError
from ovstrans.recipes.load import recipe_text
from ovstrans.recipes.write import toml_text
from ovstrans.training.resolve import Artifacts, choose_recipe, discover_artifacts, resume_recipe


def test_no_argument_is_the_mini_recipe_of_deeplab() -> None:
    settings = choose_recipe()
    assert settings.model.framework == "deeplabv3" and settings.model.clip == "RN-mini"
    assert (settings.data.dataset, settings.run.seed, settings.run.init) == ("scenes:train", 0, "pretrained")


def test_arguments_lie_over_changes_over_the_recipe() -> None:
    settings = choose_recipe(settings=["training.steps=7", "optimizer.lr=0.5"], steps=9, data="scenes-attr", seed=4)
    assert (settings.training.steps, settings.optimizer.lr, settings.data.dataset, settings.run.seed) == (
        9,
        0.5,
        "scenes-attr",
        4,
    )


def test_any_option_of_the_framework_can_be_set_and_is_recorded(tmp_path: Path) -> None:
    text = recipe_text("deeplabv3-mini")
    path = tmp_path / "short.toml"
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("dropout")))
    settings = choose_recipe(recipe=str(path), settings=["model.dropout=0.25", "model.clip_path=sum"])
    assert (settings.model.options["dropout"], settings.model.options["clip_path"]) == (0.25, "sum")
    assert settings.to_table()["model"]["clip_path"] == "sum"


def test_another_model_does_not_take_the_weights_of_the_recipes() -> None:
    assert choose_recipe(recipe="deeplabv3-rn50-coco").model.pretrained == "openai"
    assert choose_recipe(recipe="deeplabv3-rn50-coco", model="RN50").model.pretrained == "openai"
    assert choose_recipe(recipe="deeplabv3-rn50-coco", model="RN101").model.pretrained == ""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"framework": "deeplap"}, "did you mean 'deeplabv3'"),
        ({"recipe": "deeplabv3-minni"}, "did you mean 'deeplabv3-mini'"),
        ({"settings": ["optimizer.lrr=1"]}, "did you mean 'optimizer.lr'"),
        ({"plan": "a.json", "plan_after": 3}, "`plan` and `plan_after`"),
        ({"init": "imagenet"}, "pretrained, pruned, random"),
        ({"steps": 0}, "at least 1"),
        ({"freeze": "count:3"}, "`freeze=count:3`: is the rule of `plan_after`"),
        ({"weights": "w.safetensors"}, "`weights=w.safetensors`: goes with `init=pruned`"),
        ({"weights": "w.safetensors", "init": "random"}, "goes with `init=pruned`"),
        ({"seed": 2**63}, "`seed=9223372036854775808`: must be between"),
        ({"seed": -1}, "`seed=-1`: must be between"),
    ],
)
def test_contradictions_and_typing_errors_are_refused(given: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        choose_recipe(**given)


def test_a_recipe_for_another_framework_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(recipe_text("deeplabv3-mini"))
    assert choose_recipe("deeplabv3", recipe=str(path)).model.framework == "deeplabv3"
    path.write_text("[model]\nframework = 'deeplabv3'\n")
    with pytest.raises(InputError, match=r"section \[data\] is missing"):
        choose_recipe(recipe=str(path))


def test_resuming_needs_no_argument_and_names_what_differs() -> None:
    stored = choose_recipe(settings=["optimizer.lr=0.5"], seed=3, mask="m.safetensors")
    assert choose_recipe(stored=stored) == stored
    assert choose_recipe(stored=stored, seed=3, mask="m.safetensors") == stored
    with pytest.raises(InputError, match=r"training.steps is 250, not 9; run.seed is 3, not 4"):
        choose_recipe(stored=stored, steps=9, seed=4)
    with pytest.raises(InputError, match=r"optimizer.lr is 0.5, not 0.001"):
        choose_recipe(stored=stored, recipe="deeplabv3-mini")


def test_what_goes_together_is_taken() -> None:
    settings = choose_recipe(freeze="count:3", plan_after=5, weights="w", init="pruned", seed=2**63 - 1)
    assert (settings.training.freeze, settings.run.weights) == ("count:3", str(Path("w").absolute()))


def test_resuming_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run to resume"):
        resume_recipe(tmp_path / "run")
    files.write_text(tmp_path / "run" / "recipe.toml", toml_text(choose_recipe().to_table()))
    with pytest.raises(InputError, match="before its first saved state"):
        resume_recipe(tmp_path / "run")
    (tmp_path / "run" / "checkpoint.safetensors").touch()
    assert resume_recipe(tmp_path / "run") is None


def leave(folder: Path, model: str) -> None:
    import torch

    files.write_tensors(folder / "mask.safetensors", {"x": torch.zeros(1)}, {"model": model})
    files.write_json(folder / "alpha.json", {"model": model})


def test_what_prune_and_analyze_left_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ovstrans")
    leave(tmp_path, "RN-mini")
    mask, plan = tmp_path / "mask.safetensors", tmp_path / "alpha.json"
    assert discover_artifacts(tmp_path) == Artifacts(mask, plan)
    assert caplog.messages == [
        f"mask: {mask} (`mask=False` to go without)",
        f"plan: {plan} (`plan=False` to go without)",
    ]
    caplog.clear()
    assert discover_artifacts(tmp_path, mask=False, plan=False) == Artifacts(False, False)
    assert discover_artifacts(tmp_path, mask="mine", plan_after=5) == Artifacts("mine", None)
    assert discover_artifacts(tmp_path, recipe=choose_recipe(mask="m", plan="p")) == Artifacts()
    assert not caplog.messages


def test_what_is_for_another_model_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ovstrans")
    leave(tmp_path, "RN50")
    assert discover_artifacts(tmp_path) == Artifacts()
    assert len(caplog.messages) == 2 and "is for RN50, not RN-mini; not used" in caplog.messages[0]
    assert discover_artifacts(tmp_path, clip="RN50").mask == tmp_path / "mask.safetensors"


def test_a_plan_for_a_backbone_that_the_framework_freezes_is_refused(tmp_path: Path) -> None:
    frozen = ["model.trunk=frozen"]
    for given in ({"plan": "alpha.json"}, {"plan_after": 10}):
        with pytest.raises(InputError, match="a freeze plan changes nothing"):
            choose_recipe("fcclip", settings=frozen, **given)
        choose_recipe("fcclip", **given)
    (tmp_path / "alpha.json").write_text('{"model": "RN-mini"}')
    assert discover_artifacts(tmp_path, framework="fcclip", settings=frozen) == Artifacts()
    assert discover_artifacts(tmp_path, framework="fcclip").plan == tmp_path / "alpha.json"


def test_a_recipe_is_taken_as_it_is() -> None:
    recipe = choose_recipe("gkc", settings=["optimizer.lr=0.5"], seed=3, mask="m.safetensors")
    assert choose_recipe(recipe=recipe) == recipe
    assert choose_recipe(recipe=recipe, mask="").run.mask == ""
    assert choose_recipe(stored=recipe, recipe=recipe) == recipe
    with pytest.raises(InputError, match=r"run.seed is 4, not 3"):
        choose_recipe(stored=choose_recipe(recipe=recipe, seed=4), recipe=recipe)
