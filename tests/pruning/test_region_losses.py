"""Distillation losses that look at segments."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import ovstrans.pruning.prune as run
from ovstrans.clip.load import Clip, load_clip
from ovstrans.clip.text import TextClassifier
from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.segments import Segments
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch
from ovstrans.pruning.losses import Distillation, make_distillation
from ovstrans.pruning.prune import choose_recipe
from ovstrans.pruning.region_losses import match_by_similarity
from ovstrans.vocabulary.vocabulary import Vocabulary

SMALL = {"queries": 5, "width": 32, "heads": 2, "encoder_layers": 1, "encoder_ffn": 32, "decoder_layers": 1}
SMALL["decoder_ffn"] = 32
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


@given(seed=st.integers(0, 999), queries=st.integers(1, 5), regions=st.integers(0, 5))
def test_queries_and_regions_agree_best(seed: int, queries: int, regions: int) -> None:
    rows, known = unit(queries, 4, seed=seed), unit(regions, 4, seed=seed + 1)
    query, region = match_by_similarity(rows, known)
    assert len(query) == len(region) == min(queries, regions)
    assert len(set(query.tolist())) == len(query) and len(set(region.tolist())) == len(region)
    likeness = rows @ known.t()
    most, least = max(queries, regions), min(queries, regions)
    table = likeness if queries >= regions else likeness.t()
    best = max(sum(float(table[a, b]) for b, a in enumerate(order)) for order in permutations(range(most), least))
    assert float(likeness[query, region].sum()) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("name", ["text-guided", "vision-guided"])
def test_region_losses_teach_the_student_and_their_own_head(clip: Clip, name: str) -> None:
    student, teacher = copy.deepcopy(clip.visual), clip.visual
    loss = make_distillation(name, clip, SMALL, text_of(clip))
    found = loss(student, teacher, batch_of(clip))
    assert set(found) == {"regions"}
    found["regions"].backward()
    assert all(bool(p.grad.abs().sum() > 0) for key, p in student.named_parameters() if "layer4.0.conv" in key)
    assert all(p.grad is None for p in teacher.parameters())
    assert [key for key, p in loss.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters())


@pytest.mark.parametrize("name", ["text-guided", "vision-guided", "semantic"])
def test_images_without_segments(clip: Clip, name: str) -> None:
    options = {**SMALL, "points": 16, "grounding_weight": 0.0} if name == "semantic" else SMALL
    loss = make_distillation(name, clip, options, text_of(clip))
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


def test_a_diverged_student_is_still_paired() -> None:
    query, region = match_by_similarity(torch.full((3, 4), torch.nan), unit(2, 4))
    assert len(query) == len(region) == 2


def test_a_class_counts_once_whatever_else_it_is_called(clip: Clip) -> None:
    loss = make_distillation("text-guided", clip, SMALL, text_of(clip))
    assert torch.equal(loss.names, text_of(clip).embeddings[[0, 2, 3]])


def test_learns_regions(clip: Clip) -> None:
    torch.manual_seed(0)
    student, batch = copy.deepcopy(clip.visual), batch_of(clip)
    loss = make_distillation("vision-guided", clip, SMALL, text_of(clip))
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
        make_distillation("vision-guided", clip, {**SMALL, "width": 33, "heads": 3}, text_of(clip))


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
