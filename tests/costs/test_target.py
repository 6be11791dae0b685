from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ovstrans.checkpoints.file import Checkpoint, save_checkpoint
from ovstrans.clip.load import random_clip
from ovstrans.costs.target import Backbone, load_target
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.registry import build_on_meta
from ovstrans.masks.mask import Mask
from ovstrans.reports.report import cost_report, together
from ovstrans.reports.tables import layer_rows, rows
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
        report = cost_report(target, (32, 48), per_layer=True)
        gone = mask.total - mask.kept
        params = report["params"]
        assert params["total"] - params["nonzero"] == gone
        assert params["nonzero"] - params["trainable"] == report_numel(target.module, "conv2.weight")
        assert report["flops"]["effective"] < report["flops"]["dense"]
        assert report["target"]["mask"] == {"method": "random", "sparsity": mask.sparsity}
        assert report["flops"]["image_size"] == [32, 48] and report["flops"]["unit"] == "MAC"
        assert len(layer_rows(report)) == len(report["flops"]["layers"]) > 20


def report_numel(module: torch.nn.Module, name: str) -> int:
    return dict(module.named_parameters())[f"backbone.{name}"].numel()


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


def test_several_reports_side_by_side() -> None:
    reports = [cost_report(load_target(name), (64, 64)) for name in ("RN-mini", "deeplabv3")]
    reports[1]["datasets"]["scenes:val"] = {"mIoU": 50.0, "novel": None}
    columns, table = rows(reports)
    assert columns == ["", "RN-mini", "deeplabv3"]
    cells = {row[0].strip(): row[1:] for row in table}
    assert cells["scenes:val mIoU, %"] == ["-", "50.00"]
    assert "scenes:val mIoU novel, %" not in cells
    assert cells["total params, M"][1].startswith(f"{reports[1]['params']['total'] / 1e6:,.3f} (+")
    assert together(reports[:1])["schema"] == "ovstrans.report/1"
    assert [one["target"]["name"] for one in together(reports)["reports"]] == ["RN-mini", "deeplabv3"]
