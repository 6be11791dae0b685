from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovstrans.cli.main import run
from ovstrans.recipes.load import recipe_names, recipe_text


def test_list_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in recipe_names())


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "list", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found["recipes"]) == recipe_names()
    assert found["recipes"]["deeplabv3-mini"].startswith("DeepLabV3 on the bundled RN-mini")


def test_json_file_is_not_overwritten_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text("mine")
    assert run(["recipes", "list", "--json", str(tmp_path / "r.json")]) == 2
    captured = capsys.readouterr()
    assert "give another --json, or --force" in captured.err and captured.out == ""
    assert run(["recipes", "list", "--json", str(tmp_path / "r.json"), "--force"]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["recipes"]


def test_show_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", "deeplabv3-mini"]) == 0
    assert capsys.readouterr().out == recipe_text("deeplabv3-mini")


def test_copy_writes_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["recipes", "copy", "deeplabv3-mini"]) == 0
    assert Path("deeplabv3-mini.toml").read_text() == recipe_text("deeplabv3-mini")
    assert run(["recipes", "copy", "deeplabv3-mini"]) == 2
    assert "--force" in capsys.readouterr().err
    assert run(["recipes", "copy", "deeplabv3-mini", "--out", "x/y.toml", "--quiet"]) == 0
    assert Path("x/y.toml").exists()


def test_an_unknown_recipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", "deeplabv3-minni"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'deeplabv3-mini'" in err and err.count("\n") == 1
