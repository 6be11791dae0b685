"""--json is refused, before any work, where it names a file or folder that the command itself writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans.cli import main


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "--out", "same.safetensors", "--json", "same.safetensors"],
        ["prune", "--out", "one.safetensors", "--json", "one.weights.safetensors"],
        ["analyze", "--out", "same.json", "--json", "same.json"],
        ["analyze", "--out", "one.json", "--plot", "--json", "one.png"],
        ["export", "mask.safetensors", "--out", "same.pth", "--json", "same.pth"],
        ["predict", "run", "photo.png", "--out", "look", "--json", "look"],
        ["predict", "run", "photo.png", "--out", "look", "--json", "look/classes.json"],
        ["bench", "RN-mini", "--markdown", "same.md", "--json", "same.md"],
        ["bench", "RN-mini", "--pictures", "same", "--json", "same"],
        ["bench", "RN-mini", "--update", "same.json", "--json", "same.json"],
    ],
)
def test_json_in_the_place_of_another_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(arguments) == 2
    error = capsys.readouterr().err
    assert "--json" in error and ("in the way of" in error or "both are" in error), error
    assert not list(tmp_path.iterdir())
