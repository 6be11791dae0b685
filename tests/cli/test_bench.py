from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ovstrans.checkpoints.file import Checkpoint, save_checkpoint
from ovstrans.cli import main
from ovstrans.clip.load import Clip, random_clip
from ovstrans.clip.text import embed_vocabulary
from ovstrans.datasets.catalog import open_dataset
from ovstrans.files import write_text
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Framework
from ovstrans.masks.file import save_mask
from ovstrans.masks.mask import Mask
from ovstrans.training.initial_weights import text_encoder

CONFUSIONS = ("-confusion-a", "-confusion-b")
"""Of the runs a and b."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in its own folder."""
    monkeypatch.chdir(tmp_path)


def write_run(folder: Path, density: float = 0.5) -> Mask:
    """A finished run at random weights; returns its mask."""
    checkpoint = made(density)
    folder.mkdir(parents=True)
    save_checkpoint(folder / "checkpoint.safetensors", checkpoint)
    assert checkpoint.mask is not None
    return checkpoint.mask


@lru_cache
def made(density: float) -> Checkpoint:
    """DeepLabV3 on a random RN-mini under a random mask."""
    clip = random_clip()
    torch.manual_seed(0)
    framework = registry.build(
        "deeplabv3",
        encoder=clip.visual,
        mean=clip.mean,
        std=clip.std,
        text=embed_vocabulary(clip, open_dataset("scenes", split="val").vocabulary),
        options={"width": 8},
    )
    body = {name: p for name, p in framework.backbone.named_parameters() if p.dim() == 4 and name.startswith("layer")}
    mask = Mask({name: torch.rand(p.shape) < density for name, p in body.items()}, "RN-mini", method="random")
    mask.apply(framework)
    return checkpoint_of(framework, clip, mask)


