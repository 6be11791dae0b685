from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ovstrans import files
from ovstrans.checkpoints.file import save_checkpoint
from ovstrans.clip.layers import scope_layers
from ovstrans.clip.load import load_clip, random_clip
from ovstrans.clip.weights import weights_sha256
from ovstrans.errors import CheckFailed, InputError, MismatchError
from ovstrans.interop.describe import describe_tensors
from ovstrans.masks.file import WEIGHTS_FORMAT, save_mask
from ovstrans.masks.mask import Mask
from tests.checkpoints.dummies import make_checkpoint
from tests.masks.dummies import CLIP, MASKED, Encoder, make_mask, tamper


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a mini CLIP, as a user's file."""
    path = tmp_path_factory.mktemp("weights") / "mini.safetensors"
    save_file({key: value.contiguous() for key, value in random_clip(seed=1).model.state_dict().items()}, path)
    return path


def mini_mask(pretrained: Path, sha256: str) -> Mask:
    convs = scope_layers(random_clip().visual)
    tensors = {f"{name}.weight": torch.rand(conv.shape) < 0.1 for name, conv in convs.items()}
    return Mask(tensors, model="RN-mini", pretrained=str(pretrained), weights_sha256=sha256, method="random")


def test_mask(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    mask = make_mask(method="imp", pretrained="tag", recipe={"rate": 0.1})
    save_mask(path, mask)
    found = describe_tensors(path)
    assert found.kind == "mask"
    assert found.facts["method"] == "imp" and found.facts["sparsity"] == mask.sparsity
    assert found.facts["recipe"] == {"rate": 0.1}
    assert found.columns == ["layer", "shape", "kept", "weights", "density"]
    assert [row[0] for row in found.rows] == [key.removesuffix(".weight") for key in MASKED]
    assert sum(row[2] for row in found.rows) == mask.kept
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["intact"] and plain["rows"][0]["shape"] == [6, 4, 3, 3]
    checks = describe_tensors(path, verify=True).checks
    assert any("not known here" in check for check in checks) and any("no hash" in check for check in checks)


def test_mask_is_compared_with_the_weights_it_names(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "mask.safetensors"
    save_mask(path, mini_mask(weights, load_clip("RN-mini", str(weights)).weights_sha256))
    checks = describe_tensors(path, verify=True).checks
    assert "shapes are those of RN-mini" in checks and any(check.startswith("hash is that of") for check in checks)
    save_mask(path, mini_mask(weights, "a" * 64))
    describe_tensors(path)
    with pytest.raises(CheckFailed, match=r"made from weights aaaaaaaaaaaa"):
        describe_tensors(path, verify=True)
    save_mask(path, mini_mask(tmp_path / "gone.safetensors", "a" * 64))
    assert any("not at hand" in check for check in describe_tensors(path, verify=True).checks)


def test_mask_of_shapes_that_its_model_has_not(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    save_mask(path, make_mask(model="RN-mini"))
    describe_tensors(path)
    with pytest.raises(MismatchError, match=r"layer1\.0\.conv1\.weight has shape \[6, 4, 3, 3\]"):
        describe_tensors(path, verify=True)


def test_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint = make_checkpoint()
    save_checkpoint(path, checkpoint)
    found = describe_tensors(path, verify=True)
    assert found.kind == "sparse checkpoint"
    assert found.facts["framework"] == "dummy" and found.facts["vocabulary"] == "street (3 classes)"
    assert found.facts["values"] == sum(value.numel() for value in checkpoint.state.values())
    assert found.facts["nonzero"] == sum(int((value != 0).sum()) for value in checkpoint.state.values())
    assert checkpoint.mask is not None and found.facts["sparsity"] == checkpoint.mask.sparsity
    encoder = {k.removeprefix("backbone."): v for k, v in checkpoint.state.items() if k.startswith("backbone.")}
    assert found.facts["backbone_sha256"] == weights_sha256(encoder)
    assert "masked weights are zero" in found.checks and len(found.rows) == len(MASKED)
    json.dumps(found.to_json(), allow_nan=False)


def test_checkpoint_whose_text_is_not_of_unit_length(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.safetensors", make_checkpoint(text_embeddings=torch.ones(4, 8)))
    describe_tensors(tmp_path / "x.safetensors")
    with pytest.raises(CheckFailed, match="unit length"):
        describe_tensors(tmp_path / "x.safetensors", verify=True)


def test_weights_of_a_clip_and_of_an_encoder(tmp_path: Path) -> None:
    clip = CLIP()
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    torch.save(clip.visual.state_dict(), tmp_path / "encoder.pt")
    whole = describe_tensors(tmp_path / "clip.safetensors", verify=True)
    encoder = describe_tensors(tmp_path / "encoder.pt", verify=True)
    assert (whole.facts["holds"], encoder.facts["holds"]) == ("a whole CLIP", "an image encoder")
    expected = weights_sha256(clip.visual.state_dict())
    assert whole.facts["encoder_sha256"] == encoder.facts["encoder_sha256"] == expected
    assert [row[0] for row in encoder.rows] == ["conv1.weight", *MASKED]


def test_nan_weights(tmp_path: Path) -> None:
    state = Encoder().state_dict()
    state["layer1.0.conv1.weight"][0] = float("nan")
    save_file(state, tmp_path / "x.safetensors")
    for verify in (False, True):
        with pytest.raises(InputError, match=r"x\.safetensors: layer1\.0\.conv1\.weight"):
            describe_tensors(tmp_path / "x.safetensors", verify=verify)


@pytest.mark.parametrize("key", ["backbone.layer1.0.conv1.weight", "text_tower.x"])
def test_infinity_in_a_checkpoint(tmp_path: Path, key: str) -> None:
    """NaN its reader refuses; infinity it lets pass."""
    checkpoint = make_checkpoint(masked=False, text_encoder={"x": torch.ones(2)})
    tensor = checkpoint.state[key] if key in checkpoint.state else checkpoint.text_encoder["x"]
    tensor.view(-1)[0] = float("inf")
    save_checkpoint(tmp_path / "x.safetensors", checkpoint)
    with pytest.raises(InputError, match=key.removeprefix("text_tower.")):
        describe_tensors(tmp_path / "x.safetensors")


def test_pruned_weights_and_the_mask_beside_them(tmp_path: Path) -> None:
    mask, encoder = make_mask(method="imp"), Encoder()
    mask.apply(encoder)
    metadata = {"format": WEIGHTS_FORMAT, "model": "dummy", "mask": "mask.safetensors", "method": "imp"}
    files.write_tensors(tmp_path / "w.safetensors", encoder.state_dict(), metadata)
    found = describe_tensors(tmp_path / "w.safetensors", verify=True)
    assert found.kind == "pruned weights" and found.facts["method"] == "imp"
    assert any("not beside them" in check for check in found.checks)
    save_mask(tmp_path / "mask.safetensors", mask)
    assert "zero under mask.safetensors" in describe_tensors(tmp_path / "w.safetensors", verify=True).checks
    save_mask(tmp_path / "mask.safetensors", make_mask(seed=2))
    with pytest.raises(CheckFailed, match="are not zero under"):
        describe_tensors(tmp_path / "w.safetensors", verify=True)


def test_format_of_a_later_version(tmp_path: Path) -> None:
    save_mask(tmp_path / "mask.safetensors", make_mask())
    later = tamper(tmp_path / "mask.safetensors", tmp_path / "x.safetensors", metadata={"format": "ovstrans.mask/7"})
    with pytest.raises(InputError, match="not known to this version"):
        describe_tensors(later)
