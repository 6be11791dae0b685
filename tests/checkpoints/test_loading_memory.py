"""Loading a checkpoint holds no more than one dense tensor beyond the result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ovstrans.checkpoints.file import save_checkpoint
from ovstrans.checkpoints.precision import convert_values
from ovstrans.masks.mask import Mask
from tests.checkpoints.dummies import make_checkpoint

SIDE, LAYERS = 2304, 3
DENSE = 4 * SIDE * SIDE
"""Bytes of a dense tensor: 21 MB, three of them masked and one not."""

CODE = """
import sys, ctypes, torch
from ovstrans.checkpoints.file import load_checkpoint
def status(key):
    return int(open("/proc/self/status").read().split(key + ":")[1].split()[0]) * 1024
load_checkpoint(sys.argv[2])                       # loads what is imported late
ctypes.CDLL(None).mallopt(-3, 1 << 16)             # M_MMAP_THRESHOLD: what is freed goes back at once
open("/proc/self/clear_refs", "w").write("5")      # VmHWM starts anew
before = status("VmRSS")
found = load_checkpoint(sys.argv[1])
tensors = [*found.state.values(), *found.mask.tensors.values(), found.text_embeddings]
print(status("VmHWM") - before, sum(one.numel() * one.element_size() for one in tensors))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("density", [0.1, 0.5])
@pytest.mark.parametrize(("values", "compress"), [("fp32", False), ("fp32", True), ("int8", False), ("int8", True)])
def test_peak(tmp_path: Path, values: str, compress: bool, density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    state, kept = {}, {}
    for number in range(LAYERS):
        name = f"layer1.{number}.conv1.weight"
        kept[name] = torch.rand(SIDE, SIDE, generator=generator) < density
        state[f"backbone.{name}"] = torch.randn(SIDE, SIDE, generator=generator) * kept[name]
    state["head.weight"] = torch.randn(SIDE, SIDE, generator=generator)
    checkpoint = make_checkpoint(masked=False, state=state, mask=Mask(kept, model="dummy"))
    save_checkpoint(tmp_path / "x.safetensors", convert_values(checkpoint, values)[0], compress=compress)
    save_checkpoint(tmp_path / "small.safetensors", convert_values(make_checkpoint(), values)[0], compress=compress)
    command = [sys.executable, "-c", CODE, str(tmp_path / "x.safetensors"), str(tmp_path / "small.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, result = map(int, done.stdout.split())
    assert result > (LAYERS + 1) * DENSE
    assert peak < result + DENSE, f"{(peak - result) / DENSE:.2f} dense tensors beyond the result"
