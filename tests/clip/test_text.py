"""Text classifiers and their cache."""

import pytest
import torch
from torch.nn import functional as F

from ovstrans.clip import text
from ovstrans.clip.load import random_clip
from ovstrans.clip.text import embed_vocabulary, reduce_synonyms
from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary(name="v", classes=(("star",), ("grass", "lawn"), ("red car",)), templates=("a {}", "{}"))


@pytest.fixture(scope="module")
def clip():
    return random_clip(seed=5)


def test_rows_are_averaged_templates(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("OVSTRANS_CACHE", str(tmp_path))
    classifier = embed_vocabulary(clip, VOCABULARY)
    assert classifier.owner.tolist() == [0, 1, 1, 2]
    assert classifier.num_classes == 3
    with torch.no_grad():
        rows = clip.model.encode_text(clip.tokenizer(["a lawn", "lawn"]), normalize=True)
    torch.testing.assert_close(classifier.embeddings[2], F.normalize(rows.mean(0), dim=0))
    assert classifier.embeddings.norm(dim=1).allclose(torch.ones(4))


def test_cache_is_used_and_belongs_to_the_text_encoder(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("OVSTRANS_CACHE", str(tmp_path))
    first = embed_vocabulary(clip, VOCABULARY)
    calls = []
    monkeypatch.setattr(text, "embed_texts", lambda *a: calls.append(a) or torch.zeros(4, 128))
    assert torch.equal(embed_vocabulary(clip, VOCABULARY).embeddings, first.embeddings)
    assert not calls
    embed_vocabulary(random_clip(seed=6), VOCABULARY)
    assert len(calls) == 1


def test_damaged_cache_is_made_again(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("OVSTRANS_CACHE", str(tmp_path))
    first = embed_vocabulary(clip, VOCABULARY)
    for path in (tmp_path / "text").iterdir():
        path.write_bytes(b"broken")
    assert torch.equal(embed_vocabulary(clip, VOCABULARY).embeddings, first.embeddings)


def test_encoder_without_text_is_refused(clip):
    alone = random_clip(seed=5)
    alone.has_text, alone.pretrained = False, "encoder.safetensors"
    with pytest.raises(InputError, match="image encoder only"):
        embed_vocabulary(alone, VOCABULARY, cache=False)


def test_best_synonym_scores_the_class():
    similarity = torch.tensor([[0.1, 0.9, 0.3, 0.5], [0.2, -0.3, -0.1, 0.0]])
    scores = reduce_synonyms(similarity, torch.tensor([0, 1, 1, 2]), 3)
    torch.testing.assert_close(scores, torch.tensor([[0.1, 0.9, 0.5], [0.2, -0.1, 0.0]]))
    maps = similarity[..., None, None].expand(-1, -1, 2, 3)
    assert torch.equal(reduce_synonyms(maps, torch.tensor([0, 1, 1, 2]), 3)[..., 1, 2], scores)


def test_cache_tells_templates_names_and_models_apart(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("OVSTRANS_CACHE", str(tmp_path))
    first = embed_vocabulary(clip, VOCABULARY)
    others = (
        Vocabulary(name="v", classes=VOCABULARY.classes, templates=("a {}",)),
        Vocabulary(name="v", classes=(("star",), ("grass", "lawn"), ("blue car",)), templates=VOCABULARY.templates),
    )
    for other in others:
        found = embed_vocabulary(clip, other)
        assert torch.equal(found.embeddings, embed_vocabulary(clip, other, cache=False).embeddings)
        assert not torch.equal(found.embeddings, first.embeddings)
