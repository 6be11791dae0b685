"""Synonyms of class names: GKC's cleaning, and what the packaged extract of WordNet says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.datasets.scenes.drawing import SHAPES, STUFF
from ovstrans.errors import InputError
from ovstrans.vocabulary.synonyms import find_synonyms
from ovstrans.vocabulary.vocabulary import clean_name
from ovstrans.vocabulary.wordnet import read_lines


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("wall-other-merged", "wall"),
        ("tree-merged", "tree"),
        ("water-other", "water"),
        ("wall-brick", "wall brick"),
        ("door-stuff", "door stuff"),
        ("traffic light", "traffic light"),
    ],
)
def test_names_are_cleaned_as_gkc_does(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # As nltk's reader of the same database has them; all noun senses, the most frequent first.
        ("car", ("car", "auto", "automobile", "machine", "motorcar", "railcar", "railway car", "railroad car")),
        ("sofa", ("sofa", "couch", "lounge")),
        ("bicycle", ("bicycle", "bike", "wheel", "cycle")),
        ("traffic light", ("traffic light", "traffic signal", "stoplight")),
        ("TV", ("tv", "television", "telecasting", "video", "television receiver", "television set")),
        ("buildings", ("buildings", "building", "edifice", "construction")),
        ("women", ("women", "woman", "adult female", "charwoman", "char", "cleaning woman")),
    ],
)
def test_synonyms_of_all_senses_follow_the_name(name: str, expected: tuple[str, ...]) -> None:
    assert find_synonyms(name)[: len(expected)] == expected


@pytest.mark.parametrize("name", ["wall brick", "no such class", "zebra crossing sign"])
def test_a_name_that_wordnet_lacks_has_itself_alone(name: str) -> None:
    assert find_synonyms(name) == (name,)


def test_the_name_is_cleaned_before_it_is_looked_up() -> None:
    assert find_synonyms("Wall-other-merged") == find_synonyms("wall")
    assert len(find_synonyms("wall")) > 1


@given(st.text(min_size=1).filter(lambda name: clean_name(name).strip()))
def test_the_cleaned_name_comes_first(name: str) -> None:
    assert find_synonyms(name)[0] == clean_name(name).strip().lower()


@pytest.mark.parametrize("name", ["", "  ", "-", "-other-merged"])
def test_a_blank_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="blank"):
        find_synonyms(name)


def test_every_entry_is_a_listed_name_with_distinct_synonyms() -> None:
    lines = read_lines("synonyms.txt")
    names = {*read_lines("names.txt"), *SHAPES, *STUFF}
    keys = [line.split(", ")[0] for line in lines]
    assert keys == sorted(set(keys))
    assert set(keys) <= names
    for line in lines:
        entry = line.split(", ")
        assert len(set(entry)) == len(entry) > 1
        assert line == line.lower()
        assert "_" not in line
    assert len(keys) > 0.7 * len(names)
