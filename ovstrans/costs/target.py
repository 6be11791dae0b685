"""The targets that `bench` counts, and all their costs.

A target is a run, a checkpoint, a framework, a recipe, or the bare backbone of a CLIP.

Runs and checkpoints come with weights and can be evaluated. The others are built on meta tensors: they are counted
without weights, data or memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ovstrans.checkpoints.file import Checkpoint, load_checkpoint
from ovstrans.clip import vit
from ovstrans.clip.backbone import drop_head, encode_last, encoder_kind
from ovstrans.clip.load import create_image_encoder
from ovstrans.clip.models import DEFAULT_MODEL, model_names
from ovstrans.costs.flops import Flops, count_inference
from ovstrans.costs.params import Params, count_params, count_with_clip
from ovstrans.costs.training_run import TrainingCosts, count_training
from ovstrans.datasets.catalog import GENERATED, find_vocabulary, open_dataset
from ovstrans.datasets.published.registry import lookup_published
from ovstrans.errors import InputError, MissingFileError, did_you_mean
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Framework
from ovstrans.masks.file import load_mask
from ovstrans.masks.mask import Mask
from ovstrans.masks.origin import choose_clip
from ovstrans.recipes.load import load_recipe, override, recipe_names
from ovstrans.spectrum.file import load_plan
from ovstrans.vocabulary.catalog import load_published_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovstrans.spectrum.plan import FreezePlan

PAPER_SIZE = (800, 1216)
"""Size at which published inference costs are counted (OpenTrans sec. 4.1): the first COCO validation image."""
RUN_CHECKPOINT = "checkpoint.safetensors"
"""Name of the checkpoint inside a run folder."""
DEFAULT_VOCABULARY = "coco-panoptic"
"""Class names that open-vocabulary segmentation trains on and is counted with (FC-CLIP, GKC, OpenTrans)."""


@dataclass(frozen=True)
class MaskInfo:
    """The mask of a target.

    Attributes:
        method: Name of the pruning method.
        sparsity: Zeros / all weights of the masked tensors.
    """

    method: str
    sparsity: float


@dataclass(frozen=True)
class TargetInfo:
    """Description of a target, as a report has it.

    Attributes:
        name: The target as the user named it.
        kind: "run", "checkpoint", "framework", "recipe" or "model".
        model: open_clip name of its CLIP.
        mask: Its mask.
        frozen: Layers of the image encoder that its freeze plan freezes.
        framework: Name of its framework; None for a bare CLIP model.
        options: Options of the framework.
        path: Checkpoint file of a run or checkpoint.
        pretrained: Tag of the CLIP weights that a run started from.
        weights_sha256: Hash of these weights.
        vocabulary: Name of the vocabulary that a run was trained with.
        provenance: What else a checkpoint records of its making.
    """

    name: str
    kind: str
    model: str
    mask: MaskInfo | None = None
    frozen: tuple[str, ...] = ()
    framework: str | None = None
    options: Mapping[str, Any] | None = None
    path: str | None = None
    pretrained: str | None = None
    weights_sha256: str | None = None
    vocabulary: str | None = None
    provenance: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry `target` of a report."""
        details: tuple[str, ...] = ()
        if self.kind in ("run", "checkpoint"):
            details = ("path", "framework", "options", "pretrained", "weights_sha256", "vocabulary", "provenance")
        elif self.framework is not None:
            details = ("framework", "options")
        return {
            "name": self.name,
            "kind": self.kind,
            "model": self.model,
            **{name: getattr(self, name) for name in details},
            "mask": None if self.mask is None else asdict(self.mask),
            "frozen": list(self.frozen),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TargetInfo:
        """Read the entry `target` of a report."""
        mask = value.get("mask")
        known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        return cls(
            **known | {"mask": None if mask is None else MaskInfo(**mask), "frozen": tuple(value.get("frozen", ()))},
        )


@dataclass
class Target:
    """A model to count, and if it has weights to evaluate.

    Attributes:
        name: The target as the user named it.
        kind: "run", "checkpoint", "framework", "recipe" or "model".
        module: What is counted.
        components: Parts of the module that reports count separately.
        model: open_clip name of its CLIP.
        mask: Mask of the image encoder.
        frozen: Layers of the image encoder that a plan freezes.
        checkpoint: Where the weights are from; None for a target without weights.
        path: Checkpoint file, if there is one.
        recipe: Recipe of its training, if there is one.
        weights_hash: Hash of its weights, once it was needed.
    """

    name: str
    kind: str
    module: nn.Module
    components: dict[str, nn.Module]
    model: str
    mask: Mask | None = None
    frozen: Sequence[str] = ()
    checkpoint: Checkpoint | None = None
    path: Path | None = None
    recipe: Mapping[str, Any] | None = None
    weights_hash: str | None = None

    def describe(self) -> TargetInfo:
        """Return the description that a report has."""
        mask = None if self.mask is None else MaskInfo(self.mask.method, self.mask.sparsity)
        info = TargetInfo(self.name, self.kind, self.model, mask, tuple(self.frozen))
        if self.checkpoint is not None:
            clip = self.checkpoint.clip
            return replace(
                info,
                path=None if self.path is None else str(self.path),
                framework=self.checkpoint.framework,
                options=self.checkpoint.options,
                pretrained=clip.get("pretrained"),
                weights_sha256=clip.get("weights_sha256"),
                vocabulary=self.checkpoint.vocabulary.name,
                provenance=self.checkpoint.provenance,
            )
        if isinstance(self.module, Framework):
            return replace(info, framework=self.module.name, options=self.module.options)
        return info


@dataclass
class Costs:
    """All that a target costs.

    Attributes:
        params: Parameters.
        flops: Cost of inference, in MACs.
        training: Cost of training, in MACs.
    """

    params: Params
    flops: Flops
    training: TrainingCosts

    def without_layers(self) -> Costs:
        """Return the same without the figures of every layer."""
        return Costs(self.params, self.flops.without_layers(), self.training.without_layers())


class Backbone(nn.Module):
    """The backbone of a CLIP image encoder alone: stem and stages, or patch embedding and blocks; no head.

    Args:
        encoder: open_clip image encoder, whose head is dropped.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        drop_head(encoder)
        self.backbone = encoder

    def forward(self, images: Tensor) -> Tensor:
        """Compute the last feature map [B, C, h, w] of normalised images [B, 3, H, W]."""
        return encode_last(self.backbone, images)


def encoder_components(encoder: nn.Module) -> dict[str, nn.Module]:
    """Return the parts of a bare backbone that reports count separately.

    A ViT has the embedding of its patches, attention and MLPs; a ConvNeXt its stem, downsampling, depthwise and
    pointwise convolutions. Norms, scales and positions are outside of all. A ResNet is one part.
    """
    kind = encoder_kind(encoder)
    if kind == "resnet":
        return {"trunk": encoder}
    inner = cast(Any, encoder)
    if kind == "vit":
        blocks: Any = vit.vit_blocks(encoder)
        timm = hasattr(inner, "trunk")
        return {
            "embedding": inner.trunk.patch_embed if timm else inner.conv1,
            "attention": nn.ModuleList([block.attn for block in blocks]),
            "mlp": nn.ModuleList([block.mlp for block in blocks]),
        }
    blocks = [block for stage in inner.trunk.stages for block in stage.blocks]
    return {
        "stem": inner.trunk.stem,
        "downsampling": nn.ModuleList([stage.downsample for stage in inner.trunk.stages]),
        "depthwise": nn.ModuleList([block.conv_dw for block in blocks]),
        "pointwise": nn.ModuleList([block.mlp for block in blocks]),
    }


def count_costs(target: Target, image_size: tuple[int, int], *, counter: str = "torch", batch: int = 1) -> Costs:
    """Count all that a target costs: parameters, inference and training, layer by layer.

    Args:
        target: What to count.
        image_size: Height and width of the images of inference and of a training step.
        counter: Counter of inference, see `costs.flops`.
        batch: Number of images of inference.

    Raises:
        InputError: If the counter is unknown or the image empty.
        MismatchError: If mask or plan are of another architecture.
    """
    module, parts, mask = target.module, target.components, target.mask
    flops = count_inference(
        module, image_size, model=target.model, components=parts, mask=mask, counter=counter, batch=batch
    )
    params = count_params(module, parts, mask=mask, frozen=target.frozen)
    params.with_clip = count_with_clip(module, target.model)
    training = count_training(
        module,
        image_size,
        model=target.model,
        components=parts,
        mask=mask,
        frozen=target.frozen,
        recipe=target.recipe,
        flops=flops,
    )
    return Costs(params, flops, training)


def load_target(
    target: Any,
    *,
    model: str | None = None,
    mask: Mask | Path | str | None = None,
    plan: FreezePlan | Path | str | None = None,
    vocabulary: Vocabulary | Path | str | None = None,
    settings: Sequence[str] = (),
    device: str = "meta",
) -> Target:
    """Load a run or checkpoint, or build a framework, recipe or CLIP model for counting.

    Args:
        target: A name or a path: an existing path comes first, then a framework, a recipe, an open_clip model. Or a
            `Checkpoint`, or a run (anything with a `path`).
        model: open_clip name of the CLIP of a framework or recipe; None for the recipe's, of a framework that of the
            mask, or RN-mini.
        mask: Mask to count a target without weights under. A checkpoint carries its own.
        plan: Freeze plan to count a target without weights under. A checkpoint carries its own.
        vocabulary: Class names that a framework without weights is counted with, as it prompts them; an object, a
            name or a file. None for those of the recipe's dataset, or of COCO panoptic.
        settings: `KEY=VALUE` pairs that replace values of a recipe, or a framework's options as `model.OPTION=VALUE`;
            of a run or checkpoint only options that matter to inference alone.
        device: Where to build a target without weights: "meta", or "cpu" if the counter needs real tensors.

    Raises:
        InputError: If the target is none of these, if a path has no checkpoint, or if a setting is none of the target.
    """
    masked = load_mask(mask) if isinstance(mask, (str, Path)) else mask
    frozen = () if plan is None else tuple((load_plan(plan) if isinstance(plan, (str, Path)) else plan).frozen)
    words = find_vocabulary(str(vocabulary)) if isinstance(vocabulary, (str, Path)) else vocabulary
    if isinstance(target, Checkpoint):
        return _restore(f"{target.framework} on {target.clip['model']}", "checkpoint", target, None, settings)
    name = str(getattr(target, "path", target))
    path = Path(name)
    if path.is_dir() or (path.is_file() and path.suffix != ".toml"):
        return _load_checkpoint(name, path, settings)
    if path.suffix == ".safetensors" or (len(path.parts) > 1 and path.suffix != ".toml"):
        raise MissingFileError(f"{name}: no such file or folder")
    recipe = load_recipe(name, settings) if path.suffix == ".toml" or name in recipe_names() else None
    if name in registry.list_frameworks() or recipe is not None:
        if model is None and recipe is None and masked is not None:
            model = choose_clip(masked).model
        found = _build_framework(name, recipe, settings, model=model, vocabulary=words, device=device)
    elif name in model_names():
        _refuse_settings(name, settings)
        with torch.device(device):
            backbone = Backbone(create_image_encoder(name))
        found = Target(name, "model", backbone, encoder_components(backbone.backbone), name)
    else:
        known = [*registry.list_frameworks(), *recipe_names(), *model_names()]
        hint = did_you_mean(name, known)
        raise InputError(
            f"{name}: neither a run, a checkpoint, a framework, a recipe nor a CLIP model; {hint}"
            f"frameworks are {', '.join(registry.list_frameworks())}, models {', '.join(model_names()[:4])}, ..."
        )
    if masked is not None and isinstance(found.module, Framework):
        registry.check_severed(masked, found.module)
    found.mask, found.frozen = masked, frozen
    return found


def parse_size(size: tuple[int, int] | int | str | None) -> tuple[int, int] | None:
    """Return height and width of "HxW", of one number for a square, or of a pair; None for None.

    Raises:
        InputError: If it is something else.
    """
    if size is None or isinstance(size, tuple):
        return size
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", str(size).strip())
    if match is None or not int(match[1]) or not int(match[2] or 1):
        raise InputError(f"`image_size={size}`: write HEIGHTxWIDTH, for instance 800x1216")
    return int(match[1]), int(match[2] or match[1])


def recipe_vocabulary(recipe: Mapping[str, Any] | None) -> Vocabulary:
    """Return the class names of a recipe's dataset, without looking for its files.

    Those of a folder, or without a recipe, are `DEFAULT_VOCABULARY`.
    """
    spec = str((recipe or {}).get("data", {}).get("dataset", ""))
    name, known = spec.partition(":")[0], lookup_published(spec)
    if name in GENERATED:
        return open_dataset(name, split="val").vocabulary
    return load_published_vocabulary(DEFAULT_VOCABULARY if known is None else known[0].vocabulary)


def _build_framework(
    name: str,
    recipe: Mapping[str, Any] | None,
    settings: Sequence[str],
    *,
    model: str | None,
    vocabulary: Vocabulary | None,
    device: str,
) -> Target:
    """Build a framework by its name, with its default options on the default CLIP, or by a recipe."""
    if recipe is None:
        own = registry.framework_class(name).default_clip
        plain = {"framework": name, "clip": own, **registry.default_options(name)}
        section = override({"model": plain}, settings)["model"]
    else:
        section = recipe.get("model", {})
    if "framework" not in section:
        raise InputError(f"{name}: this recipe names no framework ([model] framework = ...); nothing to count")
    options = {key: value for key, value in section.items() if key not in ("framework", "clip", "pretrained")}
    clip = model or str(section.get("clip", DEFAULT_MODEL))
    module = registry.build_on_meta(
        str(section.get("framework", name)),
        clip,
        options=options,
        vocabulary=recipe_vocabulary(recipe) if vocabulary is None else vocabulary,
        device=device,
    )
    kind = "framework" if recipe is None else "recipe"
    return Target(name, kind, module, module.components(), clip, recipe=recipe)


def _refuse_settings(name: str, settings: Sequence[str]) -> None:
    for setting in settings:
        raise InputError(f"`{setting}`: is for frameworks and recipes; {name} has no settings")


def _load_checkpoint(name: str, path: Path, settings: Sequence[str]) -> Target:
    kind = "run" if path.is_dir() else "checkpoint"
    if kind == "run":
        path = path / RUN_CHECKPOINT
        if not path.exists():
            raise MissingFileError(
                f"{name}: no {RUN_CHECKPOINT} in this folder; give a finished run of `ovstrans finetune`"
            )
    return _restore(name, kind, load_checkpoint(path), path, settings)


def _restore(name: str, kind: str, checkpoint: Checkpoint, path: Path | None, settings: Sequence[str] = ()) -> Target:
    framework = registry.restore(checkpoint, settings)
    return Target(
        name,
        kind,
        framework,
        framework.components(),
        checkpoint.clip["model"],
        mask=checkpoint.mask,
        frozen=tuple(checkpoint.provenance.get("frozen", ())),
        checkpoint=replace(checkpoint, options=framework.options),
        path=path,
        recipe=checkpoint.recipe,
    )
