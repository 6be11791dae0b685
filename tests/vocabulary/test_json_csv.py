"""Class names in JSON, CSV and TSV files, and in files whose names end otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ovstrans.datasets.catalog import find_vocabulary
from ovstrans.errors import InputError
from ovstrans.files import write_json
from ovstrans.segmenter.label_maps import describe_classes
from ovstrans.vocabulary.catalog import load_published_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary

CLASSES = (("sky",), ("car", "automobile"), ("路面电车",))


@pytest.mark.parametrize(
    "value",
    [
        ["sky", "car, automobile", "路面电车"],
        ["sky", ["car", "automobile"], "路面电车"],
        {"0": "sky", "1": "car, automobile", "2": "路面电车"},
        {"2": "路面电车", "10": "never", "1": ["car", "automobile"], "0": "sky"},
        {"car, automobile": 1, "路面电车": 2, "sky": 0},
        {"id2label": {"0": "sky", "1": "car, automobile", "2": "路面电车"}},
        {"sky": [], "car": ["car", "automobile"], "路面电车": []},
        [{"id": 7, "name": "路面电车"}, {"id": 1, "name": "sky"}, {"id": 3, "name": "car", "synonyms": ["automobile"]}],
        {"categories": [{"name": "sky"}, {"name": "car, automobile"}, {"name": "路面电车"}], "annotations": []},
        {"classes": ["sky", "car, automobile", "路面电车"], "name": "street"},
    ],
    ids=lambda value: json.dumps(value)[:30],
)
def test_json(value: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "street.json", value)
    found = find_vocabulary(str(tmp_path / "street.json"))
    assert found.classes[:3] == CLASSES and found.name == "street"


@pytest.mark.parametrize(
    "text",
    [
        "sky\ncar,automobile\n路面电车\n",
        "\ufeffsky\r\ncar, automobile\r\n路面电车\r\n",
        'name\nsky\n"car, automobile"\n路面电车\n',
        "0,sky\n2,路面电车\n1,car,automobile\n",
        "id,name,synonyms\n2,路面电车,\n0,sky,\n1,car,automobile\n",
        'Index,Class,R,G,B\n0,sky,1,2,3\n1,"car, automobile",4,5,6\n2,路面电车,7,8,9\n',
    ],
)
def test_csv(text: str, tmp_path: Path) -> None:
    (tmp_path / "street.CSV").write_bytes(text.encode())
    found = find_vocabulary(str(tmp_path / "street.CSV"))
    assert found.classes == CLASSES
    assert found.colors == (((1, 2, 3), (4, 5, 6), (7, 8, 9)) if "R,G,B" in text else None)
    (tmp_path / "street.tsv").write_bytes(text.replace("car,automobile", "car\tautomobile").encode())
    if "id" not in text and "0," not in text and "R" not in text:
        assert find_vocabulary(str(tmp_path / "street.tsv")).classes == CLASSES


@pytest.mark.parametrize("name", ["classes", "classes.names", "classes.TXT"])
def test_text_files_of_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("sky\ncar, automobile\n路面电车\n", encoding="utf-8")
    assert find_vocabulary(str(tmp_path / name)).classes == CLASSES


@pytest.mark.parametrize("name", ["coco-panoptic", "ade20k-847", "street"])
def test_what_predict_writes_is_read(name: str, tmp_path: Path) -> None:
    """Names, synonyms, colours and things; also where the display name is none of the synonyms."""
    made = Vocabulary.from_names("street", ["a", "b, c"]) if name == "street" else load_published_vocabulary(name)
    write_json(tmp_path / "look" / "classes.json", describe_classes(made, panoptic={"things": sorted(made.things)}))
    found = find_vocabulary(str(tmp_path / "look" / "classes.json"))
    assert found.names == made.names and found.things == made.things and found.name == "look"
    assert (found.palette() == made.palette()).all()
    for own, before in zip(found.classes, made.classes, strict=True):
        assert set(own) >= set(before)
    write_json(tmp_path / "whole.json", made.to_json())
    assert find_vocabulary(str(tmp_path / "whole.json")) == replace(made)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "no list of classes"),
        ([], "no class"),
        ({}, "no class"),
        ([3], "class 0 is 3"),
        (["sky", ""], "empty name"),
        (["sky", "sky"], "named twice"),
        ([{"id": 1}], "has no name"),
        ([{"name": "a", "id": "x"}], "has the number 'x'"),
        ([{"name": "a", "id": 1}, {"name": "b", "id": 1}], "number 1 is used twice"),
        ([{"name": "a", "id": 1}, {"name": "b"}], "'b' has no number"),
        ({"a": 1, "b": None}, "'b' is None"),
        ({"schema": "ovstrans.report/1", "target": {"name": "x"}}, "holds no list of classes"),
    ],
    ids=str,
)
def test_faults_are_named_with_the_file(value: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "street.json"
    write_json(path, value)
    with pytest.raises(InputError, match=message) as caught:
        find_vocabulary(str(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_faults_of_tables(tmp_path: Path) -> None:
    path = tmp_path / "street.csv"
    for text, message in (("", "no class"), ("id,name\n1,\n", "has no name"), ('"open\n', "not a valid table")):
        path.write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            find_vocabulary(str(path))
        assert str(caught.value).startswith(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a UTF-8 text"):
        find_vocabulary(str(path))
    (tmp_path / "broken.json").write_text("[")
    with pytest.raises(InputError, match="not valid JSON"):
        find_vocabulary(str(tmp_path / "broken.json"))
