"""The examples of the documentation run."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

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
    framework = names["build"]()
    batch = names["batch"]
    weight = framework.backbone.layer4[0].conv1.weight
    mask = Mask({"layer4.0.conv1.weight": torch.rand(weight.shape) < 0.1}, model="RN-mini")
    optimizer = torch.optim.AdamW(framework.parameters(), lr=1e-3)
    with mask.held(optimizer, framework):
        before = framework.losses(batch)["cross_entropy"]
        before.backward()
        optimizer.step()
        assert not mask.violations(framework)
    assert framework.losses(batch)["cross_entropy"] < before
    assert framework.segment(batch.images).shape == (1, len(framework.text.vocabulary), 96, 96)
