"""The demo, with every step cut short."""

import json
from typing import Any

import pytest

from ovstrans.cli.main import run


def test_the_demo_makes_what_it_lists(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        run(["demo", "--steps", "1", "--round-steps", "0", "--images", "2", "--device", "cpu"]) == 2
    )  # no such option
    assert run(["demo", "--steps", "1", "--round-steps", "0", "--images", "2"]) == 0
    out, err = capsys.readouterr()
    reports = json.loads((tmp_path / "demo" / "report.json").read_text())["reports"]
    assert [report["params"]["nonzero"] < report["params"]["total"] for report in reports] == [False, True, True]
    listed = [line.split()[0] for line in err.splitlines() if line.startswith("  demo/")]
    assert len(listed) == 6
    assert all((tmp_path / path).is_file() for path in listed)
    assert listed[-1] == "demo/pictures/scenes-test.png"
    assert "mIoU" in out
    assert "nan" not in err
    assert run(["demo"]) == 2  # what is there is not overwritten
    assert "exists already" in capsys.readouterr().err


def test_an_interrupt_ends_the_demo_and_not_a_step_of_it(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ovstrans.pruning.prune.prune", interrupted)
    assert run(["demo", "--round-steps", "0"]) == 130
    err = capsys.readouterr().err
    assert err.count("$ ovstrans ") == 1 and err.endswith("error: interrupted\n")
