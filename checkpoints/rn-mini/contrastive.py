"""Contrastive pretraining of a CLIP on `scenes`: captions, hard negatives and the loss.

Plain contrastive loss stalls on generated captions: many in a batch are equal, and a caption of one
image is often true of another. Here a caption that is true of an image is never its negative, and
every image meets captions that differ from its own in a single word.

Shapes: `B` images, `T` texts, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.datasets.scenes.dataset import COLORS, Ground, Mention, Thing, choose_mentions, format_caption
from ovstrans.datasets.scenes.drawing import PATTERNS, SHAPES, STUFF

Facts = Sequence[Thing | Ground]


@dataclass
class TextBatch:
    """texts: T distinct captions.  own: [B, T], an image's own.  true: [B, T], those true of an image.

    nouns: the columns of the bare nouns, all shapes and then all grounds.
    """

    texts: list[str]
    own: Tensor
    true: Tensor
    nouns: Tensor


def caption_batch(rng: Any, scenes: Sequence[Facts], *, hard: int = 5, bank: int = 96) -> TextBatch:
    """Captions for a batch of images.

    Each image gets a full and a short caption, `hard` captions with one word changed, and all share
    the bare nouns and a bank of `bank` short captions. Equal texts are merged.
    """
    bare = [[Mention(shape=shape)] for shape in SHAPES] + [[Mention(stuff=stuff)] for stuff in STUFF]
    said: dict[str, list[Mention]] = {mentions[0].words(): mentions for mentions in bare}
    own: list[list[str]] = []
    for facts in scenes:
        mine = []
        for short in (False, True):
            mentions = choose_mentions(rng, facts, short=short)
            text = format_caption(rng, mentions)
            said[text] = mentions
            mine.append(text)
            for _ in range(1 if short else hard):
                wrong = change_one_word(rng, mentions)
                said.setdefault(format_caption(rng, wrong), wrong)
        own.append(mine)
    for _ in range(bank):
        mention = [_any_mention(rng)]
        said.setdefault(format_caption(rng, mention), mention)
    texts = list(said)
    column = {text: number for number, text in enumerate(texts)}
    matches = torch.zeros(len(scenes), len(texts), dtype=torch.bool)
    for row, mine in enumerate(own):
        matches[row, [column[text] for text in mine]] = True
    return TextBatch(texts, matches, truth_table(scenes, list(said.values())), torch.arange(len(bare)))


def change_one_word(rng: Any, mentions: Sequence[Mention]) -> list[Mention]:
    """The same mentions with one shape (mostly), colour, pattern or ground exchanged."""
    changed = list(mentions)
    at = int(rng.integers(len(changed)))
    mention = changed[at]
    if mention.stuff:
        changed[at] = replace(mention, stuff=_other(rng, STUFF, mention.stuff))
        return changed
    kinds = ["shape", "shape", "shape"] + ["color"] * bool(mention.color) + ["pattern"] * bool(mention.pattern)
    kind = kinds[rng.integers(len(kinds))]
    if kind == "shape":
        near = confusable()[mention.shape]
        pool = near if near and rng.random() < 0.5 else SHAPES
        changed[at] = replace(mention, shape=_other(rng, pool, mention.shape))
    elif kind == "color":
        changed[at] = replace(mention, color=_other(rng, tuple(COLORS), mention.color))
    else:
        changed[at] = replace(mention, pattern=_other(rng, PATTERNS[1:], mention.pattern))
    return changed


@lru_cache(maxsize=1)
def confusable() -> dict[str, tuple[str, ...]]:
    """Shapes that look alike, for hard negatives: each with its nearest neighbours."""
    groups = [
        ("circle", "ring", "flower", "heart", "drop"),
        ("square", "frame", "circle", "cross"),
        ("star", "flower", "cross", "triangle", "bolt"),
        ("arrow", "hammer", "triangle", "cross", "fish"),
        ("crescent", "horseshoe", "ring", "bar"),
        ("hourglass", "bolt", "triangle", "fish", "bar"),
        ("heart", "drop", "triangle", "fish"),
    ]
    near: dict[str, set[str]] = {shape: set() for shape in SHAPES}
    for group in groups:
        for shape in group:
            near[shape] |= set(group) - {shape}
    return {shape: tuple(sorted(others)) for shape, others in near.items()}


def truth_table(scenes: Sequence[Facts], captions: Sequence[Sequence[Mention]]) -> Tensor:
    """[B, T]: whether every mention of a caption fits something in an image."""
    kinds: dict[Mention, int] = {}
    needed = [[kinds.setdefault(mention, len(kinds)) for mention in mentions] for mentions in captions]
    fits = np.zeros((len(scenes), len(kinds) + 1), dtype=bool)
    fits[:, -1] = True
    by_noun: dict[str, list[tuple[Mention, int]]] = {}
    for mention, number in kinds.items():
        by_noun.setdefault(mention.shape or mention.stuff, []).append((mention, number))
    for row, facts in enumerate(scenes):
        for fact in facts:
            for mention, number in by_noun.get(fact.shape if isinstance(fact, Thing) else fact.stuff, ()):
                fits[row, number] |= mention.fits(fact)
    width = max(map(len, needed))
    index = np.array([row + [len(kinds)] * (width - len(row)) for row in needed])
    return torch.from_numpy(fits[:, index].all(axis=2))


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """(image to text, text to image) losses.

    images: [B, E], texts: [T, E], unit rows; scale: the inverse temperature. An image is scored for
    each of its own captions against all captions that are false of it. A caption that is true of
    some image is scored for all those images against the others.
    """
    own, true = batch.own.to(images.device), batch.true.to(images.device)
    logits = scale * images @ texts.T
    wrong = logits.masked_fill(true | own, float("-inf")).logsumexp(dim=1, keepdim=True)
    to_text = (torch.logaddexp(logits, wrong) - logits)[own].mean()
    columns = own.any(dim=0)
    log_chance = F.log_softmax(logits[:, columns], dim=0)
    right = (true | own)[:, columns]
    to_image = -log_chance.masked_fill(~right, float("-inf")).logsumexp(dim=0).mean()
    return to_text, to_image


def noun_loss(images: Tensor, texts: Tensor, scale: Tensor, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """How well an image's shape is told among the bare shape names, and its ground among the grounds.

    Every true noun is scored against the false nouns of its kind: hard negatives that differ in the
    shape alone, without which colour and ground explain most of the contrast. Returns the loss and the
    share of images whose best shape name is true.
    """
    logits = scale * images @ texts[batch.nouns].T
    true = batch.true[:, batch.nouns].to(logits.device)
    loss = logits.new_zeros(())
    for kind in (slice(0, len(SHAPES)), slice(len(SHAPES), None)):
        here, right = logits[:, kind], true[:, kind]
        wrong = here.masked_fill(right, float("-inf")).logsumexp(dim=1, keepdim=True)
        loss = loss + (torch.logaddexp(here, wrong) - here)[right].mean()
    shapes, right = logits[:, : len(SHAPES)], true[:, : len(SHAPES)]
    some = right.any(dim=1)
    best = right.gather(1, shapes.argmax(dim=1, keepdim=True))[some]
    return loss, best.float().mean()


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """Unit text embeddings [T, E] of an open_clip CLIP, computed no further than the longest text reaches.

    Equal to `model.encode_text(tokens, normalize=True)`: attention is causal, so cutting the padding
    off changes nothing.
    """
    length = int(tokens.argmax(dim=1).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(x)), tokens.argmax(dim=1)]
    return F.normalize(pooled @ model.text_projection, dim=-1)


def _any_mention(rng: Any) -> Mention:
    if rng.random() < 0.2:
        return Mention(stuff=STUFF[rng.integers(len(STUFF))])
    color = tuple(COLORS)[rng.integers(len(COLORS))] if rng.random() < 0.4 else ""
    surface = PATTERNS[1:][rng.integers(len(PATTERNS) - 1)] if rng.random() < 0.2 else ""
    return Mention(shape=SHAPES[rng.integers(len(SHAPES))], color=color, pattern=surface)


def _other(rng: Any, names: Sequence[str], name: str) -> str:
    others = [other for other in names if other != name]
    return others[rng.integers(len(others))]
