"""Memory, MACs and time of a step, estimated before it: exactly on small cases, within a factor on real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ovstrans import environment
from ovstrans.clip.load import create_image_encoder
from ovstrans.costs import estimate
from ovstrans.costs.estimate import HALF, SCRATCH, PeakMeter, copy_to_meta, estimate_forward, estimate_step
from ovstrans.costs.training_step import count_executed_step
from ovstrans.environment import available_memory, format_bytes, require_memory
from ovstrans.errors import InputError
from ovstrans.progress import Forecast, format_duration

FACTOR = 1.6
"""An estimate of what a run adds to the process is right within this factor, measured at 0.8 to 1.3."""


def test_the_peak_is_the_largest_sum_of_tensors_that_exist_at_once() -> None:
    with PeakMeter() as meter:
        one = torch.empty(100, device="meta")  # 400 bytes
        two = one + 1  # 800
        del one  # 400
        three = two.view(10, 10)  # a view of the same memory
        four = torch.empty(300, dtype=torch.uint8, device="meta")  # 700
        assert (meter.live, meter.peak) == (700, 800)
        del two, three, four
        assert (meter.live, meter.peak) == (0, 800)


def test_a_step_of_one_layer_is_exact() -> None:
    layer, shape = nn.Conv2d(3, 8, 1, bias=False), (2, 3, 16, 16)
    found = estimate_step(layer, shape, lambda module, images: [module(images)])
    images, output, weights = 4 * 2 * 3 * 256, 4 * 2 * 8 * 256, 4 * 24
    # Forward and weight gradient; the images need none. Held at once: images, output, its gradient, the weight's.
    assert found.macs == 2 * (2 * 24 * 256) and found.weights == weights
    assert found.memory == int((images + 2 * output + weights) * SCRATCH + 2 * weights + images)
    half = estimate_step(layer, shape, lambda module, images: [module(images)], half=True)
    assert half.memory == int((images + 2 * output + weights) * SCRATCH * HALF + 2 * weights + images)


def test_what_does_not_train_holds_no_activations() -> None:
    def layers() -> nn.Module:
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Sigmoid()) for _ in range(20)))

    def output(module: nn.Module, images: Tensor) -> list[Tensor]:
        return [module(images)]

    deep, frozen = layers(), layers()
    for parameter in [*frozen.parameters()][:-2]:
        parameter.requires_grad_(False)
    shape = (2, 3, 64, 64)
    assert estimate_step(frozen, shape, output).memory < estimate_step(deep, shape, output).memory / 5
    assert estimate_forward(deep, shape, lambda module, images: module(images)) < 5 * 4 * 2 * 3 * 64 * 64


def test_the_copy_on_meta_takes_no_memory_and_leaves_the_module() -> None:
    encoder = create_image_encoder("RN-mini").half()
    encoder.layer1.requires_grad_(False)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    twin = copy_to_meta(encoder)
    assert all(value.is_meta for value in [*twin.parameters(), *twin.buffers()])
    assert {name: each.requires_grad for name, each in twin.named_parameters()} == {
        name: each.requires_grad for name, each in encoder.named_parameters()
    }
    state = torch.get_rng_state()
    estimate_step(encoder, (2, 3, 96, 96), lambda module, images: [module(images)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_macs_are_those_of_the_counters() -> None:
    encoder = create_image_encoder("RN-mini")
    found = estimate_step(encoder, (2, 3, 96, 96), lambda module, images: [module(images)])
    counted = count_executed_step(encoder, (96, 96))
    assert found.macs == 2 * counted.total


RUN = """
import json, sys
from pathlib import Path
import ovstrans
from ovstrans.environment import used_memory
function, given = json.loads(sys.argv[1])
call = getattr(ovstrans, function)
run = call(**given, dry_run=True)
base = used_memory()
{"prune": lambda: call(**given), "finetune": lambda: call(**given, out=sys.argv[2])}[function]()
status = Path("/proc/self/status").read_text()  # not getrusage: it counts the parent before the exec, too
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps([run.memory - base, peak - base, run.macs]))
"""
PRUNE = {"steps": 1, "rate": 0.8, "settings": ["prune.final_steps=0"], "precision": "fp32", "device": "cpu"}
FINETUNE = {"steps": 2, "precision": "fp32", "device": "cpu", "mask": False, "plan": False}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs the sizes of a process in bytes")
@pytest.mark.parametrize(
    ("function", "given"),
    [
        ("prune", {**PRUNE, "batch": 16, "image_size": 192}),
        ("prune", {**PRUNE, "batch": 2, "image_size": 640}),
        ("finetune", {**FINETUNE, "batch": 8, "image_size": 224}),
        ("finetune", {**FINETUNE, "framework": "fcclip", "batch": 8, "image_size": 256}),
    ],
)
def test_the_memory_of_a_run_is_estimated_within_a_factor(tmp_path: Path, function: str, given: dict) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([function, given]), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    estimated, real, macs = json.loads(done.stdout)
    assert real / FACTOR < estimated < real * FACTOR and macs > 0


def test_clearly_too_much_is_refused_and_just_too_much_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(environment, "available_memory", lambda device: 10_000_000_000)
    require_memory(9_900_000_000, "cpu", what="x takes", remedy="lower y")
    assert not caplog.records
    require_memory(11_000_000_000, "cpu", what="x takes", remedy="lower y")
    assert caplog.messages == ["x takes about 11 GB of memory, 10 GB is free on cpu; lower y"]
    with pytest.raises(InputError, match="x takes about 13 GB of memory, 10 GB is free on cpu; lower y"):
        require_memory(13_000_000_000, "cpu", what="x takes", remedy="lower y")
    monkeypatch.setattr(environment, "available_memory", lambda device: None)
    require_memory(10**18, "cpu", what="x takes", remedy="lower y")


def test_limits_of_groups_and_address_space_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = available_memory()
    assert free is None or free > 0
    for folder in (tmp_path, tmp_path / "job"):
        folder.mkdir(exist_ok=True)
        (folder / "memory.stat").write_text("anon 5\ninactive_file 100\n")
        (folder / "memory.current").write_text("700\n")
        (folder / "memory.max").write_text("max\n" if folder == tmp_path else "1000\n")
    real = Path.read_text

    def read(path: Path, *arguments: object, **options: object) -> str:
        return "0::/job\n" if str(path) == "/proc/self/cgroup" else real(path, *arguments, **options)

    monkeypatch.setattr(environment, "_GROUPS", tmp_path)
    monkeypatch.setattr(Path, "read_text", read)
    assert environment._group_memory() == [400] and available_memory() == 400
    monkeypatch.setattr(environment, "_address_space", lambda: 5)
    assert available_memory() == 5


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 MB"), (4.2e6, "4 MB"), (999.4e6, "999 MB"), (999.6e6, "1.0 GB"), (13e9, "13 GB"), (1.5e12, "1.5 TB")],
)
def test_bytes_have_a_unit(number: float, text: str) -> None:
    assert format_bytes(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3599, "1 h"),
        (7500, "2 h 5 min"),
        (86400, "1 day"),
        (190000, "2 days 5 h"),
    ],
)
def test_durations_are_in_words(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_duration_is_told_once_after_the_first_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([0.0, 30.0, 32.0, 34.0, 36.0, 38.0, 40.0, *range(50, 90)])
    monkeypatch.setattr("ovstrans.progress.time.monotonic", lambda: next(clock))
    caplog.set_level("INFO", "ovstrans")
    forecast = Forecast("prune RN50", 1806)
    for _ in range(20):  # the first step took 30 s, all others 2 s
        forecast.note()
    assert caplog.messages == ["prune RN50: about 1 h left, 2 s a step"]


def test_slow_steps_are_told_of_early(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = iter([0.0, 100.0, 150.0, 200.0])
    monkeypatch.setattr("ovstrans.progress.time.monotonic", lambda: next(clock))
    caplog.set_level("INFO", "ovstrans")
    forecast = Forecast("prune RN50", 22_000)
    for _ in range(3):
        forecast.note()
    assert caplog.messages == ["prune RN50: about 12 days 18 h left, 50 s a step"]


def test_a_timed_step_scales_with_the_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 12.0])
    monkeypatch.setattr("ovstrans.costs.estimate.time.perf_counter", lambda: next(clock))
    layer = nn.Conv2d(3, 8, 1)

    def output(module: nn.Module, images: Tensor) -> list[Tensor]:
        return [module(images)]

    shape = (8, 3, 256, 256)  # timed as 4 images of 128 pixels: an eighth of the products
    step = estimate_step(layer, shape, output)
    precision = environment.pick_precision("fp32", "cpu")
    assert estimate.time_step(layer, step, shape, output, precision) == pytest.approx(2.0 * 8)
