"""How fast is the sparse runtime? The backbone of a pruned CLIP ResNet against dense engines, in one interleaved run.

    python -m tests.benchmarks.runtime [--sizes 224 512 800x1216] [--masks uniform90 uniform80 blocks90 global90]
        [--model RN50] [--rounds 15] [--threads 1] [--engines ...] [--whole deeplabv3 gkc] [--per-layer] [--json FILE]

The backbone, stem included, has random weights and returns res5, batch 1. Masks cover all convolutions but the first:
`uniformN` has N % zeros in every layer, `blocksN` the same in blocks of 4x1, `globalN` the N % of smallest magnitude
over all layers (which leaves more of the early, costly ones). BatchNorm is folded for every engine. Engines that are
not installed are left out: onnx and onnxruntime, openvino; nncf for int8.

With one thread, a time is CPU time of the process, which other work on the machine disturbs little; with more it is
time on the clock. All engines take turns in each round, and the least time of all rounds is compared.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ovstrans.clip.backbone import drop_head, encode_stages
from ovstrans.clip.layers import backbone_layers, norm_name
from ovstrans.clip.models import model_config
from ovstrans.console import table
from ovstrans.environment import environment
from ovstrans.masks.file import save_mask
from ovstrans.masks.mask import Mask
from ovstrans.reports.bench import bench
from ovstrans.runtime.executor import SparseBackbone
from ovstrans.runtime.library import find_kernels
from ovstrans.runtime.network import pack_network

SPARSE = "sparse"
Run = Callable[[], Any]


def make_encoder(model: str, mask: str) -> nn.Module:
    """Return a CLIP ResNet with random weights under a mask, its BatchNorm folded into the convolutions."""
    torch.manual_seed(0)
    vision = model_config(model)["vision_cfg"]
    encoder = ModifiedResNet(vision["layers"], 64, 4, vision["image_size"], vision["width"]).eval()
    drop_head(encoder)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):  # open_clip begins with zeros in some, which would skip their layers
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, std=0.1)
    kind, zeros = mask.rstrip("0123456789"), int(mask[len(mask.rstrip("0123456789")) :]) / 100
    weights = list(backbone_layers(encoder).values())
    for weight in weights:
        nn.init.kaiming_normal_(weight)
    pruned = [weight.data for weight in weights[1:]]
    magnitudes = torch.cat([weight.abs().flatten() for weight in pruned])
    threshold = magnitudes.kthvalue(max(1, round(zeros * len(magnitudes)))).values
    for weight in pruned:
        if kind == "uniform":
            kept = torch.rand_like(weight) >= zeros
        elif kind == "blocks":
            kept = (torch.rand_like(weight[::4]) >= zeros).repeat_interleave(4, dim=0)
        elif kind == "global":
            kept = weight.abs() > threshold
        else:
            raise SystemExit(f"unknown mask {mask}: uniformN, blocksN or globalN")
        # The variance of what is left stays that of the dense layer, so that activations keep their size.
        weight *= kept / kept.float().mean().clamp(min=1e-3).sqrt()
    return encoder


def fold_norms(encoder: nn.Module) -> nn.Module:
    """Return a copy with every BatchNorm folded into its convolution, as any engine would."""
    folded = copy.deepcopy(encoder)
    for name in backbone_layers(encoder):
        norm = norm_name(name)
        conv = fuse_conv_bn_eval(folded.get_submodule(name), folded.get_submodule(norm))
        for path, module in ((name, conv), (norm, nn.Identity())):
            parent, _, last = path.rpartition(".")
            folded.get_submodule(parent).add_module(last, module)
    return folded


class Backbone(nn.Module):
    """Images to res5, in layers that a tracer can follow."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return encode_stages(self.encoder, images, ("res5",))["res5"]


def torch_engines(module: nn.Module, images: Tensor) -> dict[str, Run]:
    """Return torch eager and frozen, in both memory formats."""
    last = images.to(memory_format=torch.channels_last)
    module_last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen, frozen_last = (
            torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(one, example)))
            for one, example in ((module, images), (module_last, last))
        )
    return {
        "torch eager": lambda: module(images),
        "torch eager channels_last": lambda: module_last(last),
        "torch frozen": lambda: frozen(images),
        "torch frozen channels_last": lambda: frozen_last(last),
    }


