"""Contrastive training of a CLIP on `scenes`: captions, hard negatives and the loss.

The usual contrastive loss stalls on generated captions: many captions in a batch are equal, and a caption of one image
is often true of another. Here a caption that is true of an image is never its negative, and each image has negatives
that differ from its own caption in a single word.

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

from ovstrans.datasets.scenes.dataset import COLORS, Element, Ground, Mention, Thing, choose_mentions, format_caption
from ovstrans.datasets.scenes.drawing import PATTERNS, SHAPES, STUFF, Generator


@dataclass
class TextBatch:
    """Captions of a batch of images.

    Attributes:
        texts: T distinct captions.
        own: Whether a caption was made for an image, bool [B, T].
        true: Whether a caption is true of an image, bool [B, T].
        nouns: Columns of the bare nouns, first all shapes, then all grounds, int64 [N].
    """

    texts: list[str]
    own: Tensor
    true: Tensor
    nouns: Tensor


def make_captions(rng: Generator, scenes: Sequence[Sequence[Element]], *, hard: int = 5, bank: int = 96) -> TextBatch:
    """Make the captions of a batch of images.

    Each image gets a full and a short caption, and captions with one word changed. All images share the bare nouns and
    some random short captions. Equal captions are merged.

    Args:
        rng: Source of randomness.
        scenes: Visible elements of each image.
        hard: Number of changed captions per image.
        bank: Number of random short captions.
    """
    bare = [[Mention(shape=shape)] for shape in SHAPES] + [[Mention(stuff=stuff)] for stuff in STUFF]
    mentions_of: dict[str, list[Mention]] = {mentions[0].words(): mentions for mentions in bare}
    own_texts: list[list[str]] = []
    for elements in scenes:
        texts_of_image = []
        for short in (False, True):
            mentions = choose_mentions(rng, elements, short=short)
            text = format_caption(rng, mentions)
            mentions_of[text] = mentions
            texts_of_image.append(text)
            for _ in range(1 if short else hard):
                changed = change_one_word(rng, mentions)
                mentions_of.setdefault(format_caption(rng, changed), changed)
        own_texts.append(texts_of_image)
    for _ in range(bank):
        mentions = [_draw_mention(rng)]
        mentions_of.setdefault(format_caption(rng, mentions), mentions)
    texts = list(mentions_of)
    column = {text: number for number, text in enumerate(texts)}
    own = torch.zeros(len(scenes), len(texts), dtype=torch.bool)
    for row, texts_of_image in enumerate(own_texts):
        own[row, [column[text] for text in texts_of_image]] = True
    return TextBatch(texts, own, make_truth_table(scenes, list(mentions_of.values())), torch.arange(len(bare)))


def change_one_word(rng: Generator, mentions: Sequence[Mention]) -> list[Mention]:
    """Return the mentions with one word exchanged: mostly a shape, else a colour, a pattern or a ground."""
    changed = list(mentions)
    at = int(rng.integers(len(changed)))
    mention = changed[at]
    if mention.stuff:
        changed[at] = replace(mention, stuff=_draw_other(rng, STUFF, mention.stuff))
        return changed
    kinds = ["shape", "shape", "shape"] + ["color"] * bool(mention.color) + ["pattern"] * bool(mention.pattern)
    kind = kinds[rng.integers(len(kinds))]
    if kind == "shape":
        similar = find_similar_shapes()[mention.shape]
        pool = similar if similar and rng.random() < 0.5 else SHAPES
        changed[at] = replace(mention, shape=_draw_other(rng, pool, mention.shape))
    elif kind == "color":
        changed[at] = replace(mention, color=_draw_other(rng, tuple(COLORS), mention.color))
    else:
        changed[at] = replace(mention, pattern=_draw_other(rng, PATTERNS[1:], mention.pattern))
    return changed


@lru_cache(maxsize=1)
def find_similar_shapes() -> dict[str, tuple[str, ...]]:
    """Return for each shape those that look alike, for hard negatives."""
    groups = [
        ("circle", "ring", "flower", "heart", "drop"),
        ("square", "frame", "circle", "cross"),
        ("star", "flower", "cross", "triangle", "bolt"),
        ("arrow", "hammer", "triangle", "cross", "fish"),
        ("crescent", "horseshoe", "ring", "bar"),
        ("hourglass", "bolt", "triangle", "fish", "bar"),
        ("heart", "drop", "triangle", "fish"),
    ]
    similar: dict[str, set[str]] = {shape: set() for shape in SHAPES}
    for group in groups:
        for shape in group:
            similar[shape] |= set(group) - {shape}
    return {shape: tuple(sorted(others)) for shape, others in similar.items()}


def is_true(mention: Mention, element: Element) -> bool:
    """Return whether a mention is true of an element."""
    if isinstance(element, Ground):
        return mention.stuff == element.stuff
    return (
        mention.shape == element.shape
        and mention.color in ("", element.color)
        and mention.pattern in ("", element.pattern)
        and not mention.stuff
    )


def make_truth_table(scenes: Sequence[Sequence[Element]], captions: Sequence[Sequence[Mention]]) -> Tensor:
    """Return whether each caption is true of each image, bool [B, T].

    A caption is true if every mention is true of some element of the image.
    """
    number_of: dict[Mention, int] = {}
    needed = [[number_of.setdefault(mention, len(number_of)) for mention in mentions] for mentions in captions]
    holds = np.zeros((len(scenes), len(number_of) + 1), dtype=bool)
    holds[:, -1] = True  # padding of captions with few mentions
    by_noun: dict[str, list[tuple[Mention, int]]] = {}
    for mention, number in number_of.items():
        by_noun.setdefault(mention.shape or mention.stuff, []).append((mention, number))
    for row, elements in enumerate(scenes):
        for element in elements:
            for mention, number in by_noun.get(element.shape if isinstance(element, Thing) else element.stuff, ()):
                holds[row, number] |= is_true(mention, element)
    width = max(map(len, needed))
    index = np.array([row + [len(number_of)] * (width - len(row)) for row in needed])
    return torch.from_numpy(holds[:, index].all(axis=2))


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Compute the contrastive losses.

    From image to text, each own caption of an image competes with all captions that are false of the image. From text
    to image, the images that a caption is true of compete with the others.

    Args:
        images: Image embeddings of unit length [B, E].
        texts: Text embeddings of unit length [T, E].
        scale: Inverse temperature.
        batch: The captions.

    Returns:
        The losses from image to text and from text to image.
    """
    own, true = batch.own.to(images.device), batch.true.to(images.device)
    logits = scale * images @ texts.T
    wrong = logits.masked_fill(true | own, float("-inf")).logsumexp(dim=1, keepdim=True)
    to_text = (torch.logaddexp(logits, wrong) - logits)[own].mean()
    columns = own.any(dim=0)
    log_probability = F.log_softmax(logits[:, columns], dim=0)
    right = (true | own)[:, columns]
    to_image = -log_probability.masked_fill(~right, float("-inf")).logsumexp(dim=0).mean()
    return to_text, to_image


