"""Train RN-mini, the bundled mini CLIP, from scratch on images and captions of `scenes`.

    python checkpoints/rn-mini/train.py --out FOLDER --images 40000 --steps 2500

Writes open_clip_model.safetensors (fp16), open_clip_config.json and card.json (settings and measured zero-shot
accuracy) to FOLDER. After an interruption, the same command goes on from the last saved state. The learning rate rises
over the first 300 steps, stays constant, and falls to zero over the last fifth of the steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive import contrastive_loss, encode_text, make_captions, noun_loss
from torch.nn import functional as F

from ovstrans import files
from ovstrans.clip.load import random_clip
from ovstrans.clip.models import DEFAULT_MODEL, bundled_folder
from ovstrans.clip.text import embed_texts
from ovstrans.datasets.scenes.dataset import COLORS, Thing, draw_scene
from ovstrans.datasets.scenes.drawing import SHAPES, STUFF

SIZE = 96
EASY_SIZE = 64
TEMPLATES = ("a {}", "{}", "a photo of a {}")


def draw_many(arguments: tuple[int, int, int]) -> tuple[np.ndarray, list[Any]]:
    """Draw images `first` to `last` - 1 of split `pretrain`: uint8 [N, 96, 96, 3], and their visible elements."""
    first, last, seed = arguments
    scenes = [draw_scene("pretrain", index, seed, SIZE, SIZE) for index in range(first, last)]
    return np.stack([scene.image for scene in scenes]), [scene.visible_elements() for scene in scenes]


def draw_pool(count: int, seed: int, workers: int) -> tuple[torch.Tensor, list[Any]]:
    """Draw all training images, which are kept in memory: uint8 [N, 96, 96, 3], and their visible elements."""
    chunks = [(first, min(first + 500, count), seed) for first in range(0, count, 500)]
    images, elements = [], []
    with ProcessPoolExecutor(workers) as pool:
        for chunk_images, chunk_elements in pool.map(draw_many, chunks):
            images.append(torch.from_numpy(chunk_images))
            elements.extend(chunk_elements)
    return torch.cat(images), elements


def augment(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Augment images, uint8 [B, 96, 96, 3], by flips, quarter turns, scale and shift, the same for the whole batch.

    Returns:
        float32 [B, 3, size, size] in [0, 1].
    """
    batch = images.permute(0, 3, 1, 2).float() / 255
    if size != SIZE:
        batch = F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    pick = torch.rand(4, generator=generator)
    if pick[0] < 0.5:
        batch = batch.flip(3)
    if pick[1] < 0.5:
        batch = batch.flip(2)
    if pick[2] < 0.5:
        batch = batch.transpose(2, 3)
    side = int(size * (0.75, 0.875, 1.0, 1.0, 1.0, 1.125)[int(pick[3] * 6)])
    if side != size:
        batch = F.interpolate(batch, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    if side < size:
        low = size - side
        batch = F.pad(batch, (low // 2, low - low // 2, low // 2, low - low // 2), mode="reflect")
    elif side > size:
        row, column = (int(torch.randint(side - size + 1, (1,), generator=generator)) for _ in range(2))
        batch = batch[..., row : row + size, column : column + size]
    return batch


def encode_image(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Compute image embeddings [B, E] at any size; the feature map is resized to that of 96x96 pixels for the pool."""
    encoder = model.visual
    if pixels.shape[-1] == SIZE:
        return encoder(pixels)
    features = encoder.layer4(encoder.layer3(encoder.layer2(encoder.layer1(encoder.stem(pixels)))))
    if features.shape[-1] != SIZE // 32:
        features = F.interpolate(features, size=(SIZE // 32, SIZE // 32), mode="bilinear", align_corners=False)
    return encoder.attnpool(features)


def zero_shot(clip: Any, limit: int = 1000) -> dict[str, float]:
    """Measure the zero-shot top-1 accuracy on held-out images: shapes, colours with shapes, and grounds."""
    clip.model.eval()
    mean, std = torch.tensor(clip.mean).view(3, 1, 1), torch.tensor(clip.std).view(3, 1, 1)

    def embed_images(split: str, count: int) -> tuple[torch.Tensor, list[Any]]:
        scenes = [draw_scene(split, index, 0, SIZE, SIZE) for index in range(count)]
        pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            rows = [clip.model.encode_image(((part - mean) / std), normalize=True) for part in pixels.split(100)]
        return torch.cat(rows).float(), scenes

    single, scenes = embed_images("single", limit)
    things = [scene.elements[1] for scene in scenes]
    shapes = embed_texts(clip, list(SHAPES), TEMPLATES)
    pairs = [(color, shape) for shape in SHAPES for color in COLORS]
    both = embed_texts(clip, [f"{color} {shape}" for color, shape in pairs], TEMPLATES)
    shape_right = [SHAPES[i] == t.shape for i, t in zip((single @ shapes.T).argmax(1).tolist(), things, strict=True)]
    pair_right = [
        pairs[i] == (t.color, t.shape) for i, t in zip((single @ both.T).argmax(1).tolist(), things, strict=True)
    ]
    alone, scenes = embed_images("ground", max(100, limit // 4))
    stuff = embed_texts(clip, list(STUFF), ("{}", "a photo of {}"))
    stuff_right = [
        STUFF[i] == s.elements[0].stuff for i, s in zip((alone @ stuff.T).argmax(1).tolist(), scenes, strict=True)
    ]
    clip.model.train()
    return {
        "shapes": float(np.mean(shape_right)),
        "color x shape": float(np.mean(pair_right)),
        "stuff": float(np.mean(stuff_right)),
    }


def rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: warm-up over 300 steps, constant, linear to zero over the last fifth."""
    return peak * min(1.0, (step + 1) / 300) * min(1.0, (steps - step) / max(1, steps // 5))


def main() -> None:
    """Train, save and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=2_500)
    parser.add_argument("--easy", type=int, default=1_500, help="steps on small images of one thing")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    clip = random_clip(DEFAULT_MODEL, options.seed)
    model: Any = clip.model.to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).eval()
    matrices = [p for n, p in model.named_parameters() if p.dim() > 1 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() <= 1 or "embedding" in n]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), eps=1e-6)
    options.out.mkdir(parents=True, exist_ok=True)
    state_path, log_path = options.out / "state.pt", options.out / "log.jsonl"
    start, spent = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start, spent = state["step"], state["seconds"]
    began = time.monotonic()
    images, elements = draw_pool(options.images, options.seed, options.workers)
    print(f"drew {len(images)} images in {time.monotonic() - began:.0f} s", flush=True)
    alone = np.array([n for n, shown in enumerate(elements) if sum(isinstance(each, Thing) for each in shown) == 1])
    mean, std = torch.tensor(clip.mean).view(3, 1, 1), torch.tensor(clip.std).view(3, 1, 1)

    def save(step: int) -> None:
        with files.atomic_path(state_path) as temporary:
            torch.save(
                {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "seconds": spent + time.monotonic() - began,
                },
                temporary,
            )

    def log(record: dict[str, Any]) -> None:
        print(record, flush=True)
        with log_path.open("a") as handle:
            handle.write(json.dumps(record) + "\n")

    for step in range(start, options.steps):
        rng = np.random.default_rng([options.seed, 1, step])
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        # First small images of one thing, where the shape is all there is to learn, then everything.
        first = step < options.easy
        pool = alone if first else np.arange(len(images))
        epoch, position = divmod(step * options.batch, len(pool) - options.batch)
        order = np.random.default_rng([options.seed, 2, epoch]).permutation(len(pool))
        chosen = pool[order[position : position + options.batch]]
        pixels = (augment(images[chosen], EASY_SIZE if first else SIZE, generator) - mean) / std
        texts = make_captions(rng, [elements[number] for number in chosen], hard=2, bank=32)
        tokens = clip.tokenizer(texts.texts)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, options.steps, options.lr)
        with torch.autocast("cpu", torch.bfloat16):
            seen = encode_image(model, pixels.contiguous(memory_format=torch.channels_last))
        seen = F.normalize(seen.float(), dim=-1)
        words = encode_text(model, tokens)  # float32: too small to gain from less
        to_text, to_image = contrastive_loss(seen, words, model.logit_scale.exp(), texts)
        to_noun, right = noun_loss(seen, words, model.logit_scale.exp(), texts)
        loss = to_text + to_image + to_noun
        if not math.isfinite(float(loss)):
            raise SystemExit(f"step {step}: the loss is {float(loss)}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            keep = min(0.998, (step + 1) / (step + 10))
            for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                kept.lerp_(new, 1 - keep) if kept.is_floating_point() else kept.copy_(new)
        if (step + 1) % 50 == 0:
            elapsed = spent + time.monotonic() - began
            log(
                {
                    "step": step + 1,
                    "to_text": round(float(to_text), 4),
                    "to_image": round(float(to_image), 4),
                    "to_noun": round(float(to_noun), 4),
                    "shape_in_batch": round(float(right), 3),
                    "scale": round(float(model.logit_scale.exp()), 2),
                    "texts": len(texts.texts),
                    "seconds": round(elapsed),
                    "images_per_second": round((step + 1 - start) * options.batch / (time.monotonic() - began), 1),
                }
            )
        if (step + 1) % 500 == 0 or step + 1 == options.steps:
            save(step + 1)
            clip.model = average
            log({"step": step + 1, "zero_shot": zero_shot(clip, 500)})
            average.eval()
    clip.model = average
    half = {key: value.half() if value.is_floating_point() else value for key, value in average.state_dict().items()}
    files.write_tensors(options.out / "open_clip_model.safetensors", half, {"format": "pt"})
    (options.out / "open_clip_config.json").write_text((bundled_folder() / "open_clip_config.json").read_text())
    average.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in half.items()})
    files.write_json(
        options.out / "card.json",
        {
            "data": f"scenes:pretrain, {options.images} images of {SIZE}x{SIZE}, seed {options.seed}",
            "steps": options.steps,
            "batch": options.batch,
            "lr": options.lr,
            "seed": options.seed,
            "seconds": round(spent + time.monotonic() - began),
            "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "zero_shot": zero_shot(clip, 1000),
        },
    )


if __name__ == "__main__":
    main()
