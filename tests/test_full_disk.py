"""A disk that is full, or takes nothing: one line, exit status 2, what was there before unchanged, results first."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ovstrans import files
from ovstrans.cli import common
from ovstrans.cli.main import run
from ovstrans.errors import InputError
from ovstrans.figures import new_figure
from ovstrans.reports.report import load_reports
from tests.segmenter.case import deeplab_checkpoint, draw, write_run

WRITERS: dict[str, Callable[[Path], Any]] = {
    "torch": lambda path: torch.save({"w": torch.randn(50_000)}, path),
    "torch, old": lambda path: torch.save({"w": torch.randn(50_000)}, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path: save_file({"w": torch.randn(50_000)}, path),
    "text": lambda path: path.write_text("x" * 200_000),
    "numpy": lambda path: np.save(path.open("wb"), np.zeros(50_000)),
    "pillow": lambda path: Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)).save(
        path, format="PNG"
    ),
    "matplotlib": lambda path: new_figure(20, 20).savefig(path, format="png", dpi=400),
}

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from pathlib import Path
from ovstrans.errors import InputError
from ovstrans.files import atomic_path
from tests.test_full_disk import WRITERS
for name, write in WRITERS.items():
    try:
        with atomic_path(Path(sys.argv[1]) / "old.bin") as temporary:
            write(temporary)
    except InputError as error:
        print(name, "|", error)
"""


def test_every_writer_says_why_in_one_line(tmp_path: Path) -> None:
    """With files of at most 8 KB, every library fails in its own way."""
    (tmp_path / "old.bin").write_text("before")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines] == list(WRITERS), done.stderr
    for line in lines:
        assert "old.bin: cannot be written (" in line and line.endswith("what was there before is unchanged")
    assert (tmp_path / "old.bin").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_reasons() -> None:
    full = os.strerror(errno.ENOSPC)
    for error, reason in (
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), os.strerror(errno.EDQUOT)),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), full),
        (RuntimeError("Permission denied (os error 13)"), os.strerror(errno.EACCES)),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 576 vs 470"), "the system took only"),
        (RuntimeError("shapes do not fit"), ""),
        (ValueError("os errors"), ""),
    ):
        found = files.storage_fault(error)
        assert found.startswith(reason) if reason else found == ""


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, ending: str) -> Iterator[None]:
    """Files with this ending cannot be stored."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if str(Path(f"/proc/self/fd/{handle}").readlink()).endswith(ending):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def test_analyze_keeps_its_results_without_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(monkeypatch, ".png"):
        status = run(["analyze", "--plot", "--out", str(tmp_path / "a.json"), "--json", str(tmp_path / "copy.json")])
    out, err = capsys.readouterr()
    assert (
        status == 2 and "layer1.0.conv1" in out and (tmp_path / "a.json").exists() and (tmp_path / "copy.json").exists()
    )
    assert err.splitlines()[-1] == f"error: {tmp_path}/a.png: cannot be written (No space left on device)"


def test_bench_keeps_its_results_without_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", deeplab_checkpoint())
    arguments = ["bench", "run", "--data", "scenes:val", "--limit", "2", "--show", "1", "--image-size", "64x64"]
    with full_disk(monkeypatch, ".png"):
        status = run([*arguments, "--json", "r.json", "--csv", "r.csv", "--pictures", "p", "--plot", "plot.png"])
    out, err = capsys.readouterr()
    assert status == 2 and "mIoU" in out and load_reports("r.json")[0].datasets["scenes:val"]
    assert Path("r.csv").exists() and not Path("plot.png").exists() and "bug" not in err
    assert [line for line in err.splitlines() if line.startswith("error")] == [
        "error: plot.png: cannot be written (No space left on device)",
        "error: pictures left out: p/scenes-val.png: cannot be written (No space left on device)",
    ]
    with full_disk(monkeypatch, ".csv"):
        assert run([*arguments, "--csv", "s.csv", "--json", "s.json", "--show", "0"]) == 2
    assert Path("s.json").exists() and "mIoU" in capsys.readouterr().out


def test_export_and_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(write_run(tmp_path / "run", deeplab_checkpoint()))
    draw(tmp_path / "a.png")
    for ending, arguments in (
        (".pt", ["export", checkpoint, "--format", "detectron2", "--like", "gkc", "--out", str(tmp_path / "d.pt")]),
        (".safetensors", ["export", checkpoint, "--out", str(tmp_path / "d.safetensors")]),
        (".png", ["predict", checkpoint, str(tmp_path / "a.png"), "--out", str(tmp_path / "found")]),
    ):
        with full_disk(monkeypatch, ending):
            assert run(arguments) == 2, arguments
        err = capsys.readouterr().err
        assert "cannot be written (No space left on device)" in err and "bug" not in err


def test_every_last_step_is_taken() -> None:
    done: list[str] = []

    def fail(error: Exception) -> None:
        done.append("failed")
        raise error

    with pytest.raises(InputError, match="output: No space left"):
        common.finish(
            lambda: fail(InputError("first")),
            lambda: done.append("second"),
            lambda: fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
            lambda: done.append("last"),
        )
    assert done == ["failed", "second", "failed", "last"]
