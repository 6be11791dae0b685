"""A trained DeOP in every format that leaves ovstrans, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ovstrans.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from ovstrans.clip.load import random_clip
from ovstrans.clip.prompts import embed_prompted
from ovstrans.clip.text import TextClassifier
from ovstrans.clip.weights import VISUAL, read_weight_file
from ovstrans.frameworks import registry
from ovstrans.interop.export import export
from ovstrans.interop.import_framework import embed_classes, import_checkpoint
from ovstrans.masks.mask import Mask
from ovstrans.segmenter.segmenter import Segmenter
from tests.frameworks.test_deop import NAMES, TINY

OPTIONS = {**TINY, "position_layers": [0], "prompt_width": 64, "prompt_length": 2}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """With random weights, under a mask of fused attention and a linear layer."""
    clip = random_clip("ViT-mini", 3)
    text = TextClassifier(F.normalize(torch.randn(len(NAMES), 128), dim=1), torch.arange(len(NAMES)), NAMES)
    framework = registry.build("deop", encoder=clip.visual, mean=clip.mean, std=clip.std, text=text, options=OPTIONS)
    names = ("transformer.resblocks.5.attn.in_proj_weight", "transformer.resblocks.0.mlp.c_fc.weight")
    own = clip.visual.state_dict()
    mask = Mask({name: torch.rand(own[name].shape) > 0.8 for name in names}, model="ViT-mini", method="random")
    mask.apply(framework)
    return Checkpoint(
        framework="deop",
        options=framework.options,
        state=framework.state_dict(),
        mask=mask,
        text_embeddings=text.embeddings,
        text_owner=text.owner,
        vocabulary=NAMES,
        clip=clip.describe(),
        text_encoder={key: value for key, value in clip.model.state_dict().items() if not key.startswith(VISUAL)},
    )


def test_a_checkpoint_is_self_contained(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", checkpoint)
    again = load_checkpoint(tmp_path / "a.safetensors")
    assert again.mask == checkpoint.mask
    images = torch.rand(1, 3, 64, 96)
    expected, found = registry.restore(checkpoint), registry.restore(again)
    assert torch.equal(found.segment(images), expected.segment(images))
    segmenter = Segmenter.load(tmp_path / "a.safetensors", device="cpu")
    classes = segmenter.classifier(NAMES.subset([2, 0]))
    prompted = registry.framework_class("deop").embed_vocabulary(
        registry.text_clip(again), NAMES.subset([2, 0]), again.state
    )
    assert torch.equal(classes.embeddings, prompted.embeddings), "other classes stand behind the learned prompt too"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_export_and_import_is_the_same_to_the_bit(checkpoint: Checkpoint, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"dense{suffix}"
    export(checkpoint, path, format="dense")
    again, imported = import_checkpoint(read_weight_file(path), mask=checkpoint.mask)
    assert (imported.missing, imported.unexpected) == ((), ())
    assert again.state.keys() == checkpoint.state.keys() and again.options == checkpoint.options
    assert all(torch.equal(again.state[key], value) for key, value in checkpoint.state.items())
    again = embed_classes(replace(again, text_encoder=checkpoint.text_encoder))
    expected = embed_prompted(registry.text_clip(checkpoint), NAMES, checkpoint.state["prompt.vectors"])
    assert torch.equal(again.text_embeddings, expected.embeddings), "names stand behind the learned prompt"
    images = torch.rand(1, 3, 64, 64)
    same = replace(again, text_embeddings=checkpoint.text_embeddings)
    assert torch.equal(registry.restore(same).segment(images), registry.restore(checkpoint).segment(images))
