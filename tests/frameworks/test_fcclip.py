"""FC-CLIP at inference: agreement with the released code, sizes, ensemble, options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ovstrans import files
from ovstrans.clip.load import Clip
from ovstrans.clip.pooling import valid_masks
from ovstrans.clip.text import TextClassifier
from ovstrans.costs.params import count_params
from ovstrans.costs.target import Target, count_costs
from ovstrans.errors import InputError
from ovstrans.frameworks.mask2former_head import HeadOutput
from ovstrans.frameworks.registry import build_on_meta
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.frameworks import golden_case as case
from tests.frameworks.conftest import make_text
from tests.frameworks.fcclip_case import TINY, USUAL, make

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
def test_agrees_with_the_released_code(golden: dict[str, Tensor], size: tuple[int, int]) -> None:
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
    framework = build_on_meta("fcclip", clip)
    params = count_params(framework, framework.components())
    parts = {name: part.total for name, part in params.components.items()}
    assert params.trainable == trainable
    assert parts["pixel_decoder"] == decoder and parts["transformer_decoder"] == 14_535_424
    assert parts["clip_head"] == clip_head and parts["trunk"] + clip_head == visual
    assert sum(parts.values()) == params.total and "other" not in parts


@pytest.mark.parametrize("trunk", ["frozen", "train"])
def test_costs_are_counted_without_weights(trunk: str) -> None:
    """On meta tensors, in eval and in train mode; training leaves out what only inference runs, CLIP's head and the sum
    over queries, and names them after every layer."""
    framework = build_on_meta("fcclip", "RN-mini", options={**TINY, "trunk": trunk})
    costs = count_costs(Target("fcclip", "framework", framework, framework.components(), "RN-mini"), (64, 96))
    executed = costs.training.executed
    dense = {name: part.dense for name, part in costs.flops.components.items()}
    assert dense["clip_head"] > 0
    once = dense["trunk"] + dense["pixel_decoder"] + dense["transformer_decoder"]
    assert costs.flops.dense == once + dense["classifier"] + dense["clip_head"] + dense["inference"]
    assert executed.forward == once + framework.predictions * dense["classifier"]
    trains = trunk == "train"
    assert (costs.params.components["trunk"].trainable > 0) == trains
    assert (executed.backward > 2 * dense["trunk"]) == trains
    assert framework.segment(torch.empty(1, 3, 50, 70, device="meta")).shape == (1, 1, 50, 70)


def test_parts_do_not_overlap(clip: Clip, text: TextClassifier) -> None:
    framework = make(clip, text)
    parts = framework.components()
    assert list(parts) == ["trunk", "pixel_decoder", "transformer_decoder", "classifier", "clip_head"]
    counted = [id(parameter) for part in parts.values() for parameter in part.parameters()]
    assert len(counted) == len(set(counted)) and set(counted) == {id(each) for each in framework.parameters()}
    alone = make(clip, text, ensemble=False)
    assert "clip_head" not in alone.components() and not any("attnpool" in key for key in alone.state_dict())
    assert clip.visual.attnpool is not None  # the given encoder keeps its head


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


def test_in_train_mode_the_trained_classifier_decides_alone(clip: Clip, text: TextClassifier) -> None:
    framework = make(clip, text)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = framework.backbone_features(images)
        output = framework.head(features)
        alone = framework.class_scores(output, framework.predictions - 1, text).softmax(-1)
        assert torch.equal(framework.train().probabilities(output, features, text), alone)
        assert not torch.allclose(framework.eval().probabilities(output, features, text), alone, atol=1e-4)


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
def test_probabilities_are_finite_however_confident(clip: Clip, size: float, seed: int) -> None:
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


def test_a_class_scores_as_its_best_synonym(clip: Clip) -> None:
    """Another vocabulary at inference; a synonym repeated changes nothing."""
    trained = make_text(Vocabulary.from_names("trained", ["cat", "dog"]), clip.embed_dim)
    framework = make(clip, trained)
    once = make_text(Vocabulary.from_names("asked", ["tree", "boat"]), clip.embed_dim, seed=3)
    twice = TextClassifier(
        once.embeddings[[0, 1, 0]], torch.tensor([0, 1, 1]), Vocabulary.from_names("asked", ["tree", "boat, tree"])
    )
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        one, other = framework.predict_masks(images, once)[0], framework.predict_masks(images, twice)[0]
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


def test_semantic_panoptic_and_instance_segmentation(clip: Clip, text: TextClassifier) -> None:
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
