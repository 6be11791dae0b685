"""Pruning a ViT: bare parameters stay masked in training, plans freeze its matrices, checkpoints carry both."""

import copy

import pytest
import torch

import ovstrans
from ovstrans.clip.backbone import head_parts
from ovstrans.clip.layers import scope_layers, weight_name
from ovstrans.clip.load import random_clip
from ovstrans.errors import MismatchError
from ovstrans.frameworks.base import Batch
from ovstrans.masks.mask import Mask
from ovstrans.pruning.losses import FeatureDistillation
from ovstrans.spectrum.file import load_analysis
from ovstrans.training.freeze import check_plan, freeze

IN_PROJ = "transformer.resblocks.0.attn.in_proj_weight"


@pytest.fixture(scope="module")
def clip():
    return random_clip("ViT-mini", 3)


def _mask(encoder, model="ViT-mini"):
    generator = torch.Generator().manual_seed(0)
    shapes = {weight_name(name): weight.shape for name, weight in scope_layers(encoder).items()}
    return Mask({key: torch.rand(shape, generator=generator) > 0.8 for key, shape in shapes.items()}, model=model)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_bare_parameters_stay_zero_in_training(clip, make):
    """Also the fused weight and the output projection, whose module is never called, against momentum and decay."""
    encoder = copy.deepcopy(clip.visual).train()
    mask = _mask(encoder)
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(encoder.parameters(), lr=0.1, weight_decay=0.1, **options)
    encoder(torch.randn(2, 3, 96, 96)).square().sum().backward()
    optimizer.step()  # momentum of weights that are cut later
    with mask.held(optimizer, encoder):
        for _ in range(2):
            before = encoder.transformer.resblocks[0].attn.in_proj_weight.detach().clone()
            optimizer.zero_grad()
            encoder(torch.randn(2, 3, 96, 96)).square().sum().backward()
            optimizer.step()
            assert mask.violations(encoder) == []
            kept = mask.tensors[IN_PROJ]
            assert (encoder.transformer.resblocks[0].attn.in_proj_weight != before)[kept].any()
    assert set(mask.tensors) == {weight_name(name) for name in scope_layers(encoder)} and IN_PROJ in mask.tensors


def test_distillation_is_zero_for_the_teacher_itself_and_reaches_every_block(clip):
    student = copy.deepcopy(clip.visual).train()
    batch = Batch(torch.randn(2, 3, 96, 128))  # not the encoder's own size
    losses = FeatureDistillation()(student, clip.visual, batch)
    assert set(losses) == {"dense", "pooled", "stages"}
    assert all(abs(loss.item()) < 1e-5 for loss in losses.values())
    _mask(student).apply(student)
    for part in head_parts(student):
        part.requires_grad_(False)
    sum(FeatureDistillation()(student, clip.visual, batch).values()).backward()
    named = dict(student.named_parameters())
    assert all(named[weight_name(name)].grad.abs().sum() > 0 for name in scope_layers(student))
    assert named["proj"].grad is None and named["ln_post.weight"].grad is None


def test_prune_makes_an_exact_mask_and_trains_under_it(clip, tmp_path):
    settings = ["training.batch=2", "data.images=4", "augment.crop=96"]
    result = ovstrans.prune(
        clip,
        data="scenes",
        sparsity=0.5,
        rate=0.4,
        steps=1,
        settings=settings,
        out=tmp_path / "m.safetensors",
        plot=False,
    )
    mask, total = (
        ovstrans.load_mask(tmp_path / "m.safetensors"),
        sum(w.numel() for w in scope_layers(clip.visual).values()),
    )
    assert (mask.total, mask.kept, mask.model) == (total, round(0.5 * total), "ViT-mini")
    assert mask.violations(result.weights) == [] and mask == result.mask
    assert not torch.equal(result.weights["conv1.weight"], clip.visual.conv1.weight)  # distilled, not only cut
    assert torch.equal(result.weights["proj"], clip.visual.proj)
    with pytest.raises(MismatchError, match="transformer.resblocks.0.attn.in_proj_weight is missing"):
        mask.apply(random_clip("RN-mini").visual)


def test_plans_range_over_the_matrices_of_the_blocks(clip, tmp_path):
    analysis = ovstrans.analyze(clip)
    plan = analysis.plan()
    assert (
        len(analysis.candidates) == 24
        and len([row for row in analysis.layers if row.name.endswith(("q", "k", "v"))]) == 18
    )
    assert 0 < len(plan.frozen) <= 12 and "conv1" not in analysis.candidates
    parts = [analysis.alphas[f"transformer.resblocks.0.attn.{part}"] for part in "qkv"]
    threshold = sum(parts) / 3
    assert (IN_PROJ in analysis.plan(f"threshold:{threshold + 1e-9}").frozen) and (
        IN_PROJ not in analysis.plan(f"threshold:{threshold}").frozen
    )
    analysis.save(tmp_path / "alpha.json")
    again = load_analysis(tmp_path / "alpha.json")
    assert again.candidates == analysis.candidates and again.plan("count:5").frozen == analysis.plan("count:5").frozen
    assert ovstrans.inspect(tmp_path / "alpha.json", verify=True)
    assert ovstrans.analyze(clip.model, heads=True).candidates == analysis.candidates


def test_a_frozen_fused_weight_has_no_gradient_and_its_parts_cannot_be_named(clip):
    encoder = copy.deepcopy(clip.visual)
    check_plan([IN_PROJ], encoder, "plan.json")
    assert freeze(encoder, [IN_PROJ]) == [IN_PROJ, IN_PROJ.replace("weight", "bias")]
    encoder(torch.randn(1, 3, 96, 96)).sum().backward()
    attention = encoder.transformer.resblocks[0].attn
    assert attention.in_proj_weight.grad is None and attention.out_proj.weight.grad is not None
    with pytest.raises(MismatchError, match="queries, keys and values are one tensor.*attn.in_proj_weight"):
        check_plan(["transformer.resblocks.0.attn.q"], encoder, "plan.json")
