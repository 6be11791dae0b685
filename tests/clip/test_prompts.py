"""Names behind a learned prompt: the layout of the tokens, gradients, and names that are too long."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ovstrans.clip.load import Clip
from ovstrans.clip.prompts import PromptEncoder, embed_prompted
from ovstrans.clip.text import embed_texts
from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.frameworks import deop_case as case


@pytest.fixture(scope="module")
def clip() -> Clip:
    return case.clip()


def test_the_vectors_of_words_give_the_embedding_of_these_words(clip: Clip) -> None:
    """With the token embeddings of "a photo of" as the prompt, it is that sentence."""
    tokens = clip.tokenizer(["a photo of"])[0][1:4]
    vectors = clip.model.token_embedding(tokens).detach()
    names = ["cat", "wall concrete", "x"]
    found = PromptEncoder(clip, names, 3)(vectors)
    expected = embed_texts(clip, names, ("a photo of {}.",))
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-6)


def test_the_gradient_reaches_the_vectors_and_nothing_else(clip: Clip) -> None:
    encoder = PromptEncoder(clip, ["cat", "dog"], 4)
    vectors = torch.randn(4, encoder.width, requires_grad=True)
    encoder(vectors)[:, 0].sum().backward()
    assert vectors.grad is not None and (vectors.grad.abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    assert clip.model.token_embedding.weight.requires_grad, "the CLIP itself is left as it is"


def test_some_names_in_any_order(clip: Clip) -> None:
    names = [f"thing {number}" for number in range(300)]
    encoder = PromptEncoder(clip, names, 2)
    vectors = torch.randn(2, encoder.width)
    with torch.no_grad():
        every = encoder(vectors)
        assert torch.allclose(encoder(vectors, [299, 3]), every[[299, 3]], atol=1e-5)
    assert every.shape == (300, case.EMBED)


def test_synonyms_have_rows_of_their_own(clip: Clip) -> None:
    vectors = torch.randn(2, case.EMBED)
    names = Vocabulary.from_names("v", ["cat, kitty", "dog"])
    text = embed_prompted(clip, names, vectors)
    assert text.owner.tolist() == [0, 0, 1]
    assert torch.allclose(text.embeddings, PromptEncoder(clip, ["cat", "kitty", "dog"], 2)(vectors), atol=1e-6)
    assert F.cosine_similarity(text.embeddings[0], text.embeddings[2], dim=0) < 0.9999


def test_a_name_that_fills_the_context(clip: Clip) -> None:
    name = " ".join(["cat"] * 70)
    assert PromptEncoder(clip, [name], 4)(torch.randn(4, case.EMBED)).isfinite().all()
    with pytest.raises(InputError, match="has 70 tokens; with 5 prompt vectors .* context of 77"):
        PromptEncoder(clip, [name], 5)


def test_a_clip_without_text_encoder(clip: Clip) -> None:
    with pytest.raises(InputError, match="learned prompts need the text encoder"):
        PromptEncoder(replace(clip, has_text=False), ["cat"], 2)
