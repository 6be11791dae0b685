"""Small modules named as image encoders, CLIPs, frameworks and wrappers are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ovstrans.masks.mask import Mask


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(6, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(x)))


class Encoder(nn.Module):
    def __init__(self, blocks: int = 2, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(4)
            self.layer1 = nn.Sequential(*(Block() for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer1(torch.relu(self.bn1(self.conv1(x))))


class CLIP(nn.Module):
    """`layer1` here stands for a text encoder that shares names with the image encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = Encoder(seed=9).layer1
        self.visual = Encoder()


class Framework(nn.Module):
    def __init__(self, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = encoder or Encoder()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class Wrapped(nn.Module):
    """What DDP does to names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class Compiled(nn.Module):
    """What torch.compile does to names: attributes come from the module inside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def __getattr__(self, name: str) -> Any:
        if name == "_orig_mod":
            return self._modules["_orig_mod"]
        return getattr(self._modules["_orig_mod"], name)


MASKED = ("layer1.0.conv1.weight", "layer1.0.conv2.weight", "layer1.1.conv1.weight", "layer1.1.conv2.weight")


def make_mask(density: float = 0.3, seed: int = 1, **fields: Any) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    shapes = {key: value.shape for key, value in Encoder().named_parameters() if key in MASKED}
    tensors = {key: torch.rand(shapes[key], generator=generator) < density for key in MASKED}
    return Mask(tensors, **{"model": "dummy", **fields})


def cut_values(mask: Mask, encoder: nn.Module) -> Tensor:
    """The masked weights of an encoder, found without the code under test."""
    named = dict(encoder.named_parameters())
    return torch.cat([named[key].detach()[~kept] for key, kept in mask.tensors.items()])


def tamper(path: Path, out: Path, *, metadata: dict[str, str | None] | None = None, tensors: Any = None) -> Path:
    """Write a copy of a safetensors file with other metadata (None: left out) and tensors (a function on them)."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    about = {**header["__metadata__"], **(metadata or {})}
    held = load_file(path)
    save_file(tensors(held) if tensors else held, out, metadata={k: v for k, v in about.items() if v is not None})
    return out


def cut_points(path: Path) -> list[int]:
    """Lengths to truncate a safetensors file to: in the length, the header, at its end, in the data."""
    size = path.stat().st_size
    data = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    return [0, 3, 8, 9, data // 2, data - 1, data, data + (size - data) // 2, size - 1]


def documented_code(docstring: str) -> str:
    """The Python block that a module's docstring indents."""
    lines = docstring.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("    import "))
    after = (number for number in range(start, len(lines)) if lines[number] and not lines[number].startswith(" "))
    end = next(after, len(lines))
    return "\n".join(line[4:] for line in lines[start:end])
