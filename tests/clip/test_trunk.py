"""Stages, dense embeddings, and the exactness of dilation."""

import pytest
import torch
from torch.nn import functional as F

from ovstrans.clip.load import random_clip
from ovstrans.clip.trunk import dense_embedding, set_output_stride, stages
from ovstrans.errors import InputError


@pytest.fixture()
def tower():
    tower = random_clip(seed=1).visual
    for name, parameter in tower.named_parameters():
        if name.endswith("bn3.weight"):  # zero at initialisation, which would silence every block
            torch.nn.init.constant_(parameter, 0.7)
    return tower


def test_stages_are_the_towers_own(tower):
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        features = stages(tower, images)
        assert torch.equal(tower.attnpool(features["res5"]), tower(images))
    assert [tuple(f.shape) for f in features.values()] == [
        (2, 24, 24, 24), (2, 96, 24, 24), (2, 192, 12, 12), (2, 384, 6, 6), (2, 768, 3, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("size", [(96, 128), (64, 160)])
def test_dilation_keeps_every_shared_value(tower, stride, size):
    images = torch.rand(1, 3, *size)
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    with torch.no_grad():
        strided = stages(tower, images)
        set_output_stride(tower, stride)
        dense = stages(tower, images)
        set_output_stride(tower, 32)
        back = stages(tower, images)
    step = 32 // stride
    assert dense["res5"].shape[-2:] == (size[0] // stride, size[1] // stride)
    torch.testing.assert_close(dense["res5"][..., ::step, ::step], strided["res5"], rtol=1e-4, atol=1e-5)
    assert torch.equal(back["res5"], strided["res5"])
    assert all(torch.equal(value, before[key]) for key, value in tower.state_dict().items())


def test_unknown_stride(tower):
    with pytest.raises(InputError, match="use 32, 16 or 8"):
        set_output_stride(tower, 4)


def test_dense_embedding_is_the_value_path(tower):
    """Attention over equal tokens returns their value, so there the pool gives the dense result."""
    res5 = torch.rand(2, 768, 1, 1)
    with torch.no_grad():
        tower.attnpool.positional_embedding.zero_()
        torch.testing.assert_close(
            dense_embedding(tower, res5)[..., 0, 0],
            tower.attnpool(res5.expand(-1, -1, 3, 3)),
            rtol=1e-4,
            atol=1e-5,
        )
    assert dense_embedding(tower, torch.rand(1, 768, 4, 5)).shape == (1, 128, 4, 5)
    assert F.normalize(dense_embedding(tower, res5), dim=1).norm(dim=1).allclose(torch.ones(2, 1, 1))
