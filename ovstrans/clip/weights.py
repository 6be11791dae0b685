"""Reading CLIP weights from files without running code from them, and naming them by a hash."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.errors import InputError

VISUAL = "visual."
"""Prefix of the image encoder's keys in an open_clip state dict."""

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""What older files hold beside weights; the text encoder's mask is full of infinities, as it should be."""

_PICKLE = b"\x80"
"""First byte of a pickle of protocol 2 or later, which is how torch wrote files before it wrote zip archives."""


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """The hash that names a set of weights (`weights_sha256` of the mask file).

    `state`: the image encoder's state dict, keys without `visual.`. In sorted key order, every tensor
    adds its key (UTF-8), its dtype ("float32"), its shape (as a JSON list) and its raw little-endian
    bytes in C order, so any difference in name, type, shape or value changes the result.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(key.encode())
        digest.update(str(tensor.dtype).removeprefix("torch.").encode())
        digest.update(json.dumps(list(tensor.shape)).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """A state dict from `.safetensors`, or from a torch file read with `weights_only`.

    Wrappers (`{"state_dict": ...}`, `module.` prefixes) are taken off. TorchScript archives, pickles
    that hold anything but tensors, and files without tensors raise InputError.
    """
    path = files.existing_file(path)
    if path.suffix == ".safetensors":
        state: object = files.read_tensors(path)[0]
    else:
        state = _read_torch(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: holds no state dict but a {type(state).__name__}")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path}: holds no tensors")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {key: value for key, value in tensors.items() if key not in _NOT_WEIGHTS}


def _read_torch(path: Path) -> object:
    """What a torch file holds, read without running code; every failure in one line, without torch's advice."""
    with path.open("rb") as handle:
        start = handle.read(2)
    if start != b"PK" and start[:1] != _PICKLE:
        raise InputError(f"{path}: not a weights file; give .safetensors or a torch state dict")
    _refuse_torchscript(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was pickled
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([A-Za-z_][\w.]*) was not", str(error))
        what = f"holds {named[1]} beside tensors" if named else "is damaged, or holds objects beside tensors"
        raise InputError(
            f"{path}: {what}, which could run code; save its state dict as .safetensors where you trust it, "
            "and give that file"
        ) from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise InputError(
            f"{path}: not a weights file, or a damaged one; copy or make it again, or give .safetensors"
        ) from error


def _refuse_torchscript(path: Path) -> None:
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged, in one of many ways: torch's reader will not take it either
        return
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise InputError(
            f"{path}: is a TorchScript archive, which carries code and is not run here; use --pretrained openai "
            "(open_clip fetches safetensors), or save its state dict as .safetensors where you trust it"
        )


def require_finite(state: Mapping[str, Tensor], origin: str) -> None:
    """Raise InputError naming the first tensor of `state` that holds NaN or infinity."""
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise InputError(f"{origin}: {key} holds {bad} values that are NaN or infinite; the weights are damaged")