def noun_loss(images: Tensor, texts: Tensor, scale: Tensor, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Compute the loss of classifying an image's shapes by the bare names of shapes, and its grounds likewise.

    Each true noun competes with the false nouns of its kind. Without these negatives, colour and ground explain most of
    the contrastive loss.

    Args:
        images: Image embeddings of unit length [B, E].
        texts: Text embeddings of unit length [T, E].
        scale: Inverse temperature.
        batch: The captions.

    Returns:
        The loss, and the share of images whose most similar shape name is true.
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
    """Compute text embeddings of unit length [T, E] with an open_clip model, without the padding.

    The result is that of `model.encode_text(tokens, normalize=True)`: attention is causal, so padding has no effect.
    """
    length = int(tokens.argmax(dim=1).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(x)), tokens.argmax(dim=1)]
    return F.normalize(pooled @ model.text_projection, dim=-1)


def _draw_mention(rng: Generator) -> Mention:
    if rng.random() < 0.2:
        return Mention(stuff=STUFF[rng.integers(len(STUFF))])
    color = tuple(COLORS)[rng.integers(len(COLORS))] if rng.random() < 0.4 else ""
    surface = PATTERNS[1:][rng.integers(len(PATTERNS) - 1)] if rng.random() < 0.2 else ""
    return Mention(shape=SHAPES[rng.integers(len(SHAPES))], color=color, pattern=surface)


def _draw_other(rng: Generator, names: Sequence[str], name: str) -> str:
    others = [other for other in names if other != name]
    return others[rng.integers(len(others))]
