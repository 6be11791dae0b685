"""FC-CLIP in training, under a mask, and back from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ovstrans.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from ovstrans.clip.backbone import find_image_encoder
from ovstrans.clip.layers import scope_layers
from ovstrans.clip.load import Clip
from ovstrans.clip.text import TextClassifier
from ovstrans.environment import Precision
from ovstrans.errors import InputError
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Batch
from ovstrans.frameworks.fcclip import FCCLIP
from ovstrans.frameworks.mask2former_head import HeadOutput
from ovstrans.masks.mask import Mask
from ovstrans.training.freeze import recalibrate, train_mode
from tests.clip.encoders import small_convnext
from tests.frameworks.conftest import make_text
from tests.frameworks.fcclip_case import NOTHING, TINY, USUAL, batch_of, make, segments


def steps(framework: FCCLIP, count: int, batch: Batch = USUAL, *, amp: bool = True) -> Iterator[dict[str, Tensor]]:
    """Optimizer steps; yields the losses of each."""
    optimizer = torch.optim.AdamW([each for each in framework.parameters() if each.requires_grad], lr=1e-3)
    for _ in range(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            losses = framework(batch)
        torch.stack(list(losses.values())).sum().backward()
        yield losses
        missing = [name for name, each in framework.named_parameters() if each.requires_grad and each.grad is None]
        assert missing == []  # DDP would wait for them
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("trunk", ["frozen", "train"])
def test_trains_in_mixed_precision(clip: Clip, text: TextClassifier, trunk: str) -> None:
    """Finite for three steps; a frozen backbone keeps weights and BatchNorm, CLIP's head is frozen either way."""
    framework = make(clip, text, trunk=trunk).train()
    before = {key: value.clone() for key, value in framework.state_dict().items()}
    for losses in steps(framework, 3):
        assert all(torch.isfinite(value) and value.dtype == torch.float32 for value in losses.values())
    assert all(torch.isfinite(each).all() for each in framework.parameters())
    moved = {key for key, value in framework.state_dict().items() if not torch.equal(value, before[key])}
    assert not any(key.startswith("clip_head.") for key in moved)
    in_backbone = {key for key in before if key.startswith("backbone.")}
    if trunk == "frozen":
        assert not moved & in_backbone
        assert not any(each.requires_grad for each in framework.backbone.parameters())
        assert not any(module.training for module in framework.backbone.modules())
    else:
        assert {"backbone.conv1.weight", "backbone.layer4.1.conv3.weight", "backbone.bn1.running_mean"} <= moved
        assert not {key for key in in_backbone if key.endswith("weight")} - moved
    untouched = {key for key in before if not key.startswith(("backbone.", "clip_head."))} - moved
    assert untouched == set()


@pytest.mark.parametrize("norms", ["train", "frozen"])
def test_a_frozen_backbone_stays_frozen_in_train_mode(clip: Clip, text: TextClassifier, norms: str) -> None:
    framework = make(clip, text, trunk="frozen")
    train_mode(framework, norms=norms)
    assert framework.training and framework.class_head.training
    assert framework.clip_head is not None
    assert not any(each.training for each in (*framework.backbone.modules(), *framework.clip_head.modules()))
    assert not framework.backbone_features(USUAL.images)["res5"].requires_grad
    assert framework.head(framework.backbone_features(USUAL.images)).masks[-1].requires_grad


def test_batchnorm_of_a_frozen_backbone_can_be_recalibrated(clip: Clip, text: TextClassifier) -> None:
    framework = make(clip, text, trunk="frozen")
    before = framework.backbone.bn1.running_mean.clone()
    assert recalibrate(framework, [USUAL], Precision("cpu", None)) == 1
    assert not torch.equal(framework.backbone.bn1.running_mean, before)


@pytest.mark.parametrize(
    "batch",
    [
        batch_of(NOTHING, segments((0, 0, 0, 64, 64))),
        batch_of(NOTHING, NOTHING),
        batch_of(segments((2, 40, 40, 41, 42)), segments((0, 0, 0, 3, 3))),
        batch_of(segments(*[(0, row, 0, row + 4, 64) for row in range(0, 64, 4)]), NOTHING),
    ],
    ids=["one without", "all without", "smaller than a cell", "more than queries"],
)
def test_unusual_targets(clip: Clip, text: TextClassifier, batch: Batch) -> None:
    framework = make(clip, text, trunk="frozen").train()
    for losses in steps(framework, 2, batch, amp=False):
        assert all(torch.isfinite(value) for value in losses.values())
        assert float(losses["class"].detach()) > 0
        anything = any(len(each) for each in batch.segments or ())
        assert (float(losses["mask"].detach()) > 0) == anything


