from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from ovstrans.clip.backbone import encode_stages
from ovstrans.clip.load import Clip
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch
from ovstrans.pruning.losses import FeatureDistillation, make_distillation, pooled_embedding
from tests.clip.encoders import small_convnext


def batch(size: int = 32) -> Batch:
    return Batch(torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("size", [32, 64, 96])
def test_zero_for_a_student_that_equals_its_teacher(clip: Clip, size: int) -> None:
    with torch.no_grad():
        losses = FeatureDistillation()(copy.deepcopy(clip.visual), clip.visual, batch(size))
    assert set(losses) == {"dense", "pooled", "stages"}
    assert all(abs(float(loss)) < 1e-6 for loss in losses.values())


def test_positive_for_any_other(clip: Clip) -> None:
    student = copy.deepcopy(clip.visual)
    with torch.no_grad():
        student.layer2[0].conv2.weight.mul_(0.3)
        losses = FeatureDistillation()(student, clip.visual, batch())
    assert all(float(loss) > 1e-4 for loss in losses.values())


def test_terms_by_hand(clip: Clip) -> None:
    student = copy.deepcopy(clip.visual)
    with torch.no_grad():
        student.layer4[0].conv3.weight.mul_(0.5)
        losses = FeatureDistillation(dense=2.0, pooled=3.0, stages=6.0)(student, clip.visual, batch())
        found, wanted = student(batch().images), clip.visual(batch().images)
        cosine = F.cosine_similarity(found, wanted, dim=1).mean()
        trunk = [lambda x, t=encoder: t.layer3(t.layer2(t.layer1(t.stem(x)))) for encoder in (student, clip.visual)]
        res5 = [student.layer4(trunk[0](batch().images)), clip.visual.layer4(trunk[1](batch().images))]
        error = ((res5[0] - res5[1]) ** 2).sum() / (res5[1] ** 2).sum()
    assert float(losses["pooled"]) == pytest.approx(3 * (1 - float(cosine)), abs=1e-5)
    # res3 and res4 agree, so a third of the stages' error is res5's.
    assert float(losses["stages"]) == pytest.approx(6 * float(error) / 3, rel=1e-4)


def test_a_weight_of_zero_drops_the_term(clip: Clip) -> None:
    assert set(FeatureDistillation(dense=0.0, stages=0.0)(clip.visual, clip.visual, batch())) == {"pooled"}


def test_gradients_reach_the_student_and_not_the_teacher(clip: Clip) -> None:
    student, teacher = copy.deepcopy(clip.visual), clip.visual
    with torch.no_grad():
        student.layer1[0].conv1.weight.add_(0.05)
    sum(FeatureDistillation()(student, teacher, batch()).values()).backward()
    assert all(
        bool(p.grad.abs().sum() > 0) for name, p in student.named_parameters() if name.startswith("layer1.0.conv")
    )
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_pooled_embedding_is_the_towers_own_at_its_size(clip: Clip) -> None:
    encoder = clip.visual
    with torch.no_grad():
        res5 = encoder.layer4(encoder.layer3(encoder.layer2(encoder.layer1(encoder.stem(batch().images)))))
        assert torch.equal(pooled_embedding(encoder, res5), encoder(batch().images))


def test_pooled_embedding_interpolates_positions(clip: Clip) -> None:
    pool = clip.visual.attnpool  # its grid has one place, so every place of a larger map has the same position
    features = torch.rand(2, pool.k_proj.in_features, 3, 5)
    with torch.no_grad():
        # Without queries attention is uniform: the mean token and the 15 places count alike.
        pool.q_proj.weight.zero_()
        pool.q_proj.bias.zero_()
        mean = features.mean(dim=(2, 3)) + (pool.positional_embedding[0] + 15 * pool.positional_embedding[1]) / 16
        wanted = pool.c_proj(pool.v_proj(mean))
        found = pooled_embedding(clip.visual, features)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_unknown_names(clip: Clip) -> None:
    with pytest.raises(InputError, match=r"`distill=nothing.*features"):
        make_distillation("nothing", clip, {})
    with pytest.raises(InputError, match="thick"):
        make_distillation("features", clip, {"thick": 1.0})


def test_a_convnext_is_distilled_too() -> None:
    encoder = small_convnext(seed=0)
    student = copy.deepcopy(encoder)
    pictures = Batch(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        same = FeatureDistillation()(student, encoder, pictures)
        assert torch.allclose(
            pooled_embedding(encoder, encode_stages(encoder, pictures.images)["res5"]), encoder(pictures.images)
        )
        student.trunk.stages[0].blocks[0].mlp.fc1.weight.mul_(0.3)
        other = FeatureDistillation()(student, encoder, pictures)
    assert all(abs(float(loss)) < 1e-6 for loss in same.values())
    assert all(float(loss) > 1e-6 for loss in other.values())
