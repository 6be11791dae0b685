"""Contrastive training of a bundled mini CLIP: images, augmentation, the loop with its saved state, and the figures.

Each mini CLIP has a script `train.py` beside its card, which says what is trained and by which losses.

Shapes: `B` images, `T` texts, `E` embedding.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive import TextBatch, make_captions
from torch import Tensor
from torch.nn import functional as F

from ovstrans import files
from ovstrans.clip.load import Clip
from ovstrans.clip.models import bundled_folder
from ovstrans.clip.text import embed_texts
from ovstrans.datasets.scenes.dataset import COLORS, Thing, draw_scene
from ovstrans.datasets.scenes.drawing import SHAPES, STUFF

SIZE = 96
EASY_SIZE = 64
CLOSE_SIZE = 48
TEMPLATES = ("a {}", "{}", "a photo of a {}")


@dataclass
class Batch:
    """A batch of training images and their captions.

    Attributes:
        chosen: Numbers of the images, int64 [B].
        pixels: Augmented and normalised images [B, 3, H, W].
        texts: Captions.
        tokens: Tokens of the captions, int64 [T, L].
    """

    chosen: np.ndarray
    pixels: Tensor
    texts: TextBatch
    tokens: Tensor


Losses = tuple[dict[str, Tensor], dict[str, float]]
"""The losses of a batch, which are summed, and further figures for the log."""


@dataclass
class Pool:
    """The training images, which are kept in memory.

    Attributes:
        images: uint8 [N, 96, 96, 3].
        elements: Visible elements of each image.
        boxes: Box of the last thing drawn, left, top, right, bottom in pixels; float32 [N, 4].
    """

    images: Tensor
    elements: list[Any]
    boxes: Tensor

    def alone(self) -> np.ndarray:
        """Return the numbers of the images with a single thing."""
        return np.array([n for n, shown in enumerate(self.elements) if sum(isinstance(e, Thing) for e in shown) == 1])

    def bare(self) -> np.ndarray:
        """Return the numbers of the images of one thing on one ground."""
        alone = self.alone()
        return np.array([n for n in alone if len(self.elements[n]) == 2 and isinstance(self.elements[n][1], Thing)])


def make_parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Make the parser of the options that the scripts share; `defaults` are those of one script."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=2_500)
    parser.add_argument("--easy", type=int, default=1_500, help="steps on small images of one thing")
    parser.add_argument("--close", type=int, default=0, help="steps, the first, on close views of one thing")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--keep", type=float, default=0.998, help="of the moving average, kept in each step")
    parser.add_argument("--warm-up", type=int, default=300, help="steps over which the learning rate rises")
    parser.add_argument("--every", type=int, default=500, help="steps between saved states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.set_defaults(**defaults)
    return parser


def draw_many(arguments: tuple[int, int, int]) -> tuple[np.ndarray, list[Any], np.ndarray]:
    """Draw images `first` to `last` - 1 of split `pretrain`: uint8 [N, 96, 96, 3], their visible elements and boxes."""
    first, last, seed = arguments
    scenes = [draw_scene("pretrain", index, seed, SIZE, SIZE) for index in range(first, last)]
    boxes = np.stack([find_box(scene.segment_map == len(scene.elements)) for scene in scenes])
    return np.stack([scene.image for scene in scenes]), [scene.visible_elements() for scene in scenes], boxes


def find_box(covered: np.ndarray) -> np.ndarray:
    """Return left, top, right and bottom of what is covered, float32 [4]; zeros if nothing is."""
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    if not len(rows):
        return np.zeros(4, dtype=np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def draw_pool(count: int, seed: int, workers: int) -> Pool:
    """Draw all training images."""
    chunks = [(first, min(first + 500, count), seed) for first in range(0, count, 500)]
    images, elements, boxes = [], [], []
    with ProcessPoolExecutor(workers) as pool:
        for chunk_images, chunk_elements, chunk_boxes in pool.map(draw_many, chunks):
            images.append(torch.from_numpy(chunk_images))
            elements.extend(chunk_elements)
            boxes.append(torch.from_numpy(chunk_boxes))
    return Pool(torch.cat(images), elements, torch.cat(boxes))


def augment(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
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


def crop_close(images: Tensor, boxes: Tensor, widest: float, generator: torch.Generator) -> Tensor:
    """Cut a square around the thing of each image, 1.1 to `widest` times its size, and flip half of them.

    Args:
        images: uint8 [B, 96, 96, 3].
        boxes: Boxes of the things [B, 4].
        widest: Largest side of the square, in sizes of the thing.
        generator: Source of randomness.

    Returns:
        float32 [B, 3, 48, 48] in [0, 1].
    """
    batch = images.permute(0, 3, 1, 2).float() / 255
    count, full = len(batch), images.shape[1]
    draws = torch.rand(count, 4, generator=generator)
    extent = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
    side = (extent * (1.1 + (widest - 1.1) * draws[:, 0])).clamp(max=1.25 * full)
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2 + (draws[:, 1:3] - 0.5) * (side - extent).clamp_min(0)[:, None]
    turn = torch.where(draws[:, 3] < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side / full * turn, side / full
    theta[:, :, 2] = 2 * centre / full - 1
    grid = F.affine_grid(theta, [count, 3, CLOSE_SIZE, CLOSE_SIZE], align_corners=False)
    return F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)


def zero_shot(clip: Clip, limit: int = 1000) -> dict[str, float]:
    """Measure the zero-shot top-1 accuracy on held-out images: shapes, colours with shapes, and grounds."""
    clip.model.eval()
    mean, std = normalization(clip)

    def embed_images(split: str, count: int) -> tuple[Tensor, list[Any]]:
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


def normalization(clip: Clip) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of the channels, [3, 1, 1] each."""
    return torch.tensor(clip.mean).view(3, 1, 1), torch.tensor(clip.std).view(3, 1, 1)


