"""OpenSeg's format of class lists, and names that tell classes apart."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ovstrans.vocabulary.files import is_openseg, parse_openseg, read_vocabulary
from ovstrans.vocabulary.vocabulary import make_distinct_names

NAME = st.text("abc ()2", min_size=1).map(str.strip).filter(bool)


def test_a_file_of_openseg_is_a_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "mine_with_prompt_eng.txt"
    path.write_text("0:invalid_class_id\n1:wall,walls\n2:tree, trees\n4:tile,tiles,tile\n3:invalid_class_id\n10:pot")
    vocabulary = read_vocabulary(path)
    assert vocabulary.classes == (("wall", "walls"), ("tree", "trees"), ("tile", "tiles"), ("pot",))
    assert (vocabulary.name, vocabulary.display) == ("mine_with_prompt_eng", None)


def test_classes_are_sorted_by_id_and_id_0_is_a_class() -> None:
    assert parse_openseg(["2:sky", "0:road,street", "10:car"]) == [("road", "street"), ("sky",), ("car",)]


def test_classes_that_share_a_name_are_displayed_apart(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("1:pot,pots,flowerpot\n2:cat\n3:pot\n4:pot\n")
    vocabulary = read_vocabulary(path)
    assert vocabulary.classes == (("pot", "pots", "flowerpot"), ("cat",), ("pot",), ("pot",))
    assert vocabulary.names == ("pot (flowerpot)", "cat", "pot", "pot (2)")


def test_other_text_is_not_taken_for_openseg() -> None:
    assert not is_openseg([]) and not is_openseg(["cat"]) and not is_openseg(["a ratio of 1:2"])
    assert is_openseg(["0:invalid_class_id", "1:cat"])


@given(st.lists(st.lists(NAME, min_size=1, max_size=3), max_size=8))
def test_distinct_names_are_distinct_and_change_nothing_that_is(classes: list[list[str]]) -> None:
    names = make_distinct_names(classes)
    assert len(set(names)) == len(names) == len(classes)
    assert all(name.startswith(synonyms[0]) for name, synonyms in zip(names, classes, strict=True))
    first = tuple(synonyms[0] for synonyms in classes)
    assert len(set(first)) < len(first) or names == first
