from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ovstrans.environment import environment
from ovstrans.errors import InputError
from ovstrans.training.loop import save_state
from ovstrans.training.resolve import choose_recipe
from ovstrans.training.run_folder import Run, RunFolder


def test_a_run_begins_with_its_recipe_and_its_environment(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = choose_recipe(seed=7)
    folder.begin(settings, environment(torch.device("cpu"), processes=1), force=False)
    assert folder.stored() == settings
    found = json.loads((folder.path / "environment.json").read_text())
    assert found["torch"] == torch.__version__ and found["processes"] == 1


def test_an_older_run_is_replaced_only_by_force_and_then_wholly(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(choose_recipe(), {}, force=False)
    for path in (folder.log, folder.checkpoint, folder.alpha, folder.state, folder.path / "notes.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")
    with pytest.raises(InputError, match="`force=True`"):
        folder.begin(choose_recipe(), {}, force=False)
    folder.begin(choose_recipe(), {}, force=True)
    assert {path.name for path in folder.path.iterdir()} == {"recipe.toml", "environment.json", "notes.txt"}


def test_the_log_goes_back_to_the_step_that_was_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(1, 6):
        folder.append({"step": step, "loss": 0.5})
    with folder.log.open("a") as log:
        log.write('{"step": 6, "lo')  # a kill in the middle of a line
    folder.rewind_log(3)
    assert [json.loads(line)["step"] for line in folder.log.read_text().splitlines()] == [1, 2, 3]


def begun(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.begin(choose_recipe(), {}, force=False)
    folder.append({"step": 1})
    return folder


@pytest.mark.parametrize("stop", [InputError("diverged"), KeyboardInterrupt()])
def test_a_run_that_saved_nothing_leaves_nothing(tmp_path: Path, stop: BaseException) -> None:
    folder = begun(tmp_path / "run")
    with pytest.raises(type(stop)), folder.guarded():
        raise stop
    assert not folder.path.exists()
    folder = begun(tmp_path / "mine")
    (folder.path / "notes.txt").write_text("mine")
    with pytest.raises(type(stop)), folder.guarded():
        raise stop
    assert [path.name for path in folder.path.iterdir()] == ["notes.txt"]
    folder = begun(tmp_path / "is_worker_rank")
    with pytest.raises(type(stop)), folder.guarded(main=False):
        raise stop
    assert folder.log.exists()


@pytest.mark.parametrize(
    ("stop", "words"), [(InputError("diverged"), "keeps what was saved after"), (KeyboardInterrupt(), "saved after")]
)
def test_what_a_run_saved_is_kept_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stop: BaseException, words: str
) -> None:
    folder = begun(tmp_path / "a run")
    with pytest.raises(type(stop)), folder.guarded():
        folder.state.parent.mkdir()
        save_state(folder.state, {"step": 7, "model": {"w": torch.ones(3)}})
        raise stop
    told = f"{folder.path}: {words} step 7; `resume=True` with `out={folder.path}` continues it"
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [("WARNING", told)]
    assert folder.log.exists() and folder.saved_step() == 7


def test_a_run_without_a_checkpoint_says_how_to_come_by_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a run of `ovstrans finetune`"):
        Run.open(tmp_path)
    folder = begun(tmp_path / "run")
    with pytest.raises(InputError, match="no state to resume from; train it again"):
        Run.open(folder.path)
    folder.state.parent.mkdir()
    folder.state.touch()
    with pytest.raises(InputError, match="not finished; resume it"):
        Run.open(folder.path)


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