def rate(step: int, steps: int, peak: float, warm_up: int) -> float:
    """Return the learning rate of a step: warm-up, constant, linear to zero over the last fifth."""
    return peak * min(1.0, (step + 1) / warm_up) * min(1.0, (steps - step) / max(1, steps // 5))


def make_optimizer(parameters: Iterable[tuple[str, torch.nn.Parameter]], lr: float) -> torch.optim.AdamW:
    """Make AdamW, with weight decay on matrices only."""
    named = list(parameters)
    matrices = [p for n, p in named if p.dim() > 1 and "embedding" not in n]
    others = [p for n, p in named if p.dim() <= 1 or "embedding" in n]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)


def train(
    clip: Clip,
    pool: Pool,
    options: argparse.Namespace,
    losses: Callable[[Any, Batch], Losses],
    *,
    trained: Sequence[tuple[str, torch.nn.Parameter]],
    hard: int = 2,
    bank: int = 32,
    extra: torch.nn.Module | None = None,
    card: dict[str, Any] | None = None,
) -> None:
    """Train a CLIP, write its files and evaluate it.

    The weights of the moving average are released. After an interruption, the loop goes on from the last saved state.

    Args:
        clip: The CLIP; its `model` becomes the moving average.
        pool: The training images.
        options: Those of `make_parser`.
        losses: Computes the losses of a batch with the model.
        trained: Named parameters that are trained.
        hard: Changed captions per image, see `contrastive.make_captions`.
        bank: Random short captions per batch.
        extra: What else is trained, and saved with the state but not released.
        card: Further entries of card.json.
    """
    began = time.monotonic()
    model: Any = clip.model.train()
    average = copy.deepcopy(model).eval()
    parameters = [parameter for _, parameter in trained]
    optimizer = make_optimizer(trained, options.lr)
    options.out.mkdir(parents=True, exist_ok=True)
    state_path, log_path = options.out / "state.pt", options.out / "log.jsonl"
    start, spent = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        if extra is not None:
            extra.load_state_dict(state["extra"])
        start, spent = state["step"], state["seconds"]
    alone, bare = pool.alone(), pool.bare()
    mean, std = normalization(clip)

    def save(step: int) -> None:
        with files.atomic_path(state_path) as temporary:
            torch.save(
                {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "extra": None if extra is None else extra.state_dict(),
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
        # First small images of one thing, close up or whole, where the shape is all there is to learn, then everything.
        first = step < options.easy
        close = step < options.close
        numbers = bare if close else alone if first else np.arange(len(pool.images))
        epoch, position = divmod(step * options.batch, len(numbers) - options.batch)
        order = np.random.default_rng([options.seed, 2, epoch]).permutation(len(numbers))
        chosen = numbers[order[position : position + options.batch]]
        if close:
            widest = 1.3 + 2.7 * step / options.close
            views = crop_close(pool.images[chosen], pool.boxes[chosen], widest, generator)
        else:
            views = augment(pool.images[chosen], EASY_SIZE if first else SIZE, generator)
        pixels = (views - mean) / std
        texts = make_captions(rng, [pool.elements[number] for number in chosen], hard=hard, bank=bank)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, options.steps, options.lr, options.warm_up)
        parts, figures = losses(model, Batch(chosen, pixels, texts, clip.tokenizer(texts.texts)))
        loss = sum(parts.values(), torch.zeros(()))
        if not math.isfinite(loss.item()):
            raise SystemExit(f"step {step}: the loss is {loss.item()}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            keep = min(options.keep, (step + 1) / (step + 10))
            for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                kept.lerp_(new, 1 - keep) if kept.is_floating_point() else kept.copy_(new)
        if (step + 1) % 50 == 0:
            log(
                {
                    "step": step + 1,
                    **{key: round(value.item(), 4) for key, value in parts.items()},
                    **{key: round(value, 3) for key, value in figures.items()},
                    "scale": round(model.logit_scale.exp().item(), 2),
                    "texts": len(texts.texts),
                    "seconds": round(spent + time.monotonic() - began),
                    "images_per_second": round((step + 1 - start) * options.batch / (time.monotonic() - began), 1),
                }
            )
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            save(step + 1)
            clip.model = average
            log({"step": step + 1, "zero_shot": zero_shot(clip, 500)})
            average.eval()
    clip.model = average
    half = {key: value.half() if value.is_floating_point() else value for key, value in average.state_dict().items()}
    files.write_tensors(options.out / "open_clip_model.safetensors", half, {"format": "pt"})
    config = bundled_folder(clip.name) / "open_clip_config.json"
    (options.out / "open_clip_config.json").write_text(config.read_text())
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
            **(card or {}),
            "zero_shot": zero_shot(clip, 1000),
        },
    )
