"""`ovstrans.bench` from Python: targets of every kind, typed results, progress, nothing printed."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

import ovstrans
from ovstrans.checkpoints.file import load_checkpoint
from ovstrans.datasets.catalog import open_dataset
from ovstrans.errors import InputError
from ovstrans.progress import Progress
from ovstrans.reports.report import Report
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.cli.test_bench import write_run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_object_gives_one_report(capsys: pytest.CaptureFixture[str]) -> None:
    mask = write_run(Path("a"))
    heard: list[Progress] = []
    data = open_dataset("scenes", split="val", size=64)
    report = ovstrans.bench(SimpleNamespace(path=Path("a")), data=data, limit=3, device="cpu", progress=heard.append)
    assert isinstance(report, Report) and report.target.kind == "run" and report.environment["device"] == "cpu"
    assert report.params.total - report.params.nonzero == mask.total - mask.kept
    assert report.flops.image_size == (64, 64) and report.flops.layers is None
    result = report.datasets["scenes:val"]
    assert result.images == 3 and result.miou is not None and result.confusion is not None
    assert (heard[0].task, heard[0].total, heard[-1].done) == ("evaluate a on scenes:val", 3, 3)
    assert "scenes:val" in repr(report) and Report.from_json(report.to_json()).to_json() == report.to_json()
    assert capsys.readouterr() == ("", "") and [path.name for path in Path().iterdir()] == ["a"]


def test_several_targets_give_a_list(caplog: pytest.LogCaptureFixture) -> None:
    mask = write_run(Path("a"), density=0.2)
    checkpoint = load_checkpoint("a/checkpoint.safetensors")
    first = ovstrans.bench("RN-mini", image_size="64x96", per_layer=True, mask=mask)
    assert isinstance(first, Report) and first.flops.layers is not None and first.flops.effective < first.flops.dense
    first.save("first.json")
    with caplog.at_level(logging.INFO, "ovstrans"):
        reports = ovstrans.bench(
            [first, "first.json", checkpoint, "deeplabv3"],
            limit=1,
            show=1,
            pictures="drawn",
            image_size=64,
            vocabulary=Vocabulary.from_names("v", [f"class {index}" for index in range(28)]),
            device="cpu",
        )
    assert isinstance(reports, list) and [report.target.kind for report in reports] == [
        "model",
        "model",
        "checkpoint",
        "framework",
    ]
    assert reports[0] is first and reports[1].to_json() == first.to_json()
    assert list(reports[2].datasets) == ["scenes:val"] and reports[3].datasets == {}
    assert reports[3].flops.text_encoder is not None and reports[3].flops.text_encoder.rows == 28
    assert {path.name for path in Path("drawn").iterdir()} == {"scenes-val.png", "scenes-val-confusion.png"}
    assert sum(record.getMessage().startswith("wrote drawn/") for record in caplog.records) == 2


def test_parameters_are_named_in_errors() -> None:
    write_run(Path("a"))
    for given, message in (
        ({"model": "RN50"}, "`model`: is for frameworks"),
        ({"image_size": "64x"}, "`image_size=64x`: write HEIGHTxWIDTH"),
        ({"denominator": "some"}, "`denominator=some`: unknown"),
        ({"panoptic": True, "flip": True}, "leave out `window` and `flip`"),
        ({"data": ["all", "scenes"]}, "`data=all`: stands for itself"),
        ({"vocabulary": Vocabulary.from_names("v", ["a"])}, "`vocabulary=v`: has 1 class, scenes has 28"),
        ({"counter": "none", "limit": 1}, "`counter=none`: unknown"),
        ({"pictures": "a"}, "give another `pictures`"),
    ):
        with pytest.raises(InputError, match=message):
            ovstrans.bench("a", device="cpu", **given)
