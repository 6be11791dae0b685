"""What stands for a region in text-guided and vision-guided distillation, and whether it must look at the image."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ovstrans
import ovstrans.pruning.prune as run
from ovstrans.clip.load import Clip, load_clip
from ovstrans.clip.text import TextClassifier
from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.segments import Segments
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch
from ovstrans.pruning import region_losses, rounds
from ovstrans.pruning.losses import Distillation, make_distillation
from ovstrans.pruning.methods import make_plan
from ovstrans.pruning.prune import choose_recipe
from ovstrans.pruning.rounds import DistillationModel
from ovstrans.recipes.schema import PruneRecipe
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.clip.encoders import small_convnext
from tests.clip.vits import small_vit

METHODS = ("text-guided", "vision-guided")
CPU = torch.device("cpu")


def text_of(dim: int) -> TextClassifier:
    vocabulary = Vocabulary("three", (("cat",), ("dog",), ("sky",)))
    rows = F.normalize(torch.randn(3, dim, generator=torch.Generator().manual_seed(3)), dim=1)
    return TextClassifier(rows, torch.arange(3), vocabulary)


def random_batch(counts: Sequence[int], height: int, width: int) -> Batch:
    draws = torch.Generator().manual_seed(4)
    segments = tuple(
        Segments(torch.rand(count, height, width, generator=draws) > 0.5, torch.arange(count) % 3, torch.arange(count))
        for count in counts
    )
    return Batch(torch.randn(len(counts), 3, height, width, generator=draws), segments=segments)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (75, 140)])
@pytest.mark.parametrize("kind", ["resnet", "convnext", "open_clip", "plain"])
def test_zero_for_a_student_that_equals_its_teacher(clip: Clip, kind: str, size: tuple[int, int]) -> None:
    kinds = {"resnet": lambda: clip.visual, "convnext": lambda: small_convnext(seed=0)}
    encoder = kinds[kind]() if kind in kinds else small_vit(kind)
    encoder.eval()
    with torch.no_grad():
        dim = int(region_losses.encode_positions(encoder, torch.zeros(1, 3, 64, 64)).shape[1])
        loss = make_distillation("vision-guided", clip, {}, text_of(dim))
        same = loss(copy.deepcopy(encoder), encoder, random_batch((2, 0, 3), *size))
        other = copy.deepcopy(encoder)
        for parameter in list(other.parameters())[: len(list(other.parameters())) // 2]:
            parameter.add_(0.05 * torch.randn_like(parameter))
        different = loss(other, encoder, random_batch((2, 0, 3), *size))
    assert 0 <= float(same["regions"]) < 1e-10  # plain terms and pairs alike: all are squares, so all are zero
    assert float(different["regions"]) > 1e-6


def test_terms_by_hand(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two segments of one image on a map of two cells: the first covers one cell, the second half of each."""
    dense = {"student": torch.tensor([[3.0, 0.0], [4.0, 1.0]]), "teacher": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    encoders = {name: nn.Identity() for name in dense}
    maps = {id(encoders[name]): value[None, :, None, :] for name, value in dense.items()}  # [B, E, h, w]
    monkeypatch.setattr(region_losses, "encode_positions", lambda encoder, images: maps[id(encoder)])
    masks = torch.zeros(2, 32, 64, dtype=torch.bool)
    masks[0, :, :32] = True
    masks[1, :16] = True
    batch = Batch(torch.zeros(1, 3, 32, 64), segments=(Segments(masks, torch.tensor([0, 1]), torch.arange(2)),))
    names = TextClassifier(
        torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.arange(2), Vocabulary("two", (("cat",), ("dog",)))
    )
    # Student: (3, 4) and ((3 + 0) / 2, (4 + 1) / 2), of unit length. Teacher: (1, 0) and (0.5, 0.5), likewise.
    v = [(0.6, 0.8), (1.5 / 8.5**0.5, 2.5 / 8.5**0.5)]
    c = [(1.0, 0.0), (0.5**0.5, 0.5**0.5)]
    plain = [sum((a - b) ** 2 for a, b in zip(v[i], c[i], strict=True)) for i in range(2)]
    vision, text = {0: {0: 1.0, 1: 0.5**0.5}, 1: {0: 0.5**0.5, 1: 1.0}}, {0: {0: 1.0, 1: 0.6}, 1: {0: 0.6, 1: 1.0}}
    for name, wanted in (("vision-guided", vision), ("text-guided", text)):
        pairs = [
            (wanted[i][j] - sum(a * b for a, b in zip(v[i], c[j], strict=True))) ** 2
            for i in range(2)
            for j in range(2)
        ]
        found = make_distillation(name, clip, {}, names)(encoders["student"], encoders["teacher"], batch)
        assert float(found["regions"].detach()) == pytest.approx((sum(plain) + sum(pairs)) / 6, rel=1e-6)


def test_the_teachers_crops_take_the_place_of_its_map(clip: Clip) -> None:
    batch = random_batch((2,), 64, 64)
    rows = F.normalize(torch.randn(2, clip.embed_dim, generator=torch.Generator().manual_seed(1)), dim=1)
    loss = make_distillation("vision-guided", clip, {"teacher_region": "crop"}, text_of(clip.embed_dim))
    with torch.no_grad():
        found = loss(clip.visual, clip.visual, replace(batch, teacher=(rows,)))
        (mine,) = region_losses.pooled_regions(clip.visual, batch)
    terms = [((mine - rows) ** 2).sum(1), ((rows @ rows.t() - mine @ rows.t()) ** 2).flatten()]
    assert float(found["regions"]) == pytest.approx(float(torch.cat(terms).mean()), rel=1e-5)


def quick(*changes: str, loss: str = "vision-guided") -> PruneRecipe:
    small = ["data.size=64", "augment.crop=64", "training.batch=8", "training.precision=fp32", "distill.points=64"]
    return choose_recipe(recipe="prune-mini-regions", settings=[f"distill.loss={loss}", *small, *changes])


def held_out_loss(model: DistillationModel, batches: Sequence[Batch]) -> float:
    """Mean loss on other images than those that were learned from, every module in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        values = [float(sum(model(batch).values())) for batch in batches]
    for module, training in modes:
        module.training = training
    return sum(values) / len(values)


def distilled(recipe: PruneRecipe, *, blind: bool, steps: int) -> tuple[float, float, float]:
    """Loss on held-out scenes of RN-mini itself, and at 80 % sparsity before and after some steps of distillation.

    A blind student's last feature map is zero, so nothing of the image reaches the loss; all else learns.
    """
    torch.manual_seed(0)
    clip = load_clip("RN-mini")
    loss, views = run._make_loss(clip, recipe, open_dataset("scenes:train", split="train", size=64), CPU)
    _, held = run._make_loss(clip, recipe, open_dataset("scenes:val", split="val", size=64), CPU)
    assert views is not None and held is not None
    student, teacher = copy.deepcopy(clip.visual), clip.visual
    mask = ovstrans.prune(clip, method="magnitude", sparsity=0.8, steps=0, settings=["training.bn_recalibrate=0"]).mask
    mask.apply(student)
    if blind:
        student.layer4.register_forward_hook(lambda module, inputs, output: output * 0.0)
    model = DistillationModel(student, teacher, loss, clip)
    model.prepare("train")
    tested = list(held.stream(0, 3))
    floor = held_out_loss(DistillationModel(copy.deepcopy(teacher), teacher, loss, clip), tested)
    before = held_out_loss(model, tested)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    with mask.held(optimizer, student):
        for batch in islice(views.stream(0, steps), steps):
            optimizer.zero_grad()
            sum(model(batch).values(), torch.zeros(())).backward()
            optimizer.step()
    return floor, before, held_out_loss(model, tested)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls_on_other_images_and_not_for_a_blind_student(name: str) -> None:
    """The head of queries that this replaced reached 0.1225 where it saw the image and 0.1251 where it saw grey."""
    floor, before, after = distilled(quick(loss=name), blind=False, steps=20)
    _, unseen, still = distilled(quick(loss=name), blind=True, steps=20)
    assert floor == 0 or name == "text-guided"  # class names are not as similar as CLIP's embeddings
    assert after - floor < 0.5 * (before - floor)
    assert after - floor < 0.3 * (min(unseen, still) - floor)


@pytest.mark.parametrize(
    ("changes", "rate"), [((), 1.0), (("distill.region=query",), 0.1), (("distill.loss=semantic",), 0.1)]
)
def test_the_backbone_learns_slowly_beside_a_head(changes: tuple[str, ...], rate: float) -> None:
    recipe = quick(*changes, "optimizer.lr=0.5")
    loss, _ = run._make_loss(load_clip("RN-mini"), recipe, open_dataset("scenes:train", split="train", size=64), CPU)
    assert loss.backbone_rate == rate
    if not changes:
        assert quick("distill.backbone_rate=0.3").distill.options["backbone_rate"] == 0.3


def test_the_optimizer_takes_the_rate_of_the_loss(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    make = rounds.make_optimizer

    def spy(model: nn.Module, settings: Any, backbone: str) -> torch.optim.AdamW:
        seen.append(make(model, settings, backbone))
        return seen[-1]

    monkeypatch.setattr(rounds, "make_optimizer", spy)
    recipe = replace(quick("optimizer.lr=0.5", "optimizer.backbone_rate=0.4"), prune=replace(quick().prune, steps=0))
    loss = Distillation()
    loss.backbone_rate = 0.1
    loss.text_scale = nn.Parameter(torch.ones(()))
    rounds.run_rounds(clip, make_plan(clip.visual, recipe.prune, 0), loss, None, recipe, device=CPU)
    rates = {group["name"].split(",")[0]: group["lr"] for group in seen[0].param_groups if group["params"]}
    assert rates == {"head": pytest.approx(0.5), "backbone": pytest.approx(0.02)}


@pytest.mark.parametrize(
    ("loss", "region", "novel"),
    [("vision-guided", "pooled", True), ("vision-guided", "query", False), ("text-guided", "pooled", False)],
)
def test_segments_of_novel_classes_serve_where_no_name_is_used(loss: str, region: str, novel: bool) -> None:
    """Unlabelled scenes show novel shapes. A loss that knows no class names has their segments, the others do not."""
    data: Any = open_dataset("scenes:unlabelled", split="unlabelled", size=64)
    _, views = run._make_loss(load_clip("RN-mini"), quick(f"distill.region={region}", loss=loss), data, CPU)
    assert views is not None
    classes = {int(c) for batch in views.stream(0, 3) for each in batch.segments or () for c in each.classes}
    assert bool(classes & data.vocabulary.novel) == novel and classes & set(data.vocabulary.base)


def test_no_crops_are_made_for_a_teacher_that_sees_the_view() -> None:
    data, clip = open_dataset("scenes:train", split="train", size=64), load_clip("RN-mini")
    found: dict[str, list[Tensor | None]] = {}
    for teacher_region in ("pooled", "crop"):
        _, views = run._make_loss(clip, quick(f"distill.teacher_region={teacher_region}"), data, CPU)
        assert views is not None
        batch = next(views.stream(0, 1))
        found[teacher_region] = [each.regions for each in batch.segments or ()]
        assert (batch.teacher is not None) == (teacher_region == "crop")
    assert all(each is None for each in found["pooled"]) and all(each is not None for each in found["crop"])


def test_semantic_has_no_choice_of_regions() -> None:
    assert not {"region", "teacher_region"} & choose_recipe(distill="semantic").distill.options.keys()
    with pytest.raises(InputError, match=r"`distill\.region=query`: no such key"):
        choose_recipe(distill="semantic", settings=["distill.region=query"])
