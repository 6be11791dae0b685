"""`ovstrans finetune` as a user runs it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from ovstrans import files
from ovstrans.checkpoints.file import load_checkpoint
from ovstrans.cli import main
from ovstrans.cli.main import run
from ovstrans.clip.layers import scope_layers
from ovstrans.clip.load import random_clip
from ovstrans.masks.file import save_mask
from ovstrans.masks.mask import Mask
from ovstrans.training.run_folder import RunFolder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUICK = (
    "data.size=64",
    "data.images=4",
    "augment.crop=64",
    "training.batch=2",
    "training.precision=fp32",
    "model.width=8",
    "model.output_stride=32",
)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A working directory with CLIP weights, and a run of two steps."""
    monkeypatch.chdir(tmp_path)
    clip = random_clip(seed=1)
    files.write_tensors("clip.safetensors", clip.model.state_dict(), {})
    changes = [word for change in QUICK for word in ("--set", change)]
    return ["finetune", "--pretrained", "clip.safetensors", "--steps", "2", "--device", "cpu", *changes]


def leave_mask(path: Path, model: str = "RN-mini") -> Mask:
    tensors = {
        f"{name}.weight": torch.rand(conv.shape) > 0.9 for name, conv in scope_layers(random_clip().visual).items()
    }
    mask = Mask(tensors, model=model)
    save_mask(path, mask)
    return mask


def test_the_mask_that_prune_left_is_picked_up_and_said(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mask = leave_mask(Path("ovstrans-out/mask.safetensors"))
    assert run(arguments) == 0
    out = Path("ovstrans-out/run")
    checkpoint = load_checkpoint(out / "checkpoint.safetensors")
    assert checkpoint.mask is not None and mask.violations(checkpoint.state) == []
    said = capsys.readouterr()
    assert "mask: ovstrans-out/mask.safetensors (--no-mask to go without)" in said.err and said.out == ""
    recipe = tomllib.loads((out / "recipe.toml").read_text())
    assert recipe["run"]["mask"] == str(Path("ovstrans-out/mask.safetensors").absolute())
    assert recipe["training"]["steps"] == 2

    assert run([*arguments, "--resume"]) == 0 and "nothing to resume" in capsys.readouterr().err
    assert run(arguments) == 2 and "--force" in capsys.readouterr().err
    assert run([*arguments, "--force", "--no-mask", "--quiet"]) == 0
    assert load_checkpoint(out / "checkpoint.safetensors").mask is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_saves_and_resume_needs_no_other_argument(
    arguments: list[str],
    signum: int,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    append = RunFolder.append

    def noisy(self: RunFolder, entry: dict) -> None:
        append(self, entry)
        signal.raise_signal(signum)

    previous = signal.signal(signal.SIGTERM, main._terminate)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "append", noisy)
            assert run([*arguments, "--out", "run"]) == status
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert "run: saved after step 1; --resume with --out run continues it\n" in capsys.readouterr().err
    assert run(["finetune", "--resume", "--out", "run", "--device", "cpu", "--set", "optimizer.lr=9.0"]) == 2
    assert "optimizer.lr is 0.001, not 9.0" in capsys.readouterr().err
    assert run(["finetune", "--resume", "--out", "run", "--device", "cpu"]) == 0
    assert [json.loads(line)["step"] for line in Path("run/log.jsonl").read_text().splitlines()] == [1, 2]
    assert "continues after step 1" in capsys.readouterr().err


@pytest.mark.parametrize("saved", [False, True])
def test_a_run_that_diverges_keeps_what_it_saved_or_leaves_nothing(
    arguments: list[str], saved: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ["--set", "optimizer.lr=1e30", "--set", "schedule.warmup=0", "--set", f"training.save_every={2 - saved}"]
    assert run([*arguments, *wild, "--out", "run"]) == 2
    err = capsys.readouterr().err
    assert "training diverged: lower optimizer.lr" in err.splitlines()[-1]
    assert ("run: keeps what was saved after step 1; " in err) is saved
    assert Path("run").exists() is saved
    if not saved:
        assert run([*arguments, "--out", "run"]) == 0  # nothing is in the way


def test_a_resumed_run_takes_its_own_mask_and_no_other(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the mask nor the plan in ovstrans-out is for a run that was started without."""
    leave_mask(Path("ovstrans-out/mask.safetensors"))
    append = RunFolder.append

    def noisy(self: RunFolder, entry: dict) -> None:
        append(self, entry)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", noisy)
        assert run([*arguments, "--no-mask"]) == 130
    capsys.readouterr()
    assert run(["finetune", "--resume", "--device", "cpu"]) == 0
    assert load_checkpoint("ovstrans-out/run/checkpoint.safetensors").mask is None
    assert "mask.safetensors" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--mask", "none.safetensors"], "none.safetensors: no such file"),
        (["--plan", "none.json"], "none.json: no such file"),
        (["--mask", "m", "--no-mask"], "--mask and --no-mask"),
        (["--set", "optimizer.lrr=1"], "did you mean 'optimizer.lr'"),
        (["--recipe", "none.toml"], "none.toml: no such recipe file"),
        (["--data", "folder:nowhere"], "nowhere"),
        (["--pretrained", "none.safetensors"], "none.safetensors"),
        (["--init", "pruned"], "--init pruned: needs --weights"),
        (["--plan-after", "2"], "--plan-after 2 must be below the length of the run, --steps 2"),
        (["--plan-after", "1", "--freeze", "mean"], "mean"),
        (["--device", "tpu"], "use auto, cpu or cuda"),
        (["--out", "clip.safetensors"], "give another --out"),
        (["--freeze", "count:3"], "is the rule of --plan-after"),
        (["--weights", "clip.safetensors"], "goes with --init pruned"),
        (["--set", "optimizer.lr=inf"], "--set optimizer.lr=inf: a finite number"),
        (["--set", "optimizer.clip_norm=nan"], "--set optimizer.clip_norm=nan: a finite number"),
        (["--set", "training.batch=99999"], "between 1 and 65536"),
        (["--seed", "-1"], "--seed"),
        (["--resume"], "no run to resume"),
        (["deeplabv4"], "did you mean 'deeplabv3'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert run([*arguments, *more]) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err and err.count("\n") == 1
    assert sorted(path for path in Path().rglob("*") if "cache" not in path.parts) == before


def test_nothing_is_said_of_mask_and_plan_where_the_run_cannot_be_written(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    leave_mask(Path("ovstrans-out/mask.safetensors"))
    assert run([*arguments, "--out", "clip.safetensors"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: clip.safetensors") and err.count("\n") == 1


def test_a_mask_for_another_model_is_left_aside(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    leave_mask(Path("ovstrans-out/mask.safetensors"), model="RN50")
    assert run(arguments) == 0
    assert "is for RN50, not RN-mini; not used" in capsys.readouterr().err


def test_a_mask_for_another_model_given_by_hand_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    leave_mask(Path("mask.safetensors"), model="RN50")
    assert run([*arguments, "--mask", "mask.safetensors"]) == 2
    assert "another architecture" in capsys.readouterr().err
