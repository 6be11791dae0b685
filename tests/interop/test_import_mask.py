from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import prune

from ovstrans.clip.weights import read_weight_file
from ovstrans.errors import InputError
from ovstrans.interop.import_mask import mask_from_zeros
from ovstrans.masks.foreign import mask_from_entries
from ovstrans.masks.mask import Mask
from tests.masks.dummies import MASKED, Framework, make_mask


def read_mask(path: Path, **options: Any) -> Mask:
    """The masks in a file."""
    return mask_from_entries(read_weight_file(path).state, str(path), **{"model": "dummy", **options})


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "visual.", "backbone.clip_model.visual."])
@pytest.mark.parametrize("kind", [torch.float32, torch.bool, torch.uint8])
def test_weight_mask_entries(tmp_path: Path, prefix: str, kind: torch.dtype) -> None:
    entries = {f"{prefix}{key}_mask": kept.to(kind) for key, kept in make_mask().tensors.items()}
    torch.save(entries, tmp_path / "mask.pt")
    mask = read_mask(tmp_path / "mask.pt", model="dummy", pretrained="")
    assert all(torch.equal(mask.tensors[key], kept) for key, kept in make_mask().tensors.items())
    assert mask.method == "imported" and mask.weights_sha256 == ""


def test_state_dict_under_torch_pruning(tmp_path: Path) -> None:
    framework = Framework()
    prune.l1_unstructured(framework.backbone.conv1, "weight", amount=0.25)
    prune.l1_unstructured(framework.backbone.layer1[0].conv1, "weight", amount=0.5)
    torch.save({"state_dict": framework.state_dict()}, tmp_path / "run.pth")
    mask = read_mask(tmp_path / "run.pth", model="dummy")
    assert list(mask.tensors) == ["conv1.weight", MASKED[0]]
    assert mask.layer_densities() == {"conv1": 0.75, "layer1.0.conv1": 0.5}
    body = read_mask(tmp_path / "run.pth", model="dummy", body_only=True)
    assert list(body.tensors) == [MASKED[0]]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"layer1.0.conv1.weight_mask": torch.tensor([0.0, 0.5])}, "other than zero and one"),
        ({"layer1.0.conv1.weight_mask": torch.tensor([1.0, float("nan")])}, "other than zero and one"),
        ({"layer1.0.conv1.weight": torch.ones(2)}, "no weight_mask entry"),
        ({"a.weight_mask": torch.ones(2), "backbone.a.weight_mask": torch.ones(2)}, "a.weight has two masks"),
    ],
)
def test_what_is_no_mask(tmp_path: Path, entries: dict[str, torch.Tensor], says: str) -> None:
    torch.save(entries, tmp_path / "mask.pt")
    with pytest.raises(InputError, match=says):
        read_mask(tmp_path / "mask.pt")


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"layer1.0.conv1.weight_mask": torch.ones(2), "x": _Payload(marker)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(_Payload(marker), protocol=2))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(InputError, match=name):
            read_mask(tmp_path / name)
    assert not marker.exists()


def test_mask_of_zeros() -> None:
    mask, encoder = make_mask(), Framework().backbone
    mask.apply(encoder)
    found = mask_from_zeros(encoder.state_dict(), "w.pth", model="dummy", pretrained="tag")
    assert all(torch.equal(found.tensors[key], kept) for key, kept in mask.tensors.items())
    assert list(found.tensors) == list(MASKED) and (found.method, found.pretrained) == ("zeros", "tag")
    with pytest.raises(InputError, match="w.pth: no weight of its layers is exactly zero"):
        mask_from_zeros(Framework().backbone.state_dict(), "w.pth", model="dummy")
