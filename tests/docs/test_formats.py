"""The Python on the page of file formats reads real files, without ovstrans, as ovstrans reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ovstrans.checkpoints.file import TEXT_ENCODER, load_checkpoint, save_checkpoint
from ovstrans.clip.load import random_clip
from ovstrans.clip.weights import weights_sha256
from ovstrans.masks.file import load_mask, save_mask
from ovstrans.spectrum.file import load_plan
from tests.checkpoints.dummies import make_checkpoint
from tests.docs.pages import DOCS, ROOT, blocks
from tests.masks.dummies import make_mask

PAGE = DOCS / "reference" / "formats.md"
OLD = ROOT / "tests" / "data"
LONGEST = 20
"""Lines of code that reading a file may take."""


def function(name: str) -> Callable[..., Any]:
    """Run the block with this title and return the function that it defines."""
    (block,) = (block for block in blocks(PAGE, "python") if block.title == name)
    assert "import ovstrans" not in block.text and "from ovstrans" not in block.text
    namespace: dict[str, Any] = {}
    exec(compile(block.text, f"{PAGE}:{name}", "exec"), namespace)
    return namespace[name]


def test_reading_a_file_takes_twenty_lines() -> None:
    found = blocks(PAGE, "python")
    titles = {"read_mask", "read_checkpoint", "read_plan", "content_sha256", "weights_sha256"}
    assert titles == {block.title for block in found}
    for block in found:
        assert len([line for line in block.text.splitlines() if line.strip()]) <= LONGEST, block.title


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_masks_read_as_documented(tmp_path: Path, density: float) -> None:
    mask = make_mask(density)
    save_mask(tmp_path / "mask.safetensors", mask)
    found = function("read_mask")(tmp_path / "mask.safetensors")
    assert found.keys() == mask.tensors.keys()
    for name, kept in found.items():
        assert kept.dtype == bool and np.array_equal(kept, mask.tensors[name].numpy())


@pytest.mark.parametrize("masked", [False, True])
def test_checkpoints_read_as_documented(tmp_path: Path, masked: bool) -> None:
    checkpoint = make_checkpoint(masked=masked)
    save_checkpoint(tmp_path / "checkpoint.safetensors", checkpoint)
    tensors, metadata = function("read_checkpoint")(tmp_path / "checkpoint.safetensors")
    for name, value in checkpoint.state.items():
        assert np.array_equal(tensors[name], value.numpy()), name
    assert np.array_equal(tensors["text.embeddings"], checkpoint.text_embeddings.numpy())
    assert np.array_equal(tensors["text.owner"], checkpoint.text_owner.numpy())
    assert any(name.startswith(TEXT_ENCODER) for name in tensors)
    assert metadata["framework"] == "dummy"


def test_files_of_version_0_1_read_as_documented() -> None:
    kept = function("read_mask")(OLD / "mask.safetensors")
    mask = load_mask(OLD / "mask.safetensors")
    assert all(np.array_equal(kept[name], bits.numpy()) for name, bits in mask.tensors.items())
    tensors, _ = function("read_checkpoint")(OLD / "checkpoint.safetensors")
    state = load_checkpoint(OLD / "checkpoint.safetensors").state
    assert all(np.array_equal(tensors[name], value.numpy()) for name, value in state.items())
    assert function("read_plan")(OLD / "alpha.json") == list(load_plan(OLD / "alpha.json").frozen)


def test_hashes_are_computed_as_documented() -> None:
    state = random_clip().visual.state_dict()
    arrays = {name: value.numpy() for name, value in state.items()}
    found = function("weights_sha256")
    assert found(arrays) == weights_sha256(state)
    state["conv1.weight"] = state["conv1.weight"] + torch.finfo(torch.float32).eps
    assert found(arrays) != weights_sha256(state)


def test_the_content_is_hashed_as_documented(tmp_path: Path) -> None:
    save_mask(tmp_path / "mask.safetensors", make_mask())
    save_checkpoint(tmp_path / "checkpoint.safetensors", make_checkpoint())
    for name in ("mask.safetensors", "checkpoint.safetensors"):
        with safe_open(tmp_path / name, framework="np") as file:
            recorded = file.metadata()["content_sha256"]
        assert function("content_sha256")(tmp_path / name) == recorded
