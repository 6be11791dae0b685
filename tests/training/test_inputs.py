"""What is given as an object: recorded in the run folder, and enough to resume from."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ovstrans import files
from ovstrans.clip.load import Clip, load_clip, random_clip
from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.scenes.dataset import Scenes
from ovstrans.errors import InputError
from ovstrans.masks.file import load_mask, save_mask
from ovstrans.masks.mask import Mask
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.spectrum.analysis import analyze
from ovstrans.spectrum.file import load_plan, save_plan
from ovstrans.spectrum.plan import FreezePlan
from ovstrans.training.finetune import finetune
from ovstrans.training.inputs import dataset_name
from ovstrans.training.run_folder import Run, RunFolder
from tests.training.conftest import TINY, train
from tests.training.test_finetune import differing, interrupt_after, log, result

Tiny = Callable[..., FinetuneRecipe]
PLAN = FreezePlan("count:2", None, ("conv1", "layer1.0.conv2"))


def start(out: Path, **given: Any) -> Run:
    """Train the tiny recipe with objects, in four steps."""
    return finetune(settings=(*TINY, "training.precision=fp32"), steps=4, device="cpu", out=out, **given)


def changed_clip(clip_file: Path) -> Clip:
    """Weights that no name and tag stand for."""
    clip = load_clip("RN-mini", str(clip_file))
    with torch.no_grad():
        clip.visual.conv1.weight.mul_(2)
        clip.model.token_embedding.weight.mul_(0.5)
    return clip


def test_objects_train_as_their_files_do(tiny: Tiny, tmp_path: Path, clip_file: Path, mask_file: Path) -> None:
    save_plan(tmp_path / "plan.json", PLAN)
    named = train(tiny(mask=str(mask_file), plan=str(tmp_path / "plan.json"), steps=4), tmp_path / "named")
    clip, mask = load_clip("RN-mini", str(clip_file)), load_mask(mask_file)
    before = copy.deepcopy(clip.model.state_dict())
    given = start(tmp_path / "given", clip=clip, mask=mask, plan=PLAN)
    assert differing(result(named), result(given)) == []
    assert all(torch.equal(value, before[key]) for key, value in clip.model.state_dict().items())
    assert (given.recipe.model.clip, given.recipe.model.pretrained) == ("RN-mini", str(clip_file))
    assert sorted(path.name for path in (given.path / "inputs").iterdir()) == ["mask.safetensors", "plan.json"]
    assert load_mask(given.recipe.run.mask) == mask and load_plan(given.recipe.run.plan) == PLAN == given.plan
    again = finetune(recipe=given.path / "recipe.toml", out=tmp_path / "again", device="cpu")
    assert differing(result(given), result(again)) == []


def test_a_run_of_objects_resumes_from_its_folder_alone(
    tmp_path: Path, clip_file: Path, mask_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"clip": changed_clip(clip_file), "mask": load_mask(mask_file), "plan": analyze(random_clip())}
    whole = start(tmp_path / "whole", **given)
    part = tmp_path / "part"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(2, patch)
        start(part, **given)
    moved = part.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    assert {path.name for path in (moved / "inputs").iterdir()} == {"clip.safetensors", "mask.safetensors", "plan.json"}
    resumed = finetune(resume=True, out=moved, device="cpu")
    assert differing(result(whole), result(resumed)) == []
    assert result(resumed).clip["weights_sha256"] == result(whole).clip["weights_sha256"]
    assert [entry["loss"] for entry in log(resumed)] == [entry["loss"] for entry in log(whole)]
    text = result(resumed).text_encoder
    assert text is not None
    kept, expected = text["token_embedding.weight"].float(), given["clip"].model.token_embedding.weight
    assert torch.equal(kept, expected)


def test_an_object_given_to_resume_must_be_the_same(
    tmp_path: Path, clip_file: Path, mask_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, mask = changed_clip(clip_file), load_mask(mask_file)
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(1, patch)
        start(out, clip=clip, mask=mask, plan=PLAN)
    other = Mask({key: ~value for key, value in mask.tensors.items()}, model="RN-mini")
    for wrong, name in (
        ({"mask": other}, "mask"),
        ({"plan": FreezePlan("count:1", None, ("conv1",))}, "plan"),
        ({"clip": random_clip(seed=9)}, "clip"),
    ):
        with pytest.raises(InputError, match=f"`{name}`: is not the one"):
            finetune(resume=True, out=out, device="cpu", **wrong)  # type: ignore[arg-type]
    run = finetune(resume=True, out=out, device="cpu", clip=clip, mask=mask, plan=PLAN)
    assert [entry["step"] for entry in run.log] == [1, 2, 3, 4]


def test_pruned_weights_are_given_as_tensors_or_found_beside_the_file_of_the_mask(
    tmp_path: Path, clip_file: Path, mask_file: Path
) -> None:
    clip, mask = load_clip("RN-mini", str(clip_file)), load_mask(mask_file)
    pruned = {key: value * 0.5 for key, value in clip.visual.state_dict().items()}
    mask.apply(pruned)
    given = start(tmp_path / "given", clip=clip, mask=mask, init="pruned", weights=pruned)
    assert given.recipe.run.weights == str(given.path / "inputs" / "weights.safetensors")
    save_mask(tmp_path / "mask.safetensors", mask)
    files.write_tensors(tmp_path / "mask.weights.safetensors", pruned, {})
    beside = start(tmp_path / "beside", clip=clip, mask=load_mask(tmp_path / "mask.safetensors"), init="pruned")
    assert differing(result(given), result(beside)) == []
    dense = start(tmp_path / "dense", clip=clip, mask=mask)
    assert differing(result(given), result(dense))


class Mine(Scenes):
    """A dataset that no name stands for."""

    def __init__(self) -> None:
        super().__init__("train", size=64, seed=7, length=6)
        self.name = "mine"


def test_a_dataset_is_recorded_by_name_if_it_has_one() -> None:
    assert dataset_name(Scenes("val", size=48), 48) == "scenes:val"
    assert dataset_name(Scenes("val", size=48), 64) == "object:scenes:val"
    assert dataset_name(Scenes("val", size=48, seed=1), 48) == "object:scenes:val"
    assert dataset_name(Mine()) == "object:mine:train"


def test_a_dataset_without_a_name_is_given_again(
    tmp_path: Path, clip_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(1, patch)
        start(out, clip="RN-mini", pretrained=clip_file, data=Mine())
    with pytest.raises(InputError, match=r"`data`: .*object:mine:train.*give it again"):
        finetune(resume=True, out=out, device="cpu")
    run = finetune(resume=True, out=out, device="cpu", data=Mine())
    assert run.recipe.data.dataset == "object:mine:train" and len(run.log) == 4


def test_a_folder_of_images_is_recorded_by_its_path(tmp_path: Path) -> None:
    from PIL import Image

    for kind, mode in (("train", "RGB"), ("trainannot", "L")):
        (tmp_path / kind).mkdir()
        Image.new(mode, (40, 40)).save(tmp_path / kind / "a.png")
    (tmp_path / "dataset.toml").write_text('classes = ["road", "car"]\nimages = "{split}"\nlabels = "{split}annot"\n')
    name = f"folder:{tmp_path}:train"
    assert dataset_name(open_dataset(name, split="val")) == name


def test_what_is_neither_a_path_nor_an_object_is_refused(tmp_path: Path, clip_file: Path) -> None:
    with pytest.raises(InputError, match="leave it out"):
        start(tmp_path / "run", clip=load_clip("RN-mini", str(clip_file)), pretrained="bundled")
    with pytest.raises(InputError, match="a int is no path"):
        start(tmp_path / "run", mask=3)
    with pytest.raises(TypeError, match="unknown option 'stepps'"):
        start(tmp_path / "run", stepps=3)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_opened_with_all_it_holds(tmp_path: Path, clip_file: Path, mask_file: Path) -> None:
    run = start(tmp_path / "run", clip="RN-mini", pretrained=clip_file, mask=mask_file, plan_after=2, freeze="count:3")
    found = Run.open(run)
    assert found == run and found.checkpoint.exists()
    assert found.plan is not None and found.plan.rule == "count:3" and len(found.plan.frozen) == 3
    assert list(found.plan.frozen) == found.load().provenance["frozen"]
    first, second = repr(run).splitlines()
    assert first.startswith(f"Run {run.path}: deeplabv3 on RN-mini, scenes:train, 4 steps, loss ")
    assert second == f"mask {mask_file}, 3 layers frozen"
    assert finetune(resume=True, out=run, device="cpu") == run
    assert analyze(run).model == "RN-mini"


def test_progress_is_reported_and_nothing_printed(
    tmp_path: Path, clip_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    start(tmp_path / "run", clip="RN-mini", pretrained=clip_file, progress=seen.append)
    assert [each.done for each in seen] == [0, 1, 2, 3, 4]
    assert seen[-1].task == "finetune deeplabv3" and seen[-1].total == 4 and seen[-1].values["loss"] > 0
    assert capfd.readouterr() == ("", "")


def test_the_environment_and_an_entry_for_each_step_are_written(tmp_path: Path, clip_file: Path) -> None:
    run = start(tmp_path / "run", clip="RN-mini", pretrained=clip_file)
    assert json.loads((run.path / "environment.json").read_text())["processes"] == 1
    assert RunFolder(run.path).entries() == run.log
