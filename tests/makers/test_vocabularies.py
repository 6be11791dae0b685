"""The script that makes the vocabularies: what it writes is what it read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans.errors import InputError
from ovstrans.vocabulary.catalog import SPLITS, list_published_vocabularies, load_published_vocabulary
from ovstrans.vocabulary.files import read_vocabulary
from tests.makers.vocabularies import WIDTH, combine, main, make_camvid, make_vipseg, to_toml

LIST = "0:invalid_class_id\n1:wall,walls\n2:window,windows\n3:wall,brick wall,wall\n"
TABLE = [
    {"name": "wall", "isthing": 0, "color": [1, 2, 3]},
    {"name": "window ", "isthing": 1, "color": [4, 5, 6]},
    {"name": "wall, brick", "isthing": 0, "color": [7, 8, 9]},
]


@pytest.mark.parametrize("name", sorted({*list_published_vocabularies()} - {*SPLITS}))
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    vocabulary = load_published_vocabulary(name)
    path = tmp_path / "written.toml"
    path.write_text(to_toml(vocabulary, ["From somewhere."]), encoding="utf-8")
    assert read_vocabulary(path) == vocabulary
    short = [line for line in path.read_text(encoding="utf-8").splitlines() if "], [" in line or '", "' in line]
    assert all(len(line) <= WIDTH for line in short)


def test_a_list_and_its_category_table_are_combined(tmp_path: Path) -> None:
    (tmp_path / "ade20k_150_with_prompt_eng.txt").write_text(LIST)
    vocabulary = combine(tmp_path, {"ADE20K_150_CATEGORIES": TABLE}, "ade20k-150")
    assert vocabulary.classes == (("wall", "walls"), ("window", "windows"), ("wall", "brick wall"))
    assert vocabulary.plain == (("wall",), ("window",), ("wall, brick",))
    assert vocabulary.names == ("wall", "window", "wall (brick wall)")
    assert (vocabulary.things, vocabulary.colors) == ({1}, ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    with pytest.raises(InputError, match="ADE20K_150_CATEGORIES: 2 entries, ade20k_150 has 3 classes"):
        combine(tmp_path, {"ADE20K_150_CATEGORIES": TABLE[:2]}, "ade20k-150")


def test_names_of_vipseg_are_split_into_synonyms() -> None:
    table = [{"name": "well_or_well_lid", "isthing": 0, "color": [0, 0, 0]}]
    table += [{"name": "Mobile_phone", "isthing": 1, "color": [0, 0, number]} for number in range(123)]
    made = make_vipseg(table, "vipseg")
    assert made.classes[0] == ("well", "well lid", "manhole cover")
    assert made.classes[1][0] == "mobile phone" and made.plain is not None and made.plain[1] == ("Mobile_phone",)
    assert len(made.novel) == 12 and not make_vipseg(table, "vspw").novel


def test_camvid_is_as_its_label_maps_are() -> None:
    assert " ".join(make_camvid().names) == (
        "sky building pole road pavement tree sign symbol fence car pedestrian bicyclist"
    )
    assert make_camvid() == load_published_vocabulary("camvid")


def test_missing_input_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = tmp_path / "tables.json"
    with pytest.raises(SystemExit) as ended:
        main(["--labels", str(tmp_path), "--tables", str(tables), "--vipseg", str(tables), "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert f"{tables}: no such file" in capsys.readouterr().err
