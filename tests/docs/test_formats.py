"""The Python on the page of file formats reads real files, without ovstrans, as ovstrans reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ovstrans.checkpoints.file import TEXT_ENCODER, load_checkpoint, save_checkpoint
from ovstrans.checkpoints.precision import VALUES
from ovstrans.clip.load import random_clip
from ovstrans.clip.weights import weights_sha256
from ovstrans.masks.file import load_mask, save_mask
from ovstrans.spectrum.file import load_plan
from tests.checkpoints.dummies import make_checkpoint
from tests.checkpoints.test_compress import large_checkpoint
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


def bits_of(value: torch.Tensor) -> torch.Tensor:
    return value.view(torch.uint16) if value.dtype is torch.bfloat16 else value


def test_reading_a_file_takes_twenty_lines() -> None:
    found = blocks(PAGE, "python")
    titles = {"read_mask", "read_checkpoint", "unpack", "unpack_int8", "read_plan", "content_sha256", "weights_sha256"}
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


@pytest.mark.parametrize("values", list(VALUES))
@pytest.mark.parametrize("density", [0.02, 0.1, 0.7])
def test_compressed_checkpoints_read_as_documented(tmp_path: Path, values: str, density: float) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint = large_checkpoint(density, values)
    save_checkpoint(path, checkpoint, compress=True)
    with safe_open(path, framework="pt") as file:  # numpy has no bfloat16
        metadata = file.metadata()
        tensors = {name: bits_of(file.get_tensor(name)).numpy() for name in file.keys()}  # noqa: SIM118
    coding = json.loads(metadata["coding"])
    assert coding["packed"] and all(name + ".packed" in tensors for name in coding["packed"])
    function("unpack")(tensors, coding["packed"])
    dense = dict(tensors)
    for name, shape in json.loads(metadata["shapes"]).items():
        found, bits = dense.pop(f"{name}.values"), dense.pop(f"{name}.bitmask")
        dense[name] = np.zeros(shape, found.dtype)
        dense[name][np.unpackbits(bits, count=dense[name].size).astype(bool).reshape(shape)] = found
    function("unpack_int8")(dense, coding.get("int8", {}))
    for name, value in load_checkpoint(path).state.items():
        assert np.array_equal(dense[name], bits_of(value).numpy()), name


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
