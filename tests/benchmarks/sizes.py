"""How small is a sparse checkpoint? The body of a pruned CLIP ResNet (layer1 to layer4) in several formats.

    python -m tests.benchmarks.sizes [--model RN50] [--sparsity 0.9] [--json FILE]

Weights are random normal, the mask keeps the largest magnitudes of each layer. "mask entropy" is the size with a mask
coded as independent bits of each layer's density, and values with all their bits; a general compressor may go below it,
because the exponents of values have less entropy than bits. zstd is measured where the package zstandard is installed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from ovstrans import files
from ovstrans.checkpoints.file import BACKBONE, to_sparse
from ovstrans.checkpoints.precision import VALUES
from ovstrans.clip.backbone import drop_head, scope_convs
from ovstrans.clip.models import model_config
from ovstrans.console import table
from ovstrans.masks.mask import Mask


def make_backbone(model: str, sparsity: float) -> tuple[dict[str, Tensor], Mask]:
    """Return the state of a backbone under a mask, with keys as in a checkpoint, and the mask."""
    torch.manual_seed(0)
    vision = model_config(model)["vision_cfg"]
    encoder = ModifiedResNet(vision["layers"], 64, 4, vision["image_size"], vision["width"])
    drop_head(encoder)
    kept = {}
    for name, conv in scope_convs(encoder).items():
        nn.init.kaiming_normal_(conv.weight)
        size = conv.weight.abs().flatten()
        kept[f"{name}.weight"] = conv.weight.detach().abs() > size.kthvalue(round(sparsity * len(size))).values
        conv.weight.data *= kept[f"{name}.weight"]
    state = {BACKBONE + key: value for key, value in encoder.state_dict().items() if key.startswith("layer")}
    return state, Mask(kept, model=model, method="magnitude")


def entropy_limit(state: dict[str, Tensor], mask: Mask, bits_of_value: int) -> float:
    """Return the bytes with a mask of independent bits coded at its entropy, and values as they are."""
    bits = sum(8.0 * value.numel() * value.element_size() for key, value in state.items() if not _masked(key, mask))
    for kept in mask.tensors.values():
        density, total = float(kept.float().mean()), kept.numel()
        for share in (density, 1 - density):
            bits -= total * share * math.log2(share) if share else 0.0
        bits += total * density * bits_of_value
    return bits / 8


def _masked(key: str, mask: Mask) -> bool:
    return key.removeprefix(BACKBONE) in mask.tensors


def safetensors_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Return the bytes of a safetensors file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        files.write_tensors(path, {key: value.contiguous() for key, value in tensors.items()}, {})
        return path.read_bytes()


def main() -> None:
    """Write every format, and show the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RN50")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    state, mask = make_backbone(options.model, options.sparsity)
    dense, pth = safetensors_bytes(state), io.BytesIO()
    torch.save(state, pth)
    packers: dict[str, Callable[[bytes], bytes]] = {"gzip": lambda data: gzip.compress(data, 6)}
    try:
        import zstandard

        packers["zstd -19"] = zstandard.ZstdCompressor(level=19).compress
    except ImportError:
        print("zstd: left out (zstandard is not installed)")
    sizes: dict[str, float] = {"dense safetensors": len(dense), "dense .pth": len(pth.getvalue())}
    sizes |= {f"dense safetensors, {name}": len(pack(dense)) for name, pack in packers.items()}
    for name, kind in VALUES.items():
        stored = {key: value.to(kind) if value.dim() >= 2 else value for key, value in state.items()}
        sparse = safetensors_bytes(to_sparse(stored, mask, where="sizes"))
        sizes[f"sparse {name}"] = len(sparse)
        sizes |= {f"sparse {name}, {pack}": len(run(sparse)) for pack, run in packers.items()}
        sizes[f"sparse {name}, mask entropy"] = entropy_limit(stored, mask, 8 * kind.itemsize)
    rows = [[name, f"{size / 1e6:.2f}", f"{len(dense) / size:.1f}"] for name, size in sizes.items()]
    title = f"body of {options.model}, {options.sparsity:.0%} zeros"
    table(title, ["format", "MB", "times smaller than dense"], rows)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"model": options.model, "sparsity": options.sparsity, "bytes": sizes}) + "\n"
        )


if __name__ == "__main__":
    main()
