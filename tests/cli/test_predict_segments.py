"""`ovstrans predict --panoptic --instances` end to end: COCO's files, read with numpy, json and pillow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.cli import main
from ovstrans.frameworks import registry
from ovstrans.frameworks.registry import classifier_for
from ovstrans.segmenter import options as options_module
from ovstrans.segmenter import predict as predict_module
from tests.cli.test_predict import files_in, read, run
from tests.datasets.test_run_lengths import walked
from tests.segmenter.case import deeplab_checkpoint, draw, fcclip_checkpoint, write_run

OPTIONS = ("--panoptic", "--instances")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), fcclip_checkpoint())


def ids_in(path: str) -> np.ndarray:
    return read(path).astype(np.int64) @ np.array([1, 256, 256**2])


def test_segments_and_instances_are_the_frameworks_own() -> None:
    draw("in/day/photo.png", 96, 64)
    status, summary = run("run", "in", *OPTIONS, "--out", "seen")
    assert status == 0
    kinds = ("labels", "overlays", "panoptic", "overlays-panoptic", "overlays-instances")
    jsons = {"classes.json", "panoptic.json", "instances.json"}
    assert files_in("seen") == {*jsons, *(f"{kind}/day/photo.png" for kind in kinds)}

    image = torch.from_numpy(read("in/day/photo.png").copy()).permute(2, 0, 1)[None].float() / 255
    framework: Any = registry.restore(fcclip_checkpoint())
    text = classifier_for(fcclip_checkpoint(), fcclip_checkpoint().vocabulary)
    with torch.inference_mode():
        (expected_map, expected), (found,) = framework.panoptic(image, text)[0], framework.instances(image, text)
    assert len(expected) > 1
    assert np.array_equal(ids_in("seen/panoptic/day/photo.png"), expected_map.numpy())
    content = json.loads(Path("seen/panoptic.json").read_text())
    (entry,) = content["annotations"]
    assert (entry["image_id"], entry["file_name"]) == ("day/photo", "day/photo.png")
    shown = [(info["id"], info["category_id"], info["isthing"], info["area"]) for info in entry["segments_info"]]
    assert shown == [(each.id, each.class_index, int(each.isthing), each.area) for each in expected] and shown
    names = [category["name"] for category in content["categories"]]
    assert names == summary["classes"] and {c["isthing"] for c in content["categories"]} == {0, 1}

    rows = json.loads(Path("seen/instances.json").read_text())
    kept = [number for number, mask in enumerate(found.masks) if mask.any()]
    assert [row["category_id"] for row in rows] == found.classes[kept].tolist() and rows
    assert [row["score"] for row in rows] == pytest.approx(found.scores[kept].tolist(), abs=1e-5)
    for row, number in zip(rows, kept, strict=True):
        assert (walked(row["segmentation"]) == found.masks[number].numpy()).mean() > 0.999
    (seen,) = summary["images"]
    assert seen["image_id"] == "day/photo" and sum(seen["segments"].values()) == len(expected)
    assert summary["panoptic"] == "seen/panoptic.json" and summary["instances"] == "seen/instances.json"
    for key in ("segment_map", "panoptic_overlay", "instance_overlay"):
        assert Path(seen[key]).exists()


def test_only_what_was_asked_for() -> None:
    draw("photo.png")
    assert run("run", "photo.png", "--panoptic", "--no-overlay", "--out", "a")[0] == 0
    assert files_in("a") == {"classes.json", "labels/photo.png", "panoptic/photo.png", "panoptic.json"}
    assert run("run", "photo.png", "--instances", "--no-overlay", "--out", "b")[0] == 0
    assert files_in("b") == {"classes.json", "labels/photo.png", "instances.json"}
    assert run("run", "photo.png", "--no-overlay", "--out", "c")[0] == 0
    assert (
        read("a/labels/photo.png").tolist()
        == read("b/labels/photo.png").tolist()
        == read("c/labels/photo.png").tolist()
    )
    assert run("run", "photo.png", "--no-overlay", "--out", "a", "--force")[0] == 0
    assert files_in("a") == {"classes.json", "labels/photo.png"}  # nothing of before


def test_segments_are_of_the_upright_image_at_its_size() -> None:
    draw("photo.png", 40, 56)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    with Image.open("photo.png") as picture:
        picture.convert("RGBA").transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    assert run("run", "photo.png", "turned.png", *OPTIONS, "--long-side", "48", "--out", "seen")[0] == 0
    assert ids_in("seen/panoptic/turned.png").shape == (56, 40)
    assert np.array_equal(ids_in("seen/panoptic/photo.png"), ids_in("seen/panoptic/turned.png"))
    sizes = {tuple(row["segmentation"]["size"]) for row in json.loads(Path("seen/instances.json").read_text())}
    assert sizes == {(56, 40)}


def test_an_interrupt_loses_no_segments_and_resume_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        draw(f"in/{number:012d}.png", 40, 40, seed=number)
    arguments = ("run", "in", *OPTIONS)
    assert run(*arguments, "--out", "straight")[0] == 0
    assert {row["image_id"] for row in json.loads(Path("straight/instances.json").read_text())} == {0, 1, 2}
    plain, seen = predict_module.read_image, []

    def tired(path: Path) -> torch.Tensor:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(path)
        return plain(path)

    monkeypatch.setattr(predict_module, "read_image", tired)
    assert run(*arguments, "--out", "seen")[0] == 130
    (entry,) = json.loads(Path("seen/panoptic.json").read_text())["annotations"]
    assert entry["image_id"] == 0
    monkeypatch.setattr(predict_module, "read_image", plain)
    assert run("run", "in", "--panoptic", "--out", "seen", "--resume")[0] == 2
    status, summary = run(*arguments, "--out", "seen", "--resume")
    assert status == 0
    assert files_in("seen") == files_in("straight")
    for name in files_in("seen") - {"classes.json"}:
        assert Path("seen", name).read_bytes() == Path("straight", name).read_bytes()
    again = run(*arguments, "--out", "seen", "--resume")[1]["images"]
    assert [entry["segments"] for entry in again] == [entry["segments"] for entry in summary["images"]]
    assert [entry["instances"] for entry in again] == [entry["instances"] for entry in summary["images"]]


def test_a_kill_loses_no_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill in the middle of a line: no file of all images, and only half of what was said of the third."""
    from ovstrans.segmenter.coco_writer import CocoWriter

    for number in range(4):
        draw(f"in/{number}.png", 40, 40, seed=number)
    arguments = ("run", "in", *OPTIONS)
    assert run(*arguments, "--out", "straight")[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(CocoWriter, "finish", lambda *_: None)
        assert run(*arguments, "--out", "seen")[0] == 0
    journal = Path("seen/segments.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    assert len([line for line in lines if line.strip()]) == 4
    journal.write_text("".join(lines[:-3]) + lines[-3][:50])
    for number in (2, 3):
        Path(f"seen/labels/{number}.png").unlink()
    assert run(*arguments, "--out", "seen", "--resume")[0] == 0
    for name in files_in("straight") - {"classes.json"}:
        assert Path("seen", name).read_bytes() == Path("straight", name).read_bytes()
    assert not journal.exists()


def test_a_large_image_is_looked_at_smaller_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options_module, "LARGEST", 64 * 80)
    draw("large.png", 160, 128)
    assert main.run(["predict", "run", "large.png", "--panoptic", "--device", "cpu"]) == 0
    assert "large.png: 160x128 is reduced to 80x64" in capsys.readouterr().err
    assert ids_in("ovstrans-out/predict/panoptic/large.png").shape == (128, 160)
    assert run("run", "large.png", "--panoptic", "--long-side", "80", "--out", "same")[0] == 0
    assert np.array_equal(ids_in("same/panoptic/large.png"), ids_in("ovstrans-out/predict/panoptic/large.png"))


def test_things_of_words_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    draw("photo.png")
    arguments = ["predict", "run", "photo.png", "--classes", "Circle, sand, teapot", *OPTIONS, "--device", "cpu"]
    assert main.run([*arguments, "--out", "a"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "'teapot': not known whether countable; taken as stuff for panoptic segments (one segment a class) and as "
        "things for instances; --things chooses" in said
    )
    categories = json.loads(Path("a/panoptic.json").read_text())["categories"]
    assert [category["isthing"] for category in categories] == [1, 0, 0]
    described = json.loads(Path("a/classes.json").read_text())
    assert described["panoptic"] == {"things": [0]} and described["instances"] == {"things": [0, 2]}
    assert 1 not in {row["category_id"] for row in json.loads(Path("a/instances.json").read_text())}
    assert main.run([*arguments, "--things", " SAND,teapot", "--out", "b"]) == 0
    assert "countable" not in capsys.readouterr().err
    described = json.loads(Path("b/classes.json").read_text())
    assert described["panoptic"] == described["instances"] == {"things": [1, 2]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("deeplab", "photo.png", "--panoptic"),
            "deeplabv3 classifies pixels and finds no segments; --panoptic needs a run of deop or fcclip or gkc",
        ),
        (("deeplab", "photo.png", "--instances"), "--instances needs a run of deop or fcclip or gkc"),
        (
            ("run", "photo.png", "--panoptic", "--window", "64"),
            "--panoptic: not possible with windows or a mirrored image; leave out --window and --flip",
        ),
        (("run", "photo.png", "--instances", "--flip"), "--instances: not possible with windows or a mirrored image"),
        (("run", "photo.png", "--things", "circle"), "--things: applies to segments; give --panoptic or --instances"),
        (
            ("run", "photo.png", "--panoptic", "--things", "cirle"),
            "'cirle' is none of the 28 classes; did you mean 'circle'",
        ),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    draw("photo.png")
    write_run(Path("deeplab"), deeplab_checkpoint())
    before = files_in(".")
    assert main.run(["predict", *arguments, "--quiet", "--device", "cpu"]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.strip().count("\n") == 0 and shown.out == ""
    assert files_in(".") == before


def test_the_table_counts_them(capsys: pytest.CaptureFixture[str]) -> None:
    draw("photo.png")
    assert main.run(["predict", "run", "photo.png", *OPTIONS, "--device", "cpu", "--json", "s.json"]) == 0
    shown = capsys.readouterr().out
    assert "segments" in shown and "instances" in shown
    found = json.loads(Path("s.json").read_text())["images"][0]["segments"]
    assert found
    for name in found:
        assert name in shown
