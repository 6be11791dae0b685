"""Pruning a CLIP that knows photographs: no steps in one shot, and images of one's own for distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import ovstrans
from ovstrans.cli import main
from ovstrans.clip.load import Clip, create_image_encoder
from ovstrans.errors import InputError
from ovstrans.pruning import prune as module
from tests.pruning.conftest import Pictures, small_clip


@pytest.fixture(scope="module")
def rn50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RN50's image encoder with random weights."""
    path = tmp_path_factory.mktemp("rn50") / "rn50.safetensors"
    save_file(create_image_encoder("RN50").state_dict(), path)
    return path


@pytest.fixture
def clip() -> Clip:
    found = small_clip()
    found.name = "own"
    return found


@pytest.fixture
def no_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a dataset was opened")

    monkeypatch.setattr(module, "open_dataset", refuse)


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_one_shot_needs_no_images_and_takes_no_step(clip: Clip, no_scenes: None, method: str) -> None:
    found = ovstrans.prune(clip, method=method, sparsity=0.5)
    assert "in one shot" in repr(found) and "round" not in repr(found)
    assert not any(each.losses for each in found.rounds) and found.mask.recipe["total_steps"] == 0
    assert found.mask.sparsity == pytest.approx(0.5, abs=1e-3)


def test_a_random_mask_like_another_takes_no_step(clip: Clip, no_scenes: None) -> None:
    mask = ovstrans.prune(clip, method="magnitude").mask
    assert ovstrans.prune(clip, like=mask).mask.recipe["total_steps"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "magnitude", "steps": 1},
        {"recipe": "prune-mini"},
        {"settings": ["prune.steps=1"]},
        {"recipe": "prune-mini-regions"},
    ],
)
def test_distillation_asks_for_images(clip: Clip, no_scenes: None, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"`data`: own learns from images.*`data=folder:PATH`.*`steps=0`"):
        ovstrans.prune(clip, **options)


def test_images_that_are_asked_for_are_used_scenes_too(clip: Clip) -> None:
    quick: dict[str, Any] = {"steps": 1, "rate": 0.8, "image_size": 64, "batch": 2, "device": "cpu"}
    assert ovstrans.prune(clip, data=Pictures(), **quick).rounds[0].losses
    assert ovstrans.prune(clip, data="scenes", **quick).rounds[0].losses
    assert ovstrans.prune(clip, settings=["data.dataset=scenes"], **quick).rounds[0].losses


def test_the_command_asks_in_one_line_before_it_loads_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["prune", "RN50", "--pretrained", "nosuch.safetensors"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --data: RN50 learns from images") and err.count("\n") == 1
    assert "--data folder:PATH" in err and "--steps 0" in err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_prunes_rn50_in_one_shot(
    rn50: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--pretrained", str(rn50), "--method", "magnitude", "--device", "cpu", "--no-plot"]
    assert main.run(["prune", "RN50", *options]) == 0
    captured = capsys.readouterr()
    assert "magnitude prunes RN50 in one shot, without distillation; --steps N asks" in captured.err
    assert "90.00% zeros in one shot" in " ".join(captured.out.split()) and "round" not in captured.out
    assert ovstrans.load_mask("ovstrans-out/mask.safetensors").kept == round(0.1 * 23_445_504)
