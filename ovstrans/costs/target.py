"""What `bench` measures: a run, a checkpoint, a framework, a recipe, or the bare trunk of a CLIP.

The first two come with weights and can be evaluated; the others are built on meta tensors, for
counting, without weights, data or memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovstrans.checkpoints.file import Checkpoint, load_checkpoint
from ovstrans.clip.backbone import drop_head, encode_stages
from ovstrans.clip.load import DEFAULT_MODEL, create_image_encoder, model_info, model_names
from ovstrans.clip.text import TextClassifier
from ovstrans.costs.vocabulary import recipe_vocabulary
from ovstrans.errors import InputError, did_you_mean
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.registry import with_prompts
from ovstrans.masks.mask import Mask
from ovstrans.recipes.load import load_recipe, override, recipe_names
from ovstrans.vocabulary.vocabulary import Vocabulary

RUN_CHECKPOINT = "checkpoint.safetensors"
"""The checkpoint's name inside a run folder."""


@dataclass
class Target:
    """name: as the user gave it.  kind: "run", "checkpoint", "framework", "recipe" or "model".
    module: what is counted.  components: its parts.  mask: of the image encoder, or None.
    frozen: tower layers that a plan holds still.  model: open_clip name.  checkpoint: where it has weights.
    recipe: of its training, where there is one."""

    name: str
    kind: str
    module: nn.Module
    components: dict[str, nn.Module]
    model: str
    mask: Mask | None = None
    frozen: Sequence[str] = ()
    checkpoint: Checkpoint | None = None
    recipe: Mapping[str, Any] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The `target` entry of a report."""
        mask = self.mask
        return {
            "name": self.name,
            "kind": self.kind,
            "model": self.model,
            **self.about,
            "mask": None if mask is None else {"method": mask.method, "sparsity": mask.sparsity},
            "frozen": list(self.frozen),
        }


class Trunk(nn.Module):
    """The trunk of an image encoder alone: stem and stages, no head."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        drop_head(encoder)
        self.backbone = encoder

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to res5 [B, C, h, w]."""
        return encode_stages(self.backbone, images)["res5"]


def resolve(
    name: str,
    *,
    model: str | None = None,
    mask: Mask | None = None,
    frozen: Sequence[str] = (),
    vocabulary: Vocabulary | None = None,
    settings: Sequence[str] = (),
    device: str = "meta",
) -> Target:
    """The target a name stands for: an existing path first, then framework, recipe, open_clip model.

    model: the CLIP of a framework or recipe (default: the recipe's, or RN-mini).  mask, frozen: for
    targets without weights; a checkpoint carries its own.  vocabulary: whose text rows a framework
    without weights is counted with, as it prompts them (default: that of the recipe's dataset, or of COCO
    panoptic).  settings: `KEY=VALUE` laid over a recipe, or over a framework's
    options as `model.OPTION=VALUE`.  device: "meta", or "cpu" where the counter needs real tensors.
    Raises InputError for a name that is none of these, a path without a checkpoint, or settings of a
    target that is neither framework nor recipe.
    """
    path = Path(name)
    if path.is_dir() or (path.is_file() and path.suffix != ".toml"):
        _refuse_settings(name, settings)
        return _from_checkpoint(name, path)
    if path.suffix == ".safetensors" or (len(path.parts) > 1 and path.suffix != ".toml"):
        raise InputError(f"{name}: no such file or folder")
    recipe = load_recipe(name, settings) if path.suffix == ".toml" or name in recipe_names() else None
    if name in registry.list_frameworks() or recipe is not None:
        section = _plain_recipe(name, settings) if recipe is None else recipe.get("model", {})
        if "framework" not in section:
            raise InputError(f"{name}: this recipe names no framework ([model] framework = ...); nothing to count")
        options = {key: value for key, value in section.items() if key not in ("framework", "clip", "pretrained")}
        framework = str(section.get("framework", name))
        clip = model or str(section.get("clip", DEFAULT_MODEL))
        vocabulary = recipe_vocabulary(recipe) if vocabulary is None else vocabulary
        module = build_on_meta(framework, clip, options=options, vocabulary=vocabulary, device=device)
        target = Target(name, "framework" if recipe is None else "recipe", module, module.components(), clip)
        target.recipe = recipe
        target.about = {"framework": framework, "options": module.options}
    elif name in model_names():
        _refuse_settings(name, settings)
        with torch.device(device):
            trunk = Trunk(create_image_encoder(name))
        target = Target(name, "model", trunk, {"trunk": trunk.backbone}, name)
    else:
        known = [*registry.list_frameworks(), *recipe_names(), *model_names()]
        hint = did_you_mean(name, known)
        raise InputError(
            f"{name}: neither a run, a checkpoint, a framework, a recipe nor a CLIP model; {hint}"
            f"frameworks are {', '.join(registry.list_frameworks())}, models {', '.join(model_names()[:4])}, ..."
        )
    target.mask, target.frozen = mask, tuple(frozen)
    return target


def build_on_meta(
    name: str,
    model: str,
    *,
    options: Mapping[str, Any] | None = None,
    vocabulary: Vocabulary | None = None,
    device: str = "meta",
) -> Framework:
    """A framework on an open_clip model without trained weights, for counting.

    vocabulary: its names, as the framework prompts them, are the rows of the classifier (default: a single class).
    """
    dim, _, mean, std = model_info(model)
    vocabulary = with_prompts(vocabulary or Vocabulary("none", (("object",),)), name, options or {})
    owner = [number for number, synonyms in enumerate(vocabulary.classes) for _ in synonyms]
    with torch.random.fork_rng(devices=[]), torch.device(device):
        rows = torch.zeros(len(owner), dim)
        text = TextClassifier(rows, torch.tensor(owner, dtype=torch.long), vocabulary)
        return registry.build(name, encoder=create_image_encoder(model), mean=mean, std=std, text=text, options=options)


def _plain_recipe(name: str, settings: Sequence[str]) -> Mapping[str, Any]:
    """The [model] section of a framework by itself: its defaults on the default CLIP."""
    model = {"framework": name, "clip": DEFAULT_MODEL, **registry.default_options(name)}
    return override({"model": model}, settings)["model"]


def _refuse_settings(name: str, settings: Sequence[str]) -> None:
    if settings:
        raise InputError(f"--set {settings[0]}: is for frameworks and recipes; {name} has no settings")


def _from_checkpoint(name: str, path: Path) -> Target:
    kind = "run" if path.is_dir() else "checkpoint"
    if kind == "run":
        path = path / RUN_CHECKPOINT
        if not path.exists():
            raise InputError(f"{name}: no {RUN_CHECKPOINT} in this folder; give a finished run of `ovstrans finetune`")
    checkpoint = load_checkpoint(path)
    framework = registry.restore(checkpoint)
    return Target(
        name,
        kind,
        framework,
        framework.components(),
        checkpoint.clip["model"],
        mask=checkpoint.mask,
        frozen=tuple(checkpoint.provenance.get("frozen", ())),
        checkpoint=checkpoint,
        recipe=checkpoint.recipe,
        about={
            "path": str(path),
            "framework": checkpoint.framework,
            "options": checkpoint.options,
            "pretrained": checkpoint.clip.get("pretrained"),
            "weights_sha256": checkpoint.clip.get("weights_sha256"),
            "vocabulary": checkpoint.vocabulary.name,
            "provenance": checkpoint.provenance,
        },
    )
