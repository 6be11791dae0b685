"""Whole runs of a framework that learns from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ovstrans import files
from ovstrans.clip.load import load_clip
from ovstrans.frameworks import registry
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training import teacher_targets
from ovstrans.training.loop import load_state
from ovstrans.training.resolve import choose_recipe
from ovstrans.training.teacher_targets import TeacherTargets
from tests.training.conftest import train
from tests.training.test_finetune import differing, interrupt_after, log, result

Tiny = Callable[..., FinetuneRecipe]

TINY = (
    "data.size=64",
    "data.images=6",
    "augment.crop=64",
    "training.batch=2",
    "training.steps=6",
    "training.precision=fp32",
    "training.save_every=100",
    "schedule.warmup=2",
    "model.queries=5",
    "model.width=32",
    "model.heads=4",
    "model.encoder_layers=1",
    "model.encoder_ffn=32",
    "model.decoder_layers=1",
    "model.decoder_ffn=32",
    "model.points=64",
    "model.synonyms=random",
)


@pytest.fixture
def tiny_gkc(clip_file: Path) -> Tiny:
    """FinetuneRecipe of six steps at 64 pixels, with every target that the teacher computes."""

    def make(*changes: str, **given: Any) -> FinetuneRecipe:
        return choose_recipe("gkc", settings=(*TINY, *changes), **{"pretrained": str(clip_file), **given})

    return make


def test_interrupted_and_resumed_is_the_same_to_the_last_bit(
    tiny_gkc: Tiny, tmp_path: Path, mask_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps, an interrupt, three more: as six at once, under a mask, with every loss on."""
    settings = tiny_gkc(mask=str(mask_file))
    whole, part = train(settings, tmp_path / "whole"), tmp_path / "part"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(3, patch)
        train(settings, part)
    state = load_state(part / "state" / "state.pt")
    assert state["step"] == 3
    train(settings, part, resume=True)
    assert differing(result(whole), result(part)) == []
    losses = [{key: value for key, value in entry.items() if key.startswith("loss")} for entry in log(part)]
    assert losses == [{key: entry[key] for key in losses[0]} for entry in log(whole)]
    assert {f"loss/{name}" for name in ("mask", "dice", "class", "grounding", "distill", "synonyms")} < losses[0].keys()
    assert any(entry["loss/grounding"] > 0 for entry in losses)

    # The teacher is no part of what is saved.
    end = result(whole)
    parts = {key.partition(".")[0] for key in end.state}
    assert parts == {"backbone", "head", "classifier", "training_only", "clip_path"}
    assert state["model"].keys() == end.state.keys()
    assert end.mask is not None and end.mask.violations(end.state) == []
    assert end.vocabulary.templates == ("{}",)
    assert registry.restore(end).segment(torch.rand(1, 3, 64, 64)).shape[1] == len(end.vocabulary)


@pytest.mark.parametrize("init", ["pretrained", "pruned", "random"])
def test_the_teacher_is_clip_whatever_the_run_starts_from(
    tiny_gkc: Tiny, tmp_path: Path, clip_file: Path, init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = load_clip("RN-mini", str(clip_file))
    weights = tmp_path / "pruned.safetensors"
    files.write_tensors(weights, {key: value * 0.5 for key, value in clip.visual.state_dict().items()}, {})
    made: list[TeacherTargets] = []

    def spy(*args: Any, **keywords: Any) -> TeacherTargets:
        made.append(TeacherTargets(*args, **keywords))
        return made[-1]

    monkeypatch.setattr(teacher_targets, "TeacherTargets", spy)
    given = {"init": init, "weights": str(weights)} if init == "pruned" else {"init": init}
    train(tiny_gkc("training.steps=1", **given), tmp_path / "run")
    teacher = made[0].clip.visual.state_dict()
    assert all(torch.equal(teacher[key], value) for key, value in clip.visual.state_dict().items())


def test_a_framework_that_requires_nothing_gets_no_teacher(
    tiny_gkc: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_targets, "TeacherTargets", None)
    off = ("model.distill=none", "model.grounding_weight=0", "model.synonyms=none", "training.steps=1")
    run = train(tiny_gkc(*off), tmp_path / "run")
    assert {key for key in log(run)[0] if key.startswith("loss/")} == {"loss/mask", "loss/dice", "loss/class"}
