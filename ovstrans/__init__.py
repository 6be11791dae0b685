"""ovstrans: prune a CLIP image encoder once, transfer the mask, fine-tune what is under-trained.

The functions behind the commands are loaded on first use, so that `import ovstrans` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovstrans.version import __version__

if TYPE_CHECKING:
    from ovstrans.checkpoints.file import load_checkpoint
    from ovstrans.masks.file import load_mask
    from ovstrans.masks.mask import Mask
    from ovstrans.spectrum.analysis import analyze

__all__ = ["Mask", "__version__", "analyze", "load_checkpoint", "load_mask"]

_HOMES = {
    "Mask": "ovstrans.masks.mask",
    "analyze": "ovstrans.spectrum.analysis",
    "load_checkpoint": "ovstrans.checkpoints.file",
    "load_mask": "ovstrans.masks.file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ovstrans' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