def checkpoint_of(framework: Framework, clip: Clip, mask: Mask | None = None) -> Checkpoint:
    """What a run would leave of a framework on a CLIP, its text encoder inside."""
    return Checkpoint(
        framework=framework.name,
        options=framework.options,
        state=framework.state_dict(),
        mask=mask,
        text_embeddings=framework.text.embeddings,
        text_owner=framework.text.owner,
        vocabulary=framework.text.vocabulary,
        clip=clip.describe(),
        recipe={"data": {"dataset": "scenes:train", "size": 64}},
        provenance={"frozen": []},
        text_encoder=text_encoder(clip),
    )


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status, and what --json wrote ({} where it wrote nothing)."""
    file = Path("report.json")
    status = main.run(["bench", *arguments, "--json", str(file), "--force", "--quiet", "--device", "cpu"])
    return status, json.loads(file.read_text()) if file.exists() else {}


def test_the_default_run(capsys: pytest.CaptureFixture[str]) -> None:
    mask = write_run(Path("ovstrans-out/run"))
    status, report = run("--limit", "3", "--show", "2")
    assert status == 0 and report["schema"] == "ovstrans.report/1"
    assert report["target"]["kind"] == "run"
    assert report["flops"]["image_size"] == [64, 64]
    assert report["params"]["total"] - report["params"]["nonzero"] == mask.total - mask.kept
    entry = report["datasets"]["scenes:val"]
    assert entry["images"] == 3 and 0 <= entry["mIoU"] <= 100 and entry["hIoU"] is not None
    assert Image.open("ovstrans-out/bench/scenes-val.png").width > 300
    shown = capsys.readouterr().out
    assert "scenes:val mIoU" in shown and "effective MACs" in shown and "64x64" in shown


def test_several_targets_and_data_side_by_side() -> None:
    write_run(Path("a"))
    write_run(Path("b"), density=0.1)
    arguments = ("a", "b/checkpoint.safetensors", "RN-mini", "--data", "scenes:test", "--data", "scenes-shift")
    status, both = run(*arguments, "--limit", "2", "--pictures", "pages")
    assert status == 0 and both["schema"] == "ovstrans.reports/1"
    first, second, model = both["reports"]
    assert list(first["datasets"]) == list(second["datasets"]) != []
    assert len(first["datasets"]) == 2 and model["datasets"] == {}
    assert first["flops"]["dense"] == second["flops"]["dense"]
    assert first["flops"]["effective"] > second["flops"]["effective"]
    drawn = {f"{data}{kind}.png" for data in ("scenes-test", "scenes-shift-val") for kind in ("", *CONFUSIONS)}
    assert {path.name for path in Path("pages").iterdir()} == drawn


def test_another_vocabulary_is_embedded_by_the_checkpoints_own_text_tower() -> None:
    write_run(Path("a"))
    status, report = run("a", "--data", "scenes-attr:val", "--limit", "1", "--show", "0")
    assert status == 0
    (entry,) = report["datasets"].values()
    assert len(entry["per_class"]) == len(open_dataset("scenes-attr", split="val").vocabulary) >= 100
    assert not Path("ovstrans-out/bench").exists()


def test_a_framework_under_a_mask_needs_no_weights() -> None:
    mask = write_run(Path("a"), density=0.2)
    save_mask("mask.safetensors", mask)
    status, report = run("deeplabv3", "--mask", "mask.safetensors", "--image-size", "64x96", "--per-layer")
    assert status == 0
    assert report["flops"]["image_size"] == [64, 96]
    layers = {layer["name"]: layer for layer in report["flops"]["layers"]}
    share = mask.layer_densities()["layer2.0.conv2"]
    assert layers["layer2.0.conv2"]["effective"] == pytest.approx(share * layers["layer2.0.conv2"]["dense"], rel=1e-6)
    assert sum(layer["effective"] for layer in layers.values()) == report["flops"]["effective"]


def test_without_a_run_the_framework_is_counted_at_the_papers_size() -> None:
    status, report = run()
    assert status == 0 and report["target"]["name"] == "deeplabv3"
    assert report["flops"]["image_size"] == [800, 1216]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("deeplabv4",), "neither a run"),
        (("gone.safetensors",), "no such file"),
        (("deeplabv3", "--mask", "gone.safetensors"), "gone.safetensors: no such file"),
        (("deeplabv3", "--plan", "gone.json"), "gone.json: no such file"),
        (("deeplabv3", "--counter", "thop"), "use torch, fvcore"),
        (("deeplabv3", "--image-size", "64x"), "HEIGHTxWIDTH"),
        (("deeplabv3", "--image-size", "0x64"), "HEIGHTxWIDTH"),
        (("deeplabv3", "--model", "RN52"), "unknown"),
        (("deeplabv3", "--data", "scenes"), "no target has weights"),
        (("a", "--model", "RN50"), "carries its own"),
        (("a", "--data", "gone"), "no such dataset"),
        (("a", "--pictures", "a"), "a: exists already; give another --pictures, or --force"),
        (("a", "--json", "a"), "give another --json"),
        (("a", "b"), "b: the run has no checkpoint.safetensors and no state to resume from; train it again"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "a" in arguments:
        write_run(Path("a"))
        write_text("b/recipe.toml", "")  # a run that was killed before it saved anything
    status = main.run(["bench", *arguments, "--device", "cpu"])
    shown = capsys.readouterr()
    assert status == 2
    assert message in shown.err and shown.err.strip().count("\n") == 0
    assert shown.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--markdown", "same.md", "--json", "same.md"), "--markdown and --json: both are same.md"),
        (("--csv", "same.csv", "--json", "./same.csv"), "--csv and --json: both are ./same.csv"),
        (("--plot", "same.png", "--json", "same.png"), "--json and --plot: both are same.png"),
        (("--pictures", "same", "--json", "same"), "--json and --pictures: both are same"),
        (("--markdown", "same.txt", "--csv", "same.txt"), "--markdown and --csv: both are same.txt"),
        (("--update", "same.json", "--json", "same.json"), "--json and --update: both are same.json"),
        (("--check", "same.json", "--json", "same.json"), "--json and --check: both are same.json"),
    ],
)
def test_two_outputs_in_one_file_are_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["bench", "RN-mini", "--image-size", "64", *arguments, "--force", "--quiet"]) == 2
    shown = capsys.readouterr()
    assert f"{message}; give each a file of its own" in shown.err and shown.out == ""
    assert list(Path().iterdir()) == []


def test_json_alone_on_stdout_and_no_overwriting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "RN-mini", "--image-size", "64", "--json", "-", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["flops"]["image_size"] == [64, 64]
    Path("mine.json").write_text("precious")
    assert main.run(["bench", "RN-mini", "--json", "mine.json", "--quiet"]) == 2
    assert Path("mine.json").read_text() == "precious"


def test_a_truncated_checkpoint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("a"))
    file = Path("a/checkpoint.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert main.run(["bench", "a", "--device", "cpu"]) == 2
    assert "not an intact safetensors file" in capsys.readouterr().err
