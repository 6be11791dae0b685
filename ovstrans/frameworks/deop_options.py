"""The options of DeOP, and how they split a run into the stages of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ovstrans.clip.severance import GATES, MODES
from ovstrans.clip.text import MAX_SCALE
from ovstrans.errors import InputError
from ovstrans.frameworks.deop_proposals import NETWORK, check_source
from ovstrans.frameworks.mask_framework import MaskFramework
from ovstrans.frameworks.options import check_choices
from ovstrans.vocabulary.vocabulary import template_names

PROMPTS, PROPOSALS, ANCHORS = "prompt", "proposals", "anchors"
"""Names of the stages of training."""

_HEAD = (
    "queries",
    "width",
    "heads",
    "encoder_layers",
    "encoder_ffn",
    "decoder_layers",
    "decoder_ffn",
    "mask_weight",
    "dice_weight",
    "points",
    "object_threshold",
    "overlap_threshold",
)


class DeOPOptions:
    """The options of DeOP, as published unless said otherwise.

    Options:
        proposals: Masks that inference names. "network": those of the network. "truth": the segments of the ground
            truth, which only an evaluation has. "folder:PATH": files (`datasets.proposals`).
        two_stream: Whether to name masks by a pass of CLIP over a crop of each, for comparison.
        proposal_encoder: open_clip ResNet or ConvNeXt of the proposal network (published: a ResNet-101 of ImageNet);
            "" for no network. Masks then have to be given, and anchors are trained on the true ones.
        proposal_pretrained: Its weights at the start: a tag or a file, "" for the default ones.
        queries: Number of the network's masks, and of the anchors' queries.
        width: Channels of the network's pixel decoder and transformer decoder.
        heads: Attention heads of both.
        encoder_layers: Layers of the pixel decoder's encoder.
        encoder_ffn: Hidden width of its feed-forward networks.
        decoder_layers: Layers of the transformer decoder.
        decoder_ffn: Hidden width of its feed-forward networks.
        points: Points per mask on which the network's matching and losses compare masks.
        mask_weight: Weight of the network's mask cross entropy.
        dice_weight: Weight of its dice loss.
        object_threshold: Least class probability of a panoptic segment.
        overlap_threshold: Least part of its mask that a panoptic segment must keep.
        severance: How blocks are severed: "with-mask", "mask-guided" or "plain" (`clip.severance`).
        severed: Numbers of the severed blocks; negative ones count from the end.
        gate: "mean": the gate of "with-mask" has mean 1. "sum", as released.
        anchors: Whether anchors are learned. Without, masks are averaged over the map, which needs no training.
        anchor_layers: Decoder layers of the anchors before the last attention.
        anchor_heads: Their attention heads.
        anchor_ffn: Hidden width of their feed-forward networks.
        anchor_dropout: Their dropout.
        anchor_focal_weight: Weight of the focal loss of pixels.
        anchor_dice_weight: Weight of the dice loss of pixels.
        position_layers: Blocks that get learned positions; 0 is before the first norm. None without anchors.
        position_grid: Side of the grid of patches that these are made for.
        prompt: "learned", or "templates": those of the option templates.
        prompt_length: Number of learned vectors.
        prompt_width: Width of the text encoder.
        clip_scale: CLIP's inverse temperature, at most 100, which published CLIPs have.
        templates: Name of the prompt templates (see `vocabulary.vocabulary`), or "dataset" for the vocabulary's own.
        prompt_part: Fraction of the steps that trains the prompt.
        prompt_lr: Learning rate of that stage.
        proposal_part: Fraction of the steps that trains the proposal network. The rest trains the anchors.
        proposal_lr: Learning rate of that stage.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "proposals": NETWORK,
        "two_stream": False,
        "proposal_encoder": "RN101",
        "proposal_pretrained": "",
        **{name: MaskFramework.COMMON[name] for name in _HEAD},
        "severance": "with-mask",
        "severed": [-1],
        "gate": "mean",
        "anchors": True,
        "anchor_layers": 1,
        "anchor_heads": 8,
        "anchor_ffn": 1024,
        "anchor_dropout": 0.1,
        "anchor_focal_weight": 2.0,
        "anchor_dice_weight": 0.8,
        "position_layers": [0, 1, 2, 3, 4, 5],
        "position_grid": 24,
        "prompt": "learned",
        "prompt_length": 16,
        "prompt_width": 512,
        "clip_scale": MAX_SCALE,
        "templates": "bare",
        "prompt_part": 0.118,
        "prompt_lr": 0.002,
        "proposal_part": 0.441,
        "proposal_lr": 0.0001,
    }


