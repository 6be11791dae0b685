"""What `prune` leaves behind: the mask, the pruned weights beside it, the state while it runs.

The weights file is a plain state dict of the image encoder (keys without `visual.`) in safetensors, so
that `read_state_dict` and everything else that takes weights reads it. Its metadata say where the
weights come from: `format` ("ovstrans.weights/1"), `model`, `pretrained`, `weights_sha256` (of the
weights that were pruned), `method`, `sparsity`, `mask` (file name), `recipe` (JSON), `created_by`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ovstrans import files
from ovstrans.errors import InputError
from ovstrans.masks.file import mask_metadata, save_mask
from ovstrans.masks.mask import Mask
from ovstrans.pruning.plot import plot_densities
from ovstrans.pruning.prune import Result
from ovstrans.training.initial_weights import pruned_weights_path

FORMAT = "ovstrans.weights/1"


def state_path(out: Path | str) -> Path:
    """Where a run that will write `out` keeps its state: `mask.safetensors` to `mask.resume.pt`."""
    out = Path(out)
    return out.with_name(f"{out.stem}.resume.pt")


def plot_path(out: Path | str) -> Path:
    """Where the density plot of `out` goes: `mask.safetensors` to `mask.png`."""
    return Path(out).with_suffix(".png")


def check_outputs(out: Path | str, *, plot: bool, force: bool, resume: bool) -> Path:
    """Refuse, before any work, what could not be written after it; returns the mask's path.

    Raises InputError where one of the files exists (unless `force`), where the folder is not writable,
    where the name is not of a `.safetensors` file, or where an interrupted run left a state and neither
    `resume` nor `force` says what to do with it.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: a mask is a .safetensors file; give a name that ends so")
    state = state_path(out)
    if state.exists() and not resume and not force:
        raise InputError(f"{state}: an interrupted run left it; --resume goes on with it, --force starts anew")
    # With a state there the run was past this check: what it replaces, it was allowed to replace.
    force = force or (resume and state.exists())
    for path in (out, pruned_weights_path(out), *([plot_path(out)] if plot else [])):
        files.check_output(path, force=force)
    return out


def save_result(out: Path | str, result: Result, *, plot: bool = True) -> list[Path]:
    """Write mask, pruned weights and plot; returns their paths in this order. The state is done with."""
    written = [Path(out), pruned_weights_path(out)]
    # The mask last of what finetune reads: where it is there, its weights are too.
    save_weights(written[1], result.encoder, result.mask, written[0].name)
    save_mask(written[0], result.mask)
    if plot:
        written.append(plot_densities(plot_path(out), result.mask))
    state_path(out).unlink(missing_ok=True)
    return written


def save_weights(path: Path | str, encoder: nn.Module, mask: Mask, mask_name: str = "") -> None:
    """Write a pruned tower's state dict, atomically."""
    metadata = {**mask_metadata(mask), "format": FORMAT, "mask": mask_name}
    files.write_tensors(path, encoder.state_dict(), metadata)


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict and metadata of a weights file; InputError for any other file."""
    state, metadata = files.read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: its format is {metadata.get('format')!r}, {FORMAT!r} is needed")
    return state, metadata
