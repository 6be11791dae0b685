"""Inputs of a run that are objects rather than names or paths, and how the run folder records them.

A recipe holds strings, so an object is written into the run folder and the recipe names its file:

inputs/clip.safetensors      a Clip that no name and tag stand for, such as one with changed weights: all its tensors
inputs/mask.safetensors      a mask
inputs/plan.json             a freeze plan, or the alpha file of an analysis
inputs/weights.safetensors   pruned weights of the image encoder

A Clip whose weights are those of its name and tag is recorded by these. A dataset is recorded by the name under which
`open_dataset` gives the same one; any other dataset, recorded as `object:NAME:SPLIT`, has to be given again to resume.
Otherwise a run resumes from its folder alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.clip.load import Clip, load_clip
from ovstrans.clip.models import model_names
from ovstrans.clip.weights import weights_sha256
from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.folder import FolderDataset
from ovstrans.datasets.sample import Dataset
from ovstrans.environment import bake_pruning
from ovstrans.errors import InputError
from ovstrans.masks.file import load_mask, save_mask
from ovstrans.masks.mask import Mask
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.spectrum.analysis import Analysis
from ovstrans.spectrum.file import load_plan, save_plan
from ovstrans.spectrum.plan import FreezePlan
from ovstrans.training.resolve import PathLike, path_text
from ovstrans.training.run_folder import RunFolder

OBJECT = "object:"
"""Beginning of the recorded name of a dataset that was given as an object and has no name of its own."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run that were given as objects; None for those that its recipe names.

    Attributes:
        clip: The CLIP.
        mask: The mask.
        plan: The freeze plan, or an analysis with its default plan.
        weights: Pruned weights: state dict of the image encoder.
        dataset: The dataset to train on.
    """

    clip: Clip | None = None
    mask: Mask | None = None
    plan: FreezePlan | Analysis | None = None
    weights: Mapping[str, Tensor] | None = None
    dataset: Dataset | None = None

    @property
    def names(self) -> set[str]:
        """Arguments of `resolve.choose_recipe` that stand for these objects."""
        single = {"mask": self.mask, "plan": self.plan, "weights": self.weights, "data": self.dataset}
        given = {name for name, value in single.items() if value is not None}
        return given | {"model", "pretrained"} if self.clip is not None else given

    def save(self, folder: RunFolder, recipe: FinetuneRecipe) -> None:
        """Write the objects that the recipe names by their file in the run folder."""
        if self.clip is not None and Path(recipe.model.pretrained) == _clip_file(folder).absolute():
            files.write_tensors(_clip_file(folder), self.clip.model.state_dict(), {})
        if self.mask is not None:
            save_mask(_mask_file(folder), self.mask)
        if isinstance(self.plan, Analysis):
            self.plan.save(_plan_file(folder))
        elif self.plan is not None:
            save_plan(_plan_file(folder), self.plan)
        if self.weights is not None:
            files.write_tensors(_weights_file(folder), self.weights, {})


def take_inputs(
    folder: RunFolder,
    *,
    clip: Clip | str | None,
    pretrained: PathLike | None,
    mask: Mask | PathLike | bool | None,
    plan: FreezePlan | Analysis | PathLike | bool | None,
    weights: Mapping[str, Tensor] | PathLike | None,
    data: Dataset | str | None,
    size: int | None = None,
) -> tuple[Inputs, dict[str, Any]]:
    """Tell objects from names and paths.

    Args:
        folder: The run folder.
        clip: See `finetune`, as for the others.
        pretrained: See `finetune`.
        mask: See `finetune`.
        plan: See `finetune`.
        weights: See `finetune`.
        data: See `finetune`.
        size: Side of generated images.

    Returns:
        The objects, and the arguments of `resolve.choose_recipe` that record them.

    Raises:
        InputError: `pretrained` is given with a Clip object, or an argument is of another type.
    """
    if isinstance(clip, Clip):
        if pretrained is not None:
            raise InputError("`pretrained`: the Clip given has its weights; leave it out, or give a model by name")
        clip = dataclasses.replace(clip, model=bake_pruning(clip.model))
        clip = dataclasses.replace(clip, weights_sha256=weights_sha256(clip.visual.state_dict()))
        if not _is_named(clip):
            clip = dataclasses.replace(clip, name=_recorded_name(clip), pretrained=str(_clip_file(folder)))
    inputs = Inputs(
        clip=clip if isinstance(clip, Clip) else None,
        mask=mask if isinstance(mask, Mask) else None,
        plan=plan if isinstance(plan, (FreezePlan, Analysis)) else None,
        weights=weights if isinstance(weights, Mapping) else None,
        dataset=None if data is None or isinstance(data, str) else data,
    )
    recorded: dict[str, Any] = {
        "model": clip.name if isinstance(clip, Clip) else clip,
        "pretrained": clip.pretrained if isinstance(clip, Clip) else path_text(pretrained),
        "mask": str(_mask_file(folder)) if isinstance(mask, Mask) else path_text(mask),
        "plan": str(_plan_file(folder)) if isinstance(plan, (FreezePlan, Analysis)) else path_text(plan),
        "weights": str(_weights_file(folder)) if isinstance(weights, Mapping) else path_text(weights),
        "data": data if inputs.dataset is None else dataset_name(inputs.dataset, size),
    }
    return inputs, recorded


def require_same(inputs: Inputs, folder: RunFolder, frozen: list[str]) -> None:
    """Check that objects given to resume a run are those it was started with.

    Args:
        inputs: The objects.
        folder: The run folder.
        frozen: Names of the layers that the run has frozen.

    Raises:
        InputError: One of them is another.
    """
    another = "is not the one that the run was started with; leave it out to resume, or start anew with another `out`"
    if inputs.mask is not None and not (folder.mask.exists() and inputs.mask == load_mask(folder.mask)):
        raise InputError(f"`mask`: {another}")
    if inputs.plan is not None:
        plan = inputs.plan.default_plan if isinstance(inputs.plan, Analysis) else inputs.plan
        if list(plan.frozen) != frozen:
            raise InputError(f"`plan`: {another}")
    if inputs.clip is not None and inputs.clip.weights_sha256 != _stored_clip(folder).weights_sha256:
        raise InputError(f"`clip`: {another}")


def open_clip_of(recipe: FinetuneRecipe, folder: RunFolder, inputs: Inputs, *, resuming: bool) -> Clip:
    """Return the CLIP of a run."""
    if resuming:
        return _stored_clip(folder)
    return inputs.clip or load_clip(recipe.model.clip, recipe.model.pretrained or None)


def open_mask_of(recipe: FinetuneRecipe, folder: RunFolder, inputs: Inputs, *, resuming: bool) -> Mask | None:
    """Return the mask of a run: as given, from its file, or when resuming from the run's own copy."""
    if not recipe.run.mask:
        return None
    if resuming:
        return load_mask(folder.mask)
    return inputs.mask or load_mask(recipe.run.mask)


