from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ovstrans.checkpoints.file import save_checkpoint
from ovstrans.cli.main import run
from ovstrans.costs.target import count_costs, load_target
from ovstrans.environment import environment
from ovstrans.files import write_json
from ovstrans.masks.file import save_mask
from ovstrans.reports.report import Report
from ovstrans.spectrum.analysis import analyze
from ovstrans.spectrum.file import save_analysis
from tests.checkpoints.dummies import make_checkpoint
from tests.masks.dummies import Encoder, make_mask
from tests.reports.test_tables import result


@functools.lru_cache
def report() -> dict[str, Any]:
    """Return what `bench` writes of the mini CLIP's backbone, with a figure of a dataset."""
    target = load_target("RN-mini")
    costs = count_costs(target, (32, 32)).without_layers()
    return Report(target.describe(), environment("cpu"), costs, {"scenes:val": result(25.0)}).to_json()


NAMES = ("mask.safetensors", "checkpoint.safetensors", "alpha.json", "report.json", "weights.pt", "run")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each kind."""
    folder = tmp_path_factory.mktemp("made")
    save_mask(folder / "mask.safetensors", make_mask(method="imp"))
    save_checkpoint(folder / "checkpoint.safetensors", make_checkpoint())
    save_analysis(folder / "alpha.json", analyze(Encoder()))
    write_json(folder / "report.json", report())
    torch.save(Encoder().state_dict(), folder / "weights.pt")
    (folder / "run").mkdir()
    (folder / "run" / "recipe.toml").write_text("[training]\nsteps = 2\n")
    (folder / "run" / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n')
    shutil.copy(folder / "checkpoint.safetensors", folder / "run")
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path) -> dict[str, Path]:
    """One of each kind, to be spoilt."""
    shutil.copytree(made, tmp_path / "files")
    return {name: tmp_path / "files" / name for name in NAMES}


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert run(["inspect", *arguments, "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == "ovstrans.inspect/1"
    return value["files"]


@pytest.mark.parametrize(
    ("name", "shows"),
    [
        ("mask.safetensors", ["mask", "imp", "layer1.0.conv1", "6x4x3x3", "sparsity"]),
        ("checkpoint.safetensors", ["sparse checkpoint", "street (3 classes)", "layer1.1.conv2", "scenes"]),
        ("alpha.json", ["alpha file", "median", "layer1.0.conv1"]),
        ("report.json", ["report", "RN-mini", "scenes:val mIoU"]),
        ("weights.pt", ["an image encoder", "layer1.0.conv1.weight"]),
        ("run", ["run folder", "training.steps 2", "loss 1.5", "sparse checkpoint"]),
    ],
)
def test_each_kind_is_recognised(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], name: str, shows: list[str]
) -> None:
    assert run(["inspect", str(files[name])]) == 0
    shown = capsys.readouterr().out
    assert "intact" in shown
    for text in shows:
        assert text in shown


def test_json_has_everything_and_nothing_else_is_on_stdout(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, *(str(path) for path in files.values()))
    assert [entry["kind"] for entry in found] == [
        "mask",
        "sparse checkpoint",
        "alpha file",
        "report",
        "weights",
        "run folder",
        "sparse checkpoint",
    ]
    assert found[0]["rows"][0]["kept"] == int(make_mask().tensors["layer1.0.conv1.weight"].sum())
    assert all(entry["intact"] for entry in found)


def test_json_file_is_not_overwritten_without_force(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    mask = str(files["mask.safetensors"])
    assert run(["inspect", mask, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["files"][0]["kind"] == "mask"
    assert run(["inspect", mask, "--json", str(out)]) == 2
    assert run(["inspect", mask, "--json", str(out), "--force"]) == 0


def test_nan_is_found_without_verifying(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(files["weights.pt"], weights_only=True)
    state["layer1.0.conv1.weight"][0] = float("nan")
    torch.save(state, files["weights.pt"])
    files["alpha.json"].write_text(files["alpha.json"].read_text().replace('"D": ', '"D": NaN, "was": ', 1))
    for name, words in (("weights.pt", "layer1.0.conv1.weight holds"), ("alpha.json", "NaN is no number")):
        assert run(["inspect", str(files[name])]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


def test_verified_plan(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "plan follows from the alphas" in as_json(capsys, str(files["alpha.json"]), "--verify")[0]["checks"]
    value = json.loads(files["alpha.json"].read_text())
    frozen = value["plan"]["frozen"]
    value["plan"]["frozen"] = frozen[1:] if frozen else [value["layers"][0]["name"]]
    write_json(files["alpha.json"], value)
    assert run(["inspect", str(files["alpha.json"])]) == 0
    assert run(["inspect", str(files["alpha.json"]), "--verify"]) == 3


def test_verified_checkpoint_can_be_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ovstrans.clip.load import random_clip
    from ovstrans.clip.text import TextClassifier
    from ovstrans.frameworks.registry import build
    from tests.checkpoints.dummies import VOCABULARY

    clip = random_clip()
    text = TextClassifier(torch.eye(clip.embed_dim)[:4], torch.tensor([0, 1, 1, 2]), VOCABULARY)
    framework = build("deeplabv3", encoder=clip.visual, mean=clip.mean, std=clip.std, text=text)
    checkpoint = make_checkpoint(
        masked=False,
        framework="deeplabv3",
        options=framework.options,
        state=framework.state_dict(),
        text_embeddings=text.embeddings,
        clip=clip.describe(),
    )
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, checkpoint)
    assert "deeplabv3 can be built from it" in as_json(capsys, str(path), "--verify")[0]["checks"]
    del checkpoint.state["backbone.layer1.0.conv1.weight"]
    save_checkpoint(path, checkpoint)
    assert run(["inspect", str(path)]) == 0
    assert run(["inspect", str(path), "--verify"]) == 2
    assert f"{path}: " in capsys.readouterr().err


def spoil(files: dict[str, Path], what: str) -> Path:
    if what == "truncated mask":
        files["mask.safetensors"].write_bytes(files["mask.safetensors"].read_bytes()[:-3])
        return files["mask.safetensors"]
    if what == "truncated checkpoint":
        files["checkpoint.safetensors"].write_bytes(files["checkpoint.safetensors"].read_bytes()[:-3])
        return files["checkpoint.safetensors"]
    if what == "truncated weights":
        files["weights.pt"].write_bytes(files["weights.pt"].read_bytes()[:-300])
        return files["weights.pt"]
    if what == "cut alpha file":
        files["alpha.json"].write_text(files["alpha.json"].read_text()[:-20])
        return files["alpha.json"]
    if what == "alpha file without its plan":
        value = json.loads(files["alpha.json"].read_text())
        del value["plan"]
        write_json(files["alpha.json"], value)
        return files["alpha.json"]
    if what == "report without figures":
        write_json(files["report.json"], {**report(), "flops": {}})
        return files["report.json"]
    if what == "run with a broken log":
        (files["run"] / "log.jsonl").write_text('{"step": 1}\n{"st')
        return files["run"]
    if what == "run with a broken checkpoint":
        (files["run"] / "checkpoint.safetensors").write_bytes(b"nothing")
        return files["run"]
    other = files["run"].parent / "other"
    if what == "folder":
        other.mkdir()
    elif what == "foreign JSON":
        other.write_text('{"a": 1}')
    elif what == "text":
        other.write_text("hello")
    elif what == "empty":
        other.write_text("")
    return other


@pytest.mark.parametrize(
    "what",
    [
        "truncated mask",
        "truncated checkpoint",
        "truncated weights",
        "cut alpha file",
        "alpha file without its plan",
        "report without figures",
        "run with a broken log",
        "run with a broken checkpoint",
        "folder",
        "foreign JSON",
        "text",
        "empty",
        "missing",
    ],
)
def test_broken_and_unknown_files_end_in_one_line(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], what: str
) -> None:
    path = spoil(files, what)
    assert run(["inspect", str(path)]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert str(path) in captured.err and "Traceback" not in captured.err


def test_unfinished_run_may_have_a_cut_log(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (files["run"] / "checkpoint.safetensors").unlink()
    (files["run"] / "log.jsonl").write_text('{"step": 1}\n{"st')
    found = as_json(capsys, str(files["run"]))
    assert found[0]["finished"] is False and found[0]["steps_logged"] == 1


def test_a_broken_file_does_not_hide_the_others(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    bad = spoil(files, "truncated mask")
    assert run(["inspect", str(bad), str(bad), str(files["alpha.json"])]) == 2
    captured = capsys.readouterr()
    assert "alpha file" in captured.out and len(captured.err.splitlines()) == 2
    assert run(["inspect", str(bad), str(files["alpha.json"]), "--json", "-"]) == 2
    entries = json.loads(capsys.readouterr().out)["files"]
    assert [entry["intact"] for entry in entries] == [False, True]
