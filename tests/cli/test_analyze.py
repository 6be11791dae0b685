"""`ovstrans analyze`: what it writes and shows, and how it ends on bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ovstrans.cli import main
from ovstrans.clip.load import random_clip
from ovstrans.clip.models import bundled_folder
from ovstrans.masks.file import save_mask
from ovstrans.masks.mask import Mask
from tests.checkpoints.dummies import make_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random RN-mini weights."""
    path = tmp_path_factory.mktemp("weights") / "tower.safetensors"
    save_file({key: value.contiguous() for key, value in random_clip().visual.state_dict().items()}, path)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*options: object) -> int:
    return main.run(["analyze", *map(str, options), "--device", "cpu"])


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_file_and_the_table(weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--pretrained", weights) == 0
    assert written(folder) == {"ovstrans-out/alpha.json"}
    value = json.loads((folder / "ovstrans-out/alpha.json").read_text())
    out = capsys.readouterr().out
    frozen = value["plan"]["frozen"]
    convs = [layer for layer in value["layers"] if len(layer["shape"]) == 4]
    assert len(frozen) == len(convs) // 2
    assert f"{len(frozen)} of {len(convs)} layers frozen" in " ".join(out.split())
    for layer in value["layers"]:
        line = next(line for line in out.splitlines() if f" {layer['name']} " in line)
        assert f"{layer['alpha']:.3f}" in line
        assert (" yes " in line) == (layer["name"] in frozen)


@pytest.mark.skipif(
    not (bundled_folder() / "open_clip_model.safetensors").exists(), reason="the bundled weights are not there yet"
)
def test_without_arguments_the_bundled_model_is_analysed(folder: Path) -> None:
    assert main.run(["analyze"]) == 0
    value = json.loads((folder / "ovstrans-out/alpha.json").read_text())
    assert (value["model"], value["pretrained"]) == ("RN-mini", "bundled")
    assert value["plan"]["frozen"]


def test_options_reach_the_analysis(weights: Path, folder: Path) -> None:
    options = ["--xmin", "mid", "--freeze", "count:5", "--scaling", "none", "--relative-cut", "1e-4", "--min-tail", "3"]
    assert run("--pretrained", weights, *options, "--seed", 4, "--out", "a.json") == 0
    value = json.loads((folder / "a.json").read_text())
    assert value["settings"] == {
        "xmin": "mid", "scaling": "none", "cut": None, "relative_cut": 1e-4, "min_tail": 3, "seed": 4, "mask": None,
    }  # fmt: skip
    assert value["plan"]["rule"] == "count:5" and len(value["plan"]["frozen"]) == 5


def test_pictures_go_beside_the_file(weights: Path, folder: Path) -> None:
    assert run("--pretrained", weights, "--plot", "--plot-esd", "conv1,layer1.*.conv2", "--out", "x/a.json") == 0
    assert written(folder) == {"x/a.json", "x/a.png", "x/a-esd.png"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("x/a.png", "x/a-esd.png"))


def test_json_goes_to_stdout_alone(weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--pretrained", weights, "--json", "-", "--out", "a.json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "a.json").read_text())


def test_a_mask_is_applied(weights: Path, folder: Path) -> None:
    shape = random_clip().visual.get_parameter("layer1.0.conv1.weight").shape
    kept = torch.zeros(shape, dtype=torch.bool)
    save_mask(folder / "mask.safetensors", Mask({"layer1.0.conv1.weight": kept}, model="RN-mini", method="none"))
    assert run("--pretrained", weights, "--mask", "mask.safetensors", "--out", "a.json") == 0
    value = json.loads((folder / "a.json").read_text())
    layer = next(layer for layer in value["layers"] if layer["name"] == "layer1.0.conv1")
    assert layer["alpha"] is None and "zero" in layer["warning"]
    assert value["settings"]["mask"]["sparsity"] == 1.0


@pytest.mark.parametrize("as_run", [True, False])
def test_a_checkpoint_or_its_run_folder_is_analysed(folder: Path, as_run: bool) -> None:
    from ovstrans.checkpoints.file import save_checkpoint

    state = {f"backbone.{key}": value for key, value in random_clip().visual.state_dict().items()}
    checkpoint = make_checkpoint(masked=False, state=state)
    checkpoint.clip = {**checkpoint.clip, "model": "RN-mini"}
    save_checkpoint(folder / "run" / "checkpoint.safetensors", checkpoint)
    assert run("run" if as_run else "run/checkpoint.safetensors", "--out", "a.json") == 0
    value = json.loads((folder / "a.json").read_text())
    assert value["model"] == "RN-mini" and len(value["layers"]) > 20


def test_nothing_is_replaced_without_force(weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.json", "b.png", "c.txt"):
        (folder / name).write_text("mine")
    assert run("--pretrained", weights, "--out", "a.json") == 2
    assert run("--pretrained", weights, "--out", "b.json", "--plot") == 2
    assert run("--pretrained", weights, "--out", "d.json", "--json", "c.txt") == 2
    assert capsys.readouterr().err.count("--force") == 3
    assert all((folder / name).read_text() == "mine" for name in ("a.json", "b.png", "c.txt"))
    assert not (folder / "b.json").exists() and not (folder / "d.json").exists()
    assert run("--pretrained", weights, "--out", "a.json", "--force") == 0
    assert json.loads((folder / "a.json").read_text())["schema"] == "ovstrans.alpha/1"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--freeze", "mean"], "no such rule"),
        (["--freeze", "count:999"], "ask for fewer"),
        (["--xmin", "best"], "ks, peak, mid, opentrans"),
        (["--cut", "-1"], "--cut -1.0"),
        (["--scaling", "half"], "published, none, fan"),
        (["--min-tail", "0"], "--min-tail 0"),
        (["--plot-esd", "layer1.0.conv7"], "layer1.0.conv"),
        (["--mask", "none.safetensors"], "none.safetensors: no such file"),
        (["--out", "plot.png"], "is the JSON file"),
        (["--out", "same.json", "--json", "same.json"], "in the way of same.json"),
        (["run/that/is/not"], "no such file"),
        (["RN51"], "did you mean"),
    ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(
    weights: Path, folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], match: str
) -> None:
    named = [] if options[0].startswith("R") or options[0].startswith("run") else ["--pretrained", weights]
    assert run(*named, *options) == 2
    errors = capsys.readouterr().err
    assert match in errors and "Traceback" not in errors
    assert sum(line.startswith("error:") for line in errors.splitlines()) == 1
    assert written(folder) == set()


def test_nan_weights_and_other_files_are_refused(
    weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ovstrans.checkpoints.file import save_checkpoint

    assert run(weights, "--out", "a.json") == 2
    assert f"--pretrained {weights}" in capsys.readouterr().err
    (folder / "empty").mkdir()
    assert run("empty", "--out", "a.json") == 2
    assert "no checkpoint.safetensors in this folder" in capsys.readouterr().err
    assert run(weights, "--pretrained", weights, "--out", "a.json") == 2
    assert "leave out --pretrained" in capsys.readouterr().err
    state = {f"backbone.{key}": value for key, value in random_clip().visual.state_dict().items()}
    state["backbone.layer2.0.conv2.weight"][0, 0] = float("nan")
    checkpoint = make_checkpoint(masked=False, state=state)
    checkpoint.clip = {**checkpoint.clip, "model": "RN-mini"}
    save_checkpoint(folder / "nan.safetensors", checkpoint)
    assert run("nan.safetensors", "--out", "a.json") == 2
    assert "layer2.0.conv2" in capsys.readouterr().err
    assert not (folder / "a.json").exists()
