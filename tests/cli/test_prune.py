from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from ovstrans.cli import main
from ovstrans.clip.load import random_clip
from ovstrans.clip.models import bundled_folder
from ovstrans.masks.file import load_mask, load_weights
from ovstrans.pruning import rounds

QUICK = [
    "--image-size",
    "32",
    "--batch",
    "2",
    "--rate",
    "0.6",
    "--steps",
    "1",
    "--set",
    "prune.final_steps=1",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini image encoder with random weights and live residual branches."""
    encoder = random_clip("RN-mini", seed=1).visual
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
    path = tmp_path_factory.mktemp("weights") / "tower.safetensors"
    save_file(encoder.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a folder of pictures."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        (tmp_path / "pictures" / "deep").mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 255, (9, 12, 3), generator=torch.Generator().manual_seed(number)).byte()
        Image.fromarray(noise.numpy()).resize((60, 45)).save(tmp_path / "pictures" / "deep" / f"{number}.png")
    return tmp_path


@pytest.fixture
def prune(weights: Path) -> Callable[..., int]:
    def run(*options: str) -> int:
        base = ["prune", "--pretrained", str(weights), *QUICK, "--data", "folder:pictures"]
        return main.run([*base, *options])

    return run


def written(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "pictures" not in path.parts
    }


def test_writes_mask_weights_plot_and_summary(prune: Callable[..., int], folder: Path, weights: Path) -> None:
    assert prune("--json", "summary.json") == 0
    home = "ovstrans-out/"
    assert written(folder) == {
        home + "mask.safetensors",
        home + "mask.weights.safetensors",
        home + "mask.png",
        "summary.json",
    }
    mask = load_mask(home + "mask.safetensors")
    dense = load_file(weights)
    body = {key for key, value in dense.items() if key.startswith("layer") and value.dim() == 4}
    total = sum(dense[key].numel() for key in body)
    assert set(mask.tensors) == body
    assert mask.kept == round((1 - 0.9) * total)
    assert (mask.model, mask.method, mask.pretrained) == ("RN-mini", "imp", str(weights))

    state, metadata = load_weights(home + "mask.weights.safetensors")
    assert state.keys() == dense.keys()
    for key, kept in mask.tensors.items():
        assert not bool(state[key][~kept].any())
    assert metadata["weights_sha256"] == mask.weights_sha256 and metadata["mask"] == "mask.safetensors"

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["schema"] == "ovstrans.prune/1"
    assert summary["kept"] == mask.kept and summary["total"] == total
    assert summary["sparsity"] == pytest.approx(0.9, abs=1e-6)
    assert [layer["name"] + ".weight" for layer in summary["layers"]] == list(mask.tensors)
    assert sum(layer["kept"] for layer in summary["layers"]) == mask.kept
    assert [each["round"] for each in summary["rounds"]] == [1, 2, 3]
    assert all(each["loss"] > 0 for each in summary["rounds"])
    with Image.open(home + "mask.png") as picture:
        assert picture.size[0] > 600


def test_pruned_weights_load_as_a_clip(prune: Callable[..., int]) -> None:
    from ovstrans.clip.load import load_clip

    assert prune("--no-plot", "--steps", "0") == 0
    clip = load_clip("RN-mini", "ovstrans-out/mask.weights.safetensors")
    assert load_mask("ovstrans-out/mask.safetensors").violations(clip.visual) == []


@pytest.mark.skipif(not (bundled_folder() / "open_clip_model.safetensors").exists(), reason="needs the bundled weights")
def test_defaults_are_the_mini_clip_and_scenes(folder: Path) -> None:
    assert (
        main.run(
            [
                "prune",
                "--batch",
                "2",
                "--set",
                "data.images=4",
                "--set",
                "prune.final_steps=1",
                "--rate",
                "0.8",
                "--steps",
                "1",
            ]
        )
        == 0
    )
    mask = load_mask("ovstrans-out/mask.safetensors")
    assert (mask.model, mask.pretrained, mask.recipe["data"]["dataset"]) == ("RN-mini", "bundled", "scenes")


def test_json_to_stdout_is_nothing_else(prune: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    assert prune("--steps", "0", "--no-plot", "--json", "-") == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["mask"] == "ovstrans-out/mask.safetensors"
    assert summary["rounds"][0]["loss"] is None


def test_table_lists_every_layer(prune: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    assert prune("--steps", "0", "--no-plot", "--scope", "layer4.*") == 0
    shown = capfd.readouterr().out
    assert "layer4.1.conv2" in shown and "layer3" not in shown and "10.00 %" in shown


def test_random_like_a_mask(prune: Callable[..., int], folder: Path) -> None:
    assert prune("--steps", "0", "--no-plot", "--out", "imp.safetensors", "--sparsity", "0.7") == 0
    assert prune("--no-plot", "--out", "random.safetensors", "--like", "imp.safetensors") == 0
    imp, random = load_mask("imp.safetensors"), load_mask("random.safetensors")
    assert random.method == "random" and random.recipe["like"]["kept"] == imp.kept
    assert random.layer_densities() == imp.layer_densities()
    assert any(not torch.equal(imp.tensors[key], random.tensors[key]) for key in imp.tensors)


@pytest.fixture
def terminable() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, main._terminate)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_then_resumed_is_the_same(
    prune: Callable[..., int],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    terminable: None,
    sent: signal.Signals,
    status: int,
) -> None:
    assert prune("--no-plot", "--out", "whole.safetensors") == 0
    distil, calls = rounds._distil, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            signal.raise_signal(sent)
        return distil(*arguments)

    monkeypatch.setattr(rounds, "_distil", interrupted)
    assert prune("--no-plot", "--out", "mask.safetensors") == status
    assert "--resume" in capfd.readouterr().err
    assert written(folder) == {"whole.safetensors", "whole.weights.safetensors", "mask.resume.pt"}

    assert prune("--no-plot", "--out", "mask.safetensors") == 2  # neither --resume nor --force
    assert "--resume" in capfd.readouterr().err
    assert prune("--no-plot", "--out", "mask.safetensors", "--resume", "--lr", "0.5") == 2
    assert "optimizer.lr" in capfd.readouterr().err

    assert prune("--no-plot", "--out", "mask.safetensors", "--resume") == 0
    assert len(calls) == 4  # only the last of three rounds again
    assert Path("mask.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    one, other = load_file("mask.weights.safetensors"), load_file("whole.weights.safetensors")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not Path("mask.resume.pt").exists()


def test_resume_is_as_that_of_finetune(
    prune: Callable[..., int], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With nothing there it is an error, and a finished run is shown as it is: `test_finetune.py` has the same."""
    assert prune("--no-plot", "--resume") == 2
    assert capfd.readouterr().err.startswith(
        "error: ovstrans-out/mask.safetensors: no run to resume (neither it nor ovstrans-out/mask.resume.pt is there); "
        "leave out --resume, or give its --out"
    )
    assert written(folder) == set()
    assert prune("--no-plot", "--steps", "0") == 0
    first = capfd.readouterr()
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert prune("--no-plot", "--resume") == 0
    again = capfd.readouterr()
    assert again.err.startswith("ovstrans-out/mask.safetensors: this run is finished; nothing to resume\n")
    assert "wrote" not in again.err
    assert again.out == first.out and "in 3 rounds" in again.out
    assert before == {path: path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_force_replaces(prune: Callable[..., int], folder: Path) -> None:
    Path("mask.safetensors").write_text("mine")
    Path("mask.resume.pt").write_text("old")
    assert prune("--no-plot", "--out", "mask.safetensors") == 2
    assert Path("mask.safetensors").read_text() == "mine"
    assert prune("--no-plot", "--out", "mask.safetensors", "--force") == 0
    assert load_mask("mask.safetensors").sparsity == pytest.approx(0.9, abs=1e-6)
    assert not Path("mask.resume.pt").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--pretrained", "gone.safetensors"], "gone.safetensors"),
        (["--pretrained", "cut.safetensors"], "cut.safetensors"),
        (["--pretrained", "script.pt"], "no image encoder of a CLIP"),
        (["--pretrained", "nan.safetensors"], "layer2.0.conv1.weight"),
        (["--method", "best"], "imp, magnitude, random"),
        (["--sparsity", "90"], "--sparsity 90.0: must be at least 0 and below 1"),
        (["--sparsity", "0.99999999"], "leaves none"),
        (["--rate", "0"], "--rate 0.0: must be above 0"),
        (["--steps", "-1"], "--steps -1: must be at least 0"),
        (["--scope", "layer9.*"], "layer9.*"),
        (["--distill", "text"], "features"),
        (["--precision", "fp8"], "auto, fp32, bf16, fp16"),
        (["--recipe", "prune-min"], "prune-mini"),
        (["--set", "prune.sparsity_=1"], "prune.sparsity"),
        (["--data", "folder:nowhere"], "nowhere"),
        (["--data", "folder:empty"], "empty"),
        (["--data", "folder:broken"], "broken"),
        (["--data", "scene"], "scenes"),
        (["--like", "gone.safetensors"], "gone.safetensors"),
        (["--like", "other.safetensors"], "layer1.0.conv1"),
        (["--like", "other.safetensors", "--sparsity", "0.5"], "--sparsity"),
        (["--like", "other.safetensors", "--method", "imp"], "--method random"),
        (["--out", "mask.pt"], "mask.pt"),
        (["--out", "file.txt/mask.safetensors"], "file.txt"),
        (["--device", "tpu"], "tpu"),
        (["--seed", "-1"], "--seed -1: must be between"),
        (["--seed", str(2**70)], "--seed"),
        (["--batch", "99999"], "between 1 and 65536"),
        (["--lr", "inf"], "--lr inf: a finite number"),
        (["--json", "empty"], "give another --json"),
        (
            ["--json", "ovstrans-out/mask.weights.safetensors"],
            "--json ovstrans-out/mask.weights.safetensors: is in the way",
        ),
        (["--json", "ovstrans-out"], "--json ovstrans-out: is in the way of ovstrans-out/mask.safetensors"),
        ([word for term in ("dense", "pooled", "stages") for word in ("--set", f"distill.{term}=0")], "are all 0"),
    ],
)
def test_bad_input_is_one_line(
    prune: Callable[..., int],
    folder: Path,
    weights: Path,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    named: str,
) -> None:
    _make_bad_files(folder, weights, named)
    before = written(folder)
    assert prune(*options) == 2
    captured = capfd.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("error: ") and named in last
    assert captured.out == ""
    assert written(folder) == before


def test_unknown_model(capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["prune", "RN5O"]) == 2
    assert "RN50" in capfd.readouterr().err


def _make_bad_files(folder: Path, weights: Path, named: str) -> None:
    from ovstrans.masks.file import save_mask
    from ovstrans.masks.mask import Mask

    (folder / "file.txt").write_text("a file")
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    save_mask(folder / "other.safetensors", Mask({"layer1.0.conv1.weight": torch.ones(3, 3, dtype=torch.bool)}, "x"))
    (folder / "cut.safetensors").write_bytes(weights.read_bytes()[:5000])
    if named == "no image encoder of a CLIP":
        torch.jit.script(nn.Linear(2, 2)).save(str(folder / "script.pt"))
    if named == "layer2.0.conv1.weight":
        state = load_file(weights)
        state[named][0, 0] = float("nan")
        save_file(state, folder / "nan.safetensors")
