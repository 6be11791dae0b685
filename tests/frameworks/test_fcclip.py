from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ovstrans import files
from ovstrans.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from ovstrans.clip.layers import find_tower, scope_convs
from ovstrans.clip.load import Clip
from ovstrans.clip.pooling import valid_masks
from ovstrans.clip.text import TextClassifier
from ovstrans.cost.params import count_params
from ovstrans.cost.report import cost_report
from ovstrans.cost.target import Target, blank_framework
from ovstrans.data.segments import Segments
from ovstrans.data.vocabulary import Vocabulary
from ovstrans.errors import InputError
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Batch
from ovstrans.frameworks.fcclip import FCCLIP
from ovstrans.frameworks.mask2former import HeadOutput
from ovstrans.masks.mask import Mask
from ovstrans.training.freeze import recalibrate, train_mode
from ovstrans.training.precision import Precision
from tests.clip.towers import small_convnext
from tests.frameworks import golden_case as case
from tests.frameworks.conftest import make_text

TINY = {**case.SMALL, "encoder_layers": 1, "decoder_layers": 2, "points": 64}


def make(clip: Clip, text: TextClassifier, **options: Any) -> FCCLIP:
    torch.manual_seed(0)
    framework = FCCLIP(
        tower=clip.visual, mean=clip.mean, std=clip.std, text=text, options={"trunk": "train", **TINY, **options}
    )
    return framework.eval()


def segments(*boxes: tuple[int, int, int, int, int], size: tuple[int, int] = (64, 64)) -> Segments:
    """Segments of (class, top, left, bottom, right)."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (_, top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return Segments(masks, torch.tensor([box[0] for box in boxes], dtype=torch.int64), torch.arange(len(boxes)))


def batch_of(*found: Segments) -> Batch:
    images = torch.rand(len(found), 3, 64, 64, generator=torch.Generator().manual_seed(4))
    return Batch(images, segments=found)


USUAL = batch_of(segments((0, 0, 0, 32, 64), (2, 32, 0, 64, 30)), segments((3, 10, 10, 50, 64)))
NOTHING = segments()


# --- Upstream's answers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    """What FC-CLIP's released code says; `tests/benchmarks/golden_fcclip.py` wrote it."""
    tensors, about = files.read_tensors(case.GOLDEN)
    assert about["seed"] == str(case.SEED)
    assert "bytedance/fc-clip @ 2b0bbe213070d44da9182530fa2e826fef03f974" in about["upstream"]
    assert case.GOLDEN.stat().st_size < 200_000
    return tensors


@pytest.mark.parametrize("size", case.SIZES)
def test_agrees_with_upstream(golden: dict[str, Tensor], size: tuple[int, int]) -> None:
    """Masks and both kinds of class logits of every prediction, and the blend of both, empty masks included."""
    name = f"{size[0]}x{size[1]}"
    picture = golden[f"{name}.image"]
    assert torch.equal(picture, case.image(size))
    found = case.answers(case.model(), picture)
    masks = golden[f"{name}.mask_logits"]
    empty = int((case.resized(masks, size) <= 0).flatten(1).all(1).sum())
    assert 2 <= empty <= 8 and case.margin(masks, size) > 5e-4
    for key in ("mask_features", "mask_logits", "class_logits", "clip_logits", "probabilities"):
        assert case.difference(found[key], golden[f"{name}.{key}"]) < 1e-4, key


# --- Sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "decoder", "trainable", "clip_head", "visual"),
    [
        ("RN50", 6_035_904, 21_033_409, 14_789_632, 38_316_896),
        ("convnext_large_d_320", 5_790_144, 20_721_601, 3_543_552, 199_770_816),
    ],
)
def test_parameters_are_those_published(clip: str, decoder: int, trainable: int, clip_head: int, visual: int) -> None:
    framework = blank_framework("fcclip", clip)
    params = count_params(framework, framework.components())
    parts = {name: part["total"] for name, part in params["components"].items()}
    assert params["trainable"] == trainable
    assert parts["pixel_decoder"] == decoder and parts["transformer_decoder"] == 14_535_424
    assert parts["clip_head"] == clip_head and parts["trunk"] + clip_head == visual
    assert sum(parts.values()) == params["total"] and "other" not in parts


