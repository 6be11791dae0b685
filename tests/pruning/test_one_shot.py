"""Pruning a CLIP that knows photographs: no steps in one shot, and images of one's own for distillation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ovstrans
from ovstrans.cli import main
from ovstrans.clip.load import Clip, create_image_encoder
from ovstrans.errors import InputError
from ovstrans.pruning import prune as module
from ovstrans.pruning.rounds import Images
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


def statistics(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if "running_" in name}


ONCE: dict[str, Any] = {
    "method": "magnitude",
    "sparsity": 0.5,
    "steps": 0,
    "image_size": 64,
    "batch": 4,
    "device": "cpu",
}


def test_statistics_are_those_of_the_pruned_weights(clip: Clip) -> None:
    """The first norm sees the images through the unpruned stem; the last one through all pruned layers."""
    found = ovstrans.prune(clip, data=Pictures(), settings=["training.bn_recalibrate=2", "run.seed=3"], **ONCE)
    again = ovstrans.prune(clip, data=Pictures(), settings=["training.bn_recalibrate=2", "run.seed=3"], **ONCE)
    plain = ovstrans.prune(clip, data=Pictures(), settings=["training.bn_recalibrate=0"], **ONCE)
    assert found.mask.recipe["recalibrated"] == {"batches": 2, "images": 12} and "recalibrated" not in plain.mask.recipe
    assert all(torch.equal(kept, plain.mask.tensors[name]) for name, kept in found.mask.tensors.items())
    assert all(torch.equal(value, again.weights[name]) for name, value in found.weights.items())
    for name, value in found.weights.items():
        same = torch.equal(value, plain.weights[name])
        assert same != ("running_" in name or "num_batches" in name), name
    assert all(torch.equal(value, clip.visual.state_dict()[name]) for name, value in statistics(plain.weights).items())

    views = Images(Pictures(), batch=4, size=64, seed=3, min_crop=0.5, workers=0)
    encoder = copy.deepcopy(clip.visual)
    encoder.load_state_dict(plain.weights)
    inputs: list[torch.Tensor] = []
    encoder.layer4[0].bn3.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    encoder.train()
    with torch.no_grad():
        for step in range(2):
            encoder.layer4(
                encoder.layer3(encoder.layer2(encoder.layer1(encoder.stem((views.views(step) - 0.5) / 0.25))))
            )
    mean = torch.stack([each.mean((0, 2, 3)) for each in inputs]).mean(0)
    variance = torch.stack([each.var((0, 2, 3), unbiased=True) for each in inputs]).mean(0)
    assert torch.allclose(found.weights["layer4.0.bn3.running_mean"], mean, rtol=0.05, atol=0.02)
    assert torch.allclose(found.weights["layer4.0.bn3.running_var"], variance, rtol=0.1, atol=1e-3)


def test_a_bundled_model_needs_no_images_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    opened = module.open_dataset
    monkeypatch.setattr(module, "open_dataset", lambda spec, **options: asked.append(spec) or opened(spec, **options))
    found = ovstrans.prune(settings=["training.bn_recalibrate=1"], **ONCE)
    dense = ovstrans.load_clip("RN-mini").visual.state_dict()
    assert asked == ["scenes"] and found.mask.recipe["total_steps"] == 0 and not found.rounds[0].losses
    assert not any(
        torch.equal(value, dense[name]) for name, value in statistics(found.weights).items() if name != "bn1"
    )
    ovstrans.prune(settings=["training.bn_recalibrate=0"], **ONCE)
    assert asked == ["scenes"]


def test_labelled_losses_do_not_matter_without_steps(clip: Clip) -> None:
    found = ovstrans.prune(clip, data=Pictures(), distill="text-guided", **ONCE)
    assert found.mask.recipe["recalibrated"]["batches"] == 8


def test_a_model_without_batch_norms_has_no_use_for_images(
    clip: Clip, no_scenes: None, caplog: pytest.LogCaptureFixture
) -> None:
    clip.model.visual = create_image_encoder("ViT-mini")
    with caplog.at_level("INFO", "ovstrans"):
        found = ovstrans.prune(clip, data="scenes", **ONCE)
    assert "recalibrated" not in found.mask.recipe
    assert "own has no BatchNorm to recalibrate; `data` is not used" in caplog.text


def test_a_dry_run_names_the_images_of_the_statistics(clip: Clip) -> None:
    told = ovstrans.prune(clip, data=Pictures(), dry_run=True, **ONCE)
    assert (
        told.steps == 0 and told.images == 12 and "BatchNorm statistics of pictures:all (12 images)" in told.headline()
    )


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
