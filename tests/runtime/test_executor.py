"""The executor against torch, stage by stage."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn

from ovstrans.clip.backbone import STAGES, encode_stages, set_output_stride
from ovstrans.clip.load import load_clip
from ovstrans.runtime.executor import SparseBackbone
from ovstrans.runtime.library import Kernels, find_kernels
from ovstrans.runtime.network import UnsupportedError, pack_network
from tests.runtime.networks import make_encoder, relative_error

LIMIT = 1e-5


def make_backbone(encoder: nn.Module, width: int | None = None) -> SparseBackbone:
    """Pack an encoder for the kernels of a width."""
    kernels = find_kernels(width)
    assert kernels is not None
    return SparseBackbone(pack_network(encoder), kernels)


def check(encoder: nn.Module, images: torch.Tensor, backbone: SparseBackbone | None = None) -> None:
    """Compare every stage with torch."""
    backbone = make_backbone(encoder) if backbone is None else backbone
    with torch.inference_mode():
        expected = encode_stages(encoder, images)
    found = backbone(images)
    assert list(found) == list(STAGES)
    for name in STAGES:
        assert relative_error(found[name], expected[name]) < LIMIT, name


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (33, 47), (100, 131), (70, 250), (32, 32), (63, 65)])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_every_stage_at_any_size_and_output_stride(size: tuple[int, int], stride: int) -> None:
    if min(size) < 64 and stride < 32:
        size = (size[0] + 40, size[1] + 40)
    check(make_encoder(stride=stride), torch.randn(2, 3, *size))


def test_every_width(kernels: Kernels) -> None:
    encoder = make_encoder(width=12)
    check(encoder, torch.randn(1, 3, 90, 150), SparseBackbone(pack_network(encoder), kernels))


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 0.8, 1.0])
def test_every_density(density: float) -> None:
    check(make_encoder(density=density), torch.randn(1, 3, 64, 96))


def test_layers_that_are_zero() -> None:
    encoder = make_encoder()
    for name in ("layer1.0.conv2", "layer2.0.downsample.0", "layer3.1.conv1", "layer4.0.conv3", "conv2"):
        nn.init.zeros_(encoder.get_submodule(name).weight)
    check(encoder, torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches_and_threads(batch: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(make_encoder(), torch.randn(batch, 3, 80, 112))
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "width", "size"),
    [((3, 4, 6, 3), 64, (160, 224)), ((3, 4, 23, 3), 64, (64, 96)), ((4, 6, 10, 6), 80, (96, 64))],
    ids=["RN50", "RN101", "RN50x4"],
)
def test_published_architectures(layers: tuple[int, ...], width: int, size: tuple[int, int]) -> None:
    check(make_encoder(layers, width, density=0.1), torch.randn(1, 3, *size))


def test_the_bundled_model() -> None:
    encoder = load_clip().visual.eval()
    check(encoder, torch.randn(1, 3, 96, 96))
    deep = copy.deepcopy(encoder)
    set_output_stride(deep, 16)
    check(deep, torch.randn(1, 3, 97, 160))


def test_only_the_stages_that_are_asked_for() -> None:
    backbone, images = make_backbone(make_encoder()), torch.randn(1, 3, 64, 64)
    every = backbone(images)
    for names in (("res5",), ("res3", "stem"), ("res2", "res3", "res4", "res5"), ()):
        some = backbone(images, names)
        assert set(some) == set(names)
        assert all(torch.equal(some[name], every[name]) for name in names)


def test_sizes_one_after_another_and_strided_images() -> None:
    encoder = make_encoder()
    backbone = make_backbone(encoder)
    for size in ((64, 64), (96, 64), (64, 64), (128, 80), (64, 64)):
        check(encoder, torch.randn(1, 3, *size), backbone)
    check(encoder, torch.randn(1, 64, 80, 3).permute(0, 3, 1, 2), backbone)


def test_callers_in_several_threads() -> None:
    encoder = make_encoder()
    backbones = [make_backbone(encoder) for _ in range(2)]
    images = torch.randn(1, 3, 96, 96)
    expected = backbones[0](images)["res5"]
    wrong = []

    def call(backbone: SparseBackbone) -> None:
        for _ in range(20):
            if not torch.equal(backbone(images)["res5"], expected):
                wrong.append(backbone)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads = [threading.Thread(target=call, args=(one,)) for one in (*backbones, backbones[0])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert not wrong


def test_packed_weights_are_small() -> None:
    encoder = make_encoder((3, 4, 6, 3), 32, density=0.1)
    network = pack_network(encoder)
    dense = sum(conv.weight.numel() * 4 for conv in encoder.modules() if isinstance(conv, nn.Conv2d))
    assert 0.1 < network.density < 0.11
    assert network.nbytes < 0.2 * dense


def test_images_that_padding_would_change_do_not_leak() -> None:
    """A NaN in one image of a batch stays in it."""
    images = torch.randn(2, 3, 70, 70)
    expected = make_backbone(make_encoder())(images)["res5"]
    images[1] = torch.nan
    found = make_backbone(make_encoder())(images)["res5"]
    assert torch.equal(found[0], expected[0])
    assert bool(found[1].isnan().all())


class TestUnsupported:
    """What the kernels do not compute is refused with a reason."""

    def test_other_encoders(self) -> None:
        with pytest.raises(UnsupportedError, match="CLIP ResNets"):
            pack_network(nn.Linear(3, 3))

    def test_a_replaced_layer(self) -> None:
        encoder = make_encoder()
        encoder.layer2[1].conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        with pytest.raises(UnsupportedError, match=r"layer2\.1\.conv2"):
            pack_network(encoder)

    def test_a_norm_without_statistics(self) -> None:
        encoder = make_encoder()
        encoder.layer1[0].bn1 = nn.GroupNorm(1, 8)
        with pytest.raises(UnsupportedError, match=r"layer1\.0\.conv1"):
            pack_network(encoder)


def test_the_pixels_of_padding_do_not_matter() -> None:
    """Buffers that held other images before give the same result."""
    backbone = make_backbone(make_encoder())
    images = torch.randn(1, 3, 75, 111)
    first = backbone(images)["res5"]
    backbone(torch.full_like(images, np.inf))
    assert torch.equal(backbone(images)["res5"], first)
