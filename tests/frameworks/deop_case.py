"""The small DeOP of which upstream's answers are kept in `golden/`: weights, names, proposals and images.

Every number is a function of the tensor's name, the same on any machine. CLIP is a ViT of four blocks with its text
encoder.

Shapes: `B` batch, `N` proposals, `C` base classes and the non-object, `H W` image, `h w` patches, `E` embedding.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from ovstrans.clip.load import Clip
from ovstrans.clip.prompts import embed_prompted
from ovstrans.clip.text import TextClassifier
from ovstrans.frameworks.deop import DeOP
from ovstrans.frameworks.deop_losses import fuse, pixel_losses
from ovstrans.frameworks.deop_proposals import Proposals
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.frameworks.golden_case import determined

GOLDEN = Path(__file__).parent / "golden" / "deop.safetensors"
SIZES = ((64, 64), (96, 64))
"""Heights and widths: the native grid of 4 x 4 patches, and another."""
QUERIES = 100
"""Upstream knows no other number."""
BATCH = 2
EMBED, WIDTH, HEADS, LAYERS = 64, 128, 2, 4
LAST = LAYERS - 1

NAMES = Vocabulary.from_names("deop", ["cat", "a large dog", "grass", "wall-concrete"])

SMALL: dict[str, Any] = {
    "proposal_encoder": "",
    "queries": QUERIES,
    "gate": "sum",
    "position_layers": [0, 1, 2],
    "position_grid": 6,
    "prompt_length": 5,
    "prompt_width": EMBED,
    "anchor_ffn": 96,
}

CONFIG: dict[str, Any] = {
    "embed_dim": EMBED,
    "vision_cfg": {"image_size": 64, "layers": LAYERS, "width": WIDTH, "head_width": WIDTH // HEADS, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": EMBED, "heads": 2, "layers": 2},
    "quick_gelu": True,
}

MODES = {"with-mask": {}, "plain": {"severance": "plain"}, "mask-guided": {"severance": "mask-guided"}}
"""Ways to sever, and the options that differ from `SMALL`."""


def determined_clip_state(like: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of the same names and shapes, with values of CLIP's magnitude."""
    state = {}
    for name, value in like.items():
        shape = tuple(value.shape)
        if name in ("attn_mask", "logit_scale", "logit_bias") or not value.is_floating_point():
            state[name] = value
        elif name.endswith(("ln_1.weight", "ln_2.weight", "ln_pre.weight", "ln_post.weight", "ln_final.weight")):
            state[name] = 1 + determined(name, shape, 0.2)
        elif name.endswith(("bias", "class_embedding", "positional_embedding")):
            state[name] = determined(name, shape, 0.2)
        elif name.endswith(("proj", "text_projection")):
            state[name] = determined(name, shape, math.sqrt(3 / shape[0]))
        elif name.endswith("token_embedding.weight"):
            state[name] = determined_tokens(shape)
        else:
            state[name] = determined(name, shape, math.sqrt(3 / math.prod(shape[1:])))
    return state


