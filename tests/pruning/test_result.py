from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from ovstrans.clip.load import Clip
from ovstrans.errors import InputError
from ovstrans.pruning.prune import prune
from ovstrans.pruning.result import check_outputs, output_paths, plot_densities, state_path
from tests.pruning.conftest import small_settings


def test_mask_and_weights_agree_read_by_numpy_alone(clip: Clip, tmp_path: Path) -> None:
    result = prune(clip, recipe=small_settings("prune.steps=0"), device="cpu")
    assert result.files == [] and "mask" not in result.summary()
    out = tmp_path / "new" / "mask.safetensors"
    written = result.save(out)
    assert [path.name for path in written] == ["mask.safetensors", "mask.weights.safetensors", "mask.png"]
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(path.name for path in written)
    assert result.files == written and result.summary()["mask"] == str(out)
    with safe_open(written[1], framework="np") as weights, safe_open(out, framework="np") as bits:
        metadata = weights.metadata()
        assert metadata["format"] == "ovstrans.weights/1" and metadata["mask"] == "mask.safetensors"
        assert metadata["method"] == "imp" and float(metadata["sparsity"]) == result.mask.sparsity
        assert json.loads(metadata["recipe"])["total_steps"] == 0
        for key, shape in json.loads(bits.metadata()["shapes"]).items():
            kept = np.unpackbits(bits.get_tensor(key), count=int(np.prod(shape))).astype(bool).reshape(shape)
            dense = clip.visual.state_dict()[key].numpy()
            assert np.array_equal(weights.get_tensor(key), np.where(kept, dense, 0))
    with pytest.raises(InputError, match="exists already"):
        result.save(out)
    assert result.save(out, plot=False, force=True) == written[:2]


def test_a_result_says_in_a_few_lines_what_it_is(clip: Clip, tmp_path: Path) -> None:
    result = prune(
        clip, recipe=small_settings("prune.steps=0"), device="cpu", out=tmp_path / "m.safetensors", plot=False
    )
    text = repr(result)
    assert "80.00% zeros" in text and "in 3 rounds" in text and "m.weights.safetensors" in text
    assert len(text.splitlines()) == 3


def test_paths() -> None:
    assert state_path("a/mask.safetensors") == Path("a/mask.resume.pt")
    assert output_paths("a/mask.safetensors")[2] == Path("a/mask.png")
    assert output_paths("m90.v2.safetensors", plot=False) == [
        Path("m90.v2.safetensors"),
        Path("m90.v2.weights.safetensors"),
    ]
    with pytest.raises(InputError, match=r"`out=mask\.pt`"):
        output_paths("mask.pt")


@pytest.mark.parametrize("name", ["mask.safetensors", "mask.weights.safetensors", "mask.png"])
def test_nothing_is_replaced_unasked(tmp_path: Path, name: str) -> None:
    out = tmp_path / "mask.safetensors"
    check_outputs(out, plot=True, force=False, resume=False)
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=name):
        check_outputs(out, plot=True, force=False, resume=True)
    check_outputs(out, plot=True, force=True, resume=False)
    if name == "mask.png":
        check_outputs(out, plot=False, force=False, resume=False)


def test_a_state_needs_a_decision(tmp_path: Path) -> None:
    out = tmp_path / "mask.safetensors"
    state_path(out).write_text("state")
    with pytest.raises(InputError, match="`resume=True`"):
        check_outputs(out, plot=True, force=False, resume=False)
    out.write_text("of an earlier run")
    check_outputs(out, plot=True, force=False, resume=True)
    check_outputs(out, plot=True, force=True, resume=False)


def test_plot_shows_densities(clip: Clip, tmp_path: Path) -> None:
    sizes = []
    for name in ("imp", "random"):
        sparse = prune(clip, recipe=small_settings("prune.steps=0", f"prune.method={name}"), device="cpu").mask
        with Image.open(plot_densities(tmp_path / f"{name}.png", sparse)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        sizes.append(int((pixels == (0, 114, 178)).all(axis=2).sum()))  # the color of the first stage
    # The small first stage keeps more under magnitude than at random; its bars are then the larger share.
    assert sizes[0] > 1000 and sizes[1] > 1000 and sizes[0] != sizes[1]
