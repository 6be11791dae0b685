from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.clip.load import Clip, random_clip
from ovstrans.clip.text import TextClassifier, embed_vocabulary
from ovstrans.clip.weights import VISUAL
from ovstrans.data.templates import template_set
from ovstrans.data.vocabulary import Vocabulary
from ovstrans.errors import InputError, MismatchError
from ovstrans.frameworks import registry
from ovstrans.frameworks.deeplabv3 import DeepLabV3
from ovstrans.frameworks.vocabulary import classifier_for, prompted, text_clip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVSTRANS_CACHE", str(tmp_path))


def checkpoint_of(clip: Clip, text: TextClassifier) -> Checkpoint:
    tower = {key: value for key, value in clip.model.state_dict().items() if not key.startswith(VISUAL)}
    return Checkpoint(
        framework="deeplabv3",
        options={},
        state={},
        mask=None,
        text_embeddings=text.embeddings,
        text_owner=text.owner,
        vocabulary=text.vocabulary,
        clip={**clip.describe(), "pretrained": "made-up", "weights_sha256": "0" * 64},
        recipe={},
        provenance={},
        text_tower=tower,
    )


def test_new_names_are_embedded_by_the_carried_tower(text: TextClassifier) -> None:
    trained = random_clip("RN-mini", seed=5)
    other = Vocabulary.from_names("other", ["red circle, red disc", "water"])
    found = classifier_for(checkpoint_of(trained, text), other)
    expected = embed_vocabulary(trained, other, cache=False)
    torch.testing.assert_close(found.embeddings, expected.embeddings)
    assert found.owner.tolist() == [0, 0, 1] and found.vocabulary is other


def test_new_names_are_prompted_as_in_training(text: TextClassifier) -> None:
    trained = random_clip("RN-mini", seed=5)
    checkpoint = checkpoint_of(trained, text)
    checkpoint.options = {"templates": "clip"}
    other = Vocabulary.from_names("other", ["water"], templates=("some {} of theirs",))
    found = classifier_for(checkpoint, other)
    expected = embed_vocabulary(trained, replace(other, templates=("a photo of a {}.",)), cache=False)
    torch.testing.assert_close(found.embeddings, expected.embeddings)


def test_known_names_need_no_text_tower(clip: Clip, text: TextClassifier) -> None:
    checkpoint = checkpoint_of(clip, text)
    checkpoint.text_tower = None
    renamed = Vocabulary("renamed", text.vocabulary.classes)
    found = classifier_for(checkpoint, renamed)
    assert found.embeddings is checkpoint.text_embeddings
    assert found.vocabulary.novel == frozenset()
    with pytest.raises(InputError, match="made-up"):  # the recorded weights are needed, and are not there
        classifier_for(checkpoint, Vocabulary.from_names("other", ["water"]))


def test_a_foreign_text_tower_is_refused(clip: Clip, text: TextClassifier) -> None:
    checkpoint = checkpoint_of(clip, text)
    assert checkpoint.text_tower is not None
    checkpoint.text_tower["text_projection"] = torch.zeros(2, 2)
    with pytest.raises(MismatchError, match="text_projection does not fit RN-mini"):
        text_clip(checkpoint)
    del checkpoint.text_tower["text_projection"]
    with pytest.raises(MismatchError, match="text_projection of RN-mini is missing"):
        text_clip(checkpoint)


def test_a_framework_chooses_its_prompts(vocabulary: Vocabulary) -> None:
    own = replace(vocabulary, templates=("one {} of mine",))
    assert prompted(own, "deeplabv3", {}) == own
    assert prompted(own, "fcclip", {}) == replace(own, templates=template_set("vild"))
    assert prompted(own, "fcclip", {"templates": "bare"}).templates == ("{}",)
    assert prompted(own, "fcclip", {"templates": "dataset"}) == own
    for options in ({}, {"templates": "clip"}, registry.defaults("fcclip")):
        once = prompted(own, "fcclip", options)
        assert prompted(once, "fcclip", options) == once
    with pytest.raises(InputError, match="templates 'vidl': unknown; did you mean 'vild'"):
        prompted(own, "fcclip", {"templates": "vidl"})
    with pytest.raises(InputError, match="framework 'fclip': unknown; did you mean 'fcclip'"):
        prompted(own, "fclip", {})


def test_a_framework_may_choose_its_words(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_names(_cls: type, given: Vocabulary) -> Vocabulary:
        return replace(given, classes=tuple(names[:1] for names in given.classes))

    monkeypatch.setattr(DeepLabV3, "worded", classmethod(first_names))
    assert prompted(vocabulary, "deeplabv3", {}).classes == (("cat",), ("dog",), ("grass",), ("sky",))
