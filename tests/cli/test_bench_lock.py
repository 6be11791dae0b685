from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovstrans.cli import main

RECIPE = '[model]\nframework = "deeplabv3"\nclip = "RN-mini"\nwidth = 16\n'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(RECIPE)


def bench(*arguments: str) -> int:
    return main.run(["bench", *arguments, "--quiet"])


def made() -> str:
    """A lock of a recipe file and a bare trunk."""
    assert bench("mine.toml", "RN-mini", "--image-size", "64", "--update", "costs.lock.json") == 0
    return Path("costs.lock.json").read_text()


def test_silent_until_something_moves(capsys: pytest.CaptureFixture[str]) -> None:
    made()
    assert bench("--check", "costs.lock.json") == 0
    assert capsys.readouterr().out == ""
    Path("mine.toml").write_text(RECIPE.replace("16", "17"))
    assert bench("--check", "costs.lock.json") == 3
    shown = capsys.readouterr()
    assert shown.out.startswith("mine.toml --image-size 64x64\n") and "RN-mini" not in shown.out
    assert "aspp: dense MACs " in shown.out and " -> " in shown.out
    assert "1 of 2 targets changed" in shown.err and shown.err.strip().count("\n") == 0
    assert bench("RN-mini", "--check", "costs.lock.json") == 0


def test_update_records_what_moved_and_nothing_else() -> None:
    before = made()
    assert bench("--check", "costs.lock.json", "--update") == 0
    assert Path("costs.lock.json").read_text() == before
    Path("mine.toml").write_text(RECIPE.replace("16", "17"))
    assert bench("--update", "costs.lock.json") == 0
    assert Path("costs.lock.json").read_text() != before
    assert bench("--check", "costs.lock.json") == 0


def test_targets_are_added_beside_the_others() -> None:
    before = json.loads(made())
    Path("mine.toml").write_text(RECIPE.replace("16", "17"))
    assert bench("RN101", "--image-size", "64", "--update") == 0
    after = json.loads(Path("costs.lock.json").read_text())
    assert set(after["targets"]) - set(before["targets"]) == {"RN101 --image-size 64x64"}
    assert all(after["targets"][name] == entry for name, entry in before["targets"].items())


def test_a_changed_image_size() -> None:
    made()
    assert bench("--check", "costs.lock.json", "--image-size", "64x64") == 0
    assert bench("--check", "costs.lock.json", "--image-size", "96x64") == 3


def test_tolerance() -> None:
    made()
    lock = json.loads(Path("costs.lock.json").read_text())
    macs = lock["targets"]["RN-mini --image-size 64x64"]["macs"]["trunk"]
    macs["dense"] += 100
    Path("costs.lock.json").write_text(json.dumps(lock))
    assert bench("--check", "costs.lock.json") == 3
    assert bench("--check", "costs.lock.json", "--tolerance", "99") == 3
    assert bench("--check", "costs.lock.json", "--tolerance", "100") == 0
    assert bench("--check", "costs.lock.json", "--tolerance", "0.001%") == 0
    assert bench("--check", "costs.lock.json", "--tolerance", "0.000001%") == 3
    assert bench("--check", "costs.lock.json", "--tolerance", ".001%") == 0


def test_json_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    made()
    Path("mine.toml").write_text(RECIPE.replace("16", "8"))
    assert bench("--check", "costs.lock.json", "--json", "-") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "ovstrans.check/1" and len(found["targets"]) == 2
    assert {"target", "component", "kind", "was", "now"} == set(found["moved"][0])
    assert all(moved["now"] < moved["was"] for moved in found["moved"])


def test_paths_are_seen_from_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    made()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert bench("--check", "../costs.lock.json") == 0
    assert bench("../mine.toml", "--check", "../costs.lock.json") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--check", "gone.lock.json"), "gone.lock.json: no such lock; make one with"),
        (("--update", "gone.lock.json"), "gone.lock.json: no such lock; make one with"),
        (("--check", "mine.toml"), "a recipe, not JSON"),
        (("--check", "mine.toml"), "make another: ovstrans bench TARGET ... --update mine.toml"),
        (("RN101", "--check", "costs.lock.json"), "RN101: is not in costs.lock.json; add it"),
        (("--check", "costs.lock.json", "--tolerance", "much"), "--tolerance much"),
        (("--check", "costs.lock.json", "--update", "other.json"), "name one"),
        (("--check", "costs.lock.json", "--tolerance", "1e999"), "--tolerance 1e999"),
        (("--check", "costs.lock.json", "--counter", "fvcore"), "a lock is counted by torch alone"),
        (("--check", "costs.lock.json", "--paper"), "--paper: does not apply to a lock's check"),
        (("--check", "costs.lock.json", "--data", "scenes"), "--data: does not apply to a lock's check; leave it out"),
        (("--check", "costs.lock.json", "--names", "auto"), "--names: does not apply to a lock's check"),
        (("--check", "costs.lock.json", "--per-layer"), "--per-layer: does not apply to a lock's check"),
        (("--check", "costs.lock.json", "--window", "64"), "--window: does not apply to a lock's check"),
        (("--check", "costs.lock.json", "--pictures", "p"), "--pictures: does not apply to a lock's check"),
        (("RN-mini", "--update", "costs.lock.json", "--markdown"), "--markdown: does not apply to a lock's update"),
        (("--check", "costs.lock.json", "--update", "--flip"), "--flip: does not apply to a lock's update"),
        (("--update", "costs.lock.json", "--tolerance", "1%"), "--tolerance: does not apply to a lock's update"),
        (("--paper", "--image-size", "64"), "--image-size: does not apply to --paper"),
        (("deeplabv9", "--update", "costs.lock.json"), "costs.lock.json: deeplabv9 --image-size 800x1216: deeplabv9"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = made()
    assert bench(*arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.strip().count("\n") == 0 and shown.out == ""
    assert Path("costs.lock.json").read_text() == before


def test_a_target_that_went_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    made()
    Path("mine.toml").unlink()
    assert bench("--check", "costs.lock.json") == 2
    assert "costs.lock.json: mine.toml --image-size 64x64: mine.toml: no such recipe file" in capsys.readouterr().err
