"""Frameworks on ViTs: the pyramid of the last map, GKC and DeepLabV3 with it, and what is refused."""

import pytest
import torch

from ovstrans.clip.load import create_image_encoder, random_clip
from ovstrans.clip.pooling import encode_masks
from ovstrans.clip.vit import embed_tokens
from ovstrans.errors import InputError
from ovstrans.frameworks import registry
from ovstrans.frameworks.clip_head import ClipHead
from ovstrans.frameworks.pyramid import LAST, LEVELS, FeaturePyramid, encode_levels, make_pyramid
from ovstrans.vocabulary.vocabulary import Vocabulary

SMALL = {"queries": 4, "width": 32, "heads": 2, "encoder_layers": 1, "encoder_ffn": 32}
GKC = {**SMALL, "decoder_layers": 1, "decoder_ffn": 32, "points": 16, "clip_path": "sum", "distill": "none"}


def _vocabulary():
    return Vocabulary("three", (("a",), ("b",), ("c",)))


@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_levels_have_the_strides_of_a_resnet(patch):
    pyramid = FeaturePyramid(64, patch)
    size = (96, 160)
    last = torch.randn(2, 64, size[0] // patch, size[1] // patch)
    levels = pyramid(last, size)
    assert levels[LAST] is last and set(levels) == {*LEVELS, LAST}
    for name, stride in LEVELS.items():
        assert levels[name].shape == (2, pyramid.channels[name], size[0] // stride, size[1] // stride)
    assert torch.equal(levels[next(n for n, s in LEVELS.items() if s == pyramid.base)], last) or patch == 14


def test_other_encoders_have_stages_and_no_pyramid():
    encoder = random_clip("RN-mini").visual
    assert make_pyramid(encoder) is None
    assert set(encode_levels(encoder, torch.randn(1, 3, 64, 64), None)) == set(LEVELS)


@pytest.mark.parametrize(("name", "options"), [("gkc", GKC), ("deeplabv3", {"width": 16, "clip_path": "sum"})])
def test_frameworks_train_on_a_vit(name, options):
    """Sizes of any kind, gradients in blocks and pyramid, none in CLIP's own head."""
    framework = registry.build_on_meta(name, "ViT-mini", options=options, vocabulary=_vocabulary(), device="cpu")
    images = torch.rand(2, 3, 70, 100)
    assert framework.eval().segment(images).shape == (2, 3, 70, 100)
    outputs = framework.train().training_outputs(images)
    sum(each.square().sum() for each in outputs).backward()
    named = dict(framework.named_parameters())
    assert named["backbone.transformer.resblocks.0.attn.in_proj_weight"].grad.abs().sum() > 0
    pyramid = [p for key, p in named.items() if key.startswith("pyramid.")]
    assert pyramid and "pyramid" in framework.components()
    assert named["clip_path.proj"].grad is None and "backbone.proj" not in named
    if name == "gkc":
        assert all(parameter.grad is not None for parameter in pyramid)


@pytest.mark.parametrize("option", ["output_stride", "decoder"])
def test_deeplab_takes_the_level_of_its_stride(option):
    options = {"width": 16, **({"output_stride": 8} if option == "output_stride" else {"decoder": "plus"})}
    framework = registry.build_on_meta("deeplabv3", "ViT-mini", options=options, vocabulary=_vocabulary(), device="cpu")
    embedding, last = framework.eval().features(torch.rand(1, 3, 64, 96))
    stride = 8 if option == "output_stride" else 4
    assert embedding.shape[-2:] == (64 // stride, 96 // stride) and last.shape[-2:] == (8, 12)


def test_a_mask_of_everything_embeds_the_mean_of_the_tokens():
    encoder = random_clip("ViT-mini").visual
    head, last = ClipHead(encoder), torch.randn(2, 128, 4, 6)
    masks = torch.full((2, 2, 8, 12), 1.0)
    masks[:, 1] = -1.0
    found = encode_masks(head, last, masks)
    expected = embed_tokens(head, last.mean((2, 3))[:, None])[:, 0]
    torch.testing.assert_close(found[:, 0], expected)
    torch.testing.assert_close(found[:, 1], embed_tokens(head, torch.zeros(2, 1, 128))[:, 0])  # an empty mask
    assert encoder.ln_post is None and encoder.proj is None


def test_fcclip_refuses_a_vit_and_timms_vits_have_no_dense_head():
    with pytest.raises(InputError, match="fcclip: needs a ResNet or ConvNeXt"):
        registry.build_on_meta("fcclip", "ViT-mini", options={}, vocabulary=_vocabulary())
    with torch.device("meta"), pytest.raises(InputError, match="of ViTs, only open_clip's own"):
        ClipHead(create_image_encoder("ViT-B-16-SigLIP"))
