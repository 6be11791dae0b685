"""Files of pruned weights: the image encoder as pruning left it, beside its mask.

A weights file is a safetensors file with the plain state dict of the image encoder (keys without `visual.`), which
everything that takes weights reads. Its metadata say where the weights come from: `format` ("ovstrans.weights/1"),
`model`, `pretrained`, `weights_sha256` (of the weights that were pruned), `method`, `sparsity`, `mask` (name of the
mask file), `recipe` (JSON), `created_by`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ovstrans import files
from ovstrans.errors import InputError
from ovstrans.masks.file import mask_metadata
from ovstrans.masks.mask import Mask

FORMAT = "ovstrans.weights/1"


def pruned_weights_path(mask: Path | str) -> Path:
    """Return the path of the pruned weights of a mask file: `mask.weights.safetensors` for `mask.safetensors`."""
    mask = Path(mask)
    return mask.with_name(f"{mask.stem}.weights.safetensors")


def save_weights(path: Path | str, weights: Mapping[str, Tensor], mask: Mask, mask_name: str = "") -> None:
    """Write pruned weights, atomically.

    Args:
        path: File to write.
        weights: State dict of the image encoder.
        mask: Mask of the weights, whose origin is recorded.
        mask_name: Name of the mask file.
    """
    files.write_tensors(path, weights, {**mask_metadata(mask), "format": FORMAT, "mask": mask_name})


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the state dict and the metadata of a weights file.

    Raises:
        InputError: The file is missing, damaged, or of another format.
    """
    weights, metadata = files.read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: its format is {metadata.get('format')!r}, {FORMAT!r} is needed")
    return weights, metadata