@pytest.mark.parametrize("trunk", ["frozen", "train"])
def test_costs_are_counted_without_weights(trunk: str) -> None:
    """On meta tensors, in eval and in train mode; training leaves out CLIP's head, which only inference runs."""
    framework = blank_framework("fcclip", "RN-mini", options={**TINY, "trunk": trunk})
    report = cost_report(Target("fcclip", "framework", framework, framework.components(), "RN-mini"), (64, 96))
    flops, executed = report["flops"], report["training"]["executed"]
    assert flops["components"]["clip_head"]["dense"] > 0
    assert executed["forward"] == flops["dense"] - flops["components"]["clip_head"]["dense"]
    trains = trunk == "train"
    assert (report["params"]["components"]["trunk"]["trainable"] > 0) == trains
    assert (executed["backward"] > 2 * flops["components"]["trunk"]["dense"]) == trains
    assert framework.segment(torch.empty(1, 3, 50, 70, device="meta")).shape == (1, 1, 50, 70)


def test_parts_do_not_overlap(clip: Clip, text: TextClassifier) -> None:
    framework = make(clip, text)
    parts = framework.components()
    assert list(parts) == ["trunk", "pixel_decoder", "transformer_decoder", "class_head", "clip_head"]
    counted = [id(parameter) for part in parts.values() for parameter in part.parameters()]
    assert len(counted) == len(set(counted)) and set(counted) == {id(each) for each in framework.parameters()}
    alone = make(clip, text, ensemble=False)
    assert "clip_head" not in alone.components() and not any("attnpool" in key for key in alone.state_dict())
    assert clip.visual.attnpool is not None  # the given tower stays whole


# --- Classification ---------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A head with ready answers."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *_: Any) -> Tensor:
        return self.answer


def named(clip: Clip, text: TextClassifier, inner: Tensor, masks: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """(probabilities, CLIP's logits) where the class head says `inner` [1, Q, K + 1] of the masks [1, Q, h, w]."""
    framework = make(clip, text, **options)
    framework.class_head = Fixed(inner)  # type: ignore[assignment]
    res5 = torch.randn(1, 768, 2, 3, generator=torch.Generator().manual_seed(1))
    queries = (torch.zeros(1, inner.shape[1], 32),) * framework.predictions
    found = HeadOutput(queries, (masks,) * framework.predictions, torch.zeros(1, 32, *masks.shape[-2:]), {})
    with torch.no_grad():
        outer = framework.clip_scores(found, res5, text) if framework.clip_head is not None else torch.zeros(0)
        return framework.probabilities(found, {"res5": res5}, text), outer


def test_ensemble_is_the_published_formula(clip: Clip) -> None:
    """p_in^(1-w) p_out^w, w of 0.4 for names of training and 0.8 for others, then shared out beside the void."""
    trained = Vocabulary.from_names("trained", ["cat, kitty", "dog", "sky"], novel=frozenset({1}))
    text = make_text(trained, clip.embed_dim)  # `dog` gives no signal: it is not seen
    inner, masks = torch.randn(1, 4, 4), torch.randn(1, 4, 16, 24)
    found, outer = named(clip, text, inner, masks)
    weight = torch.tensor([0.4, 0.8, 0.4])
    blend = inner[..., :3].softmax(-1) ** (1 - weight) * outer.softmax(-1) ** weight
    void = inner.softmax(-1)[..., 3:]
    expected = torch.cat([(1 - void) * blend / blend.sum(-1, keepdim=True), void], dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    other, _ = named(clip, text, inner, masks, alpha=0.0, beta=0.0)
    torch.testing.assert_close(other, inner.softmax(-1))


def test_without_ensemble_the_class_head_decides(clip: Clip, text: TextClassifier) -> None:
    inner = torch.randn(1, 3, 5)
    found, _ = named(clip, text, inner, torch.randn(1, 3, 8, 8), ensemble=False)
    torch.testing.assert_close(found, inner.softmax(-1))
    with pytest.raises(InputError, match="build it with ensemble = true"):
        make(clip, text, ensemble=False).clip_scores(HeadOutput((), (), torch.zeros(0), {}), torch.zeros(0), text)


@pytest.mark.parametrize("valid", ["auto", "on", "off"])
def test_empty_masks(clip: Clip, text: TextClassifier, valid: str) -> None:
    """A ResNet has nothing to say of a mask without a position at stride 32."""
    masks = torch.randn(1, 4, 16, 24)
    masks[:, 1] = -1
    masks[:, 3] = -1
    masks[:, 3, 0, 0] = 0.1  # inside at stride 4 only
    inner = torch.randn(1, 4, 5)
    found, _ = named(clip, text, inner, masks, ensemble_on_valid_mask=valid)
    assert valid_masks(masks, (2, 3)).tolist() == [[True, False, True, False]]
    alone = inner.softmax(-1)
    for query in range(4):
        same = torch.allclose(found[0, query], alone[0, query], atol=1e-6)
        assert same == (query in (1, 3) and valid != "off"), query
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 4))


