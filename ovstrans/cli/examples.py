"""Examples that end the help of every command."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "": (
        "ovstrans demo",
        "ovstrans prune RN50 --pretrained openai --data folder:photos",
        "ovstrans finetune gkc --mask mask.safetensors --data folder:street",
    ),
    "prune": (
        "ovstrans prune",
        "ovstrans prune RN50 --pretrained openai --data folder:photos --dry-run",
        "ovstrans prune RN50 --method magnitude --sparsity 0.8 --out rn50.safetensors",
    ),
    "analyze": ("ovstrans analyze", "ovstrans analyze RN50 --pretrained openai --plot --out rn50-alpha.json"),
    "finetune": (
        "ovstrans finetune",
        "ovstrans finetune gkc --mask mask.safetensors --data folder:street --out run",
        "ovstrans finetune fcclip --steps 500 --set optimizer.lr=0.0002 --dry-run",
    ),
    "bench": (
        "ovstrans bench",
        "ovstrans bench run --data folder:street:val --json report.json",
        "ovstrans bench deeplabv3 gkc fcclip --model RN50 --image-size 640x640",
    ),
    "predict": (
        'ovstrans predict photo.jpg --classes "road, a red car, sky"',
        "ovstrans predict run photos/ --out look",
    ),
    "export": (
        "ovstrans export run --format dense --out dense.safetensors",
        "ovstrans export mask.safetensors --out pruned.safetensors",
    ),
    "inspect": ("ovstrans inspect ovstrans-out/mask.safetensors", "ovstrans inspect run --verify"),
    "demo": ("ovstrans demo", "ovstrans demo --steps 40 --images 20 --out quick"),
    "data": ("ovstrans data list", "ovstrans data check folder:street"),
    "data list": ("ovstrans data list", "ovstrans data list ade20k-150 --data-root /data"),
    "data check": ("ovstrans data check folder:street", "ovstrans data check camvid:val"),
    "data show": ("ovstrans data show", "ovstrans data show folder:street:train -n 12 --out street.png"),
    "data prepare": ("ovstrans data prepare ade20k-150:val --out prepared",),
    "models": ("ovstrans models list",),
    "models list": ("ovstrans models list", "ovstrans models list 'RN50*'", "ovstrans models list --all --json -"),
    "recipes": ("ovstrans recipes list", "ovstrans recipes copy prune-rn50"),
    "recipes list": ("ovstrans recipes list",),
    "recipes show": ("ovstrans recipes show deeplabv3-mini",),
    "recipes copy": ("ovstrans recipes copy prune-rn50 --out mine.toml",),
}
"""Name of a command, "" for the program itself, to its examples, each a command line."""


def epilog(name: str) -> str:
    """Return the end of the help of a command; each example is a paragraph, which keeps it on a line of its own."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES.get(name, ()))])
