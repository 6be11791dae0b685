from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ovstrans.checkpoints.file import load_checkpoint
from ovstrans.errors import InputError
from ovstrans.masks.file import load_mask
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.recipes.write import toml_text
from ovstrans.training.distributed import World, is_worker_rank, launched, parallel, process_group
from tests.training.conftest import train

ALONE = World(0, 1, torch.device("cpu"))


def test_alone_nothing_is_exchanged() -> None:
    assert ALONE.main and ALONE.any(True) and not ALONE.any(False)
    assert ALONE.mean({"a": 1.5}) == {"a": 1.5} and ALONE.broadcast([1]) == [1]
    ALONE.barrier()
    module = nn.Linear(1, 1)
    assert parallel(module, ALONE) is module


def test_a_batch_is_shared_equally_or_refused() -> None:
    world = World(1, 4, torch.device("cpu"))
    assert world.share(12) == 3 and not world.main
    with pytest.raises(InputError, match="multiple of 4"):
        world.share(10)


def test_without_torchrun_the_world_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert not launched() and not is_worker_rank()
    with process_group("cpu") as world:
        assert world == ALONE
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    assert launched() and is_worker_rank()
    monkeypatch.setenv("RANK", "0")
    assert launched() and not is_worker_rank()


_GROUP = """
import sys
from pathlib import Path
import torch
from torch import nn
from ovstrans.training import distributed
from ovstrans.training.finetune import finetune

recipe, out = sys.argv[1:]
with distributed.process_group("cpu") as world:
    assert world.size == 2 and world.share(4) == 2
    assert world.any(world.rank == 1) and not world.any(False)
    assert world.mean({"x": float(world.rank), "y": 3.0}) == {"x": 0.5, "y": 3.0}
    assert world.broadcast(["rank", world.rank]) == ["rank", 0]
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, float(world.rank))
    both = distributed.parallel(model, world)
    both(torch.full((1, 2), 1.0 + world.rank)).sum().backward()
    assert model.weight.grad.tolist() == [[1.5, 1.5]]  # the mean of both
    run = finetune(recipe=recipe, out=out, device="cpu")
    assert len(run.plan.frozen) == 3
    Path(f"{out}.{world.rank}").touch()
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tiny: Callable[..., FinetuneRecipe], tmp_path: Path, mask_file: Path) -> None:
    """Under torchrun on gloo: rank 0 writes, the mask holds, the plan is agreed on, and it learns what one would."""
    settings = tiny("training.steps=3", "model.dropout=0.0", mask=str(mask_file), plan_after=2, freeze="count:3")
    (tmp_path / "group.py").write_text(_GROUP)
    (tmp_path / "recipe.toml").write_text(toml_text(settings.to_table()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "group.py"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [*command, "recipe.toml", "run"],
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run.0").exists() and (tmp_path / "run.1").exists()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3]
    end = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert load_mask(mask_file).violations(end.state) == [] and len(end.provenance["frozen"]) == 3
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2

    alone = train(settings, tmp_path / "alone")
    first = alone.log[0]
    # The same images and weights; BatchNorm over shares of two instead of four images makes the difference.
    assert log[0]["loss"] == pytest.approx(first["loss"], rel=0.05)
