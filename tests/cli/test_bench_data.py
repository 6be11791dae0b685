"""The evaluation half of `ovstrans bench`: which data, looked at how, shown how."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.cli import main
from ovstrans.costs.target import load_target
from ovstrans.datasets.catalog import open_dataset
from ovstrans.evaluation.inference import Inference
from ovstrans.reports import evaluations
from ovstrans.vocabulary.catalog import load_published_vocabulary
from tests.cli.test_bench import write_run
from tests.datasets.test_label_counts import put_masks


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in its own folder, no datasets, and a finished run in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("OVSTRANS_DATASETS", "DETECTRON2_DATASETS"):
        monkeypatch.delenv(name, raising=False)
    write_run(Path("a"))


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status, and what --json wrote ({} where it wrote nothing)."""
    file = Path("report.json")
    file.unlink(missing_ok=True)
    status = main.run(["bench", *arguments, "--json", str(file), "--force", "--quiet", "--device", "cpu"])
    return status, json.loads(file.read_text()) if file.exists() else {}


def entry(*arguments: str) -> dict[str, Any]:
    """The report of the only dataset of a run that went well."""
    status, report = run("a", *arguments, "--limit", "2", "--show", "0")
    assert status == 0
    (found,) = report["datasets"].values()
    return dict(found)