_CHOICES = {
    "severance": MODES,
    "gate": GATES,
    "prompt": ("learned", "templates"),
    "templates": tuple(template_names()),
}
_LEAST = {"queries": 1, "points": 1, "anchor_layers": 0, "anchor_heads": 1, "anchor_ffn": 1, "position_grid": 1}
_LEAST |= {"prompt_length": 1, "prompt_width": 1}
_POSITIVE = ("prompt_lr", "proposal_lr")
_WEIGHTS = ("anchor_focal_weight", "anchor_dice_weight", "mask_weight", "dice_weight")


def check_options(owner: str, options: Mapping[str, Any], dim: int) -> None:
    """Check the values of all options.

    Args:
        owner: Whose options these are, for error messages.
        options: The resolved options.
        dim: Dimension of CLIP's embeddings.

    Raises:
        InputError: A value is not permitted.
    """

    def refuse(key: str, needed: str) -> None:
        raise InputError(f"{owner}: option {key} = {options[key]!r}; {needed}")

    check_choices(owner, options, _CHOICES)
    check_source(options["proposals"], f"{owner}: option proposals")
    for key, least in _LEAST.items():
        if options[key] < least:
            refuse(key, f"at least {least} is needed")
    for key in _POSITIVE:
        if options[key] <= 0:
            refuse(key, "above 0 is needed")
    for key in _WEIGHTS:
        if options[key] < 0:
            refuse(key, "0 or above is needed")
    if not 0 <= options["anchor_dropout"] < 1:
        refuse("anchor_dropout", "a probability from 0 to below 1 is needed")
    if not 0 < options["clip_scale"] <= MAX_SCALE:
        refuse("clip_scale", f"above 0 to {MAX_SCALE:g} is needed")
    for key in ("severed", "position_layers"):
        if not all(isinstance(each, int) and not isinstance(each, bool) for each in options[key]):
            refuse(key, "a list of whole numbers is needed")
    if min(options["position_layers"], default=0) < 0:
        refuse("position_layers", "numbers from 0 on are needed")
    for key in ("prompt_part", "proposal_part"):
        if not 0 <= options[key] <= 1:
            refuse(key, "a fraction from 0 to 1 is needed")
    if options["prompt_part"] + options["proposal_part"] > 1:
        refuse("proposal_part", f"with prompt_part = {options['prompt_part']} more than the whole run")
    if options["anchors"] and (dim % options["anchor_heads"] or dim % 4):
        refuse("anchor_heads", f"{dim} dimensions of the embedding must be a multiple of it, and of 4")


def split_steps(options: Mapping[str, Any], steps: int) -> dict[str, int]:
    """Split a run into its stages.

    The last stage that has something to train gets what the others leave.

    Args:
        options: The resolved options.
        steps: Number of steps of the run.

    Returns:
        Number of steps by name of the stage, in order, without empty stages; nothing if nothing is trained.
    """
    parts = {
        PROMPTS: options["prompt_part"] if options["prompt"] == "learned" else 0.0,
        PROPOSALS: options["proposal_part"] if options["proposal_encoder"] else 0.0,
        ANCHORS: 1.0 if options["anchors"] else 0.0,
    }
    present = [name for name, part in parts.items() if part]
    ends, done = {}, 0.0
    for name in present:
        done = 1.0 if name == present[-1] else done + parts[name]
        ends[name] = round(done * steps)
    starts = [0, *ends.values()]
    counts = {name: end - start for (name, end), start in zip(ends.items(), starts, strict=False)}
    return {name: count for name, count in counts.items() if count}
