from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ovstrans.cli import main
from ovstrans.costs.target import count_costs, load_target
from ovstrans.files import write_json

SMALL = ("--image-size", "64", "--quiet")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def bench(*arguments: str) -> int:
    return main.run(["bench", *arguments, *SMALL])


def test_markdown_and_csv_on_stdout_stand_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("RN-mini", "deeplabv3", "--markdown") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("| ") and all(line.startswith("|") for line in shown.splitlines())
    assert bench("RN-mini", "--csv", "deeplabv3") == 0
    lines = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert lines[0][3:5] == ["RN-mini", "deeplabv3"] and {len(line) for line in lines} == {6}


def test_files_leave_the_table_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("RN-mini", "--csv", "costs.csv", "--markdown=costs.markdown", "--json", "costs.json") == 0
    assert "dense MACs" in capsys.readouterr().out
    report = json.loads(Path("costs.json").read_text())
    lines = {line[0]: line for line in csv.reader(Path("costs.csv").read_text().splitlines())}
    assert lines["dense MACs"][2:] == ["MAC", str(report["flops"]["dense"])]
    assert "| dense MACs " in Path("costs.markdown").read_text()


def test_written_reports_are_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("RN-mini", "deeplabv3", "--json", "two.json") == 0
    reports = json.loads(Path("two.json").read_text())["reports"]
    assert bench("two.json", "RN101", "--json", "three.json") == 0
    three = json.loads(Path("three.json").read_text())["reports"]
    assert three[:2] == reports and three[2]["target"]["name"] == "RN101"
    write_json("other.json", {"schema": "other"})
    capsys.readouterr()
    assert bench("other.json") == 2
    assert "other.json: is no report" in capsys.readouterr().err


def test_latency() -> None:
    assert bench("RN-mini", "--latency", "--rounds", "2", "--warmup", "0", "--device", "cpu", "--json", "r.json") == 0
    entry = json.loads(Path("r.json").read_text())["latency"]
    assert entry["rounds"] == 2 and entry["arms"]["dense"]["median_s"] > 0 and entry["image_size"] == [64, 64]


def test_plots() -> None:
    assert bench("RN-mini", "--plot", "--pictures", "drawn") == 0
    assert {path.name for path in Path("drawn").iterdir()} == {"layers.png", "training.png"}
    assert bench("RN-mini", "--plot", "page.svg") == 0
    assert "<svg" in Path("page.svg").read_text()
    assert bench("RN-mini", "--plot", "page.svg") == 2


def test_the_papers_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from ovstrans.costs.published import rows as paper

    first, second = paper.FIGURES[:2]
    made = [
        paper.PaperRow(first, 1.001 * first.value, "", 3e7, "all"),
        paper.PaperRow(second, None, "a reason", None, ""),
    ]
    monkeypatch.setattr(paper, "paper_rows", lambda: made)
    assert main.run(["bench", "--paper", "--csv", "paper.csv", "--json", "paper.json", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "+0.10 %" in shown and "not reproduced: a reason" in shown
    table = list(csv.DictReader(Path("paper.csv").read_text().splitlines()))
    rows = json.loads(Path("paper.json").read_text())["rows"]
    assert [row["row"] for row in table] == [row["row"] for row in rows] == [first.row, second.row]
    assert float(table[0]["difference"]) == pytest.approx(0.001) and table[1]["ours"] == ""
    assert f"│ {first.grade} " in shown  # words begin where their column does, figures end there
    assert main.run(["bench", "--paper", "--markdown", "--quiet"]) == 0
    head, rule, *_ = capsys.readouterr().out.splitlines()
    left = {name.strip() for name, line in zip(head.split("|"), rule.split("|"), strict=True) if line.startswith(" :")}
    assert head.startswith("| ") and left == {"", "grade", "convention"}
    assert main.run(["bench", "RN50", "--paper", "--quiet"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--paper", "--json", "-"),
        ("RN-mini", "--update", "new.lock.json", *SMALL),
        ("--check", "gone.lock.json", *SMALL),
        ("RN-mini", "--json", "there.json", *SMALL),
    ],
)
def test_under_torchrun_rank_0_alone_counts_shows_and_writes(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a worker rank counts")

    for name in ("costs.published.rows.paper_rows", "reports.lock.count_entry", "reports.bench.count_costs"):
        monkeypatch.setattr(f"ovstrans.{name}", refuse)
    costs = count_costs(load_target("RN-mini"), (64, 64))
    world = SimpleNamespace(main=False, broadcast=lambda value: [costs], device="cpu")
    monkeypatch.setattr("ovstrans.reports.bench.process_group", lambda device: contextlib.nullcontext(world))
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    Path("there.json").write_text("by rank 0, which was faster")
    assert main.run(["bench", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.out == shown.err == "" and [path.name for path in Path().iterdir()] == ["there.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--csv", "--markdown"), "--markdown and --csv: one at a time on stdout"),
        (("--csv", "--json", "-"), "one at a time on stdout"),
        (("--csv", "there.csv"), "there.csv: exists already; give another --csv"),
        (("--plot=drawing.bmp",), "drawing.bmp: a picture's name ends in"),
        (("--set", "model.width=3"), "RN-mini has no settings"),
        (("--rounds", "0", "--latency"), "--rounds"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there.csv").write_text("precious")
    assert bench("RN-mini", *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.strip().count("\n") == 0 and shown.out == ""
    assert Path("there.csv").read_text() == "precious"


def test_help_names_targets_once(capsys: pytest.CaptureFixture[str]) -> None:
    main.run(["bench", "--help"])
    assert "[TARGET]..." in capsys.readouterr().out.replace("[[", "doubled")
