"""Class names as users write them, and which of the classes are countable."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans.errors import InputError
from ovstrans.segmenter.classes import choose_vocabulary, describe_unknown, find_things, parse_classes, share_colors
from ovstrans.vocabulary.catalog import load_published_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary


def vocabulary(*classes: str, things: tuple[int, ...] = ()) -> Vocabulary:
    return Vocabulary.from_names("words", classes, things=frozenset(things))


def test_names_between_commas_or_in_a_list() -> None:
    expected = (("road",), ("pavement",), ("a red car",))
    assert parse_classes("road, pavement,  a red   car").classes == expected
    assert parse_classes(["road", " pavement ", "a red car"]).classes == expected
    assert parse_classes(("car, automobile", "road")).classes == (("car", "automobile"), ("road",))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("  ", "`classes=  `: names no class"),
        (", ,", "names no class"),
        ([], "`classes`: names no class"),
        ("a,,b", "`classes=a,,b`: class 2 is empty"),
        (["a", ""], "`classes`: class 2 is empty"),
        (["a", 3], "`classes`: class 2 is empty"),
        ("road, a car, Road", "'Road' is named twice"),
    ],
)
def test_lists_that_name_no_classes(classes: str | list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_classes(classes)


def test_a_vocabulary_is_an_object_a_name_or_a_file(tmp_path: Path) -> None:
    street = vocabulary("sky", "road")
    (tmp_path / "street.txt").write_text("sky\nroad\n")
    assert choose_vocabulary(None, None) is None
    assert choose_vocabulary(None, street) is street
    assert choose_vocabulary(None, "cityscapes") == load_published_vocabulary("cityscapes")
    found = choose_vocabulary(None, str(tmp_path / "street.txt"))
    assert found is not None and found.names == ("sky", "road")
    with pytest.raises(InputError, match="`classes` and `vocabulary`: give one of them"):
        choose_vocabulary("a", "cityscapes")


def test_things_are_those_of_the_vocabulary_or_of_the_training() -> None:
    trained = vocabulary("car, automobile", "sky", things=(0,))
    words = vocabulary("Automobile", "SKY", "teapot")
    found = find_things(words, trained)
    assert (found.panoptic, found.instances, found.unknown) == ({0}, {0, 2}, (2,))
    assert find_things(vocabulary("car", "sky", things=(1,)), trained).panoptic == {1}  # its own say counts
    nothing_known = find_things(words, vocabulary("sky", "sea"))
    assert (nothing_known.panoptic, nothing_known.instances) == (frozenset(), {0, 1, 2})


def test_things_of_the_users_choice() -> None:
    words = vocabulary("Automobile", "SKY", "teapot")
    assert find_things(words, words, "teapot,  sky").instances == {1, 2}
    assert find_things(words, words, ["Teapot"]).panoptic == {2}
    assert find_things(words, words, "sky").unknown == ()
    with pytest.raises(InputError, match=r"'teapots' is none of the 3 classes; did you mean 'teapot'\?"):
        find_things(words, words, "teapots")


def test_a_notice_names_the_classes_of_which_nothing_is_known() -> None:
    many = vocabulary(*(f"thing {number}" for number in range(9)))
    things = find_things(many, vocabulary("sky", things=(0,)))
    both = describe_unknown(many, things, panoptic=True, instances=True)
    assert "'thing 5' and 3 more: not known whether countable; taken as stuff" in both and "as things" in both
    assert "stuff" not in describe_unknown(many, things, panoptic=False, instances=True)
    assert describe_unknown(many, find_things(many, many, "thing 1"), panoptic=True, instances=True) == ""


def test_a_class_has_one_colour_in_every_picture() -> None:
    """The training's where it knows the name, else one that depends on the name alone."""
    trained = Vocabulary.from_names("t", ["sky", "car, automobile"], colors=((1, 2, 3), (4, 5, 6)))

    def colors(*names: str) -> dict[str, tuple[int, ...]]:
        shared = share_colors(vocabulary(*names), trained)
        return {name: tuple(color) for name, color in zip(names, shared.palette().tolist(), strict=True)}

    first, other = colors("road", "car", "a red bus"), colors("a red bus", "Automobile", "sky", "lamp", "road")
    assert first["car"] == other["Automobile"] == (4, 5, 6) and other["sky"] == (1, 2, 3)
    assert first["road"] == other["road"] and first["a red bus"] == other["a red bus"]
    many = colors(*(f"thing {number}" for number in range(300)))
    assert len(set(many.values())) == 300
    own = load_published_vocabulary("cityscapes")
    assert share_colors(own, trained) is own and share_colors(trained, trained) is trained
