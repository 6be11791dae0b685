"""A run of the executor under a checker of memory: python -m tests.runtime.checked_run FOLDER [WIDTH ...]

FOLDER holds the libraries. The guard zones are about as narrow as the loads at patch borders allow, so that a step
beyond them leaves the allocation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ovstrans.clip.backbone import encode_stages
from ovstrans.runtime import executor, library
from ovstrans.runtime.executor import SparseBackbone
from ovstrans.runtime.library import find_kernels
from ovstrans.runtime.network import pack_network
from tests.runtime.networks import make_encoder, relative_error

CASES = (
    {"size": (33, 47), "batch": 2, "stride": 32, "density": 0.3, "threads": 1},
    {"size": (96, 64), "batch": 1, "stride": 32, "density": 1.0, "threads": 3},
    {"size": (75, 133), "batch": 1, "stride": 16, "density": 0.1, "threads": 2},
    {"size": (64, 80), "batch": 1, "stride": 8, "density": 0.0, "threads": 1},
)


def main() -> None:
    library.FOLDER = Path(sys.argv[1])
    executor._GUARD = 32
    for width in [int(word) for word in sys.argv[2:]] or [64, 32, 16]:
        kernels = find_kernels(width)
        assert kernels is not None, "no kernels"
        for case in CASES:
            torch.set_num_threads(case["threads"])
            encoder = make_encoder(stride=case["stride"], density=case["density"])
            images = torch.randn(case["batch"], 3, *case["size"])
            found = SparseBackbone(pack_network(encoder), kernels)(images)
            with torch.inference_mode():
                expected = encode_stages(encoder, images)
            worst = max(relative_error(found[name], expected[name]) for name in expected)
            assert worst < 1e-5, (width, case, worst)
            print(f"{kernels.instructions}, {case}: {worst:.1e}")


if __name__ == "__main__":
    main()