def determined_tokens(shape: tuple[int, ...]) -> Tensor:
    """Token embeddings: a table of 997 rows, over and over."""
    rows = determined("token embedding", (997, shape[1]), 0.3)
    return rows.repeat(-(-shape[0] // 997), 1)[: shape[0]]


def clip() -> Clip:
    """The CLIP, in eval mode."""
    module = open_clip.CLIP(**CONFIG)
    module.load_state_dict(determined_clip_state(module.state_dict()))
    module.visual.output_dim = EMBED
    return Clip(
        model=module.eval(),
        name="deop-case",
        pretrained="none",
        weights_sha256="",
        image_size=64,
        mean=(0.48, 0.46, 0.41),
        std=(0.27, 0.26, 0.28),
        tokenizer=open_clip.SimpleTokenizer(context_length=77),
    )


def model(source: Clip, **options: Any) -> DeOP:
    """The framework with determined weights, in eval mode."""
    rows = torch.nn.functional.normalize(torch.ones(len(NAMES), source.embed_dim), dim=1)
    text = TextClassifier(rows, torch.arange(len(NAMES)), NAMES)
    framework = DeOP(encoder=source.visual, mean=source.mean, std=source.std, text=text, options={**SMALL, **options})
    state = framework.state_dict()
    for name, value in state.items():
        if not name.startswith("backbone."):
            shape = tuple(value.shape)
            scale = 1.0 if name == "anchors.queries" else 0.2 if value.dim() < 2 else math.sqrt(3 / shape[-1])
            norm = "norm" in name and name.endswith("weight")
            state[name] = determined(name, shape, scale) + (1 if norm else 0)
    state["prompt.vectors"] = determined("prompt.vectors", tuple(state["prompt.vectors"].shape), 0.3)
    for name in [name for name in state if name.startswith("positions.")]:
        state[name] = determined(name, tuple(state[name].shape), 0.2)
    framework.load_state_dict(state)
    return framework.eval()


def images(size: tuple[int, int]) -> Tensor:
    """Normalised images [B, 3, H, W]: upstream's and our normalisation differ, so they are compared behind it."""
    return determined(f"images {size}", (BATCH, 3, *size), 2.0)


def mask_logits(size: tuple[int, int]) -> Tensor:
    """Proposals [B, N, H / 4, W / 4]: most of them small, as a network's are."""
    height, width = size[0] // 4, size[1] // 4
    centre = determined(f"centres {size}", (BATCH, QUERIES, 2, 1, 1), 1.0)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    distance = (rows - centre[:, :, 0]).square() + (columns - centre[:, :, 1]).square()
    return 4 - 30 * distance + determined(f"noise of masks {size}", (BATCH, QUERIES, height, width), 1.0)


def labels(size: tuple[int, int]) -> Tensor:
    """int64 [B, H, W], every pixel labelled: upstream trains ignored pixels, which we do not."""
    values = determined(f"labels {size}", (BATCH, size[0] // 8, size[1] // 8), 2.0)
    return (values + 2).long().clamp(0, 3).repeat_interleave(8, 1).repeat_interleave(8, 2)


def answers(source: Clip, framework: DeOP, size: tuple[int, int]) -> dict[str, Tensor]:
    """What ours says, by the names of the golden file.

    text [K, E]; features [B, E, h, w], not normalised; embeddings [B, N, E]; class_logits [B, N, C];
    semantic [B, K, H, W]; loss.focal and loss.dice.
    """
    with torch.no_grad():
        proposals = Proposals(mask_logits(size))
        text = embed_prompted(source, NAMES, framework.state_dict()["prompt.vectors"])
        features = framework.raw_features(images(size), proposals)
        logits = framework.class_logits(images(size), proposals, text)
        masks = torch.nn.functional.interpolate(proposals.masks, size, mode="bilinear").sigmoid()
        focal, dice = pixel_losses(logits, proposals.masks, labels(size), 255)
        return {
            "text": text.embeddings,
            "features": features,
            "embeddings": framework.embed(images(size), proposals),
            "class_logits": logits,
            "semantic": fuse(logits.softmax(-1)[..., :-1], masks),
            "loss.focal": focal,
            "loss.dice": dice,
        }


def shown(name: str, value: Tensor) -> Tensor:
    """What the golden file keeps: of wide answers a part, in which the rest acts too."""
    steps = {"embeddings": (slice(None), slice(None, None, 9)), "semantic": (..., slice(None, None, 4))}
    return value[steps[name]] if name in steps else value


PUBLISHED: dict[str, Any] = {
    "position_layers": [0, 1, 2, 3, 4, 5],
    "position_grid": 24,
    "prompt_length": 16,
    "prompt_width": 512,
    "anchor_ffn": 1024,
}
"""Options of the published size, where they differ from `SMALL`."""


def published_clip() -> Clip:
    """CLIP ViT-B/16 with determined weights."""
    config = {**open_clip.get_model_config("ViT-B-16"), "quick_gelu": True}
    module = open_clip.CLIP(**config)
    module.load_state_dict(determined_clip_state(module.state_dict()))
    module.visual.output_dim = config["embed_dim"]
    return replace(clip(), model=module.eval(), name="ViT-B-16", image_size=224)
