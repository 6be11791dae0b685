"""Distillation losses that look at segments."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import ovstrans.pruning.prune as run
from ovstrans.clip.load import Clip, load_clip
from ovstrans.clip.text import TextClassifier
from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.segments import Segments
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, TargetRequirements
from ovstrans.frameworks.mask2former_losses import make_targets
from ovstrans.pruning.losses import Distillation, make_distillation
from ovstrans.pruning.prune import choose_recipe
from ovstrans.vocabulary.vocabulary import Vocabulary

SMALL = {"queries": 5, "width": 32, "heads": 2, "encoder_layers": 1, "encoder_ffn": 32, "decoder_layers": 1}
SMALL["decoder_ffn"] = 32
QUERY: dict[str, Any] = {**SMALL, "region": "query", "points": 64}
SIZE = 64


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def text_of(clip: Clip) -> TextClassifier:
    vocabulary = Vocabulary("three", (("cat", "kitten"), ("dog",), ("sky",)))
    return TextClassifier(unit(4, clip.embed_dim), torch.tensor([0, 0, 1, 2]), vocabulary)


def batch_of(clip: Clip, counts: tuple[int, ...] = (2, 0, 3)) -> Batch:
    segments = tuple(
        Segments(torch.rand(count, SIZE, SIZE) > 0.5, torch.arange(count) % 3, torch.arange(count) + 1)
        for count in counts
    )
    teacher = tuple(unit(count, clip.embed_dim, seed=row) for row, count in enumerate(counts))
    return Batch(torch.randn(len(counts), 3, SIZE, SIZE), segments=segments, teacher=teacher)


@pytest.mark.parametrize("name", ["text-guided", "vision-guided"])
@pytest.mark.parametrize("teacher_region", ["pooled", "crop"])
def test_queries_teach_the_student_and_their_own_head(clip: Clip, name: str, teacher_region: str) -> None:
    student, teacher = copy.deepcopy(clip.visual), clip.visual
    loss = make_distillation(name, clip, {**QUERY, "teacher_region": teacher_region}, text_of(clip))
    found = loss(student, teacher, batch_of(clip))
    assert set(found) == {"regions", "mask", "dice"}
    sum(found.values()).backward()
    assert all(bool(p.grad.abs().sum() > 0) for key, p in student.named_parameters() if "layer4.0.conv" in key)
    assert all(p.grad is None for p in teacher.parameters())
    assert [key for key, p in loss.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters())


@pytest.mark.parametrize("name", ["text-guided", "vision-guided"])
@pytest.mark.parametrize("teacher_region", ["pooled", "crop"])
def test_a_pooled_region_teaches_the_student_alone(clip: Clip, name: str, teacher_region: str) -> None:
    student, teacher = copy.deepcopy(clip.visual), clip.visual
    loss = make_distillation(name, clip, {**SMALL, "teacher_region": teacher_region}, text_of(clip))
    assert loss.target_requirements == TargetRequirements(segments=True, teacher=teacher_region == "crop")
    assert [key for key, _ in loss.named_parameters()] == (["text_scale"] if name == "text-guided" else [])
    with torch.no_grad():
        student.layer4[0].conv3.weight.mul_(0.3)
    (value,) = loss(student, teacher, batch_of(clip)).values()
    value.backward()
    assert all(bool(p.grad.abs().sum() > 0) for key, p in student.named_parameters() if "layer4.0.conv" in key)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    ("name", "region"),
    [
        ("text-guided", {"region": "pooled"}),
        ("text-guided", {"region": "query"}),
        ("vision-guided", {"region": "pooled"}),
        ("vision-guided", {"region": "query", "teacher_region": "crop"}),
        ("semantic", {}),
    ],
)
def test_images_without_segments(clip: Clip, name: str, region: dict[str, str]) -> None:
    options: dict[str, Any] = {**SMALL, "points": 16, **({"grounding_weight": 0.0} if name == "semantic" else {})}
    loss = make_distillation(name, clip, options | region, text_of(clip))
    found = loss(copy.deepcopy(clip.visual), clip.visual, batch_of(clip, (0, 0)))
    total = torch.stack(list(found.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    if name != "semantic":
        assert float(total.detach()) == 0


def test_masks_lie_where_the_image_does_at_any_size(clip: Clip) -> None:
    """GKC pads images to multiples of 32, and its targets with them; the student must see what GKC would."""
    options = {**SMALL, "points": 16, "grounding_weight": 0.0, "region_drop": 0.0}
    loss = make_distillation("semantic", clip, options, text_of(clip))
    whole, batch = copy.deepcopy(loss.gkc), batch_of(clip)
    whole.backbone = copy.deepcopy(clip.visual)
    images = torch.rand(3, 3, 40, 52)
    batch.segments = tuple(replace(each, masks=each.masks[:, :40, :52]) for each in batch.segments)
    torch.manual_seed(0)
    expected = whole.losses(replace(batch, images=images))
    torch.manual_seed(0)
    found = loss(clip.visual, clip.visual, replace(batch, images=(images - whole.pixel_mean) / whole.pixel_std))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


def test_queries_are_matched_by_class_and_by_mask(clip: Clip) -> None:
    """Not by what the loss compares: that may be lowered without looking."""
    loss = make_distillation("vision-guided", clip, QUERY, text_of(clip))
    segments = batch_of(clip).segments
    assert segments is not None
    stripes = torch.arange(SIZE)[None, :, None].expand(3, SIZE, SIZE) // 16 == torch.tensor([0, 1, 3])[:, None, None]
    targets = [make_targets(replace(segments[2], masks=stripes), [0, 1, 2], (SIZE, SIZE))]
    masks = torch.zeros(5, SIZE // 4, SIZE // 4)
    masks[[4, 0, 2]] = 40 * (F.avg_pool2d(targets[0].masks[None], 4)[0] - 0.5)
    same = unit(1, clip.embed_dim).expand(1, 5, -1)  # a class cost that decides nothing
    ((query, region),) = loss._match(same, masks[None], targets)
    assert dict(zip(region.tolist(), query.tolist(), strict=True)) == {0: 4, 1: 0, 2: 2}
    rows = unit(5, clip.embed_dim, seed=9)
    rows[[1, 3, 4]] = loss.names
    ((query, region),) = loss._match(rows[None], torch.zeros_like(masks)[None], targets)
    assert dict(zip(region.tolist(), query.tolist(), strict=True)) == {0: 1, 1: 3, 2: 4}


def test_a_diverged_student_is_still_matched(clip: Clip) -> None:
    loss = make_distillation("vision-guided", clip, QUERY, text_of(clip))
    segments = batch_of(clip).segments
    assert segments is not None
    targets = [make_targets(segments[0], [0, 1, 2], (SIZE, SIZE))]
    nothing = torch.full((1, 5, 16, 16), torch.nan)
    ((query, region),) = loss._match(torch.full((1, 5, clip.embed_dim), torch.nan), nothing, targets)
    assert len(query) == len(region) == 2


def test_a_class_counts_once_whatever_else_it_is_called(clip: Clip) -> None:
    loss = make_distillation("text-guided", clip, SMALL, text_of(clip))
    assert torch.equal(loss.names, text_of(clip).embeddings[[0, 2, 3]])


def test_learns_regions(clip: Clip) -> None:
    torch.manual_seed(0)
    student, batch = copy.deepcopy(clip.visual), batch_of(clip)
    loss = make_distillation("vision-guided", clip, {**QUERY, "teacher_region": "crop"}, text_of(clip))
    optimizer = torch.optim.AdamW([*student.parameters(), *loss.parameters()], lr=3e-3)
    values = []
    for _ in range(40):
        value = loss(student, clip.visual, batch)["regions"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.3 * values[0]


def test_bad_options(clip: Clip) -> None:
    with pytest.raises(InputError, match="labelled `data`"):
        make_distillation("text-guided", clip, SMALL)
    with pytest.raises(InputError, match="no option 'thickness'"):
        make_distillation("text-guided", clip, {"thickness": 1}, text_of(clip))
    with pytest.raises(InputError, match="width = 33"):
        make_distillation("vision-guided", clip, {**QUERY, "width": 33, "heads": 3}, text_of(clip))
    with pytest.raises(InputError, match="`distill=text-guided`: option region = 'head'; use 'pooled', 'query'"):
        make_distillation("text-guided", clip, {"region": "head"}, text_of(clip))
    with pytest.raises(InputError, match="option teacher_region = 'query'; use 'pooled', 'crop'"):
        make_distillation("vision-guided", clip, {"teacher_region": "query"}, text_of(clip))
    for option, value in {"mask_weight": -1.0, "distill_weight": -1.0, "backbone_rate": -0.1, "points": 0}.items():
        with pytest.raises(InputError, match=f"option {option} = {value}"):
            make_distillation("text-guided", clip, {**QUERY, option: value}, text_of(clip))
    with pytest.raises(InputError, match="option backbone_rate = 'low'"):
        make_distillation("semantic", clip, {"backbone_rate": "low"}, text_of(clip))


@pytest.mark.parametrize(
    ("loss", "changes", "templates"),
    [
        ("text-guided", (), ("{}",)),
        ("semantic", (), ("{}",)),
        ("semantic", ("distill.templates='clip'",), ("a photo of a {}.",)),
    ],
)
def test_names_are_worded_as_gkc_words_them(
    loss: str, changes: tuple[str, ...], templates: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authors' own, cleaned and bare, whatever prompts the data have; or as `semantic` is told."""
    data: Any = open_dataset("scenes:train", split="train", size=64)
    plain = tuple((f"{name}-other-merged",) for name in data.vocabulary.names)
    monkeypatch.setattr(data, "vocabulary", replace(data.vocabulary, plain=plain))
    seen: list[Vocabulary] = []
    monkeypatch.setattr(run, "embed_vocabulary", lambda clip, vocabulary: seen.append(vocabulary) or text_of(clip))
    monkeypatch.setattr(run, "make_distillation", lambda *given: Distillation())
    settings = choose_recipe(recipe="prune-mini-regions", settings=[f"distill.loss='{loss}'", *changes])
    run._make_loss(load_clip("RN-mini"), settings, data, torch.device("cpu"))
    (asked,) = seen
    assert asked.templates == templates and asked.classes[0] == (data.vocabulary.names[0],)
