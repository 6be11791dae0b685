"""How small is a sparse checkpoint? The body of a pruned CLIP ResNet (layer1 to layer4) in several formats.

    python -m tests.benchmarks.sizes [--model RN50] [--sparsity 0.9] [--json FILE]

Weights are random normal, the mask keeps the largest magnitudes of each layer. "entropy limit" is the size with a mask
coded as independent bits of each layer's density, and values with all their bits. The exponents of values have less
entropy than bits, so a compressor may go below it: "order-0 entropy" also counts each byte of the values at its own
entropy, layer by layer. zstd is measured where the package zstandard is installed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from ovstrans import files
from ovstrans.checkpoints.compress import BITMASK
from ovstrans.checkpoints.file import BACKBONE, Checkpoint, save_checkpoint
from ovstrans.checkpoints.precision import VALUES, convert_values
from ovstrans.checkpoints.stored import VALUES as VALUES_PART
from ovstrans.clip.backbone import drop_head
from ovstrans.clip.layers import scope_layers
from ovstrans.clip.models import model_config
from ovstrans.console import table
from ovstrans.masks.mask import Mask
from ovstrans.vocabulary.vocabulary import Vocabulary


def make_backbone(model: str, sparsity: float) -> tuple[dict[str, Tensor], Mask]:
    """Return the state of a backbone under a mask, with keys as in a checkpoint, and the mask."""
    torch.manual_seed(0)
    vision = model_config(model)["vision_cfg"]
    encoder = ModifiedResNet(vision["layers"], 64, 4, vision["image_size"], vision["width"])
    drop_head(encoder)
    kept = {}
    for name, weight in scope_layers(encoder).items():
        nn.init.kaiming_normal_(weight)
        size = weight.abs().flatten()
        kept[f"{name}.weight"] = weight.detach().abs() > size.kthvalue(round(sparsity * len(size))).values
        weight.data *= kept[f"{name}.weight"]
    state = {BACKBONE + key: value for key, value in encoder.state_dict().items() if key.startswith("layer")}
    return state, Mask(kept, model=model, method="magnitude")


def entropy_limit(tensors: dict[str, Tensor], mask: Mask, *, values: bool = False) -> float:
    """Return the bytes of a sparse form with its masks at their entropy.

    Args:
        tensors: What a plain sparse checkpoint stores.
        mask: The mask.
        values: Whether each byte plane of a masked tensor's values counts at its entropy too.
    """
    bits = 0.0
    for key, value in tensors.items():
        if key.endswith(BITMASK):
            kept = mask.tensors[key.removeprefix(BACKBONE).removesuffix(BITMASK)]
            bits += kept.numel() * _entropy(torch.tensor([int(kept.sum()), int((~kept).sum())]))
        elif key.endswith(VALUES_PART) and values:
            planes = value.reshape(-1, 1).view(torch.uint8)
            bits += len(planes) * sum(_entropy(plane.bincount(minlength=256)) for plane in planes.T)
        else:
            bits += 8 * value.numel() * value.element_size()
    return bits / 8


def _entropy(counts: Tensor) -> float:
    """Return the entropy of a distribution in bits."""
    share = counts[counts > 0].double() / counts.sum()
    return float(-(share * share.log2()).sum())


def make_checkpoint(state: dict[str, Tensor], mask: Mask) -> Checkpoint:
    """Return a checkpoint of the body alone."""
    clip = {"model": mask.model, "pretrained": "", "weights_sha256": "", "image_size": 224, "mean": [], "std": []}
    none = torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64)
    return Checkpoint("deeplabv3", {}, state, mask, *none, Vocabulary("none", (("thing",),)), clip)


def stored_tensors(checkpoint: Checkpoint, *, compress: bool) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint as its file stores them, with the metadata that decompressing them takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        save_checkpoint(path, checkpoint, compress=compress)
        tensors, metadata = files.read_tensors(path)
    coding = metadata.get("coding", "").encode()
    return {**tensors, **({"coding": torch.frombuffer(bytearray(coding), dtype=torch.uint8)} if coding else {})}


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
    for name in VALUES:
        checkpoint = convert_values(make_checkpoint(state, mask), name)[0]
        tensors = stored_tensors(checkpoint, compress=False)
        sparse, small = safetensors_bytes(tensors), safetensors_bytes(stored_tensors(checkpoint, compress=True))
        sizes[f"sparse {name}"] = len(sparse)
        sizes |= {f"sparse {name}, {pack}": len(run(sparse)) for pack, run in packers.items()}
        sizes[f"sparse {name}, --compress"] = len(small)
        sizes[f"sparse {name}, entropy limit"] = entropy_limit(tensors, mask)
        sizes[f"sparse {name}, order-0 entropy"] = entropy_limit(tensors, mask, values=True)
    rows = [[name, f"{size / 1e6:.2f}", f"{len(dense) / size:.1f}"] for name, size in sizes.items()]
    title = f"body of {options.model}, {options.sparsity:.0%} zeros"
    table(title, ["format", "MB", "times smaller than dense"], rows)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"model": options.model, "sparsity": options.sparsity, "bytes": sizes}) + "\n"
        )


if __name__ == "__main__":
    main()
