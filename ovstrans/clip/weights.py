"""State dicts: reading them without running code, hashing them, and fitting them to a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ovstrans import files
from ovstrans.clip.backbone import find_image_encoder
from ovstrans.errors import InputError, MismatchError

ORIGIN = "ovstrans"
"""Entry in which a file that we export says what it is, see `interop.origin`."""

VISUAL = "visual."
"""Prefix of the image encoder's keys in an open_clip state dict."""

WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|backbone|clip_model|visual)\.)+")
"""Prefixes that DDP, `torch.compile`, frameworks and CLIPs put before an image encoder's keys."""

OTHER_ARCHITECTURE = "weights of another architecture"
"""End of the messages of `fit_state`, unless its caller knows better."""

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Entries of older files that are no weights. (The text encoder's mask holds infinities on purpose.)"""

_PREFIXES = ("module.", "model.")
"""Prefixes that DDP and Lightning put before every name."""

_INNER_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of names that `torch.compile` and FSDP add, wherever the wrapped module is."""

_COUNTERS = ("total_ops", "total_params", "n_averaged")
"""Ends of the names that thop and averaging of weights add."""

_QUANTIZED_ENTRIES = (".qweight", ".qzeros", ".SCB", ".absmax", ".quant_map", ".weight_scale")
"""Ends of the names that libraries for quantization add."""

_ENCODER_ENTRIES = ("layer1.0.conv1.weight", "trunk.stem.0.weight", "class_embedding", "trunk.patch_embed.proj.weight")
"""An entry of every kind of image encoder: ResNet, ConvNeXt, ViT, ViT of timm."""

_ORIGINAL, _MASK = "_orig", "_mask"
"""Ends of the names of torch's pruning: of a weight before its mask, and of the mask."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.")
"""What the name of a part of a checkpoint in several files has."""

_REFUSED_FORMATS = ("ovstrans.mask/", "ovstrans.checkpoint/")
"""Formats of ours that hold no plain weights."""

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
        return {_pruned_name(_INNER_WRAPPERS.sub("", name)): parameter for name, parameter in named}
    bare = {_pruned_name(key): value for key, value in model.items() if isinstance(value, Tensor)}
    prefixed = {WRAPPERS.sub("", key): value for key, value in bare.items() if WRAPPERS.match(key)}
    return {**bare, **prefixed}


def _pruned_name(key: str) -> str:
    """Return a weight's own name where torch's pruning holds it as `weight_orig`."""
    return key.removesuffix(_ORIGINAL) if key.endswith(f"weight{_ORIGINAL}") else key


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash a state dict: the `weights_sha256` of mask files and checkpoints.

    In sorted key order, every tensor adds its key (UTF-8), its dtype ("float32"), its shape (as a JSON list) and its
    raw little-endian bytes in C order. Any difference in name, type, shape or value changes the result.

    Args:
        state: The image encoder's state dict, keys without `visual.`.

    Returns:
        A SHA-256 in hexadecimal.
    """
    return files.hash_tensors(state).hexdigest()


@dataclass(frozen=True)
class WeightFile:
    """The contents of a file of weights: of ours, of another program, or exported from here.

    Attributes:
        path: The file.
        state: Its tensors, without the prefixes of wrappers around the whole model.
        origin: What one of our exports says of itself, as JSON text; "" in other files.
        metadata: Metadata of a safetensors file.
        ignored: Entries that are no part of the model, such as an optimizer.
        modules: Names of the modules that torch recorded beside the state dict.
        extras: Names of entries of the state dict that are no weights, as OpenAI's files have them.
        code: Source text of a TorchScript archive, which is not run.
        run_name: Name of the training run, in checkpoints of open_clip.
    """

    path: Path
    state: dict[str, Tensor]
    origin: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    code: str = ""
    run_name: str = ""

    def dense(self) -> dict[str, Tensor]:
        """Return the weights with the masks of torch's pruning applied to them.

        Raises:
            InputError: If there are masks only, or a weight lacks its mask.
        """
        baked = bake_masks(self.state, str(self.path))
        weights = {key: value for key, value in baked.items() if not key.endswith(f"weight{_MASK}")}
        if not weights:
            raise InputError(f"{self.path}: holds masks and no weights; give it as `mask`")
        return weights


def read_weight_file(path: Path | str) -> WeightFile:
    """Read a file of weights, whichever program wrote it, without running anything in it.

    Safetensors files; torch files (zipped, older ones, TorchScript archives, modules saved whole); pickles of arrays
    as in detectron2's model zoo. A dictionary may be the state dict itself, may hold it beside an optimizer and
    counters (`state_dict`, `model`, ... ), or may hold one state dict per part of a model, as OpenTrans saves them.
    Prefixes of DDP, FSDP, `torch.compile` and Lightning are removed, and so are the counters of thop. Sparse tensors
    become dense.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it holds no weights, quantized ones, or asks for code to be run. The message says what it is.
    """
    path = files.existing_file(path)
    part = _PART.search(path.name)
    if part and int(part[2]) > 1:
        which = f"part {int(part[1])} of {int(part[2])}"
        raise InputError(f"{path}: {which} of a checkpoint in several files; join them into one .safetensors file")
    with path.open("rb") as handle:
        start = handle.read(9)
    if files.safetensors_header(start):
        tensors, metadata = files.read_tensors(path)
        found = WeightFile(path, tensors, metadata.get(ORIGIN, ""), metadata)
    else:
        from ovstrans.clip.torch_file import read_torch_file

        found = WeightFile(path, **vars(read_torch_file(path)))
    if found.metadata.get("format", "").startswith(_REFUSED_FORMATS):
        from ovstrans.file_kinds import refusal

        raise InputError(refusal(path, "a file of weights"))
    _refuse_quantized(found)
    files.require_plain_types(found.state, str(path))
    state = _clean_names(found.state)
    extras = tuple(key for key in state if key in _NOT_WEIGHTS)
    return replace(found, state={key: value for key, value in state.items() if key not in extras}, extras=extras)


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Read the weights in a file; see `read_weight_file`. Masks of torch's pruning are applied to them."""
    return read_weight_file(path).dense()


def bake_masks(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Make the masks of torch's pruning permanent, as `torch.nn.utils.prune.remove` does.

    `W_orig` and `W_mask` become `W`, exactly zero where it is masked. Masks without a weight stay.

    Raises:
        InputError: If a weight has no mask beside it.
        MismatchError: If their shapes differ.
    """
    baked = dict(state)
    for key, weight in state.items():
        name = key.removesuffix(_ORIGINAL)
        if name == key or (name + _MASK not in state and not key.endswith(f"weight{_ORIGINAL}")):
            continue
        if name + _MASK not in state:
            raise InputError(f"{where}: {key} has no {name + _MASK} beside it; save both, or the pruned weight itself")
        kept = state[name + _MASK]
        if kept.shape != weight.shape:
            raise MismatchError(f"{where}: {key} has shape {list(weight.shape)}, its mask {list(kept.shape)}")
        del baked[key], baked[name + _MASK]
        baked[name] = weight.masked_fill(kept == 0, 0)
    return baked


def find_clip(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the entries of the one CLIP, or image encoder, in a state dict, by its own names.

    Args:
        state: Tensors of a model that has it as a part, under any prefix (`clip_model.visual.conv1.weight`), or of
            the CLIP itself.
        where: Beginning of messages: the file.

    Returns:
        The CLIP's entries, or the image encoder's (`conv1.weight`); the whole state if there is neither.

    Raises:
        InputError: If there are several.
    """
    prefixes = {
        key.removesuffix(ending)
        for ending in _ENCODER_ENTRIES
        for key in state
        if key.endswith(ending) and key.removesuffix(ending)[-1:] in ("", ".")
    }
    clips = {prefix.removesuffix(VISUAL) for prefix in prefixes if prefix.endswith(VISUAL)}
    chosen = sorted(clips or prefixes)
    if len(chosen) > 1:
        raise InputError(
            f"{where}: holds {len(chosen)} image encoders ({', '.join(map(repr, chosen))}); save one of them alone"
        )
    if not chosen or not chosen[0]:
        return dict(state)
    inner = {key.removeprefix(chosen[0]): value for key, value in state.items() if key.startswith(chosen[0])}
    return {key: value for key, value in inner.items() if key not in _NOT_WEIGHTS}


def _clean_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what training code puts around names and beside weights."""
    named = {_INNER_WRAPPERS.sub("", key): value for key, value in state.items() if not key.endswith(_COUNTERS)}
    while named and (prefix := next((each for each in _PREFIXES if all(key.startswith(each) for key in named)), "")):
        named = {key.removeprefix(prefix): value for key, value in named.items()}
    return named


def _refuse_quantized(file: WeightFile) -> None:
    """Raise InputError if weights are stored as integers or 8-bit floats, which need scales to mean anything."""
    for key, value in file.state.items():
        kind = str(value.dtype).removeprefix("torch.")
        stored = key.endswith(".weight") and value.dim() > 1 and not kind.startswith(("float16", "float32", "bfloat"))
        stored = stored and not kind.startswith(("float64", "bool"))
        if stored or key.endswith(_QUANTIZED_ENTRIES):
            raise InputError(
                f"{file.path}: holds quantized weights ({kind}: {key}); give the weights that they were made from"
            )


def require_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError, beginning with `where`, if a tensor holds NaN or infinity."""
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise InputError(f"{where}: {key} holds {bad} values that are NaN or infinite; the weights are damaged")
