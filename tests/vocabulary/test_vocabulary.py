"""Vocabularies: what they hold, their files, their colours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ovstrans.errors import InputError
from ovstrans.vocabulary.files import read_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary, generate_colors


def test_plain_and_display_names() -> None:
    """What the authors call a class and what reports call it go along with its prompts, in files too."""
    vocabulary = Vocabulary(
        name="kitchen",
        classes=(("pot", "flowerpot"), ("pot",), ("wall",)),
        plain=(("pot, flowerpot",), ("pot",), ("wall-other",)),
        display=("flowerpot", "pot", "wall"),
    )
    assert vocabulary.names == ("flowerpot", "pot", "wall")
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary
    some = vocabulary.subset([2, 0])
    assert some.plain == (("wall-other",), ("pot, flowerpot",)) and some.names == ("wall", "flowerpot")
    with_display = Vocabulary.from_names("v", ["pot", "pot, flowerpot"], display=("pot", "flowerpot"))
    assert with_display.classes == (("pot",), ("pot", "flowerpot"))


def test_json_without_plain_and_display_names_is_read() -> None:
    old = {"name": "v", "classes": [["a", "b"]], "novel": [], "things": [], "templates": ["{}"], "colors": None}
    vocabulary = Vocabulary.from_json(old)
    assert vocabulary.plain is None and vocabulary.display is None and vocabulary.names == ("a",)
    assert vocabulary.to_json() == old


def test_names_base_and_json_round_trip() -> None:
    vocabulary = Vocabulary(
        name="street",
        classes=(("sky",), ("car", "automobile"), ("person",)),
        novel=frozenset({2}),
        things=frozenset({1, 2}),
        templates=("a {}.", "{}"),
        colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)),
    )
    assert vocabulary.names == ("sky", "car", "person")
    assert vocabulary.base == {0, 1}
    assert len(vocabulary) == 3
    assert vocabulary.palette().tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": (("a",), ())}, "class 1 has an empty name"),
        ({"classes": ("ab",)}, "tuple of synonyms"),
        ({"classes": (("a",),), "novel": frozenset({1})}, "novel class 1"),
        ({"classes": (("a",),), "things": frozenset({-1})}, "things class -1"),
        ({"classes": (("a",),), "templates": ("a photo",)}, "no {}"),
        ({"classes": (("a",),), "templates": ()}, "no templates"),
        ({"classes": (("a",),), "colors": ()}, "0 colors for 1"),
        ({"classes": (("a",),), "plain": ()}, "0 plain names for 1"),
        ({"classes": (("a",),), "plain": ("a",)}, "plain class 0 is the string"),
        ({"classes": (("a",),), "plain": ((" ",),)}, "plain class 0 has an empty name"),
        ({"classes": (("a",),), "display": ("a", "b")}, "2 display names for 1"),
        ({"classes": (("a",), ("b",)), "display": ("c", "c")}, "display name 'c' is used twice"),
        ({"classes": (("a",),), "display": ("",)}, "display name '' is empty"),
    ],
)
def test_an_inconsistent_vocabulary_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Vocabulary(name="v", **fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "value", [{}, {"name": "v"}, {"name": "v", "classes": 3}, {"name": "v", "classes": [["a"]], "novel": ["x"]}]
)
def test_json_that_is_no_vocabulary_is_refused(value: dict) -> None:
    with pytest.raises(InputError, match="not a vocabulary"):
        Vocabulary.from_json(value)


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "street.txt"
    path.write_text("# classes\nsky\n\n car ,  automobile # moving\ntraffic light\n", encoding="utf-8-sig")
    assert read_vocabulary(path).classes == (("sky",), ("car", "automobile"), ("traffic light",))
    assert read_vocabulary(path).name == "street"


def test_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "v.toml"
    path.write_text(
        'classes = ["sky", "car, automobile", ["person", "man, woman"]]\nnovel = ["car"]\nthings = ["car", "person"]\n'
        'templates = ["a {}"]\ncolors = [[0, 0, 0], [1, 1, 1], [255, 2, 2]]\n'
        'plain = ["sky-other", "car, auto", ["person", "human"]]\n',
        encoding="utf-8",
    )
    vocabulary = read_vocabulary(path)
    assert vocabulary.classes == (("sky",), ("car", "automobile"), ("person", "man, woman"))
    assert (vocabulary.novel, vocabulary.things) == ({1}, {1, 2})
    assert vocabulary.templates == ("a {}",)
    assert vocabulary.plain == (("sky-other",), ("car, auto",), ("person", "human"))  # a string is taken whole
    assert vocabulary.palette()[2].tolist() == [255, 2, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.toml", "classes = [", "not valid TOML"),
        ("v.toml", "", "classes is missing"),
        ("v.toml", 'classes = ["a"]\nnovell = ["a"]', "did you mean 'novel'"),
        ("v.toml", 'classes = ["alpha"]\nnovel = ["alpa"]', "did you mean 'alpha'"),
        ("v.toml", 'classes = ["a", "a, b"]', "named twice"),
        ("v.toml", 'classes = ["a", 3]', "3 is neither"),
        ("v.toml", 'classes = ["a,,b"]', "empty name"),
        ("v.toml", 'classes = ["a"]\nnovel = "a"', "list of strings"),
        ("v.toml", 'classes = ["a"]\ncolors = [[1, 2, 256]]', "0 to 255"),
        ("v.toml", 'classes = ["a"]\ncolors = 3', "colors"),
        ("v.toml", 'classes = ["a"]\nplain = "a"', "plain: a list"),
        ("v.toml", 'classes = ["a"]\nplain = [3]', "plain: class 3 is neither"),
        ("v.toml", 'classes = ["a"]\ndisplay = [3]', "display: a list of strings"),
        ("v.toml", 'classes = ["a", "b"]\ndisplay = ["c"]', "1 display names for 2"),
        ("v.txt", "# nothing\n", "no class"),
        ("v.txt", "a\na\n", "named twice"),
        ("v.txt", b"\xff\xfe\x00", "UTF-8"),
        ("v.txt", "1:cat\n1:dog\n", "line '1:dog': ID 1 occurs twice"),
        ("v.txt", "1:cat\ndog\n", "line 'dog': no ID"),
        ("v.txt", "1:cat,,kitty\n", "line '1:cat,,kitty': an empty name"),
        ("v.txt", "0:invalid_class_id\n", "no class"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_vocabulary(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_vocabulary(tmp_path / "v.txt")


def test_generated_colours_are_distinct_and_do_not_depend_on_the_number() -> None:
    many = generate_colors(847)
    assert len(np.unique(many, axis=0)) == 847
    assert np.array_equal(many[:19], generate_colors(19))


@pytest.mark.parametrize(("count", "least"), [(20, 20.0), (150, 6.0), (847, 3.5)])
def test_generated_colours_are_apart_to_the_eye(count: int, least: float) -> None:
    """In CIELAB (CIE 1976), another space than that they are chosen in; 2.3 is just noticeable (Mahy et al. 1994).

    Colours by golden-ratio hue in bands of saturation and value come to 18, 0.8 and 0.3.
    """
    lab = _cielab(generate_colors(count))
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(count)
    assert apart.min() >= least


def _cielab(rgb: np.ndarray) -> np.ndarray:
    """sRGB uint8 [N, 3] to CIELAB under D65, float [N, 3]."""
    unit = rgb / 255.0
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], axis=1)


def test_a_subset_keeps_the_things_and_novel_classes_that_are_in_it() -> None:
    whole = Vocabulary("v", (("a",), ("b",), ("c",)), novel=frozenset({0, 2}), things=frozenset({1, 2}))
    part = whole.subset([2, 0])
    assert part.names == ("c", "a") and part.novel == {0, 1} and part.things == {0}


def test_an_inconsistent_table_is_named_by_its_own_fault() -> None:
    table = {"name": "v", "classes": [["a"]], "templates": ["no place"]}
    with pytest.raises(InputError, match="^vocabulary v: template 'no place' has no {}"):
        Vocabulary.from_json(table)
