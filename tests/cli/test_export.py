"""`ovstrans export` as a user runs it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from ovstrans import files
from ovstrans.checkpoints.file import load_checkpoint, save_checkpoint
from ovstrans.cli.main import run
from ovstrans.clip.load import random_clip
from ovstrans.interop.published_names import to_published
from ovstrans.masks.file import load_mask, save_mask, save_weights
from tests.checkpoints.dummies import make_checkpoint
from tests.interop.test_export import assert_equal, assert_masks_equal, draw_mask
from tests.interop.test_import_framework import make
from tests.segmenter.case import deeplab_checkpoint, draw


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a CLIP's weights, a mask made from them, and the pruned encoder beside it."""
    monkeypatch.chdir(tmp_path)
    clip = random_clip(seed=4)
    files.write_tensors("clip.safetensors", clip.model.state_dict(), {})
    mask = draw_mask(clip, pretrained="clip.safetensors", weights_sha256=clip.weights_sha256)
    save_mask("mask.safetensors", mask)
    mask.apply(clip.visual)
    save_weights("mask.weights.safetensors", clip.visual.state_dict(), mask, "mask.safetensors")
    files.write_tensors("whole.safetensors", clip.model.state_dict(), {})
    return tmp_path


def export(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["export", *arguments, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("source", ["mask.safetensors", "mask.weights.safetensors"])
def test_a_mask_or_pruned_weights_become_a_whole_clip(
    folder: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", source, "--out", "pruned.safetensors"]) == 0
    said = capsys.readouterr()
    assert "pruned.safetensors: dense" in said.out and "90.0" in said.out and "local-dir" in said.err
    assert_equal(load_file("pruned.safetensors"), load_file("whole.safetensors"))
    assert run(["inspect", "--verify", "pruned.safetensors"]) == 0
    shown = capsys.readouterr().out
    assert "a whole CLIP" in shown and "random" in shown

    found = export("pruned.safetensors", "--format", "mask", "--out", "again.safetensors", capsys=capsys)
    assert_masks_equal(load_mask("again.safetensors"), load_mask("mask.safetensors"))
    assert load_mask("again.safetensors").method == "random"
    assert found["sparsity"] == load_mask("mask.safetensors").sparsity and found["missing"] == []


@pytest.mark.slow
def test_rn50_from_prune_to_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clip = random_clip("RN50")
    files.write_tensors("rn50.safetensors", clip.model.state_dict(), {})
    oneshot = ["--pretrained", "rn50.safetensors", "--method", "magnitude", "--steps", "0", "--sparsity", "0.7"]
    assert run(["prune", "RN50", *oneshot, "--no-plot", "--device", "cpu", "--out", "mask.safetensors"]) == 0
    assert run(["export", "mask.safetensors", "--out", "pruned.safetensors"]) == 0
    model, _, _ = open_clip.create_model_and_transforms("RN50", pretrained="pruned.safetensors")
    mask = load_mask("mask.safetensors")
    zeros = sum(int((model.visual.get_parameter(key) == 0).sum()) for key in mask.tensors)
    assert zeros == mask.total - mask.kept == round(0.7 * 23_445_504)
    mask.apply(clip.model)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    words = open_clip.get_tokenizer("RN50")(["a cat", "a dog"])
    with torch.inference_mode():
        ours, theirs = clip.model(images, words), model.eval()(images, words)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_under_published_names_and_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = export("mask.safetensors", "--format", "detectron2", "--out", "d2.pth", capsys=capsys)
    saved = torch.load("d2.pth", weights_only=True)["model"]
    assert found["tensors"] == len(saved) and all(key.startswith("backbone.clip_model.") for key in saved)
    assert found["schema"] == "ovstrans.export/1" and found["bytes"] == Path("d2.pth").stat().st_size
    export("d2.pth", "--out", "back.safetensors", capsys=capsys)
    assert_equal(load_file("back.safetensors"), load_file("whole.safetensors"))
    export("mask.safetensors", "--format", "detectron2", "--like", "gkc", "--out", "gkc.pth", capsys=capsys)
    assert "backbone.layer1.0.conv1.weight" in torch.load("gkc.pth", weights_only=True)["model"]


def test_mask_of_opentrans(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = load_mask("mask.safetensors")
    entries = {f"{key}_mask": kept.float() for key, kept in mask.tensors.items()}
    entries["conv2.weight_mask"] = torch.ones(dict(random_clip().visual.named_parameters())["conv2.weight"].shape)
    torch.save({"first_conv": {}, "backbone": entries, "sem_seg_head": {}}, "imp21.pth")
    common = ("imp21.pth", "--format", "mask", "--model", "RN-mini")
    found = export(*common, "--out", "imp21.safetensors", capsys=capsys)
    assert_masks_equal(load_mask("imp21.safetensors"), mask)
    assert found["ignored"] == ["first_conv", "sem_seg_head"] and found["model"] == "RN-mini"
    export(*common, "--scope", "file", "--out", "file.safetensors", capsys=capsys)
    assert "conv2.weight" in load_mask("file.safetensors").tensors
    assert run(["export", "imp21.pth", "--format", "mask", "--out", "rn50.safetensors"]) == 2
    assert "which RN50 does not have; name the CLIP it is for as --model" in capsys.readouterr().err


def test_a_run_in_every_format(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    checkpoint = make_checkpoint()
    save_checkpoint("run/checkpoint.safetensors", checkpoint)
    assert checkpoint.mask is not None
    for kind, out in (("dense", "dense.pth"), ("sparse", "sparse.safetensors"), ("mask", "only.safetensors")):
        found = export("run", "--format", kind, "--out", out, capsys=capsys)
        assert found["sparsity"] == checkpoint.mask.sparsity and found["format"] == kind
    assert Path("sparse.safetensors").read_bytes() == Path("run/checkpoint.safetensors").read_bytes()
    assert_masks_equal(load_mask("only.safetensors"), checkpoint.mask)
    assert load_mask("only.safetensors").recipe == checkpoint.mask.recipe
    assert_equal(torch.load("dense.pth", weights_only=True)["state_dict"], checkpoint.state)
    assert run(["export", "run", "--format", "detectron2", "--out", "d2.pth"]) == 2
    assert "dummy has no published names; --like writes" in capsys.readouterr().err


def test_published_checkpoint_becomes_ours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = random_clip(seed=4)
    ours = make("fcclip", clip, make_checkpoint().vocabulary)
    text = {f"text_tower.{key}": value for key, value in (ours.text_encoder or {}).items()}
    theirs = to_published("fcclip")({**ours.state, **text})
    torch.save({"model": {**theirs, "ema": torch.ones(1)}, "optimizer": {}, "iteration": 5}, "fcclip.pth")
    Path("words.txt").write_text("sky\ncar, automobile\n")
    assert ours.mask is not None
    save_mask("ours.safetensors", ours.mask)
    common = ("fcclip.pth", "--framework", "fcclip", "--model", "RN-mini", "--vocabulary", "words.txt")
    found = export(
        *common, "--format", "sparse", "--mask", "ours.safetensors", "--out", "in.safetensors", capsys=capsys
    )
    assert (found["missing"], found["unexpected"], found["ignored"]) == ([], ["ema"], ["optimizer", "iteration"])
    checkpoint = load_checkpoint("in.safetensors")
    assert_equal(checkpoint.state, ours.state)
    assert checkpoint.mask is not None and checkpoint.vocabulary.names == ("sky", "car")
    assert run(["inspect", "--verify", "in.safetensors"]) == 0
    assert "fcclip can be built from it" in capsys.readouterr().out

    assert run(["export", *common[:1], "--model", "RN-mini", "--out", "clip-only.safetensors"]) == 0
    said = capsys.readouterr()
    assert "unexpected" in said.out and "--framework takes the head too" in said.err
    assert_equal(
        {key: value for key, value in load_file("clip-only.safetensors").items() if key.startswith("visual.layer1")},
        {f"visual.{key[9:]}": value for key, value in ours.state.items() if key.startswith("backbone.layer1")},
    )


def test_head_alone_needs_partial(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = make("gkc", random_clip(seed=4), make_checkpoint().vocabulary)
    theirs = {key: value for key, value in to_published("gkc")(ours.state).items() if "pixel_decoder" in key}
    Path("coco.pkl").write_bytes(pickle.dumps({"model": {key: value.numpy() for key, value in theirs.items()}}))
    common = ["export", "coco.pkl", "--framework", "gkc", "--model", "RN-mini", "--pretrained", "clip.safetensors"]
    assert run([*common, "--out", "out.safetensors"]) == 2
    assert "--partial takes what fits" in capsys.readouterr().err and not Path("out.safetensors").exists()
    assert run([*common, "--partial", "--out", "out.safetensors"]) == 0
    said = capsys.readouterr()
    assert "missing" in said.out and "backbone from RN-mini, head at random" in said.err


def test_code_in_a_file_is_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.pkl").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    assert run(["export", "bad.pkl", "--out", "out.safetensors"]) == 2
    said = capsys.readouterr().err
    assert "bad.pkl: asks for posix.system, which could run code; nothing was loaded" in said and said.count("\n") == 1
    assert not Path("ran").exists() and not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mask.safetensors", "--format", "onnx", "--out", "o.pth"], "--format onnx: unknown; use dense"),
        (["mask.safetensors", "--format", "mask", "--out", "o.pth"], "a mask file ends in .safetensors"),
        (["mask.safetensors", "--format", "sparse", "--out", "o.safetensors"], "this is a CLIP alone"),
        (["mask.safetensors", "--out", "whole.safetensors"], "exists already"),
        (["mask.safetensors", "--out", "mask.safetensors", "--force"], "--out mask.safetensors: is the source"),
        (["mask.safetensors", "--out", "o.pth", "--json", "o.pth"], "--json o.pth: is in the way of o.pth"),
        (["mask.safetensors", "--like", "gkc", "--out", "o.pth"], "--like gkc: goes with --format detectron2"),
        (["mask.safetensors", "--scope", "stem", "--out", "o.pth"], "--scope stem: unknown; use body or file"),
        (["mask.safetensors", "--framework", "gkc", "--out", "o.pth"], "--framework: mask.safetensors says this"),
        (["mask.safetensors", "--mask", "mask.safetensors", "--out", "o.pth"], "--mask: mask.safetensors says this"),
        (["clip.safetensors", "--model", "RN-mini", "--format", "mask", "--out", "o.safetensors"], "was not pruned"),
        (["clip.safetensors", "--out", "o.pth"], "another architecture; name the right CLIP as --model"),
        (["nothing.pth", "--out", "o.pth"], "nothing.pth: no such file"),
        ([".", "--out", "o.pth"], "no checkpoint.safetensors in this folder"),
    ],
)
def test_bad_usage(folder: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("mask.safetensors").read_bytes()
    assert run(["export", *arguments]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.out == ""
    assert not Path("o.pth").exists() and Path("mask.safetensors").read_bytes() == before


def test_checkpoint_without_a_mask_has_none_to_write(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint("dense.safetensors", make_checkpoint(masked=False))
    assert run(["export", "dense.safetensors", "--format", "mask", "--out", "m.safetensors"]) == 2
    assert "dense.safetensors: was trained without a mask" in capsys.readouterr().err
    assert run(["export", "dense.safetensors", "--vocabulary", "mask.safetensors", "--out", "m.pth"]) == 2


@pytest.mark.parametrize("options", [["--compress"], ["--values", "int8"], ["--values", "fp16", "--compress"]])
def test_small_checkpoints_go_wherever_a_checkpoint_goes(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint("plain.safetensors", deeplab_checkpoint())
    draw("a.png")
    told = export("plain.safetensors", "--format", "sparse", *options, "--out", "small.safetensors", capsys=capsys)
    assert told["bytes"] < Path("plain.safetensors").stat().st_size and ("rounding" in told) == ("--values" in options)
    commands = (
        ["inspect", "--verify", "small.safetensors"],
        ["predict", "small.safetensors", "a.png", "--out", "look"],
        ["bench", "small.safetensors", "--image-size", "64x64", "--json", "r.json"],
        ["analyze", "small.safetensors", "--out", "alpha.json"],
        ["export", "small.safetensors", "--format", "mask", "--out", "mask.safetensors"],
        ["export", "small.safetensors", "--format", "dense", "--out", "dense.pth"],
        ["export", "small.safetensors", "--format", "sparse", "--values", "fp32", "--out", "back.safetensors"],
    )
    for command in commands:
        assert run(command) == 0, (command, capsys.readouterr().err)
    assert_masks_equal(load_mask("mask.safetensors"), load_checkpoint("plain.safetensors").mask)
    if "--values" not in options:
        assert_equal(load_checkpoint("back.safetensors").state, load_checkpoint("plain.safetensors").state)
    content = Path("small.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(content[: len(content) // 2])
    for command in (["inspect"], ["bench"], ["analyze"], ["predict", "a.png"], ["export", "--out", "x.pth"]):
        capsys.readouterr()
        assert run([command[0], "cut.safetensors", *command[1:]]) == 2
        assert "truncated" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--compress"], ["--values", "int8"], ["--format", "mask", "--compress"]])
def test_options_of_sparse_go_with_sparse(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "mask.safetensors", *arguments, "--out", "x.safetensors"]) == 2
    said = capsys.readouterr().err
    assert "--format sparse" in said or "`--format=sparse`" in said or "format" in said
    assert not Path("x.safetensors").exists()
