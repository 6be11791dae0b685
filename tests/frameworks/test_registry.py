"""Frameworks by name, and back from a checkpoint."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ovstrans.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from ovstrans.clip.load import Clip
from ovstrans.clip.text import TextClassifier
from ovstrans.errors import InputError, MismatchError
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Batch, Framework


def make(clip: Clip, text: TextClassifier, **options: Any) -> Framework:
    return registry.build(
        "deeplabv3", encoder=clip.visual, mean=clip.mean, std=clip.std, text=text, options={"width": 8, **options}
    )


def checkpoint_of(clip: Clip, framework: Framework) -> Checkpoint:
    return Checkpoint(
        framework=framework.name,
        options=framework.options,
        state=framework.state_dict(),
        mask=None,
        text_embeddings=framework.text.embeddings,
        text_owner=framework.text.owner,
        vocabulary=framework.text.vocabulary,
        clip=clip.describe(),
        recipe={},
        provenance={},
        text_encoder=None,
    )


def test_names_and_defaults() -> None:
    assert registry.list_frameworks() == ["deeplabv3", "deop", "fcclip", "gkc"]
    assert registry.default_options("deeplabv3")["output_stride"] == 16
    with pytest.raises(
        InputError, match=r"'deeplabv2': unknown; did you mean 'deeplabv3'\? known are deeplabv3, deop, fcclip"
    ):
        registry.default_options("deeplabv2")


@pytest.mark.parametrize("name", registry.list_frameworks())
def test_every_name_is_a_framework(name: str) -> None:
    kind = registry.framework_class(name)
    assert issubclass(kind, Framework) and kind.name == name
    assert registry.default_options(name) == dict(kind.defaults)


@pytest.mark.parametrize("name", registry.list_frameworks())
def test_every_option_is_documented(name: str) -> None:
    """In the section Options of the class or of a base, one paragraph each."""
    documented: set[str] = set()
    for cls in registry.framework_class(name).__mro__:
        _, _, options = inspect.cleandoc(cls.__doc__ or "").partition("\nOptions")
        documented |= set(re.findall(r"(?m)^    (\w+): \S", options))
    assert documented == set(registry.default_options(name))


def test_frameworks_are_imported_when_they_are_asked_for() -> None:
    """The command line and DeepLab do without Mask2Former's modules."""
    code = """
import sys
from ovstrans.frameworks import registry
registry.list_frameworks(), registry.default_options("deeplabv3")
module = "transformers.models.mask2former.modeling_mask2former"
assert module not in sys.modules, "too early"
registry.default_options("fcclip")
assert module in sys.modules, "this test tests nothing"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", ["none", "sum", "ensemble"])
def test_restore_gives_the_same_answers(clip: Clip, text: TextClassifier, tmp_path: Path, path: str) -> None:
    torch.manual_seed(0)
    framework = make(clip, text, clip_path=path, output_stride=8).train()
    framework(Batch(torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long)))  # moves BatchNorms
    framework.eval()
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, checkpoint_of(clip, framework))
    state = torch.get_rng_state()
    again = registry.restore(load_checkpoint(file))
    assert torch.equal(torch.get_rng_state(), state)
    assert not again.training and not any(value.is_meta for value in again.state_dict().values())
    images = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        assert torch.equal(again.segment(images), framework.segment(images))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in framework.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_restore_does_not_share_memory_and_is_float32(clip: Clip, text: TextClassifier, dtype: torch.dtype) -> None:
    checkpoint = checkpoint_of(clip, make(clip, text))
    checkpoint.state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in checkpoint.state.items()}
    before = checkpoint.state["backbone.conv1.weight"].clone()
    framework = registry.restore(checkpoint)
    with torch.no_grad():
        for parameter in framework.parameters():
            assert parameter.dtype is torch.float32
            parameter.zero_()
    assert torch.equal(checkpoint.state["backbone.conv1.weight"], before)


def test_restore_names_what_does_not_fit(clip: Clip, text: TextClassifier) -> None:
    good = checkpoint_of(clip, make(clip, text))
    lacking = {k: v for k, v in good.state.items() if k != "aspp.project.0.weight"}
    with pytest.raises(MismatchError, match=r"lacks 1 entry \(aspp\.project\.0\.weight\)"):
        registry.restore(replace(good, state=lacking))
    with pytest.raises(MismatchError, match=r"has 1 entry \(strange\) that the model does not have"):
        registry.restore(replace(good, state={**good.state, "strange": torch.zeros(1)}))
    with pytest.raises(MismatchError, match=r"aspp\.convs\.0\.0\.weight has shape \[8, "):
        registry.restore(replace(good, options={**good.options, "width": 12}))
    with pytest.raises(InputError, match=r"framework 'gone': unknown"):
        registry.restore(replace(good, framework="gone"))
    with pytest.raises(InputError, match=r"no option 'wide'"):
        registry.restore(replace(good, options={"wide": 3}))