def planned_layers(recipe: FinetuneRecipe, inputs: Inputs) -> list[str]:
    """Return the layers that a run freezes from its first step on."""
    if not recipe.run.plan:
        return []
    if inputs.plan is None:
        return list(load_plan(files.existing_file(recipe.run.plan)).frozen)
    plan = inputs.plan.default_plan if isinstance(inputs.plan, Analysis) else inputs.plan
    return list(plan.frozen)


def open_training_set(recipe: FinetuneRecipe, inputs: Inputs, root: Path | None) -> Dataset:
    """Return the dataset of a run.

    Raises:
        InputError: There is no such dataset, or the run was started with a dataset object, which must be passed again.
    """
    name, size = recipe.data.dataset, recipe.data.size
    if inputs.dataset is not None:
        return inputs.dataset
    if name.startswith(OBJECT):
        raise InputError(f"`data`: the run trains on a dataset that was given as an object ({name}); give it again")
    return open_dataset(name, split="train", size=size, data_root=root)


def dataset_name(dataset: Dataset, size: int | None = None) -> str:
    """Return the name under which `open_dataset` gives the same dataset, or `object:NAME:SPLIT` if there is none.

    Args:
        dataset: The dataset.
        size: Side of generated images.
    """
    for name in _likely_names(dataset):
        try:
            found = open_dataset(name, split=dataset.split, size=size)
        except (InputError, OSError):
            continue
        if _equal_datasets(dataset, found):
            return name
    return f"{OBJECT}{dataset.name}:{dataset.split}"


def _likely_names(dataset: Dataset) -> Iterator[str]:
    if isinstance(dataset, FolderDataset):
        path = dataset.description.path
        yield f"folder:{path.parent if path.name == 'dataset.toml' else path}:{dataset.split}"
    yield f"{dataset.name}:{dataset.split}"


def _equal_datasets(one: Dataset, other: Dataset) -> bool:
    """Return whether datasets are of one kind and size, with equal classes and equal first and last samples."""
    if type(one) is not type(other) or len(one) != len(other) or one.vocabulary != other.vocabulary:
        return False
    for index in {0, len(one) - 1} if len(one) else ():
        first, second = one[index], other[index]
        if not torch.equal(first.image, second.image) or (first.label is None) != (second.label is None):
            return False
        if first.label is not None and second.label is not None and not torch.equal(first.label, second.label):
            return False
    return True


def _stored_clip(folder: RunFolder) -> Clip:
    """Load the CLIP of a run that is resumed; the copy in the folder may have moved with it."""
    model = folder.stored().model
    copy = _clip_file(folder)
    return load_clip(model.clip, str(copy) if copy.exists() else model.pretrained or None)


def _is_named(clip: Clip) -> bool:
    """Return whether the name and tag of a CLIP stand for its weights."""
    if not clip.pretrained:
        return False
    try:
        named = load_clip(clip.name, clip.pretrained)
    except InputError:
        return False
    own, theirs = clip.model.state_dict(), named.model.state_dict()
    return own.keys() == theirs.keys() and all(torch.equal(own[key].cpu(), theirs[key]) for key in own)


def _recorded_name(clip: Clip) -> str:
    """Return the model name of a CLIP that is loaded from a file, where no tag tells the activation."""
    quick = any(type(module).__name__ == "QuickGELU" for module in clip.model.modules())
    name = f"{clip.name}-quickgelu"
    return name if quick and name in model_names() else clip.name


def _clip_file(folder: RunFolder) -> Path:
    return folder.inputs / "clip.safetensors"


def _mask_file(folder: RunFolder) -> Path:
    return folder.inputs / "mask.safetensors"


def _plan_file(folder: RunFolder) -> Path:
    return folder.inputs / "plan.json"


def _weights_file(folder: RunFolder) -> Path:
    return folder.inputs / "weights.safetensors"