@settings(max_examples=20)
@given(size=st.floats(0, 1e4), seed=st.integers(0, 100))
def test_probabilities_are_safe_in_logs(clip: Clip, size: float, seed: int) -> None:
    """However sure the heads are, p to the power of w never underflows to 0 times infinity."""
    text = make_text(Vocabulary.from_names("toy", ["cat", "dog", "sky", "sea"], novel=frozenset({1})), clip.embed_dim)
    generator = torch.Generator().manual_seed(seed)
    inner = size * torch.randn(1, 6, 5, generator=generator)
    masks = torch.randn(1, 6, 16, 24, generator=generator)
    masks[:, 0] = -5
    for options in ({}, {"alpha": 1.0, "beta": 0.0}, {"ensemble_on_valid_mask": "off"}):
        found, _ = named(clip, text, inner, masks, **options)
        assert torch.isfinite(found).all() and (found >= 0).all()
        torch.testing.assert_close(found.sum(-1), torch.ones(1, 6), atol=1e-5, rtol=0)


def test_a_class_is_as_good_as_its_best_name(clip: Clip) -> None:
    """Another vocabulary at inference; a synonym repeated changes nothing."""
    trained = make_text(Vocabulary.from_names("trained", ["cat", "dog"]), clip.embed_dim)
    framework = make(clip, trained)
    once = make_text(Vocabulary.from_names("asked", ["tree", "boat"]), clip.embed_dim, seed=3)
    twice = TextClassifier(
        once.embeddings[[0, 1, 0]], torch.tensor([0, 1, 1]), Vocabulary.from_names("asked", ["tree", "boat, tree"])
    )
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        one, other = framework.find(images, once)[0], framework.find(images, twice)[0]
    assert one.shape == other.shape == (1, 10, 3)
    assert not torch.allclose(one, other)
    assert (other[..., 1] >= other[..., 0] - 1e-6).all()  # `boat` has the name of `tree` too


def test_novel_classes_give_no_signal(clip: Clip, text: TextClassifier) -> None:
    """Neither their segments, which the data drop, nor their names: another embedding of `dog` is the same loss."""
    other = TextClassifier(text.embeddings.clone(), text.owner, text.vocabulary)
    other.embeddings[text.owner == 1] = other.embeddings[text.owner == 1].flip(1)
    found = []
    for each in (text, other):
        framework = make(clip, each).train()
        torch.manual_seed(1)
        found.append(framework.losses(USUAL))
    assert set(found[0]) == {"mask", "dice", "class"}
    assert {name: float(value.detach()) for name, value in found[0].items()} == {
        name: float(value.detach()) for name, value in found[1].items()
    }


# --- Training ---------------------------------------------------------------------------------------


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
    """Finite for three steps; a frozen trunk keeps weights and BatchNorm, CLIP's head is frozen either way."""
    framework = make(clip, text, trunk=trunk).train()
    before = {key: value.clone() for key, value in framework.state_dict().items()}
    for losses in steps(framework, 3):
        assert all(torch.isfinite(value) and value.dtype == torch.float32 for value in losses.values())
    assert all(torch.isfinite(each).all() for each in framework.parameters())
    moved = {key for key, value in framework.state_dict().items() if not torch.equal(value, before[key])}
    assert not any(key.startswith("clip_head.") for key in moved)
    in_trunk = {key for key in before if key.startswith("backbone.")}
    if trunk == "frozen":
        assert not moved & in_trunk
        assert not any(each.requires_grad for each in framework.backbone.parameters())
        assert not any(module.training for module in framework.backbone.modules())
    else:
        assert {"backbone.conv1.weight", "backbone.layer4.1.conv3.weight", "backbone.bn1.running_mean"} <= moved
        assert not {key for key in in_trunk if key.endswith("weight")} - moved
    untouched = {key for key in before if not key.startswith(("backbone.", "clip_head."))} - moved
    assert untouched == set()


