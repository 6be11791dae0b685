"""GKC: agreement with the released code, its losses in training, checkpoints, options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans import files
from ovstrans.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from ovstrans.clip.load import Clip, create_image_encoder
from ovstrans.clip.pooling import encode_masks
from ovstrans.clip.text import TextClassifier
from ovstrans.costs.flops import count_flops
from ovstrans.costs.params import count_params
from ovstrans.datasets.segments import Segments
from ovstrans.errors import InputError
from ovstrans.frameworks import gkc, registry
from ovstrans.frameworks.base import Batch, TargetRequirements
from ovstrans.frameworks.gkc import GKC
from ovstrans.frameworks.mask2former_losses import IGNORED, class_targets
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.frameworks import gkc_case as case
from tests.frameworks.golden_case import difference

SMALL: dict[str, Any] = {
    "queries": 6,
    "width": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_ffn": 32,
    "decoder_layers": 2,
    "decoder_ffn": 32,
    "points": 64,
}
EVERYTHING = {"synonyms": "random", "distill_pair_weight": 1.0}


def make(clip: Clip, text: TextClassifier, **options: Any) -> GKC:
    torch.manual_seed(0)
    return GKC(encoder=clip.visual, mean=clip.mean, std=clip.std, text=text, options={**SMALL, **options})


def segments(*kinds: int) -> Segments:
    """Horizontal bands of 64 x 64 pixels, of these classes."""
    masks = torch.zeros(len(kinds), 64, 64, dtype=torch.bool)
    for number in range(len(kinds)):
        masks[number, 12 * number : 12 * number + 12] = True
    return Segments(masks, torch.tensor(kinds, dtype=torch.long), torch.arange(len(kinds)) + 1)


def rows(n: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, 128, generator=torch.Generator().manual_seed(seed)), dim=1)


def batch(*kinds: tuple[int, ...], nouns: tuple[int, ...] | None = None) -> Batch:
    """Images with segments of these classes and everything that losses may need; nouns: how many of each caption."""
    generator = torch.Generator().manual_seed(3)
    found = tuple(segments(*each) for each in kinds)
    return Batch(
        torch.rand(len(kinds), 3, 64, 64, generator=generator),
        segments=found,
        teacher=tuple(rows(len(each), 10 + i) for i, each in enumerate(found)),
        nouns=tuple(rows(n, 20 + i) for i, n in enumerate(nouns or [2] * len(kinds))),
        synonyms=tuple(rows(len(each), 30 + i) for i, each in enumerate(found)),
    )


@pytest.mark.parametrize("variant", case.VARIANTS)
@pytest.mark.parametrize("size", case.SIZES)
def test_agrees_with_the_released_code(variant: str, size: tuple[int, int]) -> None:
    """Mask and class logits at every prediction, and losses, to 1e-4 of the largest."""
    golden, _ = files.read_tensors(case.GOLDEN)
    found = case.answers(case.model(**case.VARIANTS[variant]), size)
    prefix = f"{variant}.{size[0]}x{size[1]}."
    expected = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    assert {key for key in found if key.startswith("loss")} == {key for key in expected if key.startswith("loss")}
    for key, value in expected.items():
        assert difference(found[key], value) < 1e-4, key


def test_target_requirements_follow_from_the_options(clip: Clip, text: TextClassifier) -> None:
    assert make(clip, text).target_requirements == TargetRequirements(segments=True, teacher=True, captions=True)
    assert make(clip, text, synonyms="random").target_requirements.synonyms
    bare = make(clip, text, distill="none", grounding_weight=0)
    assert bare.target_requirements == TargetRequirements(segments=True)
    assert set(bare.train().losses(batch((0, 2), (3,)))) == {"mask", "dice", "class"}
    assert GKC.target_requirements == TargetRequirements(segments=True)  # the class's own, untouched


@pytest.mark.parametrize(
    ("field", "options", "words"),
    [
        ("nouns", {}, "the nouns of captions"),
        ("teacher", {}, "a teacher's view"),
        ("synonyms", {"synonyms": "random"}, "synonyms of the segments"),
    ],
)
def test_a_batch_without_required_embeddings_is_refused(
    clip: Clip, text: TextClassifier, field: str, options: dict, words: str
) -> None:
    incomplete = replace(batch((0, 2), (3,)), **{field: None})
    with pytest.raises(InputError, match=f"need {words}.*`training.teacher_targets`"):
        make(clip, text, **options).losses(incomplete)


@pytest.mark.parametrize(
    "options",
    [
        EVERYTHING,
        {"distill": "vision-guided", "clip_path": "sum"},
        {"distill": "plain", "distill_from": "embedding"},
        {"distill": "none", "grounding_weight": 0},
    ],
)
def test_every_trainable_parameter_gets_a_gradient(clip: Clip, text: TextClassifier, options: dict) -> None:
    framework = make(clip, text, **options).train()
    losses = framework(batch((0, 2, 3), (3, 3), (2,)))
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in framework.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad != name.startswith("clip_path"), name


@pytest.mark.parametrize("options", [EVERYTHING, {"distill": "plain", "synonyms": "random"}])
@pytest.mark.parametrize(
    ("kinds", "nouns"),
    [
        (((0, 2), (), (3,)), (2, 3, 0)),
        (((), ()), (1, 1)),
        (((0,), (2,)), (0, 0)),
        (((0, 2, 3, 0, 2, 3, 0, 2), ()), (1, 0)),
    ],
)
def test_images_without_segments_or_captions(
    clip: Clip, text: TextClassifier, kinds: tuple, nouns: tuple, options: dict
) -> None:
    """None, some or all of them, and more segments than queries: finite, and every parameter in the graph."""
    framework = make(clip, text, queries=6, **options).train()
    losses = framework(batch(*kinds, nouns=nouns))
    torch.stack(list(losses.values())).sum().backward()
    assert all(bool(value.isfinite()) for value in losses.values())
    for name, parameter in framework.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    if not any(kinds):
        assert [losses[name].item() for name in ("grounding", "distill", "mask")] == [0, 0, 0]


@pytest.mark.parametrize("path", ["none", "sum"])
def test_three_steps_in_bfloat16_are_finite(clip: Clip, text: TextClassifier, path: str) -> None:
    framework = make(clip, text, clip_path=path, **EVERYTHING).train()
    optimizer = torch.optim.AdamW(framework.parameters(), lr=1e-3)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = framework(batch((0, 2, 3), (3, 3)))
        assert all(value.dtype is torch.float32 for value in losses.values())
        total = torch.stack(list(losses.values())).sum()
        assert bool(total.isfinite())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert all(bool(value.isfinite().all()) for value in framework.state_dict().values())


def test_the_name_of_a_novel_class_does_not_train(clip: Clip, vocabulary: Vocabulary, text: TextClassifier) -> None:
    moved = text.embeddings.clone()
    moved[2] = -moved[2]
    given = batch((0, 2, 3), (3, 2))
    found = []
    for one in (text, TextClassifier(moved, text.owner, vocabulary)):
        framework = make(clip, one, **EVERYTHING).train()
        torch.manual_seed(1)
        found.append({name: value.item() for name, value in framework(given).items()})
    assert found[0] == found[1]


def test_distillation_is_guided_by_first_name_or_synonym(clip: Clip, text: TextClassifier) -> None:
    """The first name of a class where no synonym was chosen; whatever was chosen where one was."""
    given = batch((0, 2), (3,))
    plain, other = make(clip, text), make(clip, text, synonyms="random")
    assert given.synonyms is not None
    found = []
    for framework, named in (
        (plain, replace(given, synonyms=None)),
        (other, replace(given, synonyms=(text.embeddings[[0, 3]], text.embeddings[[4]]))),
        (other, given),
    ):
        torch.manual_seed(1)
        found.append(framework.train()(named)["distill"].item())
    assert found[0] == found[1] != found[2]


def test_region_dropout_is_on_by_default(clip: Clip, text: TextClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the matched queries carry no loss under synonyms, as in the class loss itself."""
    seen: list[Tensor] = []

    def spy(*args: Any, **keywords: Any) -> Tensor:
        seen.append(class_targets(*args, **keywords))
        return seen[-1]

    monkeypatch.setattr(gkc, "class_targets", spy)
    framework = make(clip, text, synonyms="random", queries=8)
    torch.manual_seed(2)
    for _ in range(5):
        framework.train()(batch(*[(0, 2, 3, 0, 2)] * 6))
    dropped, matched = sum(int((each == IGNORED).sum()) for each in seen), 5 * 3 * 6 * 5
    assert 0.4 < dropped / matched < 0.6


