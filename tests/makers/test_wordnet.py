"""The script that makes the extracts of WordNet, on a dictionary of a few lines written here in WordNet's format."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans.errors import InputError
from ovstrans.vocabulary.nouns import detach_endings
from ovstrans.vocabulary.wordnet import read_lines
from tests.makers.wordnet import NOTICE, main, make
from tests.makers.wordnet_dictionary import read_wordnet

ACT, ANIMAL, ARTIFACT, ATTRIBUTE, FOOD, PERSON, SHAPE, COGNITION = 4, 5, 6, 7, 13, 18, 25, 9
LETTER = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
NUMBER = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}

SYNSETS = {
    "noun": [
        (ANIMAL, "bat chiropteran", "nocturnal mouselike mammal"),
        (ARTIFACT, "bat", "a club to hit a ball with"),
        (ARTIFACT, "ball", "round object"),
        (ARTIFACT, "cup", "a small container"),
        (FOOD, "cake", "baked goods"),
        (FOOD, "cupcake", "small cake baked in a cup"),
        (ARTIFACT, "traffic_light traffic_signal stoplight", "a signal on a street"),
        (PERSON, "woman adult_female", "an adult"),
        (PERSON, "batter hitter", "someone who bats"),
        (PERSON, "Batman", "a hero of comics"),
        (ACT, "riding", "going on horseback"),
        (ARTIFACT, "building edifice", "it has a roof"),
        (SHAPE, "ring", "a circle"),
        (ATTRIBUTE, "red redness", "a colour"),
        (ATTRIBUTE, "small", "the narrow part of the back"),
        (COGNITION, "idea thought", "what one thinks"),
        (ARTIFACT, "eggs", "a dish, with a shell of an edifice"),
        (FOOD, "egg", "laid by hens"),
        (ANIMAL, "chiropter", "a learned word"),
        (ARTIFACT, "Frisbee", "a disc"),
        (ANIMAL, "goose", "a bird"),
    ],
    "verb": [(38, "ride", "go"), (36, "build", "make"), (39, "ring", "sound a bell"), (33, "bat", "strike the ball")],
    "adj": [(0, "red", "of a colour"), (0, "small", "not big")],
    "adv": [(2, "small", "on a small scale")],
}
TAGS = {
    ("noun", "bat"): 5,
    ("noun", "ring"): 3,
    ("noun", "red"): 2,
    ("noun", "small"): 1,
    ("noun", "idea"): 2,
    ("noun", "thought"): 1,
    ("noun", "egg"): 9,
    ("noun", "riding"): 2,
    ("noun", "building"): 1,
    ("noun", "woman"): 9,
    ("noun", "goose"): 1,
    ("verb", "ring"): 9,
    ("adj", "red"): 9,
    ("adj", "small"): 200,
}


def write_dictionary(folder: Path) -> Path:
    """The files of a WordNet database, with offsets as in the real one: bytes from the start of the data file."""
    notice = "  1 A notice, whose lines are indented\n"
    for part, synsets in SYNSETS.items():
        data, senses = notice, {}
        for topic, words, gloss in synsets:
            offset = f"{len(data.encode()):08}"
            names = words.split()
            pairs = " ".join(f"{name} 0" for name in names)
            data += f"{offset} {topic:02} {LETTER[part]} {len(names):02x} {pairs} 001 @ 00001740 n 0000 | {gloss}  \n"
            for name in names:
                senses.setdefault(name.lower(), []).append(offset)
        index = notice + "".join(
            f"{lemma} {LETTER[part]} {len(offsets)} 2 @ ~ {len(offsets)} 0 {' '.join(offsets)}  \n"
            for lemma, offsets in sorted(senses.items())
        )
        (folder / f"data.{part}").write_text(data, encoding="utf-8")
        (folder / f"index.{part}").write_text(index, encoding="utf-8")
    lines = (f"{lemma}%{NUMBER[part]}:00:00:: 1 {count}\n" for (part, lemma), count in TAGS.items())
    (folder / "cntlist.rev").write_text("".join(lines), encoding="utf-8")
    (folder / "noun.exc").write_text("women woman\ngeese goose\nbateaux bateau\n", encoding="utf-8")
    return folder


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    folder = tmp_path / "dict"
    folder.mkdir()
    return write_dictionary(folder)


def written(folder: Path, name: str) -> list[str]:
    text = (folder / name).read_text(encoding="utf-8")
    assert text.startswith(NOTICE)
    assert "Princeton" in NOTICE
    return text.removeprefix(NOTICE).splitlines()


def test_synonyms_are_all_lemmas_of_all_noun_senses(dictionary: Path, tmp_path: Path) -> None:
    make(dictionary, ["women", "bat", "traffic lights", "Building-other-merged", "ball", "unheard of", "bat"], tmp_path)
    assert written(tmp_path, "synonyms.txt") == [
        "bat, chiropteran",
        "building, edifice",
        "traffic lights, traffic light, traffic signal, stoplight",
        "women, woman, adult female",
    ]


def test_listed_nouns_are_tagged_named_used_in_glosses_or_compounds(dictionary: Path, tmp_path: Path) -> None:
    make(dictionary, ["cup", "cake pan", "frisbee"], tmp_path)
    assert written(tmp_path, "nouns.txt") == [
        "ball",  # in the gloss of bat
        "bat v",
        "batter",  # a person named after bat
        "building",  # made from a verb, but can be seen
        "cake",
        "cup",
        "cupcake",
        "edifice",  # in the gloss of eggs
        "egg",  # and not eggs
        "frisbee",  # a class, in lower case
        "goose",
        "idea",  # tagged twice, and not thought
        "red A",
        "riding V",
        "ring V",
        "woman",
    ]
    assert written(tmp_path, "plurals.txt") == ["geese goose"]  # women follow a rule, bateau is no noun here


def test_the_command_takes_names_from_a_file_and_repeats_itself(dictionary: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("# classes\nbat\n\n", encoding="utf-8")
    for out in ("one", "two"):
        main(["--dict", str(dictionary), "--names", str(names), "--out", str(tmp_path / out)])
    assert written(tmp_path / "one", "synonyms.txt") == ["bat, chiropteran"]
    for name in ("synonyms.txt", "nouns.txt", "plurals.txt"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.noun", "00000000 05 n 0z bat 0 | x\n", "data.noun: line 1"),
        ("data.noun", "00000000 05 n 03 bat 0 cat 0 | x\n", "data.noun: line 1"),
        ("data.noun", "", "which data.noun lacks"),
        ("index.noun", "  notice\nbat n x 0 1 0 00000000\n", "index.noun: line 2"),
        ("index.verb", "ride v 2 0 2 0 00000000\n", "index.verb: line 1"),
        ("cntlist.rev", "bat%9:05:00:: 1 2\n", "cntlist.rev: line 1"),
        ("noun.exc", "women\n", "noun.exc: line 1"),
        ("noun.exc", None, "noun.exc: no such file"),
    ],
)
def test_a_bad_dictionary_is_named(dictionary: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (dictionary / name).unlink()
    else:
        (dictionary / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_wordnet(dictionary)
    assert message in str(caught.value)


def test_the_command_ends_in_one_line_where_the_folder_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--dict", str(tmp_path), "--out", str(tmp_path)])
    assert caught.value.code == 2
    assert "data.noun: no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "forms"),
    [
        ("boxes", ("boxes", "boxe", "box")),
        ("women", ("women", "woman")),
        ("ponies", ("ponies", "ponie", "pony")),
        ("dishes", ("dishes", "dishe", "dish")),
        ("cat", ("cat",)),
        ("s", ("s",)),
        ("geese", ("geese", "goose")),
        ("axes", ("axes", "ax", "axis")),
    ],
)
def test_base_forms_follow_the_exceptions_or_else_the_rules(form: str, forms: tuple[str, ...]) -> None:
    assert detach_endings(form, {"geese": ("goose",), "axes": ("ax", "axis")}) == forms


def test_the_packaged_lists_are_sorted_and_small() -> None:
    for name, limit in (("nouns.txt", 150_000), ("synonyms.txt", 200_000), ("plurals.txt", 20_000)):
        lines = read_lines(name)
        keys = [line.replace(",", " ").split()[0] for line in lines]
        assert keys == sorted(keys) or name == "synonyms.txt"
        assert 5_000 < sum(len(line.encode()) + 1 for line in lines) < limit
    licence = read_lines("LICENSE.txt")
    assert any("WordNet 3.0 Copyright 2006 by Princeton University" in line for line in licence)
