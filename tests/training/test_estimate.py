"""What `finetune` tells before it begins, and what it refuses to begin."""

from __future__ import annotations

from pathlib import Path

import pytest

import ovstrans
from ovstrans import environment
from ovstrans.cli import main
from ovstrans.errors import InputError
from ovstrans.parsing import parse_toml
from ovstrans.training.resolve import choose_recipe

NONE = ["--no-mask", "--no-plan", "--device", "cpu"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_tells_all_and_does_nothing(tmp_path: Path) -> None:
    run = ovstrans.finetune(
        mask=False, plan=False, steps=7, batch=2, image_size=64, device="cpu", precision="fp32", dry_run=True
    )
    assert (run.command, run.steps, run.batch, run.image_size, run.rounds) == ("finetune", 7, 2, 64, 0)
    assert (run.data, run.device, run.precision) == ("scenes:train", "cpu", "float32") and run.images > 0
    assert run.macs > 0 and run.memory > 0 and run.seconds > 0
    assert run.recipe["training"]["steps"] == 7 and not list(tmp_path.iterdir())
    assert "deeplabv3 on RN-mini (pretrained weights), no mask, no layers frozen" in repr(run)


def test_the_command_prints_a_recipe_that_repeats_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ovstrans-out" / "run").mkdir(parents=True)
    (tmp_path / "ovstrans-out" / "run" / "mine").write_text("mine")
    assert main.run(["finetune", "fcclip", "--dry-run", "--batch", "2", "--image-size", "64", *NONE]) == 0
    out = capsys.readouterr().out
    assert "# MACs a step" in out and "# memory" in out and "# time" in out
    assert parse_toml(out) == choose_recipe("fcclip", batch=2, image_size=64, mask="", plan="").to_table()
    assert len(list(tmp_path.rglob("*"))) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--image-size", "20000"], "--image-size 20000: drawing an image takes about 40 GB"),
        (["--batch", "60000"], "a step of --batch 60000 images with --image-size 160 takes about"),
        (["--set", "augment.crop=20000"], "images with --image-size 20000 takes about"),
    ],
)
def test_what_would_fill_the_memory_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], said: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "available_memory", lambda device: 16_000_000_000)
    assert main.run(["finetune", *options, *NONE]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ") and said in err[-1] and "16 GB is free on cpu; lower --image-size" in err[-1]
    assert not list(tmp_path.iterdir())


def test_dry_run_and_resume_contradict() -> None:
    with pytest.raises(InputError, match=r"`dry_run=True`: .*`resume=True`"):
        ovstrans.finetune(dry_run=True, resume=True)
