"""Train ViT-mini, a bundled mini CLIP with a ViT image encoder, on images and captions of `scenes`.

    python checkpoints/vit-mini/train.py --out FOLDER

The text encoder is that of RN-mini and stays as it is. The image encoder learns by the losses of RN-mini and by two
distillation losses: its embedding of an image is pulled towards RN-mini's of the same image, and linear maps of its
tokens after a third, two thirds and all of the blocks towards the features of RN-mini's stages 3 to 5 at the same
places (hints, Romero et al., ICLR 2015; the maps are not kept). Its positions start as sines and cosines and its
attention as in Trockman and Kolter (ICML 2023). It sees close views of one thing first, 1.1 to 4 times its size, then
small images of one thing, then everything. From little data and time this learns much more than from captions alone.

Writes open_clip_model.safetensors (fp16), open_clip_config.json and card.json (settings and measured zero-shot
accuracy) to FOLDER. After an interruption, the same command goes on from the last saved state.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from open_clip.pos_embed import get_2d_sincos_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared"))

from contrastive import contrastive_loss, encode_text, noun_loss
from trainer import SIZE, Batch, Losses, draw_pool, make_parser, train

from ovstrans.clip.backbone import encode_stages, stage_channels
from ovstrans.clip.load import load_clip, random_clip
from ovstrans.clip.vit import encode_tokens, pool_tokens, token_map

TEACHER = "RN-mini"
STAGES = ("res3", "res4", "res5")


def initialize(encoder: Any) -> None:
    """Set the first values of positions and attention, in place (Trockman and Kolter 2023, sec. 3)."""
    rows = encoder.grid_size[0]
    width = encoder.transformer.width
    positions = get_2d_sincos_pos_embed(width, rows, cls_token=True)
    encoder.positional_embedding.data.copy_(torch.from_numpy(positions).float())
    for block in encoder.transformer.resblocks:
        attention, heads = block.attn, block.attn.num_heads
        rank = width // heads
        queries, keys = [], []
        for _ in range(heads):
            target = 0.7 * torch.randn(width, width) / width**0.5 + 0.7 * torch.eye(width)
            left, values, right = torch.linalg.svd(target)
            root = values[:rank].sqrt()
            queries.append((left[:, :rank] * root).T)
            keys.append(right[:rank] * root[:, None])
        left, values, right = torch.linalg.svd(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width))
        value = values.sqrt()[:, None] * right
        attention.in_proj_weight.data.copy_(torch.cat([*queries, *keys, value]))
        attention.out_proj.weight.data.copy_(left * values.sqrt())


class Hints(nn.Module):
    """Linear maps from tokens after a third, two thirds and all of the blocks to the channels of a ResNet's stages."""

    def __init__(self, width: int, channels: dict[str, int]) -> None:
        super().__init__()
        self.maps = nn.ModuleDict(
            {name: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels[name])) for name in STAGES}
        )

    def forward(self, maps: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
        """Compute the mean squared error in units of each channel's standard deviation.

        Args:
            maps: Tokens as maps [B, D, *, *] by stage.
            wanted: Features [B, C, h, w] by stage; tokens are averaged to their size.
        """
        errors = []
        for name, target in wanted.items():
            found = F.adaptive_avg_pool2d(maps[name].float(), target.shape[-2:]).movedim(1, -1)
            error = self.maps[name](found) - target.movedim(1, -1)
            spread = target.std(dim=(0, 2, 3)).clamp_min(1e-3)
            errors.append((error / spread).square().clamp(max=25).mean())
        return torch.stack(errors).mean()


def pool_stages(teacher: Any, res5: Tensor) -> Tensor:
    """Compute a ResNet's image embeddings [B, E] of features of any size, resized to that of 96x96 pixels."""
    side = SIZE // 32
    if res5.shape[-1] != side:
        res5 = F.interpolate(res5, size=(side, side), mode="bilinear", align_corners=False)
    return teacher.attnpool(res5)


def main() -> None:
    """Train, save and evaluate."""
    defaults = {
        "images": 24_000,
        "steps": 4_400,
        "close": 1_200,
        "easy": 2_200,
        "batch": 64,
        "lr": 1e-3,
        "warm_up": 50,
        "keep": 0.995,
        "every": 300,
    }
    parser = make_parser(__doc__, **defaults)
    parser.add_argument("--distill", type=float, default=3.0, help="weight of the distance of embeddings")
    parser.add_argument("--hints", type=float, default=3.0, help="weight of the distance of features")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    clip, teacher = random_clip("ViT-mini", options.seed), load_clip(TEACHER).model
    clip.model.load_state_dict(
        {key: value for key, value in teacher.state_dict().items() if not key.startswith("visual.")}, strict=False
    )
    teacher = teacher.visual.to(memory_format=torch.channels_last).requires_grad_(False)
    initialize(clip.visual)
    for name, parameter in clip.model.named_parameters():
        parameter.requires_grad_(name.startswith("visual."))
    hints = Hints(clip.visual.transformer.width, stage_channels(teacher))
    began = time.monotonic()
    pool = draw_pool(options.images, options.seed, options.workers)
    print(f"drew {len(pool.images)} images in {time.monotonic() - began:.0f} s", flush=True)

    def losses(model: Any, batch: Batch) -> Losses:
        """Compute the contrastive losses, that of the bare nouns, and the two distillation losses."""
        pixels = batch.pixels
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = encode_stages(teacher, pixels.contiguous(memory_format=torch.channels_last))
            wanted = F.normalize(pool_stages(teacher, features["res5"]).float(), dim=-1)
        # On so few tokens, plain attention is faster than the fused kernel.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            tokens = encode_tokens(model.visual, pixels)
            seen = pool_tokens(model.visual, tokens[-1])
        depth = len(tokens)
        maps = {
            name: token_map(model.visual, tokens[depth * (number + 1) // 3 - 1], pixels)
            for number, name in enumerate(STAGES)
        }
        seen = F.normalize(seen.float(), dim=-1)
        with torch.no_grad():
            words = encode_text(model, batch.tokens)
        scale = model.logit_scale.exp()
        to_text, to_image = contrastive_loss(seen, words, scale, batch.texts)
        to_noun, right = noun_loss(seen, words, scale, batch.texts)
        spread = wanted.std(dim=0).clamp_min(1e-3)
        parts = {
            "to_text": to_text,
            "to_image": to_image,
            "to_noun": to_noun,
            "to_teacher": options.distill * ((seen - wanted) / spread).square().mean(),
            "to_features": options.hints * hints(maps, {name: features[name].float() for name in STAGES}),
        }
        return parts, {"shape_in_batch": float(right)}

    trained = [(name, parameter) for name, parameter in clip.model.named_parameters() if parameter.requires_grad]
    trained += [(f"hints.{name}", parameter) for name, parameter in hints.named_parameters()]
    train(clip, pool, options, losses, trained=trained, extra=hints, card={"distilled_from": TEACHER})


if __name__ == "__main__":
    main()
