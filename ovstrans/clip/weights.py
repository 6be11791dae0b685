"""State dicts: reading them without running code, hashing them, and fitting them to a model."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ovstrans import files
from ovstrans.clip.backbone import find_image_encoder
from ovstrans.errors import InputError, MismatchError

VISUAL = "visual."
"""Prefix of the image encoder's keys in an open_clip state dict."""

WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|backbone|clip_model|visual)\.)+")
"""Prefixes that DDP, `torch.compile`, frameworks and CLIPs put before an image encoder's keys."""

OTHER_ARCHITECTURE = "weights of another architecture"
"""End of the messages of `fit_state`, unless its caller knows better."""

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Entries of older files that are no weights. (The text encoder's mask holds infinities on purpose.)"""

_PICKLE = b"\x80"
"""First byte of a pickle of protocol 2 or later: torch files from before the zip archives."""

_COUNTER = "num_batches_tracked"
_LISTED = 3


@dataclass(frozen=True)
class StateFit:
    """Comparison of the entries of a state dict with those of a model.

    Attributes:
        state: Tensors that the model has, by the model's names and in its order.
        missing: Names that the model has and the state dict lacks.
        unexpected: Names that the state dict has and the model lacks.
        where: Beginning of messages: the file, for example.
        remedy: End of messages.
    """

    state: dict[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    where: str
    remedy: str

    def require_complete(self, *, needed: Callable[[str], bool] = lambda key: True, remedy: str | None = None) -> None:
        """Raise MismatchError if an entry is missing.

        Args:
            needed: Tells which of the missing entries matter. All by default.
            remedy: End of the message instead of the usual one.
        """
        missing = [key for key in self.missing if needed(key)]
        if missing:
            others = f" and {len(self.unexpected)} that do not belong to it" if self.unexpected else ""
            raise MismatchError(
                f"{self.where}: lacks {list_keys(missing)} of the model; it has {len(self.state)} that fit{others}: "
                f"{remedy or self.remedy}"
            )

    def require_known(self) -> None:
        """Raise MismatchError if an entry is not the model's."""
        if self.unexpected:
            raise MismatchError(
                f"{self.where}: has {list_keys(self.unexpected)} that the model does not have: {self.remedy}"
            )


def fit_state(
    state: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    where: str,
    *,
    optional: Callable[[str], bool] | None = None,
    remedy: str = OTHER_ARCHITECTURE,
) -> StateFit:
    """Compare a state dict with a model's, both by the model's names.

    Args:
        state: Tensors to load.
        model: The model's own state dict, on any device; names and shapes count.
        where: Beginning of messages: the file, for example.
        optional: Tells which names may be missing or additional without being listed. BatchNorm's counters by
            default (`is_counter`), which older files lack and nothing depends on.
        remedy: End of messages.

    Returns:
        What fits, what is missing and what is additional.

    Raises:
        MismatchError: If a tensor has another shape than the model's, or nothing of the state dict is the model's.
    """
    optional = optional or is_counter
    for key, value in state.items():
        if key in model and value.shape != model[key].shape:
            raise MismatchError(
                f"{where}: {key} has shape {list(value.shape)}, the model needs {list(model[key].shape)}: {remedy}"
            )
    fitting = {key: state[key] for key in model if key in state}
    if model and not fitting:
        raise MismatchError(f"{where}: has {list_keys(list(state))}, none of which the model has: {remedy}")
    return StateFit(
        state=fitting,
        missing=tuple(key for key in model if key not in state and not optional(key)),
        unexpected=tuple(key for key in state if key not in model and not optional(key)),
        where=where,
        remedy=remedy,
    )


def is_counter(key: str) -> bool:
    """Return whether an entry is BatchNorm's count of batches."""
    return key.endswith(_COUNTER)


def list_keys(keys: Sequence[str]) -> str:
    """Return the number of keys and the first few: `5 entries (a, b, c, ...)`."""
    first = ", ".join(keys[:_LISTED]) + (", ..." if len(keys) > _LISTED else "")
    return f"{len(keys)} {'entry' if len(keys) == 1 else 'entries'} ({first})"


def encoder_tensors(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an image encoder's tensors by their name in it.

    Args:
        model: A module, of which the parameters count, see `clip.backbone.find_image_encoder`. Or a state dict, in
            which names with a wrapper's prefix come before those without one: in a CLIP's, these are the text
            encoder's.
    """
    if isinstance(model, nn.Module):
        named = find_image_encoder(model).named_parameters(remove_duplicate=False)
        return {name.replace("_orig_mod.", ""): parameter for name, parameter in named}
    bare = {key: value for key, value in model.items() if isinstance(value, Tensor)}
    prefixed = {WRAPPERS.sub("", key): value for key, value in bare.items() if WRAPPERS.match(key)}
    return {**bare, **prefixed}


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash a state dict: the `weights_sha256` of mask files and checkpoints.

    In sorted key order, every tensor adds its key (UTF-8), its dtype ("float32"), its shape (as a JSON list) and its
    raw little-endian bytes in C order. Any difference in name, type, shape or value changes the result.

    Args:
        state: The image encoder's state dict, keys without `visual.`.

    Returns:
        A SHA-256 in hexadecimal.
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
    """Read a state dict from a `.safetensors` file, or from a torch file with `weights_only`.

    Wrappers are removed: `{"state_dict": ...}`, `{"model": ...}`, and `module.` before every name.

    Raises:
        InputError: If the file is missing or damaged, holds no tensors, or holds anything that could run code (a
            TorchScript archive, a pickle of other objects).
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
    """Read a torch file without running code. Every failure becomes an InputError of one line."""
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
            f"{path}: is a TorchScript archive, which carries code and is not run here; use `pretrained=openai` "
            "(open_clip fetches safetensors), or save its state dict as .safetensors where you trust it"
        )


def require_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError, beginning with `where`, if a tensor holds NaN or infinity."""
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise InputError(f"{where}: {key} holds {bad} values that are NaN or infinite; the weights are damaged")
