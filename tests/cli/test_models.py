from __future__ import annotations

import json

import pytest

from ovstrans.cli.main import run
from ovstrans.clip.models import model_names


def test_list_shows_every_model_that_can_be_pruned(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in model_names())
    assert "38.3 M" in out and "23.4 M" in out and "coca_ViT-B-32" not in out and "--all lists them" in out


def test_all_and_a_pattern_give_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--all"], ["coca_*"]):
        assert run(["models", "list", *arguments]) == 0
        out = capsys.readouterr().out
        assert "coca_ViT-B-32" in out and "CoCa," in out and "--all lists them" not in out


def test_json_has_exact_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "list", "RN*50", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "ovstrans.models/1"
    assert found["models"]["RN50"] == {
        "image_size": 224,
        "image_encoder": 38_316_896,
        "prunable": 23_445_504,
        "tags": ["openai", "yfcc15m", "cc12m"],
        "unsupported": "",
        "supported": True,
    }


def test_an_unknown_pattern_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "list", "RN51"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'RN50'" in err and err.count("\n") == 1
