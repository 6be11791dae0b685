"""Which models of open_clip are supported, and what the list says of them."""

from __future__ import annotations

import subprocess
import sys

import open_clip
import pytest
import torch

import ovstrans
from ovstrans.clip.catalog import _recorded_sizes, count_sizes, list_models
from ovstrans.clip.load import create_image_encoder, random_clip
from ovstrans.clip.models import (
    bundled_models,
    find_config,
    model_config,
    model_names,
    read_model_names,
    unsupported_reason,
)
from ovstrans.errors import InputError
from tests.clip.test_convnext import MINI

RESNET = {"embed_dim": 8, "vision_cfg": {"layers": [1, 1, 1, 1], "image_size": 32, "width": 8}, "text_cfg": {}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"vision_cfg": {"timm_model_name": "convnext_tiny", "image_size": 32}}, ""),
        ({"vision_cfg": {"timm_model_name": "swin_tiny", "image_size": 32}}, "its image encoder is swin_tiny"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "its text encoder is roberta-base of Hugging Face"),
        ({"multimodal_cfg": {}}, "it is a CoCa"),
    ],
)
def test_the_reason_follows_from_the_configuration(changes: dict[str, object], reason: str) -> None:
    found = unsupported_reason({**RESNET, **changes})
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_every_listed_model_is_built_and_no_other_is() -> None:
    listed = {each.name: each for each in ovstrans.list_models(unsupported=True)}
    assert set(listed) == {*bundled_models(), *open_clip.list_models()}
    assert [each.name for each in ovstrans.list_models()] == [name for name in listed if not listed[name].unsupported]
    assert sorted(model_names()) == sorted(name for name in listed if not listed[name].unsupported)
    for name, each in listed.items():
        if each.unsupported:
            assert each.image_encoder is each.prunable is None
            with pytest.raises(InputError, match=f"`model={name}`: cannot be pruned, "):
                create_image_encoder(name)
        else:
            assert each.prunable is not None and each.image_encoder is not None
            assert 0 < each.prunable < each.image_encoder
            assert each.image_size == model_config(name)["vision_cfg"]["image_size"]


def test_rn50_has_the_known_sizes() -> None:
    (found,) = list_models("RN50")
    # 38,316,896 is open_clip's own count; the body is layer1 to layer4 without BatchNorm, stem and attention pool.
    assert (found.image_encoder, found.prunable, found.image_size) == (38_316_896, 23_445_504, 224)
    assert found.tags[0] == "openai" and list_models()[0].name == "RN-mini" and list_models()[0].tags == ("bundled",)


@pytest.mark.parametrize("name", ["RN-mini", "RN50x4", "convnext_base_w_320"])
def test_recorded_sizes_are_those_of_the_model(name: str) -> None:
    assert count_sizes(name) == _recorded_sizes()[name]


@pytest.mark.slow
def test_every_recorded_size_is_that_of_the_model() -> None:
    assert {name: count_sizes(name) for name in _recorded_sizes()} == _recorded_sizes()
    assert set(model_names()) <= set(_recorded_sizes())


def test_a_registered_model_is_built_to_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "convnext_mini", MINI)
    (found,) = list_models("convnext_mini")
    visual = random_clip("convnext_mini").visual
    assert found.image_encoder == sum(each.numel() for each in visual.parameters())
    with torch.no_grad():
        body = [value for name, value in visual.named_parameters() if name.startswith("trunk.stages.")]
    depthwise = sum(value.numel() for value in body if value.dim() == 4 and value.shape[1] == 1)
    assert found.prunable == sum(value.numel() for value in body if value.dim() >= 2) - depthwise
    assert found.tags == ()


def test_patterns_find_unsupported_models_too_and_nothing_is_an_error() -> None:
    found = {each.name: each.unsupported for each in list_models("*ConvNeXt*".lower())}
    assert "convnext_base" in found and not found["convnext_base"]
    assert list_models("coca_ViT-B-32")[0].unsupported
    with pytest.raises(InputError, match=r"`pattern=RN51`: matches no model; did you mean 'RN50'\?"):
        list_models("RN51")


def test_an_unknown_model_is_pointed_to_the_list() -> None:
    with pytest.raises(InputError, match=r"`model=RN51`: unknown; did you mean 'RN50'\? `ovstrans models list`"):
        model_config("RN51")
    assert find_config("RN51") is None


def test_names_are_read_without_open_clip() -> None:
    assert sorted(read_model_names()) == sorted(model_names())
    script = (
        "import sys; from ovstrans.clip.models import read_model_names; assert read_model_names(); "
        "sys.exit(len({'torch', 'open_clip', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
