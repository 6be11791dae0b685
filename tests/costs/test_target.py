from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ovstrans.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from ovstrans.clip.load import random_clip
from ovstrans.costs.target import Backbone, MaskInfo, TargetInfo, count_costs, load_target
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.registry import build_on_meta
from ovstrans.masks.mask import Mask
from ovstrans.spectrum.plan import FreezePlan
from ovstrans.vocabulary.vocabulary import Vocabulary


def write_run(folder: Path) -> Mask:
    """A run folder with a checkpoint under a random mask; returns the mask."""
    clip = random_clip("RN-mini")
    framework = build_on_meta(
        "deeplabv3", "RN-mini", options={"width": 8}, vocabulary=Vocabulary.from_names("v", ["a", "b"]), device="cpu"
    )
    weight = framework.state_dict()["backbone.layer2.0.conv2.weight"]
    mask = Mask({"layer2.0.conv2.weight": torch.rand(weight.shape) < 0.5}, "RN-mini", method="random")
    mask.apply(framework)
    folder.mkdir()
    save_checkpoint(
        folder / "checkpoint.safetensors",
        Checkpoint(
            framework="deeplabv3",
            options=framework.options,
            state=framework.state_dict(),
            mask=mask,
            text_embeddings=framework.text.embeddings,
            text_owner=framework.text.owner,
            vocabulary=framework.text.vocabulary,
            clip=clip.describe(),
            recipe={},
            provenance={"frozen": ["conv2"]},
            text_encoder=None,
        ),
    )
    return mask


def test_a_run_carries_its_mask_and_plan(tmp_path: Path) -> None:
    mask = write_run(tmp_path / "run")
    for name, kind in ((tmp_path / "run", "run"), (tmp_path / "run" / "checkpoint.safetensors", "checkpoint")):
        target = load_target(str(name))
        assert target.kind == kind and target.checkpoint is not None and tuple(target.frozen) == ("conv2",)
        costs, info = count_costs(target, (32, 48)), target.describe()
        gone = mask.total - mask.kept
        assert costs.params.total - costs.params.nonzero == gone
        frozen = dict(target.module.named_parameters())["backbone.conv2.weight"].numel()
        assert costs.params.nonzero - costs.params.trainable == frozen
        assert costs.flops.effective < costs.flops.dense and costs.flops.image_size == (32, 48)
        assert info.mask == MaskInfo("random", mask.sparsity) and info.frozen == ("conv2",)
        assert info.path == str(tmp_path / "run" / "checkpoint.safetensors") and info.framework == "deeplabv3"
        assert TargetInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_a_run_object_and_a_checkpoint_in_memory(tmp_path: Path) -> None:
    mask = write_run(tmp_path / "run")
    run = load_target(SimpleNamespace(path=tmp_path / "run"))
    assert run.kind == "run" and run.name == str(tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    target = load_target(checkpoint)
    assert target.kind == "checkpoint" and target.describe().path is None and "deeplabv3" in target.name
    assert count_costs(target, (32, 32)).params == count_costs(run, (32, 32)).params
    with pytest.raises(InputError, match="nothing can be changed in a trained deeplabv3"):
        load_target(checkpoint, settings=["model.width=8"])
    named = load_target("deeplabv3", mask=mask, plan=FreezePlan("median", 3.0, ("conv2",)))
    assert named.mask is mask and tuple(named.frozen) == ("conv2",)


def test_names_need_no_weights() -> None:
    target = load_target("deeplabv3", model="RN101")
    assert isinstance(target.module, Framework) and target.kind == "framework" and target.model == "RN101"
    assert all(value.is_meta for value in target.module.parameters())
    assert isinstance(load_target("RN50x4").module, Backbone)


def test_a_recipe_names_its_framework(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        '[model]\nframework = "deeplabv3"\nclip = "RN50"\npretrained = ""\nwidth = 32\noutput_stride = 8\n'
    )
    target = load_target(str(recipe))
    assert (target.kind, target.model) == ("recipe", "RN50")
    assert isinstance(target.module, Framework)
    assert target.module.options["width"] == 32 and target.module.options["output_stride"] == 8
    assert load_target(str(recipe), model="RN-mini").model == "RN-mini"
    (tmp_path / "other.toml").write_text("[prune]\nrate = 0.1\n")
    with pytest.raises(InputError, match=r"other\.toml: .*framework"):
        load_target(str(tmp_path / "other.toml"))


def test_unknown_targets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"deeplabv4: neither .* did you mean 'deeplabv3'"):
        load_target("deeplabv4")
    with pytest.raises(InputError, match="gone.safetensors: no such file"):
        load_target(str(tmp_path / "gone.safetensors"))
    with pytest.raises(InputError, match=r"no checkpoint\.safetensors"):
        load_target(str(tmp_path))
