"""Which runtime is chosen, and what users are told."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from ovstrans.clip.backbone import encode_stages
from ovstrans.errors import InputError
from ovstrans.runtime import library
from ovstrans.runtime.choose import attach_runtime, choose_runtime, describe_runtime
from tests.runtime.networks import make_encoder, relative_error


def test_auto_is_sparse_where_most_weights_are_zero() -> None:
    assert choose_runtime(make_encoder(density=0.1)).runtime == "sparse"
    assert choose_runtime(make_encoder(density=0.9)).runtime == "dense"
    assert choose_runtime(make_encoder(density=0.9), "sparse").runtime == "sparse"
    assert choose_runtime(make_encoder(density=0.1), "dense").runtime == "dense"


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(InputError, match="`runtime=fast`: unknown; use auto, sparse or dense"):
        choose_runtime(make_encoder(), "fast")


def test_without_kernels_a_pruned_model_runs_dense_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    for runtime in ("auto", "sparse"):
        choice = choose_runtime(make_encoder(), runtime)
        assert (choice.runtime, choice.notable) == ("dense", True)
        assert "not built" in choice.reason
    assert "not built" in describe_runtime(make_encoder().state_dict())


def test_other_devices_and_encoders_run_dense() -> None:
    choice = choose_runtime(make_encoder(), "sparse", device="meta")
    assert (choice.runtime, choice.notable) == ("dense", True)
    encoder = make_encoder()
    encoder.layer1[0].conv2.stride = (2, 2)
    assert "layer1.0.conv2" in choose_runtime(encoder, "sparse").reason
    assert not choose_runtime(encoder, "auto").notable


def test_words_for_inspect() -> None:
    assert describe_runtime(make_encoder().state_dict()).startswith("sparse, ")
    assert describe_runtime(make_encoder(density=0.9).state_dict()).startswith("dense: ")


def test_an_attached_runtime_runs_the_stages() -> None:
    encoder = make_encoder()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = encode_stages(encoder, images)
    choice = choose_runtime(encoder)
    attach_runtime(encoder, choice)
    for conv in ("conv2", "layer1.0.conv1"):
        torch.nn.init.zeros_(encoder.get_submodule(conv).weight)  # not seen: the weights are packed
    with torch.inference_mode():
        found = encode_stages(encoder, images, ("res2", "res5"))
    assert list(found) == ["res2", "res5"]
    assert all(relative_error(found[name], expected[name]) < 1e-5 for name in found)
    copied = copy.deepcopy(encoder)
    with torch.inference_mode():
        assert torch.equal(encode_stages(copied, images)["res5"], found["res5"])


def test_what_the_kernels_do_not_take_runs_dense() -> None:
    encoder = make_encoder()
    attach_runtime(encoder, choose_runtime(encoder))
    runner = encoder.stage_runner
    images = torch.randn(1, 3, 64, 64)
    assert not runner.accepts(images)  # gradients are on
    assert encode_stages(encoder, images.requires_grad_())["res5"].requires_grad
    with torch.inference_mode():
        assert runner.accepts(images)
        assert not runner.accepts(images.double())
        assert not runner.accepts(images[..., :31])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not runner.accepts(images)
    attach_runtime(encoder, choose_runtime(encoder, "dense"))
    assert encoder.stage_runner is None
