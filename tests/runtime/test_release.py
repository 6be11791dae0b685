"""The dense weights of packed layers are let go, and come back to the bit to whoever looks at them."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ovstrans.clip.backbone import encode_stages
from ovstrans.runtime.choose import attach_runtime, choose_runtime
from ovstrans.runtime.release import LazyParameters, release_weights
from ovstrans.segmenter.segmenter import Segmenter
from tests.runtime.networks import make_encoder
from tests.runtime.test_linear import make_vit
from tests.segmenter.case import deeplab_checkpoint

CODE = """
import ctypes, gc, time, torch
from open_clip.modified_resnet import ModifiedResNet
from ovstrans.clip.backbone import drop_head
from ovstrans.clip.layers import scope_layers
from ovstrans.runtime.choose import attach_runtime, choose_runtime
from ovstrans.runtime.release import release_weights
ctypes.CDLL(None).mallopt(-3, 1 << 16)             # M_MMAP_THRESHOLD: what is freed goes back at once
def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) * 1024
def make(layers, density):
    encoder = ModifiedResNet(layers, 64, 4, 224, 64).eval()
    drop_head(encoder)
    for weight in scope_layers(encoder).values():
        weight.data *= torch.rand_like(weight) < density
    return encoder
small = make([1, 1, 1, 1], 0.1)
attach_runtime(small, choose_runtime(small, "sparse"))  # loads what is imported late
release_weights(small, ["layer1.0.conv1"])
encoder = make([3, 4, 6, 3], 0.1)
dense = resident()
start = time.process_time()
choice = choose_runtime(encoder, "sparse")
attach_runtime(encoder, choice)
seconds = time.process_time() - start
saved = release_weights(encoder, [conv.name for conv in choice.backbone.convs])
print(dense, resident(), saved, choice.backbone.network.nbytes, seconds)
"""


def released(encoder: nn.Module) -> list[LazyParameters]:
    found = [module._parameters for module in encoder.modules()]
    return [one for one in found if isinstance(one, LazyParameters) and one.nbytes]


def make_released(make: Callable[..., nn.Module] = make_encoder) -> tuple[nn.Module, nn.Module]:
    before = make(density=0.1)
    encoder = copy.deepcopy(before)
    choice = choose_runtime(encoder)
    assert choice.backbone is not None
    attach_runtime(encoder, choice)
    assert release_weights(encoder, [conv.name for conv in choice.backbone.convs]) > 0
    assert released(encoder)
    return before, encoder


def same(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_less_memory_is_resident_than_for_the_dense_model() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    dense, packed, saved, nbytes, seconds = map(float, done.stdout.split())
    assert packed < dense - 40e6, (dense, packed)  # 94 MB of weights became 12 MB of values and 15 MB packed
    assert saved > 80e6 and nbytes < 20e6 and seconds < 5


LOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "state_dict": lambda encoder: encoder.state_dict(),
    "parameters": lambda encoder: list(encoder.parameters()),
    "copy": lambda encoder: copy.deepcopy(encoder),
    "type": lambda encoder: encoder.double().float(),
    "gradients off": lambda encoder: encoder.requires_grad_(False),
}


@pytest.mark.parametrize("look", list(LOOKS))
@pytest.mark.parametrize("make", [make_encoder, make_vit])
def test_every_look_gives_the_weights_of_before(look: str, make: Callable[..., nn.Module]) -> None:
    before, encoder = make_released(make)
    found = LOOKS[look](encoder)
    same(found if isinstance(found, nn.Module) else encoder, before)


def test_weights_can_be_loaded_trained_and_run_dense() -> None:
    before, encoder = make_released()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        encode_stages(encoder, images)
    assert released(encoder)  # running packed looks at none
    found = encode_stages(encoder, images)["res5"]  # gradients are on: torch runs it
    assert torch.equal(found, encode_stages(before, images)["res5"])
    found.sum().backward()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    weight = encoder.layer1[0].conv2.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(encoder.layer1[0].conv2.weight, weight)
    _, encoder = make_released()
    encoder.load_state_dict(make_encoder(seed=5).state_dict())
    same(encoder, make_encoder(seed=5))


def test_looking_in_inference_mode_leaves_trainable_weights() -> None:
    before, encoder = make_released()
    with torch.inference_mode():
        weight = encoder.layer1[0].conv2.weight
    assert not weight.is_inference() and weight.requires_grad and torch.equal(weight, before.layer1[0].conv2.weight)


def test_a_segmenter_lets_go_and_its_state_is_that_of_the_checkpoint() -> None:
    checkpoint = deeplab_checkpoint()
    segmenter = Segmenter(checkpoint, device="cpu", runtime="sparse")
    assert segmenter.runtime.runtime == "sparse" and released(segmenter.framework.backbone)
    state = segmenter.framework.state_dict()
    assert all(torch.equal(state[key], value) for key, value in checkpoint.state.items())
    assert not released(Segmenter(checkpoint, device="cpu", runtime="dense").framework.backbone)
