"""Speed and accuracy of `ovstrans analyze` on the image encoder of RN50, side by side with its peers.

    python -m tests.benchmarks.bench_alpha [--repeat 3] [--threads 2] [--json report.json]

Peers: the published loop (float32 SVD, every xmin in turn) and WeightWatcher, where it is installed.
Each round runs ours and every peer one after the other, so that a busy machine slows all alike; of the
times the smallest counts. The weights are random with heavy tails; trained ones cost the same.
The reference for accuracy is a float64 SVD and a brute-force search over every xmin.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ovstrans.clip.layers import weight_matrices
from ovstrans.clip.load import Clip, random_clip
from ovstrans.clip.weights import weights_sha256
from ovstrans.spectrum import esd, powerlaw
from ovstrans.spectrum.analysis import analyze
from tests.spectrum.reference import brute_force, published_loop, svd_spectrum


def heavy_clip(model: str, seed: int = 0) -> Clip:
    """A CLIP whose kernels are noise with uneven channels plus spikes that fall as a power law."""
    clip = random_clip(model, seed)
    encoder = clip.visual
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.no_grad():
        for weight in weight_matrices(encoder).values():
            outputs, inputs = weight.shape[:2]
            flat = weight.view(outputs, inputs, -1)
            count, rank = flat.shape[2], max(1, min(outputs, inputs) // 4)
            sizes = 2.0 * torch.arange(1, rank + 1).float() ** -0.7 * count**-0.5
            for position in range(count):
                noise = normal(outputs, inputs) * (inputs * count) ** -0.5 * torch.exp(0.4 * normal(outputs, 1))
                left, right = torch.linalg.qr(normal(outputs, rank))[0], torch.linalg.qr(normal(inputs, rank))[0]
                flat[:, :, position] = noise + (left * sizes) @ right.T
    clip.weights_sha256 = weights_sha256(encoder.state_dict())
    return clip


def ours(clip: Clip) -> dict[str, tuple[float, int]]:
    """(alpha, tail) of every layer by `ovstrans.analyze`; loading has hashed the weights already."""
    return {row.name: (row.alpha or 0.0, row.n_tail or 0) for row in analyze(clip).layers}


def published(encoder: nn.Module) -> dict[str, tuple[float, int]]:
    """The same by the published loop."""
    return {name: published_loop(weight) for name, weight in weight_matrices(encoder).items()}


def weightwatcher(encoder: nn.Module) -> dict[str, tuple[float, int]]:
    """The same by WeightWatcher."""
    import weightwatcher as ww

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    table = ww.WeightWatcher(model=encoder, log_level=logging.ERROR).analyze()
    names = table["longname"] if "longname" in table else table["name"]
    return {
        str(name): (float(alpha), int(tail))
        for name, alpha, tail in zip(names, table["alpha"], table["num_pl_spikes"], strict=True)
    }


def stages(encoder: nn.Module) -> dict[str, float]:
    """Seconds of eigenvalues and of the fit."""
    weights = weight_matrices(encoder)
    start = time.perf_counter()
    spectra = esd.eigenvalues(weights)
    middle = time.perf_counter()
    for spectrum in spectra.values():
        powerlaw.fit(esd.above_cut(spectrum, esd.Cut()))
    return {"eigenvalues": middle - start, "fit": time.perf_counter() - middle}


def accuracy(encoder: nn.Module) -> dict[str, Any]:
    """Largest relative errors over the layers against the reference, and layers of another xmin."""
    rows = {row.name: row for row in analyze(encoder).layers}
    spectra = esd.eigenvalues(weight_matrices(encoder))
    errors: dict[str, list[float]] = {"alpha": [], "xmin": [], "D": []}
    other_start, other_xmin = [], []
    for name, weight in weight_matrices(encoder).items():
        row = rows[name]
        exact = svd_spectrum(weight, 0.5 if weight.ndim > 2 else 1.0)
        exact = exact[exact > esd.ABSOLUTE_CUT]
        same = esd.above_cut(spectra[name], esd.Cut())
        found, by_ours = brute_force(exact), brute_force(same)
        assert found is not None and by_ours is not None and row.alpha and row.xmin and row.D
        start, alpha, distance = found
        for key, value, reference in (
            ("alpha", row.alpha, alpha),
            ("xmin", row.xmin, exact[start]),
            ("D", row.D, distance),
        ):
            errors[key].append(abs(value / reference - 1))
        if row.n_tail != len(exact) - start:
            other_start.append(name)
        if row.xmin != same[by_ours[0]]:
            other_xmin.append(name)
    return {
        "layers": len(rows),
        "max_relative_error": {key: max(values) for key, values in errors.items()},
        "layers_with_another_tail_than_svd_brute_force": other_start,
        "layers_with_another_xmin_on_the_same_eigenvalues": other_xmin,
    }


def compare(model: str, repeat: int) -> dict[str, Any]:
    """Times, ratios, stages and accuracy as plain values."""
    clip = heavy_clip(model)
    encoder = clip.visual
    runs: dict[str, Callable[[], Any]] = {
        "ovstrans": lambda: ours(clip),
        "published loop": lambda: published(encoder),
    }
    if importlib.util.find_spec("weightwatcher"):
        runs["weightwatcher"] = lambda: weightwatcher(encoder)
    times: dict[str, list[float]] = {name: [] for name in runs}
    found = {}
    ours(clip)  # first calls load libraries
    for _ in range(repeat):
        for name, run in runs.items():
            start = time.perf_counter()
            found[name] = run()
            times[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in times.items()}
    parts = min((stages(encoder) for _ in range(repeat)), key=lambda part: part["eigenvalues"])
    agreement = {
        name: float(np.nanmax([abs(alpha / found["ovstrans"][layer][0] - 1) for layer, (alpha, _) in rows.items()]))
        for name, rows in found.items()
        if name != "ovstrans" and set(rows) <= set(found["ovstrans"])
    }
    return {
        "model": model,
        "threads": torch.get_num_threads(),
        "seconds": best,
        "times_faster": {name: seconds / best["ovstrans"] for name, seconds in best.items() if name != "ovstrans"},
        "times_faster_in_each_round": {
            name: [peer / own for peer, own in zip(values, times["ovstrans"], strict=True)]
            for name, values in times.items()
            if name != "ovstrans"
        },
        "stages": parts,
        "fit_share": parts["fit"] / (parts["fit"] + parts["eigenvalues"]),
        "peers_max_relative_difference_of_alpha": agreement,
        "accuracy": accuracy(encoder),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RN50")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="threads of torch, for the peers (0: as it is)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    text = json.dumps(compare(arguments.model, arguments.repeat), indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
