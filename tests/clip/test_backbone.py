"""Stages, dense embeddings, and the exactness of dilation."""

import pytest
import torch
from torch.nn import functional as F

from ovstrans.clip.backbone import encode_dense, encode_stages, set_output_stride
from ovstrans.clip.load import random_clip
from ovstrans.errors import InputError


@pytest.fixture()
def encoder():
    encoder = random_clip(seed=1).visual
    for name, parameter in encoder.named_parameters():
        if name.endswith("bn3.weight"):  # zero at initialisation, which would silence every block
            torch.nn.init.constant_(parameter, 0.7)
    return encoder


def test_stages_are_the_encoders_own(encoder):
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        features = encode_stages(encoder, images)
        assert torch.equal(encoder.attnpool(features["res5"]), encoder(images))
    assert [tuple(f.shape) for f in features.values()] == [
        (2, 24, 24, 24), (2, 96, 24, 24), (2, 192, 12, 12), (2, 384, 6, 6), (2, 768, 3, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("size", [(96, 128), (64, 160)])
def test_dilation_keeps_every_shared_value(encoder, stride, size):
    images = torch.rand(1, 3, *size)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with torch.no_grad():
        strided = encode_stages(encoder, images)
        set_output_stride(encoder, stride)
        dense = encode_stages(encoder, images)
        set_output_stride(encoder, 32)
        back = encode_stages(encoder, images)
    step = 32 // stride
    assert dense["res5"].shape[-2:] == (size[0] // stride, size[1] // stride)
    torch.testing.assert_close(dense["res5"][..., ::step, ::step], strided["res5"], rtol=1e-4, atol=1e-5)
    assert torch.equal(back["res5"], strided["res5"])
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_unknown_stride(encoder):
    with pytest.raises(InputError, match="use 32, 16 or 8"):
        set_output_stride(encoder, 4)


def test_encode_dense_is_the_value_path(encoder):
    """Attention over equal tokens returns their value, so there the pool gives the dense result."""
    res5 = torch.rand(2, 768, 1, 1)
    with torch.no_grad():
        encoder.attnpool.positional_embedding.zero_()
        torch.testing.assert_close(
            encode_dense(encoder, res5)[..., 0, 0],
            encoder.attnpool(res5.expand(-1, -1, 3, 3)),
            rtol=1e-4,
            atol=1e-5,
        )
    assert encode_dense(encoder, torch.rand(1, 768, 4, 5)).shape == (1, 128, 4, 5)
    assert F.normalize(encode_dense(encoder, res5), dim=1).norm(dim=1).allclose(torch.ones(2, 1, 1))
