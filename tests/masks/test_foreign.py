"""Masks of torch's pruning and of OpenTrans, as files and in live models; other files in a mask's place."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import ovstrans
from ovstrans.clip.layers import scope_layers
from ovstrans.clip.load import random_clip
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.file import load_mask
from ovstrans.masks.mask import Mask

DATA = Path(__file__).parent.parent / "data"


def pruned(scope: str = "body") -> nn.Module:
    """An image encoder under torch's pruning, half of every convolution."""
    encoder: nn.Module = random_clip(seed=3).visual
    for conv in scope_modules(encoder, scope).values():
        prune.random_unstructured(conv, "weight", amount=0.5)
    return encoder


def scope_modules(encoder: nn.Module, scope: str = "body") -> dict[str, nn.Module]:
    return {name: encoder.get_submodule(name) for name in scope_layers(encoder, scope)}


def mask_of(encoder: nn.Module, scope: str = "body") -> dict[str, torch.Tensor]:
    return {f"{name}.weight": conv.weight_mask.bool() for name, conv in scope_modules(encoder, scope).items()}


@pytest.mark.parametrize("wrapped", ["", "module.", "visual.", "backbone."])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_masks_of_torchs_pruning_are_read(tmp_path: Path, wrapped: str, name: str) -> None:
    encoder = pruned()
    state = {wrapped + key: value.clone() for key, value in encoder.state_dict().items()}
    if name == "w.pth":
        torch.save({"state_dict": state, "epoch": 4}, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    mask = load_mask(tmp_path / name)
    assert mask.tensors.keys() == mask_of(encoder).keys()
    assert all(torch.equal(mask.tensors[key], kept) for key, kept in mask_of(encoder).items())
    assert (mask.model, mask.pretrained, mask.method) == ("RN-mini", "", "imported")


def test_masks_of_opentrans(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One state dict per part, the first convolution twice, and masks of the stem, which are not transferred."""
    caplog.set_level(logging.INFO, logger="ovstrans")
    encoder = pruned("backbone")
    parts = {"first_conv": {"weight": torch.ones(1)}, "backbone": encoder.state_dict()}
    torch.save(parts, tmp_path / "seg_backbone_imp21.pth")
    mask = load_mask(tmp_path / "seg_backbone_imp21.pth")
    assert mask.model == "RN-mini" and mask.tensors.keys() == mask_of(encoder).keys()
    assert "2 masks outside layer1 to layer4 left out" in caplog.text


def test_a_mask_of_unknown_layers_has_no_model(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight_mask": torch.tensor([[1.0, 0.0]])}, tmp_path / "m.pth")
    assert load_mask(tmp_path / "m.pth").model == ""


def test_a_live_model_under_torchs_pruning_takes_a_mask() -> None:
    encoder = pruned()
    mask = Mask({key: torch.rand(kept.shape) > 0.3 for key, kept in mask_of(encoder).items()}, model="RN-mini")
    before = copy.deepcopy(mask_of(encoder))
    mask.apply(encoder)
    assert mask.violations(encoder) == []
    encoder(torch.zeros(1, 3, 96, 96))  # the hooks of the pruning make the weights again
    for name, conv in scope_modules(encoder).items():
        own, cut = before[f"{name}.weight"], ~mask.tensors[f"{name}.weight"]
        assert not bool(conv.weight[cut | ~own].any()) and bool(conv.weight[~cut & own].any())


def test_training_a_live_model_under_torchs_pruning_keeps_the_mask() -> None:
    encoder = pruned()
    mask = Mask({key: torch.rand(kept.shape) > 0.3 for key, kept in mask_of(encoder).items()}, model="RN-mini")
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2, weight_decay=0.1)
    with mask.held(optimizer, encoder):
        for _ in range(2):
            encoder(torch.randn(2, 3, 96, 96)).square().mean().backward()
            optimizer.step()
            assert mask.violations(encoder) == []


def test_a_state_dict_under_torchs_pruning_takes_a_mask() -> None:
    encoder = pruned()
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    mask = Mask({key: torch.rand(kept.shape) > 0.3 for key, kept in mask_of(encoder).items()}, model="RN-mini")
    mask.apply({f"module.{key}": value for key, value in state.items()})
    assert not bool(state["layer1.0.conv1.weight_orig"][~mask.tensors["layer1.0.conv1.weight"]].any())


def test_an_analysis_of_a_live_model_under_torchs_pruning() -> None:
    """As of the model whose pruning was made permanent, with and without a mask of ours."""
    encoder = pruned()
    own = mask_of(encoder)
    more = Mask({key: torch.rand(kept.shape) > 0.3 for key, kept in own.items()}, model="RN-mini")
    live = [ovstrans.analyze(encoder), ovstrans.analyze(encoder, mask=more)]
    for conv in scope_modules(encoder).values():
        prune.remove(conv, "weight")
    dense = [ovstrans.analyze(encoder), ovstrans.analyze(encoder, mask=more)]
    assert [each.alphas for each in live] == [each.alphas for each in dense]
    assert [each.weights_sha256 for each in live] == [each.weights_sha256 for each in dense]


WRONG = {
    "checkpoint.safetensors": "a checkpoint of ovstrans, not a mask; .*export FILE --format mask",
    "mask.weights.safetensors": "weights that pruning left, not a mask",
    "alpha.json": "an alpha file with a freeze plan, not a mask; give it as `plan`",
    "report.json": "a report of `ovstrans bench`, not a mask",
}


@pytest.mark.parametrize("name", WRONG)
def test_another_file_of_ours_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: {WRONG[name]}"):
        load_mask(DATA / name)


def test_weights_without_masks_are_named(tmp_path: Path) -> None:
    torch.save(random_clip(seed=3).model.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: a file of weights, not a mask .*give it as `pretrained`"):
        load_mask(tmp_path / "w.pt")


def test_a_mask_for_other_layers_is_a_mismatch(tmp_path: Path) -> None:
    torch.save({"layer9.0.conv1.weight_mask": torch.ones(2, 2)}, tmp_path / "m.pth")
    with pytest.raises(MismatchError, match=r"layer9.0.conv1.weight is missing in this model"):
        load_mask(tmp_path / "m.pth").apply(random_clip(seed=3).visual)