def onnxruntime_engine(module: nn.Module, images: Tensor, threads: int) -> dict[str, Run]:
    """Return ONNX Runtime in float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(folder, "backbone.onnx"))
        torch.onnx.export(module, (images,), path, input_names=["images"], dynamo=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"images": images.numpy()}
    return {"onnxruntime": lambda: session.run(None, feed)}


def openvino_engines(module: nn.Module, images: Tensor, threads: int, wanted: Sequence[str]) -> dict[str, Run]:
    """Return OpenVINO in float32 and bfloat16, and in int8 where nncf is installed."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(module, example_input=images)
    model.reshape(list(images.shape))
    core, found = openvino.Core(), {}
    versions: dict[str, tuple[Any, str]] = {"openvino fp32": (model, "f32"), "openvino bf16": (model, "bf16")}
    if "openvino int8" in wanted:
        try:
            import nncf

            samples = nncf.Dataset([torch.randn_like(images).numpy() for _ in range(8)])
            versions["openvino int8"] = (nncf.quantize(model, samples, subset_size=8), "f32")
        except ImportError:
            print("openvino int8: left out (nncf is not installed)")
    for name, (version, precision) in versions.items():
        if name not in wanted:
            continue
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        }
        request = core.compile_model(version, "CPU", settings).create_infer_request()
        found[name] = lambda request=request: request.infer([images.numpy()])
    return found


ENGINES = (
    "torch eager",
    "torch eager channels_last",
    "torch frozen",
    "torch frozen channels_last",
    "onnxruntime",
    "openvino fp32",
    "openvino bf16",
    "openvino int8",
)
FULL_PRECISION = ENGINES[:6]


def make_dense(encoder: nn.Module, images: Tensor, threads: int, wanted: Sequence[str]) -> dict[str, Run]:
    """Return the dense engines that are wanted and installed."""
    module = Backbone(fold_norms(encoder)).eval()
    found: dict[str, Run] = torch_engines(module, images)
    for make, name in (
        (lambda: onnxruntime_engine(module, images, threads), "onnxruntime"),
        (lambda: openvino_engines(module, images, threads, wanted), "openvino"),
    ):
        if any(one.startswith(name) for one in wanted):
            try:
                found |= make()
            except ImportError as error:
                print(f"{name}: left out ({error})")
    return {name: run for name, run in found.items() if name in wanted}


def time_rounds(runs: Mapping[str, Run], rounds: int, threads: int) -> dict[str, list[float]]:
    """Return the milliseconds of every run in every round, the runs in turns."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(1e3 * (clock() - start))
    return times


def count_macs(backbone: SparseBackbone, size: tuple[int, int]) -> tuple[int, int]:
    """Return the multiply-accumulates of an image that are left, and all."""
    plan, left, total = backbone.plan(1, *size), 0, 0
    homes = {conv.name: 0 for conv in backbone.network.stem}
    for number, blocks in enumerate(backbone.network.stages, 1):
        for block in blocks:
            early = {} if block.change is None else {block.conv1.name, block.conv2.name}
            homes |= {conv.name: number - (conv.name in early) for conv in block.convs}
    for conv in backbone.network.convs:
        layout = plan.layouts[homes[conv.name]]
        left += conv.nonzero * layout.height * layout.width
        total += int(np.prod(conv.shape)) * layout.height * layout.width
    return left, total


def profile(backbone: SparseBackbone, size: tuple[int, int], rounds: int, threads: int) -> list[list[Any]]:
    """Return the milliseconds of every call of the kernels, by stage."""
    plan = backbone.plan(1, *size, threads)
    calls = [(stage, call, step) for stage, steps in plan.steps.items() for call, step in steps]
    runs = {
        f"{stage} {number} {call}": (lambda call=call, step=step: backbone.kernels.run(call, step))
        for number, (stage, call, step) in enumerate(calls)
    }
    return [[name, f"{min(times):.2f}"] for name, times in time_rounds(runs, rounds, threads).items()]


def measure_size(
    size: tuple[int, int], encoders: Mapping[str, nn.Module], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Measure every engine and mask at one size.

    Returns:
        For each mask: density, share of the multiply-accumulates, error, milliseconds of every engine (the least and
        the median), and the speed-up of the sparse runtime against each.
    """
    kernels = find_kernels()
    if kernels is None:
        raise SystemExit("the kernels are not built: python -m ovstrans.runtime.build")
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    backbones = {mask: SparseBackbone(pack_network(encoder), kernels) for mask, encoder in encoders.items()}
    with torch.inference_mode():
        errors = {}
        for mask, encoder in encoders.items():
            expected = encode_stages(encoder, images, ("res5",))["res5"]
            difference = backbones[mask](images, ("res5",))["res5"] - expected
            errors[mask] = float(difference.abs().max() / expected.abs().max())
        dense = make_dense(next(iter(encoders.values())), images, options.threads, options.engines)
        sparse = {f"{SPARSE} {mask}": (lambda one=one: one(images, ("res5",))) for mask, one in backbones.items()}
        times = time_rounds({**dense, **sparse}, options.rounds, options.threads)
    least = {name: min(values) for name, values in times.items()}
    median = {name: float(np.median(values)) for name, values in times.items()}
    results = {}
    for mask, backbone in backbones.items():
        own = f"{SPARSE} {mask}"
        left, total = count_macs(backbone, size)
        fastest = min((name for name in dense if name in FULL_PRECISION), key=lambda name: least[name], default=None)
        results[mask] = {
            "density": round(backbone.network.density, 4),
            "macs_left": round(left / total, 4),
            "relative_error": errors[mask],
            "packed_bytes": backbone.network.nbytes,
            "milliseconds": {SPARSE: least[own]} | {name: least[name] for name in dense},
            "median_milliseconds": {SPARSE: median[own]} | {name: median[name] for name in dense},
            "speedup": {name: least[name] / least[own] for name in dense},
            "fastest_dense_fp32": fastest,
            "speedup_against_fastest_dense_fp32": least[fastest] / least[own] if fastest else None,
        }
        if options.per_layer:
            rows = profile(backbone, size, options.rounds, options.threads)
            table(f"{mask} at {size[0]}x{size[1]}", ["call", "ms"], rows)
    return results


