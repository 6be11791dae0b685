"""Captions, hard negatives and the contrastive loss."""

import sys
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ovstrans.clip.load import random_clip
from ovstrans.datasets.scenes.dataset import Mention, draw_scene, format_caption
from ovstrans.datasets.scenes.drawing import SHAPES, STUFF

sys.path.insert(0, str(Path(__file__).parents[2] / "checkpoints" / "shared"))

from contrastive import (
    TextBatch,
    change_one_word,
    contrastive_loss,
    encode_text,
    is_true,
    make_captions,
    make_truth_table,
    noun_loss,
)


def _scenes(count):
    return [draw_scene("pretrain", index, 0, 32, 32).visible_elements() for index in range(count)]


def test_truth_table_agrees_with_reading_each_caption():
    scenes = _scenes(30)
    batch = make_captions(np.random.default_rng(0), scenes)
    assert len(set(batch.texts)) == len(batch.texts)
    mentions = [
        [Mention(shape="star")],
        [Mention(shape="ring", color="red"), Mention(stuff="grass")],
        [Mention(stuff="sky")],
    ]
    table = make_truth_table(scenes, mentions)
    for row, elements in enumerate(scenes):
        for column, caption in enumerate(mentions):
            assert table[row, column] == all(any(is_true(mention, each) for each in elements) for mention in caption)


def test_own_captions_are_true_and_most_others_are_not():
    batch = make_captions(np.random.default_rng(1), _scenes(40))
    assert bool((batch.true | ~batch.own).all())
    assert batch.own.any(dim=1).all()
    assert batch.true.float().mean() < 0.2


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_a_hard_negative_differs_in_one_word(seed):
    rng = np.random.default_rng(seed)
    mentions = [Mention(shape="star", color="red", pattern="striped"), Mention(stuff="grass")]
    changed = change_one_word(rng, mentions)
    strip = lambda text: [word for word in text.split() if word not in ("a", "an")]  # noqa: E731
    before = strip(" ".join(mention.words() for mention in mentions))
    after = strip(" ".join(mention.words() for mention in changed))
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_phrases():
    rng = np.random.default_rng(3)
    texts = {format_caption(rng, [Mention(shape="arrow", color="orange"), Mention(stuff="sand")]) for _ in range(30)}
    assert texts == {"an orange arrow on sand", "a photo of an orange arrow on sand"}


def test_loss_by_hand():
    """Two images, three texts: text 2 is true of both, so it is nobody's negative."""
    images = torch.eye(2)
    texts = F.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0], [1.0, 1.0]]), dim=1)
    own = torch.tensor([[True, False, False], [False, True, False]])
    true = torch.tensor([[True, False, True], [False, True, True]])
    to_text, to_image = contrastive_loss(
        images, texts, torch.tensor(2.0), TextBatch(["a", "b", "c"], own, true, torch.arange(0))
    )
    logits = (2 * images @ texts.T).numpy()
    rows = [np.log(np.exp(logits[i, [0, 1]]).sum()) - logits[i, i] for i in range(2)]
    columns = [np.log(np.exp(logits[:, i]).sum()) - logits[i, i] for i in range(2)]
    np.testing.assert_allclose(float(to_text), np.mean(rows), rtol=1e-5)
    np.testing.assert_allclose(float(to_image), np.mean(columns), rtol=1e-5)


def test_noun_loss_by_hand():
    """Shapes compete with shapes and grounds with grounds; a noun that is true is nobody's negative."""
    count = len(SHAPES) + len(STUFF)
    texts, true = torch.eye(count), torch.zeros(1, count, dtype=torch.bool)
    true[0, [0, 3, len(SHAPES)]] = True
    image = F.normalize(torch.arange(1.0, count + 1), dim=0)[None]
    loss, right = noun_loss(image, texts, torch.tensor(4.0), TextBatch([], true, true, torch.arange(count)))
    logits = 4 * image[0].numpy()
    shapes, stuff = logits[: len(SHAPES)], logits[len(SHAPES) :]
    wrong = np.exp(np.delete(shapes, [0, 3])).sum()
    expected = np.mean([np.log(1 + wrong / np.exp(shapes[at])) for at in (0, 3)])
    expected += np.log(1 + np.exp(stuff[1:]).sum() / np.exp(stuff[0]))
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)
    assert float(right) == 0  # the largest is the last shape, which is not there


def test_short_encoding_equals_open_clips():
    clip = random_clip(seed=2)
    tokens = clip.tokenizer(["a star", "a photo of a red striped star and a blue fish on grass and sand"])
    with torch.no_grad():
        torch.testing.assert_close(encode_text(clip.model, tokens), clip.model.encode_text(tokens, normalize=True))
