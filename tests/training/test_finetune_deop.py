"""Whole runs in several stages, with a frozen CLIP under a mask, a learned prompt, and nothing to train at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ovstrans import files
from ovstrans.clip.layers import scope_layers, weight_name
from ovstrans.clip.load import random_clip
from ovstrans.clip.prompts import embed_prompted
from ovstrans.errors import MismatchError
from ovstrans.frameworks import registry
from ovstrans.masks.file import save_mask
from ovstrans.masks.mask import Mask
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.spectrum.plan import FreezePlan
from ovstrans.training.resolve import choose_recipe
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
    "schedule.warmup=0",
    "model.queries=5",
    "model.width=32",
    "model.encoder_layers=1",
    "model.encoder_ffn=32",
    "model.decoder_layers=1",
    "model.decoder_ffn=32",
    "model.points=64",
    "model.anchor_ffn=32",
    "model.position_grid=8",
    "model.prompt=learned",
    "model.prompt_part=0.34",
    "model.proposal_part=0.33",
)


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-mini with random weights, as a file of a whole CLIP."""
    path = tmp_path_factory.mktemp("vit") / "clip.safetensors"
    files.write_tensors(path, random_clip("ViT-mini", seed=1).model.state_dict(), {})
    return path


@pytest.fixture
def tiny_deop(vit_file: Path) -> Tiny:
    """FinetuneRecipe of two steps in each stage at 64 pixels."""

    def make(*changes: str, **given: Any) -> FinetuneRecipe:
        return choose_recipe("deop", settings=(*TINY, *changes), **{"pretrained": str(vit_file), **given})

    return make


def draw_mask(path: Path, severed: str = "") -> Path:
    draws = torch.Generator().manual_seed(2)
    weights = {weight_name(name): weight for name, weight in scope_layers(random_clip("ViT-mini").visual).items()}
    kept = {name: torch.rand(weight.shape, generator=draws) > 0.8 for name, weight in weights.items()}
    recipe = {"prune": {"severed": severed}} if severed else {}
    save_mask(path, Mask(kept, model="ViT-mini", method="random", recipe=recipe))
    return path


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_interrupted_in_any_stage_and_resumed_is_the_same_to_the_last_bit(
    tiny_deop: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    settings = tiny_deop(mask=str(draw_mask(tmp_path / "mask.safetensors", "5")))
    whole, part = train(settings, tmp_path / "whole"), tmp_path / "part"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(stop, patch)
        train(settings, part)
    train(settings, part, resume=True)
    assert differing(result(whole), result(part)) == []
    losses = [{key: value for key, value in entry.items() if key.startswith("loss/")} for entry in log(part)]
    assert [set(entry) for entry in losses] == [
        *[{"loss/prompt"}] * 2,
        *[{"loss/mask", "loss/dice"}] * 2,
        *[{"loss/focal", "loss/dice"}] * 2,
    ]
    whole_losses = [{key: entry[key] for key in own} for own, entry in zip(losses, log(whole), strict=True)]
    assert losses == whole_losses

    end = result(whole)
    assert end.mask is not None and end.mask.violations(end.state) == []
    own = random_clip("ViT-mini", seed=1).visual.state_dict()
    for name, value in own.items():
        kept = end.mask.tensors.get(name, torch.ones(value.shape, dtype=torch.bool))
        assert torch.equal(end.state[f"backbone.{name}"], value * kept), "CLIP is frozen, under its mask"
    clip = registry.text_clip(end)
    prompted = embed_prompted(clip, end.vocabulary, end.state["prompt.vectors"])
    assert torch.allclose(end.text_embeddings, prompted.embeddings, atol=1e-5)


def test_the_stages_start_at_their_own_rates(tiny_deop: Tiny, tmp_path: Path) -> None:
    run = train(tiny_deop("model.prompt_lr=0.004", "model.proposal_lr=0.002", "optimizer.lr=0.001"), tmp_path / "run")
    rates = [entry["lr"] for entry in log(run)]
    assert rates == pytest.approx([0.004, 0.002, 0.002, 0.001, 0.001, 0.0005])  # a cosine of two steps: 1, 1/2


def test_without_anything_to_train_the_checkpoint_is_clip(tiny_deop: Tiny, tmp_path: Path) -> None:
    free = ("model.anchors=false", "model.prompt=templates", "model.proposal_encoder=''")
    end = result(train(tiny_deop(*free), tmp_path / "run"))
    assert {key.partition(".")[0] for key in end.state} == {"backbone"}
    framework = registry.restore(end)
    masks = torch.ones(1, 64, 64, dtype=torch.bool)
    assert framework.scores(torch.rand(1, 3, 64, 64), masks=[masks])[0].num_classes == len(end.vocabulary)  # type: ignore[call-arg]


def test_a_mask_for_other_blocks_is_refused(tiny_deop: Tiny, tmp_path: Path) -> None:
    mask = draw_mask(tmp_path / "mask.safetensors", "4,5")
    with pytest.raises(MismatchError, match="made with `severed=4,5`, so it serves deop alone"):
        train(tiny_deop(mask=str(mask)), tmp_path / "run")
    plan = FreezePlan("median", 3.0, ("transformer.resblocks.0.mlp.c_fc",))
    run = train(tiny_deop("model.severed=[4,5]", "training.steps=3", mask=str(mask)), tmp_path / "run", plan=plan)
    with pytest.raises(MismatchError, match="uses the queries and keys of block 4"):
        registry.restore(result(run), ["model.two_stream=true"])
