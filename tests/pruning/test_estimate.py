"""What `prune` tells before it begins, and what it refuses to begin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ovstrans
from ovstrans import environment
from ovstrans.cli import main
from ovstrans.clip.load import Clip
from ovstrans.errors import InputError
from ovstrans.parsing import parse_toml
from ovstrans.pruning.prune import choose_recipe
from tests.pruning.conftest import Pictures

QUICK: dict[str, Any] = {"steps": 2, "rate": 0.7, "image_size": 64, "batch": 2, "device": "cpu", "precision": "fp32"}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_tells_all_and_does_nothing(clip: Clip, pictures: Pictures, tmp_path: Path) -> None:
    run = ovstrans.prune(clip, data=pictures, dry_run=True, out=tmp_path / "mask.safetensors", **QUICK)
    assert (run.command, run.rounds, run.steps, run.batch, run.image_size) == ("prune", 2, 4, 2, 64)
    assert (run.data, run.images, run.device, run.precision) == ("pictures:all", 12, "cpu", "float32")
    assert run.macs > 0 and run.memory > 0 and run.seconds > 0
    assert run.recipe["prune"]["steps"] == 2 and run.recipe["augment"]["crop"] == 64
    assert not list(tmp_path.iterdir())
    text = repr(run)
    assert "4 of 2 images at 64x64 pixels" in text and "pictures:all (12 images)" in text


def test_a_dry_run_without_steps_has_no_macs(clip: Clip) -> None:
    run = ovstrans.prune(clip, method="magnitude", dry_run=True)
    assert (run.steps, run.macs, run.images, run.rounds, run.seconds) == (0, 0, 0, 0, 0.0)
    assert "needed" in run.facts()["data"] and "time" not in run.facts()


def test_twice_the_batch_takes_twice_the_macs_and_more_memory(clip: Clip, pictures: Pictures) -> None:
    one, two = (ovstrans.prune(clip, data=pictures, dry_run=True, **{**QUICK, "batch": size}) for size in (8, 16))
    assert two.macs == 2 * one.macs and two.memory > one.memory


@pytest.mark.parametrize("loss", ["text-guided", "semantic"])
def test_losses_of_segments_are_estimated_too(loss: str) -> None:
    heads = ["distill.width=32", "distill.heads=2", "distill.encoder_layers=1", "distill.decoder_layers=1"]
    options: dict[str, Any] = {"distill": loss, "settings": [*heads, "data.images=4"], "device": "cpu", "batch": 2}
    run = ovstrans.prune(dry_run=True, image_size=64, **options)
    assert run.macs > 0 and run.memory > 0


def test_dry_run_and_resume_contradict(clip: Clip) -> None:
    with pytest.raises(InputError, match=r"`dry_run=True`: .*`resume=True`"):
        ovstrans.prune(clip, dry_run=True, resume=True, out="mask.safetensors")


def test_the_command_prints_a_recipe_that_repeats_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "ovstrans-out").mkdir()
    (tmp_path / "ovstrans-out" / "mask.safetensors").write_text("mine")
    assert main.run(["prune", "--dry-run", "--batch", "2", "--rate", "0.5", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert "# MACs a step" in captured.out and "# memory" in captured.out and "# time" in captured.out
    assert parse_toml(captured.out) == choose_recipe(batch=2, rate=0.5).to_table()
    assert [path.name for path in tmp_path.rglob("*")] == ["ovstrans-out", "mask.safetensors"]
    assert main.run(["prune", "--dry-run", "--steps", "0", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "ovstrans.dry-run/1"


def test_a_run_begins_with_a_headline(clip: Clip, pictures: Pictures, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ovstrans")
    ovstrans.prune(clip, data=pictures, **QUICK)
    (line,) = [each for each in caplog.messages if each.startswith("prune a CLIP by imp")]
    assert "to 90 % zeros; 2 rounds; pictures:all (12 images); 4 steps of 2 images at 64x64; cpu, float32" in line
    assert line.endswith("of memory")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--image-size", "20000"], "--image-size 20000: drawing an image takes about 40 GB"),
        (["--batch", "60000"], "a step of --batch 60000 images with --image-size 96 takes about"),
        (["--distill", "text-guided", "--image-size", "20000"], "--image-size 20000: drawing"),
    ],
)
def test_what_would_fill_the_memory_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], said: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "available_memory", lambda device: 16_000_000_000)
    assert main.run(["prune", *options, "--device", "cpu"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ") and said in err[-1] and "16 GB is free on cpu; lower --image-size" in err[-1]
    assert not list(tmp_path.iterdir())


def test_images_of_a_folder_are_checked_by_their_views(
    clip: Clip, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "available_memory", lambda device: 16_000_000_000)
    with pytest.raises(InputError, match=r"`batch=2` images with `image_size=20000` takes about .* lower"):
        ovstrans.prune(clip, data=pictures, **{**QUICK, "image_size": 20000})
    assert pictures.read == []
