"""The CLIP that a command works on when it is given a mask: what the user names, else what the mask records."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ovstrans.clip.load import is_missing_file
from ovstrans.clip.models import DEFAULT_MODEL, find_config
from ovstrans.errors import InputError, MismatchError, MissingFileError
from ovstrans.masks.file import load_mask
from ovstrans.masks.mask import Mask, require_shapes

_QUICK = "-quickgelu"


@dataclass(frozen=True)
class ClipChoice:
    """A model and its weights.

    Attributes:
        model: open_clip model.
        pretrained: Tag or file of its weights; None for the default ones of the model.
    """

    model: str
    pretrained: str | None


def choose_clip(
    mask: Mask | os.PathLike[str] | str | bool | None,
    model: str | None = None,
    pretrained: os.PathLike[str] | str | None = None,
    *,
    default: str = DEFAULT_MODEL,
) -> ClipChoice:
    """Return the model and weights to work on.

    Args:
        mask: Mask or mask file; False or None for none. Its model counts if none is named, and its weights if none are
            named and the model is the mask's. A mask that does not fit the model that it names decides nothing.
        model: open_clip model that the user names.
        pretrained: Tag or file that the user names.
        default: Model where neither the user nor the mask names one.

    Raises:
        InputError: The mask cannot be read, or records a file of weights that is not there.
    """
    given = None if pretrained is None else os.fspath(pretrained)
    if isinstance(mask, bool) or mask is None or (model is not None and given is not None):
        return ClipChoice(model or default, given)
    mask = mask if isinstance(mask, Mask) else load_mask(Path(mask))
    if not _is_sound(mask) or not same_architecture(model or mask.model, mask.model):
        return ClipChoice(model or default, given)
    if given is not None:
        return ClipChoice(model or mask.model, given)
    return ClipChoice(mask.model, recorded_weights(mask))


def recorded_weights(mask: Mask) -> str | None:
    """Return the tag or file of the weights that a mask was made from; None if it records none.

    Raises:
        MissingFileError: It is a file that is not there.
    """
    recorded = mask.pretrained
    if is_missing_file(recorded):
        raise MissingFileError(
            f"{recorded}: no such file; {mask.path or 'the mask'} records it as the weights it was made from; "
            "give them as `pretrained`"
        )
    return recorded or None


def same_architecture(one: str, other: str) -> bool:
    """Return whether two names of open_clip are of one architecture; they may differ in the activation."""
    return one.removesuffix(_QUICK) == other.removesuffix(_QUICK)


def _is_sound(mask: Mask) -> bool:
    """Return whether a mask names a model that is known and that it fits."""
    try:
        return find_config(mask.model) is not None and require_shapes(mask.shapes, model=mask.model, where=mask.title)
    except (MismatchError, InputError):
        return False