def test_training_needs_segments(clip: Clip, text: TextClassifier) -> None:
    with pytest.raises(InputError, match="training needs segments"):
        make(clip, text).losses(Batch(torch.rand(2, 3, 64, 64)))


def mask_of(framework: FCCLIP) -> Mask:
    generator = torch.Generator().manual_seed(2)
    convs = scope_layers(find_image_encoder(framework))
    tensors = {f"{name}.weight": torch.rand(conv.shape, generator=generator) > 0.9 for name, conv in convs.items()}
    return Mask(tensors, model="RN-mini", method="random")


@pytest.mark.parametrize("trunk", ["frozen", "train"])
def test_a_mask_stays_in_force(clip: Clip, text: TextClassifier, trunk: str) -> None:
    framework = make(clip, text, trunk=trunk).train()
    assert find_image_encoder(framework) is framework.backbone
    mask = mask_of(framework)
    mask.apply(framework)
    optimizer = torch.optim.AdamW([each for each in framework.parameters() if each.requires_grad], lr=1e-2)
    with mask.held(optimizer, framework):
        sum(framework(USUAL).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert mask.violations(framework) == []
    kept = mask.tensors["layer4.1.conv2.weight"]
    weight = framework.backbone.layer4[1].conv2.weight.detach()
    assert torch.equal(weight[kept], clip.visual.layer4[1].conv2.weight.detach()[kept]) == (trunk == "frozen")


def checkpoint_of(clip: Clip, framework: FCCLIP, mask: Mask | None = None) -> Checkpoint:
    return Checkpoint(
        framework=framework.name,
        options=framework.options,
        state=framework.state_dict(),
        mask=mask,
        text_embeddings=framework.text.embeddings,
        text_owner=framework.text.owner,
        vocabulary=framework.text.vocabulary,
        clip=clip.describe(),
    )


@pytest.mark.parametrize("ensemble", [True, False])
@pytest.mark.parametrize("trunk", ["frozen", "train"])
def test_restore_gives_the_same_answers(
    clip: Clip, text: TextClassifier, tmp_path: Path, trunk: str, ensemble: bool
) -> None:
    framework = make(clip, text, trunk=trunk, ensemble=ensemble)
    mask = mask_of(framework)
    mask.apply(framework)
    with torch.no_grad():
        for name, parameter in framework.named_parameters():
            if not name.startswith("backbone."):
                parameter.add_(0.01 * torch.randn_like(parameter))
    save_checkpoint(tmp_path / "c.safetensors", checkpoint_of(clip, framework, mask))
    again = registry.restore(load_checkpoint(tmp_path / "c.safetensors"))
    images = torch.rand(1, 3, 50, 70)
    with torch.no_grad():
        assert torch.equal(again.segment(images), framework.segment(images))
    assert [each.requires_grad for each in again.parameters()] == [
        each.requires_grad for each in framework.parameters()
    ]
    assert not again.training


def test_convnext(text: TextClassifier) -> None:
    """Trains, ensembles over empty masks too (as published), and takes only its head off the encoder."""
    encoder = small_convnext(seed=1)
    words = make_text(text.vocabulary, 32)
    torch.manual_seed(0)
    mean, std = (0.5,) * 3, (0.25,) * 3
    framework = FCCLIP(encoder=encoder, mean=mean, std=std, text=words, options={**TINY, "trunk": "train"}).train()
    for losses in steps(framework, 2, amp=False):
        assert all(torch.isfinite(value) for value in losses.values())
    framework.eval()
    assert framework.clip_head is not None and encoder.head is not None
    assert any("head" in name for name, _ in framework.clip_head.named_parameters())
    assert not any("head" in name for name, _ in framework.backbone.named_parameters())
    masks = torch.full((1, 2, 16, 16), -1.0)
    res5 = torch.randn(1, 64, 2, 2)
    found = HeadOutput((torch.randn(1, 2, 32),) * 3, (masks,) * 3, torch.randn(1, 32, 16, 16), {})
    with torch.no_grad():
        blend = framework.probabilities(found, {"res5": res5}, words)
        alone = framework.class_scores(found, 2, words).softmax(-1)
    assert torch.isfinite(blend).all() and not torch.allclose(blend, alone, atol=1e-4)
