from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ovstrans.clip.weights import read_state_dict
from ovstrans.errors import InputError
from ovstrans.files import write_tensors
from ovstrans.masks.file import load_weights, pruned_weights_path, save_weights
from ovstrans.masks.mask import Mask


def test_weights_read_back(tmp_path: Path) -> None:
    path, weights = tmp_path / "w.safetensors", {"a.weight": torch.rand(2, 3), "b": torch.tensor(3)}
    mask = Mask({"a.weight": torch.rand(2, 3) > 0.5}, model="RN-mini", method="imp")
    save_weights(path, weights, mask, "m.safetensors")
    found, metadata = load_weights(path)
    assert found.keys() == weights.keys() == read_state_dict(path).keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)
    assert (metadata["mask"], metadata["model"], metadata["method"]) == ("m.safetensors", "RN-mini", "imp")
    assert float(metadata["sparsity"]) == mask.sparsity


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(InputError, match=r"ovstrans\.weights/1"):
        load_weights(tmp_path / "w.safetensors")


def test_the_path_beside_a_mask() -> None:
    assert pruned_weights_path("out/mask.safetensors") == Path("out/mask.weights.safetensors")
    assert pruned_weights_path("m90.v2.safetensors") == Path("m90.v2.weights.safetensors")
