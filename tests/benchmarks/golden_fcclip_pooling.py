"""Golden values of FC-CLIP's features and mask embeddings, from FC-CLIP's own code on small image encoders.

    python -m tests.benchmarks.golden_fcclip_pooling --upstream FOLDER --commit SHA [--out FILE] [--seed N]

FOLDER is a copy of github.com/bytedance/fc-clip at SHA. Its backbone wrapper and its mask pooling are
run as they are, on image encoders from `tests.clip.encoders`; of detectron2 only the names they import are
there. Writes the values that `tests/clip/test_pooling.py` reads, and prints how far ours are from them.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans import files
from ovstrans.clip.backbone import encode_stages
from ovstrans.clip.pooling import encode_masks, valid_masks
from tests.clip.encoders import SIZES, pooling_inputs, small_convnext, small_resnet

GOLDEN = Path(__file__).parents[1] / "clip" / "golden" / "fcclip_pooling.safetensors"
STAGES = ("res2", "res3", "res4", "res5")
PROBED_CHANNELS = 4


def upstream_backbone(folder: Path) -> Any:
    """FC-CLIP's backbone class, its detectron2 imports stubbed."""
    registry = types.SimpleNamespace(register=lambda: lambda cls: cls)
    modeling = {"BACKBONE_REGISTRY": registry, "Backbone": nn.Module, "ShapeSpec": object}
    for name, content in (
        ("detectron2", {}),
        ("detectron2.utils", {"comm": None}),
        ("detectron2.modeling", modeling),
    ):
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules.setdefault(name, module)
    spec = importlib.util.spec_from_file_location("fcclip_backbone", folder / "fcclip/modeling/backbone/clip.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CLIP


def upstream_mask_pooling(folder: Path) -> nn.Module:
    """FC-CLIP's mask pooling, cut out of a file whose other imports are not needed."""
    path = folder / "fcclip/modeling/transformer_decoder/fcclip_transformer_decoder.py"
    found = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "MaskPooling"]
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
    exec(compile(ast.Module(found, []), str(path), "exec"), names)
    return names["MaskPooling"]()


def upstream_values(folder: Path, kind: str, encoder: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Embeddings [B, Q, E], validity [B, Q], and some channels of every stage, [B, C, h, w]."""
    backbone = upstream_backbone(folder)
    model = backbone.__new__(backbone)
    nn.Module.__init__(model)
    model.model_type = kind
    model.clip_model = nn.Module()
    model.clip_model.visual = encoder
    features = model.extract_features(images)
    dense = features["clip_vis_dense"]
    resized = F.interpolate(masks, size=dense.shape[-2:], mode="bilinear", align_corners=False)
    if kind == "convnext":
        embeddings = model.visual_prediction_forward(upstream_mask_pooling(folder)(dense, resized))
    else:
        embeddings = model.visual_prediction_forward(dense, resized)
    valid = (resized > 0).to(resized).sum(-1).sum(-1) > 0
    probes = {name: features[name][:, :PROBED_CHANNELS, 0, 0] for name in STAGES}
    return {"embeddings": embeddings, "valid": valid.to(torch.uint8), **probes}


def our_values(encoder: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The same from ovstrans."""
    features = encode_stages(encoder, images)
    res5 = features["res5"]
    probes = {name: features[name][:, :PROBED_CHANNELS, 0, 0] for name in STAGES}
    valid = valid_masks(masks, (int(res5.shape[-2]), int(res5.shape[-1])))
    return {"embeddings": encode_masks(encoder, res5, masks), "valid": valid.to(torch.uint8), **probes}


@torch.no_grad()
def main() -> None:
    """Make the file and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--out", type=Path, default=GOLDEN)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    golden: dict[str, Tensor] = {}
    for kind, make in (("resnet", small_resnet), ("convnext", small_convnext)):
        encoder = make(options.seed)
        for size in SIZES:
            images, masks = pooling_inputs(options.seed + 1, size)
            theirs = upstream_values(options.upstream, kind, encoder, images, masks)
            ours = our_values(encoder, images, masks)
            for name, value in theirs.items():
                assert bool(value.isfinite().all()), f"{kind} {size} {name}: upstream gave values that are not finite"
                golden[f"{kind}.{size[0]}x{size[1]}.{name}"] = value
                gap = (ours[name].double() - value.double()).abs().max() / value.double().abs().max()
                print(f"{kind:9} {size[0]}x{size[1]} {name:10} largest {value.double().abs().max():.3g}, gap {gap:.2g}")
    metadata = {
        "format": "ovstrans.golden/1",
        "source": f"github.com/bytedance/fc-clip @ {options.commit}",
        "command": f"python -m tests.benchmarks.golden_fcclip_pooling --upstream FOLDER --commit {options.commit} "
        f"--seed {options.seed}",
        "date": datetime.date.today().isoformat(),
        "seed": str(options.seed),
        "torch": torch.__version__,
    }
    files.write_tensors(options.out, golden, metadata)
    print(f"{options.out}: {len(golden)} tensors, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
