"""Train RN-mini, a bundled mini CLIP, from scratch on images and captions of `scenes`.

    python checkpoints/rn-mini/train.py --out FOLDER --images 40000 --steps 2500

Writes open_clip_model.safetensors (fp16), open_clip_config.json and card.json (settings and measured zero-shot
accuracy) to FOLDER. After an interruption, the same command goes on from the last saved state. The learning rate rises
over the first 300 steps, stays constant, and falls to zero over the last fifth of the steps.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared"))

from contrastive import contrastive_loss, encode_text, noun_loss
from trainer import SIZE, Batch, Losses, draw_pool, make_parser, train

from ovstrans.clip.load import random_clip


def encode_image(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Compute image embeddings [B, E] at any size; the feature map is resized to that of 96x96 pixels for the pool."""
    encoder = model.visual
    if pixels.shape[-1] == SIZE:
        return encoder(pixels)
    features = encoder.layer4(encoder.layer3(encoder.layer2(encoder.layer1(encoder.stem(pixels)))))
    if features.shape[-1] != SIZE // 32:
        features = F.interpolate(features, size=(SIZE // 32, SIZE // 32), mode="bilinear", align_corners=False)
    return encoder.attnpool(features)


def losses(model: Any, batch: Batch) -> Losses:
    """Compute the contrastive losses and that of the bare nouns."""
    with torch.autocast("cpu", torch.bfloat16):
        seen = encode_image(model, batch.pixels.contiguous(memory_format=torch.channels_last))
    seen = F.normalize(seen.float(), dim=-1)
    words = encode_text(model, batch.tokens)  # float32: too small to gain from less
    scale = model.logit_scale.exp()
    to_text, to_image = contrastive_loss(seen, words, scale, batch.texts)
    to_noun, right = noun_loss(seen, words, scale, batch.texts)
    return {"to_text": to_text, "to_image": to_image, "to_noun": to_noun}, {"shape_in_batch": float(right)}


def main() -> None:
    """Train, save and evaluate."""
    options = make_parser(__doc__).parse_args()
    torch.manual_seed(options.seed)
    clip = random_clip("RN-mini", options.seed)
    clip.model = clip.model.to(memory_format=torch.channels_last)
    began = time.monotonic()
    pool = draw_pool(options.images, options.seed, options.workers)
    print(f"drew {len(pool.images)} images in {time.monotonic() - began:.0f} s", flush=True)
    train(clip, pool, options, losses, trained=list(clip.model.named_parameters()))


if __name__ == "__main__":
    main()
