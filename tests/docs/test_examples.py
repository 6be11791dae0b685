"""The examples of the documentation run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import ovstrans
from ovstrans.datasets.catalog import open_dataset
from ovstrans.masks.mask import Mask
from tests.docs.pages import EXAMPLES


def run(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """Run an example as a script, in a folder of its own; return its names."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_alpha_is_computed_by_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run("alpha_walk", monkeypatch=monkeypatch, folder=tmp_path)
    assert names["alpha"] == pytest.approx(names["layer"].alpha, rel=1e-9)
    assert "18 layers frozen" in capsys.readouterr().out


def test_a_framework_of_ones_own_trains_under_a_mask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = run("own_framework", monkeypatch=monkeypatch, folder=tmp_path)
    torch.manual_seed(0)
    framework, batch = names["build"](), names["batch"]
    weight = framework.backbone.layer4[0].conv1.weight
    mask = Mask({"layer4.0.conv1.weight": torch.rand(weight.shape) < 0.5}, model="RN-mini")
    optimizer = torch.optim.AdamW(framework.parameters(), lr=1e-4)
    losses = []
    with mask.held(optimizer, framework):
        for _ in range(4):
            optimizer.zero_grad()
            loss = framework.losses(batch)["cross_entropy"]
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            assert not mask.violations(framework)
    assert losses[-1] < losses[0]
    assert framework.segment(batch.images).shape == (1, len(framework.text.vocabulary), 96, 96)


def test_a_mask_holds_in_a_loop_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = run("training_loop", monkeypatch=monkeypatch, folder=tmp_path)
    model, mask = names["model"], names["mask"]
    assert mask.sparsity == pytest.approx(0.9, abs=1e-6) and not mask.violations(model)
    before = ovstrans.load_clip().visual.state_dict()
    name = "layer4.0.conv1.weight"
    kept = mask.tensors[name]
    assert (model.backbone.state_dict()[name][kept] != before[name][kept]).any()


def test_predicting_takes_five_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (EXAMPLES / "predict.py").read_text(encoding="utf-8").split("[start:code]\n")[1].split("# --8<--")[0]
    assert len(code.splitlines()) == 5
    ovstrans.finetune("deeplabv3", steps=1, batch=2, mask=None, plan=None, out=tmp_path / "run")
    scene = open_dataset("scenes", split="test", size=96)[0].image
    Image.fromarray(scene.permute(1, 2, 0).numpy()).save(tmp_path / "scene.png")
    names = run("predict", "run", "scene.png", monkeypatch=monkeypatch, folder=tmp_path)
    assert names["found"].labels.shape == (96, 96)
    assert names["found"].classes == ("a red star", "a blue circle", "grass", "sand")
    assert Image.open(tmp_path / "overlay.png").size >= (96, 96)


def test_data_of_ones_own_trains_and_is_evaluated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run("own_dataset", tmp_path / "work", monkeypatch=monkeypatch, folder=tmp_path)
    assert (tmp_path / "work" / "run-0" / "checkpoint.safetensors").exists()
    assert (tmp_path / "work" / "run-1" / "checkpoint.safetensors").exists()


def test_the_lock_of_costs_notices_a_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = run("costs_lock", monkeypatch=monkeypatch, folder=tmp_path)
    names["test_costs_have_not_changed"]()
    lock = json.loads((tmp_path / "costs.lock.json").read_text())
    lock["targets"][next(iter(lock["targets"]))]["params"]["trunk"]["total"] += 1
    (tmp_path / "costs.lock.json").write_text(json.dumps(lock))
    with pytest.raises(AssertionError, match="trunk: total params"):
        names["test_costs_have_not_changed"]()
