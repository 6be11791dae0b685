from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ovstrans.environment import environment
from ovstrans.errors import InputError
from ovstrans.training.resolve import choose_recipe
from ovstrans.training.run_folder import RunFolder
from ovstrans.training.state import save_state


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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stop: BaseException, words: str
) -> None:
    folder = begun(tmp_path / "a run")
    with pytest.raises(type(stop)), folder.guarded():
        folder.state.parent.mkdir()
        save_state(folder.state, {"step": 7, "model": {"w": torch.ones(3)}})
        raise stop
    command = f"ovstrans finetune --resume --out '{folder.path}'"
    assert capsys.readouterr().err == f"warning: {folder.path}: {words} step 7; go on with: {command}\n"
    assert folder.log.exists() and folder.saved_step() == 7


def test_a_run_without_a_checkpoint_says_how_to_come_by_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a run of `ovstrans finetune`"):
        RunFolder(tmp_path).require_checkpoint()
    folder = begun(tmp_path / "run")
    with pytest.raises(InputError, match=r"no state to go on from; train again: .* finetune --force --out .*run$"):
        folder.require_checkpoint()
    folder.state.parent.mkdir()
    folder.state.touch()
    with pytest.raises(InputError, match=r"go on with: ovstrans finetune --resume --out .*run$"):
        folder.require_checkpoint()
    folder.checkpoint.touch()
    assert folder.require_checkpoint() == folder.checkpoint


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


def test_how_to_go_on_names_torchrun_where_it_ran(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert folder._command("--resume") == f"ovstrans finetune --resume --out {tmp_path}"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert folder._command("--resume").startswith("torchrun --nproc_per_node 4 -m ovstrans finetune --resume")
