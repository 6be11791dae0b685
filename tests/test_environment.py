"""Devices by name, and the environment that a file records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ovstrans.environment import environment, pick_device
from ovstrans.errors import InputError
from ovstrans.version import __version__

REPORT = ["ovstrans", "python", "torch", "platform", "device", "threads"]
RUN = [
    "schema",
    "ovstrans",
    "python",
    "torch",
    "torchvision",
    "open_clip",
    "platform",
    "device",
    "processes",
    "threads",
    "cores",
    "command",
]


def test_a_device_by_name() -> None:
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["tpu", "cpu:0:1", "", "mps"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="use auto, cpu or cuda"):
        pick_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"`device=cuda:1`: torch sees no CUDA device here; use `device=cpu`"):
        pick_device("cuda:1")


def test_a_report_records_what_its_figures_depend_on() -> None:
    found = environment("cpu")
    assert list(found) == REPORT
    assert (found["ovstrans"], found["torch"], found["device"]) == (__version__, torch.__version__, "cpu")
    assert found["threads"] == torch.get_num_threads()


def test_a_run_records_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(Path("bin") / "ovstrans"), "finetune", "--steps", "2"])
    found = environment(torch.device("cpu"), processes=3)
    assert list(found) == RUN
    assert found["processes"] == 3 and found["command"] == ["ovstrans", "finetune", "--steps", "2"]
    assert json.loads(json.dumps(found)) == found