def test_a_loss_is_the_sum_over_predictions_of_the_same_regions(
    clip: Clip, text: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[tuple[int, int]] = []
    terms = gkc.distillation_terms

    def spy(kind: str, student: list[Tensor], *rest: Any) -> Any:
        counts.append(tuple(map(len, student)))  # type: ignore[arg-type]
        return terms(kind, student, *rest)

    monkeypatch.setattr(gkc, "distillation_terms", spy)
    make(clip, text, distill_regions=3).train()(batch((0, 2, 3), (3, 2)))
    assert len(counts) == 3 and len(set(counts)) == 1 and sum(counts[0]) == 3
    doubled = [make(clip, text, distill_weight=w, grounding_weight=w).train() for w in (1.0, 2.0)]
    losses = []
    for framework in doubled:
        torch.manual_seed(1)
        losses.append(framework(batch((0, 2, 3), (3, 2))))
    for name in ("distill", "grounding"):
        torch.testing.assert_close(losses[1][name], 2 * losses[0][name])


def test_grounding_regions_are_limited_per_image(
    clip: Clip, text: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    loss = gkc.grounding_loss

    def spy(words: Any, regions: list[Tensor], scale: Any) -> Tensor:
        seen.append([len(each) for each in regions])
        return loss(words, regions, scale)

    monkeypatch.setattr(gkc, "grounding_loss", spy)
    make(clip, text, grounding_regions=2).train()(batch((0, 2, 3), (3,)))
    assert seen == [[2, 1]] * 3


def test_inference_does_not_use_training_only_parameters(clip: Clip, text: TextClassifier) -> None:
    framework = make(clip, text).eval()
    images = torch.rand(1, 3, 70, 64)
    with torch.no_grad():
        before = framework.segment(images)
        for parameter in framework.training_only.parameters():
            parameter.fill_(torch.nan)
        assert torch.equal(framework.segment(images), before)
    assert before.shape == (1, 4, 70, 64) and bool(before.isfinite().all())
    flops = count_flops(framework, (64, 64), components=framework.components())
    # Inference: the products of class and mask probabilities.
    assert set(flops.components) == {"trunk", "pixel_decoder", "transformer_decoder", "classifier", "inference"}
    assert not [key for key in framework.state_dict() if "attnpool" in key or key.startswith(("text_", "pixel_"))]


def test_parameters_at_the_published_size(vocabulary: Vocabulary) -> None:
    """44.1 M of backbone and head (OpenTrans, Tab. 1); the projections into CLIP's space come on top."""
    with torch.device("meta"):
        text = TextClassifier(torch.empty(5, 1024), torch.empty(5, dtype=torch.long), vocabulary)
        framework = GKC(encoder=create_image_encoder("RN50"), mean=(0.5,) * 3, std=(0.2,) * 3, text=text)
        assert framework.segment(torch.empty(1, 3, 800, 1216)).shape == (1, 4, 800, 1216)
    counted = count_params(framework, framework.components()).components
    total = {name: part.total for name, part in counted.items()}
    query, project = 256 * 256 + 256, 256 * 1024 + 1024
    assert total == {
        "trunk": 23_527_264,
        "pixel_decoder": 6_035_904,
        "transformer_decoder": 14_458_624,
        "classifier": query + project + 1024 + 1,
        "training_only": 9 * project + 10 * project + 1,
    }
    head = total["trunk"] + total["pixel_decoder"] + total["transformer_decoder"] + query
    assert round(head / 1e6, 3) == 44.088


@pytest.mark.parametrize("encoder", ["RN-mini", "convnext_base"])
@pytest.mark.parametrize("path", ["none", "sum"])
def test_any_clip_backbone_works(vocabulary: Vocabulary, encoder: str, path: str) -> None:
    with torch.device("meta"):
        visual = create_image_encoder(encoder)
        text = TextClassifier(torch.empty(5, visual.output_dim), torch.empty(5, dtype=torch.long), vocabulary)
        options = {**SMALL, "clip_path": path}
        framework = GKC(encoder=visual, mean=(0.5,) * 3, std=(0.2,) * 3, text=text, options=options).eval()
        assert framework.segment(torch.empty(1, 3, 64, 90)).shape == (1, 4, 64, 90)


def test_clip_path_starts_at_clips_own_answer(clip: Clip, text: TextClassifier) -> None:
    framework = make(clip, text, clip_path="sum").eval()
    with torch.no_grad():
        found = framework.head(framework.backbone_features(torch.rand(2, 3, 96, 64)))
        for prediction in range(3):
            seen = F.normalize(encode_masks(clip.visual, found.features["res5"], found.masks[prediction]), dim=-1)
            expected = seen @ text.embeddings.t() / 0.07
            expected = torch.stack([expected[..., :2].amax(-1), *expected[..., 2:].unbind(-1)], -1)
            torch.testing.assert_close(framework.class_scores(found, prediction, text)[..., :-1], expected)
    assert "clip_path" in framework.components()


def test_clip_path_weighs_clips_embedding(clip: Clip, text: TextClassifier) -> None:
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        made = (make(clip, text, clip_path="sum", clip_weight=weight).eval() for weight in (1.0, 3.0))
        one, three = (each.embedding(each.head(each.backbone_features(images)), 1) for each in made)
    torch.testing.assert_close(three, 3 * one)  # the projections start at zero
    torch.testing.assert_close(one.norm(dim=-1), torch.ones(1, 6))


def test_the_non_object_starts_small(clip: Clip, text: TextClassifier) -> None:
    """At the scale of CLIP RN50's text encoder, 512 wide, as released."""
    deviation = float(make(clip, text).classifier.non_object.detach().std())
    assert deviation == pytest.approx(512**-0.5, rel=0.3)  # of 128 numbers


def test_the_temperature_is_bounded_where_asked(clip: Clip, text: TextClassifier) -> None:
    for bound, expected in ((0.0, 1000.0), (100.0, 100.0)):
        framework = make(clip, text, max_scale=bound)
        with torch.no_grad():
            framework.classifier.logit_scale.copy_(torch.tensor(1000.0).log())
        assert framework.classifier.scale.item() == pytest.approx(expected, rel=1e-4)


def test_a_checkpoint_restores_bit_for_bit(clip: Clip, text: TextClassifier, tmp_path: Path) -> None:
    framework = make(clip, text, clip_path="sum", synonyms="random").eval()
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(
        path,
        Checkpoint(
            framework=framework.name,
            options=framework.options,
            state={key: value.detach() for key, value in framework.state_dict().items()},
            mask=None,
            text_embeddings=text.embeddings,
            text_owner=text.owner,
            vocabulary=text.vocabulary,
            clip=clip.describe(),
            recipe={},
            provenance={},
        ),
    )
    again = registry.restore(load_checkpoint(path))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.logits(images), framework.logits(images))
    assert isinstance(again, GKC) and again.target_requirements == framework.target_requirements


def test_names_are_cleaned_and_bare() -> None:
    formatted = GKC.format_class_names(
        Vocabulary.from_names("coco", ["wall-other-merged, stone-wall", "door-stuff", "cat"])
    )
    assert formatted.classes == (("wall", "stone wall"), ("door stuff",), ("cat",))
    assert GKC.format_class_names(formatted) == formatted and GKC.templates == "bare"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distill": "both"}, "distill = 'both'; use 'text-guided', 'vision-guided', 'plain', 'none'"),
        ({"distill_from": "mask"}, "distill_from = 'mask'; use 'query', 'embedding'"),
        ({"synonyms": "all"}, "synonyms = 'all'; use 'none', 'random'"),
        ({"clip_path": "ensemble"}, "clip_path = 'ensemble'; use 'none', 'sum'"),
        ({"templates": "mine"}, "templates = 'mine'"),
        ({"grounding_weight": -1.0}, "grounding_weight = -1.0; 0 or above"),
        ({"distill_regions": 0}, "distill_regions = 0; at least 1"),
        ({"depth": 3}, "no option 'depth'"),
    ],
)
def test_bad_options(clip: Clip, text: TextClassifier, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make(clip, text, **options)
