from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ovstrans.errors import InputError
from ovstrans.training.choose import choose_settings
from ovstrans.training.run import RunFolder, environment


def test_a_run_begins_with_its_recipe_and_its_environment(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = choose_settings(seed=7)
    folder.begin(settings, environment(torch.device("cpu")), force=False)
    assert folder.stored() == settings
    found = json.loads((folder.path / "environment.json").read_text())
    assert found["torch"] == torch.__version__ and found["processes"] == 1


def test_an_older_run_is_replaced_only_by_force_and_then_wholly(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(choose_settings(), {}, force=False)
    for path in (folder.log, folder.checkpoint, folder.alpha, folder.state, folder.path / "notes.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")
    with pytest.raises(InputError, match="--force"):
        folder.begin(choose_settings(), {}, force=False)
    folder.begin(choose_settings(), {}, force=True)
    assert {path.name for path in folder.path.iterdir()} == {"recipe.toml", "environment.json", "notes.txt"}


def test_the_log_goes_back_to_the_step_that_was_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(1, 6):
        folder.append({"step": step, "loss": 0.5})
    with folder.log.open("a") as log:
        log.write('{"step": 6, "lo')  # a kill in the middle of a line
    folder.rewind_log(3)
    assert [json.loads(line)["step"] for line in folder.log.read_text().splitlines()] == [1, 2, 3]


def test_finished_means_a_checkpoint_and_no_state(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.finished
    folder.checkpoint.touch()
    assert folder.finished
    folder.state.parent.mkdir()
    folder.state.touch()
    assert not folder.finished
    folder.end()
    assert folder.finished
