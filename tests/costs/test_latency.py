from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ovstrans.costs.csr import make_csr_forward, make_sparse_pass
from ovstrans.costs.latency import Latency, measure_latency, time_passes
from ovstrans.costs.meters import find_rapl_meter, measure_peak_memory
from ovstrans.costs.target import load_target
from ovstrans.masks.mask import Mask

CPU = torch.device("cpu")


def masked_backbone() -> tuple[nn.Module, Mask]:
    module = load_target("RN-mini", device="cpu").module
    torch.manual_seed(0)
    shapes = {name.removeprefix("backbone."): p.shape for name, p in module.named_parameters() if p.dim() == 4}
    return module, Mask({name: torch.rand(shape) < 0.1 for name, shape in shapes.items()}, "RN-mini", method="random")


def test_dense_and_sparse_in_one_run() -> None:
    module, mask = masked_backbone()
    found = measure_latency(module, (32, 64), batch=2, mask=mask, rounds=3, warmup=1)
    assert (found.device, found.image_size, found.batch, found.rounds, found.warmup) == ("cpu", (32, 64), 2, 3, 1)
    assert found.threads == torch.get_num_threads() and set(found.arms) == {"dense", "sparse"}
    for arm in found.arms.values():
        assert 0 < arm.min_s <= arm.q1_s <= arm.median_s <= arm.q3_s <= arm.max_s
        assert arm.images_per_s == pytest.approx(2 / arm.median_s)
        assert arm.iqr_s == pytest.approx(arm.q3_s - arm.q1_s)
    assert found.speedup == pytest.approx(found.arms["dense"].median_s / found.arms["sparse"].median_s)
    assert Latency.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.weights_bytes > 4 * sum(p.numel() for p in module.parameters())
    weight = dict(module.named_parameters())["backbone.layer2.0.conv2.weight"]
    assert int((weight != 0).sum()) == int(mask.tensors["layer2.0.conv2.weight"].sum())


def test_without_a_mask_nothing_is_sparse() -> None:
    module, _ = masked_backbone()
    module.train()
    found = measure_latency(module, (32, 32), rounds=1, warmup=0)
    assert set(found.arms) == {"dense"} and found.speedup is None and module.training


def test_the_sparse_arm_computes_the_same_and_leaves_no_trace() -> None:
    module, mask = masked_backbone()
    mask.apply(module)
    module.eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = module(images)
        run, state = make_sparse_pass(module, {f"backbone.{name}" for name in mask.tensors}, lambda: module(images))
        first, second = run(), run()
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    torch.testing.assert_close(first, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, wanted, rtol=1e-4, atol=1e-5)
    ones = [name for name, layer in module.named_modules() if getattr(layer, "kernel_size", None) == (1, 1)]
    assert set(state.used) <= set(state.tried) == set(ones)
    assert not any("forward" in vars(layer) for layer in module.modules())


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 10, 1), nn.Conv2d(6, 10, 1, bias=False)])
def test_a_pointwise_convolution_as_rows(layer: nn.Conv2d) -> None:
    inputs = torch.rand(3, 6, 5, 4)
    with torch.inference_mode():
        torch.testing.assert_close(make_csr_forward(layer)(inputs), layer(inputs))


def test_a_linear_layer_as_rows() -> None:
    layer, inputs = nn.Linear(6, 10), torch.rand(3, 5, 6)
    with torch.inference_mode():
        torch.testing.assert_close(make_csr_forward(layer)(inputs), layer(inputs))


def test_arms_take_turns() -> None:
    seen: list[str] = []

    def arm(name: str, seconds: float) -> object:
        seen.append(name)
        time.sleep(seconds)
        return None

    arms = {"a": lambda: arm("a", 0.002), "b": lambda: arm("b", 0.02)}
    times = time_passes(arms, CPU, rounds=3, warmup=1)
    assert "".join(seen) == "ab" + "ab" + "ba" + "ab"
    assert len(times["a"]) == len(times["b"]) == 3
    assert min(times["a"]) >= 0.002 and min(times["b"]) >= 0.02


def test_peak_memory_counts_what_was_freed_again() -> None:
    size = 64 * 2**20
    peak = measure_peak_memory(lambda: torch.ones(size // 4).sum(), CPU)
    if peak is None:
        pytest.skip("this system does not count resident memory")
    assert 0.9 * size < peak < 1.3 * size
    assert (measure_peak_memory(lambda: None, CPU) or 0) < 0.1 * size


def test_rapl(tmp_path: Path) -> None:
    assert find_rapl_meter(tmp_path) is None
    for name, title, energy in (
        ("intel-rapl:0", "package-0", 900),
        ("intel-rapl:0:0", "core", 5),
        ("intel-rapl:1", "psys", 7),
        ("intel-rapl:2", "package-1", 10),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "name").write_text(f"{title}\n")
        (folder / "energy_uj").write_text(f"{energy}\n")
        (folder / "max_energy_range_uj").write_text("999\n")
    meter = find_rapl_meter(tmp_path)
    assert meter is not None and meter.read() == [900, 10]
    assert meter.joules([900, 10], [100, 30]) == pytest.approx((200 + 20) / 1e6)
