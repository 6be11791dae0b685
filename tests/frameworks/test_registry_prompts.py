"""Other vocabularies for a trained framework: class names, prompts, text encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.clip import load
from ovstrans.clip.load import Clip, random_clip
from ovstrans.clip.text import TextClassifier, embed_vocabulary
from ovstrans.clip.weights import VISUAL
from ovstrans.errors import InputError, MismatchError
from ovstrans.frameworks import registry
from ovstrans.frameworks.deeplabv3 import DeepLabV3
from ovstrans.frameworks.ensemble import find_seen_classes
from ovstrans.frameworks.registry import classifier_for, text_clip, with_prompts
from ovstrans.vocabulary.catalog import load_published_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary, get_templates


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVSTRANS_CACHE", str(tmp_path))


def checkpoint_of(clip: Clip, text: TextClassifier) -> Checkpoint:
    encoder = {key: value for key, value in clip.model.state_dict().items() if not key.startswith(VISUAL)}
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
        text_encoder=encoder,
    )


def test_new_names_are_embedded_by_the_checkpoints_text_encoder(text: TextClassifier) -> None:
    trained = random_clip("RN-mini", seed=5)
    other = Vocabulary.from_names("other", ["red circle, red disc", "water"])
    found = classifier_for(checkpoint_of(trained, text), other)
    expected = embed_vocabulary(trained, other, cache=False)
    torch.testing.assert_close(found.embeddings, expected.embeddings)
    assert found.owner.tolist() == [0, 0, 1] and found.vocabulary == other


def test_new_names_are_prompted_as_in_training(text: TextClassifier) -> None:
    trained = random_clip("RN-mini", seed=5)
    checkpoint = checkpoint_of(trained, text)
    checkpoint.options = {"templates": "clip"}
    other = Vocabulary.from_names("other", ["water"], templates=("some {} of theirs",))
    found = classifier_for(checkpoint, other)
    expected = embed_vocabulary(trained, replace(other, templates=("a photo of a {}.",)), cache=False)
    torch.testing.assert_close(found.embeddings, expected.embeddings)


def test_class_names_without_templates_get_those_of_training(text: TextClassifier) -> None:
    clip = random_clip("RN-mini", seed=5)
    checkpoint = checkpoint_of(clip, replace(text, vocabulary=replace(text.vocabulary, templates=("a sketch of {}",))))
    bare = Vocabulary.from_names("bare", ["water"])
    own = replace(bare, templates=("the {}",))
    for asked, template in ((bare, "a sketch of {}"), (own, "the {}")):
        expected = embed_vocabulary(clip, replace(asked, templates=(template,)), cache=False)
        torch.testing.assert_close(classifier_for(checkpoint, asked).embeddings, expected.embeddings)
    plain = Vocabulary("published", text.vocabulary.classes)  # the same classes: the rows of the training
    assert classifier_for(checkpoint, plain).embeddings is checkpoint.text_embeddings


def test_known_names_need_no_text_encoder(clip: Clip, text: TextClassifier) -> None:
    checkpoint = checkpoint_of(clip, text)
    checkpoint.text_encoder = None
    renamed = Vocabulary("renamed", text.vocabulary.classes)
    found = classifier_for(checkpoint, renamed)
    assert found.embeddings is checkpoint.text_embeddings
    assert found.vocabulary.novel == frozenset()
    with pytest.raises(InputError, match="made-up"):  # the recorded weights are needed, and are not there
        classifier_for(checkpoint, Vocabulary.from_names("other", ["water"]))


def test_a_text_encoder_of_another_model_is_refused(clip: Clip, text: TextClassifier) -> None:
    checkpoint = checkpoint_of(clip, text)
    assert checkpoint.text_encoder is not None
    checkpoint.text_encoder["text_projection"] = torch.zeros(2, 2)
    with pytest.raises(MismatchError, match="RN-mini: text_projection has shape"):
        text_clip(checkpoint)
    del checkpoint.text_encoder["text_projection"]
    with pytest.raises(MismatchError, match=r"RN-mini: lacks 1 entry \(text_projection\)"):
        text_clip(checkpoint)


def test_a_framework_chooses_its_prompts(vocabulary: Vocabulary) -> None:
    own = replace(vocabulary, templates=("one {} of mine",))
    assert with_prompts(own, "deeplabv3", {}) == own
    assert with_prompts(own, "fcclip", {}) == replace(own, templates=get_templates("vild"))
    assert with_prompts(own, "fcclip", {"templates": "bare"}).templates == ("{}",)
    assert with_prompts(own, "fcclip", {"templates": "dataset"}) == own
    for options in ({}, {"templates": "clip"}, registry.default_options("fcclip")):
        once = with_prompts(own, "fcclip", options)
        assert with_prompts(once, "fcclip", options) == once
    with pytest.raises(InputError, match="templates 'vidl': unknown; did you mean 'vild'"):
        with_prompts(own, "fcclip", {"templates": "vidl"})
    with pytest.raises(InputError, match="framework 'fclip': unknown; did you mean 'fcclip'"):
        with_prompts(own, "fclip", {})


def test_a_framework_may_format_class_names(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_names(_cls: type, given: Vocabulary) -> Vocabulary:
        return replace(given, classes=tuple(names[:1] for names in given.classes))

    monkeypatch.setattr(DeepLabV3, "format_class_names", classmethod(first_names))
    assert with_prompts(vocabulary, "deeplabv3", {}).classes == (("cat",), ("dog",), ("grass",), ("sky",))


@pytest.mark.parametrize(
    ("framework", "templates", "expected"),
    [
        ("fcclip", 14, {"wall": ("wall", "walls"), "wood floor": ("wood floor",)}),
        ("gkc", 1, {"wall": ("wall",), "wood floor": ("floor wood",)}),
        ("deeplabv3", 1, {"wall": ("wall",), "wood floor": ("floor wood",)}),
    ],
)
def test_published_classes_are_prompted_as_published(framework: str, templates: int, expected: dict) -> None:
    vocabulary = load_published_vocabulary("coco-panoptic")
    options = registry.default_options(framework)
    found = with_prompts(vocabulary, framework, options)
    words = dict(zip(found.names, found.classes, strict=True))
    assert {name: words[name] for name in expected} == expected
    assert found.names == vocabulary.names and len(found.templates) == templates
    assert with_prompts(found, framework, options) == found


@pytest.mark.parametrize("framework", registry.list_frameworks())
def test_names_may_be_chosen(framework: str) -> None:
    vocabulary = load_published_vocabulary("coco-panoptic")
    expected = {
        "synonyms": ("wall", "walls"),
        "plain": ("wall-other-merged",),
        "clean": ("wall",),
        "joined": ("wall,walls",),
    }
    for names, wall in expected.items():
        found = with_prompts(vocabulary, framework, {}, names)
        assert (found.classes[131], found.names[131]) == (wall, "wall")
        assert with_prompts(found, framework, {}, names) == found
    with pytest.raises(InputError, match="`names=synonym`: unknown; did you mean 'synonyms'"):
        with_prompts(vocabulary, framework, {}, "synonym")


def test_chosen_names_are_embedded(text: TextClassifier) -> None:
    trained = random_clip("RN-mini", seed=5)
    checkpoint = checkpoint_of(trained, text)
    vocabulary = load_published_vocabulary("coco-panoptic").subset([131, 87, 0])
    people = len(vocabulary.classes[2])
    owner = {names: [0, 1, 2] for names in ("plain", "clean", "joined", "auto")}
    owner["synonyms"] = [0, 0, 1, *[2] * people]
    found = {names: classifier_for(checkpoint, vocabulary, names) for names in owner}
    assert {names: each.owner.tolist() for names, each in found.items()} == owner
    assert all(len(each.embeddings) == len(each.owner) for each in found.values())
    assert {each.vocabulary.names for each in found.values()} == {("wall", "wood floor", "person")}
    wall = embed_vocabulary(trained, Vocabulary.from_names("one", ["wall-other-merged", "wall"]), cache=False)
    torch.testing.assert_close(found["plain"].embeddings[0], wall.embeddings[0])
    torch.testing.assert_close(found["clean"].embeddings[0], wall.embeddings[1])
    assert torch.equal(found["auto"].embeddings, found["clean"].embeddings)  # of deeplabv3


def test_the_text_encoder_has_the_activation_of_the_recorded_weights(
    text: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's RN50 was trained with QuickGELU, open_clip's RN50 has GELU: the tag says which; here, of RN-mini."""
    trained = random_clip("RN-mini", seed=5)
    checkpoint = checkpoint_of(trained, text)
    other = Vocabulary.from_names("other", ["water"])
    usual = classifier_for(checkpoint, other)
    checkpoint.clip["pretrained"] = "quick"
    monkeypatch.setattr(load.open_clip, "list_pretrained_tags_by_model", lambda model: ["quick"])
    monkeypatch.setattr(load.open_clip, "get_pretrained_cfg", lambda model, tag: {"quick_gelu": True})
    block = text_clip(checkpoint).model.transformer.resblocks[0]
    assert type(block.mlp.gelu).__name__ == "QuickGELU"
    quick = classifier_for(checkpoint, other)  # and the cache keeps the two apart
    assert not torch.allclose(quick.embeddings, usual.embeddings, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        # Counted with FC-CLIP's own lists and its own rule.
        *(("ade20k-150", 64), ("ade20k-847", 101), ("cityscapes", 17), ("coco-stuff", 135), ("context-59", 51)),
        *(("context-459", 85), ("pascal-20", 20), ("pascal-21", 21), ("mapillary-65", 26), ("coco-panoptic", 133)),
    ],
)
def test_fcclip_finds_seen_classes_by_their_names(name: str, seen: int) -> None:
    options = registry.default_options("fcclip")
    trained = with_prompts(load_published_vocabulary("coco-panoptic"), "fcclip", options)
    assert sum(find_seen_classes(with_prompts(load_published_vocabulary(name), "fcclip", options), trained)) == seen


def test_seen_is_decided_on_the_prompted_words() -> None:
    trained = with_prompts(load_published_vocabulary("coco-panoptic"), "fcclip", {})

    def unseen(name: str, names: str = "auto") -> set[str]:
        vocabulary = with_prompts(load_published_vocabulary(name), "fcclip", {}, names)
        return {
            shown
            for shown, yes in zip(vocabulary.names, find_seen_classes(vocabulary, trained), strict=True)
            if not yes
        }

    assert unseen("cityscapes") == {"pole", "rider"}  # road shares its name with COCO's
    assert "street" in unseen("context-59")  # what the authors call road
    assert "street" not in unseen("context-59", "plain")