def put_roads(root: Path, images: int = 3) -> None:
    """CamVid and Cityscapes as their layouts have them, smallest."""
    label = np.arange(8 * 12).reshape(8, 12) % 11
    for number in range(images):
        picture = Image.fromarray(np.full((8, 12, 3), 60 * number % 256, dtype=np.uint8))
        for folder, name in (
            ("CamVid/val", f"{number}.png"),
            ("cityscapes/leftImg8bit/val/ulm", f"ulm_00000{number}_000019_leftImg8bit.png"),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / name)
        for folder, name in (
            ("CamVid/valannot", f"{number}.png"),
            ("cityscapes/gtFine/val/ulm", f"ulm_00000{number}_000019_gtFine_labelTrainIds.png"),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(label.astype(np.uint8)).save(root / folder / name)


def test_how_images_are_looked_at_is_in_the_report() -> None:
    plain = entry()
    assert plain["inference"]["short_side"] is None and plain["denominator"] == "present"
    asked = ("--short-side", "48", "--long-side", "48", "--window", "32", "--stride", "16", "--flip")
    found = entry(*asked, "--denominator", "union")
    expected = {"short_side": 48, "long_side": 48, "window": 32, "stride": 16, "flip": True}
    assert {name: found["inference"][name] for name in expected} == expected
    assert found["denominator"] == "union" and found["mIoU"] == found["mIoU_union"]
    assert found["per_class"] != plain["per_class"]


def test_published_sizes_hold_unless_others_are_asked_for() -> None:
    class Data:
        published_size = (800, 1333)

    def scored(short_side: int | None = None, long_side: int | None = None, **asked: Any) -> Inference:
        scoring = evaluations.Scoring(
            vocabulary=None,
            names="auto",
            inference=Inference(short_side or None, long_side, **asked),
            keep_size=short_side is None and long_side is None,
            denominator="present",
            panoptic=False,
            limit=None,
            show=0,
            tolerant=False,
        )
        return scoring.inference_on(Data())  # type: ignore[arg-type]

    assert scored() == Inference(800, 1333)
    assert scored(flip=True, window=640) == Inference(800, 1333, 640, None, True)
    assert scored(short_side=512) == Inference(512, None) and scored(long_side=640) == Inference(None, 640)
    assert scored(short_side=0) == Inference()


def test_other_words_for_the_classes_of_the_data() -> None:
    vocabulary = open_dataset("scenes", split="val").vocabulary
    Path("odd.txt").write_text("".join(f"nonsense {number}\n" for number in range(len(vocabulary))))
    plain, found = entry(), entry("--vocabulary", "odd.txt")
    names = [each["name"] for each in plain["per_class"]]
    assert [each["name"] for each in found["per_class"]] == names  # the report is about the data
    predicted = [[each["predicted"] for each in entry["per_class"]] for entry in (plain, found)]
    assert predicted[0] != predicted[1] and sum(predicted[0]) == sum(predicted[1])


def test_names_of_the_authors_are_embedded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    plain = evaluations.classifier_for
    monkeypatch.setattr(evaluations, "classifier_for", lambda *given: (asked.append(given[2]), plain(*given))[1])
    entry("--names", "joined")
    assert asked == ["joined"]


def test_all_the_published_datasets_that_are_there() -> None:
    put_roads(Path("data"))
    arguments = ("a", "--data", "all", "--data-root", "data", "--short-side", "64", "--pictures", "pages")
    status, report = run(*arguments)
    assert status == 0
    assert set(report["datasets"]) == {"camvid:val", "cityscapes:val"}
    roads = report["datasets"]["cityscapes:val"]
    assert roads["images"] == 3
    assert [each["name"] for each in roads["per_class"]] == list(load_published_vocabulary("cityscapes").names)
    assert sum(each["pixels"] for each in roads["per_class"]) == 3 * 8 * 12
    drawn = {f"{name}-val{kind}.png" for name in ("camvid", "cityscapes") for kind in ("", "-confusion")}
    assert {path.name for path in Path("pages").iterdir()} == drawn


def test_what_is_not_whole_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    put_roads(Path("data"))
    Path("data/CamVid/valannot/1.png").unlink()
    Path("data/VSPW_480p/data").mkdir(parents=True)
    Path("data/VSPW_480p/val.txt").write_text("")
    status, report = run("a", "--data", "all", "--data-root", "data", "--short-side", "64", "--show", "0")
    assert status == 0 and set(report["datasets"]) == {"cityscapes:val"}
    err = capsys.readouterr().err
    assert "camvid: left out" in err and "valannot/1.png" in err
    assert "vspw: left out" in err and "val.txt: lists nothing" in err


def spoil(path: str) -> None:
    """A label map with a value that no class has."""
    Image.fromarray(np.full((8, 12), 77, dtype=np.uint8)).save(path)


@pytest.mark.parametrize("image", [0, 1])
def test_a_fault_in_one_dataset_does_not_stop_the_others(image: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor where it is in the first image, which decides the size that costs are counted at."""
    put_roads(Path("data"))
    write_run(Path("b"))
    spoil(f"data/CamVid/valannot/{image}.png")
    asked = ("--data-root", "data", "--short-side", "64", "--pictures", "pages")
    status, report = run("a", "b", "--data", "all", *asked)
    assert status == 2
    for each in report["reports"]:
        assert set(each["datasets"]) == {"cityscapes:val"}
        assert set(each["failed"]) == {"camvid:val"} and f"valannot/{image}.png" in each["failed"]["camvid:val"]
    shown = capsys.readouterr()
    assert shown.out.count("cityscapes:val mIoU") == 1 and shown.err.strip().count("\n") == 0
    assert f"error: camvid:val: not evaluated (data/CamVid/valannot/{image}.png: " in shown.err
    assert {path.name for path in Path("pages").iterdir()} == {
        "cityscapes-val.png",
        "cityscapes-val-confusion-a.png",
        "cityscapes-val-confusion-b.png",
    }


def test_faults_of_several_named_datasets_and_of_a_single_one(capsys: pytest.CaptureFixture[str]) -> None:
    put_roads(Path("data"))
    spoil("data/CamVid/valannot/2.png")
    spoil("data/cityscapes/gtFine/val/ulm/ulm_000001_000019_gtFine_labelTrainIds.png")
    asked = ("--data-root", "data", "--short-side", "64", "--show", "0")
    status, report = run("a", "--data", "camvid", "--data", "cityscapes", "--data", "scenes", "--limit", "3", *asked)
    assert status == 2
    assert set(report["datasets"]) == {"scenes:val"} and set(report["failed"]) == {"camvid:val", "cityscapes:val"}
    assert capsys.readouterr().err.count("error: ") == 2
    status, report = run("a", "--data", "camvid", *asked)
    assert status == 2 and not report
    assert "error: data/CamVid/valannot/2.png: " in capsys.readouterr().err


def test_a_published_dataset_by_name_at_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    put_roads(Path("data"), images=1)
    monkeypatch.setenv("OVSTRANS_DATASETS", "data")
    assert entry("--data", "camvid:val")["inference"]["short_side"] is None


def test_a_table_of_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "a", "--limit", "2", "--show", "0", "--per-class", "--quiet", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    names = open_dataset("scenes", split="val").vocabulary.names
    assert "classes of scenes:val" in shown and "accuracy %" in shown and all(name in shown for name in names)
    assert "* novel" in shown
    assert "mIoU over classes that occur in the ground truth (present)" in " ".join(shown.split())
    assert main.run(["bench", "a", "--limit", "2", "--show", "0", "--per-class", "--json", "-", "--quiet"]) == 0
    json.loads(capsys.readouterr().out)


def test_many_images_are_shown_on_several_pages() -> None:
    assert run("a", "--limit", "9", "--show", "9")[0] == 0
    pages = sorted(Path("ovstrans-out/bench").iterdir())
    assert [page.name for page in pages] == ["scenes-val-2.png", "scenes-val-confusion.png", "scenes-val.png"]
    with Image.open(pages[0]) as second, Image.open(pages[2]) as first:
        assert first.height > 4 * second.height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--names", "sloppy"), "--names sloppy: unknown; known are auto, synonyms"),
        (("--denominator", "some"), "--denominator some: unknown; use present or union"),
        (("--stride", "8"), "--stride 8: needs a --window at least as large"),
        (("--panoptic", "--flip"), "leave out --window and --flip"),
        (("--vocabulary", "cityscapes"), "--vocabulary cityscapes: has 19 classes, scenes has"),
        (("--data", "all"), "--data all: no published dataset in datasets (no such folder)"),
        (("--data", "all", "--data-root", "empty"), "--data all: no published dataset in empty"),
        (("--data", "all", "--data", "scenes"), "--data all: stands for itself"),
        (("--data", "cityscapes", "--data-root", "empty"), "cityscapes:val: not found in empty"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    status = main.run(["bench", "a", *arguments, "--limit", "1", "--device", "cpu"])
    shown = capsys.readouterr()
    assert status == 2
    assert message in shown.err and shown.err.strip().count("\n") == 0
    assert shown.out == ""


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`ovstrans` with these arguments in two processes on gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [*command, "-m", "ovstrans.cli.main", *arguments],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes_count_what_one_does() -> None:
    """Under torchrun on gloo, three images on two ranks: one report, one table, the same figures, all pages."""
    arguments = ("bench", "a", "--limit", "3", "--show", "3", "--device", "cpu", "--json", "both.json")
    done = torchrun(*arguments, "--pictures", "two")
    assert done.returncode == 0, done.stderr
    assert "scenes:val mIoU" in done.stdout and done.stdout.count("trainable params") == 1
    status, alone = run("a", "--limit", "3", "--show", "3", "--pictures", "one")
    assert status == 0
    assert json.loads(Path("both.json").read_text())["datasets"] == alone["datasets"]
    for page in Path("one").iterdir():
        with Image.open(page) as ours, Image.open(Path("two") / page.name) as theirs:
            assert ours.tobytes() == theirs.tobytes()


@pytest.mark.slow
def test_two_processes_agree_on_a_fault_and_go_on() -> None:
    """Only rank 1 meets it; both pass on to the next dataset, and the report has what was said of the first."""
    put_roads(Path("data"), images=9)
    spoil("data/CamVid/valannot/8.png")  # in the second block of images
    asked = ("--data", "all", "--data-root", "data", "--short-side", "16", "--show", "1", "--device", "cpu")
    done = torchrun("bench", "a", *asked, "--json", "both.json", "--quiet")
    assert done.returncode != 0 and done.stderr.count("camvid:val: not evaluated") == 1, done.stderr
    report = json.loads(Path("both.json").read_text())
    assert set(report["datasets"]) == {"cityscapes:val"}
    assert report["failed"]["camvid:val"].startswith("data/CamVid/valannot/8.png: ")


def test_predictions_of_one_process_are_those_it_made() -> None:
    predictions = {3: torch.zeros(1, 1)}
    assert evaluations._gather(predictions) == predictions


@pytest.mark.parametrize(
    ("values", "classes", "words"),
    [
        (
            (0, 255),
            '"background", "polyp"',
            "class polyp has no pixel anywhere in 2 label maps, one class alone is left",
        ),
        ((0, 255), '"background", "polyp"', "value 255 covers 25 % and is ignored"),
        ((0, 255), '"polyp"', "its only class is polyp, which every pixel is given to: all scores are 100 %"),
    ],
)
def test_what_makes_scores_say_little_is_named(
    values: tuple[int, ...], classes: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_masks(Path("polyps"), *values, classes=classes)
    status, report = run("a", "--data", "folder:polyps", "--limit", "2", "--show", "0")
    assert status == 0
    if classes == '"polyp"':
        assert report["datasets"]["polyps:val"]["mIoU"] == pytest.approx(100)
    assert words in " ".join(capsys.readouterr().err.split())


DATA = ("--data", "scenes:val", "--data", "scenes-shift:val", "--limit", "2", "--show", "2")


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> list[str]:
    """Raise an error in place of the evaluation `number` (from 0); return the list of the tasks begun."""
    begun: list[str] = []
    plain = evaluations.evaluate

    def evaluate(*given: Any, **options: Any) -> Any:
        begun.append(options["task"])
        if len(begun) == number + 1:
            raise error
        return plain(*given, **options)

    monkeypatch.setattr(evaluations, "evaluate", evaluate)
    return begun


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (main._Terminated(), 143, "interrupted"),
        (RuntimeError("CUDA out of memory"), 1, "CUDA out of memory"),
    ],
    ids=["SIGINT", "SIGTERM", "a crash"],
)
def test_what_is_finished_is_shown_and_resume_goes_on_after_it(
    error: BaseException,
    status: int,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_run(Path("b"), density=0.1)
    assert run("a", "b", *DATA, "--pictures", "whole") == (0, whole := json.loads(Path("report.json").read_text()))
    assert not Path("ovstrans-out/bench-unfinished").exists()  # nothing is left of a bench that is done
    with monkeypatch.context() as patch:
        begun = interrupt_at(patch, 3, error)
        capsys.readouterr()
        found, report = run("a", "b", *DATA, "--pictures", "parts")
    assert found == status and len(begun) == 4
    first, second = report["reports"]
    assert first == whole["reports"][0] and "incomplete" not in first
    assert set(second["datasets"]) == {"scenes:val"} and second["incomplete"] == {"scenes-shift:val": reason}
    shown = " ".join(capsys.readouterr().out.split())
    assert "scenes:val mIoU" in shown and "incomplete: b lacks scenes-shift:val" in shown
    assert len(list(Path("ovstrans-out/bench-unfinished").iterdir())) == 3

    begun = interrupt_at(monkeypatch, 9, error)
    assert run("a", "b", *DATA, "--pictures", "parts", "--resume") == (0, whole)
    assert begun == ["evaluate b on scenes-shift:val"]
    assert not Path("ovstrans-out/bench-unfinished").exists()
    for page in Path("whole").iterdir():  # with the predictions of before the interrupt
        with Image.open(page) as ours, Image.open(Path("parts") / page.name) as theirs:
            assert ours.tobytes() == theirs.tobytes()


def test_an_interrupt_before_anything_is_finished_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at(monkeypatch, 0, KeyboardInterrupt())
    assert run("a", *DATA) == (130, {})
    assert capsys.readouterr().out == "" and not Path("ovstrans-out/bench-unfinished").exists()


@pytest.mark.parametrize("change", [("--flip",), ("--limit", "1"), ("--denominator", "union"), "checkpoint", "damage"])
def test_resume_uses_only_what_was_made_alike(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, KeyboardInterrupt())
        assert run("a", *DATA)[0] == 130
    options: tuple[str, ...] = ()
    if change == "checkpoint":
        Path("a/checkpoint.safetensors").unlink()
        Path("a").rmdir()
        write_run(Path("a"), density=0.1)
    elif change == "damage":
        (kept,) = Path("ovstrans-out/bench-unfinished").iterdir()
        kept.write_bytes(kept.read_bytes()[:-9])
    else:
        options = change
    begun = interrupt_at(monkeypatch, 9, KeyboardInterrupt())
    assert run("a", *DATA, *options, "--resume")[0] == 0
    assert len(begun) == 2


def test_without_resume_all_is_computed_anew_and_nothing_to_resume_is_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, KeyboardInterrupt())
        run("a", *DATA)
    begun = interrupt_at(monkeypatch, 9, KeyboardInterrupt())
    assert run("a", *DATA)[0] == 0 and len(begun) == 2
    assert run("a", *DATA, "--resume")[0] == 0 and len(begun) == 4


def test_a_killed_bench_goes_on_after_what_it_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL leaves no time to write anything: what is finished is on disk already."""
    script = (
        "import os, signal, sys; from ovstrans.reports import evaluations; from ovstrans.cli import main\n"
        "plain, begun = evaluations.evaluate, []\n"
        "def evaluate(*given, **options):\n"
        "    begun.append(1)\n"
        "    if len(begun) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plain(*given, **options)\n"
        "evaluations.evaluate = evaluate\n"
        "main.run(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "bench", "a", *DATA, "--device", "cpu"], check=False)
    assert done.returncode == -9
    begun = interrupt_at(monkeypatch, 9, KeyboardInterrupt())
    status, report = run("a", *DATA, "--resume")
    assert status == 0 and len(begun) == 1 and len(report["datasets"]) == 2


def test_figures_without_pictures_where_no_picture_can_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("ovstrans-out").write_text("a file where the folder of outputs would be")
    assert main.run(["bench", "a", "--limit", "1", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert (
        "scenes:val mIoU" in shown.out and "no pictures: ovstrans-out/bench: ovstrans-out is not a folder" in shown.err
    )
    assert main.run(["bench", "a", "--limit", "1", "--pictures", "ovstrans-out/here", "--device", "cpu"]) == 2
    assert main.run(["bench", "a", "--limit", "1", "--plot", "--device", "cpu"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("error: ") == 2 and "evaluate" not in shown.err  # before the work

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ovstrans.reports.pages.save_page", full)
    status, report = run("a", "--limit", "1", "--pictures", "pages")  # and if the disk is full only then
    assert status == 2 and "scenes:val" in report["datasets"]
    assert "pictures left out: No space left on device" in capsys.readouterr().err


def test_old_pictures_of_other_targets_go_and_files_of_others_stay() -> None:
    write_run(Path("b"), density=0.1)
    assert run("a", "b", "--data", "scenes:test", "--limit", "1", "--show", "1")[0] == 0
    folder = Path("ovstrans-out/bench")
    Image.new("RGB", (4, 4)).save(folder / "mine.png")
    assert run("a", "--data", "scenes-shift:val", "--limit", "1", "--show", "1", "--plot")[0] == 0
    plots = {"miou.png", "layers.png", "training.png"}
    pages = {"scenes-shift-val.png", "scenes-shift-val-confusion.png"}
    assert {path.name for path in folder.iterdir()} == {"mine.png", *plots, *pages}
    assert run("a", "--data", "scenes:test", "--limit", "1", "--show", "1")[0] == 0
    assert {path.name for path in folder.iterdir()} == {"mine.png", "scenes-test.png", "scenes-test-confusion.png"}


def test_options_of_inference_are_part_of_what_a_result_depends_on() -> None:
    """`--set` changes some of a trained model: its old results are of another model then."""
    target, world = load_target("a"), SimpleNamespace(device=torch.device("cpu"))
    scoring = evaluations.Scoring(None, "auto", Inference(), True, "present", False, None, 0, False)
    data = open_dataset("scenes", split="val")
    before = scoring.key("scenes:val", data, target, world)  # type: ignore[arg-type]
    assert before == scoring.key("scenes:val", data, target, world)  # type: ignore[arg-type]
    target.module.options = {**dict(target.module.options), "width": 9}  # type: ignore[assignment, arg-type]
    assert before != scoring.key("scenes:val", data, target, world)  # type: ignore[arg-type]