@pytest.mark.parametrize("norms", ["train", "frozen"])
def test_a_frozen_trunk_stays_frozen_in_train_mode(clip: Clip, text: TextClassifier, norms: str) -> None:
    framework = make(clip, text, trunk="frozen")
    train_mode(framework, norms=norms)
    assert framework.training and framework.class_head.training
    assert framework.clip_head is not None
    assert not any(each.training for each in (*framework.backbone.modules(), *framework.clip_head.modules()))
    assert not framework.trunk(USUAL.images)["res5"].requires_grad
    assert framework.head(framework.trunk(USUAL.images)).masks[-1].requires_grad


def test_a_pruned_frozen_trunk_can_have_its_statistics_renewed(clip: Clip, text: TextClassifier) -> None:
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


# --- With the rest of the house ---------------------------------------------------------------------


def mask_of(framework: FCCLIP) -> Mask:
    generator = torch.Generator().manual_seed(2)
    convs = scope_convs(find_tower(framework))
    tensors = {
        f"{name}.weight": torch.rand(conv.weight.shape, generator=generator) > 0.9 for name, conv in convs.items()
    }
    return Mask(tensors, model="RN-mini", method="random")


@pytest.mark.parametrize("trunk", ["frozen", "train"])
def test_a_mask_stays_in_force(clip: Clip, text: TextClassifier, trunk: str) -> None:
    framework = make(clip, text, trunk=trunk).train()
    assert find_tower(framework) is framework.backbone
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


def test_the_three_kinds_of_segmentation(clip: Clip, text: TextClassifier) -> None:
    things = replace(text, vocabulary=replace(text.vocabulary, things=frozenset({0})))
    framework = make(clip, things)
    images = torch.rand(2, 3, 50, 70)
    with torch.no_grad():
        assert framework.segment(images).shape == (2, 4, 50, 70)
        assert (framework.segment(images) >= 0).all()
        for segment_map, found in framework.panoptic(images):
            assert segment_map.shape == (50, 70)
            assert sorted(set(segment_map.flatten().tolist()) - {0}) == [each.id for each in found]
            assert all(each.isthing == (each.class_index == 0) for each in found)
        for each in framework.instances(images, top=7):
            assert set(each.classes.tolist()) <= {0} and each.masks.shape[1:] == (50, 70)


def test_convnext(text: TextClassifier) -> None:
    """Trains, ensembles over empty masks too (as published), and takes only its head off the tower."""
    tower = small_convnext(seed=1)
    words = make_text(text.vocabulary, 32)
    torch.manual_seed(0)
    mean, std = (0.5,) * 3, (0.25,) * 3
    framework = FCCLIP(tower=tower, mean=mean, std=std, text=words, options={**TINY, "trunk": "train"}).train()
    for losses in steps(framework, 2, amp=False):
        assert all(torch.isfinite(value) for value in losses.values())
    framework.eval()
    assert framework.clip_head is not None and tower.head is not None
    assert any("head" in name for name, _ in framework.clip_head.named_parameters())
    assert not any("head" in name for name, _ in framework.backbone.named_parameters())
    masks = torch.full((1, 2, 16, 16), -1.0)
    res5 = torch.randn(1, 64, 2, 2)
    found = HeadOutput((torch.randn(1, 2, 32),) * 3, (masks,) * 3, torch.randn(1, 32, 16, 16), {})
    with torch.no_grad():
        blend = framework.probabilities(found, {"res5": res5}, words)
        alone = framework.class_scores(found, 2, words).softmax(-1)
    assert torch.isfinite(blend).all() and not torch.allclose(blend, alone, atol=1e-4)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("trunk", "freeze", r"option trunk = 'freeze'; use 'frozen', 'train'"),
        ("ensemble_on_valid_mask", "yes", r"use 'auto', 'on', 'off'"),
        ("templates", "vidl", r"option templates = 'vidl'; use 'vild'"),
        ("alpha", 1.2, r"option alpha = 1.2; 0 to 1 is needed"),
        ("clip_scale", 500.0, r"option clip_scale = 500.0; 0 to 100 is needed"),
        ("points", 0, r"option points = 0; at least 1"),
    ],
)
def test_options_are_checked(clip: Clip, text: TextClassifier, option: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(clip, text, **{option: value})
