"""Files that a recipe, a run or a checkpoint names: absolute when recorded, and named with their source when gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import ovstrans
from ovstrans import files
from ovstrans.cli.main import run as cli
from ovstrans.clip.load import random_clip
from ovstrans.errors import InputError, MissingFileError
from ovstrans.recipes.load import load_recipe
from ovstrans.recipes.write import toml_text
from tests.segmenter.case import draw

SMALL = {
    "data.size": 64,
    "data.images": 4,
    "augment.crop": 64,
    "training.batch": 2,
    "model.width": 8,
    "training.precision": "fp32",
}


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with weights, a mask, its weights and a plan, in which the user works."""
    monkeypatch.chdir(tmp_path)
    files.write_tensors("clip.safetensors", random_clip(seed=1).model.state_dict(), {})
    ovstrans.prune(
        pretrained="clip.safetensors", method="magnitude", sparsity=0.5, steps=0, out="mask.safetensors", plot=False
    )
    ovstrans.analyze(pretrained="clip.safetensors").save("alpha.json")
    return tmp_path


def finetune(out: str = "run", **options: object) -> ovstrans.Run:
    return ovstrans.finetune(settings=SMALL, steps=1, out=out, device="cpu", **options)  # type: ignore[arg-type]


def test_what_a_run_records_works_from_another_folder(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finetune(mask="mask.safetensors", plan="alpha.json", init="pruned", weights="mask.weights.safetensors")
    table = load_recipe("run/recipe.toml")
    assert table["run"]["mask"] == str(inputs / "mask.safetensors")
    assert table["run"]["plan"] == str(inputs / "alpha.json")
    assert table["run"]["weights"] == str(inputs / "mask.weights.safetensors")
    assert table["model"]["pretrained"] == str(inputs / "clip.safetensors")
    before = run.load()
    (inputs / "elsewhere").mkdir()
    monkeypatch.chdir(inputs / "elsewhere")
    again = ovstrans.finetune(recipe="../run/recipe.toml", out="again", device="cpu").load()
    assert all(torch.equal(again.state[key], value) for key, value in before.state.items())


def test_a_data_folder_is_recorded_by_its_absolute_path(inputs: Path) -> None:
    recipe = ovstrans.training.resolve.choose_recipe(data="folder:photos:train")
    assert recipe.data.dataset == f"folder:{inputs / 'photos'}:train"
    assert ovstrans.training.resolve.choose_recipe(data="scenes:train").data.dataset == "scenes:train"
    assert ovstrans.training.resolve.choose_recipe(model="RN50", pretrained="openai").model.pretrained == "openai"


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("run.mask", "gone.safetensors", "mask"),
        ("run.plan", "gone.json", "plan"),
        ("model.pretrained", "gone.pt", "pretrained"),
        ("data.dataset", "folder:gone", "data"),
    ],
)
def test_a_recipe_whose_file_is_gone_is_named(inputs: Path, key: str, value: str, option: str) -> None:
    table = load_recipe("deeplabv3-mini", {**SMALL, key: value})
    Path("mine.toml").write_text(toml_text(table))
    with pytest.raises(
        InputError, match=rf"gone.*: no such file.* \(mine.toml records it as {key}; `{option}` replaces it\)"
    ):
        ovstrans.finetune(recipe="mine.toml", steps=1, out="run", device="cpu")
    assert not Path("run").exists()


def test_what_the_user_typed_is_not_said_to_be_recorded(inputs: Path) -> None:
    with pytest.raises(MissingFileError) as error:
        finetune(mask="gone.safetensors")
    assert "records" not in str(error.value)


def test_the_recipe_of_a_pruning_names_its_data(inputs: Path) -> None:
    Path("mine.toml").write_text(toml_text(load_recipe("prune-mini", {"data.dataset": "folder:gone"})))
    with pytest.raises(
        InputError, match=r"gone: no such file.*mine.toml records it as data.dataset; `data` replaces it"
    ):
        ovstrans.prune(recipe="mine.toml", out="m.safetensors")


def test_the_clip_of_a_checkpoint_that_is_gone(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New class names need the text encoder, which large checkpoints do not hold."""
    run = finetune(pretrained="clip.safetensors")
    checkpoint = run.load()
    assert checkpoint.clip["pretrained"] == str(inputs / "clip.safetensors")
    checkpoint.text_encoder = None
    from ovstrans.checkpoints.file import save_checkpoint

    save_checkpoint("large.safetensors", checkpoint)
    draw("photo.png")
    shutil.move("clip.safetensors", "moved.safetensors")
    assert cli(["predict", "large.safetensors", "photo.png", "--classes", "road, car", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "clip.safetensors: no such file; large.safetensors records it as the CLIP" in said and "--pretrained" in said
    arguments = ["--classes", "road, car", "--device", "cpu", "--pretrained", "moved.safetensors", "--out", "look"]
    assert cli(["predict", "large.safetensors", "photo.png", *arguments]) == 0


DATA = Path(__file__).parent.parent / "data"
MASK, CHECKPOINT, ALPHA, REPORT = (
    str(DATA / name) for name in ("mask.safetensors", "checkpoint.safetensors", "alpha.json", "report.json")
)
OURS = "a mask of ovstrans, not"
PLAN = "alpha.json: an alpha file with a freeze plan, not"
WRONG = [
    (["finetune", "--mask", ALPHA], f"{PLAN} a mask; give it as --plan"),
    (["finetune", "--mask", CHECKPOINT], "a checkpoint of ovstrans, not a mask"),
    (["finetune", "--plan", MASK], f"mask.safetensors: {OURS} a freeze plan; give it as --mask"),
    (["finetune", "--plan", REPORT], "report.json: a report of ovstrans bench, not a freeze plan"),
    (["finetune", "--pretrained", MASK], f"{OURS} a file of weights; give it as --mask"),
    (["finetune", "--recipe", MASK], f"{OURS} a recipe; give it as --mask"),
    (["prune", "--like", ALPHA], f"{PLAN} a mask; give it as plan of finetune or bench"),
    (["prune", "--pretrained", ALPHA], f"{PLAN} a file of weights; give it as plan of finetune or bench"),
    (["analyze", "--mask", REPORT], "a report of ovstrans bench, not a mask"),
    (["analyze", MASK], "a mask of ovstrans"),
    (["bench", "deeplabv3", "--plan", MASK], f"{OURS} a freeze plan; give it as --mask"),
    (["bench", MASK], "a mask of ovstrans"),
    (["predict", MASK, "photo.png"], "it holds: mask"),
    (["export", MASK, "--mask", ALPHA, "--out", "o.safetensors"], f"{PLAN} a mask; give it as plan of finetune"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_file_in_the_wrong_option_is_named_with_the_right_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    draw("photo.png")
    assert cli(arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message.replace("`", "") in said.replace("`", ""), said
