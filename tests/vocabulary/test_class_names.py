"""Which names of a class go into prompts, and that reports call it the same whatever they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.errors import InputError
from ovstrans.vocabulary.catalog import list_published_vocabularies, load_published_vocabulary
from ovstrans.vocabulary.vocabulary import CLASS_NAMES, Vocabulary, name_choices, use_class_names

WORD = st.text(st.characters(categories=("L", "Pd", "Zs"), include_characters="_,"), min_size=1).filter(str.strip)


def one(name: str, index: int, names: str) -> tuple[str, ...]:
    return use_class_names(load_published_vocabulary(name), names).classes[index]


@pytest.mark.parametrize(
    ("name", "index", "expected"),
    [
        # As the released mapper of GKC writes them at evaluation.
        ("coco-panoptic", 131, "wall"),
        ("coco-panoptic", 87, "floor wood"),
        ("coco-panoptic", 119, "sky"),
        ("coco-panoptic", 93, "mirror stuff"),
        ("coco-stuff", 84, "building"),
        ("coco-stuff-156-15", 160, "wall concrete"),
        ("ade20k-150", 6, "road, route"),
        ("ade20k-847", 11, "person, individual, someone, somebody, mortal, soul"),
        ("cityscapes", 0, "road"),
        ("context-59", 40, "road"),
        ("pascal-20", 14, "person"),
        ("vspw", 75, "cupboard or showcase or storage rack"),
        ("vspw", 6, "Playground slide"),
        ("vipseg", 75, "cupboard_or_showcase_or_storage_rack"),
    ],
)
def test_clean_is_what_gkc_writes(name: str, index: int, expected: str) -> None:
    assert one(name, index, "clean") == (expected,)


def test_vocabularies_that_gkc_does_not_clean_keep_their_hyphens() -> None:
    for name in ("ade20k-847", "context-459"):
        vocabulary = load_published_vocabulary(name)
        assert use_class_names(vocabulary, "clean").classes == vocabulary.plain
        assert any("-" in names[0] for names in vocabulary.plain or ())


def test_plain_synonyms_and_joined() -> None:
    assert one("coco-panoptic", 131, "plain") == ("wall-other-merged",)
    assert one("coco-panoptic", 131, "synonyms") == ("wall", "walls")
    assert one("pascal-20", 19, "joined") == ("tvmonitor,monitor,tv",)  # as OpenTrans prompts PASCAL VOC
    assert one("lvis-1203", 0, "plain") == ("aerosol can", "spray can")  # has no other names


@pytest.mark.parametrize("name", list_published_vocabularies())
@pytest.mark.parametrize("names", CLASS_NAMES)
def test_choosing_names_keeps_display_names_and_is_idempotent(name: str, names: str) -> None:
    vocabulary = load_published_vocabulary(name)
    once = use_class_names(vocabulary, names)
    assert once.names == vocabulary.names
    assert (once.novel, once.things, once.plain) == (vocabulary.novel, vocabulary.things, vocabulary.plain)
    assert use_class_names(once, names) == once


@given(st.lists(st.lists(WORD, min_size=1, max_size=3), min_size=1, max_size=6), st.sampled_from(list(CLASS_NAMES)))
def test_class_names_can_be_chosen_for_any_vocabulary(classes: list[list[str]], names: str) -> None:
    vocabulary = Vocabulary("any", tuple(map(tuple, classes)))
    once = use_class_names(vocabulary, names)
    assert len(once) == len(vocabulary) and use_class_names(once, names) == once
    assert once == vocabulary or len(set(once.names)) == len(classes)


def test_a_users_vocabulary_is_cleaned_as_coco_is() -> None:
    mine = Vocabulary.from_names("mine", ["wall-other-merged, stone-wall", "cat"])
    found = use_class_names(mine, "clean")
    assert found.classes == (("wall", "stone wall"), ("cat",))
    assert found.names == ("wall-other-merged", "cat")


def test_an_unknown_choice_of_names_gets_a_hint() -> None:
    assert name_choices() == ["auto", "synonyms", "plain", "clean", "joined"]
    with pytest.raises(InputError, match="`names=cleaned`: unknown; did you mean 'clean'"):
        use_class_names(load_published_vocabulary("vspw"), "cleaned")
