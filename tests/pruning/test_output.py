from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ovstrans.clip.load import Clip
from ovstrans.clip.weights import read_state_dict
from ovstrans.errors import InputError
from ovstrans.files import write_tensors
from ovstrans.pruning import output
from ovstrans.pruning.prune import prune
from tests.pruning.conftest import small_settings


def test_mask_and_weights_agree_read_by_numpy_alone(clip: Clip, tmp_path: Path) -> None:
    result = prune(clip, small_settings("prune.steps=0"))
    out = tmp_path / "new" / "mask.safetensors"
    written = output.save_result(out, result)
    assert [path.name for path in written] == ["mask.safetensors", "mask.weights.safetensors", "mask.png"]
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(path.name for path in written)
    with safe_open(written[1], framework="np") as weights, safe_open(out, framework="np") as bits:
        metadata = weights.metadata()
        assert metadata["format"] == "ovstrans.weights/1"
        assert metadata["method"] == "imp" and float(metadata["sparsity"]) == result.mask.sparsity
        assert json.loads(metadata["recipe"])["total_steps"] == 0
        for key, shape in json.loads(bits.metadata()["shapes"]).items():
            kept = np.unpackbits(bits.get_tensor(key), count=int(np.prod(shape))).astype(bool).reshape(shape)
            dense = clip.visual.state_dict()[key].numpy()
            assert np.array_equal(weights.get_tensor(key), np.where(kept, dense, 0))


def test_weights_read_back(clip: Clip, tmp_path: Path) -> None:
    result = prune(clip, small_settings("prune.steps=0"))
    path = tmp_path / "w.safetensors"
    output.save_weights(path, result.encoder, result.mask, "m.safetensors")
    state, metadata = output.load_weights(path)
    assert metadata["mask"] == "m.safetensors"
    wanted = result.encoder.state_dict()
    assert state.keys() == wanted.keys() == read_state_dict(path).keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    write_tensors(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(InputError, match=r"ovstrans\.weights/1"):
        output.load_weights(path)


def test_paths() -> None:
    assert output.state_path("a/mask.safetensors") == Path("a/mask.resume.pt")
    assert output.plot_path("a/mask.safetensors") == Path("a/mask.png")


@pytest.mark.parametrize("name", ["mask.safetensors", "mask.weights.safetensors", "mask.png"])
def test_nothing_is_replaced_unasked(tmp_path: Path, name: str) -> None:
    out = tmp_path / "mask.safetensors"
    assert output.check_outputs(out, plot=True, force=False, resume=False) == out
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=name):
        output.check_outputs(out, plot=True, force=False, resume=True)
    output.check_outputs(out, plot=True, force=True, resume=False)
    if name == "mask.png":
        output.check_outputs(out, plot=False, force=False, resume=False)


def test_a_state_needs_a_decision(tmp_path: Path) -> None:
    out = tmp_path / "mask.safetensors"
    output.state_path(out).write_text("state")
    with pytest.raises(InputError, match="--resume"):
        output.check_outputs(out, plot=True, force=False, resume=False)
    output.check_outputs(out, plot=True, force=False, resume=True)
    output.check_outputs(out, plot=True, force=True, resume=False)


def test_plot_shows_densities(clip: Clip, tmp_path: Path) -> None:
    from ovstrans.pruning.plot import plot_densities

    result = prune(clip, small_settings("prune.steps=0"))
    sizes = []
    for name, sparse in (
        ("a.png", result.mask),
        ("b.png", prune(clip, small_settings("prune.steps=0", "prune.method=random")).mask),
    ):
        with Image.open(plot_densities(tmp_path / name, sparse)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        sizes.append(int((pixels == (0, 114, 178)).all(axis=2).sum()))  # the first stage's colour
    # The small first stage keeps more under magnitude than at random; its bars are then the larger share.
    assert sizes[0] > 1000 and sizes[1] > 1000 and sizes[0] != sizes[1]