def measure_whole(framework: str, encoder: nn.Module, size: tuple[int, int], options: argparse.Namespace) -> Any:
    """Return the latency of a whole segmenter of a framework, dense and sparse, under the zeros of an encoder."""
    kept = {f"{name}.weight": weight.detach() != 0 for name, weight in list(backbone_layers(encoder).items())[1:]}
    mask = Mask(kept, model=options.model, method="random")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mask.safetensors")
        save_mask(path, mask)
        report = bench(
            framework,
            model=options.model,
            mask=path,
            data="none",
            image_size=size,
            latency=True,
            rounds=options.rounds,
            device="cpu",
        )
    return report.latency


def show_whole(options: argparse.Namespace, encoders: Mapping[str, nn.Module], size: tuple[int, int]) -> dict[str, Any]:
    """Measure and show whole segmenters at one size, by framework and mask."""
    found: dict[str, Any] = {}
    rows = []
    for framework in options.whole:
        for mask, encoder in encoders.items():
            latency = measure_whole(framework, encoder, size, options)
            found.setdefault(framework, {})[mask] = latency.to_json()
            dense, sparse = latency.arms["dense"], latency.arms["sparse"]
            times = [f"{1e3 * arm.min_s:.1f}" for arm in (dense, sparse)]
            shares = [f"{arm.backbone_share:.0%}" for arm in (dense, sparse)]
            rows.append([framework, mask, *times, f"{dense.min_s / sparse.min_s:.2f} x", *shares])
    columns = ["framework", "mask", "dense ms", "sparse ms", "faster", "backbone, dense", "backbone, sparse"]
    table(f"whole segmenters at {size[0]}x{size[1]}, on the clock", columns, rows)
    return found


def parse_size(text: str) -> tuple[int, int]:
    """Read `512` or `800x1216`."""
    sides = [int(side) for side in text.lower().split("x")]
    return sides[0], sides[-1]


def main() -> None:
    """Measure, show a table for each size, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RN50", help="a CLIP ResNet, such as RN50, RN101 or RN-mini")
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[(224, 224), (512, 512), (800, 1216)])
    parser.add_argument("--masks", nargs="+", default=["uniform90", "uniform80", "blocks90", "global90"])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES, metavar="ENGINE")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--whole", nargs="+", default=[], help="also whole segmenters: frameworks such as deeplabv3, gkc"
    )
    parser.add_argument("--per-layer", action="store_true", help="also show the time of every call of the kernels")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kernels = find_kernels()
    report: dict[str, Any] = {
        "model": options.model,
        "threads": options.threads,
        "rounds": options.rounds,
        "time": "CPU time of the process" if options.threads == 1 else "time on the clock",
        "compared": "least of all rounds",
        "kernels": None if kernels is None else kernels.instructions,
        "load": list(os.getloadavg()),
        "environment": environment("cpu"),
        "sizes": {},
    }
    encoders = {mask: make_encoder(options.model, mask) for mask in options.masks}
    for size in options.sizes:
        name = f"{size[0]}x{size[1]}"
        results = report["sizes"][name] = measure_size(size, encoders, options)
        gc.collect()
        first = next(iter(results.values()))
        engines = [engine for engine in first["milliseconds"] if engine != SPARSE]
        rows = [[engine, f"{first['milliseconds'][engine]:.1f}", *[""] * len(results)] for engine in engines]
        for row, engine in zip(rows, engines, strict=True):
            row[2:] = [f"{result['speedup'][engine]:.2f} x" for result in results.values()]
        own = [f"{result['milliseconds'][SPARSE]:.1f}" for result in results.values()]
        rows.append(["sparse runtime, ms", "", *own])
        rows.append(["MACs left", "", *(f"{result['macs_left']:.3f}" for result in results.values())])
        rows.append(["relative error", "", *(f"{result['relative_error']:.1e}" for result in results.values())])
        table(f"{options.model} backbone at {name}", ["engine", "ms", *results], rows)
        if options.whole:
            report.setdefault("whole", {})[name] = show_whole(options, encoders, size)
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
